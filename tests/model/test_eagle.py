"""The draft against the published formulas written out once more, plainly: one token at a time, loops over heads."""

import math

import pytest
import torch

from tests.tiny import tiny_draft, tiny_draft_config
from ventoux.config import RopeConfig
from ventoux.model.decoder import ForwardInputs

ROPE = RopeConfig(factor=8.0, original_max_position_embeddings=32, llama_4_original_max_position_embeddings=32)


def norm(x, weight, eps):
    return x / math.sqrt(sum(v * v for v in x.tolist()) / len(x) + eps) * weight


def frequencies(rope, dim):
    """YaRN: lanes that turn more than beta_fast times in the original context stay, those below beta_slow slow down."""

    def lane(turns):
        return dim * math.log(rope.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(10000.0))

    low, high = max(math.floor(lane(32.0)), 0), min(math.ceil(lane(1.0)), dim - 1)
    found = []
    for i in range(dim // 2):
        plain = 10000.0 ** (-2 * i / dim)
        ramp = min(max((i - low) / ((high - low) or 0.001), 0.0), 1.0)
        found.append(plain / rope.factor * ramp + plain * (1 - ramp))
    return found


def turned(x, position, freqs):
    out = x.clone()
    for i, f in enumerate(freqs):
        a, b, angle = x[2 * i], x[2 * i + 1], position * f
        out[2 * i], out[2 * i + 1] = (
            a * math.cos(angle) - b * math.sin(angle),
            a * math.sin(angle) + b * math.cos(angle),
        )
    return out


def plain_draft(draft, embeds, hidden, first_position):
    """u = W [embedding | hidden state], two dense layers, the final norm: states [T, D]."""
    c, rope = draft.config, draft.config.rope
    N, R, O, C = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim, c.kv_lora_rank
    freqs = frequencies(rope, R)
    xs = [draft.eagle_linear.weight @ torch.cat((e, h)) for e, h in zip(embeds, hidden, strict=True)]
    for layer in draft.layers:
        a, keys, outs = layer.self_attn, [], []
        for t, x in enumerate(xs):
            position = first_position + t
            h = norm(x, layer.input_layernorm.weight, c.rms_norm_eps)
            q = a.q_b_proj.weight @ norm(a.q_a_proj.weight @ h, a.q_a_layernorm.weight, c.rms_norm_eps)
            kv = a.kv_a_proj_with_mqa.weight @ h
            latent = norm(kv[:C], a.kv_a_layernorm.weight, c.rms_norm_eps)
            keys.append((a.kv_b_proj.weight @ latent, turned(kv[C:], position, freqs)))
            scale = 1 + rope.llama_4_scaling_beta * math.log(
                1 + position // rope.llama_4_original_max_position_embeddings
            )
            heads = []
            for i in range(c.num_attention_heads):
                q_head = q[i * (N + R) : (i + 1) * (N + R)]
                q_head = scale * torch.cat((q_head[:N], turned(q_head[N:], position, freqs)))
                expanded = [(kv_b[i * (N + O) : (i + 1) * (N + O)], k_rope) for kv_b, k_rope in keys]
                scores = torch.stack([q_head @ torch.cat((kv_b[:N], k_rope)) for kv_b, k_rope in expanded])
                weights = torch.softmax(scores / math.sqrt(N + R), 0)
                heads.append(sum(w * kv_b[N:] for w, (kv_b, _) in zip(weights, expanded, strict=True)))
            outs.append(x + a.o_proj.weight @ torch.cat(heads))
        xs = []
        for x in outs:
            h = norm(x, layer.post_attention_layernorm.weight, c.rms_norm_eps)
            gate = layer.mlp.gate_proj.weight @ h
            xs.append(x + layer.mlp.down_proj.weight @ (gate / (1 + torch.exp(-gate)) * (layer.mlp.up_proj.weight @ h)))
    return torch.stack([norm(x, draft.norm.weight, c.rms_norm_eps) for x in xs])


@pytest.mark.parametrize("first_position", [0, 27, 5000])
def test_states_agree_with_the_formulas(first_position):
    """Across the positions where YaRN's and the query scale's first period ends (32), and far beyond."""
    draft = tiny_draft(tiny_draft_config(rope=ROPE))
    generator = torch.Generator().manual_seed(1)
    embeds, hidden = torch.randn(2, 9, draft.config.hidden_size, generator=generator)
    inputs = ForwardInputs(torch.zeros(9, dtype=torch.long), torch.arange(first_position, first_position + 9), (9,))
    with torch.no_grad():
        want = plain_draft(draft, embeds, hidden, first_position)
        assert torch.allclose(draft(embeds, hidden, inputs), want, atol=1e-4)
        swapped = draft(hidden, embeds, inputs)
    assert (swapped - want).abs().max() > 0.1, "which half is the embedding's must matter"
