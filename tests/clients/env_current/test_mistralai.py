"""mistralai: chats, streams, tools and thinking, in the shapes of Mistral's own interface."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mistralai.client import Mistral

ASKED = [{"role": "user", "content": "What is 12 * 34?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "my_calculator",
            "description": "A calculator that can evaluate a mathematical expression.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string"}},
                "required": ["expression"],
            },
        },
    }
]


@pytest.fixture(scope="module")
def client(server) -> Iterator[Mistral]:
    with Mistral(api_key="none", server_url=server, timeout_ms=120_000) as client:
        yield client


def test_models(client, model):
    assert model in [listed.id for listed in client.models.list().data]


def test_a_chat_streamed_and_not(client, model):
    fields = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 40}
    whole = client.chat.complete(**fields, random_seed=1, safe_prompt=False).choices[0].message.content
    with client.chat.stream(**fields) as events:
        pieces = [event.data.choices[0].delta.content for event in events]
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == whole


def test_a_round_of_tools(client, model):
    fields = {"model": model, "temperature": 0, "max_tokens": 100, "tools": TOOLS, "tool_choice": "any"}
    message = client.chat.complete(messages=ASKED, **fields).choices[0].message
    [call] = message.tool_calls
    assert call.function.name == "my_calculator"
    result = {"role": "tool", "name": call.function.name, "tool_call_id": call.id, "content": "408"}
    fields["tool_choice"] = "auto"
    answer = client.chat.complete(messages=[*ASKED, message, result], **fields)
    assert "408" in answer.choices[0].message.content


@pytest.mark.parametrize("fields", [{"prompt_mode": "reasoning"}, {"reasoning_effort": "high"}])
def test_thinking(client, model, fields):
    answer = client.chat.complete(model=model, messages=ASKED, temperature=0, max_tokens=300, **fields)
    assert answer.choices[0].message.content and answer.usage.completion_tokens > 10


def test_a_prefix_is_gone_on_with(client, model):
    messages = [*ASKED, {"role": "assistant", "content": "12 * 34 =", "prefix": True}]
    assert client.chat.complete(model=model, messages=messages, max_tokens=10).choices[0].message.content
