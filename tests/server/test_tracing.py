"""OpenTelemetry: a span per request, below the caller's, under the conventions' names, and nothing unless asked for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace

import httpx2
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.fakes import FakeEngine
from tests.server.conftest import HELLO, MODEL, Server
from ventoux.config import ServerConfig
from ventoux.errors import ConfigError
from ventoux.server.app import create_app
from ventoux.server.tracing import Tracer, make_exporter, make_tracer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def server(tokenizer, exporter):
    config = replace(ServerConfig(), responses_store="none", api_key=("k",))
    engine = FakeEngine(num_cached_tokens=2)
    tracer = Tracer(exporter, batched=False)
    app = create_app(engine, tokenizer, (MODEL, "alias"), 256, config, tracer=tracer)
    yield Server(engine, tokenizer, app, None, None)  # type: ignore[arg-type]
    tracer.close()


def chat(server, headers=None, **fields):
    headers = {"authorization": "Bearer k", **(headers or {})}
    return server.post("/v1/chat/completions", {"messages": HELLO, **fields}, headers=headers)


def test_a_chat_is_a_span_below_its_callers(server, exporter):
    server.says("one two")
    answer = chat(server, TRACEPARENT, model="alias", temperature=0.5, max_tokens=20, stream=True)
    (span,) = exporter.get_finished_spans()
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert span.name == "chat alias" and span.kind is SpanKind.SERVER
    known = dict(span.attributes)
    assert known["gen_ai.operation.name"] == "chat" and known["gen_ai.provider.name"] == "ventoux"
    assert known["gen_ai.request.model"] == "alias"
    assert (known["gen_ai.request.temperature"], known["gen_ai.request.max_tokens"]) == (0.5, 20)
    prompt = len(server.engine.requests[0].prompt_token_ids)
    assert known["gen_ai.usage.input_tokens"] == prompt and known["gen_ai.usage.cache_read.input_tokens"] == 2
    assert known["gen_ai.usage.output_tokens"] > 2 and known["gen_ai.response.finish_reasons"] == ("stop",)
    assert 0 <= known["gen_ai.latency.time_to_first_token"] <= known["gen_ai.latency.e2e"]
    assert known["gen_ai.latency.time_in_queue"] == 0.0
    assert (known["http.response.status_code"], known["ventoux.key"]) == (200, "key-1")
    assert known["ventoux.request_id"] == answer.headers["x-request-id"]
    assert span.resource.attributes["service.name"] == "ventoux"
    assert span.end_time - span.start_time >= known["gen_ai.latency.time_to_first_token"] * 1e9


def test_no_prompt_answer_or_key_is_in_a_span(server, exporter):
    server.says("secret answer")
    message = [{"role": "user", "content": "secret prompt"}]
    chat(server, messages=message, user="someone")
    chat(server, messages=[{"role": "secret", "content": "secret prompt"}])
    for span in exporter.get_finished_spans():
        text = f"{span.name} {dict(span.attributes)} {span.events}"
        assert "secret" not in text and "Bearer" not in text


def test_refusals_and_failures(server, exporter):
    server.says("one two three")
    assert chat(server, n=0).status_code == 400
    server.engine.failure = (1, "internal_error")
    assert chat(server).status_code == 500
    assert chat(server, stream=True).status_code == 200
    server.get("/v1/models", headers={"traceparent": "nonsense"})
    refused, failed, broken_stream, closed = exporter.get_finished_spans()
    assert refused.status.status_code is StatusCode.UNSET and refused.attributes["http.response.status_code"] == 400
    assert failed.status.status_code is StatusCode.ERROR and failed.attributes["error.type"] == "500"
    assert broken_stream.status.status_code is StatusCode.ERROR
    assert closed.name == "GET" or closed.name == "GET /v1/models"
    assert closed.parent is None and closed.attributes["http.response.status_code"] == 401


def test_probes_are_not_traced_and_strangers_name_no_spans(server, exporter):
    for path in ("/health", "/ready", "/metrics", "/some/made/up/path"):
        server.get(path)
    (span,) = exporter.get_finished_spans()
    assert span.name == "GET" and span.attributes["url.path"] == "/some/made/up/path"


def test_off_unless_an_endpoint_is_given():
    """The SDK takes time to import, and nobody asked for it."""
    assert make_tracer(ServerConfig()) is None
    code = (
        "import sys; from ventoux.config import ServerConfig; from ventoux.server.app import create_app;"
        "from tests.fakes import FakeEngine; create_app(FakeEngine(), None, ['m'], 1, ServerConfig());"
        "assert 'opentelemetry.sdk' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("endpoint", ["localhost:4318", "grpc://a:4317", "http://", "file:///tmp/x"])
def test_endpoints_that_are_none(endpoint):
    with pytest.raises(ConfigError, match="--otlp-traces-endpoint"):
        make_exporter(ServerConfig(otlp_traces_endpoint=endpoint))


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"ventoux\[otel\]"):
        make_exporter(ServerConfig(otlp_traces_endpoint="http://127.0.0.1:4318"))


def test_spans_reach_a_collector_and_a_dead_one_holds_nobody_up(tokenizer):
    """Over a real socket; the collector then goes away, and answers come as before."""
    received = []

    async def collect(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        received.append((head.split(b" ")[1], await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def scenario():
        collector = await asyncio.start_server(collect, "127.0.0.1", 0)
        port = collector.sockets[0].getsockname()[1]
        config = ServerConfig(responses_store="none", otlp_traces_endpoint=f"http://127.0.0.1:{port}")
        app = create_app(FakeEngine(), tokenizer, (MODEL,), 256, config)
        async with app.router.lifespan_context(app):
            transport = httpx2.ASGITransport(app=app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                body = {"messages": HELLO, "max_tokens": 3}
                assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        collector.close()
        assert received and received[0][0] == b"/v1/traces" and b"gen_ai.usage.output_tokens" in received[0][1]

    asyncio.run(scenario())
