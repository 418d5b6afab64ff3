"""Command-line flags, derived from the fields of config dataclasses: declared once, there."""

from __future__ import annotations

import argparse
import json
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable
from dataclasses import Field, fields
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
    return int(float(number) * scale)


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
        if isinstance(kind, types.UnionType):
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
        return {**options, "nargs": field.metadata["nargs"], "metavar": "NAME"}
    converters: dict[Any, Callable[[str], Any]] = {int: parse_count, float: float, str: str}
    return {**options, "type": converters[kind], "metavar": {int: "N", float: "X", str: "TEXT"}[kind]}


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

    Raises ConfigError if the file cannot be read or is no mapping.
    """
    paths = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--config"]
    paths += [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    if not paths:
        return argv
    import yaml

    try:
        content = yaml.safe_load(Path(paths[-1]).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {paths[-1]}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {paths[-1]}: the file must hold a mapping of flag names to values.")
    if "config" in content:
        raise ConfigError(f"--config {paths[-1]}: a file cannot name another one.")
    before: list[str] = []
    model = content.pop("model", None)
    for key, value in content.items():
        flag = "--" + str(key).replace("_", "-")
        if value is None:
            raise ConfigError(f"--config {paths[-1]}: {key} has no value.")
        if isinstance(value, bool):
            before.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, dict):
            before += [flag, json.dumps(value)]
        else:
            before += [flag, *(map(str, value) if isinstance(value, list) else [str(value)])]
    command, *rest = argv
    # The model of the command line, if there is one, comes right after the command.
    if model is not None and (not rest or rest[0].startswith("-")):
        rest = [str(model), *rest]
    positional = [] if not rest or rest[0].startswith("-") else [rest.pop(0)]
    return [command, *positional, *before, *rest]
