"""Multi-head latent attention (MLA; DeepSeek-V2, 2024, section 2.1).

What is cached per token is one latent c (kv_lora_rank values, after its norm) and one rotated rope key, shared by all
heads. Two forms give the same result:

* expanded: k = [W_UK c | k_rope], v = W_UV c per head. Needs no cache; used for training and for scoring.
* absorbed: q_nope W_UK meets the latents directly and W_UV follows after the weighted sum, so that cached latents are
  never expanded. Used with a cache, for prefill chunks and decode steps alike.
"""

from __future__ import annotations

import torch
from torch import nn

from ventoux.config import TextConfig
from ventoux.model.layers import Linear, RMSNorm
from ventoux.ops.reference import turned_queries
from ventoux.ops.spec import AttentionLayout, Operators, Positions

Tensor = torch.Tensor


class LatentAttention(nn.Module):
    def __init__(self, config: TextConfig, ops: Operators):
        super().__init__()
        self.config = config
        self.ops = ops
        H, hidden = config.num_attention_heads, config.hidden_size
        self.q_a_proj = Linear(hidden, config.q_lora_rank, ops)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.rms_norm_eps, ops)
        self.q_b_proj = Linear(config.q_lora_rank, H * config.qk_head_dim, ops)
        self.kv_a_proj_with_mqa = Linear(hidden, config.latent_dim, ops)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, config.rms_norm_eps, ops)
        self.kv_b_proj = Linear(config.kv_lora_rank, H * (config.qk_nope_head_dim + config.v_head_dim), ops)
        self.o_proj = Linear(H * config.v_head_dim, hidden, ops)

    def forward(
        self,
        x_TD: Tensor,
        positions: Positions,
        lengths: tuple[int, ...],
        layout: AttentionLayout | None,
        cache_PSX: Tensor | None,
    ) -> Tensor:
        """With a cache the chunk's latents are written first, then read back together with the earlier ones."""
        cfg = self.config
        q_latent_TQ = self.q_a_layernorm(self.q_a_proj(x_TD))
        q_THX = self.q_b_proj(q_latent_TQ).unflatten(-1, (cfg.num_attention_heads, cfg.qk_head_dim))
        kv_TX = self.kv_a_proj_with_mqa(x_TD)
        if cache_PSX is None or layout is None:
            out_THO = self._expanded(q_THX, kv_TX, positions, lengths)
        else:
            norm = self.kv_a_layernorm
            self.ops.write_latent(kv_TX, norm.weight, norm.eps, positions, cache_PSX, layout.slots_T)
            out_THO = self.ops.latent_attention(
                q_THX, self.kv_b_proj.weight, positions, cache_PSX, layout, cfg.softmax_scale
            )
        return self.o_proj(out_THO.flatten(1))

    def _expanded(self, q_THX: Tensor, kv_TX: Tensor, positions: Positions, lengths: tuple[int, ...]) -> Tensor:
        cfg = self.config
        H, N, O, R = cfg.num_attention_heads, cfg.qk_nope_head_dim, cfg.v_head_dim, cfg.qk_rope_head_dim
        kv_latent_TC, k_rope_TR = kv_TX.split((cfg.kv_lora_rank, R), dim=-1)
        k_rope_TR = self.ops.rope(k_rope_TR.unsqueeze(1), positions.cos_TR2, positions.sin_TR2).squeeze(1)
        kv_THX = self.kv_b_proj(self.kv_a_layernorm(kv_latent_TC)).unflatten(-1, (H, N + O))
        k_nope_THN, v_THO = kv_THX.split((N, O), dim=-1)
        q_THX = torch.cat(turned_queries(q_THX, N, positions), dim=-1)
        k_THX = torch.cat((k_nope_THN, k_rope_TR.unsqueeze(1).expand(-1, H, -1)), dim=-1)
        return self.ops.packed_attention(q_THX, k_THX, v_THO, lengths, cfg.softmax_scale, True)
