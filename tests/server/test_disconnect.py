"""A client that goes away, as the application sees it: the engine is told at once, whatever was going on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.server.conftest import HELLO
from ventoux.server import sse


class Connection:
    """One HTTP request at the ASGI level, whose client leaves when it is told to."""

    def __init__(self, app: Any, body: dict[str, Any], path: str = "/v1/chat/completions"):
        self.app = app
        self.path = path
        self.left = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self._body = [json.dumps(body).encode()]

    async def run(self) -> None:
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": self.path, "raw_path": self.path.encode()}
        scope |= {"headers": headers}
        scope |= {"query_string": b"", "scheme": "http", "server": ("test", 80), "client": ("c", 1), "root_path": ""}
        scope |= {"http_version": "1.1", "asgi": {"version": "3.0"}}
        await self.app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        # Lets the disconnect be noticed between two chunks, as a socket would.
        await asyncio.sleep(0)


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 9}),
        ("/v1/responses", {"input": "Hi"}),
    ],
)
def test_leaving_before_the_first_token_closes_the_engine_request(server, path, body, stream):
    """During a long prefill nothing is sent, so nothing that waits for a failing send would notice."""

    async def scenario():
        server.engine.gate.clear()
        connection = Connection(server.app, {**body, "stream": stream}, path)
        running = asyncio.create_task(connection.run())
        await until(lambda: server.engine.requests)
        assert server.engine.closed == []
        connection.left.set()
        await asyncio.wait_for(running, 5)
        assert server.engine.closed == [server.engine.requests[0].request_id]
        assert server.app.state.service.num_in_flight == 0

    server.says("never")
    asyncio.run(scenario())


def test_leaving_between_two_tokens_closes_the_engine_request(server):
    async def scenario():
        connection = Connection(server.app, {"messages": HELLO, "stream": True})
        running = asyncio.create_task(connection.run())
        await until(lambda: len(connection.sent) > 4)
        server.engine.gate.clear()
        connection.left.set()
        await asyncio.wait_for(running, 5)
        assert len(server.engine.closed) == 1
        assert len(connection.sent) < 100

    server.says("word " * 100)
    asyncio.run(scenario())


def test_leaving_is_counted_as_an_abort(server):
    async def scenario():
        server.engine.gate.clear()
        connection = Connection(server.app, {"messages": HELLO})
        running = asyncio.create_task(connection.run())
        await until(lambda: server.engine.requests)
        connection.left.set()
        await running

    server.says("never")
    asyncio.run(scenario())
    text = server.app.state.service.metrics.render().decode()
    assert 'ventoux_request_success_total{finished_reason="abort"} 1.0' in text


def test_silence_is_broken_by_comments(server, monkeypatch):
    """Proxies cut connections on which nothing moves, and a long prefill is silent."""
    monkeypatch.setattr(sse, "PING_SECONDS", 0.02)

    async def scenario():
        server.engine.gate.clear()
        connection = Connection(server.app, {"messages": HELLO, "stream": True})
        running = asyncio.create_task(connection.run())
        await until(lambda: [m for m in connection.sent if m.get("body") == b": ping\n\n"])
        server.engine.gate.set()
        await running
        lines = b"".join(m.get("body", b"") for m in connection.sent).split(b"\n\n")
        data = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in data) == "late"
        assert lines[-2] == b"data: [DONE]"

    server.says("late")
    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_aborting_everything_tells_the_clients(server, stream):
    """The end of a drain: what still runs gets an error, not silence and not a clean end."""

    async def scenario():
        server.engine.gate.clear()
        connection = Connection(server.app, {"messages": HELLO, "stream": stream})
        running = asyncio.create_task(connection.run())
        await until(lambda: server.engine.requests)
        server.app.state.service.drain()
        server.app.state.service.abort_all()
        server.engine.gate.set()
        await asyncio.wait_for(running, 5)
        body = b"".join(m.get("body", b"") for m in connection.sent)
        assert b'"code":"shutting_down"' in body
        assert connection.sent[0]["status"] == (200 if stream else 503)

    server.says("never")
    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 9}),
        ("/v1/responses", {"input": "Hi", "stream": True}),
        ("/v1/completions", {"prompt": ["a b c", "d"], "stream": True}),
    ],
)
def test_prompt_tokens_that_wait_are_bounded(make_server, path, body):
    """A thousand requests can be a thousand long prompts: hours of work, for clients that have given up by then."""
    server = make_server(max_queued_tokens=1)
    server.says("yes")
    service = server.app.state.service

    async def scenario():
        server.engine.gate.clear()
        # One alone is always taken.
        first, second, third = (Connection(server.app, body, path) for _ in range(3))
        running = asyncio.create_task(first.run())
        await until(lambda: server.engine.requests)
        assert service.queued_tokens > 1
        await second.run()
        refused = second.sent[0]
        # Anthropic's clients know 529.
        assert refused["status"] in (503, 529) and (b"retry-after", b"5") in refused["headers"]
        assert b"prompt tokens" in second.sent[1]["body"]
        # From the first token on they do not wait any more.
        server.engine.gate.set()
        await running
        await third.run()
        assert third.sent[0]["status"] == 200

    asyncio.run(scenario())
    assert service.queued_tokens == 0


def test_prompt_tokens_of_those_who_leave_do_not_wait(make_server):
    server = make_server()

    async def scenario():
        server.engine.gate.clear()
        connection = Connection(server.app, {"prompt": ["a", "b"], "n": 2}, "/v1/completions")
        running = asyncio.create_task(connection.run())
        await until(lambda: len(server.engine.requests) == 2)
        assert server.app.state.service.queued_tokens
        connection.left.set()
        await running

    asyncio.run(scenario())
    assert server.app.state.service.queued_tokens == 0
