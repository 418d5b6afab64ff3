"""instructor: objects out of answers, in each of the ways it has to get them."""

from __future__ import annotations

import instructor
import openai
import pytest
from pydantic import BaseModel, Field


class Thing(BaseModel):
    name: str = Field(max_length=8)
    count: int = Field(ge=0, le=9)


class my_calculator(BaseModel):  # noqa: N801
    """A calculator that can evaluate a mathematical expression."""

    # Named as the bundled model learned it; it would not fill the fields of a tool that it has never seen.
    expression: str = Field(description="The mathematical expression to evaluate.")


@pytest.mark.parametrize(
    ("mode", "kind", "asked"),
    [
        (instructor.Mode.JSON_SCHEMA, Thing, "A thing."),
        (instructor.Mode.TOOLS, my_calculator, "What is 12 * 34?"),
    ],
)
def test_objects(server, model, mode, kind, asked):
    raw = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=120)
    client = instructor.from_openai(raw, mode=mode)
    found = client.chat.completions.create(
        model=model,
        response_model=kind,
        max_retries=2,
        max_tokens=400,
        temperature=0,
        messages=[{"role": "user", "content": asked}],
    )
    assert isinstance(found, kind)


def test_partial_objects_of_a_stream(server, model):
    raw = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=120)
    client = instructor.from_openai(raw, mode=instructor.Mode.JSON_SCHEMA)
    things = client.chat.completions.create_partial(
        model=model,
        response_model=Thing,
        max_tokens=400,
        temperature=0,
        messages=[{"role": "user", "content": "A thing."}],
    )
    assert list(things)[-1].count is not None
