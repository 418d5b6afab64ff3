"""The contract of every native operator: near the float64 definition, and the same bits whatever else is in the batch.

Cases come from the provider itself: each instruction set that this machine can run, each weight format, each type of
activations, sizes that fill no block, one row to several hundred. Products run on emulated bf16 and tile instructions
too, which few machines have.
"""

import re
from dataclasses import fields
from itertools import product
from pathlib import Path

import pytest
import torch

from ventoux.errors import ConfigError
from ventoux.ops.cpu import instruction_sets, native_operators
from ventoux.ops.formats import Fp8Weight, Nvfp4Weight, quantize_fp8, quantize_nvfp4
from ventoux.ops.reference import REFERENCE
from ventoux.ops.spec import AttentionLayout, Positions

if not instruction_sets():
    pytest.skip("installed without native code", allow_module_level=True)

DTYPES = (torch.float32, torch.bfloat16)
FORMATS = ("dense", "fp8", "nvfp4")
# fp32 sums of unit terms; bf16 results round to 8 bits.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 5e-3}
# rows, inputs, outputs: one row; fewer than a block; a tail of 16 columns; a tail of 13, of one group of rows and of
# several; several panels of weights; more columns than tiles take codes of at once when rows are few, and rows enough
# that they take all; rows so wide that the next ones are fetched into the second-level cache
SIZES = (
    *((1, 96, 40), (5, 16, 3), (7, 208, 67), (3, 77, 33), (20, 77, 33), (300, 192, 150), (37, 608, 48)),
    *((2, 4112, 24), (5, 2080, 24)),
)
WITH_EMULATED = instruction_sets(emulated=True)


@pytest.fixture(scope="module", params=product(instruction_sets(), (1, 2)), ids=lambda p: f"{p[0]}-{p[1]}")
def ops(request):
    name, num_threads = request.param
    return native_operators(num_threads, name)


@pytest.fixture(scope="module", params=product(WITH_EMULATED, (1, 2)), ids=lambda p: f"{p[0]}-{p[1]}")
def products(request):
    """Operators whose linear layers, experts and attention are tested; the rest of an emulated set is avx512's."""
    name, num_threads = request.param
    return native_operators(num_threads, name)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stored(weight, form):
    """A weight in a stored format, and the dense float64 values that it stands for."""
    if form == "dense":
        return weight, weight.double()
    if form == "fp8":
        parts = [quantize_fp8(w) for w in weight.reshape(-1, *weight.shape[-2:])]
        rows = torch.stack([scale.expand(weight.shape[-2]) for _, scale in parts]).reshape(weight.shape[:-1])
        quantized = Fp8Weight(torch.stack([c for c, _ in parts]).reshape(weight.shape), rows.contiguous())
    else:
        parts = [quantize_nvfp4(w) for w in weight.reshape(-1, *weight.shape[-2:])]
        rows = torch.stack([(1 / g).expand(weight.shape[-2]) for _, _, g in parts]).reshape(weight.shape[:-1])
        codes = torch.stack([c for c, _, _ in parts]).reshape(*weight.shape[:-1], -1)
        groups = torch.stack([s for _, s, _ in parts]).reshape(*weight.shape[:-1], -1)
        quantized = Nvfp4Weight(codes, groups, rows.contiguous())
    return quantized, quantized.dequantize(torch.float32).double()


def close(got, want, form="dense"):
    """NVFP4 weights are multiplied with activations of 16 bits, on bf16 instructions of 8."""
    tolerance = max(TOLERANCE[got.dtype], 1e-4 if form == "nvfp4" else 0.0)
    assert got.shape == want.shape
    assert (got.double() - want).abs().max() <= tolerance * want.abs().max()


def same_alone(run, rows):
    """Row by row and in uneven pieces, the same bits as all at once."""
    together = run(slice(0, rows))
    alone = torch.cat([run(slice(i, i + 1)) for i in range(0, rows, 1 if rows < 20 else 37)])
    assert torch.equal(alone, together[:: 1 if rows < 20 else 37])
    cut = rows // 3
    assert torch.equal(torch.cat([run(slice(0, cut)), run(slice(cut, rows))]) if cut else together, together)
    return together


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_linear(products, dtype, form, size):
    T, D, F = size
    if form == "nvfp4" and D % 16:
        pytest.skip("NVFP4 has groups of 16 columns")
    x = random(T, D, dtype=dtype)
    weight, dense = stored(random(F, D, dtype=dtype, seed=1), form)
    close(same_alone(lambda rows: products.linear(x[rows], weight), T), x.double() @ dense.T, form)


def test_head_keeps_fp32(products):
    """From bf16 to fp32 without a bf16 in between: two logits 0.01 apart at 40 must stay apart."""
    x, weight = random(3, 64, dtype=torch.bfloat16), random(130, 64, dtype=torch.bfloat16, seed=1)
    close(same_alone(lambda rows: products.head(x[rows], weight), 3), x.double() @ weight.double().T)
    assert products.head(x, weight).dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tail", [0, 16])
def test_every_code_is_exact(products, dtype, tail):
    """Each FP8 code, and each NVFP4 code under each group scale, as it comes out of a product with the identity: a
    wrong subnormal or sign in one code would drown in the tolerance of the other tests."""
    finite = torch.tensor([code for code in range(256) if code & 127 != 127], dtype=torch.uint8)
    columns = 32 + tail
    codes = finite.repeat(2)[: columns * 10].reshape(10, columns).view(torch.float8_e4m3fn)
    scales = finite.repeat(3).reshape(-1, columns // 16).view(torch.float8_e4m3fn)
    nibbles = torch.arange(8, dtype=torch.uint8) * 0x22 + 0x10  # each code once in a group
    groups = nibbles.repeat(len(scales), columns // 16)
    for weight in (
        Fp8Weight(codes, torch.ones(len(codes))),
        Nvfp4Weight(groups, scales.contiguous(), torch.ones(len(scales))),
    ):
        rows = products.head(torch.eye(columns, dtype=dtype), weight)
        assert torch.equal(rows.T, weight.dequantize(torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("tokens", "inner"), [(1, 32), (4, 48), (301, 64), (40, 23)])
def test_moe(products, dtype, form, tokens, inner):
    """Random choices of 5 experts of which one is never chosen; the halves of gate and up have scales of their own; the
    shared expert is wider or narrower than the others."""
    if form == "nvfp4" and inner % 16:
        pytest.skip("NVFP4 has groups of 16 columns")
    D, E, other = 80, 5, 80 - inner
    x = random(tokens, D, dtype=dtype)
    gate_up = random(E, 2 * inner, D, dtype=dtype, seed=1) / 9
    gate_up[:, inner:] *= 3
    down = random(E, D, inner, dtype=dtype, seed=2) / 6
    shared = [random(*s, dtype=dtype, seed=3 + i) / 9 for i, s in enumerate([(other, D), (other, D), (D, other)])]
    weights = random(tokens, 2, seed=6).abs()
    ids = torch.stack([torch.randperm(E - 1, generator=torch.Generator().manual_seed(t))[:2] for t in range(tokens)])
    (gate_up, gate_up_dense), (down, down_dense) = stored(gate_up, form), stored(down, form)
    shared, shared_dense = zip(*(stored(w, form) for w in shared), strict=True)
    got = same_alone(lambda rows: products.moe(x[rows], weights[rows], ids[rows], gate_up, down, shared), tokens)
    dense = [w.float() for w in (gate_up_dense, down_dense)]
    close(got, REFERENCE.moe(x.float(), weights, ids, *dense, tuple(w.float() for w in shared_dense)).double(), form)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMATS)
def test_all_tokens_on_one_expert(products, dtype, form):
    x = random(40, 32, dtype=dtype)
    shapes = [(6, 32, 32), (6, 32, 16), (16, 32), (16, 32), (32, 16)]
    (gate_up, gu), (down, d), *shared = (
        stored(random(*shape, dtype=dtype, seed=i) / 4, form) for i, shape in enumerate(shapes)
    )
    weights, ids = torch.ones(40, 1), torch.full((40, 1), 4)
    want = REFERENCE.moe(x.double(), weights.double(), ids, gu, d, tuple(dense for _, dense in shared))
    close(products.moe(x, weights, ids, gate_up, down, tuple(weight for weight, _ in shared)), want, form)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMATS)
def test_weights_at_any_address(products, dtype, form):
    """One element behind an aligned one, scales too."""

    def moved(tensor):
        return torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].copy_(tensor.flatten()).view(tensor.shape)

    x = random(5, 208, dtype=dtype)
    weight, _ = stored(random(67, 208, dtype=dtype, seed=1), form)
    elsewhere = moved(weight) if form == "dense" else type(weight)(*(moved(t) for t in vars(weight).values()))
    assert torch.equal(products.linear(moved(x), elsewhere), products.linear(x, weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("tokens", "D", "F"), [(9, 48, 64), (2, 304, 1104), (3, 304, 1104), (32, 304, 1104)])
def test_gated_mlp(products, dtype, form, tokens, D, F):
    """Two, three and 32 tokens are the most that take long panels, on AVX2, AVX-512 and tiles: their results fill what
    room there is."""
    x = random(tokens, D, dtype=dtype)
    shapes = [(F, D), (F, D), (D, F)]
    (gate, g), (up, u), (down, d) = (
        stored(random(*shape, dtype=dtype, seed=i) / shape[1] ** 0.5, form) for i, shape in enumerate(shapes)
    )
    got = same_alone(lambda rows: products.gated_mlp(x[rows], gate, up, down), tokens)
    close(got, REFERENCE.gated_mlp(x.double(), g, u, d), form)


def test_experts_in_another_format_than_the_shared_one(products):
    """As published: NVFP4 experts, a dense shared one. And a single fp32 matrix among bf16 activations."""
    x, weights, ids = random(33, 32, dtype=torch.bfloat16), torch.ones(33, 1), torch.arange(33).unsqueeze(1) % 3
    (gate_up, g), (down, d) = (stored(random(*s, seed=1) / 6, "nvfp4") for s in [(3, 32, 32), (3, 32, 16)])
    for dtype in DTYPES:
        shared = tuple(random(*s, dtype=dtype, seed=2) / 6 for s in [(8, 32), (8, 32), (32, 8)])
        dense = tuple(w.float() for w in shared)
        got = same_alone(lambda r, shared=shared: products.moe(x[r], weights[r], ids[r], gate_up, down, shared), 33)
        close(got, REFERENCE.moe(x.float(), weights, ids, g.float(), d.float(), dense).double(), "nvfp4")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "size"), [(1, 19), (50, 256)])
def test_rms_norm(ops, dtype, rows, size):
    x, weight = random(rows, size, dtype=dtype), random(size, dtype=dtype, seed=1)
    close(
        same_alone(lambda r: ops.rms_norm(x[r], weight, 1e-6), rows),
        REFERENCE.rms_norm(x.double(), weight.double(), 1e-6).double(),
    )


def test_route(ops):
    """Choices and weights of 301 tokens; ties go to the lower expert."""
    x, gate = random(301, 40), random(37, 40, seed=1)
    weights, ids = ops.route(x, gate, 4, 2.5)
    want, want_ids = REFERENCE.route(x.double(), gate.double(), 4, 2.5)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(weights, want.float(), atol=1e-5, rtol=1e-5)
    _, tied = ops.route(torch.ones(2, 8), torch.ones(9, 8), 3, 1.0)
    assert tied.tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 5), (300, 33), (3, 16384), (2, 40001)], ids=str)
def test_scan(ops, dtype, shape):
    """The first of the largest, of few different values and of negative ones too; wide rows are taken in pieces."""
    few = torch.randint(-3, 3, shape, generator=torch.Generator().manual_seed(0))
    for x in (random(*shape, dtype=dtype), few.to(dtype), -1 - few.abs().to(dtype), 1e-39 * few.float().to(dtype)):
        assert ops.scan(x) == ([True] * shape[0], x.float().numpy().argmax(-1).tolist())
        assert ops.scan(x[:0]) == ([], [])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [7, 40001])
def test_scan_finds_what_is_not_finite(ops, dtype, columns):
    places = [0, columns // 2, columns - 1]
    bad = [float("nan"), float("inf"), float("-inf"), -float("nan")]
    x = random(len(places) * len(bad) + 1, columns, dtype=dtype)
    for row, (place, value) in enumerate(product(places, bad)):
        x[row, place] = value
    finite, largest = ops.scan(x)
    assert finite == [False] * (len(x) - 1) + [True]
    assert largest == [0] * (len(x) - 1) + [x[-1].float().argmax().item()]


def test_scan_takes_zeros_of_both_signs_for_equal(ops):
    x = -torch.ones(4, 40001)
    for row, places in enumerate([(3, 30000), (3, 5), (30000, 3), (5, 3)]):
        x[row, places[0]], x[row, places[1]] = -0.0, 0.0
    assert ops.scan(x) == ([True] * 4, [3] * 4)


def test_place(ops):
    """Angles are formed in fp32, as everywhere: 200,000 x 0.73 is not exact, and every provider must round it alike."""
    positions, inv_freq = torch.arange(0, 230_000, 1017), torch.tensor([1.0, 0.7305, 0.01, 3e-7])
    placed = ops.place(positions, inv_freq, 8192, 0.1)
    angles = (positions.float()[:, None] * inv_freq).double()
    for got, want in ((placed.cos_TR2, angles.cos()), (placed.sin_TR2, angles.sin())):
        assert got.dtype == torch.float32 and (got.double() - want).abs().max() < 1.2e-7
    scales = 1 + 0.1 * torch.log1p((positions // 8192).double())
    assert (placed.query_scale_T.double() - scales).abs().max() < 1.2e-7
    one = ops.place(positions[7:8], inv_freq, 8192, 0.1)
    assert torch.equal(one.cos_TR2, placed.cos_TR2[7:8]) and torch.equal(one.sin_TR2, placed.sin_TR2[7:8])


class Cached:
    """Sequences whose latents an operator writes itself, in shuffled pages that hold NaN until then."""

    def __init__(self, ops, dtype, lengths, heads=3, nope=12, rope=8, latent=20, value=10, page_size=16):
        total, width = sum(lengths), latent + rope
        self.ops, self.lengths = ops, lengths
        self.q = random(total, heads, nope + rope, dtype=dtype)
        self.kv_b = random(heads * (nope + value), latent, dtype=dtype, seed=1) / latent**0.5
        kv, norm = random(total, width, dtype=dtype, seed=2), random(latent, dtype=dtype, seed=3)
        angles = random(total, rope // 2, seed=4)
        self.positions = Positions(angles.cos(), angles.sin(), 1 + random(total, seed=5).abs())
        counts = [-(-n // page_size) for n in lengths]
        pages = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)).split(counts)
        self.pages = torch.nn.utils.rnn.pad_sequence(list(pages), batch_first=True)
        self.slots = torch.cat(
            [
                p[torch.arange(n) // page_size] * page_size + torch.arange(n) % page_size
                for p, n in zip(pages, lengths, strict=True)
            ]
        )
        self.cache = torch.full((sum(counts), page_size, width), float("nan"), dtype=dtype)
        ops.write_latent(kv, norm, 1e-6, self.positions, self.cache, self.slots)

    def attend(self, spans, ops=None, dtype=None):
        """Outputs of tokens [start, stop) of each sequence in one call."""
        starts = [sum(self.lengths[:i]) for i in range(len(self.lengths))]
        chosen = torch.cat([torch.arange(s + a, s + b) for s, (a, b) in zip(starts, spans, strict=True)])
        own = Positions(
            *(t[chosen] for t in (self.positions.cos_TR2, self.positions.sin_TR2, self.positions.query_scale_T))
        )
        layout = AttentionLayout(
            tuple(b - a for a, b in spans), tuple(b for _, b in spans), self.pages, self.slots[chosen]
        )
        tensors = [t if dtype is None else t.to(dtype) for t in (self.q[chosen], self.kv_b, self.cache)]
        return (ops or self.ops).latent_attention(
            tensors[0], tensors[1], own, tensors[2], layout, self.q.shape[-1] ** -0.5
        )


# Odd sizes whose latent ends inside a block, columns before rope among them; the published proportions; eight blocks of
# latents, two, and part of one.
SHAPES = (
    {"nope": 13},
    {"heads": 16, "nope": 64, "rope": 64, "latent": 256, "value": 128},
    {"heads": 2, "nope": 16, "rope": 16, "latent": 360, "value": 16},
)


def attention_close(ops, got, want):
    """A bf16 result is off by 0.0017 in the mean for its own rounding alone (2^-8 at most). With bf16 arithmetic
    queries, weights and means of latents are rounded as well: 0.0034 in the mean is the most that was found, where
    torch's own bf16 has 0.0042. The largest error may be that of one large score, of which 2^-8 of a query makes
    more."""
    if got.dtype is torch.float32 or not ("amx" in ops.name or "bf16" in ops.name):
        return close(got, want)
    off = got.double() - want
    assert off.square().mean().sqrt() <= 0.0038 * want.square().mean().sqrt()
    assert off.abs().max() <= 0.008 * want.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=["odd", "published", "long"])
def test_latent_attention(products, dtype, shape):
    """Prompts across several segments of 256 keys, decode steps behind them, company and none: near the definition, and
    the same bits in one call, in chunks, and one token at a time."""
    lengths = [610, 3, 257]
    cached = Cached(products, dtype, lengths, **shape)
    whole = cached.attend([(0, n) for n in lengths])
    attention_close(products, whole, cached.attend([(0, n) for n in lengths], REFERENCE, torch.float64))
    parts = whole.split(lengths)
    last = cached.attend([(n - 1, n) for n in lengths])
    assert torch.equal(last, torch.stack([part[-1] for part in parts]))
    chunk = cached.attend([(200, 540), (0, 1), (255, 257)])
    assert torch.equal(chunk, torch.cat([parts[0][200:540], parts[1][:1], parts[2][255:257]]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "rope"), [(1, 8), (5, 12), (70, 8)])
def test_where_latents_lie_makes_no_difference(products, dtype, heads, rope):
    """Pages of which 16 keys fill one, several, or parts of two, of rows that fill blocks of 32 columns or do not; one
    head, some, and more than one task has query rows."""
    lengths, spans = [290, 20], [(270, 290), (0, 20)]
    placed = [Cached(products, dtype, lengths, heads, rope=rope, page_size=size) for size in (16, 7, 64)]
    found = [cached.attend(spans) for cached in placed]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    attention_close(products, found[0], placed[0].attend(spans, REFERENCE, torch.float64))
    assert torch.equal(placed[0].attend([(289, 290), (19, 20)]), found[0][[19, 39]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_mean_of_equal_latents_is_that_latent(products, dtype):
    """Whatever their weights are: tiles round these, and must divide by the sum of what they multiplied."""
    cached = Cached(products, dtype, [70])
    rows = cached.cache.flatten(0, 1)
    rows[cached.slots, :20] = rows[cached.slots[0], :20]
    out = cached.attend([(0, 70)])
    off = (out - out[0]).abs()  # the first token sees one key, whose weight is 1
    if dtype is torch.float32:
        assert off.max() <= 1e-5 * out[0].abs().max()
    else:  # a result between two bf16 numbers may fall to either side
        assert (off > 0).double().mean() <= 0.01 and off.max() <= 2**-7 * out[0].abs().max()


@pytest.mark.parametrize("name", WITH_EMULATED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_with_one_thread_or_two(name, dtype):
    """Blocks of queries shared out, and behind a long context its segments."""
    lengths = [700, 90]
    cached = Cached(native_operators(1, name), dtype, lengths)
    two = native_operators(2, name)
    for spans in ([(0, 700), (0, 90)], [(699, 700), (89, 90)], [(600, 700), (3, 9)]):
        assert torch.equal(cached.attend(spans), cached.attend(spans, two))


@pytest.mark.parametrize("name", WITH_EMULATED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_behind_a_long_context(name, dtype):
    """One token, whose keys one thread takes in groups of segments and two take in segments; a chunk that ends with
    it, of which each thread takes blocks of queries; and groups of several sequences, one of which is broken."""
    n, lengths = 16_500, [16_500, 1030, 300]
    cached = Cached(native_operators(1, name), dtype, lengths)
    spans = [(length - 1, length) for length in lengths]
    last = cached.attend(spans)
    assert torch.equal(last, cached.attend(spans, native_operators(2, name)))
    chunk = cached.attend([(n - 90, n), (1000, 1030), (299, 300)])
    assert torch.equal(last, chunk[[89, 119, 120]])
    attention_close(cached.ops, last, cached.attend(spans, REFERENCE, torch.float64))
    for key in (3, 9000, n - 1):
        kept = cached.cache.clone()
        cached.cache.flatten(0, 1)[cached.slots[key]] = float("nan")
        out = cached.attend(spans)
        assert out[0].isnan().all() and torch.equal(out[1:], last[1:])
        cached.cache = kept


def test_write_latent(ops):
    """Near the reference, and row by row the same bits as all rows at once."""
    kv, norm, angles = random(40, 28), random(20, seed=1), random(40, 4, seed=2)
    slots = torch.randperm(48, generator=torch.Generator().manual_seed(0))[:40]

    def written(provider, dtype, step):
        cache = torch.zeros(3, 16, 28, dtype=dtype)
        for i in range(0, 40, step):
            own = slice(i, i + step)
            positions = Positions(angles[own].cos(), angles[own].sin(), torch.ones(step))
            provider.write_latent(kv[own], norm, 1e-6, positions, cache, slots[own])
        return cache

    close(written(ops, torch.float32, 40), written(REFERENCE, torch.float32, 40).double())
    close(written(ops, torch.bfloat16, 40), written(REFERENCE, torch.float32, 40).double())
    assert torch.equal(written(ops, torch.bfloat16, 40), written(ops, torch.bfloat16, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_latents_and_queries_come_through(products, dtype, value):
    """A broken sequence must show: its failure boundary is a NaN in the logits. Its neighbours, and the rows that share
    a tile with a broken query, must not."""
    cached = Cached(products, dtype, [600, 70])
    whole = cached.attend([(0, 600), (0, 70)])
    for key in (5, 300, 599):  # in the first segment, the second, and the last one
        kept = cached.cache.clone()
        cached.cache.flatten(0, 1)[cached.slots[key]] = value
        out = cached.attend([(599, 600), (69, 70)])
        assert out[0].isnan().all() and torch.equal(out[1], whole[-1])
        # Keys from 300 on are not read for tokens up to 255, whatever else is in the call.
        assert key < 256 or torch.equal(cached.attend([(0, 255), (0, 1)])[:255], whole[:255])
        cached.cache = kept
    cached.q[257, 1] = value
    out = cached.attend([(200, 600), (0, 70)])
    broken = torch.zeros(470, 3, dtype=torch.bool)
    broken[57, 1] = True
    assert out[57, 1].isnan().all()
    assert torch.equal(out[~broken], torch.cat([whole[200:600], whole[600:]])[~broken])


def test_nan_comes_through(ops):
    assert ops.linear(torch.full((1, 32), float("nan")), torch.ones(4, 32)).isnan().all()
    assert ops.rms_norm(torch.full((1, 32), float("nan")), torch.ones(32), 1e-6).isnan().all()


def test_nan_stays_in_its_row(products):
    """Rows that share a tile do not share a failure; a NaN behind the last column is not a column."""
    x, weight = random(20, 45, dtype=torch.bfloat16), random(40, 45, dtype=torch.bfloat16, seed=1)
    x[3] = float("nan")
    assert (products.linear(x, weight).isnan().any(-1) == (torch.arange(20) == 3)).all()
    assert products.linear(x, weight)[3].isnan().all()


@pytest.mark.parametrize("form", FORMATS)
def test_every_instruction_set_agrees(form):
    """Lane by lane the same order; only FMA's single rounding sets the portable path apart."""
    x, (weight, dense) = random(7, 208), stored(random(67, 208, seed=1), form)
    results = {name: native_operators(1, name).linear(x, weight) for name in instruction_sets()}
    fused = [result for name, result in results.items() if name != "portable" and "bf16" not in name]
    assert all(torch.equal(result, fused[0]) for result in fused)
    for result in results.values():
        close(result, x.double() @ dense.T, form)


def picking(columns, chosen):
    """An NVFP4 matrix whose rows are single columns times 6, the largest code."""
    codes = torch.zeros(len(chosen), columns // 2, dtype=torch.uint8)
    for row, column in enumerate(chosen):
        codes[row, column // 2] = 0x70 if column % 2 else 0x07
    scales = torch.ones(len(chosen), columns // 16).to(torch.float8_e4m3fn)
    return Nvfp4Weight(codes, scales, torch.ones(len(chosen)))


def test_nvfp4_keeps_small_activations_beside_large_ones(ops):
    """Eight activations share a unit: whole numbers of 16 bits with their sign. An outlier (16384 times the rest is no
    invention) must not cost anything but seven neighbours their lowest bits."""
    x = torch.zeros(1, 160)
    x[0, 8] = 1.0
    x[0, :8] = x[0, 16:24] = random(8).bfloat16().float().clamp(-4, 4) * 2.0**-14
    x[0, 24:] = random(136).bfloat16().float() * 2.0**-40
    x[0, 9:16] = (random(7) / 8).bfloat16().float() * 2.0**-4
    chosen = [*range(32), 33, 126, 127, 128, 159]
    got = ops.linear(x, picking(160, chosen))
    exact = torch.tensor([not 8 < column < 16 for column in chosen])
    # To the bit, but where numbers of one group of eight are further apart than 16 bits reach.
    wide = x.reshape(-1, 8).abs().amax(1).repeat_interleave(8)[chosen] * 2.0**-15
    assert ((got - 6 * x[:, chosen]).abs() <= 6 * wide).all()
    near = x[0, chosen].abs() >= 2.0**-7 * x.reshape(-1, 8).abs().amax(1).repeat_interleave(8)[chosen]
    assert near[exact].sum() > 20
    assert torch.equal(got[0, near], 6 * x[0, chosen][near])


def test_nvfp4_scales_with_its_activations(ops):
    """A row times a power of two gives the result times that power, bit for bit, whatever its neighbours are; zeros
    give zeros, and a row with a NaN or an infinity is all NaN, alone."""
    x, (weight, _) = random(9, 208), stored(random(35, 208, seed=1), "nvfp4")
    factors = torch.tensor([2.0**k for k in (0, 1, -1, 60, -60, 90, -90)])
    want = ops.linear(x, weight)
    scaled = x.clone()
    scaled[:7] *= factors.unsqueeze(1)
    scaled[7], scaled[8, 3] = 0.0, float("inf")
    got = ops.linear(scaled, weight)
    assert torch.equal(got[:7], want[:7] * factors.unsqueeze(1))
    assert (got[7] == 0).all() and got[8].isnan().all()
    scaled[8, 3] = float("nan")
    assert torch.equal(ops.linear(scaled, weight)[:8], got[:8]) and ops.linear(scaled, weight)[8].isnan().all()


@pytest.mark.skipif(not {"amx", "avx512_bf16"} & set(WITH_EMULATED), reason="needs a machine with bf16 instructions")
@pytest.mark.parametrize("name", ["amx", "avx512_bf16"])
def test_emulated_is_what_the_machine_does(name):
    """Else the emulated cases would prove nothing."""
    if name not in WITH_EMULATED:
        pytest.skip(f"this machine has no {name}")
    x, dense = random(37, 208, dtype=torch.bfloat16), random(67, 208, dtype=torch.bfloat16, seed=1)
    real, emulated = (native_operators(1, which) for which in (name, f"{name}_emulated"))
    for form in FORMATS:
        weight, _ = stored(dense, form)
        assert torch.equal(real.head(x, weight), emulated.head(x, weight))
    for shape in SHAPES:
        cached = Cached(real, torch.bfloat16, [300, 9], **shape)
        assert torch.equal(cached.attend([(0, 300), (8, 9)]), cached.attend([(0, 300), (8, 9)], emulated))


@pytest.mark.parametrize("name", WITH_EMULATED)
@pytest.mark.parametrize("form", FORMATS)
def test_one_thread_or_two_make_no_difference(name, form):
    x, (weight, _) = random(33, 192, dtype=torch.bfloat16), stored(random(150, 192, dtype=torch.bfloat16, seed=1), form)
    down, _ = stored(random(192, 160, dtype=torch.bfloat16, seed=2), form)
    up, _ = stored(random(160, 192, dtype=torch.bfloat16, seed=3), form)
    one, two = (
        (ops.linear(x, weight), ops.gated_mlp(x, up, up, down)) for ops in (native_operators(n, name) for n in (1, 2))
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", WITH_EMULATED)
def test_a_whole_model_in_chunks(name):
    """All layers of a bf16 model: 40 tokens at once, or the last seven one by one, the same bits."""
    from tests.paging import PagedCache
    from tests.tiny import tiny_config, tiny_model
    from ventoux.model.decoder import ForwardInputs

    model, ids = tiny_model(ops=native_operators(2, name)).to(torch.bfloat16), torch.arange(1000, 1040)

    def hidden(*lengths):
        cache, start, parts = PagedCache(tiny_config().text, [40], page_size=4, dtype=torch.bfloat16), 0, []
        for n in lengths:
            own = slice(start, start + n)
            start += n
            inputs = ForwardInputs(ids[own], torch.arange(40)[own], (n,), cache.layout([n]))
            parts.append(model(inputs, cache.tensors))
        return torch.cat(parts)

    whole = hidden(40)
    assert whole.isfinite().all()
    assert torch.equal(hidden(33, *[1] * 7), whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["dense", "nvfp4"])
def test_scratch_memory_is_what_the_plan_says(dtype, form):
    """An upper bound, and not three times what is held."""
    from tests.paging import PagedCache
    from tests.tiny import tiny_model, wide_config
    from ventoux.model.decoder import ForwardInputs
    from ventoux.plan import PARTIAL_SUM_BYTES, scratch_bytes

    config = wide_config(hidden_size=256, moe_intermediate_size=192, num_attention_heads=5, kv_lora_rank=96)
    ops, T = native_operators(1), 300
    model = tiny_model(config, ops=ops).to(dtype)
    if form == "nvfp4":
        for layer in model.language_model.layers:
            experts = layer.mlp.experts
            for name, weight in list(experts.named_parameters()):
                delattr(experts, name)
                setattr(experts, name, stored(weight.data, form)[0])
    cache = PagedCache(config.text, [T], page_size=4, dtype=dtype)
    model(ForwardInputs(torch.arange(1000, 1000 + T), torch.arange(T), (T,), cache.layout([T])), cache.tensors)
    held, planned = ops.layers.__self__.runtime.scratch_bytes, scratch_bytes(config.text, T, dtype.itemsize)
    assert held <= planned - PARTIAL_SUM_BYTES <= 3 * held


def test_what_does_not_fit_is_refused(ops):
    """Addresses go to native code unchecked there: a shape that does not fit must never reach it."""
    with pytest.raises(ConfigError, match="does not fit"):
        ops.linear(random(2, 32), random(4, 31))
    with pytest.raises(ConfigError, match="contiguous"):
        ops.linear(random(2, 32), random(32, 4).T)
    with pytest.raises(ConfigError, match="contiguous"):
        ops.rms_norm(random(2, 32).half(), random(32), 1e-6)
    with pytest.raises(ConfigError, match="not sse9"):
        native_operators(1, "sse9")


def test_every_native_operator_has_a_contract():
    """One that is new and not tested here would be tested by its users.

    Not here: `layers` (tests/invariants/test_bits.py), and `packed_attention`, the reference's with more threads.
    """
    provided, source = native_operators(1), Path(__file__).read_text()
    names = [field.name for field in fields(provided)[1:]]
    native = {name for name in names if getattr(provided, name) is not getattr(REFERENCE, name)}
    assert len(native) > 10
    assert native - {"layers", "packed_attention"} <= set(re.findall(r"\b(?:ops|products)\)?\.(\w+)", source))


def test_emulated_instructions_are_never_a_default():
    """They are hundreds of times slower than what they stand for."""
    assert not any("emulated" in name for name in instruction_sets())
    assert "emulated" not in native_operators(1).name


def test_what_native_code_would_misread_is_refused(ops):
    """Strides, types and widths that it does not look at: each of these read other memory before it was checked."""
    x, weight = random(2, 32), random(4, 32)
    codes, scale = quantize_fp8(weight)
    with pytest.raises(ConfigError, match="contiguous"):
        ops.linear(x, Fp8Weight(codes, scale.expand(4)))
    with pytest.raises(ConfigError, match="does not fit"):
        ops.rms_norm(x, random(31), 1e-6)
    with pytest.raises(ConfigError, match="5 of 4 experts"):
        ops.route(x, weight, 5, 1.0)
    with pytest.raises(ConfigError, match="widths"):
        ops.gated_mlp(x, random(8, 32), random(8, 32), random(32, 7))
    with pytest.raises(ConfigError, match="float32"):
        shared = (random(8, 32), random(8, 32), random(32, 8))
        ids = torch.zeros(2, 1, dtype=torch.int64)
        ops.moe(x, torch.ones(2, 1).bfloat16(), ids, random(3, 16, 32), random(3, 32, 8), shared)
    cached = Cached(ops, torch.float32, [40, 9])
    positions, cached.positions = cached.positions, Positions(*(t.double() for t in vars(cached.positions).values()))
    with pytest.raises(ConfigError, match="float32"):
        cached.attend([(39, 40), (8, 9)])
    cached.positions = positions
    cached.pages = cached.pages.T.contiguous().T
    with pytest.raises(ConfigError, match="int64"):
        cached.attend([(39, 40), (8, 9)])


def test_queries_that_are_not_contiguous(ops):
    """A copy is made of them; it must live as long as native code reads it."""
    cached = Cached(ops, torch.float32, [300])
    want = cached.attend([(0, 300)])
    cached.q = cached.q.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(cached.attend([(0, 300)]), want)


def test_weights_that_moved_are_read_where_they_are():
    """Addresses are taken once; `.to()` of the whole model must take them again."""
    from tests.paging import PagedCache
    from tests.tiny import tiny_config, tiny_model
    from ventoux.model.decoder import ForwardInputs

    model = tiny_model(ops=native_operators(1))
    ids, positions = torch.arange(1000, 1009), torch.arange(9)

    def hidden(dtype):
        cache = PagedCache(tiny_config().text, [9], page_size=4, dtype=dtype)
        return model(ForwardInputs(ids, positions, (9,), cache.layout([9])), cache.tensors)

    first = hidden(torch.float32)
    model.to(torch.bfloat16)
    assert hidden(torch.bfloat16).dtype == torch.bfloat16
    model.to(torch.float32)
    assert (hidden(torch.float32) - first).abs().max() < 0.2  # rounded to bf16 and back, not read from freed memory
