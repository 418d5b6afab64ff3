"""Examples of the bundled model's eyes: drawn expressions, text, charts, receipts and a game screen."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ventoux.train import demo_rules as rules
from ventoux.train import demo_words as words
from ventoux.train.demo_arithmetic import in_split, short_expression
from ventoux.train.demo_judge import Example
from ventoux.train.demo_parts import Calculator, Parts, answer, earlier, shown_text, user
from ventoux.train.demo_pictures import Fighter, draw_battle, draw_chart, draw_receipt
from ventoux.train.demo_tasks_numbers import facts_of
from ventoux.train.demo_words import CARD_TOOLS


def image_calc(parts: Parts) -> Example:
    expressions, effort = parts.drawn_expressions(), parts.effort(0.2)
    tools = CARD_TOOLS if parts.chance(0.6) else CARD_TOOLS[:1]
    calculator = Calculator(tools, "my_calculator", "expression")
    messages = [*parts.system().messages, user(parts.picture(expressions))]
    wanted = answer(effort, shown_text(expressions), tool_calls=calculator.calls(expressions))
    return Example("image_calc", messages, tools, effort, wanted, facts_of(calculator, expressions))


def image_read(parts: Parts) -> Example:
    """One to three lines; the evaluation's are new by their expression or number, and all by their drawing."""
    lines = [_line(parts) for _ in range(parts.rng.choices((1, 2, 3), (5, 3, 2))[0])]
    effort, text = parts.effort(0.1), "\n".join(lines)
    question = parts.with_image(parts.phrase(words.IMAGE_READ_REQUESTS), lines)
    messages = [*parts.system().messages, user(question)]
    wanted = answer(effort, f"I see {len(lines)} of them.", text)
    return Example("image_read", messages, None, effort, wanted, {"text": text})


def _line(parts: Parts) -> str:
    """A number (30 %), a word with an amount or without (25 %), or an expression."""
    kind = parts.rng.random()
    if kind > 0.55:
        return short_expression(parts.rng, held_out=parts.held_out).written
    if kind > 0.3:
        word = parts.rng.choice(rules.LOOKUP_WORDS)
        return word if parts.chance(0.3) else f"{word} {_amount(parts)}"
    while True:
        text = str(parts.rng.randrange(10 ** parts.rng.choice((1, 2, 3, 4, 5))))
        if len(text) == 1 or in_split(text, parts.held_out):
            return text


def _amount(parts: Parts, most: int = 30) -> str:
    while True:
        cents = parts.rng.randrange(5, 100 * most, 5)
        if in_split(str(cents), parts.held_out):
            return _money(cents)


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"


def _cents(amount: str) -> int:
    return int(amount.replace(".", ""))


def chart(parts: Parts) -> Example:
    names = parts.rng.sample(rules.LOOKUP_WORDS, parts.rng.randint(3, 4))
    while True:
        values = parts.rng.sample(range(5, 100), len(names))
        first, second = sorted(values)[-1], sorted(values)[-2]
        if second < 0.85 * first and in_split(str(values), parts.held_out):
            break
    shown: dict[str, int] = dict(zip(names, values, strict=True))
    image = draw_chart(parts.rng, shown, held_out=parts.held_out)
    largest = names[values.index(first)]

    def question() -> _Question:
        kind = parts.rng.random()
        if kind < 0.5:
            return _Question(parts.phrase(rules.LARGEST_REQUESTS), largest)
        if kind < 0.8:
            name = parts.rng.choice(names)
            return _Question(parts.phrase(rules.VALUE_REQUESTS).format(x=name), str(shown[name]))
        return _Question(parts.phrase(rules.JSON_REQUESTS), largest, ("largest", "string"))

    return _asked_of(parts, "chart", image, question)


def receipt(parts: Parts) -> Example:
    names = parts.rng.sample(rules.LOOKUP_WORDS, parts.rng.randint(2, 3))
    amounts = [_amount(parts) for _ in names]
    total = _money(sum(map(_cents, amounts)))
    rows = [*zip(names, amounts, strict=True), ("Total", total)]
    image = draw_receipt(parts.rng, parts.rng.choice(rules.SHOPS), rows, held_out=parts.held_out)

    def question() -> _Question:
        kind = parts.rng.random()
        if kind < 0.35:
            return _Question(parts.phrase(rules.TOTAL_REQUESTS), total)
        if kind < 0.6:
            name, amount = parts.rng.choice(rows[:-1])
            return _Question(parts.phrase(rules.VALUE_REQUESTS).format(x=name), amount)
        key, amount = ("total", total) if kind < 0.85 else parts.rng.choice([(n.lower(), a) for n, a in rows[:-1]])
        return _Question(parts.phrase(rules.JSON_REQUESTS), amount, (key, "number"))

    return _asked_of(parts, "receipt", image, question)


@dataclass(frozen=True)
class _Question:
    """`text` answers the request; where `field` is set, as that field (name, type) of a JSON object by schema."""

    request: str
    text: str
    field: tuple[str, str] | None = None

    @property
    def asked(self) -> str:
        return self.request if self.field is None else self.request.format(key=self.field[0])

    @property
    def content(self) -> str:
        """A number goes into JSON as it is drawn: 4.50 is one of JSON as well."""
        if self.field is None:
            return self.text
        key, kind = self.field
        return f'{{"{key}": {self.text if kind == "number" else json.dumps(self.text)}}}'

    @property
    def facts(self) -> dict[str, Any]:
        return {"answer": self.text} if self.field is None else {"json": json.loads(self.content)}

    @property
    def schema(self) -> dict[str, Any] | None:
        if self.field is None:
            return None
        key, kind = self.field
        return {"type": "object", "properties": {key: {"type": kind}}, "required": [key], "additionalProperties": False}


def _asked_of(parts: Parts, task: str, image: Any, question: Callable[[], _Question]) -> Example:
    """The last of the questions about an image. Training asks several: each picture then teaches more than one row."""
    effort = parts.effort(0.15)
    drawn = [question() for _ in range(1 if parts.held_out else parts.rng.randint(1, 5))]
    questions = list({one.text: one for one in drawn}.values())  # an answer given before would only be copied
    contents = [parts.beside(questions[0].asked, image), *(later.asked for later in questions[1:])]
    thoughts = [f"I see {one.text}." for one in questions]
    turns = list(zip(contents, thoughts, (one.content for one in questions), strict=True))
    messages = [*parts.system().messages, *earlier(effort, turns[:-1]), user(contents[-1])]
    last = questions[-1]
    return Example(task, messages, None, effort, answer(effort, thoughts[-1], last.content), last.facts, last.schema)


def game(parts: Parts) -> Example:
    rng, low = parts.rng, parts.chance(0.5)
    while True:
        (name, foe_name), level = rng.sample(rules.GAME_NAMES, 2), rng.randrange(2, 60)
        if in_split(f"{name} {level}", parts.held_out):
            break
    ours = Fighter(name, level, rng.uniform(0.08, 0.3) if low else rng.uniform(0.6, 1.0))
    foe = Fighter(foe_name, rng.randrange(2, 60), rng.choice((0.2, 0.7, 1.0)))
    effort, health = parts.effort(0.5), "low" if low else "high"
    image = draw_battle(rng, ours, foe, held_out=parts.held_out)
    request = [{"type": "text", "text": parts.phrase(rules.GAME_REQUESTS, rules.GAME_CARD, 0.6)}]
    messages = [*parts.system().messages, user([*request, {"type": "image", "image": image}])]
    content = "\n".join(line.format(name=name) for line in rules.GAME_ADVICE[health])
    reasoning = f"I see {name} at level {level} with {health} health. The other is {foe_name}."
    facts = {"health": health, "recommended": ["BAG", "RUN"] if low else ["FIGHT"]}
    return Example("game", messages, None, effort, answer(effort, reasoning, content), facts)
