"""Number formats: every code is decoded as published, rounding goes to the nearest code with ties as published, and the
operators that take quantized weights compute with exactly the dequantized ones."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ventoux.ops import formats
from ventoux.ops.cpu import instruction_sets
from ventoux.ops.formats import FP8, Fp8Weight, Nvfp4Weight, quantize_fp8, quantize_nvfp4
from ventoux.ops.reference import REFERENCE

# Table of the format: bit 3 is the sign.
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def e4m3(code):
    """The definition: 1 sign bit, 4 exponent bits of bias 7, 3 mantissa bits; all ones are NaN, no infinity."""
    sign, exponent, mantissa = -1 if code & 0x80 else 1, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    return sign * (mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2 ** (exponent - 7))


def one_group(codes, group_scale=1.0, row_scale=1.0):
    """A row of 16 codes."""
    codes = torch.tensor([codes], dtype=torch.uint8)
    return Nvfp4Weight(
        codes[:, 0::2] | codes[:, 1::2] << 4, torch.full((1, 1), group_scale).to(FP8), torch.tensor([row_scale])
    )


def as_weight(tensor, form):
    if form == "fp8":
        codes, scale = quantize_fp8(tensor)
        return Fp8Weight(codes, scale.expand(tensor.shape[:-1]))
    codes, group_scale, global_scale = quantize_nvfp4(tensor)
    return Nvfp4Weight(codes, group_scale, global_scale.reciprocal().expand(tensor.shape[:-1]))


def test_every_e2m1_code_and_which_nibble_is_even():
    weight = one_group(list(range(16)), group_scale=0.5, row_scale=3.0)
    assert weight.codes[0, 0] == 0x10, "the even column is the low nibble"
    assert weight.dequantize(torch.float32).tolist() == [[1.5 * value for value in E2M1]]


def test_every_e4m3_code():
    codes = torch.arange(256, dtype=torch.uint8).view(FP8).reshape(2, 128)
    got = Fp8Weight(codes, torch.tensor([1.0, 0.5])).dequantize(torch.float32).flatten().tolist()
    for code, value in enumerate(got):
        wanted = e4m3(code) * (0.5 if code >= 128 else 1)
        assert value == wanted or (math.isnan(value) and math.isnan(wanted)), code


def test_e2m1_ties():
    """Halves go to the even code: 0.25 down, 0.75 up, and so on. A table by `>=` alone gets some wrong."""
    values = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -2.5, -3.5, -5.0, 0.7499, 0.2501, 4.999, 6.0]
    wanted = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 0.0, -1.0, -2.0, -4.0, -4.0, 0.5, 0.5, 4.0, 6.0]
    # amax 6 makes the global scale 448 and the group's 448: the product of both is 1.
    weight = as_weight(torch.tensor([values]), "nvfp4")
    assert weight.dequantize(torch.float32)[0].tolist() == pytest.approx(wanted, rel=1e-6)


def test_e4m3_ties_and_saturation():
    """amax 448 makes the scale 1. 17 lies between 16 and 18, 19 between 18 and 20: both to the even mantissa."""
    codes, scale = quantize_fp8(torch.tensor([[448.0, 17.0, 19.0, -17.0, 2**-10, 3 * 2**-10]]))
    assert scale == 1
    assert codes.float().tolist() == [[448.0, 16.0, 20.0, -16.0, 0.0, 2**-8]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_in_pieces_is_the_same(monkeypatch, dtype):
    """One scale for all pieces, in the order of the values, whatever memory they lie in."""
    values = torch.randn(4, 9, 5, generator=torch.Generator().manual_seed(0)).to(dtype).transpose(0, 1)
    whole, scale = quantize_fp8(values)
    monkeypatch.setattr(formats, "_PIECE", 7)
    codes, same = quantize_fp8(values)
    assert same == scale and codes.shape == values.shape
    assert torch.equal(codes.view(torch.uint8), whole.view(torch.uint8))
    assert (codes.float() * scale - values.float()).abs().max() <= 16 * scale


def test_scales_are_the_published_ones():
    tensor = torch.zeros(2, 32)
    tensor[0, 3], tensor[1, 20] = 3.0, -0.75
    codes, group_scale, global_scale = quantize_nvfp4(tensor)
    assert codes.dtype == torch.uint8 and codes.shape == (2, 16)
    assert global_scale.tolist() == [448 * 6 / 3.0]
    # amax of the group / 6 * global scale; the least e4m3 number for groups of zeros, never 0.
    assert group_scale.float().tolist() == [[448.0, 2**-9], [2**-9, 112.0]]
    assert quantize_fp8(tensor)[1].item() == pytest.approx(3 / 448)


@settings(max_examples=60, deadline=None)
@given(
    lead=st.lists(st.integers(1, 3), max_size=1),
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    exponent=st.integers(-40, 30),
    seed=st.integers(0, 2**16),
)
def test_errors_are_bounded_by_the_format(lead, rows, groups, exponent, seed):
    """For any shape and magnitude: half a step of e2m1 (1 between 4 and 6) times the group's scale, with room for that
    scale's own rounding; half a step of e4m3 (2^-4 of the value)."""
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(*lead, rows, 16 * groups, generator=generator) * 2.0**exponent
    weight = as_weight(tensor, "nvfp4")
    assert weight.shape == tensor.shape
    steps = (weight.group_scale.float() * weight.row_scale.unsqueeze(-1)).repeat_interleave(16, dim=-1)
    error = (weight.dequantize(torch.float32) - tensor).abs()
    assert (error <= 1.001 * steps).all()
    fp8 = as_weight(tensor, "fp8")
    bound = torch.maximum(tensor.abs() * 2**-4, fp8.row_scale.unsqueeze(-1) * 2**-10)
    assert ((fp8.dequantize(torch.float32) - tensor).abs() <= 1.001 * bound).all()


@pytest.mark.parametrize("form", ["fp8", "nvfp4"])
@pytest.mark.parametrize("largest", [0.0, 1e-44, 1e-38, 1e38])
def test_extreme_magnitudes_give_finite_scales(form, largest):
    tensor = torch.zeros(2, 32)
    tensor[0, 0] = largest
    weight = as_weight(tensor, form)
    assert weight.row_scale.isfinite().all() and (weight.row_scale > 0).all()
    got = weight.dequantize(torch.float32)
    assert got.isfinite().all()
    assert (got - tensor).abs().max() <= largest
    assert largest < 1e-38 or got[0, 0].item() == pytest.approx(largest, rel=0.07)


@pytest.mark.parametrize("quantize", [quantize_fp8, quantize_nvfp4])
def test_what_fp32_cannot_hold_is_refused(quantize):
    with pytest.raises(ValueError, match="infinite"):
        quantize(torch.full((1, 16), 1e300, dtype=torch.float64))


@pytest.mark.parametrize("quantize", [quantize_fp8, quantize_nvfp4])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_is_refused(quantize, value):
    tensor = torch.ones(3, 16)
    tensor[1, 7] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize(tensor)


def test_odd_width_is_refused():
    with pytest.raises(ValueError, match="divisible by 16, got 40"):
        quantize_nvfp4(torch.ones(2, 40))


@pytest.mark.parametrize("form", ["fp8", "nvfp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_is_the_product_with_the_dequantized_weight(form, dtype):
    generator = torch.Generator().manual_seed(5)
    weight = as_weight(torch.randn(24, 48, generator=generator), form)
    x = torch.randn(5, 48, generator=generator).to(dtype)
    assert torch.equal(REFERENCE.linear(x, weight), F.linear(x, weight.dequantize(dtype)))


@pytest.mark.parametrize("form", ["fp8", "nvfp4"])
def test_experts_are_taken_one_by_one(form):
    """Scales of another expert, or w1's scale for w3, show: all of them differ here by powers of ten."""
    generator = torch.Generator().manual_seed(6)
    E, F_, D = 4, 16, 32
    spread = 10.0 ** torch.arange(-3, E - 3).reshape(E, 1, 1)
    gate_up = torch.randn(E, 2 * F_, D, generator=generator) * spread
    gate_up[:, F_:] *= 1000
    halves = [[as_weight(half, form) for half in expert.chunk(2)] for expert in gate_up]
    fields = ("codes", "row_scale") if form == "fp8" else ("codes", "group_scale", "row_scale")
    stacked = [torch.stack([torch.cat([getattr(h, f) for h in e]) for e in halves]) for f in fields]
    fused = (Fp8Weight if form == "fp8" else Nvfp4Weight)(*stacked)
    dense = torch.stack([torch.cat([h.dequantize(torch.float32) for h in e]) for e in halves])
    assert torch.equal(fused.dequantize(torch.float32), dense)
    assert (dense - gate_up).norm(dim=-1).max() < 0.12 * gate_up.norm(dim=-1).max()
    down = as_weight(torch.randn(E, D, F_, generator=generator), form)
    x = torch.randn(6, D, generator=generator)
    weights, ids = torch.rand(6, 2, generator=generator), torch.tensor([[0, 1], [3, 2], [1, 3], [0, 3], [2, 1], [3, 0]])
    shared = tuple(as_weight(torch.randn(*shape, generator=generator), form) for shape in ((32, D), (32, D), (D, 32)))
    plain = tuple(weight.dequantize(torch.float32) for weight in shared)
    got = REFERENCE.moe(x, weights, ids, fused, down, shared)
    assert torch.equal(got, REFERENCE.moe(x, weights, ids, dense, down.dequantize(torch.float32), plain))


@pytest.mark.parametrize(("form", "nbytes"), [("fp8", 3 * 8 * 32 + 3 * 8 * 4), ("nvfp4", 3 * 8 * (16 + 2 + 4))])
def test_shape_bytes_and_experts(form, nbytes):
    matrix = torch.randn(8, 32, generator=torch.Generator().manual_seed(7))
    parts = [as_weight(matrix * (e + 1), form) for e in range(3)]
    fields = vars(parts[0]).keys()
    stacked = type(parts[0])(**{f: torch.stack([getattr(part, f) for part in parts]) for f in fields})
    assert stacked.shape == (3, 8, 32) and stacked.nbytes == nbytes and stacked.device.type == "cpu"
    for e, expert in enumerate(stacked.unbind()):
        assert torch.equal(expert.dequantize(torch.float32), parts[e].dequantize(torch.float32))
        assert torch.equal(stacked[e].codes.view(torch.uint8), parts[e].codes.view(torch.uint8))


@pytest.mark.skipif(not instruction_sets(), reason="installed without native code")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30, 0.0])
def test_native_code_quantizes_to_the_same_nvfp4(dtype, size):
    """Every half and every subnormal scale among them: one code off, and what we write is another model."""
    steps = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 0.0, -0.25, -2.5, -5.0, -6.0, 1e-3, -1e-9, 4.9])
    groups = steps * torch.logspace(-12, 3, 64)[:, None]
    noise = torch.randn(64, 48, generator=torch.Generator().manual_seed(1)).exp()
    values = (torch.cat((groups, noise), dim=1) * size).to(dtype)
    codes, group_scale, global_scale = quantize_nvfp4(values)
    reference_codes, reference_scale = formats._nvfp4(values, global_scale.reshape(()))
    assert torch.equal(codes, reference_codes)
    assert torch.equal(group_scale.view(torch.uint8), reference_scale.view(torch.uint8))
