"""Mixture of experts: out = sum over the top-k of w_e E_e(x), plus the shared expert S(x), unweighted."""

from __future__ import annotations

import torch
from torch import nn

from ventoux.config import TextConfig
from ventoux.model.layers import GatedMLP
from ventoux.ops.spec import Operators

Tensor = torch.Tensor


class Router(nn.Module):
    """Softmax router without a correction bias; grouping is a no-op in this family (one group)."""

    def __init__(self, config: TextConfig, ops: Operators):
        super().__init__()
        self.ops = ops
        self.top_k = config.num_experts_per_tok
        self.scale = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        return self.ops.route(x_TD, self.weight, self.top_k, self.scale)


class Experts(nn.Module):
    """All routed experts of a layer in two tensors; in `gate_up_proj` the gate rows come before the up rows."""

    def __init__(self, config: TextConfig):
        super().__init__()
        E, D, F = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * F, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, F))


class MoE(nn.Module):
    def __init__(self, config: TextConfig, ops: Operators):
        super().__init__()
        self.ops = ops
        self.gate = Router(config, ops)
        self.experts = Experts(config)
        self.shared_experts = GatedMLP(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts, ops)

    def forward(self, x_TD: Tensor) -> Tensor:
        weights_TK, expert_ids_TK = self.gate(x_TD)
        routed, shared = self.experts, self.shared_experts.weights
        return self.ops.moe(x_TD, weights_TK, expert_ids_TK, routed.gate_up_proj, routed.down_proj, shared)
