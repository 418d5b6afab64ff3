"""What the pace believes must not outlive its reasons: a bad moment, or text that was hard to guess."""

import random
import weakref

import pytest

from tests.engine.test_speculation import luck, play
from tests.engines import prompt, request, run, tiny_engine
from ventoux.config import Speculation
from ventoux.engine.pace import Pace

SECONDS = [1.0, 1.1, 1.2, 1.3]


def crowd(pace, batch, acceptance, steps, rng):
    """As many clients, each asking again as soon as it is answered with 25 to 75 tokens; those whose prompt was not
    read get no guesses. For each prompt whether it was read, and for each step the number of guesses."""
    live, read, guessed, guesses = [], [], [], 0
    for _ in range(steps):
        prompts = batch - len(live)
        live += [[None, rng.randint(25, 75)] for _ in range(prompts)]
        brought = [acceptance(guesses) if follows else 1 for follows, _ in live]
        live = [[follows, left - n] for (follows, left), n in zip(live, brought, strict=True) if left > n]
        for one in live:
            if one[0] is None:
                one[0] = pace.reads_prompt(len(live))
                read.append(one[0])
        seconds, guesses = SECONDS[guesses], pace.choose(len(live), sum(not follows for follows, _ in live))
        guessed.append(guesses)
        if not prompts:
            pace.note(sum(brought), seconds)
    return read, guessed


def second_half(values):
    half = values[len(values) // 2 :]
    return sum(half) / len(half)


@pytest.mark.parametrize("batch", [1, 2, 7, 8])
def test_batches_find_out_again_what_pays(batch):
    """One prompt read in 32 never fills a batch of two: once guesses did not pay, they would be off for ever."""
    pace, rng = Pace(3), random.Random(2)
    _, hard = crowd(pace, batch, luck(0.0), 2000, rng)
    _, easy = crowd(pace, batch, luck(0.9), 12000, rng)
    assert hard.count(0) > 1800 and easy.count(3) > 4000


@pytest.mark.parametrize("batch", [1, 2, 8, 31, 32, 33, 128])
def test_a_crowd_is_left_in_peace_by_guesses_that_do_not_pay(batch):
    """After each answer's end a step has one sequence less. Of 32 that was another bucket, which was never met without
    prompts, so that it stayed unknown: three guesses, and every prompt read."""
    read, guessed = crowd(Pace(3), batch, luck(0.0), 3000, random.Random(1))
    assert second_half(read) < 0.1 and second_half(guessed) < 0.15


@pytest.mark.parametrize("batch", [1, 8, 31, 32, 128])
def test_a_crowd_gets_all_guesses_that_pay(batch):
    read, guessed = crowd(Pace(3), batch, luck(0.95), 3000, random.Random(1))
    assert second_half(read) == 1 and second_half(guessed) > 2.7


@pytest.mark.parametrize("batch", [4, 8, 12, 32])
def test_a_crowd_gets_them_also_after_steps_that_told_nothing(batch):
    """Short answers, one beside another's prompt, had used up what is read to find out: off for 12,000 steps."""
    pace = Pace(3)
    for _ in range(300):
        pace.choose(batch)
        pace.reads_prompt(batch)
    _, guessed = crowd(pace, batch, luck(0.95), 3000, random.Random(1))
    assert second_half(guessed) > 2.5


@pytest.mark.parametrize("batch", [8, 32])
def test_a_crowd_gets_them_also_after_one_client_did_not(batch):
    """A batch never seen before was believed to be like a smaller one, without a trial: off for 16,000 steps."""
    pace = Pace(3)
    crowd(pace, 1, luck(0.0), 2000, random.Random(1))
    _, guessed = crowd(pace, batch, luck(0.95), 3000, random.Random(1))
    assert second_half(guessed) > 2.5


def test_steps_that_all_have_prompts_soon_guess_no_more():
    """Nothing can be measured there: half the speed, for as long as the load lasts."""
    pace = Pace(3)
    assert [pace.choose(12) for _ in range(30)] == [3] * 12 + [0] * 18
    assert sum(pace.reads_prompt(12) for _ in range(2000)) < 150


@pytest.mark.parametrize("guesses", [0, 3])
def test_a_moment_in_which_the_machine_stood_still_is_soon_forgotten(guesses):
    """A pause of 1000 steps in the average of 48 made its number of guesses look bad for the next 70000."""
    pace = Pace(3)
    play(pace, luck(0.9), SECONDS)
    search = pace._searches[1]
    search.note(guesses, 1 + guesses, 1000.0, True)
    chosen, _ = play(pace, luck(0.9), SECONDS, steps=500)
    assert chosen[3] > 350 and search.measured[guesses].seconds < 2 * SECONDS[guesses]


def test_a_lone_request_is_judged_by_lone_requests():
    """Its first token is out when the draft first hears of it: counted twice, it was judged by batches of two."""

    class Silent:
        def propose(self, progress):
            return [[] for _ in progress]

    engine = tiny_engine(make_drafter=lambda runner, plan: Silent(), speculation=Speculation("test", 3))
    asked = []
    engine.speculation.pace.reads_prompt = lambda num_sequences: asked.append(num_sequences) or True
    run(engine, [request(prompt(9), max_tokens=3)])
    long = tiny_engine(make_drafter=lambda r, p: Silent(), speculation=Speculation("test", 3), max_num_batched_tokens=4)
    long.speculation.pace.reads_prompt = lambda num_sequences: asked.append(num_sequences) or True
    run(long, [request(prompt(9), max_tokens=3)])
    assert asked == [1, 1]


def test_no_prompt_is_read_for_an_answer_without_room_for_a_guess():
    read = set()

    class Reader:
        def propose(self, progress):
            read.update(p.sequence.request.request_id for p in progress)
            return [[] for _ in progress]

    engine = tiny_engine(make_drafter=lambda runner, plan: Reader(), speculation=Speculation("test", 3))
    run(engine, [request(prompt(9, seed=i), str(i), max_tokens=i) for i in (1, 2, 3)])
    assert read == {"3"}


def test_a_search_begins_where_fewer_sequences_ended():
    """Every larger batch of a new server began with three guesses, whatever it knew of smaller ones."""
    pace = Pace(3)
    play(pace, [1, 1, 1, 1].__getitem__, SECONDS, steps=200)
    assert pace.choose(32) == 0
    play(pace, [1, 1.9, 2.7, 3.4].__getitem__, SECONDS, steps=4000, sequences=4)
    assert pace.choose(32) == 3


def test_steps_that_tell_nothing_are_no_reason_to_guess_nor_against_it():
    pace = Pace(3)
    assert pace.choose(32, num_unfollowed=9) == 0
    pace.note(1, 1.0)
    pace.choose(32, num_unfollowed=9)
    pace.note(1, 1.0)
    assert pace.choose(64) == 3 and pace.reads_prompt(32), "no guesses have been tried"
    chosen, _ = play(pace, [1, 1.9, 2.7, 3.4].__getitem__, SECONDS, steps=1000, sequences=32)
    assert chosen[3] > 800


def test_a_batch_that_gets_few_guesses_does_not_count_against_them():
    pace = Pace(3)
    play(pace, [4, 7.6, 10.8, 13.6].__getitem__, SECONDS, steps=2000, sequences=4)
    for _ in range(200):
        assert pace.choose(4, num_unfollowed=3) == 3
        pace.note(7, 1.3)
    assert pace._searches[3].measured[3].tokens == pytest.approx(13.6)


@pytest.mark.parametrize(("unread", "tried"), [(1, True), (4, False)])
def test_one_sequence_without_guesses_hides_nothing(unread, tried):
    """A first prompt that was not read kept 31 others guessing, and nobody measured what it brought: half the speed."""

    class Wrong:
        def propose(self, progress):
            return [[0] * p.wanted for p in progress]

    engine = tiny_engine(make_drafter=lambda runner, plan: Wrong(), speculation=Speculation("test", 3))
    pace, reads = engine.speculation.pace, iter([False] * unread + [True] * (8 - unread))
    pace.reads_prompt = lambda num_sequences: next(reads)
    run(engine, [request(prompt(9, seed=i), str(i), max_tokens=60) for i in range(8)])
    assert any(pace._searches[4].measured) == tried
    assert 0 in pace._searches[4].measured


def test_an_aborted_step_leaves_no_states():
    """The states of a step of 8192 tokens are 64 MB: an engine whose last client went away kept them while idle."""

    class Silent:
        def propose(self, progress):
            return [[] for _ in progress]

    engine = tiny_engine(make_drafter=lambda runner, plan: Silent(), speculation=Speculation("test", 3))
    engine.add(request(prompt(9), "gone", max_tokens=20))
    engine.step()
    (sequence,) = (weakref.ref(one) for one in engine.sequences.values())
    assert sequence() is not None
    engine.abort("gone")
    assert sequence() is None and not engine.has_work
