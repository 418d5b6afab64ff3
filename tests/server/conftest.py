"""A whole application on a scripted engine, spoken to without sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import pytest

from tests.fakes import FakeEngine, FakeResolver, FakeWeb
from ventoux.config import ServerConfig
from ventoux.server.app import create_app
from ventoux.server.media import MediaFetcher
from ventoux.text.tekken import write_tekken
from ventoux.text.tokenizer import Tokenizer

MODEL = "mistralai/Mistral-Small-4"
HELLO = [{"role": "user", "content": "Hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer.from_file(write_tekken(tmp_path_factory.mktemp("tokenizer"), num_ranks=2048))


@dataclass
class Server:
    """One application; every call runs it in an event loop of its own, so that tests stay synchronous."""

    engine: FakeEngine
    tokenizer: Tokenizer
    app: Any
    web: FakeWeb
    resolver: FakeResolver

    def request(self, method: str, path: str, **kwargs: Any) -> httpx2.Response:
        async def send() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=True)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **kwargs)

        return asyncio.run(send())

    def get(self, path: str, **kwargs: Any) -> httpx2.Response:
        return self.request("GET", path, **kwargs)

    def post(self, path: str, body: Any, **kwargs: Any) -> httpx2.Response:
        return self.request("POST", path, json=body, **kwargs)

    def chat(self, messages: Any = None, **fields: Any) -> httpx2.Response:
        return self.post("/v1/chat/completions", {"messages": HELLO if messages is None else messages, **fields})

    def ask(self, use: Callable[[httpx2.AsyncClient], Awaitable[Any]]) -> Any:
        """Runs `use` with an HTTP client of this server, for clients that bring their own protocol."""

        async def run() -> Any:
            transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=True)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                return await use(client)

        return asyncio.run(run())

    def says(self, *parts: str | int) -> None:
        """The engine's next answers: text is encoded, numbers are control tokens."""
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self.tokenizer.encode_text(part)
        self.engine.script = lambda request: [ids] * request.params.n


@pytest.fixture
def make_server(tokenizer) -> Iterator[Callable[..., Server]]:
    stores = []

    def make(
        *,
        engine: FakeEngine | None = None,
        web: FakeWeb | None = None,
        resolver: FakeResolver | None = None,
        max_model_len: int = 256,
        **config: Any,
    ) -> Server:
        engine, web, resolver = engine or FakeEngine(), web or FakeWeb(), resolver or FakeResolver()
        nothing = {"image_workers": 0, "responses_store": "none", "files_store": "none"}
        settings = replace(ServerConfig(), **{**nothing, **config})
        media = MediaFetcher(settings, transport=web, resolver=resolver)
        app = create_app(engine, tokenizer, (MODEL, "alias"), max_model_len, settings, media=media)
        stores.append(app.state.service.responses)
        return Server(engine, tokenizer, app, web, resolver)

    yield make
    for store in filter(None, stores):
        asyncio.run(store.close())


@pytest.fixture
def server(make_server) -> Server:
    return make_server()


def events(response: httpx2.Response) -> list[dict[str, Any]]:
    """The JSON events of a stream, which must end with [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def named_events(response: httpx2.Response) -> list[dict[str, Any]]:
    """The JSON events of a stream in which each is named by its type, without an end mark."""
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            found.append(event)
    return found


def assert_error(response: httpx2.Response, status: int, *, param: str | None = None, code: str | None = None) -> None:
    """OpenAI's error body and nothing else, with a request id."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    assert response.headers["x-request-id"]
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"]
    if param is not None:
        assert error["param"] == param
    if code is not None:
        assert error["code"] == code
