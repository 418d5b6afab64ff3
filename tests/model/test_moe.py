"""Mixture of experts against its formula, one token and one expert at a time."""

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import tiny_config, tiny_model
from ventoux.model.moe import MoE
from ventoux.ops.reference import REFERENCE


def make(**changes):
    config = tiny_config(vision=False, **changes)
    moe = tiny_model(config).language_model.layers[1].mlp
    assert isinstance(moe, MoE)
    return config.text, moe


def gated(x, gate, up, down):
    return down @ (F.silu(gate @ x) * (up @ x))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_experts_per_tok": 1},
        {"num_experts_per_tok": 5},
        {"routed_scaling_factor": 2.5},
        {"n_shared_experts": 3},
    ],
    ids=str,
)
def test_moe_is_its_formula(changes):
    """Top-k of the softmax over all experts, renormalised; w1 = gate rows, then w3 = up rows; shared one unweighted."""
    text, moe = make(**changes)
    x_TD = torch.randn(9, text.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = moe(x_TD)
        for x, row in zip(x_TD, got, strict=True):
            probs = (moe.gate.weight @ x).softmax(0)
            best = probs.argsort(descending=True)[: text.num_experts_per_tok]
            shared = moe.shared_experts
            wanted = gated(x, shared.gate_proj.weight, shared.up_proj.weight, shared.down_proj.weight)
            for e in best:
                gate, up = moe.experts.gate_up_proj[e].split(text.moe_intermediate_size)
                weight = probs[e] / probs[best].sum() * text.routed_scaling_factor
                wanted = wanted + weight * gated(x, gate, up, moe.experts.down_proj[e])
            assert torch.allclose(row, wanted, atol=1e-5)


def test_router_by_hand():
    """Logits 2, 0, 1: experts 0 and 2, weights softmax(2, 1), whatever the third expert says."""
    x_TD = torch.tensor([[1.0, 0.0]])
    gate_ED = torch.tensor([[2.0, 5.0], [0.0, 5.0], [1.0, 5.0]])
    weights, ids = REFERENCE.route(x_TD, gate_ED, 2, 1.0)
    assert ids.tolist() == [[0, 2]]
    assert weights[0].tolist() == pytest.approx([0.7310586, 0.2689414])


def test_router_decides_in_fp32():
    """In bf16 these two logits are one number, and the choice would be the lower index's."""
    x_TD = torch.ones(1, 3, dtype=torch.bfloat16)
    gate_ED = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.001, 0.0]]).bfloat16()
    _, ids = REFERENCE.route(x_TD, gate_ED, 1, 1.0)
    assert ids.item() == 1


def test_a_token_does_not_depend_on_its_neighbours():
    """Tokens are grouped by expert; a row that lands in the wrong place, or is left out, shows here."""
    text, moe = make()
    x_TD = torch.randn(9, text.hidden_size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        alone = torch.cat([moe(row[None]) for row in x_TD])
        assert torch.allclose(moe(x_TD), alone, atol=1e-6)


def test_gradients_reach_chosen_experts_only():
    """The same class trains the bundled model."""
    text, moe = make()
    moe.requires_grad_(True)
    x_TD = torch.randn(1, text.hidden_size, generator=torch.Generator().manual_seed(3))
    moe(x_TD).square().sum().backward()
    _, (chosen,) = moe.gate(x_TD)
    for e in range(text.n_routed_experts):
        assert bool(moe.experts.gate_up_proj.grad[e].any()) == (e in chosen)
    assert moe.gate.weight.grad.any()
