"""Every operator in plain PyTorch: the definition that all faster ones are held to. Any device, differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ventoux.ops.formats import Weight, dense
from ventoux.ops.spec import AttentionLayout, Operators, Positions

Tensor = torch.Tensor
# Queries per call of the fused kernel: bounds its causal mask (256 x 262144 positions in fp32 are 256 MiB).
QUERY_ROWS = 256


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    x = x_TD.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)).to(x_TD.dtype) * weight_D


def linear(x_TD: Tensor, weight_FD: Weight) -> Tensor:
    return F.linear(x_TD, dense(weight_FD, x_TD.dtype))


def head(x_KD: Tensor, weight_VD: Weight) -> Tensor:
    return linear(x_KD, weight_VD).float()


def place(positions_T: Tensor, inv_freq: Tensor, original: int, beta: float) -> Positions:
    angles_TR2 = positions_T.float()[:, None] * inv_freq
    steps_T = torch.div(positions_T, original, rounding_mode="floor").float()
    return Positions(angles_TR2.cos(), angles_TR2.sin(), 1.0 + beta * torch.log1p(steps_T))


def rope(x_THR: Tensor, cos_TR2: Tensor, sin_TR2: Tensor) -> Tensor:
    cos, sin = cos_TR2.unsqueeze(1), sin_TR2.unsqueeze(1)
    even, odd = x_THR[..., 0::2].float(), x_THR[..., 1::2].float()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x_THR.dtype)


def write_latent(
    kv_TX: Tensor, norm_C: Tensor, eps: float, positions: Positions, cache_PSX: Tensor, slots_T: Tensor
) -> None:
    latent_TC, rope_key_TR = kv_TX.split((len(norm_C), kv_TX.shape[-1] - len(norm_C)), dim=-1)
    rope_key_TR = rope(rope_key_TR.unsqueeze(1), positions.cos_TR2, positions.sin_TR2).squeeze(1)
    row_TX = torch.cat((rms_norm(latent_TC, norm_C, eps), rope_key_TR), dim=-1)
    cache_PSX.flatten(0, 1)[slots_T] = row_TX.to(cache_PSX.dtype)


def turned_queries(q_THX: Tensor, nope: int, positions: Positions) -> tuple[Tensor, Tensor]:
    """[nope | rope] -> both parts, the second one turned, both times the position's query scale."""
    q_nope_THN, q_rope_THR = q_THX.split((nope, q_THX.shape[-1] - nope), dim=-1)
    q_rope_THR = rope(q_rope_THR, positions.cos_TR2, positions.sin_TR2)
    # The scale multiplies the whole query after rope. In fp32: 1.0693 is not a bf16 number.
    s4_T11 = positions.query_scale_T[:, None, None]
    return (q_nope_THN.float() * s4_T11).to(q_THX.dtype), (q_rope_THR.float() * s4_T11).to(q_THX.dtype)


def latent_attention(
    q_THX: Tensor, kv_b_GC: Tensor, positions: Positions, cache_PSX: Tensor, layout: AttentionLayout, scale: float
) -> Tensor:
    """q_nope W_UK meets the latents directly, and W_UV follows after the weighted sum: nothing cached is expanded."""
    H, R = q_THX.shape[1], 2 * positions.cos_TR2.shape[1]
    N = q_THX.shape[-1] - R
    w_uk_HNC, w_uv_HOC = kv_b_GC.unflatten(0, (H, -1)).tensor_split((N,), dim=1)
    q_nope_THN, q_rope_THR = turned_queries(q_THX, N, positions)
    q_latent_THC = torch.einsum("thn,hnc->thc", q_nope_THN, w_uk_HNC)
    out_THC = attend_latents(q_latent_THC, q_rope_THR, cache_PSX, layout, scale)
    return torch.einsum("thc,hoc->tho", out_THC, w_uv_HOC)


def attend_latents(
    q_latent_THC: Tensor, q_rope_THR: Tensor, cache_PSX: Tensor, layout: AttentionLayout, scale: float
) -> Tensor:
    """One sequence at a time: gather its pages, then attend with the cached rows as keys and as values.

    The values proper are the first C columns of the keys. Weighing the R others as well costs little and lets torch's
    fused kernel, which wants keys and values of one width, do it without ever holding scores [H, T, S].
    """
    C, num_slots = q_latent_THC.shape[-1], cache_PSX.shape[1]
    queries_THX = torch.cat((q_latent_THC, q_rope_THR), dim=-1)
    outs = []
    for i, query_THX in enumerate(queries_THX.split(layout.lengths)):
        length, context = layout.lengths[i], layout.context_lengths[i]
        pages = layout.pages_NP[i, : -(-context // num_slots)]
        keys_SX = cache_PSX[pages].flatten(0, 1)[:context].to(queries_THX.dtype)
        for start in range(0, length, QUERY_ROWS):
            stop = min(start + QUERY_ROWS, length)
            seen = context - length + stop
            outs.append(_attend(query_THX[start:stop], keys_SX[:seen], scale)[..., :C])
    return torch.cat(outs)


def _attend(query_THX: Tensor, keys_SX: Tensor, scale: float) -> Tensor:
    """Attention of the last T of S positions to all S, one key for all heads, keys being values too."""
    T, H, _ = query_THX.shape
    if T == 1:
        # All heads share the keys, so that they can be the rows of one product.
        keys_11SX = keys_SX[None, None]
        return F.scaled_dot_product_attention(query_THX.unsqueeze(0), keys_11SX, keys_11SX, scale=scale).squeeze(0)
    seen_TS = torch.ones(T, len(keys_SX), dtype=torch.bool, device=keys_SX.device).tril(len(keys_SX) - T)
    keys_1HSX = keys_SX.expand(1, H, -1, -1)
    query_1HTX = query_THX.transpose(0, 1).unsqueeze(0)
    out_1HTX = F.scaled_dot_product_attention(query_1HTX, keys_1HSX, keys_1HSX, attn_mask=seen_TS, scale=scale)
    return out_1HTX.squeeze(0).transpose(0, 1)


def packed_attention(
    q_THN: Tensor, k_THN: Tensor, v_THO: Tensor, lengths: tuple[int, ...], scale: float, causal: bool
) -> Tensor:
    outs = []
    for q, k, v in zip(q_THN.split(lengths), k_THN.split(lengths), v_THO.split(lengths), strict=True):
        # torch has its fused CPU kernel for four axes only, hence the batch of one.
        q_1HTN, k_1HTN, v_1HTO = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out_1HTO = F.scaled_dot_product_attention(q_1HTN, k_1HTN, v_1HTO, is_causal=causal, scale=scale)
        outs.append(out_1HTO.squeeze(0).transpose(0, 1))
    return torch.cat(outs)


def route(x_TD: Tensor, gate_ED: Tensor, top_k: int, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax over all experts in fp32, the k largest, renormalised to sum 1, times the routed scale."""
    probs_TE = F.linear(x_TD.float(), gate_ED.float()).softmax(-1)
    weights_TK, expert_ids_TK = probs_TE.topk(top_k, dim=-1)
    return weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20) * scale, expert_ids_TK


def gated_mlp(x_TD: Tensor, gate_FD: Weight, up_FD: Weight, down_DF: Weight) -> Tensor:
    return linear(F.silu(linear(x_TD, gate_FD)) * linear(x_TD, up_FD), down_DF)


def moe(
    x_TD: Tensor,
    weights_TK: Tensor,
    expert_ids_TK: Tensor,
    gate_up_EGD: Weight,
    down_EDF: Weight,
    shared: tuple[Weight, Weight, Weight],
) -> Tensor:
    """Choices sorted by expert, one product per chosen expert, and back; each row adds its K in their order."""
    top_k = expert_ids_TK.shape[1]
    choice_X = expert_ids_TK.flatten().argsort(stable=True)
    counts = torch.bincount(expert_ids_TK.flatten(), minlength=gate_up_EGD.shape[0]).tolist()
    # Unbound once: the gradient of gate_up_EGD[e] would be a whole [E, G, D] of zeros per expert.
    sorted_XD = x_TD.index_select(0, choice_X // top_k)
    outs = []
    for x_RD, gate_up_GD, down_DF in zip(sorted_XD.split(counts), gate_up_EGD.unbind(), down_EDF.unbind(), strict=True):
        if len(x_RD):
            gate_RF, up_RF = linear(x_RD, gate_up_GD).chunk(2, dim=-1)
            outs.append(linear(F.silu(gate_RF) * up_RF, down_DF))
    out_TKD = torch.cat(outs).index_select(0, choice_X.argsort()).unflatten(0, (-1, top_k)).float()
    out_TD = (out_TKD * weights_TK.unsqueeze(-1)).sum(1)
    return out_TD.to(x_TD.dtype) + gated_mlp(x_TD, *shared)


def scan(x_KN: Tensor) -> tuple[list[bool], list[int]]:
    """What is not finite shows in the extremes, which take 2 ms of 32 x 131072 fp32 on one core; isfinite takes 21."""
    finite = torch.stack((x_KN.amax(-1), x_KN.amin(-1))).isfinite().all(0).tolist()
    return finite, [first if good else 0 for first, good in zip(largest_of(x_KN), finite, strict=True)]


def largest_of(x_KN: Tensor) -> list[int]:
    """The first of the largest of each row. numpy looks at 16 values at a time: on one core 0.8 ms for 32 x 131072,
    torch 7.9."""
    if x_KN.device.type == "cpu":
        return x_KN.float().numpy().argmax(-1).tolist()
    return x_KN.argmax(-1).tolist()


REFERENCE = Operators(
    name="reference",
    rms_norm=rms_norm,
    linear=linear,
    head=head,
    place=place,
    rope=rope,
    write_latent=write_latent,
    latent_attention=latent_attention,
    packed_attention=packed_attention,
    route=route,
    gated_mlp=gated_mlp,
    moe=moe,
    scan=scan,
)
