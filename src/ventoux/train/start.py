"""Where training starts: fan-in scaled noise, and an induction circuit laid out by hand.

A small model that sees ten million tokens spends most of them on finding out how to copy: first heads that look at the
tokens just before, then one that looks for the place where the current tokens stood before and reads what came after
them (Olsson et al., In-context Learning and Induction Heads, 2022). They are put there at the start, in the first heads
of the first two layers, through random subspaces of the residual stream; training may keep, move or drop them.

The circuit compares three tokens. Numbers are written digit by digit and digits repeat: after "17, 1" one token of
context finds the 1 of "17" and of "14" alike.
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
# Score of a previous-token head per rope lane at its peak: lane 0 tells neighbours apart, slower lanes tell lane 0's
# repeats apart (a turn takes 6.3 tokens).
LANE_SCORES = (10.0, 6.0, 6.0, 4.0, 4.0, 2.0, 2.0, 2.0)
# Score of the matching head for agreement in the current token, the one before, and the one before that. The current
# token weighs more than both others together: agreement without it is no agreement.
MATCH_SCORES = (14.0, 8.0, 5.0)
CODE = 16  # width of the random code by which tokens are compared


@torch.no_grad()
def fan_in_noise(module: torch.nn.Module, num_layers: int, generator: torch.Generator) -> None:
    """Norms at one; what writes into the residual stream scaled down by sqrt(2 L); embeddings at EMBED_STD."""
    depth = math.sqrt(2 * num_layers)
    for name, p in module.named_parameters():
        if p.ndim == 1:
            torch.nn.init.ones_(p)
            continue
        fan_in = p[0].numel() if "patch_conv" in name else p.shape[-1]
        std = EMBED_STD if "embed_tokens" in name else fan_in**-0.5
        if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
            std /= depth
        torch.nn.init.normal_(p, 0.0, std, generator=generator)


@torch.no_grad()
def initialise(model: Mistral4, seed: int) -> None:
    """Normal weights of variance 1 / fan-in; what writes into the residual stream is scaled down by sqrt(2 L)."""
    generator = torch.Generator().manual_seed(seed)
    fan_in_noise(model, model.config.text.num_hidden_layers, generator)
    embeddings = model.language_model.embed_tokens.weight
    embeddings[:, 0] = CONSTANT
    # A head that reads embeddings back out: what a head copies into the stream is what comes out as logits.
    model.lm_head.weight.copy_(embeddings * (0.5 / (EMBED_STD * embeddings.shape[1] ** 0.5)))
    model.lm_head.weight[:, 0] = 0.0
    _lay_out_induction(model, generator)


def _lay_out_induction(model: Mistral4, generator: torch.Generator) -> None:
    config = model.language_model.config
    D, O, depth = config.hidden_size, config.v_head_dim, len(MATCH_SCORES)
    basis, _ = torch.linalg.qr(torch.randn(D - 1, O + depth * CODE, generator=generator))
    # `token` spans what is read of a token's embedding, `before` where the codes of the tokens before it are noted.
    token_OD, before_BD = torch.nn.functional.pad(basis.T, (1, 0)).split((O, depth * CODE))
    code_OC, _ = torch.linalg.qr(torch.randn(O, CODE, generator=generator))
    first, second = (cast(Block, layer) for layer in list(model.language_model.layers)[:2])
    _previous_token_heads(first.self_attn, token_OD, before_BD, code_OC.T)
    _matching_head(second.self_attn, token_OD, before_BD, code_OC.T)


def _previous_token_heads(attention: LatentAttention, token_OD: Tensor, before_BD: Tensor, code_CO: Tensor) -> None:
    """Head h scores by distance alone, highest at h + 1, and notes the code of the token that it finds there."""
    c = attention.config
    C, N, O, R = c.kv_lora_rank, c.qk_nope_head_dim, c.v_head_dim, c.qk_rope_head_dim
    inv_freq = yarn_inv_freq(c.rope, R)
    size = (torch.tensor(LANE_SCORES[: R // 2]) * math.sqrt(c.qk_head_dim)).sqrt()
    k_R = torch.stack((size, torch.zeros_like(size)), -1).flatten()
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
    kv_b = attention.kv_b_proj.weight.unflatten(0, (-1, N + O))
    for head in range(len(before_BD) // CODE):
        # q at p times k at p - d is largest when q is turned back by d tokens' angle.
        angle = inv_freq * (head + 1)
        q_R = torch.stack((size * angle.cos(), -size * angle.sin()), -1).flatten()
        q_b[head] = 0.0
        q_b[head, N:, 0] = q_R / after_norm
        kv_b[head] = 0.0
        kv_b[head, N : N + CODE, :O] = code_CO
        attention.o_proj.weight[:, head * O : head * O + CODE] = before_BD[head * CODE : (head + 1) * CODE].T


def _matching_head(attention: LatentAttention, token_OD: Tensor, before_BD: Tensor, code_CO: Tensor) -> None:
    """Head 0 looks where the tokens before were the current ones, and copies the token that stands there."""
    c = attention.config
    N, O, R = c.qk_nope_head_dim, c.v_head_dim, c.qk_rope_head_dim
    B = len(before_BD)  # codes compared: the current token's and those noted before it, less the earliest
    gain_B = (torch.tensor(MATCH_SCORES) * math.sqrt(c.qk_head_dim) / CODE).sqrt().repeat_interleave(CODE)
    attention.q_a_proj.weight[:CODE] = 1.4 * code_CO @ token_OD
    attention.q_a_proj.weight[CODE:B] = 0.7 * before_BD[: B - CODE]
    q_b = attention.q_b_proj.weight.unflatten(0, (-1, N + R))
    q_b[0] = 0.0
    q_b[0, :B, :B] = gain_B.diag()
    attention.kv_a_proj_with_mqa.weight[:B] = 0.7 * before_BD
    attention.kv_a_proj_with_mqa.weight[B : B + O] = 1.4 * token_OD
    kv_b = attention.kv_b_proj.weight.unflatten(0, (-1, N + O))
    kv_b[0] = 0.0
    kv_b[0, :B, :B] = gain_B.diag()
    kv_b[0, N:, B : B + O] = torch.eye(O)
    attention.o_proj.weight[:, :O] = 1.5 * token_OD.T
