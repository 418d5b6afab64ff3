"""What all engines have in common: the command line, which cases are measured and how, one JSON line for each, and
after each a wait for a line of input.

Runs in every engine's own environment, so it imports the standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

DECODE_PROMPT = 128
WARM_UP_TOKENS = 8
# Lower ids are control tokens.
FIRST_TOKEN = 1000


class Engine(Protocol):
    """A loaded model."""

    facts: dict[str, Any]  # versions, and settings that a reader of the result should know

    def prefill(self, prompt: list[int]) -> float:
        """Seconds from a prompt to its first new token."""
        ...

    def decode(self, prompts: list[list[int]], new_tokens: int) -> float:
        """Tokens per second once all prompts have been read and each has a token."""
        ...

    def weight_bytes(self, sequences: int) -> float:
        """Bytes of weights that a decode step of so many sequences reads."""
        ...


def run(prepare: Callable[[Path], list[str]], load: Callable[[Path, str, argparse.Namespace], Engine]) -> None:
    """The command of an engine: `prepare MODELS` prints its variants; `measure MODELS VARIANT` measures one of them.

    Args:
        prepare: Writes what the engine needs beside the checkpoints in MODELS, and names the variants it can load.
        load: Loads one of them.
    """
    args = _arguments()
    # Libraries print as they like: what comes out of standard output is ours alone.
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(**line: Any) -> None:
        print(json.dumps(line), file=lines, flush=True)

    def report(**line: Any) -> None:
        say(**line)
        sys.stdin.readline()  # until the reader has measured what the machine gives at this moment

    if args.action == "prepare":
        say(variants=prepare(args.models))
        return
    started = time.perf_counter()
    engine = load(args.models, args.variant, args)
    loaded = time.perf_counter()
    prompts = _Prompts(args)
    engine.prefill(prompts.next(4))
    report(
        case="load",
        seconds=loaded - started,
        first_token_seconds=time.perf_counter() - loaded,
        loaded_bytes=_peak_memory(),
        **engine.facts,
    )
    for length in args.prefill:
        report(case=f"prefill {length}", tokens=length, **_prefill(engine, prompts, length, args.seconds))
    for sequences in args.decode:
        measured = _decode(engine, prompts, sequences, args)
        report(case=f"decode {sequences}", weight_bytes=engine.weight_bytes(sequences), **measured)
    report(case="memory", peak_bytes=_peak_memory())


def expected_share(model: dict[str, Any], tokens: int) -> float:
    """The share of experts that so many tokens meet, if routing is uniform and independent."""
    return 1 - (1 - model["experts_per_token"] / model["experts"]) ** tokens


def bf16_bytes(models: Path, sequences: int) -> float:
    model = model_facts(models)
    return 2 * (model["shared_parameters"] + model["expert_parameters"] * expected_share(model, sequences))


def model_facts(models: Path) -> dict[str, Any]:
    """Sizes of the model, as weights.py has written them beside the checkpoints."""
    return json.loads((models / "model.json").read_text())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("prepare").add_argument("models", type=Path)
    measure = actions.add_parser("measure")
    measure.add_argument("models", type=Path)
    measure.add_argument("variant")
    measure.add_argument("--prefill", type=counts, default=[512, 2048], help="prompt lengths")
    measure.add_argument("--decode", type=counts, default=[1, 8, 32], help="sequences at the same time")
    measure.add_argument("--new-tokens", type=int, default=128, help="at most, per sequence")
    measure.add_argument("--seconds", type=float, default=40.0, help="for one case, beyond its warm-up")
    measure.add_argument("--threads", type=int, required=True)
    measure.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def counts(text: str) -> list[int]:
    """Numbers of at least 1, as in "1,8,32". Raises ArgumentTypeError."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 1,8,32.")
    return found


class _Prompts:
    """Random ones, the same for every engine, never twice the same: a prefix cache finds nothing."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._random = random.Random(args.seed)
        self._vocab_size = model_facts(args.models)["vocab_size"]

    def next(self, length: int) -> list[int]:
        return [self._random.randrange(FIRST_TOKEN, self._vocab_size) for _ in range(length)]


def _prefill(engine: Engine, prompts: _Prompts, length: int, limit: float) -> dict[str, Any]:
    """A warm-up pays for what is touched for the first time; if it took longer than `limit`, it is the result."""
    warm_up, prompt = prompts.next(length), prompts.next(length)
    seconds = engine.prefill(warm_up)
    cold = seconds > limit
    if not cold:
        seconds = engine.prefill(prompt)
    return {"tokens_per_second": length / seconds, "cold": cold}


def _decode(engine: Engine, prompts: _Prompts, sequences: int, args: argparse.Namespace) -> dict[str, Any]:
    """As many new tokens as the time limit allows, judged by the warm-up's."""
    warm_up = [prompts.next(DECODE_PROMPT) for _ in range(sequences)]
    asked = [prompts.next(DECODE_PROMPT) for _ in range(sequences)]
    steps_per_second = engine.decode(warm_up, WARM_UP_TOKENS) / sequences
    new_tokens = max(WARM_UP_TOKENS, min(args.new_tokens, int(args.seconds * steps_per_second)))
    rate = engine.decode(asked, new_tokens)
    return {"sequences": sequences, "new_tokens": new_tokens, "tokens_per_second": rate}


def _peak_memory() -> int:
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
