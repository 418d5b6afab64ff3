"""bench serve --chaos: what a server that breaks a promise is told, and one that keeps them all."""

from __future__ import annotations

import json

import pytest

from tests.fakes import FakeEngine
from tests.server.conftest import make_server, tokenizer  # noqa: F401
from tests.server.test_run import running
from ventoux.cli import main
from ventoux.engine.request import EngineStats
from ventoux.errors import ConfigError
from ventoux.evals import chaos
from ventoux.evals.chaos import Chaos
from ventoux.evals.chaos_load import canary, draw, text_of
from ventoux.evals.chaos_watch import Processes, Sample, gauges, memory_report

MIB = 2**20
JSON_ANSWER = '{"name": "a", "count": 1}'


@pytest.fixture
def live(tokenizer, monkeypatch):  # noqa: F811
    """A server whose engine answers everything with what a schema of the load allows."""
    monkeypatch.setattr(chaos, "SAMPLE_SECONDS", 0.2)
    monkeypatch.setattr(chaos, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(FakeEngine, "stats", lambda self: EngineStats(num_pages=100, num_free_pages=100))
    with running(tokenizer, responses_store="none") as server:
        server.wait_ready()
        server.says(JSON_ANSWER)
        yield server


def run(server, seconds=2.0, **fields):
    return Chaos(server.url, model=None, api_key=None, clients=4, seconds=seconds, **fields).run()


@pytest.mark.slow
def test_a_sound_server_keeps_its_promises(live, monkeypatch):
    """Memory is this very process's here, clients and all, so that it is left out."""
    monkeypatch.setattr(chaos, "memory_report", lambda samples: ([], []))
    result = run(live, seconds=4.0)
    assert result["broken"] == []
    assert result["requests"]["answered"] > 20 and result["requests"]["aborted"] > 0
    assert {"short", "messages", "responses", "canary"} <= set(result["kinds"])


def test_other_answers_than_on_a_quiet_server_are_found(live, monkeypatch):
    monkeypatch.setattr(chaos, "memory_report", lambda samples: ([], []))
    monkeypatch.setattr(chaos, "CANARY", 0.9)
    prepare = Chaos._prepare

    async def then_change(self, client):
        await prepare(self, client)
        live.says("something else")

    monkeypatch.setattr(Chaos, "_prepare", then_change)
    assert any("same question" in promise for promise in run(live, seconds=0.5)["broken"])


def test_failures_and_wrong_answers_to_hostile_requests_are_found(live, monkeypatch):
    monkeypatch.setattr(chaos, "memory_report", lambda samples: ([], []))
    case = next(case for case in chaos._HOSTILE if getattr(case, "what", "") == "GET /v1/nothing")
    monkeypatch.setattr(chaos, "_HOSTILE", (case._replace(status=418),))
    monkeypatch.setattr(chaos, "HOSTILE", 0.5)
    prepare = Chaos._prepare

    async def then_fail(self, client):
        await prepare(self, client)
        live.engine.failure = (0, "internal_error")

    monkeypatch.setattr(Chaos, "_prepare", then_fail)
    broken = run(live, seconds=0.5)["broken"]
    assert any("404 instead of 418" in promise for promise in broken)
    assert any(": 500: " in promise for promise in broken)


def test_a_server_elsewhere_cannot_be_watched():
    with pytest.raises(ConfigError, match="no process of yours listens"):
        Processes("http://127.0.0.1:1")


def test_the_exit_status_tells_of_broken_promises(live, monkeypatch, tmp_path, capsys):
    result = {"requests": {}, "kinds": {}, "mean_answer_seconds": 0.1, "processes": [], "broken": ["it fell over"]}
    monkeypatch.setattr(Chaos, "run", lambda self, tick: result)
    words = ["bench", "serve", "--chaos", "--url", live.url, "--duration", "1", "--output", str(tmp_path / "r.json")]
    assert main(words) == 1
    assert "it fell over" in capsys.readouterr().err
    assert json.loads((tmp_path / "r.json").read_text())["results"]["broken"] == ["it fell over"]


# ------------------------------------------------------------------------------------------------------------- memory


def samples(sizes: list[float], handles: list[int] | None = None) -> list[Sample]:
    found = zip(sizes, handles or [5] * len(sizes), strict=True)
    pids = {"server": frozenset({1}), "engine": frozenset({2})}
    return [Sample(float(i), {"engine": round(s * MIB)}, {"engine": h}, pids) for i, (s, h) in enumerate(found)]


def test_memory_that_levels_off_is_flat_and_memory_that_climbs_is_not():
    levels_off = [100, 250, 300, *[300 + i / 10 for i in range(37)]]
    assert memory_report(samples(levels_off))[1] == []
    climbs = [100 + 5 * i for i in range(40)]
    assert "engine: memory grew by" in memory_report(samples(climbs))[1][0]


def test_handles_that_stay_open_and_processes_that_end_are_found():
    kept = memory_report(samples([100.0] * 8, [5, 90, 90, 9, 9, 9, 9, 50]))[1]
    assert kept == ["engine: 45 more file handles than before"]
    assert memory_report(samples([100.0] * 8, [5, 90, 90, 9, 9, 9, 9, 9]))[1] == []
    restarted = samples([100.0] * 8)
    restarted[4] = restarted[4]._replace(pids={**restarted[4].pids, "engine": frozenset({3})})
    assert memory_report(restarted)[1] == ["the engine process ended"]


def test_gauges_are_read_out_of_prometheus_text(tokenizer, make_server):  # noqa: F811
    text = make_server().get("/metrics").text
    assert gauges(text) == {"kv_cache_usage_perc": 0.25, "num_requests_running": 0, "num_requests_waiting": 0}


# --------------------------------------------------------------------------------------------------------------- load


def test_incomplete_answers_have_faults():
    import random

    rng = random.Random(0)
    drawn = {asked.kind: asked for asked in (draw(rng, "m", 4096) for _ in range(300))}

    def answer(text, ended="stop", **message):
        return {"object": "chat.completion", "choices": [choice(text, ended, **message)]}

    def choice(text, ended, **message):
        return {"index": 0, "message": {"content": text, **message}, "finish_reason": ended}

    assert drawn["short"].fault([answer("x")]) is None
    assert drawn["short"].fault([answer("x", None)])
    assert drawn["grammar"].fault([answer(JSON_ANSWER)]) is None
    assert drawn["grammar"].fault([answer('{"name": ')])
    assert drawn["grammar"].fault([answer('{"name": ', "length")]) is None
    call = {"function": {"name": "look_up", "arguments": '{"na'}}
    assert drawn["tools"].fault([answer(None, "tool_calls", tool_calls=[call])])
    whole = {"function": {"name": "look_up", "arguments": '{"name": "x"}'}}
    assert drawn["tools"].fault([answer(None, "tool_calls", tool_calls=[whole, whole])]) is None
    assert drawn["tools"].fault([answer(None, "tool_calls", tool_calls=[whole, call])])
    chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "x"}}]}
    assert drawn["short"].fault([chunk]) == "a choice has no finish_reason"
    assert drawn["messages"].fault([{"type": "message_start"}])
    assert drawn["responses"].fault([{"type": "response.created", "response": {"status": "in_progress"}}])
    assert text_of(answer("a")) != text_of(answer("b")) and canary("m").kind == "canary"
