"""Rotary positions: YaRN for the decoder, two-dimensional for the vision tower. Angles are always formed in fp32."""

from __future__ import annotations

import math
from functools import cache

import torch

from ventoux.config import RopeConfig


@cache
def yarn_inv_freq(rope: RopeConfig, dim: int) -> torch.Tensor:
    """Inverse frequencies f_i [dim / 2], fp32, interpolated by parts (Peng et al., YaRN, 2023, section 3.2).

    Lanes that turn more than `beta_fast` times within the original context keep base^(-2i/dim), lanes that turn less
    than `beta_slow` times are slowed by `factor`, a linear ramp lies between. With the published values (dim 64,
    base 10000, 8192 positions) the ramp runs from lane 12 to lane 25. Made once per config, on the CPU whatever the
    default device is.
    """
    lanes = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    freq = 1.0 / (rope.rope_theta**lanes)
    if rope.factor <= 1.0:
        return freq
    low = max(math.floor(_lane_of(rope.beta_fast, rope, dim)), 0)
    high = min(math.ceil(_lane_of(rope.beta_slow, rope, dim)), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)).clamp(0, 1)
    return freq / rope.factor * ramp + freq * (1 - ramp)


def _lane_of(rotations: float, rope: RopeConfig, dim: int) -> float:
    """The (fractional) lane that turns `rotations` times within the original context."""
    original = rope.original_max_position_embeddings
    return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.rope_theta))


def image_angles(rows: int, cols: int, dim: int, theta: float) -> torch.Tensor:
    """Angles [rows * cols, dim / 2] of a patch grid in raster order, fp32.

    The first half of the lanes turns with the row at the even frequencies g_0, g_2, ..., the second half with the
    column at the odd ones g_1, g_3, ..., where g_j = theta^(-2j/dim) (Pixtral).
    """
    freq = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    by_row = torch.arange(rows, dtype=torch.float32)[:, None] * freq[0::2]
    by_col = torch.arange(cols, dtype=torch.float32)[:, None] * freq[1::2]
    return torch.cat((by_row.repeat_interleave(cols, 0), by_col.repeat(rows, 1)), dim=-1)
