"""Batches, responses in the background and constrained answers, by a real server with the bundled model."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.conftest import serving
from tests.e2e.test_chat import MODEL

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("batches")


def flags(folder: Path) -> list[str]:
    stores = ["--files-store", str(folder / "files"), "--responses-store", str(folder / "responses")]
    return [*stores, "--num-threads", "1"]


@pytest.fixture(scope="module")
def client(folder) -> Iterator[openai.OpenAI]:
    with (
        serving(*flags(folder), log=folder / "log") as (url, _),
        openai.OpenAI(base_url=url + "/v1", api_key="EMPTY", max_retries=0, timeout=60) as client,
    ):
        yield client


def wait(ask: Any, *open_states: str) -> Any:
    deadline = time.monotonic() + 60
    while (found := ask()).status in open_states:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def test_a_batch_answers_what_a_chat_answers(client):
    direct = client.chat.completions.create(model=MODEL, messages=HI, temperature=0).choices[0].message.content
    sent = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": HI, **fields}}
        for i, fields in enumerate(({"temperature": 0}, {"temperature": 9}, {"temperature": 0, "n": 2}))
    ]
    file = client.files.create(
        file=("in.jsonl", b"\n".join(json.dumps(line).encode() for line in sent)), purpose="batch"
    )
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = wait(lambda: client.batches.retrieve(batch.id), "validating", "in_progress", "finalizing")
    assert batch.status == "completed" and batch.request_counts.completed == 2 and batch.request_counts.failed == 1
    done = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    said = [choice["message"]["content"] for line in done for choice in line["response"]["body"]["choices"]]
    assert said == [direct] * 3


def test_a_response_in_the_background(client):
    begun = client.responses.create(model=MODEL, input="Hi", background=True)
    done = wait(lambda: client.responses.retrieve(begun.id), "queued", "in_progress")
    assert done.status == "completed" and done.output_text


def test_answers_follow_what_they_must_be(client):
    """The engine's own copy of the grammar, and its limits, are those of the server."""

    def ask(**fields: Any) -> str:
        answer = client.chat.completions.create(
            model=MODEL, messages=HI, max_tokens=200, temperature=1, seed=1, extra_body=fields
        )
        assert answer.choices[0].finish_reason == "stop"
        return answer.choices[0].message.content or ""

    assert re.fullmatch(r"\d{3}-[a-f]{4}", ask(structured_outputs={"regex": r"\d{3}-[a-f]{4}"}))
    assert ask(guided_choice=["to be", "not to be"]) in ("to be", "not to be")
    assert re.fullmatch("a+b", ask(structured_outputs={"grammar": 'start: "a"{1,5} "b"'}))
    # llguidance's own limits end this at the first brace.
    many = {"type": "object", "properties": {f"p{i}": {"type": "boolean"} for i in range(900)}}
    cut = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=30, extra_body={"guided_json": many})
    assert re.match(r"\s*\{", cut.choices[0].message.content)


def test_thinking_ends_with_its_budget(client):
    for budget in (1, 4):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "What is 17 * 24?"}],
            reasoning_effort="high",
            extra_body={"thinking_token_budget": budget},
        )
        details = answer.usage.completion_tokens_details
        assert 0 < details.reasoning_tokens <= budget and answer.choices[0].message.content
