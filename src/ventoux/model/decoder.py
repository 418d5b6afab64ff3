"""Blocks, the decoder and the call contract of every forward: packed tokens of many sequences, one call for prefill
chunks, decode steps and scoring alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from ventoux.config import TextConfig
from ventoux.model.attention import LatentAttention
from ventoux.model.layers import GatedMLP, RMSNorm
from ventoux.model.moe import MoE
from ventoux.model.rope import yarn_inv_freq
from ventoux.ops.spec import AttentionLayout, LayerWeights, Operators, Positions, StackWeights

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
    # Even where one operator could run all layers: so that hooks see what happens inside. The same bits either way.
    block_by_block: bool = False


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

    @property
    def weights(self) -> LayerWeights:
        a, mlp = self.self_attn, self.mlp
        routed = isinstance(mlp, MoE)
        return LayerWeights(
            input_norm=self.input_layernorm.weight,
            q_a=a.q_a_proj.weight,
            q_a_norm=a.q_a_layernorm.weight,
            q_b=a.q_b_proj.weight,
            kv_a=a.kv_a_proj_with_mqa.weight,
            kv_a_norm=a.kv_a_layernorm.weight,
            kv_b=a.kv_b_proj.weight,
            o=a.o_proj.weight,
            post_norm=self.post_attention_layernorm.weight,
            router=mlp.gate.weight if routed else None,
            gate_up=mlp.experts.gate_up_proj if routed else None,
            down=mlp.experts.down_proj if routed else None,
            mlp=mlp.shared_experts.weights if routed else mlp.weights,
        )


class BlockStack(nn.Module):
    """The layers and the final norm: all that the decoder and the draft have in common."""

    def __init__(self, config: TextConfig, ops: Operators):
        super().__init__()
        self.config = config
        self.ops = ops
        self.layers = nn.ModuleList(Block(config, i, ops) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)

    def run(self, x_TD: Tensor, inputs: ForwardInputs, cache: list[Tensor] | None) -> Tensor:
        """Residual stream in, normed hidden states [T, D] out. `cache` holds one [P, S, latent_dim] per layer."""
        rope = self.config.rope
        inv_freq = yarn_inv_freq(rope, self.config.qk_rope_head_dim).to(x_TD.device)
        original, beta = rope.llama_4_original_max_position_embeddings, rope.llama_4_scaling_beta
        positions = self.ops.place(inputs.positions_T, inv_freq, original, beta)
        run_all = None if inputs.block_by_block else self.ops.layers
        if run_all is not None and cache is not None and inputs.layout is not None:
            return run_all(x_TD, self.weights, positions, cache, inputs.layout)
        for i, layer in enumerate(self.layers):
            x_TD = layer(x_TD, positions, inputs.lengths, inputs.layout, cache[i] if cache is not None else None)
        return self.norm(x_TD)

    @cached_property
    def weights(self) -> StackWeights:
        """The weights by name, for operators that run all layers in one call; gathered once."""
        c = self.config
        return StackWeights(
            layers=tuple(cast(Block, layer).weights for layer in self.layers),
            norm=self.norm.weight,
            num_heads=c.num_attention_heads,
            qk_nope_head_dim=c.qk_nope_head_dim,
            qk_rope_head_dim=c.qk_rope_head_dim,
            kv_lora_rank=c.kv_lora_rank,
            v_head_dim=c.v_head_dim,
            top_k=c.num_experts_per_tok,
            eps=c.rms_norm_eps,
            softmax_scale=c.softmax_scale,
            route_scale=c.routed_scaling_factor,
        )

    def _apply(self, fn, recurse=True):
        """Another type or device: whoever took addresses of the weights must take them again."""
        self.__dict__.pop("weights", None)
        return super()._apply(fn, recurse)


class Decoder(BlockStack):
    """Token ids and image rows in, hidden states after the final norm out [T, D]."""

    def __init__(self, config: TextConfig, ops: Operators):
        super().__init__(config, ops)
        # Uninitialised like all weights here: nn.Embedding's own normal draw costs 1.8 s on the meta device (sympy).
        weight_VD = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(weight_VD, freeze=False)

    def embed(self, inputs: ForwardInputs) -> Tensor:
        x_TD = F.embedding(inputs.token_ids_T, self.embed_tokens.weight)
        if inputs.image_idx_M is not None and inputs.image_rows_MD is not None:
            x_TD = x_TD.index_copy(0, inputs.image_idx_M, inputs.image_rows_MD.to(x_TD.dtype))
        return x_TD

    def forward(self, inputs: ForwardInputs, cache: list[Tensor] | None = None) -> Tensor:
        return self.run(self.embed(inputs), inputs, cache)
