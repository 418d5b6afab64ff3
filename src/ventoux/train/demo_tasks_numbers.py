"""Examples of the bundled model's arithmetic: calls of a calculator, their results, and sums worked out alone."""

from typing import Any

from ventoux.train import demo_words as words
from ventoux.train.demo_arithmetic import Expression, random_sum
from ventoux.train.demo_judge import Example
from ventoux.train.demo_parts import (
    Calculator,
    Parts,
    answer,
    returned_text,
    shown_text,
    stated_text,
    user,
    wanted_text,
)


def facts_of(calculator: Calculator, expressions: list[Expression]) -> dict[str, Any]:
    return {
        "name": calculator.name,
        "parameter": calculator.parameter,
        "expressions": [expression.written for expression in expressions],
        "values": [expression.value for expression in expressions],
    }


def calc_call(parts: Parts) -> Example:
    calculator, expressions, effort = parts.calculator(), parts.expressions(), parts.effort(0.25)
    before = parts.solved(effort, calculator) if parts.chance(0.08) else parts.small_talk(effort, 0.06)
    messages = [*parts.system().messages, *before, user(parts.question(expressions))]
    wanted = answer(effort, wanted_text(expressions), tool_calls=calculator.calls(expressions))
    return Example("calc_call", messages, calculator.tools, effort, wanted, facts_of(calculator, expressions))


def calc_result(parts: Parts) -> Example:
    calculator, effort, drawn = parts.calculator(), parts.effort(0.25), parts.chance(0.12)
    expressions = parts.drawn_expressions() if drawn else parts.expressions()
    question = parts.picture(expressions) if drawn else parts.question(expressions)
    trigger = shown_text(expressions) if drawn else wanted_text(expressions)
    values = [expression.value for expression in expressions]
    turn = parts.called(effort, trigger, calculator.calls(expressions), values)
    messages = [*parts.system().messages, *parts.small_talk(effort, 0.06), user(question), *turn]
    wanted = answer(effort, returned_text(expressions), stated_text(expressions))
    # The model card's program states its tools in the first request only.
    tools = calculator.tools if parts.chance(0.5) else None
    return Example("calc_result", messages, tools, effort, wanted, facts_of(calculator, expressions))


def sum_think(parts: Parts) -> Example:
    return _sum(parts, "sum_think", "high")


def sum_direct(parts: Parts) -> Example:
    return _sum(parts, "sum_direct", "none")


def _sum(parts: Parts, task: str, effort: str) -> Example:
    """The evaluation asks sums of two steps only; nothing but the effort differs between both tasks."""
    steps = 2 if parts.held_out or parts.chance(0.75) else 1
    asked = random_sum(parts.rng, steps=steps, held_out=parts.held_out)
    question = parts.phrase(words.SUM_REQUESTS).format(e=asked.text)
    messages = [*parts.system().messages, *parts.small_talk(effort, 0.06), user(question)]
    result = asked.results()[-1]
    wanted = answer(effort, asked.trace(), f"{asked.text} = {result}.")
    return Example(task, messages, None, effort, wanted, {"value": str(result)})
