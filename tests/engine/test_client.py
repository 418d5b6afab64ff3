"""Who waits for which request: ids told apart, failing sinks kept to themselves, no wait for an engine that hangs."""

import socket
import threading
import time

import pytest

from tests.engines import image, image_tokens, prompt, request, tiny_engine
from ventoux.engine.client import SocketClient
from ventoux.engine.loop import ThreadClient
from ventoux.errors import InvalidRequestError


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
    assert not client._sinks


def test_a_sink_that_fails_ends_its_own_request_alone(client):
    def broken(output):
        raise KeyError("nobody home")

    outputs = []
    client.submit_to(request(prompt(5), "bad", max_tokens=150), broken)
    client.submit_to(request(prompt(6), "good"), outputs.append)
    until(lambda: outputs and outputs[-1].finish_reason)
    assert outputs[-1].finish_reason == "length"
    until(lambda: not client._sinks)


def test_a_request_that_cannot_be_encoded_leaves_nothing():
    ours, theirs = socket.socketpair()
    client = SocketClient(ours)
    with pytest.raises(OverflowError):
        client.submit_to(request(prompt(5), seed=2**70), print)
    assert not client._sinks
    theirs.close()
    client.close()


def test_nobody_waits_for_an_engine_that_does_not_read():
    """A frame larger than the socket's buffer used to block the caller, the server's event loop, until it was read."""
    ours, theirs = socket.socketpair()
    client = SocketClient(ours)
    one = request(image_tokens(9, 9), images=[image(9, 9)])
    outputs = []
    submitting = threading.Thread(target=client.submit_to, args=(one, outputs.append), daemon=True)
    submitting.start()
    submitting.join(5)
    assert not submitting.is_alive()
    theirs.close()
    client.close()
    assert [o.error_code for o in outputs] == ["engine_dead"]
