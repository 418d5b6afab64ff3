"""How fast an engine is: prefill, decode, throughput, on random tokens. No tokenizer is needed.

The engine is stepped by hand in the caller's thread, so that what is timed is the engine and nothing else.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ventoux.engine.engine import Engine
from ventoux.engine.request import EngineOutput, Request, SamplingParams
from ventoux.errors import ConfigError, EngineError
from ventoux.evals import machine
from ventoux.model.mistral4 import Mistral4
from ventoux.model.tensors import tensor_table
from ventoux.ops.formats import Weight
from ventoux.plan import EnginePlan

# Prompt length of the decode runs.
DECODE_PROMPT = 128
# Called after every run; may say what the machine gives at that moment.
Tick = Callable[[], machine.Speeds | None]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and range of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def random_prompt(length: int, vocab_size: int, seed: int) -> list[int]:
    """Regular tokens only: ids below 1000 are control tokens, and [IMG] would ask for an image."""
    rng = random.Random(seed)
    return [rng.randrange(1000, vocab_size) for _ in range(length)]


# ------------------------------------------------------------------------------------------------------- measurements


def latency(
    engine: Engine,
    *,
    prompt_tokens: Sequence[int],
    batch_sizes: Sequence[int],
    new_tokens: int,
    repeats: int,
    tick: Tick = lambda: None,
) -> dict[str, list[dict[str, Any]]]:
    """Prefill tokens per second by prompt length; decode tokens per second by batch size.

    Args:
        tick: Called after every run; there are `num_latency_runs` of them.

    Raises:
        ConfigError: the plan has no room for such a prompt or batch.
    """
    check_fits(engine.plan, max(*prompt_tokens, DECODE_PROMPT + new_tokens), max(batch_sizes))
    prefill, decode = [], []
    for length in prompt_tokens:
        rates, speeds = [], []
        for run in range(-1, repeats):
            seconds = sum(run_prompts(engine, random_prompts(engine, 1, length, seed=run), new_tokens=1))
            speeds.append(tick())
            # The first run pays for pages and caches that are touched for the first time.
            if run >= 0:
                rates.append(length / seconds)
        row = {"prompt_tokens": length, "tokens_per_second": spread(rates), **limits(speeds)}
        prefill.append({**row, "operations_per_token": active_operations(engine.runner.model)})
    for batch_size in batch_sizes:
        rates, per_step, speeds = [], [], []
        for run in range(repeats):
            decoded = decode_run(engine, random_prompts(engine, batch_size, DECODE_PROMPT, seed=run), new_tokens)
            rates.append(decoded.tokens_per_second)
            per_step.append(decoded.tokens_per_step)
            speeds.append(tick())
        row = {
            "batch_size": batch_size,
            "tokens_per_second": spread(rates),
            "tokens_per_step": statistics.mean(per_step),
            **limits(speeds),
        }
        decode.append({**row, "weight_bytes_per_step": active_bytes(engine.runner.model, batch_size)})
    return {"prefill": prefill, "decode": decode}


def limits(speeds: Sequence[machine.Speeds | None]) -> dict[str, Any]:
    """What the machine gave beside a row's runs, in the middle; nothing where it was not measured."""
    known = [found for found in speeds if found is not None]
    if not known:
        return {}
    return {
        "memory_bytes_per_second": statistics.median(found.bytes_per_second for found in known),
        "matrix_operations_per_second": statistics.median(found.operations_per_second for found in known),
        "limits_method": known[0].method,
    }


def add_shares(decode: list[dict[str, Any]]) -> None:
    """Adds to each row which share of the memory's bytes per second its steps' weights (not a draft's) and latents came
    to; latents where they are counted."""
    for row in decode:
        steps_per_second = row["tokens_per_second"]["median"] / row["tokens_per_step"]
        step_bytes = row["weight_bytes_per_step"] + row.get("latent_bytes_per_step", 0)
        row["share_of_bandwidth"] = steps_per_second * step_bytes / row["memory_bytes_per_second"]


def add_peak_shares(prefill: list[dict[str, Any]]) -> None:
    """Adds to each row which share of the matrix product's operations per second it came to."""
    for row in prefill:
        operations_per_second = row["tokens_per_second"]["median"] * row["operations_per_token"]
        row["share_of_matrix_peak"] = operations_per_second / row["matrix_operations_per_second"]


def acceptance(engine: Engine) -> dict[str, Any] | None:
    """What came of all guesses so far; None if there were none. Random prompts say nothing about text."""
    stats = engine.stats()
    drafts = stats.spec_decode_num_drafts
    if not drafts:
        return None
    return {
        "num_drafts": drafts,
        "num_draft_tokens": stats.spec_decode_num_draft_tokens,
        "mean_accepted_tokens": stats.spec_decode_num_accepted_tokens / drafts,
        "acceptance_by_position": [count / drafts for count in stats.spec_decode_num_accepted_tokens_per_pos],
    }


def num_latency_runs(prompt_tokens: Sequence[int], batch_sizes: Sequence[int], repeats: int) -> int:
    return len(prompt_tokens) * (repeats + 1) + len(batch_sizes) * repeats


def throughput(
    engine: Engine,
    *,
    num_requests: int,
    input_tokens: int,
    output_tokens: int,
    repeats: int,
    tick: Tick = lambda: None,
) -> dict[str, Any]:
    """All requests at once: requests and output tokens per second, from the first step to the last.

    Raises:
        ConfigError: the plan has no room for such a request.
    """
    check_fits(engine.plan, input_tokens + output_tokens, 1)
    seconds = []
    for run in range(repeats):
        seconds.append(
            sum(run_prompts(engine, random_prompts(engine, num_requests, input_tokens, seed=run), output_tokens))
        )
        tick()
    return {
        "num_requests": num_requests,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "requests_per_second": spread([num_requests / s for s in seconds]),
        "output_tokens_per_second": spread([num_requests * output_tokens / s for s in seconds]),
        "total_tokens_per_second": spread([num_requests * (input_tokens + output_tokens) / s for s in seconds]),
    }


def active_bytes(model: Mistral4, batch_size: int) -> int:
    """Bytes of weights, in the formats they have in memory, that one decode step reads; the latent cache is not in it.

    Of E experts, `batch_size` tokens with k each are expected to meet E (1 - (1 - k/E)^batch_size) different ones,
    if routing is uniform and independent, as it is for random tokens and weights.
    """
    text = model.config.text
    chosen = 1 - (1 - text.num_experts_per_tok / text.n_routed_experts) ** batch_size
    count = 0.0
    for row in tensor_table(model.config):
        if row.part == "vision" or (row.part == "embedding" and not text.tie_word_embeddings):
            continue
        owner, _, name = row.path.rpartition(".")
        weight: Weight = getattr(model.get_submodule(owner), name)
        count += weight.nbytes * (chosen if row.is_routed else 1)
    return round(count)


def active_operations(model: Mistral4) -> float:
    """Multiplications and additions with weights for one token of a prompt: attention over other tokens is not in it,
    nor the head, which meets one token of a prompt."""
    text = model.config.text
    chosen = text.num_experts_per_tok / text.n_routed_experts
    counted = (row for row in tensor_table(model.config) if row.part not in ("vision", "embedding", "head", "norms"))
    return sum(2 * row.num_parameters * (chosen if row.is_routed else 1) for row in counted)


def check_fits(plan: EnginePlan, length: int, batch_size: int) -> None:
    """Raises ConfigError if the plan has no room for such sequences."""
    if length > plan.max_model_len:
        raise ConfigError(f"{length} tokens are more than the {plan.max_model_len} of this plan's --max-model-len.")
    if batch_size > plan.max_num_seqs:
        raise ConfigError(f"a batch of {batch_size} needs --max-num-seqs {batch_size}, which is {plan.max_num_seqs}.")


def random_prompts(engine: Engine, count: int, length: int, seed: int) -> list[list[int]]:
    """Different for every seed, so that no run finds the last one's pages in the prefix cache."""
    vocab_size = engine.config.text.vocab_size
    return [random_prompt(length, vocab_size, seed=hash((seed, length, i))) for i in range(count)]


@dataclass(frozen=True)
class DecodeRun:
    """Speed over the steps in which every sequence decodes and none has a prompt to read; all answers by request."""

    tokens_per_second: float
    tokens_per_step: float
    answers: dict[str, list[int]]


def decode_run(
    engine: Engine,
    prompts: list[list[int]],
    new_tokens: int,
    note: Callable[[bool, float], None] = lambda is_full, seconds: None,
) -> DecodeRun:
    """Answers all prompts at once. `note` gets, after every step, whether it decoded all of them, and its seconds.

    Raises:
        ConfigError: no step decodes all of them.
    """
    batch_size = len(prompts)
    answers: dict[str, list[int]] = {}
    full: list[float] = []
    tokens = 0

    def watch(outputs: list[EngineOutput], seconds: float) -> None:
        nonlocal tokens
        is_full = len(answers) == len(outputs) == batch_size
        if is_full:
            full.append(seconds)
            tokens += sum(len(output.tokens) for output in outputs)
        for output in outputs:
            answers.setdefault(output.request_id, []).extend(token.token_id for token in output.tokens)
        note(is_full, seconds)

    run_prompts(engine, prompts, new_tokens, watch)
    if not full:
        raise ConfigError(
            f"no step decoded all {batch_size} sequences: raise --max-num-batched-tokens, --kv-cache-memory or the new"
            " tokens of each."
        )
    return DecodeRun(tokens / sum(full), tokens / len(full), answers)


@contextmanager
def own_speculation_back(engine: Engine) -> Iterator[None]:
    """For measurements that turn guessing off or put another drafter in."""
    own = engine.speculation
    try:
        yield
    finally:
        engine.speculation = own


def run_prompts(
    engine: Engine,
    prompts: list[list[int]],
    new_tokens: int,
    watch: Callable[[list[EngineOutput], float], None] | None = None,
) -> list[float]:
    """Adds all prompts, steps until nothing is left, and returns the seconds of each step."""
    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
    for i, prompt in enumerate(prompts):
        engine.add(Request(request_id=f"bench-{i}", prompt_token_ids=prompt, params=params))
    steps = []
    while engine.has_work:
        started = time.perf_counter()
        outputs = engine.step()
        steps.append(time.perf_counter() - started)
        for output in outputs:
            if output.finish_reason == "error":
                raise EngineError(output.error or "the engine gave no reason")
        if watch is not None:
            watch(outputs, steps[-1])
    return steps


# ------------------------------------------------------------------------------------------------------- result files


def result(benchmark: str, model: str, config: dict[str, Any], results: dict[str, Any], note: str) -> dict[str, Any]:
    """A result with everything that is needed to judge it or to measure it again."""
    return {
        "benchmark": benchmark,
        "model": model,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "note": note,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "config": config,
        "results": results,
    }


def model_facts(engine: Engine) -> dict[str, Any]:
    """The plan and the model's size, for the result's config."""
    rows = list(tensor_table(engine.config))
    text = engine.config.text
    return {
        "parameters": sum(row.num_parameters for row in rows),
        "layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "experts": text.n_routed_experts,
        "experts_per_token": text.num_experts_per_tok,
        "plan": asdict(engine.plan),
    }


def write_result(path: Path, content: dict[str, Any]) -> None:
    """Raises ConfigError if the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"--output {path}: {error.strerror}.") from error
