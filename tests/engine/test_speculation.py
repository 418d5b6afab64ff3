"""How much is guessed, and by whom: the pace follows what guesses bring, drafters see every position once."""

import random

import numpy as np
import pytest
import torch

from tests.engines import generate, image, image_tokens, prompt, request, run, tiny_engine
from tests.tiny import tiny_draft, tiny_draft_config, tiny_model
from ventoux.config import Speculation, StoredWeights
from ventoux.engine.drafting import ROWS_BEHIND, EagleDrafter, NgramDrafter, Progress
from ventoux.engine.pace import Pace
from ventoux.model.decoder import ForwardInputs

EAGLE = Speculation("eagle", 3, StoredWeights(0), tiny_draft_config().text.cached_values, adaptive=False)


def play(pace, tokens, seconds, steps=4000, sequences=1):
    """Steps of the given yields and costs by number of guesses: how often each number was chosen, and the rate."""
    chosen, brought, passed = [0] * (pace.most + 1), 0.0, 0.0
    guesses = pace.choose(sequences)
    for _ in range(steps):
        step = tokens(guesses), seconds[guesses]
        chosen[guesses] += 1
        brought, passed = brought + step[0], passed + step[1]
        guesses = pace.choose(sequences)
        pace.note(*step)
    return chosen, brought / passed


def luck(acceptance, seed=0):
    """Tokens of a step in which each guess comes true with a chance, as long as those before it did."""
    rng = random.Random(seed)
    return lambda guesses: 1 + next((i for i in range(guesses) if rng.random() >= acceptance), guesses)


@pytest.mark.parametrize(
    ("tokens", "best"),
    [([1, 1, 1, 1], 0), ([1, 1.9, 2.7, 3.4], 3), ([1, 1.8, 1.85, 1.87], 1)],
    ids=["never true", "mostly true", "only the first"],
)
def test_the_pace_finds_what_pays(tokens, best):
    """Each guess costs a tenth of a step."""
    chosen, _ = play(Pace(3), tokens.__getitem__, [1.0, 1.1, 1.2, 1.3])
    assert chosen.index(max(chosen)) == best and max(chosen) > 3400


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("cost", [0.1, 0.33, 1.0])
@pytest.mark.parametrize("most", [3, 16])
def test_guessing_costs_at_most_three_percent_and_brings_what_it_can(most, cost, acceptance, seed):
    """Whether a guess costs a tenth of a step or a whole one, finding out included: 4000 steps, the first ones too.
    What is near the best by less than luck scatters is as good (a tenth; for 17 numbers to choose from, a fifth)."""
    seconds = [1 + cost * k for k in range(most + 1)]
    rates = [sum(acceptance**i for i in range(k + 1)) / seconds[k] for k in range(most + 1)]
    _, rate = play(Pace(most), luck(acceptance, seed), seconds)
    assert rate > 0.97
    assert rate > max(rates) * (0.9 if most == 3 else 0.8)


def test_an_unlucky_start_is_not_for_ever():
    """Text that cannot be guessed, then text that can."""
    pace, seconds = Pace(3), [1.0, 1.1, 1.2, 1.3]
    hard, _ = play(pace, luck(0.0), seconds)
    easy, _ = play(pace, luck(0.9), seconds)
    assert hard[0] > 3000 and easy[3] > 3000


def test_the_pace_is_one_for_few_and_another_for_many():
    pace = Pace(3)
    for _ in range(3):
        few, _ = play(pace, [1, 2, 3, 4].__getitem__, [1.0] * 4, steps=300, sequences=1)
        many, _ = play(pace, [32, 40, 48, 56].__getitem__, [1.0, 2.0, 3.0, 4.0], steps=300, sequences=32)
    assert few[3] > 250 and many[0] > 250


def test_a_draft_reads_few_prompts_while_guesses_do_not_pay():
    """The bundled model's draft takes as long for a prompt as the model does."""
    pace = Pace(3)
    assert pace.reads_prompt(1), "nothing is known yet"
    play(pace, luck(0.0), [1.0, 1.5, 2.0, 2.5])
    assert sum(pace.reads_prompt(1) for _ in range(320)) == 10
    play(pace, luck(0.9), [1.0, 1.1, 1.2, 1.3])
    assert pace.reads_prompt(1)


def test_not_adaptive_is_always_the_most():
    assert [Pace(3, adaptive=False).choose(n) for n in (1, 64, 2)] == [3, 3, 3]


def continuation(token_ids, wanted=3, **options):
    class Known:
        def __init__(self):
            self.token_ids = token_ids

    return NgramDrafter(**options).propose([Progress(Known(), 0, torch.zeros(1, 1), wanted)])[0]


@pytest.mark.parametrize(
    ("token_ids", "guess"),
    [
        ([1, 2, 3, 4, 9, 1, 2, 3, 4], [9, 1, 2]),
        ([7, 1, 2, 8, 8, 9, 1, 2, 6, 1, 2], [6, 1, 2]),  # the last place where they stood
        ([5, 1, 2, 3, 6, 0, 2, 3, 7, 1, 2, 3], [6, 0, 2]),  # three tokens tell more than two
        ([1, 2, 3, 4], []),
        ([1], []),
        ([4, 4, 4, 4], [4, 4, 4]),  # a text that repeats itself goes on repeating itself
        ([8, 1, 2, 1, 2], [1, 2, 1]),
        ([256, 1, 0, 2, 1, 256], []),
    ],
)
def test_prompt_lookup(token_ids, guess):
    assert continuation(token_ids) == guess


def test_prompt_lookup_sees_no_further_than_its_window_and_takes_no_more_than_wanted():
    ids = [1, 2, 3, *range(10, 30), 1, 2]
    assert continuation(ids) == [3, 10, 11] and continuation(ids, wanted=1) == [3] and continuation(ids, wanted=0) == []
    assert continuation(ids, window=20) == []


def test_prompt_lookup_follows_a_growing_sequence():
    class Known:
        token_ids = (1, 2, 3)

    drafter, sequence = NgramDrafter(), Known()
    progress = [Progress(sequence, 0, torch.zeros(1, 1), 2)]
    sequence.token_ids = [1, 2, 3]
    assert drafter.propose(progress) == [[]]
    sequence.token_ids = [1, 2, 3, 1, 2]
    assert drafter.propose(progress) == [[3, 1]]


class Watched(EagleDrafter):
    """Remembers its proposals by how many tokens were known."""

    def __init__(self, *args):
        super().__init__(*args)
        self.proposals = {}

    def propose(self, progress):
        found = super().propose(progress)
        for p, ids in zip(progress, found, strict=True):
            self.proposals[p.sequence.request.request_id, len(p.sequence.token_ids)] = ids
        return found


def watched(choose, **choices):
    """The proposals of a draft for three prompts, with `choose(step)` guesses."""
    engine = tiny_engine(
        1024,
        make_drafter=lambda runner, plan: Watched(tiny_draft(tiny_draft_config()), runner, plan),
        speculation=EAGLE,
        enable_prefix_caching=False,
        **choices,
    )
    steps = iter(range(10**6))
    engine.speculation.pace.choose = lambda num_sequences, num_unfollowed: choose(next(steps))
    asked = [request(prompt(9 + 40 * i, seed=i), f"r{i}", max_tokens=ROWS_BEHIND + 12) for i in range(3)]
    run(engine, asked)
    return engine.speculation.drafter.proposals


def test_a_draft_catches_up_on_what_it_has_not_seen():
    """Nine steps without guesses, then one with: the same as if it had looked at every step; in chunks as well."""
    always = watched(lambda step: 3)
    now_and_then = watched(lambda step: 3 if step % 10 == 9 else 0)
    chunked = watched(lambda step: 3 if step % 10 == 9 else 0, max_num_batched_tokens=16)
    for found in (now_and_then, chunked):
        guessed = {key: ids for key, ids in found.items() if ids}
        assert len(guessed) > 15
        assert all(always[key] == ids for key, ids in guessed.items() if key in always)
        assert sum(key in always for key in guessed) > 10


def test_states_that_nobody_asks_for_are_forgotten():
    """An hour of answers without guesses must not keep the states of all of it."""
    rows = []

    class Counting(EagleDrafter):
        def propose(self, progress):
            found = super().propose(progress)
            rows.extend(b.stop - b.start for b in self._behind.values())
            return found

    engine = tiny_engine(
        1024,
        make_drafter=lambda runner, plan: Counting(tiny_draft(tiny_draft_config()), runner, plan),
        speculation=EAGLE,
    )
    engine.speculation.pace.choose = lambda num_sequences, num_unfollowed: 0
    run(engine, [request(prompt(9), max_tokens=ROWS_BEHIND + 60)])
    assert max(rows) == ROWS_BEHIND and len(rows) > ROWS_BEHIND + 40
    assert not engine.speculation.drafter._behind, "ended sequences leave nothing"


@pytest.mark.parametrize(("max_tokens", "max_model_len"), [(1, 160), (2, 160), (9, 160), (100, 24)])
def test_no_guess_beyond_the_end(max_tokens, max_model_len):
    """Neither the positions of the context nor the tokens of the answer are exceeded, and none is missing."""

    class Right:
        def propose(self, progress):
            assert all(p.wanted <= 3 for p in progress)
            assert all(len(p.sequence.token_ids) + p.wanted < max_model_len for p in progress if p.wanted)
            return [known[p.sequence.num_generated :][: p.wanted] for p in progress]

    asked = request(prompt(10), max_tokens=max_tokens)
    (known,) = generate(tiny_engine(max_model_len=max_model_len), asked)
    engine = tiny_engine(make_drafter=lambda runner, plan: Right(), speculation=EAGLE, max_model_len=max_model_len)
    assert generate(engine, asked) == [known] and len(known) == min(max_tokens, max_model_len - 10)


@pytest.mark.parametrize(
    "choices", [{}, {"num_pages": 30, "max_model_len": 90}, {"max_num_batched_tokens": 7}], ids=str
)
def test_guesses_are_those_of_the_draft_without_a_cache(choices):
    """All of it written out: true states everywhere, tokens and images one ahead, then the draft's own states."""
    model, draft = tiny_model(), tiny_draft(tiny_draft_config())
    picture = image(2, 3, seed=1)
    asked = [
        request([*prompt(9, 1), *image_tokens(2, 3), *prompt(5, 2)], "image", images=[picture], max_tokens=20),
        *(request(prompt(20 + i, seed=i), f"r{i}", max_tokens=25) for i in range(3)),
    ]

    def by_hand(ids, pixels, count):
        guessed, own = [], []
        while len(guessed) < count:
            tokens = [*ids, *guessed]
            rows = {}
            if pixels is not None:
                at = torch.tensor([i for i, t in enumerate(tokens) if t == 10])
                rows = {"image_idx_M": at, "image_rows_MD": model.encode_images([pixels])[0]}
            inputs = ForwardInputs(torch.tensor(tokens), torch.arange(len(tokens)), (len(tokens),), **rows)
            embeds = model.language_model.embed(inputs)[1:]
            hidden = torch.cat([model(inputs)[: len(ids) - 1], *own])
            slots = ForwardInputs(torch.tensor(tokens[1:]), torch.arange(len(tokens) - 1), (len(tokens) - 1,))
            state = draft(embeds, hidden, slots)[-1:]
            own.append(state)
            guessed.append(int(model.logits(state).argmax()))
        return guessed

    seen = []

    class Remembering(EagleDrafter):
        def propose(self, progress):
            found = super().propose(progress)
            seen.extend(
                (p.sequence.request, list(p.sequence.token_ids), g) for p, g in zip(progress, found, strict=True)
            )
            return found

    engine = tiny_engine(
        **{"num_pages": 512, **choices},
        model=model,
        make_drafter=lambda runner, plan: Remembering(draft, runner, plan),
        speculation=EAGLE,
        enable_prefix_caching=False,
    )
    run(engine, asked)
    assert (engine.scheduler.num_preemptions > 0) == ("num_pages" in choices)
    guesses = [(r, ids, g) for r, ids, g in seen if len(g) == 3]
    pixels = torch.tensor(np.frombuffer(picture.pixels, "<f4").reshape(3, picture.height, picture.width).copy())
    assert len(guesses) > 20 and any(r.images for r, _, _ in guesses)
    with torch.inference_mode():
        right = [g == by_hand(ids, pixels if r.images else None, 3) for r, ids, g in guesses[::3]]
    assert sum(right) >= 0.95 * len(right), "near ties apart, all of them"


def test_no_prompt_waits_for_guesses():
    """Four decodes with three guesses each would fill a budget of 16: a prompt of 40 tokens takes three more steps."""

    class Wrong:
        def propose(self, progress):
            return [[1000] * p.wanted for p in progress]

    engine = tiny_engine(1024, make_drafter=lambda r, p: Wrong(), speculation=EAGLE, max_num_batched_tokens=16)
    for i in range(4):
        engine.add(request(prompt(4, i), f"r{i}", max_tokens=60))
    for _ in range(6):
        engine.step()
    engine.add(request(prompt(40, 9), "late", max_tokens=2))
    steps = 0
    while not any(o.request_id == "late" and o.tokens for o in engine.step()):
        steps += 1
    assert steps <= 4


@pytest.mark.parametrize("bad", [[1000] * 40, [None] * 3, [5000] * 3, [-1] * 3], ids=["many", "none", "high", "low"])
def test_a_drafter_that_proposes_nonsense_costs_only_its_guesses(bad):
    class Nonsense:
        def propose(self, progress):
            return [bad for _ in progress]

    asked = request(prompt(10), max_tokens=12)
    engine = tiny_engine(make_drafter=lambda runner, plan: Nonsense(), speculation=EAGLE)
    assert generate(engine, asked) == generate(tiny_engine(), asked)


def test_a_guess_that_the_model_cannot_compute_ends_nobody():
    """The embedding of a token that is never sampled is broken: its row of the batch is NaN, and must not spread."""
    asked = [request(prompt(10 + i, seed=i), f"r{i}", max_tokens=12) for i in range(3)]
    want = generate(tiny_engine(), *asked)
    broken = next(t for t in range(1000, 1317) if all(t not in ids for ids in want))
    model = tiny_model()
    model.language_model.embed_tokens.weight[broken] = float("nan")

    class Poison:
        def propose(self, progress):
            return [[broken] * p.wanted for p in progress]

    engine = tiny_engine(model=model, make_drafter=lambda runner, plan: Poison(), speculation=EAGLE)
    assert generate(engine, *asked) == want
