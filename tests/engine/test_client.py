"""Who waits for which request: ids told apart, failing sinks kept to themselves, no wait for an engine that hangs."""

import asyncio
import socket
import threading
import time

import pytest

from tests.engines import prompt, request, tiny_engine
from ventoux.engine import client as client_module
from ventoux.engine.client import Client, Connection
from ventoux.engine.loop import ThreadClient
from ventoux.engine.request import EngineOutput, TokenOutput
from ventoux.errors import InvalidRequestError, SlowReaderError


@pytest.fixture
def client():
    client = ThreadClient(tiny_engine())
    yield client
    client.close()


def until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_id_in_use_is_refused_and_its_owner_goes_on(client):
    """The second one used to take over the outputs of the first, which then waited for ever."""
    outputs = []
    client.submit_to(request(prompt(5), "x", max_tokens=100), outputs.append)
    with pytest.raises(InvalidRequestError, match="already running"):
        client.submit_to(request(prompt(6), "x"), outputs.append)
    until(lambda: outputs and outputs[-1].finish_reason)
    assert outputs[-1].finish_reason == "length"


@pytest.mark.parametrize("n", [0, -1, 10**9])
def test_a_count_of_answers_that_cannot_be_kept_is_refused(client, n):
    with pytest.raises(InvalidRequestError, match="n must be"):
        client.submit_to(request(prompt(5), n=n), print)
    assert not client._open


def test_a_sink_that_fails_ends_its_own_request_alone(client):
    def broken(output):
        raise KeyError("nobody home")

    outputs = []
    client.submit_to(request(prompt(5), "bad", max_tokens=150), broken)
    client.submit_to(request(prompt(6), "good"), outputs.append)
    until(lambda: outputs and outputs[-1].finish_reason)
    assert outputs[-1].finish_reason == "length"
    until(lambda: not client._open)


class Encoding(Client):
    """Sends nowhere, but encodes as a transport to another process does."""

    def _send(self, command):
        client_module.msgspec.msgpack.encode(command)


def test_a_request_that_cannot_be_encoded_leaves_nothing():
    client = Encoding()
    with pytest.raises(OverflowError):
        client.submit_to(request(prompt(5), seed=2**70), print)
    assert not client._open


def test_nobody_waits_for_an_engine_that_does_not_read():
    """A frame larger than the socket's buffer used to block the caller, the server's event loop, until it was read."""
    ours, theirs = socket.socketpair()
    ended = threading.Event()
    connection = Connection(ours, print, ended.set)
    sending = threading.Thread(target=connection.send, args=(bytes(10**7),), daemon=True)
    sending.start()
    sending.join(5)
    assert not sending.is_alive()
    theirs.close()
    connection.close()
    assert ended.is_set()


def test_each_answer_that_is_left_gets_its_own_end():
    """With n > 1 the ends of those that were left used to carry the indices of those that had finished."""
    client, outputs = Encoding(), []
    client.submit_to(request(prompt(5), "x", n=3), outputs.append)
    client._receive([EngineOutput(request_id="x", index=0, finish_reason="stop")])
    client._die("gone")
    assert [(o.index, o.finish_reason) for o in outputs] == [(0, "stop"), (1, "error"), (2, "error")]


def test_outputs_that_nobody_takes_end_their_request(monkeypatch):
    """They used to pile up in memory as long as the engine went on: 2 KB each with log-probabilities."""
    monkeypatch.setattr(client_module, "MAX_UNREAD_TOKENS", 50)
    client = Encoding()

    def token(reason=None):
        client._receive([EngineOutput(request_id="x", tokens=[TokenOutput(1)], finish_reason=reason)])

    async def slow():
        outputs = client.submit(request(prompt(5), "x", max_tokens=100))
        token_tasks = [asyncio.ensure_future(anext(outputs))]
        await asyncio.sleep(0)
        token()
        await token_tasks[0]
        for _ in range(60):
            token()
        await asyncio.sleep(0)
        assert client._open["x"].aborted
        with pytest.raises(SlowReaderError):
            await anext(outputs)

    async def quick():
        outputs = client.submit(request(prompt(5), "y", max_tokens=100))
        reading = asyncio.ensure_future(anext(outputs))
        await asyncio.sleep(0)
        for _ in range(60):
            client._receive([EngineOutput(request_id="y", tokens=[TokenOutput(1)])])
            await reading
            reading = asyncio.ensure_future(anext(outputs))
            await asyncio.sleep(0)
        client._receive([EngineOutput(request_id="y", finish_reason="stop")])
        assert (await reading).finish_reason == "stop"

    asyncio.run(slow())
    asyncio.run(quick())
