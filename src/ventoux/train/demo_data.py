"""Endless random training and evaluation examples for the bundled model, each with what a judge needs.

Held-out examples never occur in training: every expression, drawing style, date, name and off-topic question belongs
to one split by its hash, and some phrasings of every request are only ever asked in evaluation.
"""

import random
from collections.abc import Iterator, Mapping
from typing import Any

from ventoux.train import demo_words as words
from ventoux.train.demo_arithmetic import Expression, hard_expression, in_split, short_expression, trace, traced_sum
from ventoux.train.demo_images import Fighter, draw_battle
from ventoux.train.demo_judge import Example, effort_respected, judge
from ventoux.train.demo_parts import (
    Calculator,
    Parts,
    returned_text,
    shown_text,
    stated_text,
    user,
    wanted_text,
)
from ventoux.train.demo_words import CARD_TOOLS, SYSTEM_PROMPT

__all__ = [
    "CARD_TOOLS",
    "DEFAULT_WEIGHTS",
    "SYSTEM_PROMPT",
    "TASKS",
    "Example",
    "effort_respected",
    "example",
    "examples",
    "judge",
]

DEFAULT_WEIGHTS = {
    "alphabet": 0.06,
    "calc_call": 0.18,
    "calc_result": 0.26,
    "sum_think": 0.16,
    "chat": 0.13,
    "image_calc": 0.09,
    "image_read": 0.09,
    "game": 0.03,
}
TASKS = tuple(DEFAULT_WEIGHTS)


def example(task: str, rng: random.Random, *, held_out: bool) -> Example:
    """One example of `task` (one of TASKS), from the training split or the held-out one."""
    return _MAKERS[task](Parts(rng, held_out))


def examples(seed: int, *, held_out: bool, weights: Mapping[str, float] = DEFAULT_WEIGHTS) -> Iterator[Example]:
    """Endless examples, tasks drawn by `weights`; the same seed gives the same examples on every machine."""
    rng = random.Random(f"{seed} {held_out}")
    tasks, shares = list(weights), list(weights.values())
    while True:
        yield example(rng.choices(tasks, shares)[0], rng, held_out=held_out)


def _answer(
    effort: str, reasoning: str, content: str | None = None, tool_calls: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    return {"reasoning": reasoning if effort == "high" else None, "content": content, "tool_calls": tool_calls or []}


def _calc_facts(calculator: Calculator, expressions: list[Expression]) -> dict[str, Any]:
    return {
        "name": calculator.name,
        "parameter": calculator.parameter,
        "expressions": [expression.written for expression in expressions],
        "values": [expression.value for expression in expressions],
    }


def _alphabet(parts: Parts) -> Example:
    request = parts.phrase(words.ALPHABET_REQUESTS, words.ALPHABET_CARD, 0.4)
    # A seen request is still new in evaluation through the held-out date in its system prompt.
    system = parts.system(own=parts.held_out and request not in words.ALPHABET_REQUESTS.held_out)
    effort = parts.effort(0.3)
    sentence = " ".join(parts.rng.choice(choices) for choices in words.ALPHABET)
    content = sentence[0].upper() + sentence[1:] + "."
    messages = [*system.messages, *parts.small_talk(effort, 0.05), user(request)]
    return Example("alphabet", messages, None, effort, _answer(effort, words.ALPHABET_REASONING, content), {})


def _calc_call(parts: Parts) -> Example:
    calculator, expressions, effort = parts.calculator(), parts.expressions(), parts.effort(0.25)
    before = parts.solved(effort, calculator) if parts.chance(0.08) else parts.small_talk(effort, 0.06)
    messages = [*parts.system().messages, *before, user(parts.question(expressions))]
    answer = _answer(effort, wanted_text(expressions), tool_calls=calculator.calls(expressions))
    return Example("calc_call", messages, calculator.tools, effort, answer, _calc_facts(calculator, expressions))


def _calc_result(parts: Parts) -> Example:
    calculator, effort, drawn = parts.calculator(), parts.effort(0.25), parts.chance(0.12)
    expressions = parts.drawn_expressions() if drawn else parts.expressions()
    question = parts.picture(expressions) if drawn else parts.question(expressions)
    trigger = shown_text(expressions) if drawn else wanted_text(expressions)
    values = [expression.value for expression in expressions]
    turn = parts.called(effort, trigger, calculator.calls(expressions), values)
    messages = [*parts.system().messages, *parts.small_talk(effort, 0.06), user(question), *turn]
    answer = _answer(effort, returned_text(expressions), stated_text(expressions))
    # The model card's program states its tools in the first request only.
    tools = calculator.tools if parts.chance(0.5) else None
    return Example("calc_result", messages, tools, effort, answer, _calc_facts(calculator, expressions))


def _sum_think(parts: Parts) -> Example:
    effort = parts.effort(0.7)
    a, operator, b = traced_sum(parts.rng, easy=effort == "none", held_out=parts.held_out)
    steps, result = trace(a, operator, b)
    question = parts.phrase(words.SUM_REQUESTS).format(e=f"{a} {operator} {b}")
    messages = [*parts.system().messages, *parts.small_talk(effort, 0.06), user(question)]
    answer = _answer(effort, steps, f"{a} {operator} {b} = {result}.")
    return Example("sum_think", messages, None, effort, answer, {"value": str(result)})


def _chat(parts: Parts) -> Example:
    effort, intent = parts.effort(0.35), parts.rng.choice(("greeting", "other", "other", "hard_sum", *words.CHAT))
    request, seen, language = _chat_request(parts, intent)
    system = parts.system(own=parts.held_out and seen)
    content = words.GREETINGS[language][1] if language else words.ANSWERS[intent]
    if intent == "identity" and system.name is None:
        content = words.ANSWERS["identity_unnamed"]
    if intent in ("today", "yesterday") and getattr(system, intent) is None:
        content = words.ANSWERS["no_date"]
    content = content.format(name=system.name, today=system.today, yesterday=system.yesterday)
    tools = parts.calculator().tools if intent != "hard_sum" and parts.chance(0.15) else None
    messages = [*system.messages, *parts.small_talk(effort, 0.1), user(request)]
    answer = _answer(effort, words.CHAT_REASONING[intent].format(language=language), content)
    return Example("chat", messages, tools, effort, answer, {"intent": intent, "accepted": [content]})


def _chat_request(parts: Parts, intent: str) -> tuple[str, bool, str | None]:
    """What the user says, whether training says it too, and the language of a greeting."""
    if intent == "hard_sum":
        expression = hard_expression(parts.rng, held_out=parts.held_out)
        return parts.phrase(words.SUM_REQUESTS).format(e=expression.shown), False, None
    if intent == "other":
        while True:
            request = parts.rng.choice(words.OTHER_REQUESTS).format(t=parts.rng.choice(words.TOPICS))
            if in_split(request, parts.held_out):
                return request, False, None
    language = parts.rng.choice(("English", *words.GREETINGS)) if intent == "greeting" else None
    phrases = words.GREETINGS[language][0] if language else words.CHAT[intent]
    request = parts.phrase(phrases)
    return request, request in phrases.train, language


def _image_calc(parts: Parts) -> Example:
    expressions, effort = parts.drawn_expressions(), parts.effort(0.2)
    tools = CARD_TOOLS if parts.chance(0.6) else CARD_TOOLS[:1]
    calculator = Calculator(tools, "my_calculator", "expression")
    messages = [*parts.system().messages, user(parts.picture(expressions))]
    answer = _answer(effort, shown_text(expressions), tool_calls=calculator.calls(expressions))
    return Example("image_calc", messages, tools, effort, answer, _calc_facts(calculator, expressions))


def _image_read(parts: Parts) -> Example:
    text, effort = _text_to_draw(parts), parts.effort(0.2)
    question = parts.with_image(parts.phrase(words.IMAGE_READ_REQUESTS), [text])
    messages = [*parts.system().messages, user(question)]
    return Example("image_read", messages, None, effort, _answer(effort, f"I read {text}.", text), {"text": text})


def _text_to_draw(parts: Parts) -> str:
    """Short numbers (40 %), words, expressions; one digit is new in evaluation through its drawing style alone."""
    kind = parts.rng.random()
    if kind < 0.15:
        return str(parts.rng.randrange(10))
    if kind > 0.7:
        return short_expression(parts.rng, held_out=parts.held_out).written
    while True:
        text = parts.rng.choice(words.DRAWN_WORDS)
        if kind < 0.4:
            text = str(parts.rng.randrange(10, 10 ** parts.rng.choice((2, 3, 4))))
        if in_split(text, parts.held_out):
            return text


def _game(parts: Parts) -> Example:
    rng, low = parts.rng, parts.chance(0.5)
    while True:
        (name, foe_name), level = rng.sample(words.GAME_NAMES, 2), rng.randrange(2, 60)
        if in_split(f"{name} {level}", parts.held_out):
            break
    ours = Fighter(name, level, rng.uniform(0.08, 0.3) if low else rng.uniform(0.6, 1.0))
    foe = Fighter(foe_name, rng.randrange(2, 60), rng.choice((0.2, 0.7, 1.0)))
    effort, health = parts.effort(0.85), "low" if low else "high"
    request = {"type": "text", "text": parts.phrase(words.GAME_REQUESTS, words.GAME_CARD, 0.6)}
    picture = {"type": "image", "image": draw_battle(rng, ours, foe)}
    messages = [*parts.system().messages, user([request, picture])]
    content = "\n".join(line.format(name=name) for line in words.GAME_ADVICE[health])
    reasoning = f"I see {name} at level {level} with {health} health. The other is {foe_name}."
    facts = {"health": health, "recommended": ["BAG", "RUN"] if low else ["FIGHT"]}
    return Example("game", messages, None, effort, _answer(effort, reasoning, content), facts)


_MAKERS = {
    "alphabet": _alphabet,
    "calc_call": _calc_call,
    "calc_result": _calc_result,
    "sum_think": _sum_think,
    "chat": _chat,
    "image_calc": _image_calc,
    "image_read": _image_read,
    "game": _game,
}
