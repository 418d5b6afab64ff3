"""The whole model: decoder, head, vision tower and projector. The same class serves and trains."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ventoux.config import ModelConfig
from ventoux.model.decoder import Decoder, ForwardInputs
from ventoux.model.layers import Linear
from ventoux.model.vision import Projector, VisionTower
from ventoux.ops.spec import Operators

Tensor = torch.Tensor


class Mistral4(nn.Module):
    """`forward` gives hidden states after the final norm [T, D]; `logits` applies the head to chosen rows, fp32."""

    def __init__(self, config: ModelConfig, ops: Operators):
        super().__init__()
        self.config = config
        self.ops = ops
        self.language_model = Decoder(config.text, ops)
        self.lm_head = Linear(config.text.hidden_size, config.text.vocab_size, ops)
        if config.text.tie_word_embeddings:
            self.lm_head.weight = cast(nn.Parameter, self.language_model.embed_tokens.weight)
        if config.vision is not None:
            self.vision_tower = VisionTower(config.vision, ops)
            self.multi_modal_projector = Projector(config.vision, config.text.hidden_size, ops)

    def forward(self, inputs: ForwardInputs, cache: list[Tensor] | None = None) -> Tensor:
        return self.language_model(inputs, cache)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        return self.ops.head(hidden_TD, self.lm_head.weight)

    def encode_images(self, images: list[Tensor]) -> list[Tensor]:
        """Normalised pixels [3, H, W] each -> rows [merged patches, D] each, in the order of their [IMG] tokens."""
        grids = [self.vision_tower.grid(image) for image in images]
        rows = self.multi_modal_projector(self.vision_tower(images), grids)
        merge = self.multi_modal_projector.patch_merger.merge**2
        return list(rows.split([h * w // merge for h, w in grids]))
