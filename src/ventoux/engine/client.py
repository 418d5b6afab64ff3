"""The one way to reach an engine, whether it runs in this process or in its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from ventoux.engine.request import EngineOutput, EngineStats, Request


class EngineClient(Protocol):
    """submit, abort, stats: all that the rooms above know of an engine."""

    def submit(self, request: Request) -> AsyncIterator[EngineOutput]:
        """Adds a request and yields its outputs until every one of its `params.n` sequences has finished.

        Closing the iterator early aborts the request. Raises EngineDeadError if the engine is gone.
        """
        ...

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request (or one of its sequences) within one step; unknown ids are no error."""
        ...

    def stats(self) -> EngineStats:
        """The latest snapshot; raises EngineDeadError if the engine is gone."""
        ...
