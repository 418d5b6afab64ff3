"""Chat messages made from another protocol's, with the way back: errors name what the client sent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ventoux.errors import InvalidRequestError

_MESSAGE = re.compile(r"messages\[\d+\]")
_LAST_STEP = re.compile(r"(?:\.[^.\[\]]*|\[\d+\])$")


class Translation:
    """A conversation under construction.

    Attributes:
        messages: OpenAI-shaped; contents are lists of parts.
    """

    def __init__(self, names: Mapping[str, str]):
        """`names`: fields that are called otherwise there, as chat's name -> the client's."""
        self.messages: list[dict[str, Any]] = []
        self._origins = dict(names)

    def message(self, role: str, origin: str, **fields: Any) -> None:
        """Begins a message. `origin` is the path of what it is made from, like those below."""
        self._origins[f"messages[{len(self.messages)}]"] = origin
        self.messages.append({"role": role, "content": [], **fields})

    def part(self, part: dict[str, Any], origin: str) -> None:
        """Adds a content part to the last message."""
        self._add("content", part, origin)

    def text(self, text: Any, origin: str) -> None:
        self.part({"type": "text", "text": text}, origin)

    def call(self, call_id: Any, name: Any, arguments: Any, origin: str) -> None:
        """Adds a tool call to the last message."""
        function = {"name": name, "arguments": arguments}
        self._add("tool_calls", {"id": call_id, "type": "function", "function": function}, origin)
        where = f"messages[{len(self.messages) - 1}].tool_calls[{len(self.messages[-1]['tool_calls']) - 1}]"
        self._origins[f"{where}.function"] = origin

    def name(self, path: str, origin: str) -> None:
        """Whatever lies at `path` in the chat request, and below, came from `origin`."""
        self._origins[path] = origin

    def _add(self, field: str, value: dict[str, Any], origin: str) -> None:
        values = self.messages[-1].setdefault(field, [])
        self._origins[f"messages[{len(self.messages) - 1}].{field}[{len(values)}]"] = origin
        values.append(value)

    def origin(self, path: str) -> str:
        """The client's name of a path: that of the longest part of it which is known, and the rest as it is."""
        known = path
        while known not in self._origins:
            shorter = _LAST_STEP.sub("", known)
            if shorter == known:
                return path
            known = shorter
        return self._origins[known] + path[len(known) :]

    @contextmanager
    def naming(self, headers: dict[str, str]) -> Iterator[None]:
        """Refusals of the chat request, and warnings in `headers`, come out naming what the client sent."""
        try:
            yield
            if "x-warning" in headers:
                headers["x-warning"] = _MESSAGE.sub(lambda found: self.origin(found[0]), headers["x-warning"])
        except InvalidRequestError as e:
            if e.param is not None:
                named = self.origin(e.param)
                e.args = (str(e).replace(e.param, named),)
                e.param = named
            raise
