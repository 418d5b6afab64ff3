"""langchain-openai: an agent that calls a tool, a structured answer, and streams."""

from __future__ import annotations

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field


class Thing(BaseModel):
    """A thing."""

    name: str = Field(max_length=8)
    count: int = Field(ge=0, le=9)


@tool
def my_calculator(expression: str) -> str:
    """A calculator that can evaluate a mathematical expression."""
    return "408"


@pytest.fixture(scope="module", params=[False, True], ids=["chat", "responses"])
def chat(server, model, request) -> ChatOpenAI:
    return ChatOpenAI(
        model=model,
        base_url=f"{server}/v1",
        api_key="none",
        temperature=0,
        max_retries=0,
        max_tokens=300,
        stream_usage=True,
        use_responses_api=request.param,
    )


def test_an_agent_calls_its_tool_and_answers(chat):
    agent = create_agent(chat, [my_calculator])
    messages = agent.invoke({"messages": [{"role": "user", "content": "What is 12 * 34?"}]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert messages[1].tool_calls[0]["name"] == "my_calculator"
    assert "408" in str(messages[-1].content)


def test_a_stream_adds_up(chat):
    chunks = list(chat.stream("Hi"))
    assert len(chunks) > 2
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert whole.usage_metadata["output_tokens"] > 0 and str(whole.content)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_answers(chat, method):
    thing = chat.with_structured_output(Thing, method=method, strict=True).invoke("A thing.")
    assert isinstance(thing, Thing)
