"""Engines on tiny random models, driven step by step in the test's own thread."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from tests.tiny import tiny_config, tiny_model
from ventoux.config import EngineConfig, Speculation, StoredWeights
from ventoux.engine.drafting import Drafter
from ventoux.engine.engine import Engine
from ventoux.engine.request import EngineOutput, ImageInput, Request, SamplingParams
from ventoux.engine.runner import Runner
from ventoux.hardware import Hardware
from ventoux.plan import EnginePlan, resolve

MACHINE = Hardware(num_cores=1, memory_bytes=2**32, available_bytes=2**32)


def plan(num_pages: int = 256, speculation: Speculation | None = None, **choices) -> EnginePlan:
    """A plan for the tiny model: 4 tokens a page, so that short prompts span many pages."""
    defaults = {"max_model_len": 160, "page_size": 4, "dtype": "float32", "num_threads": 1}
    engine = EngineConfig(**{**defaults, **choices})
    config = tiny_config()
    speculation = speculation or Speculation()
    page_bytes = (config.text.cached_values + speculation.draft_cached_values) * 4 * engine.page_size
    engine = EngineConfig(**{**defaults, **choices, "kv_cache_memory": num_pages * page_bytes})
    return resolve(config, StoredWeights(100_000), engine, MACHINE, speculation)


def tiny_engine(
    num_pages: int = 256,
    model=None,
    mask_factory=None,
    make_drafter: Callable[[Runner, EnginePlan], Drafter] | None = None,
    speculation: Speculation | None = None,
    **choices,
) -> Engine:
    """`make_drafter(runner, plan)` guesses three tokens at a time, unless `speculation` says otherwise."""
    if make_drafter is None:
        return Engine(model or tiny_model(), plan(num_pages, **choices), mask_factory)
    drafting = plan(num_pages, speculation or Speculation("test", 3), **choices)
    return Engine(model or tiny_model(), drafting, mask_factory, lambda runner: make_drafter(runner, drafting))


class Nobody:
    """A drafter that guesses nothing."""

    def propose(self, progress: list) -> list[list[int]]:
        return [[] for _ in progress]


def prompt(length: int, seed: int = 0, vocab_size: int = 1317) -> list[int]:
    """Random regular tokens (control ids lie below 1000)."""
    return np.random.default_rng(seed).integers(1000, vocab_size, length).tolist()


def image(rows: int = 2, cols: int = 3, seed: int = 0) -> ImageInput:
    """A random image of rows x cols merged patches."""
    pixels = np.random.default_rng(seed).standard_normal((3, rows * 28, cols * 28)).astype("<f4").tobytes()
    return ImageInput(pixels=pixels, height=rows * 28, width=cols * 28, content_hash=hashlib.sha256(pixels).digest())


def image_tokens(rows: int = 2, cols: int = 3) -> list[int]:
    """[IMG] x cols + [IMG_BREAK] per row, the last break being [IMG_END]."""
    ids = ([10] * cols + [12]) * rows
    return [*ids[:-1], 13]


def request(ids: list[int], name: str = "r", images: list[ImageInput] | None = None, **params) -> Request:
    defaults = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
    return Request(
        request_id=name, prompt_token_ids=ids, images=images or [], params=SamplingParams(**{**defaults, **params})
    )


def run(engine: Engine, requests: list[Request], max_steps: int = 2000) -> dict[tuple[str, int], list[EngineOutput]]:
    """Adds all requests, steps until idle, checks the books, and returns the outputs per (request, answer)."""
    outputs: dict[tuple[str, int], list[EngineOutput]] = {}
    for one in requests:
        engine.add(one)
    for _ in range(max_steps):
        if not engine.has_work:
            break
        for output in engine.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
        engine.pool.check()
    assert not engine.has_work, "the engine did not come to rest"
    assert engine.pool.num_idle == engine.pool.num_pages, "pages were lost"
    assert not engine.sequences and not engine.siblings and not engine.seeds, "finished requests left traces"
    return outputs


def tokens(outputs: list[EngineOutput]) -> list[int]:
    return [token.token_id for output in outputs for token in output.tokens]


def generate(engine: Engine, *requests: Request) -> list[list[int]]:
    """Token ids of every request's first answer."""
    outputs = run(engine, list(requests))
    return [tokens(outputs[one.request_id, 0]) for one in requests]
