"""Files and batches, driven by the real client: states, results, restarts, bounds, and who goes first."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, cast

import httpx2
import openai
import pytest

from tests.fakes import FakeEngine
from tests.server.conftest import HELLO, MODEL, Server, assert_error
from ventoux.engine.request import EngineOutput
from ventoux.errors import EngineDeadError
from ventoux.server import batch_lines, batch_routes, batch_runner, batch_store
from ventoux.server.batch_lines import read_lines
from ventoux.server.batch_store import BatchStore
from ventoux.server.file_store import FileStore

CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(batch_runner, "TICK", 0.005)
    monkeypatch.setattr(batch_runner, "PAUSE", 0.01)


@pytest.fixture
def make(make_server, tmp_path) -> Callable[..., Server]:
    return lambda **config: make_server(**{"files_store": str(tmp_path / "folder" / "files.sqlite3"), **config})


def lines(*bodies: Any, url: str = CHAT) -> bytes:
    sent = ({"custom_id": f"r{i}", "method": "POST", "url": url, "body": body} for i, body in enumerate(bodies))
    return b"".join(json.dumps(line).encode() + b"\n" for line in sent)


def drive(server: Server, scenario: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
    """Runs `scenario` with the real client, beside the server's own work."""

    async def run() -> Any:
        async with server.app.router.lifespan_context(server.app):
            http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=server.app), base_url="http://test/v1")
            async with openai.AsyncOpenAI(
                base_url="http://test/v1", api_key="k", http_client=http, max_retries=0
            ) as client:
                return await scenario(client)

    return asyncio.run(asyncio.wait_for(run(), 30))


async def start(client: openai.AsyncOpenAI, content: bytes, endpoint: Any = CHAT, **fields: Any) -> Any:
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **fields)


async def reach(client: openai.AsyncOpenAI, batch: Any, *states: str) -> Any:
    while batch.status not in states:
        assert batch.status not in batch_store.ENDED, batch
        await asyncio.sleep(0.01)
        batch = await client.batches.retrieve(batch.id)
    return batch


async def results(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    content = await client.files.content(file_id)
    return [json.loads(line) for line in content.text.splitlines()]


def test_files(make):
    async def scenario(client: openai.AsyncOpenAI) -> None:
        content = lines({"messages": HELLO}) * 3
        file = await client.files.create(file=("ä b.jsonl", content), purpose="batch")
        assert (file.filename, file.bytes, file.purpose, file.expires_at) == ("ä b.jsonl", len(content), "batch", None)
        other = await client.files.create(
            file=io.BytesIO(b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        assert other.expires_at == other.created_at + 3600
        assert await client.files.retrieve(file.id) == file
        assert (await client.files.content(file.id)).content == content
        assert [f.id for f in (await client.files.list()).data] == [other.id, file.id]
        first = await client.files.list(limit=1, order="asc")
        assert [f.id for f in first.data] == [file.id] and first.has_more
        assert [f.id async for f in client.files.list(limit=1)] == [other.id, file.id]
        assert (await client.files.list(purpose="batch_output")).data == []
        assert (await client.files.delete(file.id)).deleted
        for ask in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError) as caught:
                await ask(file.id)
            assert caught.value.code == "file_not_found"

    drive(make(), scenario)


def test_files_that_have_expired_are_gone(make, monkeypatch):
    async def scenario(client: openai.AsyncOpenAI) -> None:
        expiry: Any = {"anchor": "created_at", "seconds": 3600}
        file = await client.files.create(file=b"x", purpose="batch", expires_after=expiry)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 3601)
        assert (await client.files.list()).data == []
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file.id)

    drive(make(), scenario)


def test_a_large_file_comes_back_as_it_was(make):
    """It is read piece by piece."""
    content = bytes(range(256)) * 10_000

    async def scenario(client: openai.AsyncOpenAI) -> None:
        file = await client.files.create(file=content, purpose="batch")
        assert (await client.files.content(file.id)).content == content

    drive(make(), scenario)


def test_a_batch_of_chats(make):
    server = make()
    server.says("a b")

    async def scenario(client: openai.AsyncOpenAI) -> None:
        bodies = [{"messages": HELLO, "seed": 5}, {"messages": []}, {"messages": HELLO, "n": 2, "model": MODEL}]
        bodies += [{"messages": HELLO, "stream": True}, {"messages": HELLO, "model": "other"}]
        batch = await start(client, lines(*bodies), metadata={"who": "me"})
        assert batch.status == "validating" and batch.metadata == {"who": "me"}
        batch = await reach(client, batch, "completed")
        assert batch.request_counts.model_dump() == {"total": 5, "completed": 2, "failed": 3}
        assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at < batch.expires_at
        done = await results(client, batch.output_file_id)
        assert [line["custom_id"] for line in done] == ["r0", "r2"]
        assert all(line["response"]["status_code"] == 200 and line["error"] is None for line in done)
        assert [len(line["response"]["body"]["choices"]) for line in done] == [1, 2]
        direct = (await client.chat.completions.create(model=MODEL, messages=HELLO, seed=5)).choices[0].message
        assert done[0]["response"]["body"]["choices"][0]["message"]["content"] == direct.content == "a b"
        failed = await results(client, batch.error_file_id)
        assert [line["custom_id"] for line in failed] == ["r1", "r3", "r4"]
        assert [line["response"]["status_code"] for line in failed] == [400, 400, 404]
        assert failed[0]["response"]["body"]["error"]["param"] == "messages"
        output = await client.files.retrieve(batch.output_file_id)
        assert output.purpose == "batch_output" and output.filename == f"{batch.id}_output.jsonl"
        assert [b.id async for b in client.batches.list()] == [batch.id]

    drive(server, scenario)


@pytest.mark.parametrize(
    ("endpoint", "body", "text"),
    [
        ("/v1/completions", {"prompt": "Hi"}, lambda body: body["choices"][0]["text"]),
        ("/v1/responses", {"input": "Hi"}, lambda body: body["output"][0]["content"][0]["text"]),
    ],
)
def test_other_endpoints(make, tmp_path, endpoint, body, text):
    server = make(responses_store=str(tmp_path / "responses.sqlite3"))
    server.says("a b")

    async def scenario(client: openai.AsyncOpenAI) -> None:
        batch = await reach(client, await start(client, lines(body, url=endpoint), endpoint), "completed")
        [line] = await results(client, batch.output_file_id)
        assert text(line["response"]["body"]) == "a b" and batch.error_file_id is None
        # A large batch would push everybody's kept responses out.
        assert not line["response"]["body"].get("store")

    drive(server, scenario)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n \n", "no requests"),
        (b"hello\n", "no request"),
        (b'{"custom_id": "a"}\n', "method"),
        (lines({"prompt": "x"}, url="/v1/completions"), "endpoint"),
        (lines("x"), "object"),
        (lines({}) + lines({}), "twice"),
        (lines({}).replace(b"POST", b"GET"), "POST"),
        (lines({}).replace(b'"r0"', b'""'), "custom_id"),
        (b"\xff\xfe\n", "no request"),
        (b"[" * 100_000 + b"\n", "no request"),
    ],
)
def test_bad_input_files_fail_the_batch(make, content, said):
    async def scenario(client: openai.AsyncOpenAI) -> None:
        batch = await reach(client, await start(client, content), "failed")
        assert said in batch.errors.data[0].message and batch.failed_at
        assert batch.output_file_id is None and batch.request_counts.total == 0

    drive(make(), scenario)


def test_what_is_wrong_with_a_file_is_told_line_by_line(monkeypatch):
    monkeypatch.setattr(batch_lines, "MAX_LINES", 3)
    good = lines({"a": 1}, {"a": 2})
    found, errors = read_lines(good[:-1], CHAT)
    assert [(line.number, line.custom_id, line.body) for line in found] == [
        (1, "r0", b'{"a": 1}'),
        (2, "r1", b'{"a": 2}'),
    ]
    assert errors == []
    assert [error["line"] for error in read_lines(b"\n" + good + b"x\n\ny", CHAT)[1]] == [4, 6]
    assert len(read_lines(b"x\n" * 1000, CHAT)[1]) == batch_lines.MAX_ERRORS
    assert read_lines(lines(*[{}] * 5), CHAT)[1][0]["code"] == "too_many_lines"


def test_cancelling(make):
    """What has an answer keeps it; the rest says why it has none, and its place in the engine is free."""
    server = make()
    server.says("a b")

    def stall(request: Any) -> Any:
        if "stop here" in server.tokenizer.decode(request.prompt_token_ids):
            server.engine.gate.clear()
        return [server.tokenizer.encode_text("a b")]

    server.engine.script = stall

    async def scenario(client: openai.AsyncOpenAI) -> None:
        batch_runner_lines = [{"messages": HELLO}, {"messages": [{"role": "user", "content": "stop here"}]}]
        batch = await start(client, lines(*batch_runner_lines))
        while server.engine.gate.is_set():
            await asyncio.sleep(0.01)
        cancelled = await client.batches.cancel(batch.id)
        assert cancelled.status == "cancelling" and cancelled.cancelling_at
        batch = await reach(client, cancelled, "cancelled")
        assert batch.cancelled_at and batch.request_counts.total == 2
        answered = await results(client, batch.output_file_id)
        failed = await results(client, batch.error_file_id)
        assert sorted(line["custom_id"] for line in answered + failed) == ["r0", "r1"]
        assert failed[-1]["error"]["code"] == "batch_cancelled" and failed[-1]["response"] is None
        assert (await client.batches.cancel(batch.id)).status == "cancelled"

    drive(server, scenario)
    assert set(server.engine.closed) == {request.request_id for request in server.engine.requests}
    assert not server.app.state.service.running


def test_what_has_ended_cannot_be_cancelled(make):
    async def scenario(client: openai.AsyncOpenAI) -> None:
        batch = await reach(client, await start(client, lines({"messages": HELLO})), "completed")
        with pytest.raises(openai.BadRequestError):
            await client.batches.cancel(batch.id)

    drive(make(), scenario)


def test_expiring(make, monkeypatch):
    server = make()
    server.engine.gate.clear()

    async def scenario(client: openai.AsyncOpenAI) -> None:
        batch = await reach(client, await start(client, lines({"messages": HELLO})), "in_progress")
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 24 * 3600 + 1)
        batch = await reach(client, batch, "expired")
        assert batch.expired_at
        [failed] = await results(client, batch.error_file_id)
        assert failed["error"]["code"] == "batch_expired"

    drive(server, scenario)


def test_a_restart_goes_on_where_it_was(make):
    """Nothing that has an answer is computed again, and nothing is lost."""
    first = make(engine=FakeEngine())
    first.says("one")
    bodies = [{"messages": [{"role": "user", "content": text}]} for text in ("a", "b", "stop", "c", "d")]

    def stall(request: Any) -> Any:
        if "stop" in first.tokenizer.decode(request.prompt_token_ids):
            first.engine.gate.clear()
        return [first.tokenizer.encode_text("one")]

    first.engine.script = stall

    async def until_stuck(client: openai.AsyncOpenAI) -> str:
        batch = await start(client, lines(*bodies))
        while first.engine.gate.is_set():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        return batch.id

    batch_id = drive(first, until_stuck)
    second = make(engine=FakeEngine())
    second.says("two")

    async def to_the_end(client: openai.AsyncOpenAI) -> list[dict[str, Any]]:
        batch = await reach(client, await client.batches.retrieve(batch_id), "completed")
        assert batch.request_counts.completed == 5
        return await results(client, batch.output_file_id)

    done = drive(second, to_the_end)
    said = [line["response"]["body"]["choices"][0]["message"]["content"] for line in done]
    assert len(said) == 5 and said[2] == "two"
    assert len(second.engine.requests) == said.count("two")


def test_a_server_that_died_holds_nobody_up_for_long(make, monkeypatch):
    """Its batch is taken over when its lease has ended, not before; one for another model is left alone."""
    server = make()

    async def scenario(client: openai.AsyncOpenAI) -> None:
        store = server.app.state.batches.store
        record = {"id": "batch_1", "input_file_id": "gone"}
        await store.add(record, "ours")
        assert (await store.claim("dead", "ours"))["id"] == "batch_1"
        assert await store.claim("alive", "ours") is None
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + batch_store.LEASE + 1)
        assert await store.claim("alive", "another model") is None
        assert (await store.claim("alive", "ours"))["id"] == "batch_1"

    drive(server, scenario)


def test_servers_that_share_a_file_never_take_the_same_batch(tmp_path):
    """Between looking for one and taking it another server could take it too, and both would answer all of it."""

    async def scenario() -> None:
        files = [FileStore(tmp_path / "files.sqlite3", 10**6) for _ in range(4)]
        stores = [BatchStore(file) for file in files]
        for i in range(30):
            await stores[0].add({"id": f"batch_{i}", "input_file_id": "a"}, "ours")
            taken = await asyncio.gather(*[store.claim(f"owner {k}", "ours") for k, store in enumerate(stores)])
            assert [batch["id"] for batch in taken if batch is not None] == [f"batch_{i}"]
            await stores[0].finish(f"batch_{i}", "completed", None)
        for file in files:
            await file.database.close()

    asyncio.run(scenario())


def test_live_requests_go_first(make):
    """While requests wait for a place, no line is begun, and the running ones give theirs up; no line is lost."""
    server = make()
    server.says("a")
    service = server.app.state.service

    async def scenario(client: openai.AsyncOpenAI) -> None:
        server.engine.gate.clear()
        batch = await start(client, lines(*[{"messages": HELLO}] * 4))
        while len(service.running) < 4:
            await asyncio.sleep(0.01)
        server.engine.num_waiting = 1
        with service.admitted():
            while service.running:
                await asyncio.sleep(0.01)
            server.engine.num_waiting = 0
            # One at a time beside a live request that has its place.
            server.engine.gate.set()
            before = len(server.engine.requests)
            server.engine.gate.clear()
            await asyncio.sleep(0.1)
            assert len(service.running) <= 1 and len(server.engine.requests) <= before + 1
        server.engine.gate.set()
        batch = await reach(client, batch, "completed")
        assert batch.request_counts.completed == 4

    drive(server, scenario)


def test_a_line_that_kills_the_engine_is_given_up_and_no_other_is(make):
    """Tried again for ever, it would take the engine from everybody for a day."""
    server = make()
    server.says("a")
    submit = server.engine.submit
    asked: list[str] = []

    async def dying(request: Any) -> AsyncGenerator[Any, None]:
        text = server.tokenizer.decode(request.prompt_token_ids)
        asked.append("poison" if "poison" in text else "good")
        # All that are being answered die together.
        together = len(service.running) > 1
        async with contextlib.aclosing(submit(request)) as outputs:
            async for output in outputs:
                if "poison" in text or together:
                    yield EngineOutput(request_id=request.request_id, tokens=[])
                    yield EngineOutput(
                        request_id=request.request_id, finish_reason="error", error="gone", error_code="engine_dead"
                    )
                    return
                yield output

    service = server.app.state.service
    server.engine.submit = dying  # type: ignore[method-assign]

    async def scenario(client: openai.AsyncOpenAI) -> None:
        bodies = [{"messages": [{"role": "user", "content": text}]} for text in ("hi", "poison", "ho", "he")]
        batch = await reach(client, await start(client, lines(*bodies)), "completed")
        assert (batch.request_counts.completed, batch.request_counts.failed) == (3, 1)
        [failed] = await results(client, batch.error_file_id)
        assert failed["custom_id"] == "r1"
        assert failed["response"]["body"]["error"]["code"] == "engine_crashed"
        assert asked.count("poison") == 2

    drive(server, scenario)


def test_work_that_was_given_up_late_counts_once(make):
    """A line's task may be ended while its result is being written; then it is answered again."""
    server = make()
    server.says("a")

    async def scenario(client: openai.AsyncOpenAI) -> None:
        store = server.app.state.batches.store
        write, num_writes = store.answer, 0

        async def cut_off(*args: Any, **fields: Any) -> None:
            nonlocal num_writes
            num_writes += 1
            await write(*args, **fields)
            if num_writes == 1:
                raise asyncio.CancelledError

        store.answer = cut_off
        batch = await reach(client, await start(client, lines({"messages": HELLO})), "completed")
        assert num_writes == 2 and batch.request_counts.completed == 1 == batch.request_counts.total

    drive(server, scenario)


def test_a_batch_ends_once(make):
    """A server that was thought dead goes on with a batch that another one has ended: its files would be lost."""
    server = make()
    server.says("a")

    async def scenario(client: openai.AsyncOpenAI) -> None:
        batch = await reach(client, await start(client, lines({"messages": HELLO})), "completed")
        await server.app.state.batches.store.finish(batch.id, "completed", None, completed_at=1)
        assert await client.batches.retrieve(batch.id) == batch

    drive(server, scenario)


def test_batches_of_a_model_that_is_gone_can_be_cancelled_and_expire(make, monkeypatch):
    """Nobody took them, so that they counted as waiting for ever."""
    server = make()

    async def scenario(client: openai.AsyncOpenAI) -> None:
        monkeypatch.setattr(server.app.state.service, "served_names", ("another",))
        batches = [await start(client, lines({"messages": HELLO, "model": "another"})) for _ in range(2)]
        monkeypatch.setattr(server.app.state.service, "served_names", (MODEL,))
        await client.batches.cancel(batches[0].id)
        assert (await reach(client, batches[0], "cancelled")).cancelled_at
        assert (await client.batches.retrieve(batches[1].id)).status == "validating"
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 24 * 3600 + 1)
        server.app.state.batches.wake()
        assert (await reach(client, batches[1], "expired")).error_file_id

    drive(server, scenario)


def test_lines_leave_room_for_the_prompts_of_others(make):
    """A batch of long prompts filled up what may wait for the engine, and requests were told to come back."""
    server = make(max_queued_tokens=400)
    server.says("a")
    server.engine.gate.clear()
    service = server.app.state.service

    async def scenario(client: openai.AsyncOpenAI) -> None:
        long = cast(Any, [{"role": "user", "content": "1 " * 30}])
        batch = await start(client, lines(*[{"messages": long}] * 20))
        while not service.queued_tokens:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        live = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=long))
        await asyncio.sleep(0.05)
        server.engine.gate.set()
        # It was not told to come back.
        await live
        assert (await reach(client, batch, "completed")).request_counts.completed == 20

    drive(server, scenario)


def test_an_engine_that_is_gone_for_a_while_costs_no_line(make):
    server = make()
    server.says("a")
    server.engine.dead = True

    async def scenario(client: openai.AsyncOpenAI) -> None:
        batch = await reach(client, await start(client, lines({"messages": HELLO})), "in_progress")
        await asyncio.sleep(0.05)
        with pytest.raises(EngineDeadError):
            server.engine.stats()
        server.engine.dead = False
        assert (await reach(client, batch, "completed")).request_counts.completed == 1

    drive(server, scenario)


def test_the_oldest_files_make_room(make):
    async def scenario(client: openai.AsyncOpenAI) -> None:
        files = [await client.files.create(file=b"x" * 30_000, purpose="batch") for _ in range(4)]
        kept = [f.id for f in (await client.files.list(order="asc")).data]
        assert kept == [f.id for f in files[1:]]

    drive(make(max_stored_file_bytes=100_000), scenario)


def test_a_file_that_is_still_to_be_read_makes_no_room(make):
    server = make(max_stored_file_bytes=100_000)
    big = {"file": ("a", b"x" * 60_000), **FORM}
    file = server.request("POST", "/v1/files", files=big).json()
    body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    assert server.post("/v1/batches", body).is_success
    assert_error(server.request("POST", "/v1/files", files=big), 413, code="storage_full")
    assert_error(server.request("POST", "/v1/files", files={"file": ("a", b"x" * 200_000), **FORM}), 413)
    assert server.get(f"/v1/files/{file['id']}").is_success


def test_results_without_room_fail_the_batch_and_not_the_server(make):
    server = make(max_stored_file_bytes=12_000)
    server.says("word " * 200)

    async def scenario(client: openai.AsyncOpenAI) -> None:
        bodies = [{"messages": [{"role": "user", "content": "x"}], "n": 4}] * 4
        batch = await reach(client, await start(client, lines(*bodies)), "failed")
        assert batch.errors.data[0].code == "storage_full"
        done, failed = await results(client, batch.output_file_id), await results(client, batch.error_file_id)
        assert len(done) + len(failed) == 4 and failed[-1]["error"]["code"] == "batch_failed"

    drive(server, scenario)


def test_a_full_disk_is_told_and_got_over(make, caplog):
    server = make()
    server.says("a")

    async def limit(pages: int) -> None:
        database = server.app.state.batches.store._files.database
        await database.run(lambda connection: connection.execute(f"PRAGMA max_page_count={pages}"))

    async def scenario(client: openai.AsyncOpenAI) -> None:
        batch = await start(client, lines({"messages": HELLO}))
        await reach(client, batch, "completed")
        await limit(1)
        with pytest.raises(openai.InternalServerError) as caught:
            await client.files.create(file=b"x" * 50_000, purpose="batch")
        assert caught.value.status_code == 503 and caught.value.code == "store_unavailable"
        await limit(10_000)
        assert (await client.files.create(file=b"x" * 50_000, purpose="batch")).bytes == 50_000

    drive(server, scenario)
    assert "disk is full" in caplog.text


def test_nothing_is_written_before_the_first_file(make_server, tmp_path, monkeypatch):
    """A server whose users want no batches leaves no file in anybody's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    server = make_server(files_store="~/.local/state/ventoux/files.sqlite3")

    async def scenario(client: openai.AsyncOpenAI) -> None:
        await client.chat.completions.create(model=MODEL, messages=HELLO)

    drive(server, scenario)
    assert list(tmp_path.iterdir()) == []


FORM = {"purpose": (None, "batch")}


@pytest.mark.parametrize(
    ("files", "status", "param"),
    [
        (FORM, 400, "file"),
        ({"file": ("a", b"x")}, 400, "purpose"),
        ({"file": ("a", b"x"), "purpose": (None, "assistants")}, 400, "purpose"),
        ({"file": ("a", b""), **FORM}, 400, "file"),
        ({"file": (None, "text"), **FORM}, 400, "file"),
        ({"file": ("a", b"x"), **FORM, "expires_after[anchor]": (None, "created_at")}, 400, "expires_after"),
        ({"file": ("a", b"x"), **FORM, "expires_after[seconds]": (None, "7200")}, 400, "expires_after"),
        ({"file": ("a", b"x" * 5000), **FORM}, 413, None),
        ({"a": ("a", b"x"), "b": ("b", b"x")}, 400, None),
    ],
)
def test_bad_uploads(make, files, status, param):
    assert_error(make(max_request_bytes=4096).request("POST", "/v1/files", files=files), status, param=param)


def test_an_upload_that_is_cut_off_leaves_no_file(make):
    """It was written to a temporary file already."""
    server = make(max_request_bytes=3 * 2**20)
    big = {"file": ("a", b"x" * (4 * 2**20)), **FORM}
    assert_error(server.request("POST", "/v1/files", files=big), 413, code="request_too_large")
    assert server.get("/v1/files").json()["data"] == []


def test_uploads_that_are_slow(make, monkeypatch):
    monkeypatch.setattr(batch_routes, "READ_TIMEOUT", 0.05)

    async def drip() -> AsyncGenerator[bytes, None]:
        yield b"--x\r\n"
        await asyncio.sleep(10)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = make().ask(lambda client: client.post("/v1/files", content=drip(), headers=headers))
    assert_error(response, 408, code="timeout")


def test_uploads_that_are_no_forms(make):
    server = make()
    assert_error(server.post("/v1/files", {}), 415)
    broken = {"content-type": "multipart/form-data; boundary=x"}
    for content in (b"", b"--x\r\nnonsense", b"--y--\r\n"):
        assert server.request("POST", "/v1/files", content=content, headers=broken).status_code == 400
    assert_error(server.request("POST", "/v1/files", content=b"", headers={"content-type": "multipart/form-data"}), 400)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_file_id": "file-x"}, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": "x" * 600}}, "metadata"),
    ],
)
def test_bad_batches(make, fields, param):
    server = make()
    file = server.request("POST", "/v1/files", files={"file": ("a", b"x"), **FORM}).json()
    body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h", **fields}
    response = server.post("/v1/batches", body)
    assert_error(response, 404 if param == "input_file_id" else 400, param=param)


def test_too_many_batches(make, monkeypatch):
    monkeypatch.setattr(batch_store, "MAX_UNFINISHED", 2)
    server = make()
    file = server.request("POST", "/v1/files", files={"file": ("a", b"x"), **FORM}).json()
    body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    assert [server.post("/v1/batches", body).status_code for _ in range(3)] == [200, 200, 429]


def test_unknown_batches_and_servers_without_files(make, server):
    for method, path in (("GET", "/v1/batches/b"), ("POST", "/v1/batches/b/cancel")):
        assert_error(make().request(method, path), 404, code="batch_not_found")
    for method, path in (
        ("GET", "/v1/batches"),
        ("GET", "/v1/files"),
        ("GET", "/v1/files/f"),
        ("DELETE", "/v1/files/f"),
    ):
        response = server.request(method, path)
        assert_error(response, 404, code="not_found")
        assert "--files-store" in response.json()["error"]["message"]
