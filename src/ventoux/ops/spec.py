"""The operators that a model is made of. A provider is one value of `Operators`; modules get it as an argument.

A faster provider replaces entries one by one (`dataclasses.replace(REFERENCE, experts=...)`) and is held to the
reference by the same tests. Shape letters: see docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from ventoux.ops.formats import Weight

Tensor = torch.Tensor


@dataclass(frozen=True)
class AttentionLayout:
    """Where the tokens of a packed batch and their cached context lie.

    Sequence i owns the next `lengths[i]` of the T packed tokens: the last ones of its `context_lengths[i]` cached
    tokens. Its cached token j lies in page `pages_NP[i, j // S]`, slot `j % S`.

    Example: S = 4, lengths (1, 3), context_lengths (6, 3), pages [[7, 2], [5, 0]]. Packed token 0 is token 5 of
    sequence 0 and sees pages 7 (4 tokens) and 2 (2 tokens); packed tokens 1..3 are tokens 0..2 of sequence 1, page 5.
    """

    lengths: tuple[int, ...]
    context_lengths: tuple[int, ...]
    pages_NP: Tensor
    slots_T: Tensor


@dataclass(frozen=True)
class Positions:
    """Where each packed token stands, as attention needs it; made once per forward. All fp32."""

    cos_TR2: Tensor
    sin_TR2: Tensor
    query_scale_T: Tensor


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer, for providers that run it in one call.

    `router` is None in a dense layer, whose feed-forward is `mlp` alone; else `mlp` is the shared expert.
    """

    input_norm: Tensor
    q_a: Weight
    q_a_norm: Tensor
    q_b: Weight
    kv_a: Weight
    kv_a_norm: Tensor
    kv_b: Weight
    o: Weight
    post_norm: Tensor
    router: Tensor | None
    gate_up: Weight | None
    down: Weight | None
    mlp: tuple[Weight, Weight, Weight]


@dataclass(frozen=True, eq=False)
class StackWeights:
    """All layers of a decoder or a draft, the norm behind them, and what operators need to know of the config."""

    layers: tuple[LayerWeights, ...]
    norm: Tensor
    num_heads: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    kv_lora_rank: int
    v_head_dim: int
    top_k: int
    eps: float
    softmax_scale: float
    route_scale: float


@dataclass(frozen=True)
class Operators:
    """One provider's operators. Weights are [out, in]; sums and softmax run in fp32 whatever the input type."""

    name: str
    # (x_TD, weight_D, eps) -> x / rms(x) * weight
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    # (x_TD, weight_FD) -> x @ weight.T
    linear: Callable[[Tensor, Weight], Tensor]
    # (x_KD, weight_VD) -> logits x @ weight.T, always fp32: bf16 keeps 8 bits, and logits are compared
    head: Callable[[Tensor, Weight], Tensor]
    # (positions_T, inv_freq, original, beta) -> cosines and sines of position x frequency, and the scale of queries,
    # 1 + beta ln(1 + floor(position / original))
    place: Callable[[Tensor, Tensor, int, float], Positions]
    # (x_THR, cos_TR2, sin_TR2) -> x with the pairs (2i, 2i+1) rotated
    rope: Callable[[Tensor, Tensor, Tensor], Tensor]
    # (kv_TX, norm_C, eps, positions, cache_PSX, slots_T): the first C columns normed, the other R turned, both written
    # into slot page * S + offset
    write_latent: Callable[[Tensor, Tensor, float, Positions, Tensor, Tensor], None]
    # (q_THX, kv_b_GC, positions, cache_PSX, layout, scale) -> out_THO: causal attention over cached latents, absorbed.
    # q is [nope | rope] before rope and query scale; kv_b has N key rows, then O value rows, per head
    latent_attention: Callable[[Tensor, Tensor, Positions, Tensor, AttentionLayout, float], Tensor]
    # (q_THN, k_THN, v_THO, lengths, scale, causal) -> out_THO: attention within each sequence of the packed tokens
    packed_attention: Callable[[Tensor, Tensor, Tensor, tuple[int, ...], float, bool], Tensor]
    # (x_TD, gate_ED, top_k, scale) -> (weights_TK fp32, expert_ids_TK)
    route: Callable[[Tensor, Tensor, int, float], tuple[Tensor, Tensor]]
    # (x_TD, gate_FD, up_FD, down_DF) -> down(silu(gate x) * up x)
    gated_mlp: Callable[[Tensor, Weight, Weight, Weight], Tensor]
    # (x_TD, weights_TK, expert_ids_TK, gate_up_EGD, down_EDF, shared) -> the weighted sum of the chosen experts, plus
    # the shared one (gate, up, down). G = 2F: gate rows, then up rows
    moe: Callable[[Tensor, Tensor, Tensor, Weight, Weight, tuple[Weight, Weight, Weight]], Tensor]
    # (x_KN) -> of each row whether all values are finite; if they are, the place of the first of the largest
    scan: Callable[[Tensor], tuple[list[bool], list[int]]]

    # (x_TD, stack, positions, cache, layout) -> all layers and the norm behind them. None: block by block, through the
    # operators above; where there is one, it gives the same bits
    layers: Callable[[Tensor, StackWeights, Positions, list[Tensor], AttentionLayout], Tensor] | None = None

    def describe(self) -> str:
        """Which provider serves each operator, e.g. `rms_norm=reference, ...`."""
        served = {f.name: getattr(self, f.name) for f in fields(self)[1:]}
        return ", ".join(f"{name}={by.__module__.rsplit('.', 1)[-1]}" for name, by in served.items() if by is not None)
