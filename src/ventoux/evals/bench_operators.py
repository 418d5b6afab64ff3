"""Where a step's time goes: the engine runs as it does, block by block, with a clock around every operator, and each
operator's time is set beside the bytes of weights and latents that it read and the arithmetic that it did.

What is counted is what cannot be avoided: every weight once, experts that some token chose; in attention the absorbed
form's products. Norms, rotations and the like are timed alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from ventoux.engine.engine import Engine
from ventoux.evals.bench import (
    DECODE_PROMPT,
    Tick,
    check_fits,
    decode_run,
    limits,
    own_speculation_back,
    random_prompts,
    run_prompts,
    spread,
)
from ventoux.evals.bench_context import check_context, remember
from ventoux.ops.formats import Weight
from ventoux.ops.spec import AttentionLayout, Operators, Positions

Tensor = torch.Tensor
NEW_TOKENS = 12


@dataclass
class Work:
    """What one operator did."""

    calls: float = 0
    seconds: float = 0.0
    bytes: float = 0.0
    operations: float = 0.0

    def add(self, other: Work) -> None:
        self.calls += other.calls
        self.seconds += other.seconds
        self.bytes += other.bytes
        self.operations += other.operations

    def per(self, count: int) -> dict[str, float]:
        return {name: value / count for name, value in asdict(self).items()}


def linear_work(x_TD: Tensor, weight_FD: Weight) -> tuple[float, float]:
    """Bytes and operations, as of the functions below."""
    F, D = weight_FD.shape
    return weight_FD.nbytes, 2 * len(x_TD) * F * D


def gated_mlp_work(x_TD: Tensor, *weights: Weight) -> tuple[float, float]:
    each = [linear_work(x_TD, weight) for weight in weights]
    return sum(num_bytes for num_bytes, _ in each), sum(operations for _, operations in each)


def moe_work(
    x_TD: Tensor,
    weights_TK: Tensor,
    expert_ids_TK: Tensor,
    gate_up_EGD: Weight,
    down_EDF: Weight,
    shared: tuple[Weight, Weight, Weight],
) -> tuple[float, float]:
    E, G, D = gate_up_EGD.shape
    chosen = len(expert_ids_TK.unique()) / E
    num_bytes, operations = gated_mlp_work(x_TD, *shared)
    num_bytes += chosen * (gate_up_EGD.nbytes + down_EDF.nbytes)
    return num_bytes, operations + expert_ids_TK.numel() * 3 * G * D


def attention_work(
    q_THX: Tensor, kv_b_GC: Tensor, positions: Positions, cache_PSX: Tensor, layout: AttentionLayout, scale: float
) -> tuple[float, float]:
    T, H, _ = q_THX.shape
    C, X = kv_b_GC.shape[1], cache_PSX.shape[2]
    pairs = sum(
        n * context - n * (n - 1) // 2 for n, context in zip(layout.lengths, layout.context_lengths, strict=True)
    )
    num_bytes = kv_b_GC.nbytes + sum(layout.context_lengths) * X * cache_PSX.itemsize
    return num_bytes, 2 * T * kv_b_GC.numel() + 2 * pairs * H * (X + C)


WORK: dict[str, Callable[..., tuple[float, float]]] = {
    "linear": linear_work,
    "head": linear_work,
    "gated_mlp": gated_mlp_work,
    "route": lambda x_TD, gate_ED, top_k, scale: linear_work(x_TD, gate_ED),
    "moe": moe_work,
    "latent_attention": attention_work,
}


@dataclass
class Clock:
    """What operators did since `take` was called last, by the module's name, or the operator's where a module has
    several."""

    done: dict[str, Work] = field(default_factory=dict)

    def take(self) -> dict[str, Work]:
        done, self.done = self.done, {}
        return done

    def around(self, operators: Operators, module: str) -> Operators:
        """The same operators, timed; layer by layer, since one call of all would show nothing."""
        timed = {f.name: self._timed(f.name, getattr(operators, f.name), module) for f in fields(operators)[1:-1]}
        return replace(operators, layers=None, **timed)

    def _timed(self, name: str, run: Callable, module: str) -> Callable:
        title = module if name in ("linear", "rms_norm") else name

        def timed(*args):
            started = time.perf_counter()
            result = run(*args)
            seconds = time.perf_counter() - started
            num_bytes, operations = WORK[name](*args) if name in WORK else (0.0, 0.0)
            self.done.setdefault(title, Work()).add(Work(1, seconds, num_bytes, operations))
            return result

        return timed


@contextmanager
def watched(engine: Engine):
    """Yields the clock; afterwards the model has its own operators again."""
    clock = Clock()
    model = engine.runner.model
    own = [(name, module, module.ops) for name, module in model.named_modules() if hasattr(module, "ops")]
    try:
        for name, module, ops in own:
            module.ops = clock.around(ops, name.rpartition(".")[2])
        yield clock
    finally:
        for _, module, ops in own:
            module.ops = ops


def operators(
    engine: Engine,
    *,
    prompt_tokens: Sequence[int],
    batch_sizes: Sequence[int],
    contexts: Sequence[int],
    repeats: int,
    tick: Tick = lambda: None,
) -> list[dict[str, Any]]:
    """One row per case: reading a prompt, decoding a batch, decoding one sequence behind a context.

    A row has the seconds of a step (all steps of a prompt), with the clocks and without, and what each operator did in
    it. The difference of the two is what the clocks cost, and what one call for all layers saves.

    Args:
        tick: Called after every run; there are 2 * repeats + 1 per case.

    Raises:
        ConfigError: the plan has no room for such a prompt, batch or context, or no step decodes all of a batch.
    """
    check_fits(engine.plan, max(*prompt_tokens, DECODE_PROMPT + NEW_TOKENS), max(batch_sizes))
    check_context(engine, contexts, NEW_TOKENS)
    cases = [("prompt", length) for length in prompt_tokens]
    cases += [("decode", batch_size) for batch_size in batch_sizes] + [("behind", context) for context in contexts]
    with own_speculation_back(engine):
        engine.speculation = None
        return [_case(engine, kind, size, repeats, tick) for kind, size in cases]


def add_shares(rows: list[dict[str, Any]]) -> None:
    """Adds to every operator that was counted what it reached of the memory's bytes and of the matrix product's
    operations per second, as they were beside its case."""
    for row in rows:
        for found in row["operators"].values():
            if found["operations"]:
                found["share_of_bandwidth"] = found["bytes"] / found["seconds"] / row["memory_bytes_per_second"]
                found["share_of_matrix_peak"] = (
                    found["operations"] / found["seconds"] / row["matrix_operations_per_second"]
                )


def _case(engine: Engine, kind: str, size: int, repeats: int, tick: Tick) -> dict[str, Any]:
    plain: list[float] = []
    clocked: list[float] = []
    total: dict[str, Work] = {}
    speeds = []
    # The first run pays for pages and caches that are touched for the first time.
    for seed in range(-1, 2 * repeats):
        count, length = (size, DECODE_PROMPT) if kind == "decode" else (1, size)
        prompts = random_prompts(engine, count, length, seed)
        if kind == "behind":
            remember(engine, prompts[0])
        with watched(engine) if seed % 2 else nullcontext() as clock:
            steps = _steps(engine, prompts, 1 if kind == "prompt" else NEW_TOKENS, clock)
        speeds.append(tick())
        if seed < 0:
            continue
        (plain if clock is None else clocked).extend(seconds for seconds, _ in steps)
        for _, done in steps:
            for name, work in done.items():
                total.setdefault(name, Work()).add(work)
    return {
        "case": kind,
        "size": size,
        **limits(speeds),
        "step_seconds": {"mean": statistics.mean(plain), **spread(plain)},
        "clocked_step_seconds": {"mean": statistics.mean(clocked), **spread(clocked)},
        "operators": {name: work.per(len(clocked)) for name, work in total.items()},
    }


Step = tuple[float, dict[str, Work]]


def _steps(engine: Engine, prompts: list[list[int]], new_tokens: int, clock: Clock | None) -> list[Step]:
    """The steps that count: those that decode every sequence, or all of a prompt's, as one. Raises ConfigError."""
    take = clock.take if clock is not None else dict[str, Work]
    if new_tokens == 1:
        seconds = sum(run_prompts(engine, prompts, new_tokens))
        return [(seconds, take())]
    steps: list[Step] = []

    def note(is_full: bool, seconds: float) -> None:
        done = take()
        if is_full:
            steps.append((seconds, done))

    decode_run(engine, prompts, new_tokens, note)
    return steps
