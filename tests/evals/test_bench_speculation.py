"""bench speculation: guesses come true as often as asked, and their number stays or adapts."""

import pytest

from tests.engines import Nobody, tiny_engine
from ventoux.errors import ConfigError
from ventoux.evals.bench import DecodeRun
from ventoux.evals.bench_speculation import num_runs, speculation


def measured(**choices):
    engine = tiny_engine(num_pages=400, make_drafter=lambda runner, plan: Nobody(), max_model_len=200)
    before = engine.speculation
    given = {"acceptances": [0.0, 1.0], "batch_sizes": [2], "new_tokens": 40, "repeats": 1}
    wrong, right = speculation(engine, **{**given, **choices})
    assert engine.speculation is before, "the engine keeps its own drafter"
    return wrong, right


def test_a_fixed_number_of_guesses_reaches_the_arithmetic_limit():
    wrong, right = measured()
    assert (wrong["limit"], right["limit"]) == (1, 4)
    assert wrong["tokens_per_step"] == 1
    assert right["tokens_per_step"] == pytest.approx(4, rel=0.1)  # fewer at the end, where fewer are left
    assert wrong["speed_up"] > 0 and right["without_guesses"] == wrong["without_guesses"]


def test_each_run_is_compared_with_those_right_before_and_after(monkeypatch):
    """Catches a ratio of medians: on a machine that slows down from run to run it favours what runs first."""
    rates = iter([100.0, 90.0, 50.0, 60.0, 75.0, 60.0])  # without, with, without; the same again
    done = lambda engine, prompts, new_tokens: DecodeRun(next(rates), 1.0, {})  # noqa: E731
    monkeypatch.setattr("ventoux.evals.bench_speculation.decode_run", done)
    engine = tiny_engine(make_drafter=lambda runner, plan: Nobody())
    ticks = []
    choices = {"acceptances": [0.0], "batch_sizes": [1], "repeats": 2}
    (row,) = speculation(engine, **choices, new_tokens=4, tick=lambda: ticks.append(1))
    assert len(ticks) == num_runs(**choices) == 6
    assert row["ratios"] == [90 / 75, 75 / 60] and row["speed_up"] == pytest.approx(1.225)
    assert row["standard_error"] == pytest.approx(0.025)


def test_every_acceptance_has_neighbours_of_its_own(monkeypatch):
    """Catches runs of several acceptances between two without guesses."""
    order = []

    def done(engine, prompts, new_tokens):
        order.append(engine.speculation is not None)
        return DecodeRun(1.0, 1.0, {})

    monkeypatch.setattr("ventoux.evals.bench_speculation.decode_run", done)
    engine = tiny_engine(make_drafter=lambda runner, plan: Nobody())
    speculation(engine, acceptances=[0.0, 1.0], batch_sizes=[1], new_tokens=4, repeats=1)
    assert order == [False, True, False, True, False]


def test_an_adaptive_number_is_remembered_from_one_repeat_to_the_next(monkeypatch):
    """Catches a search that starts anew in every repeat: its first steps, at three guesses, are what adapting costs."""
    searches = []
    chosen = "ventoux.engine.pace.Pace.choose"

    def choose(pace, num_sequences, num_unfollowed=0):
        searches.append(pace)
        return 2 if pace.adaptive else 3

    monkeypatch.setattr(chosen, choose)
    _, right = measured(adaptive=True, repeats=3)
    assert len(set(map(id, searches))) == 2, "one for each acceptance"
    assert right["tokens_per_step"] == pytest.approx(3, rel=0.1)


def test_an_engine_without_a_draft_is_refused():
    with pytest.raises(ConfigError, match="speculative-config"):
        speculation(tiny_engine(), acceptances=[1.0], batch_sizes=[1], new_tokens=4, repeats=1)
