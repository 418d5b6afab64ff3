"""openai: chats, responses, and the helpers that parse and stream."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from pydantic import BaseModel, Field

ASKED = [{"role": "user", "content": "What is 12 * 34?"}]
CALCULATOR = {
    "name": "my_calculator",
    "description": "A calculator that can evaluate a mathematical expression.",
    "parameters": {
        "type": "object",
        "properties": {"expression": {"type": "string", "description": "The mathematical expression to evaluate."}},
        "required": ["expression"],
        "additionalProperties": False,
    },
}


class Thing(BaseModel):
    # Bounded, so that the bundled model comes to an end.
    name: str = Field(max_length=8)
    count: int = Field(ge=0, le=9)


@pytest.fixture(scope="module")
def client(server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_models(client, model):
    assert model in [listed.id for listed in client.models.list()]
    assert client.models.retrieve(model).id == model


def test_a_chat_streamed_and_not(client, model):
    fields = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**fields).choices[0].message.content
    with client.chat.completions.stream(**fields) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert len(pieces) > 1 and "".join(pieces) == whole == final.choices[0].message.content


def test_parse_gives_an_object(client, model):
    parsed = client.chat.completions.parse(
        model=model, messages=[{"role": "user", "content": "A thing."}], response_format=Thing, max_tokens=300, seed=1
    )
    assert isinstance(parsed.choices[0].message.parsed, Thing)


def test_streamed_parse_gives_an_object(client, model):
    fields = {"model": model, "messages": [{"role": "user", "content": "A thing."}], "response_format": Thing}
    with client.chat.completions.stream(**fields, max_tokens=300, seed=1) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Thing)


def test_a_round_of_tools_with_the_streaming_helper(client, model):
    tools = [{"type": "function", "function": {**CALCULATOR, "strict": True}}]
    fields = {"model": model, "temperature": 0, "max_tokens": 100, "tools": tools}
    with client.chat.completions.stream(messages=ASKED, **fields) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.done" in kinds
    [call] = message.tool_calls
    assert call.function.name == "my_calculator" and call.function.parsed_arguments["expression"]
    result = {"role": "tool", "tool_call_id": call.id, "content": "408"}
    turn = {"role": "assistant", "content": message.content, "tool_calls": [call.model_dump(exclude={"index"})]}
    turn["tool_calls"][0]["function"].pop("parsed_arguments", None)
    answer = client.chat.completions.create(messages=[*ASKED, turn, result], **fields)
    assert "408" in answer.choices[0].message.content


def test_responses_streamed_and_gone_on_from(client, model):
    tools = [{"type": "function", **CALCULATOR}]
    with client.responses.stream(model=model, input="What is 12 * 34?", tools=tools, temperature=0) as stream:
        kinds = [event.type for event in stream]
        first = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    [call] = [item for item in first.output if item.type == "function_call"]
    assert json.loads(call.arguments)["expression"]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "408"}
    second = client.responses.create(model=model, input=[result], previous_response_id=first.id, temperature=0)
    assert "408" in second.output_text
    client.responses.delete(first.id)


def test_responses_parse(client, model):
    response = client.responses.parse(model=model, input="A thing.", text_format=Thing, max_output_tokens=300)
    assert isinstance(response.output_parsed, Thing)


def test_reasoning_stands_under_the_name_that_clients_read(client, model):
    fields = {"model": model, "messages": ASKED, "reasoning_effort": "high", "temperature": 0, "max_tokens": 200}
    message = client.chat.completions.create(**fields).choices[0].message
    assert message.reasoning_content and message.reasoning_content == message.reasoning


def test_errors_are_those_of_the_client(client, model):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt", messages=ASKED)
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=model, messages=ASKED, temperature=9)
    assert bad.value.param == "temperature" and bad.value.request_id


def test_the_asynchronous_client(server, model):
    import asyncio

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=model, messages=ASKED, stream=True, max_tokens=5, stream_options={"include_usage": True}
            )
            return [chunk async for chunk in stream][-1].usage.completion_tokens

    assert asyncio.run(ask()) <= 5
