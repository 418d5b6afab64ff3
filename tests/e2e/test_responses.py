"""The whole path through OpenAI's client for responses: text, streams, tools, pictures, formats, and what is kept."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import openai
import pytest

from tests.e2e.conftest import serving
from tests.e2e.test_chat import MODEL, picture
from ventoux.train.demo_data import CARD_TOOLS

TOOLS = [{"type": "function", **tool["function"]} for tool in CARD_TOOLS]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("store") / "responses.sqlite3")


@pytest.fixture(scope="module")
def keeping(store, tmp_path_factory) -> Iterator[openai.OpenAI]:
    """A client of a server that keeps responses in a file of its own."""
    log = tmp_path_factory.mktemp("server") / "log"
    with (
        serving("--responses-store", store, "--num-threads", "1", log=log) as (url, _),
        openai.OpenAI(base_url=url + "/v1", api_key="EMPTY", max_retries=0, timeout=60) as client,
    ):
        yield client


def options(**fields):
    return {"model": MODEL, "input": "Hi", "temperature": 0, "max_output_tokens": 60, **fields}


def test_a_greeting_streamed_and_not(keeping):
    whole = keeping.responses.create(**options())
    assert whole.status == "completed" and "Hello" in whole.output_text
    with keeping.responses.stream(**options()) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert len(pieces) > 1 and "".join(pieces) == final.output_text == whole.output_text
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert keeping.responses.retrieve(final.id).output_text == whole.output_text


def test_effort_decides_about_reasoning(keeping):
    for effort, kinds in (("none", ["message"]), ("high", ["reasoning", "message"])):
        response = keeping.responses.create(**options(reasoning={"effort": effort}))
        assert [item.type for item in response.output] == kinds


def test_a_round_of_tools_that_goes_on_from_a_kept_response(keeping):
    first = keeping.responses.create(**options(input="What is 12 * 34?", tools=TOOLS))
    [call] = first.output
    assert call.name == "my_calculator" and "expression" in json.loads(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "408"}
    second = keeping.responses.create(**options(input=[result], previous_response_id=first.id, tools=TOOLS))
    assert "408" in second.output_text
    assert second.usage.input_tokens_details.cached_tokens > 0
    assert [item.type for item in keeping.responses.input_items.list(second.id)] == ["function_call_output"]
    keeping.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        keeping.responses.retrieve(first.id)


def test_a_picture_and_a_format(keeping):
    url = f"data:image/png;base64,{base64.b64encode(picture('12 + 34')).decode()}"
    content = [
        {"type": "input_text", "text": "What is written in the image?"},
        {"type": "input_image", "image_url": url},
    ]
    assert keeping.responses.create(**options(input=[{"role": "user", "content": content}])).output_text
    response = keeping.responses.create(**options(text={"format": {"type": "json_object"}}, max_output_tokens=200))
    if response.status == "completed":
        assert isinstance(json.loads(response.output_text), dict)


def test_errors(keeping):
    with pytest.raises(openai.BadRequestError, match="max_tool_calls"):
        keeping.responses.create(**options(max_tool_calls=1))
    searching = keeping.responses.with_raw_response.create(**options(tools=[{"type": "web_search"}]))
    assert "web_search" in searching.headers["x-warning"] and searching.parse().output_text
    with pytest.raises(openai.NotFoundError):
        keeping.responses.create(**options(previous_response_id="resp_nothing"))


def test_kept_responses_survive_the_server(keeping, store, tmp_path):
    """Another server with the same file, as after a restart."""
    response = keeping.responses.create(**options())
    with (
        serving("--responses-store", store, log=tmp_path / "log") as (url, _),
        openai.OpenAI(base_url=url + "/v1", api_key="EMPTY", max_retries=0, timeout=60) as client,
    ):
        assert client.responses.retrieve(response.id).output_text == response.output_text
