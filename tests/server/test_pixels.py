"""Pixels that wait for the engine: bounded, and given up as soon as they are encoded."""

from __future__ import annotations

import asyncio
import base64
import gc
import io

import pytest
from PIL import Image

from tests.fakes import FakeEngine
from tests.server.conftest import assert_error
from tests.server.test_disconnect import Connection, until
from ventoux.engine.client import Client
from ventoux.server import service as service_module

# 56 x 56 pixels, three colours, four bytes: what a picture of 50 x 50 becomes.
BYTES = 56 * 56 * 3 * 4


def message(color: int = 0) -> list[dict]:
    data = io.BytesIO()
    Image.new("RGB", (50, 50), (color, 0, 0)).save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def test_images_beyond_the_limit_are_told_to_come_back(server, monkeypatch):
    """A thousand waiting requests of 16 images each were 450 GB."""
    monkeypatch.setattr(service_module, "MAX_PIXEL_BYTES", 2 * BYTES + 1)
    service = server.app.state.service

    async def scenario():
        server.engine.gate.clear()
        waiting = [Connection(server.app, {"messages": message(), "stream": stream}) for stream in (False, True)]
        tasks = [asyncio.create_task(connection.run()) for connection in waiting]
        await until(lambda: len(server.engine.requests) == 2)
        assert service.pixel_bytes == 2 * BYTES
        refused = await asyncio.to_thread(lambda: server.chat(message()))
        assert_error(refused, 503, code="overloaded")
        assert int(refused.headers["retry-after"]) > 0
        # Text needs no pixels, and one who leaves makes room.
        text = Connection(server.app, {"messages": [{"role": "user", "content": "a"}]})
        tasks.append(asyncio.create_task(text.run()))
        await until(lambda: len(server.engine.requests) == 3)
        waiting[0].left.set()
        await until(lambda: service.pixel_bytes == BYTES)
        server.engine.gate.set()
        await asyncio.gather(*tasks)

    server.says("a")
    asyncio.run(scenario())
    assert service.pixel_bytes == 0 == service.num_in_flight


def test_one_request_is_always_taken(server, monkeypatch):
    """Or a request larger than the limit would be told to come back for ever."""
    monkeypatch.setattr(service_module, "MAX_PIXEL_BYTES", 1)
    server.says("a")
    for _ in range(2):
        assert server.chat(message()).status_code == 200


@pytest.mark.parametrize(("num_cached", "held"), [(0, 0), (8, BYTES)])
def test_pixels_are_given_back_with_the_first_token(make_server, num_cached, held):
    """They were held to the last token. Only an image that the cache knew is still held by the engine."""
    server = make_server(engine=FakeEngine(num_cached_tokens=num_cached))
    service = server.app.state.service

    async def scenario():
        connection = Connection(server.app, {"messages": message(), "stream": True})
        running = asyncio.create_task(connection.run())
        await until(lambda: len(connection.sent) > 4)
        server.engine.gate.clear()
        assert service.pixel_bytes == held and service.num_in_flight == 1
        connection.left.set()
        await running

    server.says("word " * 100)
    asyncio.run(scenario())
    assert service.pixel_bytes == 0


class Marked(bytes):
    """Bytes that tell when they go (weak references to bytes there are none)."""

    gone = 0

    def __del__(self) -> None:
        Marked.gone += 1


def test_neither_server_nor_client_keeps_the_pixels_of_a_running_request(server, monkeypatch):
    """The server's copy was kept for the length of the answer, the engine having its own."""

    class Transport(Client):
        def _send(self, command):
            pass

    engine = Transport()
    service = server.app.state.service
    service.engine = engine
    encode = type(server.tokenizer).encode_chat

    def marking(*args, **kwargs):
        prompt = encode(*args, **kwargs)
        for image in prompt.images:
            image.pixels = Marked(image.pixels)
        return prompt

    monkeypatch.setattr(type(server.tokenizer), "encode_chat", marking)

    async def scenario():
        connection = Connection(server.app, {"messages": message(), "stream": True})
        running = asyncio.create_task(connection.run())
        await until(lambda: engine._open)
        gc.collect()
        assert Marked.gone == 1
        connection.left.set()
        await running

    asyncio.run(scenario())
