"""Reference operators against their definitions, written out plainly in float64."""

import pytest
import torch

from tests.paging import PagedCache
from tests.tiny import tiny_config
from ventoux.ops.reference import QUERY_ROWS, attend_latents

TEXT = tiny_config().text
HEADS, LATENT, WIDTH = TEXT.num_attention_heads, TEXT.kv_lora_rank, TEXT.latent_dim


def plain_attention(query_THX, keys_SX, scale):
    length, context = len(query_THX), len(keys_SX)
    scores = torch.einsum("thx,sx->hts", query_THX.double(), keys_SX.double()) * scale
    hidden = torch.ones(length, context, dtype=torch.bool).triu(context - length + 1)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hts,sc->thc", weights, keys_SX[:, :LATENT].double())


def attend(lengths, earlier, dtype, sharpness):
    """Output and definition for sequences of `lengths` new tokens after `earlier` ones, other pages holding NaN."""
    generator = torch.Generator().manual_seed(0)
    cache = PagedCache(TEXT, [a + b for a, b in zip(lengths, earlier, strict=True)], page_size=4, dtype=dtype)
    rows = cache.tensors[0].flatten(0, 1)
    keys = []
    for new in (earlier, lengths):
        slots = cache.layout(new).slots_T
        rows[slots] = torch.randn(len(slots), WIDTH, generator=generator).to(dtype)
    query = (sharpness * torch.randn(sum(lengths), HEADS, WIDTH, generator=generator)).to(dtype)
    cache.done = list(earlier)
    layout = cache.layout(lengths)
    for i, context in enumerate(layout.context_lengths):
        keys.append(cache.tensors[0][layout.pages_NP[i, : -(-context // 4)]].flatten(0, 1)[:context])
    out = attend_latents(query[..., :LATENT], query[..., LATENT:], cache.tensors[0], layout, 0.3)
    wanted = [plain_attention(q, k, 0.3) for q, k in zip(query.split(lengths), keys, strict=True)]
    return out, torch.cat(wanted)


@pytest.mark.parametrize("lengths", [[1, 1, 1], [5, 1, 9], [QUERY_ROWS + 7, 1, 2 * QUERY_ROWS]])
def test_latent_attention_is_what_it_says(lengths):
    """Decodes, chunks and chunks longer than one call of the kernel; a mask off by one shows."""
    out, wanted = attend(lengths, [6, 3, 11], torch.float32, 1.0)
    torch.testing.assert_close(out.double(), wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 20])
def test_scores_are_not_rounded_to_bf16(length):
    """bf16 scores of order 100 are multiples of 0.5: the softmax over them would be off by a third."""
    out, wanted = attend([length], [40], torch.bfloat16, 12.0)
    torch.testing.assert_close(out.double(), wanted, atol=0.02, rtol=0.01)


def test_a_long_chunk_never_holds_all_scores():
    """[H, T, S] scores of 16k tokens on the real model are 34 GB; here 2 GB would be asked for."""
    length = 16_000
    cache = PagedCache(TEXT, [length], page_size=16)
    layout = cache.layout([length])
    cache.tensors[0].zero_()
    query = torch.zeros(length, HEADS, WIDTH)
    with torch.profiler.profile(profile_memory=True) as profile:
        attend_latents(query[-600:, :, :LATENT], query[-600:, :, LATENT:], cache.tensors[0], _last(layout, 600), 0.3)
    largest = max(event.cpu_memory_usage for event in profile.events() or [])
    assert largest < HEADS * 600 * length * 4 / 2


def _last(layout, count):
    return type(layout)((count,), layout.context_lengths, layout.pages_NP, layout.slots_T[-count:])
