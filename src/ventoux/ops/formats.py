"""Number formats of stored weights: FP8 (e4m3fn) and NVFP4 (e2m1 with e4m3 group scales), as published.

A quantized weight is a value of codes and scales that stands where a dense [..., F, D] tensor stands: operators take
`Weight`. Arithmetic is weight-only: activations keep their type, and `dequantize` is the definition that every kernel
is held to. Shape letters: see docs/architecture.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ventoux.ops.native import empty, native

Tensor = torch.Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
# The magnitudes of e2m1 by their three bits; bit 3 of a nibble is the sign.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_MAX = 6.0
# Columns that share one NVFP4 group scale.
GROUP = 16
# The smallest e4m3 number above zero.
_FP8_TINY = 2.0**-9
# Values that are quantized at once where the whole would need copies in fp32.
_PIECE = 2**22
# Magnitudes up to the i-th bound get code i or less. Halves round to the even code, so that every second bound belongs
# to the code above it and stands just below the half.
_BOUNDS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


@dataclass(frozen=True, eq=False)
class Fp8Weight:
    """W = codes * row_scale. Files have one scale per matrix (or per half of gate-and-up); it is repeated per row, so
    that each half keeps its own.

    codes: float8_e4m3fn [..., F, D]; row_scale: fp32 [..., F].
    """

    codes: Tensor
    row_scale: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.row_scale.nbytes

    def __getitem__(self, e: int) -> Fp8Weight:
        """Expert `e` of [E, F, D]."""
        return Fp8Weight(self.codes[e], self.row_scale[e])

    def unbind(self) -> tuple[Fp8Weight, ...]:
        """All experts, as views."""
        return tuple(self[e] for e in range(len(self.codes)))

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The dense [..., F, D], computed in fp32 and rounded once."""
        return (self.codes.float() * self.row_scale.unsqueeze(-1)).to(dtype)


@dataclass(frozen=True, eq=False)
class Nvfp4Weight:
    """W = e2m1(code) * group_scale * row_scale.

    codes: uint8 [..., F, D / 2], the even column in the low nibble; group_scale: float8_e4m3fn [..., F, D / 16];
    row_scale: fp32 [..., F], 1 / weight_global_scale of the file (which is a divisor).
    """

    codes: Tensor
    group_scale: Tensor
    row_scale: Tensor

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.codes.shape[:-1], 2 * self.codes.shape[-1]))

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.group_scale.nbytes + self.row_scale.nbytes

    def __getitem__(self, e: int) -> Nvfp4Weight:
        """Expert `e` of [E, F, D]."""
        return Nvfp4Weight(self.codes[e], self.group_scale[e], self.row_scale[e])

    def unbind(self) -> tuple[Nvfp4Weight, ...]:
        """All experts, as views."""
        return tuple(self[e] for e in range(len(self.codes)))

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The dense [..., F, D]. Magnitude times group scale is exact in fp32; the other two steps round."""
        table = torch.tensor((*E2M1, *(-m for m in E2M1)), device=self.device)
        nibbles = torch.stack((self.codes & 15, self.codes >> 4), dim=-1).flatten(-2)
        groups = table[nibbles.int()].unflatten(-1, (-1, GROUP)) * self.group_scale.float().unsqueeze(-1)
        return (groups.flatten(-2) * self.row_scale.unsqueeze(-1)).to(dtype)


QuantizedWeight = Fp8Weight | Nvfp4Weight
Weight = Tensor | Fp8Weight | Nvfp4Weight


def dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    """A dense weight as it is, a quantized one dequantized."""
    return weight if isinstance(weight, Tensor) else weight.dequantize(dtype)


@torch.no_grad()
def quantize_fp8(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """One scale for the whole tensor, amax / 448, as the published FP8 files have it.

    Returns:
        codes float8_e4m3fn of the tensor's shape, and the scale, fp32 [] (1 for a tensor of zeros).

    Raises:
        ValueError: the tensor holds NaN or infinity.
    """
    amax = _amax(tensor)
    # A scale must not be subnormal or zero: then the division could overflow.
    scale = (amax / FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny) if amax > 0 else torch.ones_like(amax)
    codes = empty(tensor.shape, FP8, tensor.device)
    # Piece by piece: a head of 1 GiB in bf16 took another 6 GiB at once, for three copies in fp32.
    for to, values in zip(codes.view(-1).split(_PIECE), tensor.flatten().split(_PIECE), strict=True):
        to.copy_((values.float() / scale).clamp_(-FP8_MAX, FP8_MAX))
    return codes, scale


def quantize_nvfp4(tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Static min-max, as the published NVFP4 files have it: the global scale 448 * 6 / amax brings the group scales,
    amax_group / 6 * global, to the range of e4m3.

    Args:
        tensor: [..., F, D], D divisible by 16.

    Returns:
        codes uint8 [..., F, D / 2], group scales float8_e4m3fn [..., F, D / 16] (never 0, since readers divide by
        them), and the global scale, fp32 [1], a divisor (1 for a tensor of zeros).

    Raises:
        ValueError: the tensor holds NaN or infinity, or D is not divisible by 16.
    """
    if tensor.shape[-1] % GROUP:
        raise ValueError(f"NVFP4 needs a width divisible by {GROUP}, got {tensor.shape[-1]}")
    amax = _amax(tensor)
    largest = torch.finfo(torch.float32).max
    global_scale = (FP8_MAX * E2M1_MAX / amax).clamp(max=largest) if amax > 0 else torch.ones_like(amax)
    natively = native is not None and tensor.is_cpu and tensor.dtype in (torch.bfloat16, torch.float32)
    codes, group_scale = (_nvfp4_natively if natively else _nvfp4)(tensor, global_scale)
    return codes, group_scale, global_scale.reshape(1)


def _nvfp4(tensor: Tensor, global_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and group scales: the definition."""
    values = tensor.float().unflatten(-1, (-1, GROUP))
    wanted = values.abs().amax(-1) / E2M1_MAX * global_scale
    group_scale = wanted.clamp(_FP8_TINY, FP8_MAX).to(FP8)
    scaled = values / (group_scale.float() / global_scale).unsqueeze(-1)
    codes = _round_e2m1(scaled).flatten(-2)
    return codes[..., 0::2] | codes[..., 1::2] << 4, group_scale


def _nvfp4_natively(tensor: Tensor, global_scale: Tensor) -> tuple[Tensor, Tensor]:
    """The same bits, in one pass instead of twenty."""
    assert native is not None
    tensor = tensor.contiguous()
    *rows, width = tensor.shape
    codes = empty((*rows, width // 2), torch.uint8)
    group_scale = empty((*rows, width // GROUP), FP8)
    values = (tensor.data_ptr(), tensor.numel() // width, width, tensor.dtype is torch.bfloat16)
    native.to_nvfp4(values, global_scale.item(), codes.data_ptr(), group_scale.data_ptr())
    return codes, group_scale


def to_fp8(weight: Tensor) -> Fp8Weight:
    """A copy of a dense [F, D] with one scale, as `quantize_fp8` finds it."""
    codes, scale = quantize_fp8(weight)
    return Fp8Weight(codes, scale.repeat(len(codes)))


def to_nvfp4(weight: Tensor) -> Nvfp4Weight:
    """A copy of a dense [F, D] with one global scale, as `quantize_nvfp4` finds it."""
    codes, group_scale, global_scale = quantize_nvfp4(weight)
    return Nvfp4Weight(codes, group_scale, global_scale.reciprocal().repeat(len(codes)))


def nvfp4_bytes(num_values: int) -> int:
    """Codes and group scales; row scales are few."""
    return num_values // 2 + num_values // GROUP


def _round_e2m1(values: Tensor) -> Tensor:
    """Nibbles (uint8) of the nearest e2m1 numbers; beyond 6 they saturate, halves go to the even code."""
    bounds = torch.tensor(_BOUNDS)
    bounds[1::2] = bounds[1::2].nextafter(torch.zeros(()))
    magnitude = torch.bucketize(values.abs(), bounds.to(values.device), out_int32=True).to(torch.uint8)
    return magnitude | (values < 0).to(torch.uint8) << 3


def _amax(values: Tensor) -> Tensor:
    """fp32. Raises ValueError if it is not finite there."""
    if not values.numel():
        return torch.zeros((), device=values.device)
    least, most = values.aminmax()
    amax = torch.maximum(-least, most).float()
    if not amax.isfinite():
        raise ValueError("NaN or infinite values cannot be quantized")
    return amax
