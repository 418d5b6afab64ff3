"""The engine in a process of its own: `python -m ventoux.worker FD`, and the call that starts it.

Over one Unix socket pair, framed msgpack: first the setup goes in, then progress and the plan (or the error) come out,
then requests and aborts go in and outputs come out. When either side dies the other reads end-of-file: the worker
exits, the client ends its open requests with an error. Nothing here imports torch until the worker's own `main`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ventoux.config import EngineConfig, engine_environment
from ventoux.engine.client import SocketClient, receive_frame, send_frame
from ventoux.engine.messages import Command, Stop
from ventoux.errors import ConfigError, EngineDeadError
from ventoux.plan import EnginePlan

logger = logging.getLogger(__name__)


class Setup(msgspec.Struct):
    folder: str
    choices: EngineConfig


class Loading(msgspec.Struct, tag="loading"):
    done_bytes: int
    total_bytes: int


class Ready(msgspec.Struct, tag="ready"):
    plan: EnginePlan
    vocab_size: int


class Failed(msgspec.Struct, tag="failed"):
    message: str
    is_users: bool


Startup = Loading | Ready | Failed


@dataclass
class Worker:
    """A running engine process and the client that speaks to it."""

    process: subprocess.Popen
    client: SocketClient
    plan: EnginePlan
    vocab_size: int

    def stop(self, timeout: float = 5.0) -> None:
        """Lets the engine end by itself, then makes sure of it: one that hangs is killed after `timeout` seconds."""
        self.client.ask_to_stop()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.client.close()


class StartingWorker:
    """A worker that is not ready yet: it imports torch while this process does other things."""

    def __init__(self, folder: Path, choices: EngineConfig):
        self._sock, theirs = socket.socketpair()
        command = [sys.executable, "-m", "ventoux.worker", str(theirs.fileno())]
        self.process = subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, env=engine_environment()
        )
        theirs.close()
        send_frame(self._sock, msgspec.msgpack.encode(Setup(str(folder), choices)))

    def wait(self, progress: Callable[[int, int], None] | None = None) -> Worker:
        """Blocks until the engine is ready.

        Raises:
            ConfigError: the checkpoint, the flags or the machine do not allow it.
            EngineDeadError: the process died while starting.
        """
        while (frame := receive_frame(self._sock)) is not None:
            message = msgspec.msgpack.decode(frame, type=Startup)
            if isinstance(message, Ready):
                return Worker(self.process, SocketClient(self._sock), message.plan, message.vocab_size)
            if isinstance(message, Failed):
                self.kill()
                raise (ConfigError if message.is_users else EngineDeadError)(message.message)
            if progress is not None:
                progress(message.done_bytes, message.total_bytes)
        self._sock.close()
        raise EngineDeadError(f"the engine process ended while starting (exit status {self.process.wait()})")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._sock.close()


def main(fd: int) -> None:
    """The worker's life: build, report, step until the other side hangs up."""
    # Ctrl-C reaches the whole process group; the parent decides when the engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    sock = socket.socket(fileno=fd)
    frame = receive_frame(sock)
    if frame is None:
        return
    setup = msgspec.msgpack.decode(frame, type=Setup)
    loop = _start(sock, setup)
    if loop is None:
        sys.exit(1)
    threading.Thread(target=_read_commands, args=(sock, loop.inbox), name="commands", daemon=True).start()
    loop.run()
    # Tearing torch down takes two seconds on a busy machine, and nothing is left to be tidied.
    os._exit(0)


def _start(sock: socket.socket, setup: Setup):
    from ventoux.build import build_engine
    from ventoux.engine.loop import EngineLoop

    encoder = msgspec.msgpack.Encoder()

    def tell(message) -> None:
        try:
            send_frame(sock, encoder.encode(message))
        except OSError:
            os._exit(0)  # the parent is gone; nobody waits for anything in here

    try:
        built = build_engine(Path(setup.folder), setup.choices, lambda done, total: tell(Loading(done, total)))
    except Exception as error:
        is_users = isinstance(error, ConfigError)
        if not is_users:
            logger.exception("the engine could not be built")
        tell(Failed(str(error) if is_users else f"the engine could not be built: {error}", is_users))
        return None
    tell(Ready(built.plan, built.config.text.vocab_size))
    return EngineLoop(built.engine, tell)


def _read_commands(sock: socket.socket, inbox) -> None:
    decoder = msgspec.msgpack.Decoder(Command)
    try:
        while (frame := receive_frame(sock)) is not None:
            inbox.put(decoder.decode(frame))
    finally:
        # Also after a message that cannot be read: better a death that everybody sees than a request nobody answers.
        inbox.put(Stop())
        # A step may run long, or hang: an engine without a parent must not outlive it by more than that.
        threading.Timer(5.0, os._exit, (0,)).start()


if __name__ == "__main__":
    main(int(sys.argv[1]))
