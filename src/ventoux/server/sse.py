"""Answers that notice when their client goes away, and server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ventoux.server.errors import ApiError, to_api_error

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds of silence after which a ping goes out: proxies cut idle connections, often after 30 to 60.
PING_SECONDS = 15.0
_encode = msgspec.json.encode


class ClientGoneError(Exception):
    """The connection was closed before the answer was complete; nobody is there to be told."""


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work`, cancelling it as soon as the client disconnects; then raises ClientGoneError.

    The request's body must have been read: the next message can only be the disconnect.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True)
class Framing:
    """How one protocol writes its events.

    Attributes:
        named: Each event has an `event:` line with its `type`.
        error: An error as an event.
        end: What follows the last event.
        ping: What goes out when nothing else does.
    """

    named: bool
    error: Callable[[ApiError], dict[str, Any]]
    end: bytes = b""
    ping: bytes = b": ping\n\n"

    def write(self, event: dict[str, Any]) -> bytes:
        name = f"event: {event['type']}\n".encode() if self.named else b""
        return name + b"data: " + _encode(event) + b"\n\n"


OPENAI = Framing(named=False, error=ApiError.body, end=b"data: [DONE]\n\n")
ANTHROPIC = Framing(named=True, error=ApiError.anthropic_body, ping=b'event: ping\ndata: {"type":"ping"}\n\n')
# Responses tell of their failures themselves, with events that are numbered.
RESPONSES = Framing(named=True, error=ApiError.body)


class EventStream(Response):
    """Sends JSON objects as server-sent events. An exception becomes an error event.

    `chunks` is closed as soon as the client is gone, whether or not something was being sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self, chunks: AsyncGenerator[dict[str, Any], None], headers: Mapping[str, str], framing: Framing = OPENAI
    ):
        # no-transform, no buffering: proxies must pass every event on at once.
        fixed = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
        super().__init__(headers={**fixed, **headers})
        del self.headers["content-length"]
        self._chunks = chunks
        self._framing = framing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_disconnected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events()) as events, aclosing(_with_pings(events, self._framing.ping)) as lines:
            async for line in lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    yield self._framing.write(chunk)
        except Exception as e:
            yield self._framing.write(self._framing.error(to_api_error(e)))
        if self._framing.end:
            yield self._framing.end


async def _with_pings(events: AsyncGenerator[bytes, None], ping: bytes) -> AsyncGenerator[bytes, None]:
    """Passes events on, with a ping whenever none came for PING_SECONDS."""
    pending: asyncio.Future[bytes] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({pending}, timeout=PING_SECONDS)
            if not done:
                yield ping
                continue
            try:
                event = pending.result()
            except StopAsyncIteration:
                return
            finally:
                pending = None
            yield event
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
