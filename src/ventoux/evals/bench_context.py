"""Decode speed behind long contexts, without the hours that reading them would take: latents of random numbers are put
where those of a prompt would lie, and the prompt finds them as a cached prefix. What a step costs is the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ventoux.engine.engine import Engine
from ventoux.engine.request import Request, SamplingParams
from ventoux.engine.sequence import make_sequences
from ventoux.errors import ConfigError
from ventoux.evals.bench import Tick, active_bytes, check_fits, decode_run, limits, random_prompts, spread


def long_context(
    engine: Engine, *, contexts: Sequence[int], new_tokens: int, repeats: int, tick: Tick = lambda: None
) -> list[dict[str, Any]]:
    """Decode tokens per second of one sequence behind so many tokens, and the bytes of latents that a step reads.

    Args:
        tick: Called after every run; there are len(contexts) * repeats of them.

    Raises:
        ConfigError: the plan has no room for such a context, or no prefix cache.
    """
    check_context(engine, contexts, new_tokens)
    rows = []
    for context in contexts:
        runs, speeds = [], []
        for run in range(repeats):
            (prompt,) = prompts = random_prompts(engine, 1, context, seed=run)
            remember(engine, prompt)
            runs.append(decode_run(engine, prompts, new_tokens))
            speeds.append(tick())
        rows.append(
            {
                "context_tokens": context,
                "tokens_per_second": spread([run.tokens_per_second for run in runs]),
                "tokens_per_step": sum(run.tokens_per_step for run in runs) / repeats,
                "weight_bytes_per_step": active_bytes(engine.runner.model, 1),
                "latent_bytes_per_step": context * sum(layer[0, 0].nbytes for layer in engine.runner.cache),
                **limits(speeds),
            }
        )
    return rows


def check_context(engine: Engine, contexts: Sequence[int], new_tokens: int) -> None:
    """Raises ConfigError if the plan has no room for such contexts, or no prefix cache."""
    if contexts and not engine.plan.enable_prefix_caching:
        raise ConfigError("contexts are put into the prefix cache: leave --enable-prefix-caching on.")
    check_fits(engine.plan, max(contexts, default=0) + new_tokens, 1)


def remember(engine: Engine, prompt: list[int]) -> None:
    """Random latents for the prompt's full pages."""
    request = Request(request_id="bench-context", prompt_token_ids=prompt, params=SamplingParams())
    (sequence,) = make_sequences(request, engine.config, engine.plan.max_model_len)
    size = engine.plan.page_size
    names = sequence.page_hashes(size, (len(prompt) - 1) // size)
    pages = engine.pool.take(len(names))
    assert pages is not None, "every plan has pages for a sequence of its longest length"
    generator = torch.Generator().manual_seed(0)
    for layer in engine.runner.cache:
        for page in pages:
            layer[page] = torch.randn(layer.shape[1:], generator=generator)
    for page, name in zip(pages, names, strict=True):
        engine.pool.publish(page, name)
    engine.pool.release(pages)
