"""What goes wrong inside a step, made to happen in an engine of this process: it ends one request, and no other."""

from __future__ import annotations

import threading
from functools import cache

import pytest
import torch

from tests.engines import generate, prompt, request, run, tiny_engine, tokens
from tests.tiny import tiny_config, tiny_model
from ventoux.engine import engine as engine_module
from ventoux.engine.loop import EngineLoop, ThreadClient
from ventoux.engine.masks import MaskCompiler
from ventoux.engine.messages import Add, Stop, Working
from ventoux.ops.cpu import instruction_sets, native_operators

if not instruction_sets():
    pytest.skip("installed without native code, whose answers alone are the same to the bit", allow_module_level=True)

NAMES = [f"r{i}" for i in range(6)]
VICTIM = "r2"


@cache
def model():
    return tiny_model(tiny_config(), ops=native_operators(1))


def make_engine(**choices):
    return tiny_engine(model=model(), **choices)


def requests():
    return [request(prompt(9 + i, seed=i), name, max_tokens=12, logprobs=2) for i, name in enumerate(NAMES)]


@pytest.fixture(scope="module")
def quiet():
    """Each answer by itself, in an engine of its own."""
    return {name: run(make_engine(), [one])[name, 0] for name, one in zip(NAMES, requests(), strict=True)}


def comparable(outputs):
    """Tokens with their scores, bit by bit, and the end."""
    return [token for output in outputs for token in output.tokens], outputs[-1].finish_reason


def assert_only_the_victim_ended(engine, outputs, quiet, code):
    for name in NAMES:
        if name == VICTIM:
            assert (outputs[name, 0][-1].finish_reason, outputs[name, 0][-1].error_code) == ("error", code)
        else:
            assert comparable(outputs[name, 0]) == comparable(quiet[name]), name
    assert engine.stats().num_failed == 1
    # The engine is as good as new.
    assert comparable(run(engine, requests()[:1])[NAMES[0], 0]) == comparable(quiet[NAMES[0]])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("the sampler failed"), "internal_error"),
        (MemoryError(), "internal_error"),
        (torch.OutOfMemoryError("CUDA out of memory"), "internal_error"),
        (AssertionError(), "internal_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
@pytest.mark.parametrize("at", [0, 5])
def test_a_sampler_that_fails(monkeypatch, quiet, error, code, at):
    sample = engine_module.sample

    def failing(row, sequence, seed, end_ids):
        if sequence.request.request_id == VICTIM and sequence.num_generated == at:
            raise error
        return sample(row, sequence, seed, end_ids)

    monkeypatch.setattr(engine_module, "sample", failing)
    engine = make_engine()
    outputs = run(engine, requests())
    assert len(tokens(outputs[VICTIM, 0])) == at
    assert_only_the_victim_ended(engine, outputs, quiet, code)


@pytest.mark.parametrize("where", ["hidden", "logits"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(monkeypatch, quiet, where, value):
    """In a batch with others, in the middle of an answer."""
    engine = make_engine()
    hidden, logits = engine.runner._hidden, engine.runner.logits
    rows = {}

    def spoiled_hidden(chunks):
        hidden_TD = hidden(chunks)
        at, due = 0, []
        for chunk in chunks:
            is_victim = chunk.sequence.request.request_id == VICTIM and chunk.sequence.num_generated == 4
            if is_victim and where == "hidden":
                hidden_TD[at] = value
            if chunk.is_last:
                due.append(is_victim)
            at += chunk.length
        rows["due"] = due
        return hidden_TD

    def spoiled_logits(hidden_KD):
        out_KV = logits(hidden_KD)
        if where == "logits" and len(out_KV) == len(rows["due"]):
            out_KV[torch.tensor(rows["due"])] = value
        return out_KV

    monkeypatch.setattr(engine.runner, "_hidden", spoiled_hidden)
    monkeypatch.setattr(engine.runner, "logits", spoiled_logits)
    outputs = run(engine, requests())
    assert len(tokens(outputs[VICTIM, 0])) == 4
    assert_only_the_victim_ended(engine, outputs, quiet, "numerical_error")


def test_64_long_requests_in_a_cache_for_six():
    """Everybody is put back again and again; every answer is the one of a quiet run, and every page comes back."""
    long = [request(prompt(40 + i % 7, seed=i), f"long{i}", max_tokens=32, logprobs=1) for i in range(64)]
    roomy = make_engine(num_pages=64 * 40)
    expected = run(roomy, long)
    assert roomy.stats().num_preemptions == 0
    tight = make_engine(num_pages=110)  # of 4 tokens; each answer comes to 19 of them
    outputs = run(tight, long, max_steps=20000)
    assert tight.stats().num_preemptions > 30
    for one in long:
        key = (one.request_id, 0)
        assert comparable(outputs[key]) == comparable(expected[key])


def test_a_grammar_thread_that_cannot_be_started(monkeypatch):
    """A process at its limit of threads: the request used to wait for ever, and all grammars after it."""
    engine = tiny_engine(mask_factory=lambda grammar: None)

    def none_left(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    outputs = run(engine, [request(prompt(5), "g", grammar="x"), request(prompt(6), "free")])
    assert outputs["g", 0][-1].error_code == "internal_error"
    assert outputs["free", 0][-1].finish_reason == "length"


def test_a_compiler_that_panics_ends_its_request_alone():
    """A panic of Rust code is no Exception in Python; it used to end the thread of the compiler."""

    class Panic(BaseException):
        pass

    def factory(grammar):
        raise Panic("index out of bounds")

    engine = tiny_engine(mask_factory=factory)
    for name in ("first", "second"):
        outputs = run(engine, [request(prompt(5), name, grammar="x"), request(prompt(6), "free")], max_steps=500)
        assert outputs[name, 0][-1].error_code == "internal_error"
        assert outputs["free", 0][-1].finish_reason == "length"
    assert isinstance(engine.masks, MaskCompiler)


def test_who_is_computed_is_told_before_the_step():
    """If the engine dies in it, these are the suspects; told behind it, they would never be known."""
    engine = tiny_engine(max_num_seqs=2)
    told = []
    loop = EngineLoop(engine, told.extend)
    step = engine.step
    during = []

    def watched(begin):
        outputs = step(begin)
        during.append([event.request_ids for event in told if isinstance(event, Working)][-1])
        return outputs

    engine.step = watched
    for name in ("a", "b", "c"):
        loop.inbox.put(Add(request(prompt(5), name, max_tokens=2 if name == "a" else 4)))
    thread = threading.Thread(target=loop.run)
    thread.start()
    while loop.busy or loop.turns < 6:
        pass
    loop.inbox.put(Stop())
    thread.join()
    assert during[0] == ["a", "b"] and ["b", "c"] in during and during[-1] == ["c"]
    # Not told again as long as nothing changes.
    assert len([event for event in told if isinstance(event, Working)]) < len(during)


def test_an_engine_that_fails_as_a_whole_ends_everything_at_once(monkeypatch):
    """A scheduler whose books are wrong must not go on answering; offline there is nobody to start it again."""
    engine = tiny_engine()
    client = ThreadClient(engine)
    ended = threading.Event()
    outputs = []

    def broken():
        raise AssertionError("a page is held twice")

    def sink(output):
        outputs.append(output)
        if output.finish_reason:
            ended.set()

    monkeypatch.setattr(engine.scheduler, "schedule", broken)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    client.submit_to(request(prompt(5), "x"), sink)
    assert ended.wait(5)
    assert outputs[-1].error_code == "engine_dead"
    assert generate(tiny_engine(), request(prompt(5), "x"))
