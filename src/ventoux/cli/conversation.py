"""A conversation: its turns, and the loop that answers tool calls until the model answers in words."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from ventoux.text.answer import AnswerEvent
from ventoux.text.stream_parser import Content, Event, Message, ToolCall, fold, new_tool_call_id

# Rounds of tool calls before a question is given up; a model that only ever calls would never end.
MAX_ROUNDS = 10


class ToolResult(msgspec.Struct, frozen=True, tag=True):
    """What a tool gave back; the only event that does not come from the model."""

    name: str
    text: str


class Cut(msgspec.Struct, frozen=True, tag=True):
    """The answer ends here because it has reached its limit of tokens, not because the model was through."""


class Model(Protocol):
    """Where answers come from: a model in this process, or a server."""

    def stream(
        self, messages: list[dict[str, Any]], *, tools: list[dict[str, Any]] | None, reasoning_effort: str
    ) -> Iterable[AnswerEvent | Cut]: ...


@dataclass
class Conversation:
    """Attributes:
    system: The system prompt; "": none.
    think: Ask for reasoning before the answer.
    tools: Offered to the model; empty: none.
    call: Runs a tool: (name, arguments as JSON) -> result.
    turns: All messages but the system prompt, OpenAI-shaped.
    images: Content parts that go with the next question.
    """

    model: Model
    call: Callable[[str, str], str]
    system: str = ""
    think: bool = False
    tools: list[dict[str, Any]] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)

    def reset(self) -> None:
        """Forgets all turns; system prompt and settings stay."""
        self.turns.clear()
        self.images.clear()

    def ask(self, text: str) -> Generator[Event | ToolResult | Cut, None, None]:
        """Sends a question, with the images that wait, and yields what comes back.

        If it ends early (an error, or the generator is closed), the words that had come stay as the answer; if there
        were none, the question is taken back.
        """
        start = len(self.turns)
        images = list(self.images)
        self.turns.append({"role": "user", "content": [{"type": "text", "text": text}, *images] if images else text})
        self.images.clear()
        for _ in range(MAX_ROUNDS):
            events: list[Event] = []
            try:
                yield from self._answer(events)
            except BaseException as error:
                self._end_early(start, fold(events), images if isinstance(error, Exception) else [])
                raise
            message = fold(events)
            ids = [new_tool_call_id() for _ in message.tool_calls]
            self.turns.append(_assistant(message, ids))
            if not message.tool_calls:
                return
            for call, call_id in zip(message.tool_calls, ids, strict=True):
                result = self.call(call.name, call.arguments)
                self.turns.append({"role": "tool", "tool_call_id": call_id, "content": result})
                yield ToolResult(call.name, result)
        self._end_early(start, Message(), [])
        yield Content(f"[no answer after {MAX_ROUNDS} rounds of tool calls; the question is taken back]")

    def _answer(self, events: list[Event]) -> Iterator[Event | Cut]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        effort = "high" if self.think else "none"
        for event in self.model.stream([*system, *self.turns], tools=self.tools or None, reasoning_effort=effort):
            # Scores of tokens come too, if they were asked for; a reader has no use for them.
            if isinstance(event, Event):
                events.append(event)
                yield event
            elif isinstance(event, Cut):
                yield event

    def _end_early(self, start: int, said: Message, images: list[dict[str, Any]]) -> None:
        if said.content and not said.tool_calls:
            self.turns.append(_assistant(said, []))
        else:
            del self.turns[start:]
            self.images[:0] = images


def _assistant(message: Message, call_ids: list[str]) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "assistant", "content": message.content}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, i) for call, i in zip(message.tool_calls, call_ids, strict=True)]
    return turn


def _call(call: ToolCall, call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
