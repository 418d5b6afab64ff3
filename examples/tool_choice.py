"""Offers two tools: several calls at once where several things are asked, none where none fits.

python examples/tool_choice.py [MODEL]
"""

from __future__ import annotations

import sys
from typing import Any

from ventoux import LLM, SamplingParams


def tool(name: str, description: str, parameter: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    tool("get_weather", "Get the weather of a city", "city"),
    tool("get_time", "Tell the time in a place", "place"),
]


def main(model: str | None = None) -> None:
    with LLM(model) as llm:
        for question in ("Tell me the weather in Paris and the time in Tokyo.", "Thank you!"):
            params = SamplingParams(temperature=0, max_tokens=100)
            message = llm.chat([{"role": "user", "content": question}], params, tools=TOOLS).outputs[0].message
            calls = [f"{call.name}({call.arguments})" for call in message.tool_calls]
            print(f"{question} -> {' and '.join(calls) or message.content}")


if __name__ == "__main__":
    main(*sys.argv[1:])
