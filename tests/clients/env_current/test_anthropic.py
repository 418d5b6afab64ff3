"""anthropic: messages, thinking, tools and counts."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import pytest

ASKED = [{"role": "user", "content": "What is 12 * 34?"}]
TOOL = {
    "name": "my_calculator",
    "description": "A calculator that can evaluate a mathematical expression.",
    "input_schema": {
        "type": "object",
        "properties": {"expression": {"type": "string", "description": "The mathematical expression to evaluate."}},
        "required": ["expression"],
    },
}


@pytest.fixture(scope="module")
def client(server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server, api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_a_stream_with_thinking(client, model):
    with client.messages.stream(
        model=model, max_tokens=200, messages=ASKED, thinking={"type": "enabled", "budget_tokens": 1024}
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert {"message_start", "content_block_delta", "thinking", "message_stop"} <= kinds
    assert final.content[0].type == "thinking" and final.usage.output_tokens > 0


def test_a_round_of_tools(client, model):
    fields = {"model": model, "max_tokens": 100, "tools": [TOOL], "extra_body": {"temperature": 0}}
    first = client.messages.create(messages=ASKED, **fields)
    [use] = [block for block in first.content if block.type == "tool_use"]
    assert first.stop_reason == "tool_use" and use.input["expression"]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "408"}
    history = [*ASKED, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    assert "408" in client.messages.create(messages=history, **fields).content[0].text


def test_the_tool_runner_runs_tools_by_itself(client, model):
    @anthropic.beta_tool
    def my_calculator(expression: str) -> str:
        """A calculator that can evaluate a mathematical expression.

        Args:
            expression: The mathematical expression to evaluate.
        """
        return "408"

    runner = client.beta.messages.tool_runner(
        model=model, max_tokens=100, tools=[my_calculator], messages=ASKED, extra_body={"temperature": 0}, thread=False
    )
    messages = list(runner)
    assert [message.stop_reason for message in messages] == ["tool_use", "end_turn"]
    assert "408" in messages[-1].content[0].text
    with pytest.raises(anthropic.BadRequestError, match="thread"):
        list(client.beta.messages.tool_runner(model=model, max_tokens=100, tools=[my_calculator], messages=ASKED))


def test_counts_and_errors(client, model):
    assert client.messages.count_tokens(model=model, messages=ASKED).input_tokens > 5
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude", max_tokens=5, messages=ASKED)
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model=model, max_tokens=0, messages=ASKED)
