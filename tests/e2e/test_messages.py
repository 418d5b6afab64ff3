"""The whole path through Anthropic's client: text, streams, thoughts, tools, pictures, counts and errors."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import anthropic
import pytest

from tests.e2e.test_chat import MODEL, picture
from ventoux.train.demo_data import CARD_TOOLS

HI = [{"role": "user", "content": "Hi"}]
TOOLS = [
    {
        "name": tool["function"]["name"],
        "description": tool["function"]["description"],
        "input_schema": tool["function"]["parameters"],
    }
    for tool in CARD_TOOLS
]


@pytest.fixture(scope="module")
def claude(server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server, api_key="EMPTY", max_retries=0, timeout=60) as client:
        yield client


def options(**fields):
    return {"model": MODEL, "max_tokens": 60, "messages": HI, "extra_body": {"temperature": 0}, **fields}


def test_a_greeting_streamed_and_not(claude):
    whole = claude.messages.create(**options())
    assert whole.stop_reason == "end_turn" and "Hello" in whole.content[0].text
    with claude.messages.stream(**options()) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 1 and "".join(pieces) == final.content[0].text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    used = whole.usage
    counted = claude.messages.count_tokens(model=MODEL, messages=HI)
    assert counted.input_tokens == used.input_tokens + used.cache_read_input_tokens


def test_thinking_decides_about_thoughts(claude):
    for thinking, kinds in (("disabled", ["text"]), ("adaptive", ["thinking", "text"])):
        message = claude.messages.create(**options(thinking={"type": thinking}))
        assert [block.type for block in message.content] == kinds


def test_a_question_is_answered_by_calling_the_calculator(claude):
    asked = [{"role": "user", "content": "What is 12 * 34?"}]
    first = claude.messages.create(**options(messages=asked, tools=TOOLS))
    [use] = first.content
    assert first.stop_reason == "tool_use" and use.name == "my_calculator" and "expression" in use.input
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "408"}
    history = [*asked, first.to_param(), {"role": "user", "content": [result]}]
    assert "408" in claude.messages.create(**options(messages=history, tools=TOOLS)).content[0].text


def test_a_forced_call_in_a_stream(claude):
    choice = {"type": "tool", "name": "my_calculator"}
    with claude.messages.stream(**options(tools=TOOLS, tool_choice=choice, max_tokens=200)) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        [use] = stream.get_final_message().content
    assert use.name == "my_calculator" and json.loads("".join(pieces)) == use.input


def test_a_picture(claude):
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(picture("12 + 34")).decode()}
    content = [{"type": "text", "text": "What is written in the image?"}, {"type": "image", "source": source}]
    message = claude.messages.create(**options(messages=[{"role": "user", "content": content}]))
    assert message.stop_reason == "end_turn" and message.content[0].text


def test_errors(claude):
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(**options(model="claude"))
    assert missing.value.type == "not_found_error" and missing.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="mcp_servers"):
        claude.messages.create(**options(extra_body={"mcp_servers": [{"name": "x"}]}))
