"""Generated token ids -> reasoning, content and tool calls, as they arrive.

Control tokens are recognised by id, so text that merely spells one is never mistaken for it. Every answer is a fold
over the events, streamed or not.

    content --[THINK]--> reasoning --[/THINK]--> content
    content, reasoning or arguments --[TOOL_CALLS]--> name --[ARGS] or "{"--> arguments --end of JSON--> content

Nothing that the model wrote is lost. A call is announced once its name is whole and its arguments have begun with "{"
(or ended, empty: then they are "{}"); what turns out wrong before that comes out as content: no name or one that no
function can have, no arguments, arguments that are no JSON object. After that its text goes out as arguments,
whatever it is, until the object's last brace or, if that never comes, until the call ends.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Iterable, Sequence
from enum import Enum, auto

import msgspec

from ventoux.text.detokenizer import Detokenizer
from ventoux.text.tokenizer import Tokenizer

TOOL_CALL_ID_LENGTH = 9
_ID_ALPHABET = string.ascii_letters + string.digits
_FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_JSON_STRUCTURE = re.compile(r'["\\{}\[\]]')


class Reasoning(msgspec.Struct, frozen=True, tag=True):
    text: str


class Content(msgspec.Struct, frozen=True, tag=True):
    text: str


class ToolCallStart(msgspec.Struct, frozen=True, tag=True):
    index: int
    name: str


class ToolCallArguments(msgspec.Struct, frozen=True, tag=True):
    index: int
    text: str


Event = Reasoning | Content | ToolCallStart | ToolCallArguments


class ToolCall(msgspec.Struct):
    name: str
    arguments: str = ""


class Message(msgspec.Struct):
    """A complete answer. Empty strings where the model wrote nothing."""

    reasoning: str = ""
    content: str = ""
    tool_calls: list[ToolCall] = []


def fold(events: Iterable[Event]) -> Message:
    """The complete answer that a stream of events amounts to."""
    # Pieces are joined at the end: adding them up one by one would take seconds for an answer of 200,000 tokens.
    reasoning: list[str] = []
    content: list[str] = []
    calls: list[tuple[str, list[str]]] = []
    for event in events:
        match event:
            case Reasoning(text):
                reasoning.append(text)
            case Content(text):
                content.append(text)
            case ToolCallStart(_, name):
                calls.append((name, []))
            case ToolCallArguments(index, text):
                calls[index][1].append(text)
    tool_calls = [ToolCall(name, "".join(arguments)) for name, arguments in calls]
    return Message("".join(reasoning), "".join(content), tool_calls)


def new_tool_call_id() -> str:
    """Nine random letters and digits, the form that every version of mistral-common accepts."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(TOOL_CALL_ID_LENGTH))


class _State(Enum):
    CONTENT = auto()
    REASONING = auto()
    CALL = auto()


class StreamParser:
    """The state machine for one generated sequence.

    Args:
        parse_tools: False (tool_choice "none"): calls are not made; their text comes out as content.
        parse_reasoning: False: reasoning comes out as content.
        start_in_reasoning: The prompt ends inside an open think block (`Prompt.in_reasoning`).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        parse_tools: bool = True,
        parse_reasoning: bool = True,
        start_in_reasoning: bool = False,
    ):
        self._tokenizer = tokenizer
        self._control = tokenizer.control
        self._detokenizer = Detokenizer(tokenizer)
        self._parse_tools = parse_tools
        self._parse_reasoning = parse_reasoning
        self._state = _State.REASONING if start_in_reasoning and parse_reasoning else _State.CONTENT
        self._events: list[Event] = []
        # Held back: whitespace that is dropped if reasoning ends with it, or if nothing else stands beside a call.
        self._reasoning_space = ""
        self._content_space = ""
        self._has_content = False
        self._call = _Call()
        self.num_tool_calls = 0
        self.num_reasoning_tokens = 0

    def push(self, token_ids: Sequence[int]) -> list[Event]:
        """Feeds generated ids, in any portions, and returns the events that are certain now."""
        for token_id in token_ids:
            is_control = self._tokenizer.is_control(token_id)
            if self._state is _State.REASONING and not is_control:
                self.num_reasoning_tokens += 1
            self._text(self._detokenizer.push(token_id))
            if is_control:
                self._control_token(token_id)
        return self._take_events()

    def finish(self) -> list[Event]:
        """Ends the sequence and returns the last events."""
        self._text(self._detokenizer.flush())
        self._enter(_State.CONTENT)
        if not self.num_tool_calls:
            self._emit(Content(self._content_space))
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _emit(self, event: Event) -> None:
        """Adds an event, joined with the one before if both are pieces of the same text."""
        last = self._events[-1] if self._events else None
        match last, event:
            case _, Reasoning("") | Content("") | ToolCallArguments(_, ""):
                return
            case Reasoning(before), Reasoning(text):
                self._events[-1] = Reasoning(before + text)
            case Content(before), Content(text):
                self._events[-1] = Content(before + text)
            case ToolCallArguments(index, before), ToolCallArguments(same, text) if index == same:
                self._events[-1] = ToolCallArguments(index, before + text)
            case _:
                self._events.append(event)

    def _control_token(self, token_id: int) -> None:
        """Every control token that means nothing here is dropped: a second [THINK], a stray [/THINK], [INST], ..."""
        control = self._control
        if token_id == control.tool_calls:
            if self._parse_tools:
                self._enter(_State.CALL)
            elif self._state is _State.REASONING:
                self._enter(_State.CONTENT)
        elif token_id == control.args and self._state is _State.CALL:
            if not self._call.end_name():
                self._give_up_call("")
        elif token_id == control.begin_think and self._parse_reasoning and self._state is not _State.REASONING:
            self._enter(_State.REASONING)
        elif token_id == control.end_think and self._state is _State.REASONING:
            self._enter(_State.CONTENT)

    def _enter(self, state: _State) -> None:
        """Closes what is open and goes on in a new state."""
        if self._state is _State.REASONING:
            self._reasoning_space = ""
        elif self._state is _State.CALL:
            self._end_call()
        if state is _State.CALL:
            self._content_space = ""
            self._has_content = False
            self._call = _Call()
        self._state = state

    def _text(self, text: str) -> None:
        if self._state is _State.REASONING:
            text = self._reasoning_space + text
            kept = text.rstrip()
            self._reasoning_space = text[len(kept) :]
            self._emit(Reasoning(kept))
        elif self._state is _State.CONTENT:
            self._content(text)
        elif text:
            self._call_text(text)

    def _content(self, text: str) -> None:
        if not self._has_content:
            text = self._content_space + text
            self._has_content = bool(text.strip())
            self._content_space = "" if self._has_content else text
        if self._has_content:
            self._emit(Content(text))

    def _call_text(self, text: str) -> None:
        call = self._call
        if not call.in_arguments:
            before, brace, after = text.partition("{")
            call.name += before
            text = brace + after
            if not call.may_be_name() or (brace and not call.end_name()):
                self._give_up_call(text)
                return
            if not brace:
                return
        if not call.started:
            call.space += text[: len(text) - len(text.lstrip())]
            text = text.lstrip()
            if not text:
                return
            if text[0] != "{":
                self._give_up_call(text)
                return
            self._start_call()
        end = call.find_end(text)
        self._emit(ToolCallArguments(self.num_tool_calls - 1, text[:end]))
        if end is not None:
            self._state = _State.CONTENT
            self._content(text[end:])

    def _start_call(self) -> None:
        self._call.started = True
        self._emit(ToolCallStart(self.num_tool_calls, self._call.name.strip()))
        self.num_tool_calls += 1

    def _end_call(self) -> None:
        """The call's text is over, before the end of its arguments."""
        if not self._call.in_arguments:
            self._give_up_call("")
        elif not self._call.started:
            self._start_call()
            self._emit(ToolCallArguments(self.num_tool_calls - 1, "{}"))

    def _give_up_call(self, text: str) -> None:
        """This is no call: all of its text so far, and `text`, is content."""
        self._state = _State.CONTENT
        self._content(self._call.name + self._call.space + text)


class _Call:
    """One call while it is being written: what was read of it but not yet announced, and where its arguments end."""

    def __init__(self):
        self.name = ""
        self.space = ""  # between the name and the arguments
        self.in_arguments = False
        self.started = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def may_be_name(self) -> bool:
        """Whether the name read so far can still become a function's name."""
        name = self.name.strip()
        return not name or _FUNCTION_NAME.fullmatch(name) is not None

    def end_name(self) -> bool:
        """The arguments begin; returns whether the name is a function's."""
        self.in_arguments = True
        return _FUNCTION_NAME.fullmatch(self.name.strip()) is not None

    def find_end(self, text: str) -> int | None:
        """Reads on in the arguments; returns where in `text` the JSON object ends, or None if it goes on."""
        if not text:
            return None
        at = 1 if self._escaped else 0
        self._escaped = False
        while found := _JSON_STRUCTURE.search(text, at):
            at = found.end()
            character = found[0]
            if self._in_string:
                if character == "\\":
                    self._escaped = at == len(text)
                    at += 1
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character != "\\":
                self._depth += 1 if character in "{[" else -1
                if self._depth == 0:
                    return at
        return None
