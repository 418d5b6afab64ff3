"""The one way to reach an engine, whether it runs in a thread of this process or in a process of its own."""

from __future__ import annotations

import asyncio
import logging
import queue
import socket
import struct
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from ventoux.engine.limits import MAX_N
from ventoux.engine.messages import Abort, Add, Command, Event
from ventoux.engine.request import EngineOutput, EngineStats, FinishReason, Request
from ventoux.errors import EngineDeadError, InvalidRequestError, SlowReaderError

logger = logging.getLogger(__name__)
Sink = Callable[[EngineOutput], object]
# What may wait for one reader: tokens; log-probabilities and lists of experts count as one each. That is 10 to 20 MB of
# objects; a reader that is so far behind will not catch up.
MAX_UNREAD_TOKENS = 65536


class EngineClient(Protocol):
    """submit, abort, stats: all that the rooms above know of an engine."""

    def submit(self, request: Request) -> AsyncGenerator[EngineOutput]:
        """Adds a request and yields its outputs until every one of its `params.n` sequences has finished.

        Closing the iterator early aborts the request.

        Raises:
            EngineDeadError: the engine is gone.
            SlowReaderError: too many outputs were not taken out of the iterator; the request is aborted.
        """
        ...

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request (or one of its sequences) within one step; unknown ids are no error."""
        ...

    def stats(self) -> EngineStats:
        """The latest snapshot; raises EngineDeadError if the engine is gone."""
        ...


@dataclass(eq=False)
class OpenRequest:
    """Who waits for the outputs of a request, and for which of its sequences."""

    sink: Sink
    unfinished: set[int]
    # The encoded `Add`, from a transport that may have to send it again; None once an output has come.
    frame: bytes | None = None
    strikes: int = 0  # deaths of the engine while it computed this request
    aborted: bool = False

    def ends(
        self, request_id: str, reason: FinishReason, error: str | None = None, code: str | None = None
    ) -> list[EngineOutput]:
        """The last outputs of all its sequences, when the engine will send none."""
        return [
            EngineOutput(request_id=request_id, index=index, finish_reason=reason, error=error, error_code=code)
            for index in sorted(self.unfinished)
        ]


class Client:
    """What all transports share: who waits for which request. Transports give `_send` and call `_receive`."""

    def __init__(self) -> None:
        self._open: dict[str, OpenRequest] = {}
        self._stats = EngineStats()
        self._dead: str | None = None
        self._lock = threading.Lock()

    def submit_to(self, request: Request, sink: Sink) -> None:
        """Adds a request; `sink` gets its outputs, on the transport's thread.

        Raises:
            EngineDeadError: the engine is gone.
            InvalidRequestError: the id is in use, or `n` is out of range: outputs could not be told apart or counted.
        """
        name, n = request.request_id, request.params.n
        if not 1 <= n <= MAX_N:
            raise InvalidRequestError(f"n must be in [1, {MAX_N}], got {n}.", param="n")
        with self._lock:
            if self._dead is not None:
                raise EngineDeadError(self._dead)
            if name in self._open:
                raise InvalidRequestError(f"request id {name!r} is already running.", param="request_id")
            self._open[name] = OpenRequest(sink, set(range(n)))
            try:
                self._send(Add(request))
            except BaseException:
                del self._open[name]
                raise

    async def submit(self, request: Request) -> AsyncGenerator[EngineOutput]:
        loop = asyncio.get_running_loop()
        request_id, unfinished = request.request_id, request.params.n
        unread = _Unread(lambda: self.abort(request_id))
        self.submit_to(request, lambda output: loop.call_soon_threadsafe(unread.put, output))
        # This frame lives as long as the answer, and the request's images take 28 MB each.
        del request
        try:
            while unfinished:
                output = await unread.get()
                unfinished -= output.finish_reason is not None
                yield output
        finally:
            if unfinished:
                self.abort(request_id)

    def abort(self, request_id: str, index: int | None = None) -> None:
        with self._lock:
            one = self._open.get(request_id)
            if one is None or self._dead is not None:
                return
            one.aborted = one.aborted or index is None
            self._send(Abort(request_id, index))

    def stats(self) -> EngineStats:
        if self._dead is not None:
            raise EngineDeadError(self._dead)
        return self._stats

    def _receive(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, EngineStats):
                self._stats = event
            elif isinstance(event, EngineOutput):
                with self._lock:
                    one = self._open.get(event.request_id)
                    if one is not None:
                        one.frame = None
                        if event.finish_reason is not None:
                            one.unfinished.discard(event.index)
                            if not one.unfinished:
                                del self._open[event.request_id]
                if one is not None:
                    self._deliver(one.sink, event)

    def _die(self, reason: str) -> None:
        """Ends every open request with an error; later ones are refused."""
        with self._lock:
            self._dead = self._dead or reason
            left = list(self._open.items())
            self._open.clear()
        for name, one in left:
            for output in one.ends(name, "error", error=reason, code="engine_dead"):
                self._deliver(one.sink, output)

    def _deliver(self, sink: Sink, output: EngineOutput) -> None:
        """A sink that fails (its event loop has been closed, say) ends its own request and nobody else's."""
        try:
            sink(output)
        except Exception as error:
            logger.warning("nobody takes the outputs of %s (%s); it is aborted", output.request_id, error)
            self.abort(output.request_id)

    def _send(self, command: Command) -> None:
        """Never waits for the engine, which may be busy or hang. Called with the lock held."""
        raise NotImplementedError


class _Unread:
    """Outputs that have come and were not taken yet; lives in one event loop. Too many of them end the request."""

    def __init__(self, abort: Callable[[], None]):
        self._abort = abort
        self._outputs: deque[EngineOutput] = deque()
        self._num_tokens = 0
        self._news = asyncio.Event()
        self._is_over = False

    def put(self, output: EngineOutput) -> None:
        if self._is_over:
            return
        self._outputs.append(output)
        self._num_tokens += _size(output)
        # One output alone may be larger, and is taken at once by a reader that keeps up.
        if self._num_tokens > MAX_UNREAD_TOKENS and len(self._outputs) > 1:
            self._is_over = True
            self._outputs.clear()
            self._abort()
        self._news.set()

    async def get(self) -> EngineOutput:
        """Raises SlowReaderError."""
        while not self._outputs and not self._is_over:
            self._news.clear()
            await self._news.wait()
        if self._is_over:
            raise SlowReaderError
        output = self._outputs.popleft()
        self._num_tokens -= _size(output)
        return output


def _size(output: EngineOutput) -> int:
    return 1 + sum(1 + len(token.logprobs) + len(token.experts) for token in output.tokens)


def send_frame(sock: socket.socket, payload: bytes) -> None:
    """One message: eight bytes of length, little-endian, then the payload."""
    sock.sendall(struct.pack("<Q", len(payload)) + payload)


def receive_frame(sock: socket.socket) -> bytes | None:
    """The next message, or None once the other side has closed."""
    header = _receive_exactly(sock, 8)
    return None if header is None else _receive_exactly(sock, struct.unpack("<Q", header)[0])


def _receive_exactly(sock: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        try:
            count = sock.recv_into(view)
        except ConnectionResetError:
            return None
        if count == 0:
            return None
        view = view[count:]
    return bytes(data)


class Connection:
    """A connected stream socket to an engine process, with a thread that reads and one that writes.

    Args:
        on_events: Gets what the engine tells, on the reading thread.
        on_end: Called once, on that thread, when the engine has hung up; nothing comes after it.
    """

    def __init__(self, sock: socket.socket, on_events: Callable[[list[Event]], None], on_end: Callable[[], None]):
        self._sock = sock
        self._on_events = on_events
        self._on_end = on_end
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._decoder = msgspec.msgpack.Decoder(list[Event])
        self._threads = (
            threading.Thread(target=self._read, name="ventoux-engine-events", daemon=True),
            threading.Thread(target=self._write, name="ventoux-engine-commands", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    def send(self, frame: bytes) -> None:
        """An encoded command. Never waits: a socket that nobody reads blocks its writer, and the caller may be an
        event loop."""
        self._outbox.put(frame)

    def close(self) -> None:
        """Waits until the engine has hung up."""
        for thread in self._threads:
            thread.join()
        self._sock.close()

    def _read(self) -> None:
        try:
            while (frame := receive_frame(self._sock)) is not None:
                self._on_events(self._decoder.decode(frame))
        finally:
            self._on_end()
            self._outbox.put(None)

    def _write(self) -> None:
        while (frame := self._outbox.get()) is not None:
            try:
                send_frame(self._sock, frame)
            except OSError:
                return  # the reader sees that too, and tells
