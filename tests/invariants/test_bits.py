"""Promise 2, bit for bit: with native operators a request's tokens and log-probabilities are the same alone or in
company, for any chunk size, prefix hit or miss, preempted or not, with one thread or two. No tolerances here."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from tests.engines import image, image_tokens, prompt, request, run, tiny_engine
from tests.tiny import tiny_config, tiny_model, wide_config, write_tiny
from ventoux.checkpoint.load import load_model
from ventoux.checkpoint.quantize import quantize
from ventoux.config import RopeConfig
from ventoux.ops.cpu import instruction_sets, native_operators

if not instruction_sets():
    pytest.skip("installed without native code", allow_module_level=True)

# The query scale and YaRN set in at position 32 already, and segments of 256 keys end inside these prompts.
ROPE = RopeConfig(factor=8.0, original_max_position_embeddings=32, llama_4_original_max_position_embeddings=32)
LONG = prompt(300, seed=3)
IMAGES = [image(2, 3, seed=1), image(3, 2, seed=2)]
WITH_IMAGES = [*prompt(9, 1), *image_tokens(2, 3), *prompt(6, 2), *image_tokens(3, 2), *prompt(11, 4)]


@cache
def model(weights, num_threads=2, in_one_call=True):
    ops = native_operators(num_threads)
    if not in_one_call:
        ops = replace(ops, layers=None)
    if weights not in ("fp8", "nvfp4"):
        return tiny_model(tiny_config(rope=ROPE), ops=ops).to(getattr(torch, weights))
    with TemporaryDirectory() as folder:
        plain = write_tiny(Path(folder) / "plain", config=wide_config(rope=ROPE), dtype=torch.bfloat16)
        checkpoint = quantize(plain, Path(folder) / weights, weights, attention=weights, head=weights).checkpoint
        return load_model(checkpoint, ops, dtype=torch.bfloat16)


def engine(weights, num_threads=2, num_pages=512, in_one_call=True, **choices):
    dtype = "float32" if weights == "float32" else "bfloat16"
    choices = {"max_model_len": 400, "dtype": dtype, **choices}
    num_pages //= 2 if dtype == "bfloat16" else 1  # tiny_engine counts pages of fp32
    return tiny_engine(num_pages, model=model(weights, num_threads, in_one_call), **choices)


def ask(ids, name="asked", **params):
    return request(ids, name, **{"max_tokens": 12, "logprobs": 3, **params})


def bits(outputs, name="asked"):
    """Tokens with their log-probabilities, exactly as the engine gave them."""
    return [token for output in outputs[name, 0] for token in output.tokens]


@cache
def alone(weights, ids=tuple(LONG), images=False, **params):
    asked = ask(list(ids), images=IMAGES if images else None, **params)
    found = bits(run(engine(weights), [asked]))
    assert len(found) == 12 and found[0].logprobs
    return found


WEIGHTS = pytest.mark.parametrize("weights", ["bfloat16", "float32", "fp8", "nvfp4"])


@WEIGHTS
def test_among_32_others(weights):
    others = [ask(prompt(5 + 7 * i, seed=50 + i), f"other-{i}", max_tokens=3 + i) for i in range(32)]
    outputs = run(engine(weights, num_pages=4096), [*others[:16], ask(LONG), *others[16:]])
    assert bits(outputs) == alone(weights)


@WEIGHTS
@pytest.mark.parametrize("budget", [1, 7, 64, 299])
def test_any_chunk_size(weights, budget):
    assert bits(run(engine(weights, max_num_batched_tokens=budget), [ask(LONG)])) == alone(weights)


@WEIGHTS
def test_prefix_hit_or_miss(weights):
    warm = engine(weights)
    run(warm, [ask([*LONG[:257], *prompt(9, 8)], "first")])
    outputs = run(warm, [ask(LONG)])
    assert outputs["asked", 0][0].num_cached_tokens == 256
    assert bits(outputs) == alone(weights)


@WEIGHTS
def test_a_prefix_that_an_answer_wrote(weights):
    """Latents written by decode steps serve a later prompt: they must be those of a prefill."""
    warm = engine(weights)
    first = run(warm, [ask(LONG[:200], "first", max_tokens=40)])
    ids = [*LONG[:200], *(token.token_id for token in bits(first, "first")), *prompt(5, 6)]
    outputs = run(warm, [ask(ids)])
    assert outputs["asked", 0][0].num_cached_tokens > 220
    assert bits(outputs) == bits(run(engine(weights), [ask(ids)]))


@WEIGHTS
def test_preempted_or_not(weights):
    """Pages for one and a half: sequences take turns and are computed again from their tokens."""
    tight = engine(weights, num_pages=160, enable_prefix_caching=False)
    others = [ask(prompt(290, seed=70 + i), f"other-{i}", max_tokens=60) for i in range(3)]
    outputs = run(tight, [*others, ask(LONG)])
    assert tight.scheduler.num_preemptions > 0
    assert bits(outputs) == alone(weights)


@WEIGHTS
def test_all_layers_in_one_call_or_block_by_block(weights):
    """The fast path computes nothing of its own."""
    assert bits(run(engine(weights, in_one_call=False), [ask(LONG)])) == alone(weights)


@WEIGHTS
def test_one_thread_or_two(weights):
    assert bits(run(engine(weights, num_threads=1), [ask(LONG)])) == alone(weights)


@WEIGHTS
def test_images_in_company_and_in_chunks(weights):
    want = alone(weights, tuple(WITH_IMAGES), images=True)
    others = [ask(prompt(40 + i, seed=90 + i), f"other-{i}") for i in range(5)]
    small = engine(weights, max_num_batched_tokens=11)
    assert bits(run(small, [*others, ask(WITH_IMAGES, images=IMAGES)])) == want


@WEIGHTS
def test_sampling_with_a_seed(weights):
    """The random draw is the request's own, and so are the probabilities that it meets."""
    chosen = {"temperature": 0.9, "top_p": 0.95, "seed": 7}
    others = [ask(prompt(30 + i, seed=20 + i), f"other-{i}", temperature=1.0) for i in range(8)]
    assert bits(run(engine(weights), [*others, ask(LONG, **chosen)])) == alone(weights, **chosen)
