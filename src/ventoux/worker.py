"""The engine in a process of its own: `python -m ventoux.worker FD PARENT`, and the call that starts it.

Over one Unix socket pair, framed msgpack: first the setup goes in, then progress and the plan (or the error) come out,
then requests and aborts go in and outputs come out, with a beat four times a second. When either side dies the other
reads end-of-file: the worker exits, the supervisor starts another one. Nothing here imports torch until the worker's
own `main`.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ventoux.config import EngineConfig, engine_environment
from ventoux.engine.client import receive_frame, send_frame
from ventoux.engine.messages import Beat, Command, Stop, Unreadable
from ventoux.errors import ConfigError, EngineDeadError
from ventoux.plan import EnginePlan

logger = logging.getLogger(__name__)
COMMAND = (sys.executable, "-m", "ventoux.worker")
BEAT_SECONDS = 0.25
# An engine that gets this writes the stacks of its threads to the log.
DUMP_SIGNAL = signal.SIGUSR1
_PR_SET_PDEATHSIG = 1


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


class EngineProcess:
    """An engine in a process of its own, which imports torch while this process does other things.

    Args:
        command: What is run, before the arguments; replaced in tests.

    The process is killed by the kernel when the *thread* that made this object ends, however that comes about.
    """

    def __init__(self, folder: Path, choices: EngineConfig, command: Sequence[str] = COMMAND):
        self.sock, theirs = socket.socketpair()
        self._popen = subprocess.Popen(
            [*command, str(theirs.fileno()), str(os.getpid())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            env=engine_environment(),
        )
        self.pid = self._popen.pid
        theirs.close()
        send_frame(self.sock, msgspec.msgpack.encode(Setup(str(folder), choices)))

    def wait_ready(self, progress: Callable[[int, int], None] | None = None, timeout: float | None = None) -> Ready:
        """Blocks until the engine can work. `timeout`: seconds in which at least some progress must be told.

        Raises, after which the process has ended:
            ConfigError: the checkpoint, the flags or the machine do not allow it.
            EngineDeadError: the process died while starting, or took too long.
        """
        self.sock.settimeout(timeout)
        try:
            while (frame := receive_frame(self.sock)) is not None:
                message = msgspec.msgpack.decode(frame, type=Startup)
                if isinstance(message, Ready):
                    self.sock.settimeout(None)
                    return message
                if isinstance(message, Failed):
                    raise (ConfigError if message.is_users else EngineDeadError)(message.message)
                if progress is not None:
                    progress(message.done_bytes, message.total_bytes)
            raise EngineDeadError(f"the engine process ended while starting (exit status {self._popen.wait()})")
        except BaseException as error:
            self.kill()
            self.sock.close()
            if isinstance(error, TimeoutError):
                raise EngineDeadError(f"the engine process told nothing for {timeout:g} s while starting") from None
            raise

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        return self._popen.wait(timeout)

    def dump_stacks(self) -> None:
        """Has a process that is about to be killed write to the log where it is; a stopped one goes on for that."""
        for number in (DUMP_SIGNAL, signal.SIGCONT):
            self._popen.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(0.5)

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()


def main(fd: int, parent: int) -> None:
    """The worker's life: build, report, step until the other side hangs up."""
    _die_with(parent)
    # Ctrl-C reaches the whole process group; the parent decides when the engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    faulthandler.register(DUMP_SIGNAL, all_threads=True)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    sock = socket.socket(fileno=fd)
    frame = receive_frame(sock)
    if frame is None:
        return
    setup = msgspec.msgpack.decode(frame, type=Setup)
    tell = _Telling(sock)
    loop = _start(tell, setup)
    if loop is None:
        sys.exit(1)
    threading.Thread(target=_read_commands, args=(sock, loop.inbox), name="commands", daemon=True).start()
    threading.Thread(target=_beat, args=(loop, tell), name="beat", daemon=True).start()
    from ventoux.ops.threads import torch_threads

    try:
        # This process is the engine's own: set once, and not by every step.
        with torch_threads(loop.engine.plan.torch_threads):
            loop.run()
    except BaseException:
        logger.critical("the engine failed", exc_info=True)
        os._exit(1)
    # Tearing torch down takes two seconds on a busy machine, and nothing is left to be tidied.
    os._exit(0)


def _die_with(parent: int) -> None:
    """Also when it is stopped or hangs, and could not read that its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it was gone before we asked


class _Telling:
    """Sends messages, from any thread."""

    def __init__(self, sock: socket.socket):
        self._sock = sock
        self._lock = threading.Lock()
        self._encoder = msgspec.msgpack.Encoder()

    def __call__(self, message) -> None:
        with self._lock:
            try:
                send_frame(self._sock, self._encoder.encode(message))
            except OSError:
                os._exit(0)  # the parent is gone; nobody waits for anything in here


def _start(tell: Callable, setup: Setup):
    from ventoux.build import build_engine
    from ventoux.engine.loop import EngineLoop

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


def _beat(loop, tell: Callable) -> None:
    while True:
        tell([Beat(loop.turns, loop.busy)])
        time.sleep(BEAT_SECONDS)


def _read_commands(sock: socket.socket, inbox) -> None:
    decoder = msgspec.msgpack.Decoder(Command)
    try:
        while (frame := receive_frame(sock)) is not None:
            try:
                inbox.put(decoder.decode(frame))
            except msgspec.ValidationError:
                logger.exception("a message could not be read")
                inbox.put(_unreadable(frame))
    finally:
        # Also after a message that is no message at all: better a death that everybody sees than a request that nobody
        # answers.
        inbox.put(Stop())
        # A step may run long, or hang: an engine without a parent must not outlive it by more than that.
        threading.Timer(5.0, os._exit, (0,)).start()


def _unreadable(frame: bytes) -> Unreadable:
    """Raises KeyError, TypeError for what is no `Add`."""
    request = msgspec.msgpack.decode(frame)["request"]
    return Unreadable(request["request_id"], request["params"].get("n", 1))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
