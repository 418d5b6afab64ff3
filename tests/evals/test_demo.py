"""The table of `ventoux eval demo`: bars, the gain by thinking, and groups that share a document."""

from __future__ import annotations

import asyncio
import itertools

import httpx2

from ventoux.evals.demo import USUAL_TASKS, TaskResult, body_of, evaluate, verdicts
from ventoux.train.demo_data import TASKS, evaluation


def result(right: int, asked: int = 100, effort: int | None = None) -> TaskResult:
    return TaskResult(asked=asked, right=right, effort_respected=asked if effort is None else effort)


def met(results: dict[str, TaskResult]) -> dict[str, bool | None]:
    return {what: verdict for what, _, verdict in verdicts(results)}


def test_a_bar_is_met_from_its_own_share_on():
    """Catches a comparison that is off by one, and a bar of another task."""
    bar = round(100 * (TASKS["chart"].bar or 0))
    assert met({"chart": result(bar)})["chart"] is True
    assert met({"chart": result(bar - 1)})["chart"] is False
    assert met({"image_read": result(0)})["image_read"] is None


def test_thinking_is_held_against_the_same_sums_without_it():
    assert met({"sum_think": result(90), "sum_direct": result(60)})["thinking"] is True
    assert met({"sum_think": result(90), "sum_direct": result(61)})["thinking"] is False
    assert "thinking" not in met({"sum_think": result(90)})


def test_the_effort_counts_over_all_tasks():
    assert met({"chat": result(0, effort=98), "game": result(0)})["effort"] is True
    assert met({"chat": result(0, effort=97), "game": result(0)})["effort"] is False


def test_groups_share_their_document_and_end_where_asked():
    """Catches a document per question, which would take ten times as long to read."""
    groups = list(evaluation("long_8k", 0, 12))
    assert [len(group) for group in groups] == [5, 5, 2]
    for group in groups:
        assert len({item.messages[0]["content"].rsplit("\n\n", 1)[0] for item in group}) == 1
    assert [len(group) for group in evaluation("chat", 0, 3)] == [1, 1, 1]


def test_a_group_keeps_its_place_until_its_last_question(monkeypatch):
    """Catches groups that take turns: the server would have forgotten each document when its next question comes."""
    documents: list[str] = []

    class Server:
        def __init__(self, **_): ...
        async def __aenter__(self):
            return self

        async def __aexit__(self, *_): ...

        async def post(self, _, json):
            documents.append(json["messages"][0]["content"].rsplit("\n\n", 1)[0])
            await asyncio.sleep(0)
            usage = {"completion_tokens_details": {"drafted_tokens": 0, "accepted_tokens": 0}}
            return httpx2.Response(200, json={"choices": [{"message": {"content": "?"}}], "usage": usage})

    monkeypatch.setattr(httpx2, "AsyncClient", Server)
    results = asyncio.run(evaluate("http://server", "m", per_task=15, tasks=["long_8k"], concurrency=1))
    assert results["long_8k"].asked == 15
    assert [len(list(same)) for _, same in itertools.groupby(documents)] == [5, 5, 5]


def test_what_takes_longest_is_asked_by_name_alone():
    """All that has a bar is asked unless tasks are named."""
    assert set(TASKS) - set(USUAL_TASKS) == {"long_128k"} and TASKS["long_128k"].bar is None


def test_another_seed_asks_other_questions():
    asked = [[item.messages for group in evaluation("calc_call", seed, 10) for item in group] for seed in (0, 0, 1)]
    assert asked[0] == asked[1] != asked[2]


def test_a_schema_becomes_a_response_format():
    with_schema = next(item for (item,) in evaluation("receipt", 0, 40) if item.schema)
    body = body_of(with_schema, "m", seed=0)
    assert body["response_format"]["json_schema"]["schema"] == with_schema.schema
    assert "response_format" not in body_of(next(evaluation("chat", 0, 1))[0], "m", seed=0)
