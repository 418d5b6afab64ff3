"""Who is told what when an engine dies, hangs or cannot be started: with engines that are threads holding a socket.

What happens to real processes, tests/faults/ shows.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time

import msgspec
import pytest

from tests.engines import request
from ventoux import supervisor
from ventoux.engine.client import Client, receive_frame, send_frame
from ventoux.engine.messages import Abort, Add, Beat, Command, Event, Stop, Working
from ventoux.engine.request import EngineOutput, EngineStats, TokenOutput
from ventoux.errors import ConfigError, EngineDeadError
from ventoux.supervisor import Patience, Pulse, Supervisor
from ventoux.worker import BEAT_SECONDS


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.005)
    return found


class FakeProcess:
    """An engine process without a process; the test says what it tells, and when it dies."""

    pid = 0

    def __init__(self, failure=None):
        self.sock, self._theirs = socket.socketpair()
        self.failure = failure
        self.loaded = threading.Event()
        self.loaded.set()
        self.commands = []
        self.killed = self.dumped = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        with self._theirs:
            while (frame := receive_frame(self._theirs)) is not None:
                self.commands.append(msgspec.msgpack.decode(frame, type=Command))
                if isinstance(self.commands[-1], Stop):
                    return

    def tell(self, *events: Event):
        send_frame(self._theirs, msgspec.msgpack.encode(list(events)))

    def die(self):
        with contextlib.suppress(OSError):
            self._theirs.shutdown(socket.SHUT_RDWR)

    def adds(self):
        return [c.request.request_id for c in self.commands if isinstance(c, Add)]

    # What the supervisor uses.

    def wait_ready(self, progress, timeout):
        self.loaded.wait(10)
        if self.failure or self.killed:
            self.die()
            self.sock.close()
            raise self.failure or EngineDeadError("killed")
        return "ready"

    def wait(self, timeout=None):
        if self.dumped and not self.killed:
            raise subprocess.TimeoutExpired("engine", timeout)
        return -9

    def kill(self):
        self.killed = True
        self.die()
        self.loaded.set()

    def dump_stacks(self):
        self.dumped = True


class Engines:
    """Starts fakes, and remembers them. `failures`: what the next starts come to; None: they work."""

    def __init__(self):
        self.all: list[FakeProcess] = []
        self.failures = []
        self.slow = False

    def __call__(self):
        process = FakeProcess(self.failures.pop(0) if self.failures else None)
        if self.slow:
            process.loaded.clear()
        self.all.append(process)
        return process


@pytest.fixture
def engines(monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_BACKOFF_SECONDS", 0.01)
    return Engines()


@pytest.fixture
def gave_up():
    return threading.Event()


@pytest.fixture
def client(engines, gave_up):
    client = Supervisor(engines, Patience(hang_timeout=1, step_timeout=2, max_failed_starts=3), gave_up.set)
    assert client.wait_ready() == "ready"
    until(lambda: client._connection)
    yield client
    client.stop()


class Answer(list):
    def __init__(self, client, name, **params):
        super().__init__()
        client.submit_to(request([1050], name, **params), self.append)

    @property
    def end(self):
        return (self[-1].finish_reason, self[-1].error_code) if self and self[-1].finish_reason else None


def token(name, index=0, **fields):
    return EngineOutput(request_id=name, index=index, tokens=[TokenOutput(7)], **fields)


def replaced(client, engines, count):
    until(lambda: len(engines.all) == count and client._connection is not None)
    return engines.all[-1]


def test_what_was_told_is_not_told_again_and_what_waited_is_asked_again(client, engines):
    """Another run's tokens behind those of the first would be an answer that the model never gave."""
    first = engines.all[0]
    begun, computed, waiting = (Answer(client, name) for name in ("begun", "computed", "waiting"))
    until(lambda: len(first.adds()) == 3)
    first.tell(EngineStats(num_steps=1), Working(["begun", "computed"]), token("begun"))
    until(lambda: begun)
    first.die()
    second = replaced(client, engines, 2)
    assert begun.end == ("error", "engine_dead") and not computed and not waiting
    until(lambda: second.adds() == ["computed", "waiting"])
    second.tell(token("computed", finish_reason="stop"), token("waiting", finish_reason="stop"))
    until(lambda: computed.end == waiting.end == ("stop", None))
    assert client.stats().num_engine_restarts == 1


def test_two_deaths_are_held_against_those_who_were_computed_alone(client, engines):
    suspect, bystander = Answer(client, "suspect"), Answer(client, "bystander")
    for count in (1, 2):
        engine = replaced(client, engines, count)
        engine.tell(EngineStats(num_steps=1), Working(["suspect"]))
        until(lambda: client._working == {"suspect"})
        engine.die()
        replaced(client, engines, count + 1)
    assert suspect.end == ("error", "engine_crashed") and not bystander
    until(lambda: engines.all[-1].adds() == ["bystander"])


def test_a_death_without_a_word_ends_nothing_that_waited(client, engines):
    """Death after death, before any step: nobody is guilty, and what bounds them is the number of starts."""
    waiting = Answer(client, "waiting")
    for count in (1, 2):
        replaced(client, engines, count).die()
    third = replaced(client, engines, 3)
    until(third.adds)
    assert not waiting


def test_who_has_gone_is_not_asked_for_again(client, engines):
    """An abort that the dead engine never read used to be lost with it."""
    gone, going = Answer(client, "gone"), Answer(client, "going")
    client.abort("gone")
    until(lambda: any(isinstance(c, Abort) for c in engines.all[0].commands))
    engines.slow = True
    engines.all[0].die()
    until(lambda: len(engines.all) == 2)
    assert gone.end == ("abort", None)
    # The end of a drain, while the next engine is still being started.
    client.abort("going")
    assert going.end == ("abort", None)
    engines.all[1].loaded.set()
    replaced(client, engines, 2)
    assert engines.all[1].adds() == []


def test_who_goes_as_the_next_engine_comes_is_aborted_there(client, engines):
    """That engine was asked for it, and told nothing: it computed an answer for nobody."""
    gone = Answer(client, "gone")
    engines.slow = True
    engines.all[0].die()
    until(lambda: len(engines.all) == 2)
    # The first half of an abort; the connection is there before the second looks for it.
    Client.abort(client, "gone")
    engines.all[1].loaded.set()
    until(lambda: Abort("gone") in engines.all[1].commands)
    assert engines.all[1].adds() == ["gone"] and not gone


def test_what_comes_between_two_engines_is_kept(client, engines):
    """Requests that were being prepared; new ones are refused before that, by what `stats` says."""
    engines.slow = True
    engines.all[0].die()
    until(lambda: len(engines.all) == 2)
    with pytest.raises(EngineDeadError, match="anew"):
        client.stats()
    Answer(client, "between")
    engines.all[1].loaded.set()
    until(lambda: engines.all[1].adds() == ["between"])


def test_too_many_failed_starts_end_everything(client, engines, gave_up):
    waiting = Answer(client, "waiting")
    engines.failures = [EngineDeadError("no"), ConfigError("no"), OSError("no")]
    engines.all[0].tell(EngineStats(num_steps=1))
    until(lambda: client.stats().num_steps)
    engines.all[0].die()
    assert gave_up.wait(5) and len(engines.all) == 4
    assert waiting.end == ("error", "engine_dead")
    with pytest.raises(EngineDeadError, match="could not be started again"):
        client.stats()
    with pytest.raises(EngineDeadError):
        Answer(client, "late")


def test_engines_that_die_before_a_step_count_as_failed_starts(client, engines, gave_up):
    """They start well and fall at once: the loop used to have no end."""
    for count in (1, 2, 3):
        replaced(client, engines, count).die()
    assert gave_up.wait(5) and len(engines.all) == 3


def test_a_step_that_was_done_forgives_the_failures_before(client, engines, gave_up):
    for count in range(1, 7):
        engine = replaced(client, engines, count)
        if count % 2 == 0:
            engine.tell(EngineStats(num_steps=1))
            until(lambda: client.stats().num_steps)
        engine.die()
    replaced(client, engines, 7)
    assert not gave_up.is_set()


def test_silence_is_told_and_then_ended(client, engines):
    first = engines.all[0]
    first.tell(Beat(1, True))
    until(lambda: not client.stats().is_silent)
    until(lambda: client.stats().is_silent, 1.2)
    first.tell(Beat(2, True))
    until(lambda: not client.stats().is_silent, 0.2)
    replaced(client, engines, 2)
    assert first.dumped and first.killed


def test_a_stop_while_the_engine_starts_does_not_wait_for_it(engines, gave_up):
    engines.slow = True
    client = Supervisor(engines, on_give_up=gave_up.set)
    until(lambda: engines.all)
    client.stop()
    assert engines.all[0].killed
    with pytest.raises(EngineDeadError):
        client.wait_ready()
    assert not gave_up.is_set()


def test_a_stop_ends_what_is_open(client, engines):
    answer = Answer(client, "open", n=2)
    client.stop()
    assert [(o.index, o.error_code) for o in answer] == [(0, "engine_dead"), (1, "engine_dead")]
    assert isinstance(engines.all[0].commands[-1], Stop)


# ------------------------------------------------------------------------------------------------------------ pulse


def looks(pulse, seconds, beat=None):
    """What comes of looking for so long, with a beat before each look."""
    for _ in range(round(seconds / BEAT_SECONDS)):
        if beat is not None:
            pulse.beat(beat() if callable(beat) else beat)
        if (wrong := pulse.look()) is not None:
            return wrong
    return None


PATIENCE = Patience(hang_timeout=30, step_timeout=300)


def test_an_engine_that_beats_and_has_nothing_to_do_is_well():
    assert looks(Pulse(PATIENCE), 3600, Beat(5, False)) is None


def test_an_engine_that_gets_on_is_well():
    turns = iter(range(10**6))
    assert looks(Pulse(PATIENCE), 3600, lambda: Beat(next(turns) // 400, True)) is None


def test_no_beats_are_a_hang_and_beats_without_a_turn_are_one_later():
    """A long step computes without Python's lock and goes on beating: it has minutes. A stopped process has not."""
    assert looks(Pulse(PATIENCE), 29) is None
    assert "no sign of life for 30 s" in looks(Pulse(PATIENCE), 31)
    assert looks(Pulse(PATIENCE), 299, Beat(5, True)) is None
    assert "one step for 300 s" in looks(Pulse(PATIENCE), 302, Beat(5, True))


def test_silence_shows_within_a_second():
    pulse = Pulse(PATIENCE)
    pulse.beat(Beat(1, True))
    looks(pulse, 0.5)
    assert not pulse.is_silent
    looks(pulse, 0.25)
    assert pulse.is_silent
