"""The chat's calculator: right results, and nothing but arithmetic."""

from __future__ import annotations

import json

import pytest

from ventoux.cli.calculator import NAME, call, evaluate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("-2 ** 2", -4),
        ("2 ** -1", 0.5),
        ("7 / 2", 3.5),
        ("7 // 2", 3),
        ("-7 % 3", 2),
        ("1.5e3", 1500.0),
        (" 3 × 4 − 2 ÷ 2", 11.0),
        ("2 ^ 10", 1024),
        ("2 ** 4095", 2**4095),
    ],
)
def test_values(text, value):
    result = evaluate(text)
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "1 +", "__import__('os')", "().__class__", "x", "'a' * 9", "[1][0]", "True + 1", "1j", "1 if 2 else 3"),
        *("(lambda: 1)()", "f'{1}'", "1 < 2", "1, 2", "x := 1", "~1", "1 << 9", "1 and 2", "1\n2", "(-8) ** 0.5"),
        *(
            "9 ** 9 ** 9",
            "2 ** 5000",
            "2 ** 4095 * 2 ** 4095",
            "1" * 401,
            "(" * 200 + "1" + ")" * 200,
            "-" * 399 + "1x",
        ),
    ],
)
def test_what_is_no_arithmetic_or_too_much_of_it(text):
    """Must end at once: neither code, nor a number that fills the memory."""
    with pytest.raises(ValueError):
        evaluate(text)


@pytest.mark.parametrize("text", ["1 / 0", "1 % 0", "10.0 ** 400", "0 ** -1"])
def test_no_value(text):
    with pytest.raises(ArithmeticError):
        evaluate(text)


def test_calls():
    assert call(NAME, json.dumps({"expression": "6 * 7"})) == "42"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("other", "{}", "no tool 'other'"),
        (NAME, "{}", "arguments must be"),
        (NAME, "[]", "arguments must be"),
        (NAME, "{", "error"),
        (NAME, '{"expression": "1 / 0"}', "division by zero"),
        (NAME, '{"expression": "import os"}', "no arithmetic expression"),
        (NAME, '{"expression": null}', "only numbers"),
    ],
)
def test_bad_calls_are_answered_not_raised(name, arguments, message):
    answer = call(name, arguments)
    assert answer.startswith("error: ") and message in answer
