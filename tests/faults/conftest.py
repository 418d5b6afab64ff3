"""A server that is hurt for real: `ventoux serve` with the bundled model, its engine process, and what both hold."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.conftest import serving

# Answers of the same prompts are compared with those of a quiet server, to the last bit of their scores.
PROMPTS = ["Hello", "What is 12 * 7?", "Name a colour."]
# One running sequence per long stream of these tests: whatever comes behind them waits.
FLAGS = (
    *("--num-threads", "1", "--max-num-seqs", "4", "--max-num-batched-tokens", "512"),
    *("--kv-cache-memory", "256MiB", "--max-model-len", "32k"),
)


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Waits for something true, and returns it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.01)
    return found


@dataclass
class Live:
    """A running server."""

    url: str
    process: subprocess.Popen
    log: Path
    # No connections kept: the server's open files are counted.
    client: httpx2.Client = field(
        default_factory=lambda: httpx2.Client(timeout=60, limits=httpx2.Limits(max_keepalive_connections=0))
    )
    quiet: list[Any] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def engine(self) -> int:
        """The process id of its engine."""
        [pid] = until(lambda: [child for child in children(self.pid) if b"ventoux.worker" in command(child)])
        return pid

    def hurt(self, number: int) -> int:
        pid = self.engine
        os.kill(pid, number)
        return pid

    def status(self, path: str) -> int:
        return self.client.get(self.url + path).status_code

    def wait_ready(self) -> None:
        until(lambda: self.status("/ready") == 200)

    def metric(self, name: str) -> float:
        """The sum over its labels; -1 if there is none."""
        text = self.client.get(self.url + "/metrics").text
        found = re.findall(rf"^ventoux_{name}(?:{{[^}}]*}})? (\S+)$", text, re.M)
        return sum(map(float, found)) if found else -1.0

    def complete(self, prompt: Any, **fields: Any) -> httpx2.Response:
        return self.client.post(self.url + "/v1/completions", json=completion(prompt, **fields))

    def answers(self) -> list[Any]:
        return [choice_of(self.complete(prompt, logprobs=3)) for prompt in PROMPTS]

    def lines(self, text: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if text in line]

    def held(self) -> dict[str, int]:
        """Open files of both processes, and what requests hold."""
        return {
            "files": len(os.listdir(f"/proc/{self.pid}/fd")),
            "engine's files": len(os.listdir(f"/proc/{self.engine}/fd")),
            "running": int(self.metric("num_requests_running")),
            "waiting": int(self.metric("num_requests_waiting")),
            "pages": round(self.metric("kv_cache_usage_perc") * 1e6),
        }


def completion(prompt: Any, **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "temperature": 0, "max_tokens": 12, "ignore_eos": True, **fields}


def choice_of(response: httpx2.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # threads end
            found += map(int, (task / "children").read_text().split())
    return found


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def memory(pid: int) -> int:
    """Resident bytes."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


@contextmanager
def live_server(log: Path, *flags: str, model: str | None = None) -> Iterator[Live]:
    named = (model,) if model else ()
    with serving(*named, *FLAGS, "--responses-store", "none", "--files-store", "none", *flags, log=log) as (
        url,
        process,
    ):
        live = Live(url, process, log)
        try:
            yield live
        finally:
            live.client.close()
            for pid in children(process.pid) if process.poll() is None else []:
                # A test that failed may have left it stopped, and the server would wait for it.
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Iterator[Live]:
    with live_server(tmp_path_factory.mktemp("faults") / "log", "--hang-timeout", "2") as live:
        live.quiet = live.answers()
        yield live


@pytest.fixture
def live(shared) -> Iterator[Live]:
    """The server that all tests here share: each must leave it ready, and holding no more than before."""
    shared.wait_ready()
    before = shared.held()
    yield shared
    shared.wait_ready()
    end = time.monotonic() + 10
    # A connection of our own that was just being closed may have been counted before.
    while (more := {k: v for k, v in shared.held().items() if v > before[k]}) and time.monotonic() < end:
        time.sleep(0.1)
    assert not more, (more, before)
