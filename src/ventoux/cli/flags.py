"""Command-line flags, derived from the fields of config dataclasses: declared once, there."""

from __future__ import annotations

import argparse
import json
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable
from dataclasses import Field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from ventoux.errors import ConfigError

T = TypeVar("T")

_UNITS = {"": 1, "k": 1000, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_count(text: str) -> int:
    """An integer with an optional unit: 16384, 256k and 256K (tokens: 262144), 4GiB, 4GB, 20MiB.

    A bare k, m, g is binary, since contexts are (256k = 262144), and so are KiB, MiB, ...; KB, MB, ... are decimal.
    """
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*([kmgt]?)(ib|b)?", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number (examples: 16384, 256k, 4GiB)")
    number, unit, suffix = match.groups()
    scale = _UNITS[unit] if suffix == "b" or not unit else _BINARY_UNITS[unit]
    value = Fraction(number) * scale
    if value.denominator != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(value)


def parse_count_or_auto(text: str) -> int | None:
    """As `parse_count`; "auto" is the same as leaving the flag out."""
    return None if text == "auto" else parse_count(text)


class _Collect(argparse.Action):
    """A flag of one or more values, which may be repeated: --api-key a b, --api-key a --api-key b.

    Notes in `args.greedy_flag` that it took several words at once: one of them may have been meant as an argument.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if len(values) > 1:
            namespace.greedy_flag = option_string
        setattr(namespace, self.dest, [*getattr(namespace, self.dest, []), *values])


def check_argument(args: argparse.Namespace, argument: str) -> None:
    """Raises ConfigError if `argument` (model) was not given, and a flag may have swallowed it.

    `--api-key KEY MODEL` would otherwise serve the bundled model to everybody who knows the name of another one.
    """
    flag = getattr(args, "greedy_flag", None)
    if flag is not None and getattr(args, argument) is None:
        name = argument.upper()
        raise ConfigError(
            f"{flag} takes every word after it, perhaps {name} too. Put {name} first, or repeat the flag for each"
            f" value: {flag} A {flag} B."
        )


def add_flags(parser: argparse.ArgumentParser, config: type, title: str, *, without: Collection[str] = ()) -> None:
    """One flag per field of a config dataclass (but those in `without`), under a heading.

    Flags that are not given leave no trace.
    """
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(config)
    for field in fields(config):
        if field.name in without:
            continue
        kind = hints[field.name]
        if kind == int | None:
            kind = parse_count_or_auto
        elif isinstance(kind, types.UnionType):
            (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
        names = ["--" + field.name.replace("_", "-"), *field.metadata.get("aliases", ())]
        group.add_argument(*names, dest=field.name, default=argparse.SUPPRESS, **_options(field, kind))


def _options(field: Field, kind: Any) -> dict[str, Any]:
    described = field.metadata["help"]
    if field.default not in (None, (), ""):
        described += f" (default: {field.default})"
    options: dict[str, Any] = {"help": described.replace("%", "%%")}
    if kind is bool:
        return {**options, "action": argparse.BooleanOptionalAction}
    if "choices" in field.metadata:
        return {**options, "choices": field.metadata["choices"]}
    if field.metadata.get("nargs"):
        return {**options, "action": _Collect, "nargs": field.metadata["nargs"], "metavar": "NAME"}
    converters: dict[Any, tuple[Callable[[str], Any], str]] = {
        int: (parse_count, "N"),
        parse_count_or_auto: (parse_count_or_auto, "N"),
        float: (float, "X"),
        str: (str, "TEXT"),
    }
    convert, metavar = converters[kind]
    return {**options, "type": convert, "metavar": metavar}


def from_args(config: type[T], args: argparse.Namespace) -> T:
    """The config record with the flags that were given; the others keep their defaults."""
    given = {f.name: getattr(args, f.name) for f in fields(config) if hasattr(args, f.name)}  # type: ignore[arg-type]
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def normalise(argv: Iterable[str]) -> list[str]:
    """Underscores in flag names become dashes: --max_num_seqs=8 is --max-num-seqs=8.

    Only the name changes: not the value after "=", nor the part after a dot (--speculative-config.max_model_len).
    """
    result = []
    for word in argv:
        match = re.match(r"--[^=.]*", word)
        result.append(match.group().replace("_", "-") + word[match.end() :] if match else word)
    return result


def with_config_file(argv: list[str]) -> list[str]:
    """Puts the flags of `--config FILE` (YAML, flag names as keys) before the others, which therefore win.

    A flag that the command line has is left out of the file's. `model` is no flag: see `config_model`.

    Raises ConfigError if the file cannot be read or is no mapping.
    """
    paths = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--config"]
    paths += [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    if not paths:
        return argv
    given = {word.partition("=")[0] for word in argv}
    before: list[str] = []
    for key, value in _config_file(paths[-1]).items():
        flag = "--" + str(key).replace("_", "-")
        if key == "model" or flag in given:
            continue
        # In one word: what follows cannot be taken for a second value, nor a value for a flag.
        if isinstance(value, bool):
            before.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, dict):
            before.append(f"{flag}={json.dumps(value)}")
        else:
            before += [f"{flag}={item}" for item in (value if isinstance(value, list) else [value])]
    command, *rest = argv
    return [command, *before, *rest]


def config_model(path: str | None) -> str | None:
    """The `model` of a configuration file, for a command line that names none."""
    model = None if path is None else _config_file(path).get("model")
    return None if model is None else str(model)


def _config_file(path: str) -> dict[Any, Any]:
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: the file must hold a mapping of flag names to values.")
    if "config" in content:
        raise ConfigError(f"--config {path}: a file cannot name another one.")
    for key, value in content.items():
        if value is None:
            raise ConfigError(f"--config {path}: {key} has no value.")
    return content
