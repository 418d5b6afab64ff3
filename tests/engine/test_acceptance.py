"""Drafting leaves the distribution of sampled answers as it is, for every sampling option; and the test that says so
notices a rule that accepts guesses too easily.

With equal seeds the answers are equal bit for bit (tests/invariants/test_drafting.py). Here the seeds differ, so that
nothing but the distribution can agree: over 12 tokens, two-sample chi-square on the token that was guessed at.
"""

import itertools
import random
from collections import Counter

import pytest
import torch

from tests.engines import request, run, tiny_engine
from tests.tiny import tiny_config, tiny_model
from ventoux.config import Speculation
from ventoux.engine.engine import Engine
from ventoux.engine.sampler import rows_of
from ventoux.ops.reference import REFERENCE

VOCAB = 12
ANSWERS = 500
# A correct sampler fails one comparison in 10,000.
ALPHA = 1e-4
MODEL = tiny_model(tiny_config(vocab_size=VOCAB), seed=3)
OPTIONS = {
    "temperature": {"temperature": 1.3},
    "top-k": {"temperature": 1.5, "top_k": 4},
    "top-p": {"temperature": 1.5, "top_p": 0.7},
    "min-p": {"temperature": 1.5, "min_p": 0.2},
    "penalties": {"temperature": 1.0, "presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.5},
    "bias and minimum": {"temperature": 1.0, "logit_bias": {3: 1.5, 7: -2.0}, "min_tokens": 3, "ignore_eos": False},
}


class TwoTokens:
    """Guesses a likely token and an unlikely one in turn."""

    def __init__(self):
        self.turn = itertools.cycle((3, 1))

    def propose(self, progress):
        return [[next(self.turn) for _ in range(p.wanted)] for p in progress]


def second_tokens(seed, drafting, **params):
    """How often each token came second, None where the answer was over."""
    maker = (lambda runner, plan: TwoTokens()) if drafting else None
    always = Speculation("test", 1, adaptive=False)
    engine = tiny_engine(4096, model=MODEL, make_drafter=maker, speculation=always, max_num_seqs=200)
    asked = request([4, 8, 1, 6], n=100, max_tokens=3, **params)
    counts: Counter = Counter()
    for batch in range(ANSWERS // 100):
        asked.params.seed = seed + batch
        for outputs in run(engine, [asked]).values():
            ids = [t.token_id for o in outputs for t in o.tokens]
            counts[ids[1] if len(ids) > 1 else None] += 1
    assert engine.stats().num_failed == 0
    if drafting:
        assert engine.stats().spec_decode_num_accepted_tokens > ANSWERS / 40
    return counts


def p_value(a, b):
    """Two-sample chi-square of equally many draws, rare cells pooled (Pearson, 1900)."""
    cells = [(a[key], b[key]) for key in a | b]
    common = [cell for cell in cells if sum(cell) >= 20]
    rare = tuple(sum(cell[i] for cell in cells if sum(cell) < 20) for i in range(2))
    common += [rare] if sum(rare) else []
    assert len(common) > 2, "nothing to compare"
    statistic = sum((x - y) ** 2 / (x + y) for x, y in common)
    return float(torch.special.gammaincc(torch.tensor((len(common) - 1) / 2), torch.tensor(statistic / 2)))


@pytest.mark.parametrize("params", OPTIONS.values(), ids=OPTIONS.keys())
def test_same_distribution(params):
    assert p_value(second_tokens(0, False, **params), second_tokens(10_000, True, **params)) > ALPHA


def test_a_rule_that_accepts_too_easily_is_noticed(monkeypatch):
    """Every other guess is taken without looking."""
    honest, rng = Engine._next_token, random.Random(2)

    def easy(self, sequence, row, guess, tokens):
        if guess is not None and rng.random() < 0.5:
            certain_V = torch.full_like(row.logits, -50.0).index_fill(0, torch.tensor([guess]), 50.0)
            (row,) = rows_of(certain_V[None], REFERENCE)
        return honest(self, sequence, row, guess, tokens)

    params = OPTIONS["temperature"]
    plain = second_tokens(0, False, **params)
    monkeypatch.setattr(Engine, "_next_token", easy)
    assert p_value(plain, second_tokens(10_000, True, **params)) < ALPHA
