"""Arithmetic for the bundled model's examples: random expressions, their values, column-wise traces, the split."""

import hashlib
import random
from dataclasses import dataclass

from ventoux.train.demo_words import OPERATOR_WORDS


def in_split(text: str, held_out: bool) -> bool:
    """Whether `text` belongs to the asked split: one tenth of all texts, by hash, is held out for evaluation."""
    return (hashlib.sha256(text.encode()).digest()[0] % 10 == 0) == held_out


def canonical(expression: str) -> str:
    """The form by which expressions are compared and split: no spaces."""
    return "".join(expression.split())


def value(expression: str) -> str:
    """What the model card's calculator prints, `str(eval(expression))`; only ever given our own expressions.

    Raises ZeroDivisionError where Python does.
    """
    return str(eval(expression, {"__builtins__": {}}))


@dataclass(frozen=True)
class Expression:
    shown: str  # as it stands in the question, e.g. "12 times 3"
    written: str  # as the calculator gets it, e.g. "12 * 3"
    value: str


def _number(rng: random.Random, digits: int) -> str:
    return str(rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits))


def _tokens(rng: random.Random, num_operands: int, digit_weights: tuple[int, ...]) -> list[str]:
    """Operands at even, operators at odd places; a pair of operands may carry parentheses."""
    sizes = rng.choices(range(1, len(digit_weights) + 1), digit_weights, k=num_operands)
    operands = [_number(rng, size) for size in sizes]
    if num_operands > 2 and rng.random() < 0.5:
        start = rng.randrange(num_operands - 1)
        operands[start] = "(" + operands[start]
        operands[start + 1] += ")"
    tokens = [operands[0]]
    for operand in operands[1:]:
        tokens += [rng.choices("+-*/", (3, 3, 4, 2))[0], operand]
    return tokens


def _worded(rng: random.Random, tokens: list[str]) -> str:
    return " ".join(rng.choice(OPERATOR_WORDS[t]) if t in OPERATOR_WORDS else t for t in tokens)


def text_expression(rng: random.Random, *, held_out: bool) -> Expression:
    """An expression of 2 to 4 operands of 1 to 4 digits, some in words, some without spaces, a few decimals."""
    while True:
        tokens = _tokens(rng, rng.choices((2, 3, 4), (5, 4, 1))[0], (7, 8, 4, 2))
        if rng.random() < 0.04 and not tokens[0].startswith("("):
            tokens[0] += f".{rng.randrange(1, 10)}"
        written = " ".join(tokens)
        if not in_split(canonical(written), held_out):
            continue
        try:
            result = value(written)
        except ZeroDivisionError:
            continue
        form = rng.random()
        if form < 0.15:
            return Expression(_worded(rng, tokens), written, result)
        if form < 0.35:
            return Expression("".join(tokens), "".join(tokens), result)
        return Expression(written, written, result)


def short_expression(rng: random.Random, *, held_out: bool) -> Expression:
    """An expression of 2 or 3 operands of 1 or 2 digits, for one line of an image; some are drawn tight or with x."""
    while True:
        tokens = _tokens(rng, rng.choices((2, 3), (7, 3))[0], (1, 1))
        written = " ".join(tokens)
        if not in_split(canonical(written), held_out):
            continue
        try:
            result = value(written)
        except ZeroDivisionError:
            continue
        shown = written if rng.random() < 0.8 else canonical(written)
        if rng.random() < 0.2:
            shown = shown.replace("*", "x")  # Pillow's built-in font has no multiplication or division sign
        return Expression(shown, written, result)


def hard_expression(rng: random.Random, *, held_out: bool) -> Expression:
    """What the model does not work out alone, with or without a trace: a quotient, three operands, or four digits."""
    while True:
        tokens = _tokens(rng, rng.choices((2, 3, 4), (5, 4, 1))[0], (4, 4, 3, 4))
        written = " ".join(tokens)
        hard = len(tokens) > 3 or "/" in tokens or any(len(token) > 3 for token in tokens)
        if hard and in_split(canonical(written), held_out):
            return Expression(written, written, "")


def traced_sum(rng: random.Random, *, easy: bool, held_out: bool) -> tuple[int, str, int]:
    """Two operands and the operator between them, fit for `trace`; the easy ones can be answered at once."""
    while True:
        operator = rng.choices("+-*", (4, 3, 3))[0]
        digits = (1, 2) if easy else (1, 2, 3)
        a = rng.randrange(10 ** rng.choice(digits))
        b = rng.randrange(10 ** (1 if easy else rng.choice(digits)))
        if operator == "*":
            a, b = a % (10 if easy else 100), b % 10
        if operator == "-" and a < b:
            a, b = b, a
        if in_split(f"{a}{operator}{b}", held_out):
            return a, operator, b


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """Digits of both numbers, units first, the shorter one filled with zeros."""
    width = max(len(str(a)), len(str(b)))
    return list(zip(map(int, reversed(str(a).zfill(width))), map(int, reversed(str(b).zfill(width))), strict=True))


def trace(a: int, operator: str, b: int) -> tuple[str, int]:
    """The column-wise calculation in words, and its result; products take `b` < 10, differences `b` <= `a`.

    `trace(34, "+", 58)` is "34 + 58. 4 + 8 = 12, write 2, carry 1. 3 + 5 + 1 = 9, write 9. The answer is 92.", 92.
    """
    result = {"+": a + b, "-": a - b, "*": a * b}[operator]
    columns = [(int(digit), b) for digit in reversed(str(a))] if operator == "*" else _columns(a, b)
    step = _subtract if operator == "-" else _accumulate
    return f"{a} {operator} {b}. {step(columns, operator)} The answer is {result}.", result


def _accumulate(columns: list[tuple[int, int]], operator: str) -> str:
    steps, carry = [], 0
    for place, (x, y) in enumerate(columns):
        total = (x * y if operator == "*" else x + y) + carry
        left = f"{x} {operator} {y}" + (f" + {carry}" if place else "")
        if place == len(columns) - 1:
            steps.append(f"{left} = {total}, write {total}.")
        else:
            steps.append(f"{left} = {total}, write {total % 10}, carry {total // 10}.")
        carry = total // 10
    return " ".join(steps)


def _subtract(columns: list[tuple[int, int]], operator: str) -> str:
    steps, borrow = [], 0
    for place, (x, y) in enumerate(columns):
        difference = x - y - borrow
        left = f"{x} {operator} {y}" + (f" - {borrow}" if place else "")
        if difference < 0:
            steps.append(f"{left} = {difference}, write {difference + 10}, borrow 1.")
        elif place == len(columns) - 1:
            steps.append(f"{left} = {difference}, write {difference}.")
        else:
            steps.append(f"{left} = {difference}, write {difference}, borrow 0.")
        borrow = int(difference < 0)
    return " ".join(steps)
