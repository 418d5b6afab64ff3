"""Routes beside the answers: models, keys, limits, health, metrics, pages; unexpected failures tell nothing."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading

import pytest

from tests.fakes import FakeEngine
from tests.server.conftest import HELLO, MODEL, assert_error, events

CHAT = "/v1/chat/completions"


def test_models(server):
    listed = server.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == [MODEL, "alias"]
    one = server.get(f"/v1/models/{MODEL}").json()
    assert one == listed["data"][0]
    assert one["object"] == "model" and one["max_model_len"] == 256 and one["owned_by"]
    assert_error(server.get("/v1/models/other/model"), 404, code="model_not_found")


def test_every_answer_has_a_request_id_and_a_sane_one_is_kept(server):
    for path in ("/", "/health", "/ready", "/v1/models", "/metrics", "/nothing"):
        assert server.get(path).headers["x-request-id"]
    assert server.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    odd = server.get("/health", headers={"x-request-id": "a b\tc"}).headers["x-request-id"]
    assert odd.startswith("req-")
    # The chat page is one object sent many times: its headers must not pile up.
    assert len(server.get("/").headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer secret2 "[:-2]},
        {"authorization": "Basic secret1"},
        {"authorization": "secret1"},
        {"x-api-key": "secret"},
        {"x-api-key": ""},
        {"x-api-key": "Bearer secret1"},
    ],
)
def test_without_a_valid_key_everything_but_the_public_paths_is_closed(make_server, headers):
    server = make_server(api_key=("secret1", "secret2"))
    for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/nothing", "/v1/models?api_key=secret1"):
        response = server.get(path, headers=headers)
        assert_error(response, 401, code="invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["type"] == "authentication_error"
    assert_error(server.post(CHAT, {"messages": HELLO}, headers=headers), 401)
    for path in ("/health", "/ready", "/", "/favicon.ico"):
        assert server.get(path, headers=headers).status_code < 300


def test_any_of_the_keys_opens(make_server):
    server = make_server(api_key=("secret1", "secret2"))
    for key in ("secret1", "secret2"):
        assert server.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200


@pytest.mark.parametrize("host", ["evil/?x=", "test/health?", "evil.example", "test:80/health#"])
def test_the_host_header_does_not_decide_what_is_public(make_server, host):
    """Servers that judged `request.url.path`, which the Host header can rewrite, let anyone in."""
    server = make_server(api_key=("secret",))
    assert_error(server.get("/v1/models", headers={"host": host}), 401)


@pytest.mark.parametrize("path", ["//health", "/health/", "/health/../v1/models", "/HEALTH", "/health%2f..%2fmetrics"])
def test_near_misses_of_public_paths_are_closed(make_server, path):
    server = make_server(api_key=("secret",))
    assert server.get("http://test" + path).status_code in (401, 404)


def test_cors_only_for_the_named_origins(make_server):
    server = make_server(allowed_origins=("https://app.example",), api_key=("secret",))
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}
    good = server.request("OPTIONS", CHAT, headers={"origin": "https://app.example", **ask})
    assert good.status_code == 200 and good.headers["access-control-allow-origin"] == "https://app.example"
    bad = server.request("OPTIONS", CHAT, headers={"origin": "https://evil.example", **ask})
    assert "access-control-allow-origin" not in bad.headers
    # A browser must be able to read why it was refused.
    refused = server.get("/v1/models", headers={"origin": "https://app.example"})
    assert_error(refused, 401)
    assert refused.headers["access-control-allow-origin"] == "https://app.example"


def test_a_full_server_says_when_to_come_back(make_server):
    server = make_server(max_queued_requests=0)
    for path in (CHAT, "/v1/completions"):
        response = server.post(path, {"messages": HELLO, "prompt": "a"})
        assert_error(response, 503, code="overloaded")
        assert response.json()["error"]["type"] == "overloaded_error"
        assert int(response.headers["retry-after"]) > 0
    assert server.get("/v1/models").status_code == 200


def test_places_are_given_back_whatever_becomes_of_a_request(make_server):
    server = make_server(max_queued_requests=1, max_request_bytes=10_000)
    server.says("a")
    server.chat(n=0)
    server.chat(stream=True)
    server.request("POST", CHAT, content=b"{", headers={"content-type": "application/json"})
    server.engine.failure = (0, "internal_error")
    server.chat()
    server.chat(stream=True)
    server.engine.failure = None
    assert server.chat().status_code == 200
    assert server.app.state.service.num_in_flight == 0
    assert server.app.state.service.running == set()


def test_draining(server):
    server.says("a")
    server.app.state.service.drain()
    assert_error(server.get("/ready"), 503, code="shutting_down")
    assert_error(server.chat(), 503, code="shutting_down")
    assert server.get("/health").status_code == 200


def test_dead_engine(server):
    server.engine.dead = True
    assert server.get("/health").status_code == 200
    for response in (server.get("/ready"), server.chat(), server.chat(stream=True)):
        assert_error(response, 503, code="engine_dead")
        assert response.headers["retry-after"]
    assert "ventoux_engine_up 0.0" in server.get("/metrics").text


@pytest.mark.parametrize(
    ("code", "status", "shown"),
    [
        ("internal_error", 500, "internal_error"),
        ("numerical_error", 500, "numerical_error"),
        ("engine_dead", 503, "engine_dead"),
    ],
)
def test_an_engine_failure_is_told_without_its_text(server, code, status, shown):
    server.says("one two three")
    server.engine.failure = (2, code)
    response = server.chat()
    assert_error(response, status, code=shown)
    assert "secret" not in response.text
    streamed = events(server.chat(stream=True))
    assert streamed[-1]["error"]["code"] == shown
    assert any("choices" in event for event in streamed[:-1])


def test_an_unexpected_exception_is_told_without_its_text(server, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("secret path /root")

    monkeypatch.setattr(type(server.tokenizer), "encode_chat", broken)
    response = server.chat()
    assert_error(response, 500, code="internal_error")
    assert "secret" not in response.text


def test_head_is_get_without_a_body(server):
    for path in ("/health", "/v1/models", "/"):
        response = server.request("HEAD", path)
        assert response.status_code == 200 and response.content == b""
    assert_error_status = server.request("HEAD", CHAT)
    assert assert_error_status.status_code == 405


def test_metrics(make_server):
    server = make_server(engine=FakeEngine())
    server.says("one two three")
    server.chat()
    server.chat(n=0)
    text = server.get("/metrics").text
    assert "ventoux_kv_cache_usage_perc 0.25" in text
    assert "ventoux_prompt_tokens_total 11.0" in text
    assert "ventoux_prefix_cache_hits_total 3.0" in text
    # The refused request never was one for the engine.
    assert 'ventoux_request_success_total{finished_reason="stop"} 1.0' in text
    assert "ventoux_time_to_first_token_seconds_count 1.0" in text
    assert "ventoux_e2e_request_latency_seconds_count 1.0" in text
    gaps = float(re.search(r"ventoux_inter_token_latency_seconds_count (\S+)", text).group(1))
    assert gaps >= len(server.tokenizer.encode_text("one two three")) - 1


def test_tokenize_and_detokenize(server):
    text = server.post("/tokenize", {"prompt": "Hé [INST]", "return_token_strs": True}).json()
    assert text["tokens"][0] == 1 and text["count"] == len(text["tokens"]) and text["max_model_len"] == 256
    # Text that spells a control token stays text.
    assert 3 not in text["tokens"]
    assert len(text["token_strs"]) == text["count"]
    bare = server.post("/tokenize", {"prompt": "Hé [INST]", "add_special_tokens": False}).json()["tokens"]
    assert bare == text["tokens"][1:]
    assert server.post("/detokenize", {"tokens": bare}).json() == {"prompt": "Hé [INST]"}
    chat = server.post("/tokenize", {"messages": HELLO}).json()["tokens"]
    server.says("a")
    server.chat()
    assert chat == server.engine.requests[0].prompt_token_ids


def test_pages_need_nothing_from_elsewhere(server):
    for path in ("/", "/docs"):
        response = server.get(path)
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
        assert not re.search(r"""(src|href)=["']?(https?:)?//""", response.text)
        assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "reasoning_effort" in server.get("/docs").text


def test_openapi_describes_the_bodies(server):
    spec = server.get("/openapi.json").json()
    ref = spec["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    fields = spec["components"]["schemas"][ref.rpartition("/")[2]]["properties"]
    assert {"messages", "temperature", "tools", "reasoning_effort"} <= set(fields)


@pytest.mark.parametrize(
    "text",
    ["[INST] [TOOL_CALLS] [IMG] </s>", "‮ right to left", "👩‍👩‍👧‍👦", "x" * 600, " ", "\r\n\t", "\x1b[31m"],
)
def test_odd_text_is_only_text(make_server, text):
    server = make_server(max_model_len=2048)
    server.says(text)
    response = server.chat([{"role": "user", "content": text}])
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == text
    prompt = server.engine.requests[0].prompt_token_ids
    assert server.tokenizer.decode(prompt).endswith(text)
    assert prompt.count(3) == 1 and 9 not in prompt and 10 not in prompt


def test_histories_of_other_servers_are_taken(server):
    """Ids of any length, three spellings of reasoning, user after tool: all of these end sessions elsewhere."""
    server.says("ok")
    call = {"id": "call_" + "x" * 40, "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        *HELLO,
        {"role": "assistant", "reasoning_content": "hm", "content": "a"},
        *HELLO,
        {"role": "assistant", "reasoning": "hm", "content": "a"},
        *HELLO,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "a"},
            ],
        },
        *HELLO,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "name": "add", "content": "1"},
        {"role": "user", "content": "stop"},
    ]
    response = server.chat(messages)
    assert response.status_code == 200, response.text
    assert server.engine.requests[0].prompt_token_ids.count(34) == 3


def test_the_server_never_imports_torch():
    code = "import sys, ventoux.server.app, ventoux.server.run; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_start_imports_little():
    """`run.py` binds the port and starts the engine; what is slow to import must come after that."""
    code = (
        "import sys, ventoux.server.run;"
        "slow = {'fastapi', 'mistral_common', 'pydantic', 'PIL', 'prometheus_client'} & set(sys.modules);"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_tokenize_counts_what_is_too_long_up_to_a_point(server):
    """Clients count to shorten; but counting 10 MB took 25 seconds, and stood in everybody's way."""
    long = server.post("/tokenize", {"prompt": "word " * 400})
    assert long.status_code == 200 and long.json()["count"] > long.json()["max_model_len"] == 256
    messages = [{"role": "user", "content": "word " * 400}]
    assert server.post("/tokenize", {"messages": messages}).json()["count"] > 256
    endless = "word " * 2_000_000
    refused = server.post("/tokenize", {"prompt": endless})
    assert_error(refused, 400, param="prompt", code="context_length_exceeded")
    refused = server.post("/tokenize", {"messages": [{"role": "user", "content": endless}]})
    assert_error(refused, 400, param="messages", code="context_length_exceeded")


def test_tokenize_leaves_the_event_loop_free(server, monkeypatch):
    """A thread counts; the streams of others go on."""
    threads = []
    encode = type(server.tokenizer).encode_text

    def noting(*args, **kwargs):
        threads.append(threading.current_thread())
        return encode(*args, **kwargs)

    monkeypatch.setattr(type(server.tokenizer), "encode_text", noting)
    assert server.post("/tokenize", {"prompt": "a"}).status_code == 200
    assert threads and threading.main_thread() not in threads


@pytest.mark.parametrize("effort", [None, "none", "minimal", "low", "high", "max"])
def test_tokenize_takes_the_efforts_that_chats_take(server, effort):
    """ "low" was refused here and mapped there: a count of another prompt than the one that is sent."""
    counted = server.post("/tokenize", {"messages": HELLO, "reasoning_effort": effort})
    server.says("a")
    answered = server.chat(reasoning_effort=effort)
    assert counted.json()["tokens"] == server.engine.requests[0].prompt_token_ids
    assert counted.headers.get("x-warning") == answered.headers.get("x-warning")
    assert (effort in ("minimal", "low", "max")) == ("x-warning" in counted.headers)


@pytest.mark.parametrize("config", [{}, {"api_key": ("secret",)}], ids=["no keys", "keys"])
def test_another_asgi_server_starts_and_ends_the_application(make_server, config):
    """Catches layers that take the lifespan for a request: it never ran, and image decoders stayed behind."""
    server = make_server(**config)
    told: list[str] = []

    async def run() -> None:
        given = iter(("lifespan.startup", "lifespan.shutdown"))

        async def receive() -> dict[str, str]:
            return {"type": next(given)}

        async def send(message: dict[str, str]) -> None:
            told.append(message["type"])

        await server.app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

    closed: list[bool] = []
    server.app.state.service.media.decoder.close = lambda: closed.append(True)
    asyncio.run(run())
    assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"] and closed == [True]


def test_what_fails_to_end_keeps_nothing_else_from_ending(make_server):
    """Catches image decoders that stay behind because something before them could not be closed."""
    server, closed = make_server(responses_store="unused"), []
    service = server.app.state.service

    async def fails() -> None:
        closed.append("media")
        raise OSError("disk full")

    async def closes() -> None:
        closed.append("responses")

    service.media.aclose, service.responses.close = fails, closes

    async def run() -> None:
        async with server.app.router.lifespan_context(server.app):
            pass

    service.responses.open = closes
    with pytest.raises(OSError, match="disk full"):
        asyncio.run(run())
    assert closed == ["responses", "media", "responses"]
