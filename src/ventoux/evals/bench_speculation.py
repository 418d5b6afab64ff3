"""What speculation brings at a known acceptance: the draft model runs and costs what it costs, and its guesses are then
replaced by the coming tokens, each with a given chance, or by wrong ones. With a fixed number of guesses that shows
what a draft can bring; with an adaptive one, what it costs to find out when it brings nothing.

So the speed-up of a pair can be told from the acceptance that it would have, before there is a trained draft; beside it
stands the arithmetic limit: the tokens that a step brings, if guessing and verifying cost nothing.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Any

from ventoux.engine.drafting import Drafter, Progress
from ventoux.engine.engine import Engine
from ventoux.engine.speculation import Speculation
from ventoux.errors import ConfigError
from ventoux.evals.bench import DECODE_PROMPT, DecodeRun, Tick, decode_run, own_speculation_back, random_prompts, spread

Tokens = dict[str, list[int]]


class KnownAcceptance:
    """`drafter`'s cost with other guesses: token by token the coming one with the chance `acceptance`."""

    def __init__(self, drafter: Drafter, acceptance: float, vocab_size: int):
        self.drafter, self.acceptance, self.vocab_size = drafter, acceptance, vocab_size
        self.coming: Tokens = {}
        self.rng = random.Random(0)

    def propose(self, progress: list[Progress]) -> list[list[int]]:
        self.drafter.propose(progress)
        return [self._guess(p) for p in progress]

    def _guess(self, p: Progress) -> list[int]:
        done = p.sequence.num_generated
        coming = self.coming[p.sequence.request.request_id][done : done + p.wanted]
        return [t if self.rng.random() < self.acceptance else (t + 1) % self.vocab_size for t in coming]


def num_runs(acceptances: Sequence[float], batch_sizes: Sequence[int], repeats: int) -> int:
    return len(batch_sizes) * repeats * (1 + 2 * len(acceptances))


def speculation(
    engine: Engine,
    *,
    acceptances: Sequence[float],
    batch_sizes: Sequence[int],
    new_tokens: int,
    repeats: int,
    adaptive: bool = False,
    tick: Tick = lambda: None,
) -> list[dict[str, Any]]:
    """Decode tokens per second without guesses and with as many as the plan allows, per batch size and acceptance.

    Runs take turns, and each with guesses is compared with the ones without right before and after it: a shared host
    changes its speed by 15 % within minutes, and by much less within two runs.

    Args:
        adaptive: As many guesses as pay instead; what is found out in one repeat is known in the next, as in a server.
        tick: Called after every run; there are `num_runs` of them.

    Raises:
        ConfigError: the engine was built without a draft.
    """
    own = engine.speculation
    if own is None:
        raise ConfigError("this engine has no draft; name one with --speculative-config.")
    with own_speculation_back(engine):
        return [
            row
            for batch_size in batch_sizes
            for row in _batch(engine, own, batch_size, acceptances, new_tokens, repeats, adaptive, tick)
        ]


def _batch(
    engine: Engine,
    own: Speculation,
    batch_size: int,
    acceptances: Sequence[float],
    new_tokens: int,
    repeats: int,
    adaptive: bool,
    tick: Tick,
) -> list[dict[str, Any]]:
    most = engine.plan.num_speculative_tokens
    drafters = {a: KnownAcceptance(own.drafter, a, own.vocab_size) for a in acceptances}
    guessing = {a: Speculation(d, engine.scheduler, engine.plan, own.vocab_size) for a, d in drafters.items()}
    pairs: dict[float, list[tuple[DecodeRun, float]]] = {a: [] for a in acceptances}

    def run(prompts: list[list[int]], speculation: Speculation | None) -> DecodeRun:
        engine.speculation = speculation
        done = decode_run(engine, prompts, new_tokens)
        tick()
        return done

    plain: list[float] = []
    for repeat in range(repeats):
        prompts = random_prompts(engine, batch_size, DECODE_PROMPT, repeat)
        before = run(prompts, None)
        plain.append(before.tokens_per_second)
        for acceptance, drafter in drafters.items():
            drafter.coming = before.answers
            guessing[acceptance].pace.adaptive = adaptive
            found = run(prompts, guessing[acceptance])
            plain.append(run(prompts, None).tokens_per_second)
            pairs[acceptance].append((found, statistics.mean(plain[-2:])))
    rows = []
    for acceptance, found in pairs.items():
        ratios = [run.tokens_per_second / beside for run, beside in found]
        rows.append(
            {
                "batch_size": batch_size,
                "acceptance": acceptance,
                "tokens_per_second": spread([run.tokens_per_second for run, _ in found]),
                "without_guesses": spread(plain),
                # Not their median: the few runs in which more guesses are tried are what adapting costs.
                "speed_up": statistics.mean(ratios),
                "standard_error": statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else None,
                "ratios": ratios,
                "tokens_per_step": statistics.median(run.tokens_per_step / batch_size for run, _ in found),
                "limit": sum(acceptance**i for i in range(most + 1)),
            }
        )
    return rows
