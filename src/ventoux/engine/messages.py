"""What crosses the border between a client and its engine, in both directions. No torch."""

from __future__ import annotations

import msgspec

from ventoux.engine.request import EngineOutput, EngineStats, Request


class Add(msgspec.Struct, tag="add"):
    request: Request


class Abort(msgspec.Struct, tag="abort"):
    request_id: str
    index: int | None = None


class Stop(msgspec.Struct, tag="stop"):
    pass


class Unreadable(msgspec.Struct, tag="unreadable"):
    """Stands in the engine's inbox for an `Add` that could not be decoded: its request ends, and no other."""

    request_id: str
    n: int


class Working(msgspec.Struct, tag="working"):
    """The requests that the engine computes from now on, told before it begins: if it dies, one of these did it."""

    request_ids: list[str]


class Beat(msgspec.Struct, tag="beat"):
    """Sent a few times a second by a thread of its own: the process lives; whether it gets on, `turns` tells.

    `turns` counts commands taken and steps done. It may stand still only while the engine is not `busy`.
    """

    turns: int
    busy: bool


Command = Add | Abort | Stop
Event = EngineOutput | EngineStats | Working | Beat
