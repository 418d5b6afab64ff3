"""Each sampling step against its definition, and the draw against the distribution."""

from collections import Counter

import numpy as np
import pytest
import torch

from tests.engines import request
from ventoux.engine.request import SamplingParams
from ventoux.engine.sampler import _most_likely, _pick, rows_of, sample, token_logprobs
from ventoux.engine.sequence import Sequence, image_slots
from ventoux.errors import NumericalError
from ventoux.ops.reference import REFERENCE

LOGITS = [2.0, 1.0, 0.5, 0.0, -1.0]


def draw(logits=LOGITS, generated=(), seed=0, prompt_ids=(4,), **params) -> int:
    one = request(list(prompt_ids), **{"temperature": 1.0, "max_tokens": 10_000, **params})
    sequence = Sequence(one, 0, [*prompt_ids, *generated], image_slots([], [], 10, 28))
    return sample(*rows_of(torch.tensor([logits]), REFERENCE), sequence, seed, {3})


def shares(count=3000, **params) -> list[float]:
    drawn = Counter(draw(seed=seed, **params) for seed in range(count))
    return [drawn[i] / count for i in range(len(LOGITS))]


def expected(logits) -> list[float]:
    return torch.tensor(logits).softmax(-1).tolist()


def test_draws_follow_the_softmax():
    assert shares() == pytest.approx(expected(LOGITS), abs=0.03)


def test_temperature_sharpens():
    assert shares(temperature=0.5) == pytest.approx(expected([2 * x for x in LOGITS]), abs=0.03)


def test_top_k_keeps_the_k_most_likely():
    kept = expected(LOGITS[:2])
    assert shares(top_k=2) == pytest.approx([*kept, 0, 0, 0], abs=0.03)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    probs = expected(LOGITS)
    assert probs[0] + probs[1] < 0.8 < sum(probs[:3])
    kept = expected(LOGITS[:3])
    assert shares(top_p=0.8) == pytest.approx([*kept, 0, 0], abs=0.03)


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (0, 0.5, 0.0),
        (0, 0.999, 0.0),
        (-1, 0.9, 0.001),
        (1, 1.0, 0.0),
        (40, 1.0, 0.0),
        (40, 0.5, 0.0),
        (2000, 0.9, 0.002),
    ],
)
@pytest.mark.parametrize("equal", [False, True])
def test_large_vocabularies_are_cut_where_sorting_all_of_them_would(top_k, top_p, min_p, equal):
    """What is not sorted, for speed, must not be missed; with equal ones around the edge, lower ids stay."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 1000).astype(np.float32)
    logits = np.round(logits) if equal else logits
    probs = torch.from_numpy(logits).softmax(-1).numpy().astype(np.float64)
    order = sorted(range(1000), key=lambda i: (-probs[i], i))
    order = [i for i in order if probs[i] >= min_p * probs.max()][: top_k if top_k > 0 else 1000]
    total, mass, kept = sum(probs[i] for i in order), 0.0, []
    for i in order:
        if top_p == 1 or mass < top_p * total:
            kept.append(i)
        mass += probs[i]
    params = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "temperature": 1.0}
    drawn = {draw(logits.tolist(), seed=seed, **params) for seed in range(100)}
    assert drawn <= set(kept)
    # The least likely that stays is hardly ever drawn: ask for it alone.
    alone = SamplingParams(**params)
    ids = _most_likely(np.where(probs >= min_p * probs.max(), probs, 0).astype(np.float32), alone)
    assert ids.tolist() == sorted(kept)


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_a_number_falls_where_the_running_sum_passes_it(count):
    """Across blocks as within them; tokens without a chance are never hit, at the edges neither."""
    probs = np.random.default_rng(count).integers(0, 3, count).astype(np.float32)
    probs[0] = 1
    owners = np.repeat(np.arange(count), probs.astype(int))
    size = len(owners)
    for place in range(size):
        for inside in (0.0, 0.5, 0.999):
            assert _pick(probs, (place + inside) / size) == owners[min(int((place + inside) / size * size), size - 1)]
    assert _pick(probs, np.nextafter(1.0, 0.0)) == owners[-1]


def test_tiny_top_p_is_greedy():
    for top_p in (1e-6, 5e-324):
        assert shares(200, top_p=top_p) == [1, 0, 0, 0, 0]
        assert shares(200, top_p=top_p, min_p=0.1) == [1, 0, 0, 0, 0]


def test_min_p_cuts_relative_to_the_largest():
    probs = expected(LOGITS)
    cut = 0.2
    kept = [p if p >= cut * probs[0] else 0 for p in probs]
    assert 0 in kept
    assert shares(min_p=cut) == pytest.approx([p / sum(kept) for p in kept], abs=0.03)


def test_penalties_and_bias_move_the_argmax():
    greedy = {"temperature": 0.0}
    assert draw(**greedy) == 0
    assert draw(**greedy, generated=[0], presence_penalty=1.5) == 1
    assert draw(**greedy, generated=[0, 0], frequency_penalty=0.6) == 1
    assert draw(**greedy, generated=[0], frequency_penalty=0.6) == 0
    assert draw(**greedy, prompt_ids=[0], repetition_penalty=3.0) == 1
    assert draw(**greedy, prompt_ids=[0], presence_penalty=2.0) == 0  # looks at the answer alone
    assert draw(**greedy, logit_bias={4: 10.0}) == 4


def test_repetition_penalty_pushes_negative_logits_down():
    assert draw([-1.0, -1.5], prompt_ids=[0], repetition_penalty=2.0, temperature=0.0) == 1


def test_a_draw_depends_on_seed_position_and_index_only():
    assert [draw(seed=s) for s in range(20)] == [draw(seed=s) for s in range(20)]
    by_position = {tuple(draw(seed=s, generated=[1] * n) for s in range(20)) for n in range(5)}
    assert len(by_position) == 5


def test_end_tokens_are_barred_until_min_tokens():
    wants_end = [0.0, 0.0, 0.0, 9.0, 0.0]
    assert draw(wants_end, temperature=0.0, min_tokens=1) != 3
    assert draw(wants_end, temperature=0.0, min_tokens=1, generated=[0]) == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_an_error(bad):
    with pytest.raises(NumericalError):
        draw([0.0, bad, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("cut", [{}, {"top_p": 0.9}, {"top_k": 2}])
def test_rules_that_make_logits_infinite_are_an_error(cut):
    """Not a token that nobody chose, nor an index out of range."""
    with pytest.raises(NumericalError):
        draw([2.0, 1.0, 0.0], prompt_ids=[0], repetition_penalty=1e-39, **cut)


def test_logprobs_name_the_chosen_first_with_its_rank():
    ((chosen, *top),) = token_logprobs(torch.tensor([LOGITS]), [2], 3)
    assert (chosen.token_id, chosen.rank) == (2, 3)
    assert [(t.token_id, t.rank) for t in top] == [(0, 1), (1, 2), (2, 3)]
    assert chosen.logprob == pytest.approx(torch.tensor(LOGITS).log_softmax(-1)[2].item())


def test_top_k_larger_than_the_vocabulary_is_no_error():
    assert 0 <= draw(top_k=10**6) < 5


@pytest.mark.parametrize("temperature", [5e-324, 1e-46, 1e-40, 1e-30])
def test_a_temperature_of_next_to_nothing_is_greedy(temperature):
    """Divided by it, logits become infinite and their softmax NaN: any token at all came out."""
    assert {draw([1.0, 30.0, 5.0], temperature=temperature, seed=s) for s in range(20)} == {1}


class OnlyToken:
    """A grammar that allows one token and nothing else."""

    def __init__(self, token_id):
        self.token_id = token_id

    def fill(self, mask):
        mask[:] = False
        mask[self.token_id] = True

    def accept(self, token_id):
        return token_id == self.token_id

    def is_stopped(self):
        return False


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_min_tokens_gives_way_where_the_grammar_allows_an_end_token_only(temperature):
    one = request([4], temperature=temperature, min_tokens=5)
    sequence = Sequence(one, 0, [4], image_slots([], [], 10, 28), OnlyToken(3))
    assert sample(*rows_of(torch.tensor([LOGITS]), REFERENCE), sequence, 0, {3}) == 3
