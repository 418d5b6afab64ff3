"""The file that keeps responses: its bounds, who makes room, its rights, and what goes wrong with files."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes import FakeEngine
from ventoux.config import ServerConfig
from ventoux.errors import ConfigError
from ventoux.server.app import create_app
from ventoux.server.response_store import ResponseStore, StoredResponse


@pytest.fixture
def make_store(tmp_path) -> Iterator[Callable[..., ResponseStore]]:
    made = []

    def make(max_responses: int = 100, max_bytes: int = 10**6, name: str = "folder/responses.sqlite3") -> ResponseStore:
        made.append(ResponseStore(tmp_path / name, max_responses, max_bytes))
        return made[-1]

    yield make
    for store in made:
        asyncio.run(store.close())


def response(name: str, previous: str | None = None, text: str = "") -> StoredResponse:
    return StoredResponse({"id": name, "previous_response_id": previous, "output": text}, [{"id": "msg_" + name}])


def test_what_is_put_can_be_read_and_deleted(make_store):
    async def scenario(store: ResponseStore) -> None:
        assert await store.put(response("a", text="é\n🎉"))
        assert await store.get("a") == response("a", text="é\n🎉")
        assert await store.get("b") is None
        assert (await store.delete("a"), await store.delete("a"), await store.get("a")) == (True, False, None)

    asyncio.run(scenario(make_store()))


async def kept(store: ResponseStore, names: str) -> str:
    return "".join([name for name in names if await store.get(name)])


def test_the_oldest_make_room(make_store):
    async def scenario(store: ResponseStore) -> None:
        for name in "abcde":
            await store.put(response(name))
        assert await kept(store, "abcde") == "cde"

    asyncio.run(scenario(make_store(max_responses=3)))


def test_bytes_are_bounded_too(make_store):
    async def scenario(store: ResponseStore) -> None:
        for name in "abcd":
            assert await store.put(response(name, text="x" * 300))
        assert await kept(store, "abcd") == "cd"
        # One that fits beside no other takes all of the room; one that fits nowhere takes none.
        assert await store.put(response("e", text="x" * 800))
        assert await kept(store, "abcde") == "e"
        assert not await store.put(response("f", text="x" * 1000))
        assert await kept(store, "abcdef") == "e"

    asyncio.run(scenario(make_store(max_bytes=1000)))


def test_a_conversation_that_goes_on_is_not_the_oldest(make_store):
    """Its first links would be dropped first, although each turn needs all of them."""

    async def scenario(store: ResponseStore) -> None:
        await store.put(response("a"))
        await store.put(response("b", previous="a"))
        await store.put(response("x"))
        chain = await store.chain("b")
        assert chain is not None and [stored.response["id"] for stored in chain] == ["a", "b"]
        await store.put(response("c", previous="b"))
        assert await kept(store, "abcx") == "abc"
        await store.delete("b")
        assert await store.chain("c") is None and await store.chain("nothing") is None

    asyncio.run(scenario(make_store(max_responses=3)))


def test_two_servers_share_a_file(make_store):
    async def scenario(first: ResponseStore, second: ResponseStore) -> None:
        for i in range(20):
            assert await (first, second)[i % 2].put(response(f"{i:02}"))
        assert await first.get("19") and await second.get("16") and await second.get("00") is None

    asyncio.run(scenario(make_store(max_responses=5), make_store(max_responses=5)))


def test_nobody_else_can_read_the_file(make_store, tmp_path):
    async def scenario(store: ResponseStore) -> None:
        await store.put(response("a"))
        folder = tmp_path / "folder"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        modes = {name: stat.S_IMODE((folder / name).stat().st_mode) for name in os.listdir(folder)}
        assert "responses.sqlite3" in modes and set(modes.values()) == {0o600}

    asyncio.run(scenario(make_store()))


def test_what_is_deleted_is_gone_from_the_file(make_store, tmp_path):
    async def scenario(store: ResponseStore) -> None:
        await store.put(response("a", text="very private"))
        await store.delete("a")
        await store.close()

    asyncio.run(scenario(make_store()))
    files = [path.read_bytes() for path in (tmp_path / "folder").iterdir()]
    assert files and not any(b"very private" in content for content in files)


def other_version(path: Any) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=7")
    connection.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b"this is no database " * 100),
        other_version,
    ],
)
def test_a_file_that_cannot_be_used_is_said_so(make_store, tmp_path, spoil, caplog):
    (tmp_path / "folder").mkdir()
    spoil(tmp_path / "folder" / "responses.sqlite3")

    async def scenario(store: ResponseStore) -> None:
        with pytest.raises(ConfigError, match=r"--responses-store .*cannot be used"):
            await store.open()
        assert not await store.put(response("a"))

    asyncio.run(scenario(make_store()))
    assert "could not be stored" in caplog.text


def test_a_failure_leaves_what_was_there(make_store, caplog):
    """A full disk in the middle of a write, and room again later."""

    async def limit(store: ResponseStore, pages: int) -> None:
        await store._database.run(lambda connection: connection.execute(f"PRAGMA max_page_count={pages}"))

    async def scenario(store: ResponseStore) -> None:
        assert await store.put(response("a"))
        await limit(store, 1)
        assert not await store.put(response("b", text="x" * 50_000))
        assert await kept(store, "ab") == "a"
        await limit(store, 1000)
        assert await store.put(response("b", text="x" * 50_000))

    asyncio.run(scenario(make_store()))
    assert "disk is full" in caplog.text


def test_a_file_that_was_named_is_tried_at_start(tmp_path, tokenizer):
    """A typing error that would only be found when the first response is lost."""
    (tmp_path / "file").write_text("in the way")
    config = replace(ServerConfig(), responses_store=str(tmp_path / "file" / "responses.sqlite3"))

    async def start() -> None:
        app = create_app(FakeEngine(), tokenizer, ("m",), 256, config)
        with pytest.raises(ConfigError, match="cannot be used"):
            async with app.router.lifespan_context(app):
                pass

    asyncio.run(start())


def test_nothing_is_written_before_the_first_response(make_server, tmp_path, monkeypatch):
    """Servers that never see this API leave no file in anybody's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    server = make_server(responses_store=ServerConfig.responses_store)

    async def start_and_stop() -> None:
        async with server.app.router.lifespan_context(server.app):
            assert not list(tmp_path.iterdir())

    other = make_server(responses_store=ServerConfig.responses_store)
    other.says("Hello")
    other.chat()
    asyncio.run(start_and_stop())
    assert other.post("/v1/responses", {"input": "Hi"}).json()["store"] is True
    assert (tmp_path / ".local/state/ventoux/responses.sqlite3").exists()
