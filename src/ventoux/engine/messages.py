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


Command = Add | Abort | Stop
Event = EngineOutput | EngineStats
