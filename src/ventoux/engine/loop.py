"""The engine's own thread of control: take messages, step, hand out what came of it."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from ventoux.engine.client import Client
from ventoux.engine.engine import Engine
from ventoux.engine.messages import Abort, Add, Command, Event, Stop, Unreadable, Working
from ventoux.engine.request import EngineOutput
from ventoux.engine.scheduler import Chunk
from ventoux.errors import UserError

logger = logging.getLogger(__name__)


class EngineLoop:
    """Runs an engine until told to stop.

    `emit` gets every output, a snapshot at the beginning and after every step, and which requests a step computes
    whenever these are others than before.
    """

    def __init__(self, engine: Engine, emit: Callable[[list[Event]], None]):
        self.engine = engine
        self.emit = emit
        self.inbox: queue.SimpleQueue[Command | Unreadable] = queue.SimpleQueue()
        # Commands taken and steps done: stands still in a step that hangs, and when there is nothing to do.
        self.turns = 0
        self._working: list[str] = []

    @property
    def busy(self) -> bool:
        """There is something to do; may be asked by any thread."""
        return self.engine.has_work or not self.inbox.empty()

    def run(self) -> None:
        """Sleeps while there is nothing to do; takes messages between any two steps, so an abort acts within one."""
        self.emit([self.engine.stats()])
        while True:
            events: list[Event] = []
            while not self.inbox.empty() or not self.engine.has_work:
                command = self.inbox.get()
                self.turns += 1
                if isinstance(command, Stop):
                    return
                events += self._obey(command)
                if events and self.inbox.empty() and not self.engine.has_work:
                    self.emit([*events, self.engine.stats()])
                    events = []
            if events:
                # A step may take long, and those that it brings are told after it.
                self.emit(events)
            outputs = self.engine.step(self._begin)
            self.turns += 1
            self.emit([*outputs, self.engine.stats()])

    def _begin(self, chunks: list[Chunk]) -> None:
        request_ids = sorted({chunk.sequence.request.request_id for chunk in chunks})
        if request_ids != self._working:
            self._working = request_ids
            self.emit([Working(request_ids)])

    def _obey(self, command: Add | Abort | Unreadable) -> list[EngineOutput]:
        if isinstance(command, Abort):
            return self.engine.abort(command.request_id, command.index)
        text, code = "The engine could not take this request (internal_error).", "internal_error"
        if isinstance(command, Unreadable):
            return _errors(command.request_id, command.n, text, code)
        request = command.request
        try:
            self.engine.add(request)
            return []
        except UserError as error:
            text, code = str(error), getattr(error, "code", None) or "invalid_request"
        except Exception:
            logger.exception("request %s could not be added", request.request_id)
        return _errors(request.request_id, request.params.n, text, code)


def _errors(request_id: str, n: int, text: str, code: str) -> list[EngineOutput]:
    return [
        EngineOutput(request_id=request_id, index=i, finish_reason="error", error=text, error_code=code)
        for i in range(max(n, 1))
    ]


class ThreadClient(Client):
    """The engine in a thread of this process (offline use, tests)."""

    def __init__(self, engine: Engine):
        super().__init__()
        self._loop = EngineLoop(engine, self._receive)
        self._thread = threading.Thread(target=self._run, name="ventoux-engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the thread; open requests end with an error."""
        self._send(Stop())
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run()
            self._die("the engine was stopped")
        except BaseException as error:
            self._die(f"the engine failed: {type(error).__name__}")
            raise

    def _send(self, command: Command) -> None:
        self._loop.inbox.put(command)
