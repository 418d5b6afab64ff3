"""Responses in the background: begun, looked at, cancelled, forgotten, cut off by a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai
import pytest

from tests.fakes import FakeEngine
from tests.server.conftest import MODEL, Server, assert_error


@pytest.fixture
def make(make_server, tmp_path) -> Callable[..., Server]:
    path = str(tmp_path / "responses.sqlite3")
    return lambda **config: make_server(responses_store=path, engine=FakeEngine(), **config)


def drive(server: Server, scenario: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with server.app.router.lifespan_context(server.app):
            http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=server.app), base_url="http://test/v1")
            options: Any = {"base_url": "http://test/v1", "api_key": "k", "max_retries": 0}
            async with openai.AsyncOpenAI(http_client=http, **options) as client:
                return await scenario(client)

    return asyncio.run(asyncio.wait_for(run(), 30))


async def begin(client: openai.AsyncOpenAI, **fields: Any) -> Any:
    return await client.responses.create(model=MODEL, input="Hi", background=True, **fields)


async def ended(client: openai.AsyncOpenAI, response: Any) -> Any:
    while response.status in ("queued", "in_progress"):
        await asyncio.sleep(0.01)
        response = await client.responses.retrieve(response.id)
    return response


def test_a_response_is_begun_and_looked_at(make):
    server = make()
    server.says("Hello")
    server.engine.gate.clear()
    service = server.app.state.service

    async def scenario(client: openai.AsyncOpenAI) -> None:
        response = await begin(client, metadata={"a": "b"})
        assert response.status == "queued" and response.background and response.output == []
        assert (await client.responses.retrieve(response.id)).status == "in_progress"
        # It counts like a request that somebody waits for.
        assert service.num_in_flight == 1
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model=MODEL, input="And?", previous_response_id=response.id)
        assert caught.value.param == "previous_response_id"
        server.engine.gate.set()
        done = await ended(client, response)
        assert done.status == "completed" and done.output_text == "Hello" and done.metadata == {"a": "b"}
        assert service.num_in_flight == 0
        more = await client.responses.create(model=MODEL, input="And?", previous_response_id=response.id)
        assert more.output_text == "Hello"
        # It has ended: there is nothing to cancel, and nothing changes.
        assert (await client.responses.cancel(response.id)).status == "completed"

    drive(server, scenario)


def test_cancelling_keeps_what_is_complete_and_frees_the_engine(make):
    server = make()
    thought, text = [34, *server.tokenizer.encode_text("hm"), 35], server.tokenizer.encode_text("Hello you")
    server.engine.script = lambda request: [[*thought, *text]]

    async def scenario(client: openai.AsyncOpenAI) -> None:
        steps = 0
        submit = server.engine.submit

        async def slow(request: Any) -> Any:
            nonlocal steps
            async for output in submit(request):
                steps += 1
                if steps == len(thought) + 1:
                    server.engine.gate.clear()
                yield output

        server.engine.submit = slow
        response = await begin(client)
        while server.engine.gate.is_set():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        cancelled = await client.responses.cancel(response.id)
        assert cancelled.status == "cancelled"
        assert [item.type for item in cancelled.output] == ["reasoning"]
        assert (await client.responses.retrieve(response.id)).status == "cancelled"
        assert server.app.state.service.num_in_flight == 0 and not server.app.state.service.running

    drive(server, scenario)


def test_forgetting_ends_the_work_and_leaves_nothing(make):
    """What ends later must not put the response back."""
    server = make()
    server.engine.gate.clear()

    async def scenario(client: openai.AsyncOpenAI) -> None:
        response = await begin(client)
        await client.responses.delete(response.id)
        assert server.app.state.service.num_in_flight == 0
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(response.id)

    drive(server, scenario)


def test_a_failure_is_kept(make):
    server = make()
    server.says("Hello")
    server.engine.failure = (1, "internal_error")

    async def scenario(client: openai.AsyncOpenAI) -> None:
        response = await ended(client, await begin(client))
        assert response.status == "failed" and "secret" not in response.error.message

    drive(server, scenario)


def test_what_a_server_left_behind_has_failed(make):
    """After a crash nobody works on it any more; who waits for it must not wait for ever."""
    first = make()
    first.engine.gate.clear()

    async def begun(client: openai.AsyncOpenAI) -> str:
        response = await begin(client)
        first.app.state.service.responses.put = never
        return response.id

    async def never(_: Any) -> bool:
        return False

    response_id = drive(first, begun)
    second = make()
    response = second.get(f"/v1/responses/{response_id}").json()
    assert response["status"] == "failed" and "stopped" in response["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": True}, "stream"),
        ({"store": False}, "background"),
        ({"temperature": 9}, "temperature"),
        ({"model": "other"}, "model"),
    ],
)
def test_bad_requests_are_refused_at_once(make, fields, param):
    server = make()
    response = server.post("/v1/responses", {"input": "Hi", "background": True, **fields})
    assert_error(response, 404 if param == "model" else 400, param=param)
    assert server.app.state.service.num_in_flight == 0


def test_a_server_that_keeps_nothing_has_no_background(server):
    response = server.post("/v1/responses", {"input": "Hi", "background": True})
    assert_error(response, 400, param="background", code="unsupported_parameter")


def test_a_full_server_takes_none(make):
    """Each counts once: the request that asks for it gives its place up, or a server of one place could do none."""
    server = make(max_queued_requests=1)
    server.engine.gate.clear()

    async def scenario(client: openai.AsyncOpenAI) -> None:
        await begin(client)
        with pytest.raises(openai.InternalServerError) as caught:
            await begin(client)
        assert caught.value.code == "overloaded"

    drive(server, scenario)


def test_it_holds_a_place_of_its_key_until_it_ends(make, tmp_path):
    """With a place held by the asking alone, a key of one request at a time could have any number."""
    (tmp_path / "keys").write_text("k max_concurrent_requests=1")
    server = make(api_key_file=str(tmp_path / "keys"))
    server.says("Hello")
    server.engine.gate.clear()

    async def scenario(client: openai.AsyncOpenAI) -> None:
        first = await begin(client)
        with pytest.raises(openai.RateLimitError):
            await begin(client)
        server.engine.gate.set()
        await ended(client, first)
        assert (await ended(client, await begin(client))).status == "completed"

    drive(server, scenario)
