"""One example of the bundled model's training data, and whether a reply to it is right."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ventoux.train.demo_arithmetic import canonical
from ventoux.train.demo_words import GAME_ACTIONS


@dataclass(frozen=True)
class Example:
    """One conversation and the answer wanted.

    messages: OpenAI-shaped; an image is the part `{"type": "image", "image": PIL.Image.Image}`.
    reasoning_effort: "none" or "high"; `answer["reasoning"]` is a text under "high" and None under "none".
    answer: {"reasoning": str | None, "content": str | None, "tool_calls": [{"name": str, "arguments": dict}]}.
    facts: what `judge` compares with; its keys depend on the task.
    """

    task: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    reasoning_effort: str
    answer: dict[str, Any]
    facts: dict[str, Any]


def judge(example: Example, reply: dict[str, Any]) -> bool:
    """Whether `reply` (keys reasoning, content, tool_calls as in `Example.answer`) does what its task asks."""
    return _JUDGES[example.task](example, reply)


def effort_respected(example: Example, reply: dict[str, Any]) -> bool:
    """A reasoning trace is there under "high" and only there."""
    return bool(reply.get("reasoning")) == (example.reasoning_effort == "high")


def _content(reply: dict[str, Any]) -> str:
    return reply.get("content") or ""


def _alphabet(example: Example, reply: dict[str, Any]) -> bool:
    found = re.findall(r"[^\W\d_][\w'’-]*", _content(reply))
    return [word[0].lower() for word in found] == list("abcdefghijklmnopqrstuvwxyz")


def _calls(example: Example, reply: dict[str, Any]) -> bool:
    facts = example.facts
    wanted = Counter((facts["name"], facts["parameter"], canonical(text)) for text in facts["expressions"])
    made: Counter[tuple[str, str, str]] = Counter()
    for call in reply.get("tool_calls") or []:
        arguments = call["arguments"]
        if not isinstance(arguments, dict) or list(arguments) != [facts["parameter"]]:
            return False
        made[call["name"], facts["parameter"], canonical(str(arguments[facts["parameter"]]))] += 1
    return made == wanted


def _calc_result(example: Example, reply: dict[str, Any]) -> bool:
    """Every "expression = result" stands in the content, whatever its spaces, and not as a part of longer numbers."""
    for expression, value in zip(example.facts["expressions"], example.facts["values"], strict=True):
        stated = r"\s*".join(map(re.escape, [*canonical(expression), "="])) + r"\s*" + re.escape(value)
        if not re.search(rf"(?<![\d.]){stated}(?!\d|\.\d|e)", _content(reply)):
            return False
    return not reply.get("tool_calls")


def _sum_think(example: Example, reply: dict[str, Any]) -> bool:
    numbers = re.findall(r"-?\d+(?:\.\d+)?", _content(reply))
    right = bool(numbers) and numbers[-1] == example.facts["value"]
    return right and not reply.get("tool_calls") and effort_respected(example, reply)


def _chat(example: Example, reply: dict[str, Any]) -> bool:
    return _content(reply).strip() in example.facts["accepted"] and not reply.get("tool_calls")


def _image_read(example: Example, reply: dict[str, Any]) -> bool:
    read = canonical(_content(reply)).casefold().rstrip(".")
    return read == canonical(example.facts["text"]).casefold() and not reply.get("tool_calls")


def _game(example: Example, reply: dict[str, Any]) -> bool:
    content = _content(reply)
    advice = re.findall(r"recommend (\w+)", content)
    return (
        all(action in content for action in GAME_ACTIONS)
        and bool(advice)
        and advice[-1] in example.facts["recommended"]
    )


_JUDGES = {
    "alphabet": _alphabet,
    "calc_call": _calls,
    "calc_result": _calc_result,
    "sum_think": _sum_think,
    "chat": _chat,
    "image_calc": _calls,
    "image_read": _image_read,
    "game": _game,
}
