"""The engine process: same tokens as in this process, errors told before it ends, no silence."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial

import pytest

from tests.engines import request
from tests.tiny import write_tiny
from ventoux.build import build_engine
from ventoux.config import EngineConfig
from ventoux.engine.loop import ThreadClient
from ventoux.errors import ConfigError, EngineDeadError
from ventoux.supervisor import Supervisor
from ventoux.worker import EngineProcess

CHOICES = EngineConfig(dtype="float32", max_model_len=128, num_threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def client(folder):
    seen = []
    client = Supervisor(partial(EngineProcess, folder, CHOICES))
    client.wait_ready(lambda done, total: seen.append((done, total)))
    assert seen and seen[-1][0] == seen[-1][1], "loading must be reported to its end"
    yield client
    client.stop()
    with pytest.raises(EngineDeadError):
        client.stats()


async def collect(client, one):
    return [output async for output in client.submit(one)]


def test_another_process_gives_the_same_tokens(client, folder):
    here = ThreadClient(build_engine(folder, CHOICES).engine)
    one = request([1050, 1060, 1070], logprobs=2)
    ours, theirs = asyncio.run(collect(here, one)), asyncio.run(collect(client, one))
    for output in ours + theirs:
        output.queue_seconds = 0.0
    assert ours == theirs and sum(len(o.tokens) for o in ours) == 8
    here.close()


def test_a_refused_request_is_an_output_with_the_reason(client):
    (output,) = asyncio.run(collect(client, request([9999])))
    assert output.finish_reason == "error" and "token ids" in output.error


def test_closing_the_iterator_aborts(client):
    async def start_and_leave():
        outputs = client.submit(request([1050], max_tokens=100))
        await anext(outputs)
        await outputs.aclose()

    asyncio.run(start_and_leave())
    # The engine takes messages in order: what this one brings comes after the abort's own last output. (A snapshot
    # that counts nothing as running proves nothing: it may be from before the first step.)
    assert len(asyncio.run(collect(client, request([1060], name="behind")))) == 8
    assert len(asyncio.run(collect(client, request([1050])))) == 8, "the id is free again, long before 100 tokens"


def test_a_message_that_cannot_be_read_ends_its_request_alone(client):
    """The thread that reads used to end: first with no request ever answered again, then with the engine."""
    for n in (1, 2):
        outputs = asyncio.run(collect(client, request([1050], max_tokens=[1], n=n)))
        assert [o.error_code for o in outputs] == ["internal_error"] * n
    assert len(asyncio.run(collect(client, request([1050])))) == 8
    assert client.stats().num_engine_restarts == 0


def test_a_checkpoint_that_cannot_be_used_is_told_whole(tmp_path):
    write_tiny(tmp_path)
    with (tmp_path / "consolidated.safetensors").open("r+b") as file:
        file.truncate(5000)
    process = EngineProcess(tmp_path, CHOICES)
    with pytest.raises(ConfigError, match=r"consolidated\.safetensors"):
        process.wait_ready()
    assert process.wait(5) is not None


def test_a_start_that_gets_nowhere_is_ended(folder):
    """It used to be waited for without end."""
    process = EngineProcess(folder, CHOICES)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(EngineDeadError, match=r"told nothing for 0\.3 s"):
        process.wait_ready(timeout=0.3)
    assert process.wait(5) == -signal.SIGKILL
