"""Frozen numbers of the published model: a wrong ramp, base or rounding shows as another bit pattern."""

import math

import pytest
import torch

from ventoux.config import RopeConfig, TextConfig
from ventoux.model.rope import image_angles, yarn_inv_freq
from ventoux.ops.reference import REFERENCE

LANES = {
    0: "0x1.0p+0", 1: "0x1.7ff222p-1", 12: "0x1.030dc6p-5", 13: "0x1.66df6cp-6", 18: "0x1.8f8aecp-9",
    24: "0x1.60e2dap-14", 25: "0x1.892918p-18", 31: "0x1.17a8e4p-20",
}  # fmt: skip
SCALES = {0: 1.0, 8191: 1.0, 8192: 1.0693147, 100_000: 1.256495, 1_048_575: 1.485203}


def test_yarn_inverse_frequencies_to_the_bit():
    inv_freq = yarn_inv_freq(RopeConfig(), 64)
    assert inv_freq.dtype == torch.float32 and len(inv_freq) == 32
    for lane, wanted in LANES.items():
        assert inv_freq[lane].item() == float.fromhex(wanted), lane


def test_without_a_factor_there_is_no_interpolation():
    inv_freq = yarn_inv_freq(RopeConfig(factor=1.0), 8)
    assert inv_freq.tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001])


@pytest.mark.parametrize(("position", "wanted"), SCALES.items())
def test_query_scale(position, wanted):
    assert query_scale(position, RopeConfig()) == pytest.approx(wanted, abs=5e-7)


def test_query_scale_can_be_off():
    assert query_scale(500_000, RopeConfig(llama_4_scaling_beta=0.0)) == 1.0


def query_scale(position, rope):
    original = rope.llama_4_original_max_position_embeddings
    placed = REFERENCE.place(torch.tensor([position]), yarn_inv_freq(rope, 8), original, rope.llama_4_scaling_beta)
    return placed.query_scale_T.item()


def test_softmax_scale_has_no_mscale_unless_the_file_says_so():
    """2.2058 times too large, logits still look fine: the best-hidden bug of this family."""
    assert TextConfig().softmax_scale == 0.08838834764831845
    scaled = TextConfig(rope=RopeConfig(apply_scale=True)).softmax_scale
    assert scaled == pytest.approx(0.08838834764831845 * (0.1 * math.log(128) + 1) ** 2)


def test_image_angles_by_hand():
    """head_dim 8, theta 10000: frequencies 1, 0.1, 0.01, 0.001; rows take the even ones, columns the odd ones."""
    angles = image_angles(rows=2, cols=3, dim=8, theta=10_000.0)
    wanted = [[r * 1.0, r * 0.01, c * 0.1, c * 0.001] for r in range(2) for c in range(3)]
    assert torch.allclose(angles, torch.tensor(wanted))
