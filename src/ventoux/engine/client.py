"""The one way to reach an engine, whether it runs in a thread of this process or in a process of its own."""

from __future__ import annotations

import asyncio
import logging
import queue
import socket
import struct
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

import msgspec

from ventoux.engine.limits import MAX_N
from ventoux.engine.messages import Abort, Add, Command, Event, Stop
from ventoux.engine.request import EngineOutput, EngineStats, Request
from ventoux.errors import EngineDeadError, InvalidRequestError

logger = logging.getLogger(__name__)
Sink = Callable[[EngineOutput], object]


class EngineClient(Protocol):
    """submit, abort, stats: all that the rooms above know of an engine."""

    def submit(self, request: Request) -> AsyncGenerator[EngineOutput]:
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


class Client:
    """What both transports share: who waits for which request. Transports give `_send` and call `_receive`."""

    def __init__(self) -> None:
        self._sinks: dict[str, Sink] = {}
        self._unfinished: dict[str, int] = {}
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
            if name in self._sinks:
                raise InvalidRequestError(f"request id {name!r} is already running.", param="request_id")
            self._sinks[name] = sink
            self._unfinished[name] = n
        try:
            self._send(Add(request))
        except BaseException:
            with self._lock:
                self._sinks.pop(name, None)
                self._unfinished.pop(name, None)
            raise

    async def submit(self, request: Request) -> AsyncGenerator[EngineOutput]:
        loop = asyncio.get_running_loop()
        outputs: asyncio.Queue[EngineOutput] = asyncio.Queue()
        self.submit_to(request, lambda output: loop.call_soon_threadsafe(outputs.put_nowait, output))
        request_id, unfinished = request.request_id, request.params.n
        # This frame lives as long as the answer, and the request's images take 28 MB each.
        del request
        try:
            while unfinished:
                output = await outputs.get()
                unfinished -= output.finish_reason is not None
                yield output
        finally:
            if unfinished:
                self.abort(request_id)

    def abort(self, request_id: str, index: int | None = None) -> None:
        if request_id in self._sinks and self._dead is None:
            self._send(Abort(request_id, index))

    def stats(self) -> EngineStats:
        if self._dead is not None:
            raise EngineDeadError(self._dead)
        return self._stats

    def _receive(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, EngineStats):
                self._stats = event
                continue
            with self._lock:
                sink = self._sinks.get(event.request_id)
                if event.finish_reason is not None and sink is not None:
                    self._unfinished[event.request_id] -= 1
                    if self._unfinished[event.request_id] == 0:
                        del self._sinks[event.request_id], self._unfinished[event.request_id]
            if sink is not None:
                self._deliver(sink, event)

    def _die(self, reason: str) -> None:
        """Ends every open request with an error; later ones are refused."""
        with self._lock:
            self._dead = self._dead or reason
            left = [(name, self._sinks[name], count) for name, count in self._unfinished.items()]
            self._sinks.clear()
            self._unfinished.clear()
        for name, sink, count in left:
            for index in range(count):
                output = EngineOutput(request_id=name, index=index, finish_reason="error", error=reason)
                output.error_code = "engine_dead"
                self._deliver(sink, output)

    def _deliver(self, sink: Sink, output: EngineOutput) -> None:
        """A sink that fails (its event loop has been closed, say) ends its own request and nobody else's."""
        try:
            sink(output)
        except Exception as error:
            logger.warning("nobody takes the outputs of %s (%s); it is aborted", output.request_id, error)
            self.abort(output.request_id)

    def _send(self, command: Command) -> None:
        """Never waits for the engine, which may be busy or hang."""
        raise NotImplementedError


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


class SocketClient(Client):
    """The engine behind a connected stream socket, in a process of its own (see worker.py)."""

    def __init__(self, sock: socket.socket):
        super().__init__()
        self._sock = sock
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._decoder = msgspec.msgpack.Decoder(list[Event])
        self._threads = (
            threading.Thread(target=self._read, name="ventoux-engine-events", daemon=True),
            threading.Thread(target=self._write, name="ventoux-engine-commands", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    def ask_to_stop(self) -> None:
        self._send(Stop())

    def close(self) -> None:
        """Waits until the engine has hung up."""
        for thread in self._threads:
            thread.join()
        self._sock.close()

    def _read(self) -> None:
        try:
            while (frame := receive_frame(self._sock)) is not None:
                self._receive(self._decoder.decode(frame))
        finally:
            self._die("the engine process has ended")
            self._outbox.put(None)

    def _write(self) -> None:
        while (frame := self._outbox.get()) is not None:
            try:
                send_frame(self._sock, frame)
            except OSError:
                return  # the reader sees that too, and tells

    def _send(self, command: Command) -> None:
        # A socket that nobody reads blocks its writer, and the caller may be an event loop.
        self._outbox.put(msgspec.msgpack.encode(command))
