"""Self-tests that need nothing but this installation: does this machine compute what it should?

Operators are held to naive loops in float64 on odd sizes, absorbed attention to expanded attention, the tokenizer to a
known prompt, and the bundled model to repeating itself.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ventoux.config import TextConfig
from ventoux.model.decoder import Decoder, ForwardInputs
from ventoux.ops.spec import AttentionLayout, Operators, Positions

# fp32 sums of a few dozen terms of order 1.
TOLERANCE = 1e-4
# The chat prompt of "Hi" in the whole vocabulary, id by id.
GOLDEN_PROMPT = [1, 36, 19227, 80277, 1302, 13196, 1609, 1449, 2811, 1429, 17670, 46005, 37, 3, 37133, 4]

CONFIG = TextConfig(
    hidden_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    vocab_size=97,
    q_lora_rank=24,
    kv_lora_rank=20,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=10,
    moe_intermediate_size=28,
    n_routed_experts=5,
    num_experts_per_tok=2,
)


class SelfTestError(Exception):
    """Something computes what it should not; the message says what."""


@dataclass(frozen=True)
class Outcome:
    name: str
    passed: bool
    seconds: float
    detail: str


def run_checks(providers: list[Operators], bundled: Path | None) -> list[Outcome]:
    """Runs all of them, whatever fails. `bundled` is the bundled model's folder; None leaves its check out."""
    checks: list[tuple[str, Callable[[], str]]] = []
    for ops in providers:
        mark = f"{ops.name}: "
        checks += [
            (f"{mark}operator {name}", lambda check=check, ops=ops: check(ops))
            for name, check in OPERATOR_CHECKS.items()
        ]
        checks.append((f"{mark}absorbed attention = expanded", lambda ops=ops: check_absorbed(ops)))
    checks.append(("tokenizer", check_tokenizer))
    if bundled is not None:
        checks.append(("generation with the bundled model", lambda: check_generation(bundled)))
    return [_run(name, check) for name, check in checks]


def _run(name: str, check: Callable[[], str]) -> Outcome:
    started = time.perf_counter()
    try:
        detail, passed = check(), True
    except Exception as error:
        # Whatever goes wrong in here is what the user wants to know.
        detail, passed = (str(error) if isinstance(error, SelfTestError) else repr(error)), False
    return Outcome(name, passed, time.perf_counter() - started, detail)


# ---------------------------------------------------------------------------------------------------------- operators


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def _compare(got: torch.Tensor, want: np.ndarray) -> str:
    if tuple(got.shape) != want.shape:
        raise SelfTestError(f"shape {tuple(got.shape)}, expected {want.shape}")
    error = float(np.abs(got.double().numpy() - want).max())
    if not error <= TOLERANCE:  # NaN fails too
        raise SelfTestError(f"off by {error:.2g}; at most {TOLERANCE} is allowed")
    return f"largest error {error:.1e}"


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _rms_norm(ops: Operators) -> str:
    x, weight = _random(5, 19), _random(19)
    rows = x.double().numpy()
    want = [row / math.sqrt((row**2).mean() + 1e-6) * weight.double().numpy() for row in rows]
    return _compare(ops.rms_norm(x, weight, 1e-6), np.array(want))


def _product(product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> str:
    x, weight = _random(5, 19), _random(11, 19)
    want = [[sum(a * b for a, b in zip(row, out, strict=True)) for out in weight.tolist()] for row in x.tolist()]
    return _compare(product(x, weight), np.array(want))


def _rope(ops: Operators) -> str:
    x, angles = _random(5, 3, 8), _random(5, 4)
    want = np.empty((5, 3, 8))
    for t, h, i in np.ndindex(5, 3, 4):
        turn = complex(math.cos(angles[t, i]), math.sin(angles[t, i]))
        turned = complex(x[t, h, 2 * i], x[t, h, 2 * i + 1]) * turn
        want[t, h, 2 * i : 2 * i + 2] = turned.real, turned.imag
    return _compare(ops.rope(x, angles.cos(), angles.sin()), want)


# A decode step behind 5 cached tokens and a prompt of 3, in scattered pages of 4 slots.
_PAGES = [[7, 2], [5, 0]]
_LAYOUT = AttentionLayout(
    lengths=(1, 3),
    context_lengths=(6, 3),
    pages_NP=torch.tensor(_PAGES),
    slots_T=torch.tensor([2 * 4 + 1, 5 * 4, 5 * 4 + 1, 5 * 4 + 2]),
)


def _turned(pairs: np.ndarray, angles: torch.Tensor) -> np.ndarray:
    """Neighbours (2i, 2i + 1) of the last axis as complex numbers, turned by angle i."""
    turned = (pairs[..., 0::2] + 1j * pairs[..., 1::2]) * np.exp(1j * angles.double().numpy())
    return np.stack((turned.real, turned.imag), axis=-1).reshape(pairs.shape)


def _positions(angles: torch.Tensor) -> Positions:
    return Positions(angles.cos(), angles.sin(), torch.linspace(1, 1.5, len(angles)))


def _write_latent(ops: Operators) -> str:
    cache, kv, norm, angles = _random(8, 4, 11), _random(4, 11), _random(7), _random(4, 2)
    want = cache.double().numpy().copy()
    for t, slot in enumerate(_LAYOUT.slots_T.tolist()):
        row = kv[t].double().numpy()
        latent = row[:7] / math.sqrt((row[:7] ** 2).mean() + 1e-6) * norm.double().numpy()
        want[slot // 4, slot % 4] = [*latent, *_turned(row[7:], angles[t])]
    ops.write_latent(kv, norm, 1e-6, _positions(angles), cache, _LAYOUT.slots_T)
    return _compare(cache, want)


def _latent_attention(ops: Operators) -> str:
    """Three heads of 5 nope and 4 rope columns, values of 6, over latents of 7."""
    q, kv_b, cache, angles = _random(4, 3, 9), _random(3 * 11, 7), _random(8, 4, 11), _random(4, 2)
    positions = _positions(angles)
    queries, cached, weights = q.double().numpy(), cache.double().numpy(), kv_b.double().numpy().reshape(3, 11, 7)
    want = np.empty((4, 3, 6))
    t = 0
    for i, (length, context) in enumerate(zip(_LAYOUT.lengths, _LAYOUT.context_lengths, strict=True)):
        for seen in range(context - length + 1, context + 1):
            rows = np.array([cached[_PAGES[i][j // 4], j % 4] for j in range(seen)])
            for h in range(3):
                rope = _turned(queries[t, h, 5:], angles[t])
                keys = rows[:, :7] @ weights[h, :5].T
                scores = (keys @ queries[t, h, :5] + rows[:, 7:] @ rope) * float(positions.query_scale_T[t]) * 0.3
                want[t, h] = _softmax(scores) @ (rows[:, :7] @ weights[h, 5:].T)
            t += 1
    return _compare(ops.latent_attention(q, kv_b, positions, cache, _LAYOUT, 0.3), want)


def _packed_attention(ops: Operators) -> str:
    q, k, v = _random(7, 3, 9), _random(7, 3, 9) + 0.1, _random(7, 3, 5)
    queries, keys, values = (x.double().numpy() for x in (q, k, v))
    detail = ""
    for causal in (True, False):
        want = np.empty((7, 3, 5))
        for first, last in ((0, 4), (4, 7)):
            for t in range(first, last):
                seen = slice(first, t + 1 if causal else last)
                for h in range(3):
                    want[t, h] = _softmax(keys[seen, h] @ queries[t, h] * 0.3) @ values[seen, h]
        detail = _compare(ops.packed_attention(q, k, v, (4, 3), 0.3, causal), want)
    return detail


def _route(ops: Operators) -> str:
    x, gate = _random(6, 13), _random(5, 13)
    weights, expert_ids = ops.route(x, gate, 2, 1.5)
    want_weights, want_ids = [], []
    for row in x.double().numpy():
        probs = _softmax(gate.double().numpy() @ row)
        best = np.argsort(-probs)[:2]
        want_ids.append(best)
        want_weights.append(probs[best] / probs[best].sum() * 1.5)
    if expert_ids.tolist() != np.array(want_ids).tolist():
        raise SelfTestError("other experts were chosen")
    return _compare(weights, np.array(want_weights))


def _mlp(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> np.ndarray:
    row, g, u, d = (t.double().numpy() for t in (x, gate, up, down))
    return d @ (_silu(g @ row) * (u @ row))


def _gated_mlp(ops: Operators) -> str:
    x, gate, up, down = _random(6, 13), _random(9, 13) / 3, _random(9, 13) / 4, _random(13, 9) / 3
    return _compare(ops.gated_mlp(x, gate, up, down), np.array([_mlp(row, gate, up, down) for row in x]))


def _moe(ops: Operators) -> str:
    x, gate_up, down = _random(6, 13), _random(5, 14, 13) / 3, _random(5, 13, 7) / 3
    shared = (_random(9, 13) / 3, _random(9, 13) / 4, _random(13, 9) / 3)
    weights, expert_ids = _random(6, 2).abs(), torch.tensor([[0, 1], [4, 1], [1, 0], [2, 4], [4, 2], [0, 4]])
    want = np.array([_mlp(row, *shared) for row in x])
    for t, k in np.ndindex(6, 2):
        e = int(expert_ids[t, k])
        gate, up = gate_up[e].chunk(2)
        want[t] += float(weights[t, k]) * _mlp(x[t], gate, up, down[e])
    return _compare(ops.moe(x, weights, expert_ids, gate_up, down, shared), want)


def _place(ops: Operators) -> str:
    positions, inv_freq = [0, 1, 8191, 8192, 100_000], [1.0, 0.5, 0.25]
    placed = ops.place(torch.tensor(positions), torch.tensor(inv_freq), 8192, 0.1)
    got = torch.cat((placed.cos_TR2, placed.sin_TR2, placed.query_scale_T[:, None]), dim=1)
    turns = [[f(p * x) for f in (math.cos, math.sin) for x in inv_freq] for p in positions]
    return _compare(
        got, np.array([[*t, 1 + 0.1 * math.log1p(p // 8192)] for t, p in zip(turns, positions, strict=True)])
    )


def _scan(ops: Operators) -> str:
    inf, nan = math.inf, math.nan
    rows = [
        [-1.0, 3.0, 3.0, 2.0],
        [1.0, nan, 0.0, 0.0],
        [-2.0, -3.0, -2.5, -1.0],
        [0.0, 1.0, 2.0, -inf],
        [inf, 1, 2, 3],
    ]
    got, want = ops.scan(torch.tensor(rows)), ([True, False, True, False, False], [1, 0, 3, 0, 0])
    if got != want:
        raise SelfTestError(f"found {got}, expected {want}")
    return "as it should be"


OPERATOR_CHECKS: dict[str, Callable[[Operators], str]] = {
    "rms_norm": _rms_norm,
    "linear": lambda ops: _product(ops.linear),
    "head": lambda ops: _product(ops.head),
    "rope": _rope,
    "write_latent": _write_latent,
    "latent_attention": _latent_attention,
    "packed_attention": _packed_attention,
    "route": _route,
    "gated_mlp": _gated_mlp,
    "moe": _moe,
    "place": _place,
    "scan": _scan,
}


# ---------------------------------------------------------------------------------------------------------- the whole


@torch.inference_mode()
def check_absorbed(ops: Operators) -> str:
    """A decoder without a cache (expanded) and with one, in two chunks (absorbed), across position 8192."""
    decoder = Decoder(CONFIG, ops)
    for parameter in decoder.parameters():
        values = _random(*parameter.shape)
        parameter.copy_(1 + 0.2 * values if parameter.dim() == 1 else values / parameter.shape[-1] ** 0.5)
    ids, positions = torch.arange(11, 18), torch.arange(8189, 8196)
    want = decoder(ForwardInputs(ids, positions, (7,)))
    cache = [torch.zeros(3, 4, CONFIG.latent_dim) for _ in range(CONFIG.num_hidden_layers)]
    slots = torch.tensor([8, 9, 10, 11, 0, 1, 2])
    parts = []
    for start, stop in ((0, 5), (5, 7)):
        layout = AttentionLayout((stop - start,), (stop,), torch.tensor([[2, 0]]), slots[start:stop])
        inputs = ForwardInputs(ids[start:stop], positions[start:stop], (stop - start,), layout)
        parts.append(decoder(inputs, cache))
    return _compare(torch.cat(parts), want.double().numpy())


def check_tokenizer() -> str:
    from ventoux.text.tekken import write_tekken
    from ventoux.text.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer.from_file(write_tekken(folder))
        ids = tokenizer.encode_chat([{"role": "user", "content": "Hi"}]).token_ids
    if ids != GOLDEN_PROMPT:
        raise SelfTestError(f"the prompt is {ids}, expected {GOLDEN_PROMPT}")
    return f"{len(ids)} ids as they should be"


def check_generation(folder: Path) -> str:
    """The same greedy answer twice, the second time from the prefix cache."""
    from ventoux.engine.request import SamplingParams
    from ventoux.llm import LLM

    params = SamplingParams(temperature=0, max_tokens=32)
    with LLM(folder, max_model_len=512) as llm:
        first, second = (llm.chat([{"role": "user", "content": "Hello!"}], params).outputs[0] for _ in range(2))
    if not first.text.strip():
        raise SelfTestError(f"the answer is empty (token ids {first.token_ids})")
    if first.token_ids != second.token_ids:
        raise SelfTestError(f"two answers to one question differ: {first.text!r}, {second.text!r}")
    return f'"{first.text.strip()[:60]}"'
