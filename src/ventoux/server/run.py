"""The server's life: bind the port, start the engine, serve, drain, stop.

Heavy modules are imported while the engine process starts, so that this file itself imports in milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import uvicorn

from ventoux.config import ServerConfig
from ventoux.errors import ConfigError, EngineDeadError
from ventoux.server.protocol import Protocol
from ventoux.server.tls import tls_context

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ventoux.engine.client import EngineClient
    from ventoux.server.service import Service
    from ventoux.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# How long a request waits for a model that is still being loaded, before it is told to come back.
LOADING_WAIT = 20.0
# After the drain, streams get so long to take their error event.
ABORT_GRACE = 2.0
# Idle connections are kept so long: longer than clients (5 s) and proxies (60 s) keep them. If we closed first, a
# request that was just sent on an old connection would be lost.
KEEP_ALIVE = 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Backend:
    """What a server serves, once it is up."""

    engine: EngineClient
    tokenizer: Tokenizer
    served_names: tuple[str, ...]
    max_model_len: int
    # Set when the engine has died and nobody tries to start it again.
    gave_up: asyncio.Event = field(default_factory=asyncio.Event)


# Of glibc's mallopt: from which size on memory is mapped on its own, and how many heaps there are.
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
# Entering starts the engine and waits until it can work; leaving ends it.
BackendFactory = Callable[[], AbstractAsyncContextManager[Backend]]


def serve(config: ServerConfig, start: BackendFactory, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then lets running answers finish (at most `drain_timeout` seconds).

    A second signal ends everything at once. `on_ready` gets the server's URL when the first request can be answered.

    Raises:
        ConfigError: the address cannot be listened on.
        EngineDeadError: the engine has died and cannot be started again.
    """
    _give_memory_back()
    with bind(config.host, config.port) as sock:
        asyncio.run(_Lifetime(config, sock, start, on_ready).run())


def _give_memory_back() -> None:
    """Lets what large bodies took leave the process when they do.

    glibc gives threads heaps of their own, and a freed block of up to 32 MiB makes it take the next of that size from
    a heap, where a small one above keeps it. Six rounds of 235 hostile requests ended at 162 to 218 MiB resident with
    one heap, and at 134 to 151 with a threshold that stays besides.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        if sys.platform == "linux":
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_ARENA_MAX, 1)
            libc.mallopt(_M_MMAP_THRESHOLD, 256 * 1024)


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket. Raises ConfigError saying what to change."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: ports run from 1 to 65535 (0 takes any that is free).")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as e:
        raise ConfigError(f"--host {host}: this is no address or host name.") from e
    sock = socket.socket(family, kind, protocol)
    try:
        # A port whose last server ended a moment ago can be used again; one that is listened on cannot.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        # Listening now makes a second server fail here, before it loads a model, and lets early clients wait.
        sock.listen(2048)
    except OSError as e:
        sock.close()
        raise ConfigError(f"Cannot listen on {host} port {port}: {e.strerror}. Choose another --port or --host.") from e
    sock.setblocking(False)
    return sock


def url_of(sock: socket.socket, scheme: str = "http") -> str:
    host, port = sock.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class Gate:
    """Stands where the application will be: alive, not ready, and holding requests back until it opens."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None
        self._opened = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self._app is not None

    def open(self, app: ASGIApp) -> None:
        self._app = app
        self._opened.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None and scope["type"] == "http":
            if scope["path"].endswith("/health"):
                await _send_json(send, 200, {"status": "loading"})
                return
            if not scope["path"].endswith("/ready"):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._opened.wait(), LOADING_WAIT)
            if self._app is None:
                error = {"type": "overloaded_error", "param": None, "code": "loading"}
                # The outer type is what Anthropic's clients look for; the others do not mind it.
                await _send_json(
                    send, 503, {"type": "error", "error": {"message": "The model is being loaded.", **error}}
                )
                return
        if self._app is not None:
            await self._app(scope, receive, send)


async def _send_json(send: Send, status: int, content: object) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"x-request-id", f"req-{secrets.token_hex(16)}".encode()),
        (b"retry-after", b"5"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(content)})


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: ours drains first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class _Lifetime:
    """One run of a server, from the bound socket to the end."""

    def __init__(
        self,
        config: ServerConfig,
        sock: socket.socket,
        start: BackendFactory,
        on_ready: Callable[[str], None] | None,
    ):
        self._config = config
        self._sock = sock
        # An early look: a certificate that cannot be used is told before a model is loaded.
        self._tls = tls_context(config)
        self._url = url_of(sock, "https" if self._tls else "http")
        self._start = start
        self._on_ready = on_ready
        # First signal, second signal.
        self._stop = asyncio.Event()
        self._now = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signalled)
        gate = Gate()
        server = _Server(
            uvicorn.Config(
                gate,
                http=Protocol,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                root_path=self._config.root_path,
                ssl_context_factory=None if (tls := self._tls) is None else lambda *_: tls,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=3,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[self._sock]))
        try:
            await self._until_stopped(gate)
        finally:
            server.should_exit = True
            server.force_exit = self._now.is_set()
            await serving
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        (self._now if self._stop.is_set() else self._stop).set()

    async def _until_stopped(self, gate: Gate) -> None:
        working = asyncio.create_task(self._work(gate))
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not working.done() and not gate.is_open:
            # Stopped while loading: there is nothing to drain.
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            return
        await working

    async def _work(self, gate: Gate) -> None:
        importing = asyncio.create_task(asyncio.to_thread(_import_create_app))
        async with self._start() as backend:
            create_app = await importing
            app: FastAPI = create_app(
                backend.engine, backend.tokenizer, backend.served_names, backend.max_model_len, self._config
            )
            async with app.router.lifespan_context(app):
                gate.open(app)
                logger.info("serving %s at %s", ", ".join(backend.served_names), self._url)
                if self._on_ready:
                    self._on_ready(self._url)
                await _any(self._stop.wait(), backend.gave_up.wait())
                await self._drain(app.state.service)
                if backend.gave_up.is_set() and not self._stop.is_set():
                    raise EngineDeadError("The engine has ended and could not be started again; the log says why.")

    async def _drain(self, service: Service) -> None:
        service.drain()
        logger.info("draining: %d request(s) in flight", service.num_in_flight)
        await self._wait_idle(service, self._config.drain_timeout)
        if service.num_in_flight:
            service.abort_all()
            await self._wait_idle(service, ABORT_GRACE)

    async def _wait_idle(self, service: Service, seconds: float) -> None:
        """Returns when nothing is in flight, after so many seconds, or at the second signal."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while service.num_in_flight and not self._now.is_set():
                    await asyncio.sleep(0.02)


async def _any(*waits: Coroutine[Any, Any, object]) -> None:
    """Returns when the first of them does."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def _import_create_app() -> Callable[..., FastAPI]:
    from ventoux.server.app import create_app

    return create_app
