"""Grammars, compiled beside the engine's steps: 0.2 s for a large schema, and 0.7 to 3 s once for the vocabulary.

llguidance compiles without the interpreter's lock. It builds its vocabulary with it: that part, once, still stalls.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ventoux.engine.sequence import Sequence, TokenMask
from ventoux.errors import EngineError, InvalidRequestError

MaskFactory = Callable[[str], TokenMask]
# What passes the server's checks takes a second at most; but machines are busy, and the first one loads a vocabulary.
MAX_COMPILE_SECONDS = 60.0


@dataclass(eq=False)
class MaskJob:
    """The answers to one request, which wait for its grammar. `outcome`: the mask at its beginning, or what failed."""

    grammar: str
    sequences: list[Sequence]
    outcome: TokenMask | Exception | None = None
    started: float | None = None

    @property
    def live(self) -> list[Sequence]:
        """The answers that nobody has aborted meanwhile."""
        return [s for s in self.sequences if s.finish_reason is None]


class MaskCompiler:
    """Compiles one grammar after the other in a thread, which ends when there are none left.

    Only the thread sets outcomes, or the clock where it takes too long; the engine's thread collects them.
    """

    def __init__(self, factory: MaskFactory, max_seconds: float = MAX_COMPILE_SECONDS):
        self._factory = factory
        self._max_seconds = max_seconds
        self._jobs: list[MaskJob] = []
        self._todo: deque[MaskJob] = deque()
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def has_work(self) -> bool:
        return bool(self._jobs)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for their grammars."""
        return sum(len(job.live) for job in self._jobs)

    def submit(self, grammar: str, sequences: list[Sequence]) -> None:
        """`sequences` are the answers to one request."""
        job = MaskJob(grammar, sequences)
        self._jobs.append(job)
        with self._lock:
            self._todo.append(job)
            if self._thread is None:
                self._start_thread()

    def collect(self, wait_seconds: float) -> list[MaskJob]:
        """Jobs that have come to an outcome, and those that were aborted; waits a little if nothing is new."""
        if wait_seconds > 0:
            self._news.wait(wait_seconds)
        self._news.clear()
        self._give_up_late()
        ended = [job for job in self._jobs if job.outcome is not None or not job.live]
        self._jobs = [job for job in self._jobs if job not in ended]
        return ended

    def _give_up_late(self) -> None:
        """A job that takes too long is refused. Its thread cannot be stopped; the jobs after it get a new one."""
        with self._lock:
            for job in self._jobs:
                late = job.started is not None and time.monotonic() - job.started > self._max_seconds
                if late and job.outcome is None:
                    job.outcome = InvalidRequestError(
                        f"the grammar could not be compiled within {self._max_seconds:g} seconds; simplify it.",
                        code="invalid_json_schema",
                    )
                    self._start_thread()

    def _start_thread(self) -> None:
        # A daemon: a grammar that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="ventoux-grammars", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            # No more threads can be had: those who wait are refused, and the next one tries again.
            self._thread = None
            while self._todo:
                self._todo.popleft().outcome = error
            self._news.set()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            outcome: TokenMask | Exception
            try:
                outcome = self._factory(job.grammar)
            except Exception as error:
                outcome = error
            except BaseException as error:
                # A panic of native code is none, and would end this thread with all that wait for it.
                outcome = EngineError(f"the grammar compiler failed: {error!r}")
            with self._lock:
                job.outcome = job.outcome or outcome
            self._news.set()

    def _next(self) -> MaskJob | None:
        with self._lock:
            if self._thread is not threading.current_thread():
                return None  # given up; another one has taken over
            while self._todo:
                job = self._todo.popleft()
                if job.live:
                    job.started = time.monotonic()
                    return job
            self._thread = None
            return None
