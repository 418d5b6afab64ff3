"""Lets the model call a calculator, for a question and for an image, and gives the results back until it answers.

python examples/tools.py [MODEL]
"""

from __future__ import annotations

import ast
import json
import operator
import sys
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ventoux import LLM, SamplingParams
from ventoux.text.stream_parser import new_tool_call_id

MAX_ROUNDS = 4
IN_IMAGE = (
    "Thanks to your calculator, compute the results for the equations that involve numbers displayed in the image."
)
CALCULATOR = {
    "type": "function",
    "function": {
        "name": "my_calculator",
        "description": "A calculator that can evaluate a mathematical expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "The mathematical expression to evaluate."}},
            "required": ["expression"],
        },
    },
}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def picture(lines: list[str]) -> Image.Image:
    """Rows of 28 pixels: what the vision tower hands to the decoder is 28 pixels high and wide."""
    image = Image.new("RGB", (140, 28 * len(lines)), "white")
    for row, line in enumerate(lines):
        place = (6, 28 * row + 14)
        ImageDraw.Draw(image).text(place, line, fill="black", font=ImageFont.load_default(size=23), anchor="lm")
    return image


def evaluate(expression: str) -> float:
    """The value of + - * / over numbers. Walks the syntax tree: `eval` would run whatever the model writes.

    Raises ValueError or ArithmeticError.
    """

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(int() | float() as number):
                return number
            case ast.UnaryOp(ast.USub(), operand):
                return -value(operand)
            case ast.BinOp(left, op, right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](value(left), value(right))
        raise ValueError("only numbers and + - * / are understood")

    if len(expression) > 200:
        raise ValueError("the expression is too long")
    try:
        return value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, RecursionError) as error:
        raise ValueError("this is no arithmetic expression") from error


def run(name: str, arguments: str) -> str:
    """The result of a call. A mistake of the model is a result too: it may do better next time."""
    if name != CALCULATOR["function"]["name"]:
        return f"error: there is no tool {name}"
    try:
        return str(evaluate(json.loads(arguments)["expression"]))
    except (ValueError, ArithmeticError, KeyError, TypeError, AttributeError) as error:
        return f"error: {error}"


def converse(llm: LLM, question: str | list[dict[str, Any]]) -> str:
    """Asks, answers calls, and returns the final words."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    params = SamplingParams(temperature=0, max_tokens=200)
    for _ in range(MAX_ROUNDS):
        message = llm.chat(messages, params, tools=[CALCULATOR]).outputs[0].message
        if not message.tool_calls:
            return message.content
        ids = [new_tool_call_id() for _ in message.tool_calls]
        calls = [
            {"id": i, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for i, call in zip(ids, message.tool_calls, strict=True)
        ]
        messages.append({"role": "assistant", "content": message.content, "tool_calls": calls})
        for call_id, call in zip(ids, message.tool_calls, strict=True):
            result = run(call.name, call.arguments)
            print(f"{call.name}({call.arguments}) = {result}")
            messages.append({"role": "tool", "tool_call_id": call_id, "content": result})
    return f"(no answer after {MAX_ROUNDS} rounds)"


def main(model: str | None = None) -> None:
    with LLM(model) as llm:
        print(converse(llm, "What is 12 * 34?"))
        print(
            converse(
                llm, [{"type": "text", "text": IN_IMAGE}, {"type": "image", "image": picture(["12 + 34", "7 * 6"])}]
            )
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
