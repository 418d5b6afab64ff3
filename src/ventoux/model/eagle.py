"""The EAGLE draft: a small dense decoder that continues the target's hidden states (Li et al., EAGLE, 2024)."""

from __future__ import annotations

import torch

from ventoux.config import TextConfig
from ventoux.model.decoder import BlockStack, ForwardInputs
from ventoux.model.layers import Linear
from ventoux.ops.spec import Operators

Tensor = torch.Tensor


class Draft(BlockStack):
    """Embeddings and head belong to the target.

    The slot of position P holds the embedding of the token at P + 1 and the target's hidden state (after its final
    norm) at P; the output, after the draft's own norm, predicts the token at P + 2 through the target's head and is
    the hidden state of the next draft step.
    """

    def __init__(self, config: TextConfig, ops: Operators):
        super().__init__(config, ops)
        self.eagle_linear = Linear(2 * config.hidden_size, config.hidden_size, ops)

    def forward(
        self, embeds_TD: Tensor, hidden_TD: Tensor, inputs: ForwardInputs, cache: list[Tensor] | None = None
    ) -> Tensor:
        return self.run(self.eagle_linear(torch.cat((embeds_TD, hidden_TD), dim=-1)), inputs, cache)
