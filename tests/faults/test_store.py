"""A disk that is full where responses are kept: answers come all the same, and what was kept stays readable."""

from __future__ import annotations

import asyncio
import resource
from contextlib import contextmanager

import pytest

from tests.server.conftest import assert_error, make_server, tokenizer  # noqa: F401  (fixtures)


@contextmanager
def full_disk(*files):
    """From here on none of these files can grow: writing behind their end fails in the kernel, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = min(file.stat().st_size for file in files)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def kept(make_server, tmp_path):  # noqa: F811
    """A server that has kept one response, its id, and the files of the store."""
    server = make_server(responses_store=str(tmp_path / "store" / "responses.sqlite3"))
    server.says("one")
    first = server.post("/v1/responses", {"input": "Hi"}).json()
    return server, first["id"], list((tmp_path / "store").glob("*-wal"))


def test_a_full_disk_costs_the_store_and_no_answer(kept, caplog):
    """Going on from a response used to fail with a 500: it notes that the response was used."""
    server, first, files = kept
    server.says("two")
    with full_disk(*files):
        answer = server.post("/v1/responses", {"input": "And?", "previous_response_id": first})
        assert answer.status_code == 200 and answer.json()["store"] is False
        assert "could not be stored" in answer.headers["x-warning"]
        streamed = server.post("/v1/responses", {"input": "Hi", "stream": True})
        assert "response.completed" in streamed.text
        assert server.get(f"/v1/responses/{first}").status_code == 200
        assert_error(server.request("DELETE", f"/v1/responses/{first}"), 503, code="store_unavailable")
        assert server.get("/ready").status_code == 200
    assert "could not be noted" in caplog.text
    # As soon as there is room again, all is as before, without a restart.
    again = server.post("/v1/responses", {"input": "Hi", "previous_response_id": first}).json()
    assert again["store"] is True
    assert server.get(f"/v1/responses/{again['id']}").status_code == 200
    assert server.request("DELETE", f"/v1/responses/{first}").json()["deleted"] is True


def test_a_store_that_cannot_be_opened_takes_no_other_route_away(make_server, tmp_path):  # noqa: F811
    path = tmp_path / "responses.sqlite3"
    path.write_bytes(b"this is no database, and never was" * 100)
    server = make_server(responses_store=str(path))
    server.says("one")
    assert server.post("/v1/responses", {"input": "Hi"}).json()["store"] is False
    assert_error(server.get("/v1/responses/resp_x"), 503, code="store_unavailable")
    body = {"input": "Hi", "previous_response_id": "resp_x"}
    assert_error(server.post("/v1/responses", body), 503, code="store_unavailable")
    assert server.chat().status_code == 200
    asyncio.run(server.app.state.service.responses.close())
