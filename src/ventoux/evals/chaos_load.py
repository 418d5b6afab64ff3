"""The load of `bench serve --chaos`: requests of all protocols and kinds, and what the answer to each must be."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ventoux.evals.hostile import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from ventoux.evals.hostile_media import data_url, picture

_WORDS = ("the", "red", "house", "stands", "by", "a", "river", "and", "nobody", "asks", "why", "seven", "birds", "came")
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "count": {"type": "integer"}},
    "required": ["name", "count"],
    "additionalProperties": False,
}
_FUNCTION = {"name": "look_up", "description": "Looks something up.", "parameters": _SCHEMA}
# Ends of an answer that make it a whole one; others were cut by max_tokens.
_WHOLE = ("stop", "tool_calls")


class Asked(NamedTuple):
    """A request, and the fault in the complete answer to it: `fault(events)`, None if there is none.

    `events` are a stream's, or the one object of an answer that was not streamed.
    """

    kind: str
    path: str
    body: dict[str, Any]
    fault: Callable[[Sequence[Mapping[str, Any]]], str | None]


def draw(rng: random.Random, model: str, max_model_len: int) -> Asked:
    """Any request of the mixture, streamed or not."""
    kind = rng.choice(list(_KINDS))
    asked = _KINDS[kind](rng, max_model_len)
    body = {"model": model, "stream": rng.random() < 0.6, "temperature": rng.choice((0, 0.7, 1.0)), **asked.body}
    return asked._replace(kind=kind, body=body)


def canary(model: str) -> Asked:
    """The same question every time; whatever else is going on, its answer must be the same."""
    body = {"model": model, "messages": _say("Count from one to ten."), "temperature": 0, "max_tokens": 24}
    return Asked("canary", CHAT, body, _chat_fault)


def text_of(answer: Mapping[str, Any]) -> str:
    """All that an answer of /v1/chat/completions says, as text that can be compared."""
    return json.dumps(answer["choices"][0]["message"], sort_keys=True)


def _say(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(_WORDS, k=count))


def _tokens(rng: random.Random) -> int:
    return rng.choice((1, 4, 16, 48))


def _short(rng: random.Random, _: int) -> Asked:
    return Asked("", CHAT, {"messages": _say(_words(rng, 8)), "max_tokens": _tokens(rng)}, _chat_fault)


def _several(rng: random.Random, _: int) -> Asked:
    scores = {"n": 3, "logprobs": True, "top_logprobs": 2, "seed": rng.randrange(1000)}
    return Asked("", CHAT, {"messages": _say(_words(rng, 8)), "max_tokens": 8, **scores}, _chat_fault)


def _long(rng: random.Random, max_model_len: int) -> Asked:
    # A word is at most three tokens of any vocabulary that knows English. The cap keeps a CPU from reading for minutes.
    messages = _say(_words(rng, min(max_model_len // 6, rng.choice((300, 600, 1200)))))
    return Asked("", CHAT, {"messages": messages, "max_tokens": _tokens(rng)}, _chat_fault)


def _reasoning(rng: random.Random, _: int) -> Asked:
    body = {"messages": _say("What is 12 + 30?"), "reasoning_effort": "high", "max_tokens": 48}
    return Asked("", CHAT, body, _chat_fault)


def _image(rng: random.Random, _: int) -> Asked:
    url = data_url(picture((rng.randrange(28, 240), rng.randrange(28, 240))))
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    return Asked("", CHAT, {"messages": [{"role": "user", "content": content}], "max_tokens": 16}, _chat_fault)


def _tools(rng: random.Random, _: int) -> Asked:
    choice = rng.choice(("auto", "required"))
    body = {"tools": [{"type": "function", "function": _FUNCTION}], "tool_choice": choice, "max_tokens": 96}
    return Asked("", CHAT, {"messages": _say("Look up seven birds."), **body}, _call_fault)


def _grammar(rng: random.Random, _: int) -> Asked:
    wanted = {"type": "json_schema", "json_schema": {"name": "thing", "schema": _SCHEMA}}
    body = {"messages": _say(_words(rng, 8)), "response_format": wanted, "max_tokens": 96}
    return Asked("", CHAT, body, _json_fault)


def _plain(rng: random.Random, _: int) -> Asked:
    return Asked("", COMPLETIONS, {"prompt": _words(rng, 30), "max_tokens": _tokens(rng)}, _completion_fault)


def _messages(rng: random.Random, _: int) -> Asked:
    body: dict[str, Any] = {"messages": _say(_words(rng, 8)), "max_tokens": 32}
    if rng.random() < 0.5:
        body["tools"] = [{"name": "look_up", "description": "Looks it up.", "input_schema": _SCHEMA}]
        body["tool_choice"] = {"type": "any"}
        body["max_tokens"] = 96
    else:
        body["thinking"] = {"type": rng.choice(("adaptive", "disabled"))}
    return Asked("", MESSAGES, body, _messages_fault)


def _responses(rng: random.Random, _: int) -> Asked:
    body = {"input": _words(rng, 8), "max_output_tokens": 32, "store": False}
    return Asked("", RESPONSES, body, _responses_fault)


_KINDS: dict[str, Callable[[random.Random, int], Asked]] = {
    "short": _short,
    "several answers with scores": _several,
    "long": _long,
    "reasoning": _reasoning,
    "image": _image,
    "tools": _tools,
    "grammar": _grammar,
    "plain completion": _plain,
    "messages": _messages,
    "responses": _responses,
}


@dataclass
class _Choice:
    """What the events of one choice add up to."""

    text: str = ""
    arguments: defaultdict[int, str] = field(default_factory=lambda: defaultdict(str))  # by call
    ended: str | None = None


def _choices(events: Sequence[Mapping[str, Any]], part: str) -> dict[int, _Choice]:
    """By index. `part`: where the pieces stand, message or delta."""
    found: defaultdict[int, _Choice] = defaultdict(_Choice)
    for event in events:
        for choice in event.get("choices", ()):
            piece, sofar = choice.get(part) or {}, found[choice["index"]]
            sofar.text += piece.get("content") or choice.get("text") or ""
            sofar.ended = choice.get("finish_reason") or sofar.ended
            for i, call in enumerate(piece.get("tool_calls") or ()):
                # Whole messages have their calls in a row, without numbers.
                sofar.arguments[call.get("index", i)] += call["function"].get("arguments", "")
    return found


def _parts(events: Sequence[Mapping[str, Any]]) -> dict[int, _Choice]:
    streamed = bool(events) and str(events[0].get("object", "")).endswith(".chunk")
    return _choices(events, "delta" if streamed else "message")


def _chat_fault(events: Sequence[Mapping[str, Any]]) -> str | None:
    parts = _parts(events)
    if not parts or any(choice.ended is None for choice in parts.values()):
        return "a choice has no finish_reason"
    return None


_completion_fault = _chat_fault


def _json_fault(events: Sequence[Mapping[str, Any]]) -> str | None:
    for choice in _parts(events).values():
        if choice.ended in _WHOLE and not _fits(choice.text):
            return f"{choice.text!r} does not follow its schema"
    return _chat_fault(events)


def _call_fault(events: Sequence[Mapping[str, Any]]) -> str | None:
    for choice in _parts(events).values():
        for arguments in choice.arguments.values() if choice.ended == "tool_calls" else ():
            if not _is_json(arguments):
                return f"the arguments {arguments!r} are no JSON"
    return _chat_fault(events)


def _fits(text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("count"), int)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _messages_fault(events: Sequence[Mapping[str, Any]]) -> str | None:
    last = events[-1]
    if last.get("type") not in ("message", "message_stop"):
        return f"it ends with {last.get('type')}"
    if last["type"] == "message" and last.get("stop_reason") is None:
        return "there is no stop_reason"
    return None


def _responses_fault(events: Sequence[Mapping[str, Any]]) -> str | None:
    last = events[-1]
    status = last.get("response", last).get("status")
    return None if status in ("completed", "incomplete") else f"its status is {status}"
