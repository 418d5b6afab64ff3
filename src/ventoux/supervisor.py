"""An EngineClient whose engine is a process that may die or hang: it is started anew, and what can be kept is kept.

A thread does all of it: starts the process, looks at its beats, ends it when there are none, starts the next one. What
becomes of the requests that were open:

- those that had brought an output end with an error: their next tokens would have to be those of another run;
- those that were being computed and had brought none are run again, once;
- those that were waiting are run again, however often: it was none of their doing.
"""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec

from ventoux.engine.client import Client, Connection, OpenRequest, Sink
from ventoux.engine.messages import Abort, Add, Beat, Command, Event, Stop, Working
from ventoux.engine.request import EngineOutput, EngineStats
from ventoux.errors import EngineDeadError, VentouxError
from ventoux.worker import BEAT_SECONDS, EngineProcess, Ready

logger = logging.getLogger(__name__)
# A request is not tried again when the engine died so often while it was computed.
MAX_STRIKES = 2
# Looks without a beat after which an engine counts as silent: with beats every 0.25 s that is noticed within a second.
SILENT_LOOKS = 3
MAX_BACKOFF_SECONDS = 30.0
# How long an engine that is told to stop, or has hung up, may take to end by itself.
STOP_SECONDS = 1.0


@dataclass(frozen=True)
class Patience:
    """How long an engine may do what, in seconds; how many starts may fail in a row."""

    hang_timeout: float = 30.0
    step_timeout: float = 300.0
    max_failed_starts: int = 5


class Pulse:
    """Whether an engine lives and gets on. Time is counted in looks: a machine that stands still altogether, the looks
    with it, proves nothing against the engine."""

    def __init__(self, patience: Patience):
        self._patience = patience
        self._last = Beat(turns=-1, busy=False)
        self._looks_without_beat = 0
        self._looks_without_turn = 0

    def beat(self, beat: Beat) -> None:
        if beat.turns != self._last.turns or not beat.busy:
            self._looks_without_turn = 0
        self._looks_without_beat = 0
        self._last = beat

    def look(self) -> str | None:
        """To be called every BEAT_SECONDS; says what is wrong with an engine that must be ended."""
        self._looks_without_beat += 1
        self._looks_without_turn += 1
        if self._looks_without_beat * BEAT_SECONDS >= self._patience.hang_timeout:
            return f"gave no sign of life for {self._patience.hang_timeout:g} s"
        if self._looks_without_turn * BEAT_SECONDS >= self._patience.step_timeout:
            return f"was in one step for {self._patience.step_timeout:g} s"
        return None

    @property
    def is_silent(self) -> bool:
        return self._looks_without_beat >= SILENT_LOOKS


class Supervisor(Client):
    """Starts with the first `wait_ready`, ends with `stop`.

    Args:
        start: Starts an engine process; called by the supervisor's thread for every one.
        on_give_up: Called, on that thread, when too many starts have failed in a row; every request has ended then.
    """

    def __init__(
        self,
        start: Callable[[], EngineProcess],
        patience: Patience = Patience(),
        on_give_up: Callable[[], object] = lambda: None,
    ):
        super().__init__()
        self._start = start
        self._patience = patience
        self._on_give_up = on_give_up
        self._pulse = Pulse(patience)
        self._starting: EngineProcess | None = None
        self._connection: Connection | None = None
        self._working: frozenset[str] = frozenset()
        self._num_restarts = 0
        self._stopping = threading.Event()
        self._first: Future[Ready] = Future()
        self._progress: Callable[[int, int], None] | None = None
        self._thread = threading.Thread(target=self._run, name="ventoux-supervisor", daemon=True)
        self._thread.start()

    def wait_ready(self, progress: Callable[[int, int], None] | None = None) -> Ready:
        """Blocks until the first engine can work.

        Raises:
            ConfigError: the checkpoint, the flags or the machine do not allow it.
            EngineDeadError: the process died while starting.
        """
        self._progress = progress
        return self._first.result()

    def stop(self) -> None:
        """Ends the engine: it gets a second to do so by itself. What is still open ends with an error."""
        self._stopping.set()
        with self._lock:
            starting = self._starting
        if starting is not None:
            starting.kill()
        self._thread.join()

    def stats(self) -> EngineStats:
        """The latest snapshot; raises EngineDeadError while there is no engine."""
        if self._dead is not None or self._connection is None:
            raise EngineDeadError(self._dead or "the engine is being started anew")
        return msgspec.structs.replace(
            self._stats, is_silent=self._pulse.is_silent, num_engine_restarts=self._num_restarts
        )

    def abort(self, request_id: str, index: int | None = None) -> None:
        super().abort(request_id, index)
        self._end_lost()

    # ------------------------------------------------------------------------------------------- the transport's side

    def _send(self, command: Command) -> None:
        frame = msgspec.msgpack.encode(command)
        if isinstance(command, Add):
            # Until the first output it may have to be sent again: with images that is 28 MB each.
            self._open[command.request.request_id].frame = frame
        if self._connection is not None:
            self._connection.send(frame)

    def _receive(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Beat):
                self._pulse.beat(event)
            elif isinstance(event, Working):
                self._working = frozenset(event.request_ids)
        super()._receive(events)

    # ---------------------------------------------------------------------------------------------- the thread's side

    def _run(self) -> None:
        try:
            process, ready = self._launch()
        except BaseException as error:
            self._die("the engine could not be started")
            self._first.set_exception(error)
            return
        self._first.set_result(ready)
        failures = 0
        try:
            while process is not None:
                self._watch(process, self._connect(process))
                # An engine that did not get through a step is no better than one that did not start.
                failures = 0 if self._stats.num_steps else failures + 1
                process = self._next(failures)
        finally:
            self._die("the engine was stopped" if self._stopping.is_set() else "the engine could not be started again")
            if not self._stopping.is_set():
                self._on_give_up()

    def _launch(self) -> tuple[EngineProcess, Ready]:
        """Raises VentouxError, OSError."""
        process = self._start()
        with self._lock:
            self._starting = process
        if self._stopping.is_set():
            process.kill()
        ready = process.wait_ready(self._report, self._patience.step_timeout)
        with self._lock:
            self._starting = None
        return process, ready

    def _report(self, done_bytes: int, total_bytes: int) -> None:
        if self._progress is not None:
            self._progress(done_bytes, total_bytes)

    def _connect(self, process: EngineProcess) -> threading.Event:
        """Hands the process all requests that were kept; the event will say that it has hung up."""
        hung_up = threading.Event()
        with self._lock:
            self._stats = EngineStats()
            self._pulse = Pulse(self._patience)
            self._working = frozenset()
            self._connection = Connection(process.sock, self._receive, hung_up.set)
            for name, one in self._open.items():
                assert one.frame is not None, "what has brought an output is not kept"
                self._connection.send(one.frame)
                if one.aborted:
                    # Just now, by somebody who has yet to see that there is an engine again.
                    self._connection.send(msgspec.msgpack.encode(Abort(name)))
        return hung_up

    def _watch(self, process: EngineProcess, hung_up: threading.Event) -> None:
        """Returns when the process has ended, by itself or because it had to."""
        assert self._connection is not None
        while not hung_up.wait(BEAT_SECONDS) and not self._stopping.is_set():
            if (wrong := self._pulse.look()) is not None:
                logger.error("engine process %d %s; it is ended", process.pid, wrong)
                process.dump_stacks()
                break
        if self._stopping.is_set():
            self._connection.send(msgspec.msgpack.encode(Stop()))
        try:
            status = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        self._connection.close()
        if not self._stopping.is_set():
            logger.error("engine process %d has ended, exit status %d", process.pid, status)
        with self._lock:
            self._connection = None
            for name in self._working & self._open.keys():
                self._open[name].strikes += 1
        self._end_lost()

    def _end_lost(self) -> None:
        """Ends the requests that the next engine will not be asked, as long as there is none."""
        lost: list[tuple[Sink, EngineOutput]] = []
        with self._lock:
            if self._connection is not None:
                return
            for name, one in list(self._open.items()):
                if (ends := _ends(name, one)) is not None:
                    del self._open[name]
                    lost += [(one.sink, output) for output in ends]
        for sink, output in lost:
            self._deliver(sink, output)

    def _next(self, failures: int) -> EngineProcess | None:
        """Another engine, after a wait that doubles with each failure; None if it is not wanted, or given up."""
        while failures < self._patience.max_failed_starts:
            if self._stopping.wait(min(2.0**failures - 1, MAX_BACKOFF_SECONDS)):
                return None
            try:
                process, _ = self._launch()
            except (VentouxError, OSError) as error:
                failures += 1
                logger.error("the engine could not be started again, failure %d: %s", failures, error)
            else:
                self._num_restarts += 1
                return process
        logger.critical("%d starts of the engine have failed in a row; giving up", failures)
        return None


def _ends(name: str, one: OpenRequest) -> list[EngineOutput] | None:
    """The last outputs of a request that lost its engine; None if it is kept."""
    if one.aborted:
        return one.ends(name, "abort")
    if one.frame is None:
        return one.ends(name, "error", error="the engine process has ended", code="engine_dead")
    if one.strikes >= MAX_STRIKES:
        text = "the engine process ended twice while it computed this request"
        return one.ends(name, "error", error=text, code="engine_crashed")
    return None
