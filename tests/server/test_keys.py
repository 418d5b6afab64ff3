"""API keys and what each may use: files that change, hashes, the operator's key, 429 with the headers clients know."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re

import httpx2
import pytest

from tests.fakes import FakeEngine
from tests.server.conftest import HELLO, assert_error
from tests.server.test_disconnect import until
from ventoux.cli.serve import check_server
from ventoux.config import ServerConfig
from ventoux.errors import ConfigError
from ventoux.server import keys as keys_module
from ventoux.server.keys import KeyRing, read_keys
from ventoux.server.limits import Account, Limits

CHAT = "/v1/chat/completions"


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys"

    def write(*lines):
        replacement = tmp_path / "new"
        replacement.write_text("\n".join(lines))
        os.replace(replacement, path)
        return str(path)

    return write


# ------------------------------------------------------------------------------------------------------------ the file


def test_plain_and_hashed_keys_with_names_and_limits(key_file):
    path = key_file(
        "# who may come in",
        "",
        "plain#1  # a key may hold the sign, a comment stands apart",
        f"sha256:{hashlib.sha256(b'hashed').hexdigest()} name=alice requests_per_minute=60 tokens_per_minute=1000",
        "root admin name=operator max_concurrent_requests=2",
    )
    first, second, third = read_keys(keys_module.Path(path))
    assert (first.name, first.is_admin, first.limits) == ("line-3", False, Limits())
    assert (second.name, second.limits) == ("alice", Limits(None, 60, 1000))
    assert (third.name, third.is_admin, third.limits) == ("operator", True, Limits(2))
    ring = KeyRing(ServerConfig(api_key_file=path))
    for text, name in (("plain#1", "line-3"), ("hashed", "alice"), ("root", "operator")):
        found = ring.find([text])
        assert found is not None and found[0].name == name
    for text in ("", "plain", "hashe", "sha256:" + hashlib.sha256(b"hashed").hexdigest(), "alice"):
        assert ring.find([text]) is None


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("secret limit=5", "line 1: after the key"),
        ("secret key2", "line 1: after the key"),
        ("secret requests_per_minute=0", "requests_per_minute has no such value"),
        ("secret requests_per_minute=-1", "requests_per_minute has no such value"),
        ("secret tokens_per_minute=1e9", "tokens_per_minute has no such value"),
        ("secret name=a b", "line 1: after the key"),
        ("secret name=", "name has no such value"),
        ("sha256:secret", "64 hexadecimal digits"),
        ("secrét", "printable ASCII"),
        ("# nothing", "holds no key"),
        ("secret\nsecret", "line 2: this key stands in the file twice"),
    ],
)
def test_bad_files_are_refused_without_telling_the_key(key_file, line, complaint):
    with pytest.raises(ConfigError, match=complaint) as refused:
        read_keys(keys_module.Path(key_file(line)))
    assert "secret" not in str(refused.value) and "secrét" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        KeyRing(ServerConfig(api_key_file=str(tmp_path / "none")))


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(key_file, caplog):
    """A key that was taken back opened everything until the next restart."""
    caplog.set_level(logging.INFO)
    clock = Clock()
    ring = KeyRing(ServerConfig(api_key_file=key_file("old requests_per_minute=5", "stays")), clock)
    kept = ring.find(["stays"])
    key_file("new", "stays")
    clock.now += 2
    assert ring.find(["old"]) is None and ring.find(["new"]) is not None
    assert kept is not None and ring.find(["stays"])[1] is kept[1], "what a key has used must not be forgotten"
    path = key_file("half a line of an edit")
    for broken in (lambda: None, lambda: os.unlink(path)):
        broken()
        clock.now += 2
        assert ring.find(["new"]) is not None and ring.find(["half"]) is None
    assert caplog.text.count("The keys stay as they were") == 2
    assert "half" not in caplog.text.replace(path, "")


@pytest.mark.parametrize(
    "config",
    [
        {"api_key": ("",)},
        {"admin_api_key": ("",)},
        {"admin_api_key": ("a b",)},
        {"api_key_file": "/no/such/file"},
        {"otlp_traces_endpoint": "nowhere"},
        {"image_workers": -1},
    ],
)
def test_what_cannot_work_is_said_before_the_model_is_loaded(config):
    with pytest.raises(ConfigError, match="--" + next(iter(config)).replace("_", "-")):
        check_server(ServerConfig(**config))


def test_changed_limits_count_from_now(key_file):
    clock = Clock()
    ring = KeyRing(ServerConfig(api_key_file=key_file("a requests_per_minute=5")), clock)
    key_file("a requests_per_minute=7")
    clock.now += 2
    assert ring.find(["a"])[1].headers()["x-ratelimit-limit-requests"] == "7"


# ------------------------------------------------------------------------------------------------------------ the door


def test_the_operators_key_closes_the_operators_routes_to_others(make_server):
    server = make_server(api_key=("user",), admin_api_key=("root",))
    for path in ("/metrics", "/docs", "/openapi.json"):
        assert_error(server.get(path), 401, code="invalid_api_key")
        assert_error(server.get(path, headers=bearer("user")), 401, code="invalid_api_key")
        assert server.get(path, headers=bearer("root")).status_code == 200
        assert server.get(path, headers={"x-api-key": "root"}).status_code == 200
    for key in ("user", "root"):
        assert server.get("/v1/models", headers=bearer(key)).status_code == 200


def test_without_an_operators_key_any_key_opens_them(make_server):
    server = make_server(api_key=("user",))
    assert server.get("/metrics", headers=bearer("user")).status_code == 200
    assert_error(server.get("/metrics"), 401)


def test_an_operators_key_alone_closes_everything(make_server):
    """Deny by default: who names a key does not mean a server that is open but for its metrics."""
    server = make_server(admin_api_key=("root",))
    assert_error(server.get("/v1/models"), 401)
    assert server.get("/health").status_code == 200


def test_every_route_but_the_public_ones_needs_a_key(make_server):
    """A route that somebody adds is closed too, whatever its path."""
    server = make_server(api_key=("user",))
    public = {"/", "/health", "/ready", "/favicon.ico", "/status"}
    for route in server.app.routes:
        path = getattr(route, "path", "/unnamed").replace("{model:path}", "x").replace("{response_id}", "x")
        if path in public or path.startswith("/page/"):
            continue
        for method in ("GET", "POST", "DELETE", "PUT", "OPTIONS", "HEAD"):
            assert server.request(method, path).status_code == 401, (method, path)


def test_keys_stand_in_no_log(make_server, caplog, key_file):
    caplog.set_level(logging.DEBUG)
    server = make_server(api_key=("secret-1",), api_key_file=key_file("secret-2 name=bob"))
    server.says("a")
    server.chat()
    for key in ("secret-1", "secret-2", "secret-3"):
        server.get(f"/v1/models?api_key={key}", headers={**bearer(key), "x-api-key": key})
    assert "key=bob" in caplog.text and "key=key-1" in caplog.text
    ours = "\n".join(str(record.msg) for record in caplog.records if record.name.startswith("ventoux"))
    assert "secret" not in ours


# ----------------------------------------------------------------------------------------------------------- the limits


def test_requests_per_minute(make_server, key_file):
    server = make_server(api_key_file=key_file("a requests_per_minute=2", "b"))
    server.says("ok")
    left = []
    for _ in range(2):
        answer = chat(server, "a")
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        left.append(answer.headers["x-ratelimit-remaining-requests"])
    assert left == ["1", "0"]
    refused = chat(server, "a")
    assert_error(refused, 429, code="rate_limit_exceeded")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 0 < int(refused.headers["retry-after"]) <= 30 and 0 < int(refused.headers["retry-after-ms"]) <= 30_000
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-ratelimit-reset-requests"].endswith("s")
    # The others, and what generates nothing, are not meant.
    other = chat(server, "b")
    assert other.status_code == 200 and "x-ratelimit-limit-requests" not in other.headers
    assert server.get("/v1/models", headers=bearer("a")).status_code == 200
    assert len(server.engine.requests) == 3


def chat(server, key, **fields):
    return server.post(CHAT, {"messages": HELLO, **fields}, headers=bearer(key))


def test_a_refusal_in_anthropics_form(make_server, key_file):
    server = make_server(api_key_file=key_file("a requests_per_minute=1"))
    server.says("ok")
    body = {"messages": HELLO, "max_tokens": 5}
    assert server.post("/v1/messages", body, headers=bearer("a")).status_code == 200
    refused = server.post("/v1/messages", body, headers=bearer("a"))
    assert refused.status_code == 429 and refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.headers["retry-after"]


def test_tokens_of_prompt_and_answer_are_paid_for(make_server, key_file):
    """The tokens of an answer are known at its end, so the last request may go beyond the limit; the next waits."""
    server = make_server(api_key_file=key_file("a tokens_per_minute=20 name=payer"))
    server.says("word " * 30)
    for stream in (True, False):
        answer = chat(server, "a", stream=stream)
        if stream:
            assert answer.status_code == 200 and answer.headers["x-ratelimit-remaining-tokens"] == "20"
    assert_error(answer, 429, code="rate_limit_exceeded")
    assert int(answer.headers["retry-after"]) > 1
    used = len(server.engine.requests[0].prompt_token_ids) + len(server.tokenizer.encode_text("word " * 30))
    paid = re.search(r'ventoux_key_tokens_total{key="payer"} (\S+)', server.app.state.service.metrics.render().decode())
    # One more: the token that ended the answer, which `usage` counts too.
    assert paid is not None and float(paid[1]) == used + 1


def test_requests_at_a_time(make_server, key_file):
    server = make_server(api_key_file=key_file("a max_concurrent_requests=1", "b"), engine=FakeEngine())
    server.says("word")

    async def scenario():
        transport = httpx2.ASGITransport(app=server.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            server.engine.gate.clear()
            body = {"messages": HELLO}
            running = asyncio.create_task(client.post(CHAT, json=body, headers=bearer("a")))
            await until(lambda: server.engine.requests)
            refused = await client.post(CHAT, json=body, headers=bearer("a"))
            assert_error(refused, 429, code="rate_limit_exceeded")
            assert refused.headers["retry-after"] == "1"
            other = asyncio.create_task(client.post(CHAT, json=body, headers=bearer("b")))
            await until(lambda: len(server.engine.requests) == 2)
            server.engine.gate.set()
            assert [(await task).status_code for task in (running, other)] == [200, 200]
            assert (await client.post(CHAT, json=body, headers=bearer("a"))).status_code == 200

    asyncio.run(scenario())


def test_places_of_a_key_come_back_whatever_becomes_of_a_request(make_server, key_file):
    server = make_server(api_key_file=key_file("a max_concurrent_requests=1"))
    server.says("ok")
    chat(server, "a", n=0)
    server.request("POST", CHAT, content=b"{", headers={**bearer("a"), "content-type": "application/json"})
    server.engine.failure = (0, "internal_error")
    chat(server, "a", stream=True)
    server.engine.failure = None
    assert chat(server, "a").status_code == 200


def test_allowances_refill_evenly():
    clock = Clock()
    account = Account(Limits(requests_per_minute=6, tokens_per_minute=600), clock)
    for _ in range(6):
        with account.admitted():
            pass
    account.charge(900)
    headers = account.headers()
    assert headers["x-ratelimit-remaining-requests"] == "0" and headers["x-ratelimit-reset-requests"] == "1m0s"
    assert headers["x-ratelimit-remaining-tokens"] == "0" and headers["x-ratelimit-reset-tokens"] == "1m30s"
    clock.now += 10
    assert account.headers()["x-ratelimit-remaining-requests"] == "1"
    with pytest.raises(Exception, match="600 token") as refused, account.admitted():
        pass
    assert refused.value.headers["retry-after"] == "21"
    clock.now += 1000
    headers = account.headers()
    assert (headers["x-ratelimit-remaining-requests"], headers["x-ratelimit-remaining-tokens"]) == ("6", "600")
    assert headers["x-ratelimit-reset-requests"] == "0s"
