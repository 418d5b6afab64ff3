"""Blocks, the decoder and the call contract of every forward: packed tokens of many sequences, one call for prefill
chunks, decode steps and scoring alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ventoux.config import TextConfig
from ventoux.model.attention import LatentAttention
from ventoux.model.layers import GatedMLP, RMSNorm
from ventoux.model.moe import MoE
from ventoux.model.rope import query_scale, yarn_inv_freq
from ventoux.ops.spec import AttentionLayout, Operators, Positions

Tensor = torch.Tensor


@dataclass(frozen=True)
class ForwardInputs:
    """T packed tokens of N sequences.

    `lengths[i]` tokens belong to sequence i. `image_rows_MD` replaces the embeddings at the packed indices
    `image_idx_M`. `layout` is None when there is no cache: then each sequence must be whole, from position 0 on or
    from wherever `positions_T` says.
    """

    token_ids_T: Tensor
    positions_T: Tensor
    lengths: tuple[int, ...]
    layout: AttentionLayout | None = None
    image_idx_M: Tensor | None = None
    image_rows_MD: Tensor | None = None


class Block(nn.Module):
    """x + MLA(norm(x)), then x + MoE(norm(x)); the feed-forward is dense where the config says so (the draft)."""

    def __init__(self, config: TextConfig, layer: int, ops: Operators):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)
        self.self_attn = LatentAttention(config, ops)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)
        dense = config.is_dense(layer)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, ops) if dense else MoE(config, ops)

    def forward(
        self,
        x_TD: Tensor,
        positions: Positions,
        lengths: tuple[int, ...],
        layout: AttentionLayout | None,
        cache_PSX: Tensor | None,
    ) -> Tensor:
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), positions, lengths, layout, cache_PSX)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))


class BlockStack(nn.Module):
    """The layers and the final norm: all that the decoder and the draft have in common."""

    def __init__(self, config: TextConfig, ops: Operators):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config, i, ops) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)

    def run(self, x_TD: Tensor, inputs: ForwardInputs, cache: list[Tensor] | None) -> Tensor:
        """Residual stream in, normed hidden states [T, D] out. `cache` holds one [P, S, latent_dim] per layer."""
        rope = self.config.rope
        inv_freq = yarn_inv_freq(rope, self.config.qk_rope_head_dim).to(x_TD.device)
        angles_TR2 = inputs.positions_T.float()[:, None] * inv_freq
        positions = Positions(angles_TR2.cos(), angles_TR2.sin(), query_scale(inputs.positions_T, rope))
        for i, layer in enumerate(self.layers):
            x_TD = layer(x_TD, positions, inputs.lengths, inputs.layout, cache[i] if cache is not None else None)
        return self.norm(x_TD)


class Decoder(BlockStack):
    """Token ids and image rows in, hidden states after the final norm out [T, D]."""

    def __init__(self, config: TextConfig, ops: Operators):
        super().__init__(config, ops)
        # Uninitialised like all weights here: nn.Embedding's own normal draw costs 1.8 s on the meta device (sympy).
        weight_VD = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(weight_VD, freeze=False)

    def embed(self, inputs: ForwardInputs) -> Tensor:
        x_TD = self.embed_tokens(inputs.token_ids_T)
        if inputs.image_idx_M is not None and inputs.image_rows_MD is not None:
            x_TD = x_TD.index_copy(0, inputs.image_idx_M, inputs.image_rows_MD.to(x_TD.dtype))
        return x_TD

    def forward(self, inputs: ForwardInputs, cache: list[Tensor] | None = None) -> Tensor:
        return self.run(self.embed(inputs), inputs, cache)
