"""The end of the API process: asked for, under load, or by a kill that leaves it no time."""

from __future__ import annotations

import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

import ventoux
from tests.faults.conftest import children, completion, is_running, live_server, until
from tests.faults.test_engine_process import Stream, error_of


def test_sigterm_under_load_lets_answers_finish_and_a_second_one_does_not(tmp_path):
    """A first signal used by every orchestrator must cost nobody an answer; a second one means now."""
    with live_server(tmp_path / "log", "--drain-timeout", "100") as live:
        engine = live.engine
        endless = [Stream(live, "/v1/completions", completion("Hello", max_tokens=30000)) for _ in range(3)]
        until(lambda: all(stream.has_tokens for stream in endless))
        with ThreadPoolExecutor(4) as pool:
            # One runs beside them, the others wait for its place.
            short = [pool.submit(live.complete, "Hello", max_tokens=50) for _ in range(4)]
            until(lambda: live.metric("num_requests_waiting") == 3)
            os.kill(live.pid, signal.SIGTERM)
            until(lambda: live.status("/ready") == 503, 5)
            refused = live.complete("Hello")
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
            assert refused.headers["retry-after"]
            for answer in short:
                assert answer.result().json()["choices"][0]["finish_reason"] == "length"
        assert live.status("/health") == 200
        os.kill(live.pid, signal.SIGTERM)
        began = time.monotonic()
        # Not silence: an error event, and then the end.
        assert {error_of(stream)["code"] for stream in endless} <= {"shutting_down", "engine_dead"}
        until(lambda: not is_running(live.pid), 10)
        assert time.monotonic() - began < 8
    assert not is_running(engine)
    assert live.process.returncode == 0
    assert not live.lines("Traceback")


def test_a_killed_server_leaves_no_engine_even_one_that_is_stopped(tmp_path):
    """It reads no end-of-file while it is stopped: it used to stay, with the memory and the GPU that it holds."""
    with live_server(tmp_path / "log") as live:
        stream = Stream(live, "/v1/completions", completion("Hello", max_tokens=30000))
        until(lambda: stream.has_tokens)
        engine = live.hurt(signal.SIGSTOP)
        others = children(live.pid)
        assert engine in others
        os.kill(live.pid, signal.SIGKILL)
        until(lambda: not any(map(is_running, others)), 5)
        stream.join(10)
        assert isinstance(stream.failure, httpx2.HTTPError)


@pytest.mark.slow  # its parts are in tests/test_supervisor.py and tests/server/test_run.py
def test_an_engine_that_cannot_be_started_again_ends_the_server(tmp_path):
    """The checkpoint has gone: nobody can be answered any more, and whoever runs the server has to learn of it."""
    folder = shutil.copytree(Path(ventoux.__file__).parent / "demo", tmp_path / "model")
    with live_server(tmp_path / "log", "--max-failed-starts", "1", model=str(folder)) as live:
        stream = Stream(live, "/v1/completions", completion("Hello", max_tokens=30000))
        until(lambda: stream.has_tokens)
        shutil.rmtree(folder)
        live.hurt(signal.SIGKILL)
        assert error_of(stream)["code"] == "engine_dead"
        assert live.process.wait(20) == 1
    assert live.lines("1 starts of the engine have failed in a row; giving up")
