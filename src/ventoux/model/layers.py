"""The small parts: Linear, RMSNorm, the gated MLP. Weights are plain parameters; operators come as an argument."""

from __future__ import annotations

import torch
from torch import nn

from ventoux.ops.formats import Weight
from ventoux.ops.spec import Operators


class Linear(nn.Module):
    """y = x @ weight.T, no bias (the family has none)."""

    def __init__(self, in_features: int, out_features: int, ops: Operators):
        super().__init__()
        self.ops = ops
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ops.linear(x, self.weight)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich, 2019)."""

    def __init__(self, size: int, eps: float, ops: Operators):
        super().__init__()
        self.ops = ops
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)): the shared expert, the draft's dense layer and the vision block (Shazeer, 2020)."""

    def __init__(self, hidden_size: int, intermediate_size: int, ops: Operators):
        super().__init__()
        self.ops = ops
        self.gate_proj = Linear(hidden_size, intermediate_size, ops)
        self.up_proj = Linear(hidden_size, intermediate_size, ops)
        self.down_proj = Linear(intermediate_size, hidden_size, ops)

    @property
    def weights(self) -> tuple[Weight, Weight, Weight]:
        return self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ops.gated_mlp(x, *self.weights)
