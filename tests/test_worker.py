"""The engine process: same tokens as in this process, errors told before it ends, no orphan, no silence."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from tests.engines import request
from tests.tiny import write_tiny
from ventoux.build import build_engine
from ventoux.config import EngineConfig
from ventoux.engine.loop import ThreadClient
from ventoux.errors import ConfigError, EngineDeadError
from ventoux.worker import StartingWorker

CHOICES = EngineConfig(dtype="float32", max_model_len=128, num_threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def worker(folder):
    seen = []
    worker = StartingWorker(folder, CHOICES).wait(lambda done, total: seen.append((done, total)))
    assert seen and seen[-1][0] == seen[-1][1], "loading must be reported to its end"
    yield worker
    worker.stop()
    assert worker.process.returncode == 0


async def collect(client, one):
    return [output async for output in client.submit(one)]


def test_another_process_gives_the_same_tokens(worker, folder):
    here = ThreadClient(build_engine(folder, CHOICES).engine)
    one = request([1050, 1060, 1070], logprobs=2)
    ours, theirs = asyncio.run(collect(here, one)), asyncio.run(collect(worker.client, one))
    assert ours == theirs and sum(len(o.tokens) for o in ours) == 8
    here.close()


def test_a_refused_request_is_an_output_with_the_reason(worker):
    (output,) = asyncio.run(collect(worker.client, request([9999])))
    assert output.finish_reason == "error" and "token ids" in output.error


def test_closing_the_iterator_aborts(worker):
    async def start_and_leave():
        outputs = worker.client.submit(request([1050], max_tokens=100))
        await anext(outputs)
        await outputs.aclose()

    asyncio.run(start_and_leave())
    deadline = time.monotonic() + 5
    while worker.client.stats().num_running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_checkpoint_that_cannot_be_used_is_told_whole(tmp_path):
    write_tiny(tmp_path)
    with (tmp_path / "consolidated.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(ConfigError, match=r"consolidated\.safetensors"):
        StartingWorker(tmp_path, CHOICES).wait()


def test_death_ends_open_requests_and_refuses_new_ones(folder):
    worker = StartingWorker(folder, CHOICES).wait()

    async def die_in_the_middle():
        outputs = worker.client.submit(request([1050], max_tokens=120))
        await anext(outputs)
        os.kill(worker.process.pid, signal.SIGKILL)
        return [output async for output in outputs][-1]

    last = asyncio.run(die_in_the_middle())
    assert (last.finish_reason, last.error_code) == ("error", "engine_dead")
    with pytest.raises(EngineDeadError):
        asyncio.run(collect(worker.client, request([1050])))
    with pytest.raises(EngineDeadError):
        worker.client.stats()
    worker.stop()


def test_an_engine_that_hangs_is_ended(folder):
    """Stopping used to wait for it without end."""
    worker = StartingWorker(folder, CHOICES).wait()
    os.kill(worker.process.pid, signal.SIGSTOP)
    worker.stop(timeout=0.2)
    assert worker.process.returncode == -signal.SIGKILL


def test_a_message_that_cannot_be_read_is_a_death_that_shows(folder):
    """The thread that reads used to end alone: the engine lived on, and no request was ever answered again."""
    worker = StartingWorker(folder, CHOICES).wait()
    (output,) = asyncio.run(collect(worker.client, request([1050], max_tokens=[1])))
    assert output.error_code == "engine_dead"
    worker.stop()
