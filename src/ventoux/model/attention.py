"""Multi-head latent attention (MLA; DeepSeek-V2, 2024, section 2.1).

What is cached per token is one latent c (kv_lora_rank values, after its norm) and one rotated rope key, shared by all
heads. Two forms give the same result:

* expanded: k = [W_UK c | k_rope], v = W_UV c per head. Needs no cache; used for training and for scoring.
* absorbed: q_nope W_UK meets the latents directly and W_UV follows after the weighted sum, so that cached latents are
  never expanded. Used with a cache, for prefill chunks and decode steps alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ventoux.config import TextConfig
from ventoux.model.layers import Linear, RMSNorm
from ventoux.ops.spec import AttentionLayout, Operators

Tensor = torch.Tensor


@dataclass(frozen=True)
class Positions:
    """What attention needs to know about where each packed token stands; made once per forward."""

    cos_TR2: Tensor
    sin_TR2: Tensor
    query_scale_T: Tensor


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
        H, N, R = cfg.num_attention_heads, cfg.qk_nope_head_dim, cfg.qk_rope_head_dim
        q_latent_TQ = self.q_a_layernorm(self.q_a_proj(x_TD))
        q_THX = self.q_b_proj(q_latent_TQ).unflatten(-1, (H, N + R))
        q_nope_THN, q_rope_THR = q_THX.split((N, R), dim=-1)
        q_rope_THR = self.ops.rope(q_rope_THR, positions.cos_TR2, positions.sin_TR2)
        # The scale multiplies the whole query after rope. In fp32: 1.0693 is not a bf16 number.
        s4_T11 = positions.query_scale_T[:, None, None]
        q_nope_THN = (q_nope_THN.float() * s4_T11).to(x_TD.dtype)
        q_rope_THR = (q_rope_THR.float() * s4_T11).to(x_TD.dtype)

        kv_latent_TC, k_rope_TR = self.kv_a_proj_with_mqa(x_TD).split((cfg.kv_lora_rank, R), dim=-1)
        kv_latent_TC = self.kv_a_layernorm(kv_latent_TC)
        k_rope_TR = self.ops.rope(k_rope_TR.unsqueeze(1), positions.cos_TR2, positions.sin_TR2).squeeze(1)

        if cache_PSX is None or layout is None:
            out_THO = self._expanded(q_nope_THN, q_rope_THR, kv_latent_TC, k_rope_TR, lengths)
        else:
            self.ops.write_latent(kv_latent_TC, k_rope_TR, cache_PSX, layout.slots_T)
            out_THO = self._absorbed(q_nope_THN, q_rope_THR, cache_PSX, layout)
        return self.o_proj(out_THO.flatten(1))

    def _expanded(
        self, q_nope_THN: Tensor, q_rope_THR: Tensor, kv_latent_TC: Tensor, k_rope_TR: Tensor, lengths: tuple[int, ...]
    ) -> Tensor:
        cfg = self.config
        H, N, O = cfg.num_attention_heads, cfg.qk_nope_head_dim, cfg.v_head_dim
        k_nope_THN, v_THO = self.kv_b_proj(kv_latent_TC).unflatten(-1, (H, N + O)).split((N, O), dim=-1)
        q_THX = torch.cat((q_nope_THN, q_rope_THR), dim=-1)
        k_THX = torch.cat((k_nope_THN, k_rope_TR.unsqueeze(1).expand(-1, H, -1)), dim=-1)
        return self.ops.packed_attention(q_THX, k_THX, v_THO, lengths, cfg.softmax_scale, True)

    def _absorbed(self, q_nope_THN: Tensor, q_rope_THR: Tensor, cache_PSX: Tensor, layout: AttentionLayout) -> Tensor:
        cfg = self.config
        H, N, O = cfg.num_attention_heads, cfg.qk_nope_head_dim, cfg.v_head_dim
        w_uk_HNC, w_uv_HOC = self.kv_b_proj.weight.unflatten(0, (H, N + O)).split((N, O), dim=1)
        q_latent_THC = torch.einsum("thn,hnc->thc", q_nope_THN, w_uk_HNC)
        out_THC = self.ops.latent_attention(q_latent_THC, q_rope_THR, cache_PSX, layout, cfg.softmax_scale)
        return torch.einsum("thc,hoc->tho", out_THC, w_uv_HOC)
