"""Arithmetic for the bundled model's examples: random expressions, their values, digit-wise traces, the split."""

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
            shown = shown.replace("*", "x")
        return Expression(shown, written, result)


def hard_expression(rng: random.Random, *, held_out: bool) -> Expression:
    """What the model does not work out alone, with or without a trace: a quotient, or a number of four digits."""
    while True:
        tokens = _tokens(rng, rng.choices((2, 3, 4), (5, 4, 1))[0], (4, 4, 3, 4))
        written = " ".join(tokens)
        hard = "/" in tokens or any(len(token.strip("()")) > 3 for token in tokens)
        if hard and in_split(canonical(written), held_out):
            return Expression(written, written, "")


# Digits of the numbers of a sum and of its two results, hundreds first. Every digit has a letter of its own, so that
# the digit a step needs is found by its letter, as a word is found in a list.
_OPERANDS = ("cba", "zyx", "mlk")
_RESULTS = ("rqp", "vut")


@dataclass(frozen=True)
class Sum:
    """`numbers` (two or three of at most three digits) joined by `operators` from left to right; a product comes first
    and its second number has one digit. No result on the way is negative or has more than three digits."""

    numbers: tuple[int, ...]
    operators: tuple[str, ...]

    @property
    def text(self) -> str:
        rest = (f" {operator} {number}" for operator, number in zip(self.operators, self.numbers[1:], strict=True))
        return str(self.numbers[0]) + "".join(rest)

    def results(self) -> list[int]:
        """After every operator, the last one last."""
        found = [self.numbers[0]]
        for operator, number in zip(self.operators, self.numbers[1:], strict=True):
            found.append({"+": found[-1] + number, "-": found[-1] - number, "*": found[-1] * number}[operator])
        return found[1:]

    def trace(self) -> str:
        """The calculation digit by digit: "34 + 58. c0 b3 a4, z0 y5 x8. a4 + x8+0=1 p2. b3 + y5+1=0 q9. and so on."""
        spelled = [_spelled(number, letters) for number, letters in zip(self.numbers, _OPERANDS, strict=False)]
        steps, left = [], (_OPERANDS[0], self.numbers[0])
        for i, result in enumerate(self.results()):
            right = (_OPERANDS[i + 1], self.numbers[i + 1])
            steps += _columns(self.operators[i], left, right, _RESULTS[i])
            left = (_RESULTS[i], result)
        return f"{self.text}. {', '.join(spelled)}. {' '.join(steps)} {_spelled(left[1], left[0])}: {left[1]}."


def _spelled(number: int, letters: str) -> str:
    return " ".join(letter + digit for letter, digit in zip(letters, f"{number:03}", strict=True))


def column(operator: str, left: str, right: str, carry: int, result: str) -> tuple[str, int]:
    """One step, "a7 + x5+0=1 p2." (carry, then digit), and its carry; a difference takes its carry away.

    A product is stated before its carry is added, "a7 * x5=35+1=3 p6.": of products there are 100 to learn by heart,
    of products with a carry 900.
    """
    x, y = int(left[1]), int(right[1])
    if operator == "-":
        total = x - y - carry
        digit, after = total % 10, int(total < 0)
    else:
        after, digit = divmod((x * y if operator == "*" else x + y) + carry, 10)
    before = {"+": f"+{carry}", "-": f"-{carry}", "*": f"={x * y:02}+{carry}"}[operator]
    return f"{left} {operator} {right}{before}={after} {result}{digit}.", after


def _columns(operator: str, left: tuple[str, int], right: tuple[str, int], result: str) -> list[str]:
    """The steps of one operator, units first; the one digit of a product's second number meets every digit."""
    lefts, rights = _spelled(left[1], left[0]).split(), _spelled(right[1], right[0]).split()
    steps, carry = [], 0
    for place in (2, 1, 0):
        step, carry = column(operator, lefts[place], rights[2 if operator == "*" else place], carry, result[place])
        steps.append(step)
    return steps


def random_sum(rng: random.Random, *, steps: int, held_out: bool) -> Sum:
    """A sum of `steps` operators, one or two."""
    while True:
        product = rng.random() < 0.3
        operators = tuple("*" if product and i == 0 else rng.choice("+-") for i in range(steps))
        numbers = [rng.randrange(10 ** rng.choices((1, 2, 3), (1, 4, 4))[0]) for _ in range(steps + 1)]
        if product:
            numbers[1] = rng.randrange(2, 10)
        asked = Sum(tuple(numbers), operators)
        if all(0 <= result <= 999 for result in asked.results()) and in_split(canonical(asked.text), held_out):
            return asked
