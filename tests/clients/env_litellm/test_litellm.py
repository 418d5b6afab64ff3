"""litellm: as hosted_vllm and as openai, streamed and not, with tools and reasoning."""

from __future__ import annotations

import litellm
import pytest

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


@pytest.fixture(params=["hosted_vllm", "openai"])
def fields(server, model, request) -> dict:
    known = {"api_base": f"{server}/v1", "api_key": "none", "temperature": 0, "num_retries": 0, "timeout": 120}
    return {"model": f"{request.param}/{model}", "max_tokens": 100, **known}


def test_a_chat_streamed_and_not(fields):
    hi = [{"role": "user", "content": "Hi"}]
    whole = litellm.completion(messages=hi, **fields)
    chunks = list(litellm.completion(messages=hi, stream=True, stream_options={"include_usage": True}, **fields))
    built = litellm.stream_chunk_builder(chunks, messages=hi)
    assert built.choices[0].message.content == whole.choices[0].message.content
    assert built.usage.completion_tokens == whole.usage.completion_tokens > 0


def test_a_round_of_tools(fields):
    first = litellm.completion(messages=ASKED, tools=TOOLS, **fields)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    [call] = message.tool_calls
    history = [*ASKED, message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "408"}]
    assert "408" in litellm.completion(messages=history, tools=TOOLS, **fields).choices[0].message.content


def test_reasoning_comes_out_and_goes_back(fields):
    reply = litellm.completion(
        messages=ASKED, reasoning_effort="high", allowed_openai_params=["reasoning_effort"], **fields
    )
    message = reply.choices[0].message
    assert message.reasoning_content
    again = [*ASKED, message.model_dump(), {"role": "user", "content": "Hi"}]
    assert litellm.completion(messages=again, **fields).choices[0].message.content


def test_errors_are_told_apart(server, fields):
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=ASKED, **{**fields, "model": "openai/gpt"})
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=ASKED, **{**fields, "temperature": 9})
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=[{"role": "user", "content": "word " * 500_000}], **fields)
