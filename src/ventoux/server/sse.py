"""Answers that notice when their client goes away, and server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ventoux.server.errors import to_api_error

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds of silence after which a comment goes out: proxies cut idle connections, often after 30 to 60.
PING_SECONDS = 15.0
# A client that does not take a chunk for so long is treated as gone.
WRITE_TIMEOUT = 60.0
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


class EventStream(Response):
    """Sends JSON objects as `data:` events and ends with `data: [DONE]`. An exception becomes an error event.

    `chunks` is closed as soon as the client is gone, whether or not something was being sent.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[dict[str, Any], None], headers: Mapping[str, str]):
        # no-transform, no buffering: proxies must pass every event on at once.
        fixed = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
        super().__init__(headers={**fixed, **headers})
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_disconnected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events()) as events, aclosing(_with_pings(events)) as lines:
            async for line in lines:
                await _write(send, line, more=True)
        await _write(send, b"", more=False)

    async def _events(self) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    yield b"data: " + _encode(chunk) + b"\n\n"
        except Exception as e:
            yield b"data: " + _encode(to_api_error(e).body()) + b"\n\n"
        yield b"data: [DONE]\n\n"


async def _write(send: Send, body: bytes, *, more: bool) -> None:
    try:
        async with asyncio.timeout(WRITE_TIMEOUT):
            await send({"type": "http.response.body", "body": body, "more_body": more})
    except TimeoutError:
        raise ClientGoneError from None


async def _with_pings(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Passes events on, with a comment whenever none came for PING_SECONDS."""
    pending: asyncio.Future[bytes] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({pending}, timeout=PING_SECONDS)
            if not done:
                yield b": ping\n\n"
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
