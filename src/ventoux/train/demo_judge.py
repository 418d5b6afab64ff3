"""One example of the bundled model's training data, and whether a reply to it is right."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ventoux.train.demo_arithmetic import canonical
from ventoux.train.demo_rules import GAME_ACTIONS


@dataclass(frozen=True)
class Example:
    """One conversation and the answer wanted.

    messages: OpenAI-shaped; an image is the part `{"type": "image", "image": PIL.Image.Image}`.
    reasoning_effort: "none" or "high"; `answer["reasoning"]` is a text under "high" and None under "none".
    answer: {"reasoning": str | None, "content": str | None, "tool_calls": [{"name": str, "arguments": dict}]}.
    facts: what `judge` compares with; its keys depend on the task.
    schema: the JSON Schema that the answer is asked to follow, if any.
    alone: no other example can share the conversation, since its system prompt rules the answer, or for its length.
    """

    task: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    reasoning_effort: str
    answer: dict[str, Any]
    facts: dict[str, Any]
    schema: dict[str, Any] | None = None
    alone: bool = False


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
    """Every action has its line with a reason, and the one that is recommended fits the health on the screen."""
    content = _content(reply)
    advice = re.findall(r"recommend (\w+)", content)
    reasoned = all(re.search(rf"^{action}: (?:good|bad), \S", content, re.MULTILINE) for action in GAME_ACTIONS)
    return reasoned and bool(advice) and advice[-1] in example.facts["recommended"]


def _json_of(reply: dict[str, Any]) -> Any:
    try:
        return json.loads(_content(reply))
    except ValueError:
        return None


def _looked_up(example: Example, reply: dict[str, Any]) -> bool:
    """The answer asked for and nothing else, or the one JSON object."""
    if reply.get("tool_calls"):
        return False
    if "json" in example.facts:
        return _json_of(reply) == example.facts["json"]
    return _content(reply).strip().rstrip(".").casefold() == example.facts["answer"].casefold()


def _obeyed(example: Example, reply: dict[str, Any]) -> bool:
    """The rule's own test: the answers of one language, the words allowed, the name, or one JSON object."""
    facts, content = example.facts, _content(reply).strip()
    if reply.get("tool_calls"):
        return False
    if "json_key" in facts:
        return _json_of(reply) in [{facts["json_key"]: text} for text in facts["accepted"]]
    if "name" in facts:
        return re.search(rf"(?<!\w){re.escape(facts['name'])}(?!\w)", content) is not None
    if "max_words" in facts:
        return 0 < len(content.split()) <= facts["max_words"] and content in facts["accepted"]
    return content in facts["accepted"]


def _tool_choice(example: Example, reply: dict[str, Any]) -> bool:
    """Exactly the calls asked for, in any order; without a fitting tool an answer in words."""

    def told(calls: list[dict[str, Any]]) -> Counter[str]:
        return Counter(json.dumps([call["name"], call["arguments"]], sort_keys=True) for call in calls)

    wanted = example.answer["tool_calls"]
    return told(reply.get("tool_calls") or []) == told(wanted) and (bool(wanted) or bool(_content(reply).strip()))


def _key(example: Example, reply: dict[str, Any]) -> bool:
    return re.findall(r"\d+", _content(reply)) == [example.facts["key"]] and not reply.get("tool_calls")


_JUDGES = {
    "alphabet": _alphabet,
    "calc_call": _calls,
    "calc_result": _calc_result,
    "sum_think": _sum_think,
    "sum_direct": _sum_think,
    "chat": _chat,
    "languages": _chat,
    "system": _obeyed,
    "tool_choice": _tool_choice,
    "image_calc": _calls,
    "image_read": _image_read,
    "chart": _looked_up,
    "receipt": _looked_up,
    "game": _game,
    "long_8k": _key,
    "long_32k": _key,
    "long_128k": _key,
}
