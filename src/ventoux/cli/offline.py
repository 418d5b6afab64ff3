"""What the commands share that run a model in their own process: sampling flags, and loading with a progress bar."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ventoux.cli.flags import from_args, parse_count
from ventoux.cli.progress import loading_bar
from ventoux.config import EngineConfig

if TYPE_CHECKING:
    from ventoux.llm import LLM

MODEL_HELP = "Hub id or folder, either layout (default: the bundled model)"

# field of SamplingParams: (type, metavar, help)
_SAMPLING: dict[str, tuple[Any, str, str]] = {
    "temperature": (float, "X", "0 takes the most likely token (default: 1)"),
    "top_p": (float, "X", "keep the most likely tokens that hold this share of the probability (default: 1)"),
    "top_k": (int, "N", "keep the N most likely tokens (default: 0, all)"),
    "min_p": (float, "X", "keep tokens of at least this share of the highest probability (default: 0)"),
    "max_tokens": (parse_count, "N", "tokens of one answer (default: all the room that is left)"),
    "seed": (int, "N", "the same seed gives the same answer"),
}


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that are not given leave no trace."""
    group = parser.add_argument_group("sampling")
    for name, (kind, metavar, described) in _SAMPLING.items():
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=described)
    group.add_argument(
        "--stop", action="append", metavar="TEXT", default=argparse.SUPPRESS, help="end before this text (repeatable)"
    )


def sampling_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of SamplingParams that were given as flags."""
    return {name: getattr(args, name) for name in (*_SAMPLING, "stop") if hasattr(args, name)}


def open_llm(args: argparse.Namespace) -> LLM:
    """Loads the model of the command line with its engine flags."""
    from ventoux.llm import LLM

    with loading_bar("loading weights") as progress:
        return LLM(args.model, progress=progress, **asdict(from_args(EngineConfig, args)))
