"""Where training starts: fan-in scaled noise, and one induction head laid out by hand.

A small model that sees ten million tokens spends most of them on finding out how to copy: first a head that looks at
the previous token, then one that looks for the place where the current token stood before and reads what came after it
(Olsson et al., In-context Learning and Induction Heads, 2022). Both are put there at the start, in the first head of
the first two layers, through random subspaces of the residual stream; training may keep, move or drop them.
"""

from __future__ import annotations

import math
from typing import cast

import torch

from ventoux.model.attention import LatentAttention
from ventoux.model.decoder import Block
from ventoux.model.mistral4 import Mistral4
from ventoux.model.rope import yarn_inv_freq

Tensor = torch.Tensor
EMBED_STD = 0.5
CONSTANT = 2.0  # coordinate 0 of every embedding: what rope-only queries and keys are made of
# Score of the previous-token head per rope lane at its peak: lane 0 tells neighbours apart, slower lanes tell lane 0's
# repeats apart (a turn takes 6.3 tokens).
LANE_SCORES = (10.0, 6.0, 6.0, 4.0, 4.0, 2.0, 2.0, 2.0)


@torch.no_grad()
def initialise(model: Mistral4, seed: int) -> None:
    """Normal weights of variance 1 / fan-in; what writes into the residual stream is scaled down by sqrt(2 L)."""
    generator = torch.Generator().manual_seed(seed)
    depth = math.sqrt(2 * model.config.text.num_hidden_layers)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            torch.nn.init.ones_(p)
            continue
        fan_in = p[0].numel() if "patch_conv" in name else p.shape[-1]
        std = EMBED_STD if "embed_tokens" in name else fan_in**-0.5
        if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
            std /= depth
        torch.nn.init.normal_(p, 0.0, std, generator=generator)
    embeddings = model.language_model.embed_tokens.weight
    embeddings[:, 0] = CONSTANT
    # A head that reads embeddings back out: what a head copies into the stream is what comes out as logits.
    model.lm_head.weight.copy_(embeddings * (0.5 / (EMBED_STD * embeddings.shape[1] ** 0.5)))
    model.lm_head.weight[:, 0] = 0.0
    _lay_out_induction(model, generator)


def _lay_out_induction(model: Mistral4, generator: torch.Generator) -> None:
    config = model.language_model.config
    D, O, N = config.hidden_size, config.v_head_dim, config.qk_nope_head_dim
    basis, _ = torch.linalg.qr(torch.randn(D - 1, 2 * O, generator=generator))
    # `token` spans what is read of a token's embedding, `before` where the previous token's is noted.
    token_OD, before_OD = torch.nn.functional.pad(basis.T, (1, 0)).split(O)
    match_ON, _ = torch.linalg.qr(torch.randn(O, N, generator=generator))
    first, second = (cast(Block, layer) for layer in list(model.language_model.layers)[:2])
    _previous_token_head(first.self_attn, token_OD, before_OD)
    _matching_head(second.self_attn, token_OD, before_OD, match_ON.T)


def _previous_token_head(attention: LatentAttention, token_OD: Tensor, before_OD: Tensor) -> None:
    """Head 0 scores by distance alone, highest at 1, and notes the token it finds there."""
    c = attention.config
    C, N, O, R = c.kv_lora_rank, c.qk_nope_head_dim, c.v_head_dim, c.qk_rope_head_dim
    inv_freq = yarn_inv_freq(c.rope, R)
    size = (torch.tensor(LANE_SCORES[: R // 2]) * math.sqrt(c.qk_head_dim)).sqrt()
    # q at p times k at p - 1 is largest when q is turned back by one token's angle.
    k_R = torch.stack((size, torch.zeros_like(size)), -1).flatten()
    q_R = torch.stack((size * inv_freq.cos(), -size * inv_freq.sin()), -1).flatten()
    constant = CONSTANT / math.sqrt(EMBED_STD**2 + CONSTANT**2 / c.hidden_size)
    attention.kv_a_proj_with_mqa.weight[C:] = 0.0
    attention.kv_a_proj_with_mqa.weight[C:, 0] = k_R / constant
    attention.kv_a_proj_with_mqa.weight[:O] = token_OD
    q_a, q_b = attention.q_a_proj.weight, attention.q_b_proj.weight.unflatten(0, (-1, N + R))
    q_a[0] = 0.0
    q_a[0, 0] = 6.0 / constant
    after_norm = 6.0 / math.sqrt((c.q_lora_rank - 1 + 36.0) / c.q_lora_rank)
    q_b[:, N:] *= 0.1  # the other heads meet the same large rope key
    q_b[:, :, 0] = 0.0
    q_b[0] = 0.0
    q_b[0, N:, 0] = q_R / after_norm
    kv_b = attention.kv_b_proj.weight.unflatten(0, (-1, N + O))
    kv_b[0] = 0.0
    kv_b[0, N:, :O] = torch.eye(O)
    attention.o_proj.weight[:, :O] = before_OD.T


def _matching_head(attention: LatentAttention, token_OD: Tensor, before_OD: Tensor, match_NO: Tensor) -> None:
    """Head 0 looks where the previous token was the current one, and copies the token that stands there."""
    c = attention.config
    N, O, R = c.qk_nope_head_dim, c.v_head_dim, c.qk_rope_head_dim
    sharpness = 2.2
    attention.q_a_proj.weight[:O] = 1.4 * token_OD
    q_b = attention.q_b_proj.weight.unflatten(0, (-1, N + R))
    q_b[0] = 0.0
    q_b[0, :N, :O] = sharpness * match_NO
    attention.kv_a_proj_with_mqa.weight[:O] = 0.7 * before_OD
    attention.kv_a_proj_with_mqa.weight[O : 2 * O] = 1.4 * token_OD
    kv_b = attention.kv_b_proj.weight.unflatten(0, (-1, N + O))
    kv_b[0] = 0.0
    kv_b[0, :N, :O] = sharpness * match_NO
    kv_b[0, N:, O : 2 * O] = torch.eye(O)
    attention.o_proj.weight[:, :O] = 1.5 * token_OD.T
