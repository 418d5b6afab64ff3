"""The calculator that `ventoux chat` offers to the model: arithmetic by walking the syntax tree, never `eval`."""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Callable
from typing import Any

NAME = "calculator"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "A calculator that can evaluate a mathematical expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "The mathematical expression to evaluate."}},
            "required": ["expression"],
        },
    },
}

MAX_LENGTH = 400
# Integers of up to 4096 bits (1233 digits): beyond that a power can take all time and memory there is.
MAX_BITS = 4096

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
# How people, and models that learned from them, write operators.
_SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "^": "**"})


def call(name: str, arguments: str) -> str:
    """Answers a tool call. What is wrong with it is the answer too: the model may do better next time."""
    if name != NAME:
        return f"error: there is no tool {name!r}, only {NAME!r}"
    try:
        expression = json.loads(arguments)["expression"]
        return str(evaluate(str(expression)))
    except (KeyError, TypeError, RecursionError):
        return 'error: the arguments must be {"expression": "..."}'
    except ArithmeticError as error:
        return f"error: {error}"
    except ValueError as error:
        return f"error: {error}"


def evaluate(expression: str) -> int | float:
    """The value of + - * / // % ** and parentheses over numbers.

    Raises:
        ValueError: it is no such expression, or its value has too many digits.
        ArithmeticError: a division by zero, or a float out of range.
    """
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"the expression has more than {MAX_LENGTH} characters")
    try:
        tree = ast.parse(expression.translate(_SPELLINGS).strip(), mode="eval")
        return _value(tree.body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("this is no arithmetic expression") from error


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value) if type(value) in (int, float):
            return _checked(value)
        case ast.UnaryOp(op, operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.BinOp(left, ast.Pow(), right):
            return _checked(_power(_value(left), _value(right)))
        case ast.BinOp(left, op, right) if type(op) in _BINARY:
            return _checked(_BINARY[type(op)](_value(left), _value(right)))
    raise ValueError("only numbers, + - * / // % ** and parentheses are understood")


def _power(base: int | float, exponent: int | float) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > 2 * MAX_BITS:
        raise ValueError("the result has too many digits")
    return base**exponent


def _checked(value: Any) -> int | float:
    if isinstance(value, complex):
        raise ValueError("the result is not a real number")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ValueError("the result has too many digits")
    return value
