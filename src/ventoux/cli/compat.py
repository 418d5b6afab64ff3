"""Flags that other engines have taught people, and that need no choice here: accepted, told once, without effect."""

from __future__ import annotations

import argparse
import json

from ventoux.errors import ConfigError
from ventoux.speculative import FLAG, parse_speculative

# flag: (the values it may take; None: any, () : it takes none, why it has no effect)
_ALWAYS_ON: dict[str, tuple[tuple[str, ...] | None, str]] = {
    "--tool-call-parser": (("mistral",), "tool calls are always parsed"),
    "--enable-auto-tool-choice": ((), "tools can always be chosen"),
    "--reasoning-parser": (("mistral",), "reasoning is always set apart"),
    "--tokenizer-mode": (("mistral", "auto"), "the tokenizer is always mistral-common's"),
    "--config-format": (("mistral", "hf", "auto"), "both layouts are recognised"),
    "--load-format": (("mistral", "safetensors", "auto"), "both layouts are recognised"),
    "--attention-backend": (None, "the operators are chosen by what the machine has"),
    "--trust-remote-code": ((), "checkpoints run no code"),
    "--enable-chunked-prefill": ((), "prompts are always read in chunks"),
    "--disable-log-requests": ((), "prompts are never logged"),
    "--no-enable-log-requests": ((), "prompts are never logged"),
}


def add_compatible_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("accepted for compatibility")
    for flag, (values, reason) in _ALWAYS_ON.items():
        described = f"no effect: {reason}"
        if values == ():
            group.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=described)
        else:
            group.add_argument(flag, choices=values, default=argparse.SUPPRESS, help=described, metavar="NAME")
    group.add_argument(
        "--limit-mm-per-prompt", default=argparse.SUPPRESS, metavar="JSON", help='as {"image": 4}: sets --limit-images'
    )


def notices(args: argparse.Namespace) -> list[str]:
    """One line for each such flag that was given."""
    given = [flag for flag in _ALWAYS_ON if hasattr(args, flag[2:].replace("-", "_"))]
    lines = [f"{flag} has no effect here: {_ALWAYS_ON[flag][1]}." for flag in given]
    if getattr(args, "tensor_parallel_size", 1) > 1 and getattr(args, "device", "auto") != "cuda":
        lines.append(
            "--tensor-parallel-size splits a model over GPUs; a CPU is one device, so it changes nothing here."
        )
    return lines


def images_per_prompt(text: str) -> int:
    """The image limit of `--limit-mm-per-prompt` ({"image": 4}, or image=4)."""
    try:
        limits = json.loads(text) if text.startswith("{") else dict(pair.split("=") for pair in text.split(","))
        unknown = set(limits) - {"image"}
        count = int(limits["image"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'--limit-mm-per-prompt must look like {{"image": 4}}, got {text}.') from error
    if unknown or count < 0:
        raise ConfigError(f"--limit-mm-per-prompt {text}: there are images only, and not fewer than none.")
    return count


def join_speculative(argv: list[str]) -> list[str]:
    """One `--speculative-config=JSON` for all forms it comes in: JSON, `-sc JSON`, dotted (`-sc.method eagle`).

    Raises ConfigError if it is no JSON object, or says what cannot be.
    """
    rest: list[str] = []
    config: dict[str, object] = {}
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        flag, _, key = name.partition(".")
        if flag not in (FLAG, "-sc"):
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        try:
            config.update({key: value} if key else json.loads(value))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{FLAG} must be a JSON object, got {value!r}.") from error
    if not config:
        return rest
    parse_speculative(config)
    command, *others = rest
    return [command, f"{FLAG}={json.dumps(config)}", *others]
