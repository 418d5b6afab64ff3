"""Grammars are compiled once per request, beside the steps; what goes wrong there ends one request."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from tests.engines import generate, prompt, request, run, tiny_engine, tokens
from ventoux.engine.masks import MaskCompiler
from ventoux.errors import InvalidRequestError


class Countdown:
    """A grammar "A,B,...": these tokens, then the end. Knows how many of it were compiled and where."""

    def __init__(self, ids: list[int]):
        self.left = ids

    def fill(self, mask: np.ndarray) -> None:
        mask[:] = False
        mask[self.left[0] if self.left else 2] = True

    def accept(self, token_id: int) -> bool:
        expected, self.left = self.left[0], self.left[1:]
        return token_id == expected

    def is_stopped(self) -> bool:
        return not self.left

    def clone(self) -> Countdown:
        return Countdown(self.left)


class Factory:
    def __init__(self):
        self.compiled: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, grammar: str) -> Countdown:
        self.threads.add(threading.current_thread())
        if grammar == "hang":
            threading.Event().wait(30)
        assert self.gate.wait(30)
        self.compiled.append(grammar)
        if grammar == "bad":
            raise InvalidRequestError("no such grammar.", code="invalid_json_schema")
        if grammar == "broken":
            raise RuntimeError("secret")
        return Countdown([int(word) for word in grammar.split(",")])


@pytest.fixture
def factory():
    return Factory()


def test_answers_share_one_compilation_and_no_state(factory):
    """128 answers compiled the same grammar 128 times, one after the other, between two steps."""
    engine = tiny_engine(mask_factory=factory)
    outputs = run(engine, [request(prompt(9), n=5, grammar="1001,1002,1003")])
    assert factory.compiled == ["1001,1002,1003"]
    assert [tokens(outputs["r", i]) for i in range(5)] == [[1001, 1002, 1003]] * 5
    assert {outputs["r", i][-1].finish_reason for i in range(5)} == {"stop"}
    assert threading.current_thread() not in factory.threads


def test_others_go_on_while_a_grammar_is_compiled(factory):
    """The first grammar took up to 3 seconds, in which nobody got a token."""
    alone = generate(tiny_engine(), request(prompt(5), "free", seed=1, temperature=1.0, max_tokens=20))
    factory.gate.clear()
    engine = tiny_engine(mask_factory=factory)
    engine.add(request(prompt(9), "bound", n=2, grammar="1001,1002"))
    engine.add(request(prompt(5), "free", seed=1, temperature=1.0, max_tokens=20))
    outputs = [o for _ in range(30) for o in engine.step()]
    assert [tokens([o for o in outputs if o.request_id == "free"])] == alone
    assert engine.has_work and engine.stats().num_waiting == 2
    # Nothing else to do: a step waits a moment instead of spinning, and an abort still acts.
    start = time.monotonic()
    assert engine.step() == []
    assert time.monotonic() - start > 0.005
    factory.gate.set()
    while engine.has_work:
        outputs += engine.step()
    assert [tokens([o for o in outputs if o.request_id == "bound" and o.index == i]) for i in (0, 1)] == [
        [1001, 1002]
    ] * 2


@pytest.mark.parametrize(("grammar", "code"), [("bad", "invalid_json_schema"), ("broken", "internal_error")])
def test_a_grammar_that_fails_ends_its_request_alone(factory, grammar, code):
    engine = tiny_engine(mask_factory=factory)
    good = request(prompt(5), "good", grammar="1001")
    outputs = run(engine, [request(prompt(9), "bad", n=2, grammar=grammar), good])
    for i in (0, 1):
        assert outputs["bad", i][-1].error_code == code and "secret" not in outputs["bad", i][-1].error
    assert tokens(outputs["good", 0]) == [1001]


def test_a_copy_that_fails_ends_its_request_alone(factory, monkeypatch):
    monkeypatch.setattr(Countdown, "clone", lambda self: 1 / 0)
    outputs = run(tiny_engine(mask_factory=factory), [request(prompt(9), grammar="1001"), request(prompt(5), "free")])
    assert outputs["r", 0][-1].error_code == "internal_error"
    assert len(tokens(outputs["free", 0])) == 8


def test_a_grammar_that_hangs_is_given_up_and_the_next_one_is_compiled(factory):
    """Native code cannot be stopped; one hanging compilation must not end grammars for everybody."""
    engine = tiny_engine(mask_factory=factory)
    engine.masks = MaskCompiler(factory, max_seconds=0.1)
    outputs = run(engine, [request(prompt(9), "hang", grammar="hang"), request(prompt(9), "good", grammar="1001")])
    assert outputs["hang", 0][-1].error_code == "invalid_json_schema"
    assert "within 0.1 seconds" in outputs["hang", 0][-1].error
    assert tokens(outputs["good", 0]) == [1001]


def test_aborted_while_compiling(factory):
    """One answer of three goes, the others come; then all go, and nothing is left of the request."""
    factory.gate.clear()
    engine = tiny_engine(mask_factory=factory)
    engine.add(request(prompt(9), "a", n=3, grammar="1001"))
    engine.add(request(prompt(9), "b", grammar="1002"))
    assert [o.finish_reason for o in engine.abort("a", 0)] == ["abort"]
    assert [o.finish_reason for o in engine.abort("b")] == ["abort"]
    engine.step()
    # The id is free again, while the old grammar may still be in the works.
    engine.add(request(prompt(9), "b", grammar="1003"))
    factory.gate.set()
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert {(o.request_id, o.index): tokens([o]) for o in outputs} == {
        ("a", 1): [1001],
        ("a", 2): [1001],
        ("b", 0): [1003],
    }
    assert not engine.sequences and not engine.seeds and not engine.siblings
    assert "1002" not in factory.compiled
