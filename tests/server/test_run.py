"""A server on a real socket of this machine: life from bind to drain, and the real OpenAI client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx2
import openai
import pytest

from tests.fakes import FakeEngine
from tests.server.conftest import HELLO, MODEL, TOOL
from ventoux.config import ServerConfig
from ventoux.errors import ConfigError, EngineDeadError
from ventoux.server import protocol, run
from ventoux.server.run import Backend, _Lifetime, bind, url_of

THINK, END_THINK, CALLS, ARGS = 34, 35, 9, 32


class Running:
    """A server in a thread, with a loop of its own; signals are stood in for by calls."""

    def __init__(self, tokenizer, *, loaded=True, **config):
        self.engine = FakeEngine()
        self.tokenizer = tokenizer
        self.loaded = threading.Event()
        if loaded:
            self.loaded.set()
        self.stopped_engine = False
        self.sock = bind("127.0.0.1", 0)
        self.url = url_of(self.sock)
        self._config = replace(ServerConfig(), **{"responses_store": "none", "files_store": "none", **config})
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    @contextlib.asynccontextmanager
    async def _start(self):
        await asyncio.to_thread(self.loaded.wait)
        self.backend = Backend(self.engine, self.tokenizer, (MODEL,), 4096)
        try:
            yield self.backend
        finally:
            self.stopped_engine = True

    async def _run(self):
        self.loop = asyncio.get_running_loop()
        # Signals belong to the main thread, which is the test's.
        self.loop.add_signal_handler = lambda *args: None
        self.loop.remove_signal_handler = lambda *args: None
        self.lifetime = _Lifetime(self._config, self.sock, self._start, lambda url: self._ready.set())
        try:
            await self.lifetime.run()
        except EngineDeadError as error:
            self.failure = error

    def wait_ready(self):
        assert self._ready.wait(20)

    def in_loop(self, call):
        self.loop.call_soon_threadsafe(call)

    def give_up(self):
        self.in_loop(self.backend.gave_up.set)

    def signal(self):
        self.in_loop(self.lifetime._signalled)

    def join(self, timeout=15):
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the server did not end"

    def says(self, *parts):
        ids = [i for p in parts for i in ([p] if isinstance(p, int) else self.tokenizer.encode_text(p))]
        self.engine.script = lambda request: [ids] * request.params.n


@contextlib.contextmanager
def running(tokenizer, **config) -> Iterator[Running]:
    server = Running(tokenizer, **config)
    try:
        yield server
    finally:
        server.loaded.set()
        for _ in range(2):
            with contextlib.suppress(RuntimeError):
                server.signal()
        server.join()
        server.sock.close()


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def live(tokenizer) -> Iterator[Running]:
    with running(tokenizer) as server:
        server.wait_ready()
        yield server


@pytest.fixture
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_client_lists_models_and_chats(live, client):
    model = client.models.list().data[0].id
    assert model == MODEL and client.models.retrieve(model).id == model
    live.says(THINK, "hm", END_THINK, "Yes.")
    answer = client.chat.completions.create(model=model, messages=HELLO, temperature=0.1, reasoning_effort="high")
    assert answer.choices[0].message.content == "Yes."
    assert answer.choices[0].message.reasoning_content == "hm"
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0


def test_openai_client_runs_a_tool_loop(live, client):
    """The model card's second program: calls come back as objects, without a content key, and without `tools`."""
    live.says(CALLS, "add", ARGS, '{"a": 1}', CALLS, "add", ARGS, '{"a": 2}')
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL], tool_choice="auto")
    calls = answer.choices[0].message.tool_calls
    messages = [*HELLO, {"role": "assistant", "tool_calls": calls}]
    for call in calls:
        messages.append({"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": "3"})
    live.says("Three and three.")
    final = client.chat.completions.create(model=MODEL, messages=messages)
    assert final.choices[0].message.content == "Three and three."
    assert live.engine.requests[-1].prompt_token_ids.count(CALLS) == 2


def test_openai_client_accumulates_a_streamed_call(live, client):
    """The client's own accumulator refuses deltas that are out of order, unnamed or without an index."""
    live.says(THINK, "hm", END_THINK, "Let me.", CALLS, "add", ARGS, '{"a": 12}', CALLS, "add", ARGS, "{}")
    with client.chat.completions.stream(
        model=MODEL, messages=HELLO, tools=[TOOL], stream_options={"include_usage": True}
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    message = final.choices[0].message
    assert message.content == "Let me."
    assert [(c.function.name, c.function.arguments) for c in message.tool_calls] == [
        ("add", '{"a": 12}'),
        ("add", "{}"),
    ]
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.usage.total_tokens > 0
    assert "tool_calls.function.arguments.delta" in kinds


def test_openai_client_reads_our_errors(live, client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=HELLO, temperature=9)
    assert refused.value.param == "temperature" and refused.value.request_id
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="other", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    live.says("one two three")
    live.engine.failure = (2, "internal_error")
    try:
        with (
            pytest.raises(openai.APIError),
            client.chat.completions.create(model=MODEL, messages=HELLO, stream=True) as stream,
        ):
            list(stream)
    finally:
        live.engine.failure = None


def test_openai_client_completes_text(live, client):
    live.says(" upon a time")
    answer = client.completions.create(model=MODEL, prompt="Once", logprobs=1, echo=True)
    assert answer.choices[0].text == "Once upon a time"
    assert answer.choices[0].logprobs.token_logprobs[0] is None


def test_a_socket_closed_mid_stream_ends_the_engine_request(live):
    live.says("word " * 50)
    before = len(live.engine.closed)
    body = json.dumps({"messages": HELLO, "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    live.in_loop(live.engine.gate.clear)
    with socket.create_connection(("127.0.0.1", live.sock.getsockname()[1])) as connection:
        connection.sendall(head.encode() + body)
        assert b"200 OK" in connection.recv(4096)
        until(lambda: len(live.engine.requests) > before)
        assert len(live.engine.closed) == before
    try:
        until(lambda: len(live.engine.closed) == before + 1)
    finally:
        live.in_loop(live.engine.gate.set)


def test_while_loading_it_is_alive_but_not_ready_and_requests_wait(tokenizer):
    with running(tokenizer, loaded=False) as server:
        assert httpx2.get(f"{server.url}/health").json() == {"status": "loading"}
        early = httpx2.get(f"{server.url}/ready")
        assert early.status_code == 503 and early.json()["error"]["code"] == "loading"
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(httpx2.get(f"{server.url}/v1/models")))
        waiting.start()
        time.sleep(0.1)
        assert answers == []
        server.loaded.set()
        waiting.join(20)
        assert answers[0].status_code == 200


def test_drain_lets_running_answers_finish_and_refuses_new_ones(tokenizer):
    with running(tokenizer) as server:
        server.wait_ready()
        server.says("done")
        server.in_loop(server.engine.gate.clear)
        answers = []
        body = {"messages": HELLO}
        url = f"{server.url}/v1/chat/completions"
        asking = threading.Thread(target=lambda: answers.append(httpx2.post(url, json=body, timeout=30)))
        asking.start()
        until(lambda: server.engine.requests)
        server.signal()
        until(lambda: httpx2.get(f"{server.url}/ready").status_code == 503)
        refused = httpx2.post(url, json=body)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
        assert refused.headers["retry-after"]
        server.in_loop(server.engine.gate.set)
        asking.join(10)
        assert answers[0].json()["choices"][0]["message"]["content"] == "done"
        server.join()
        assert server.stopped_engine


def test_what_does_not_finish_in_time_gets_an_error_event(tokenizer):
    with running(tokenizer, drain_timeout=0.1) as server:
        server.wait_ready()
        # An answer that goes on for ever, as far as the drain is concerned.
        server.says("word " * 30)
        slow_step(server)
        with httpx2.stream(
            "POST", f"{server.url}/v1/chat/completions", json={"messages": HELLO, "stream": True}, timeout=30
        ) as response:
            lines = response.iter_lines()
            next(lines)
            server.signal()
            rest = list(lines)
        assert any('"shutting_down"' in line for line in rest)
        assert "data: [DONE]" in rest
        server.join()


def slow_step(server):
    """From now on a step takes 50 ms."""

    class Slow:
        async def wait(self):
            await asyncio.sleep(0.05)

    server.engine.gate = Slow()


def test_a_second_signal_ends_it_at_once(tokenizer):
    with running(tokenizer, drain_timeout=600) as server:
        server.wait_ready()
        server.says("word " * 30)
        slow_step(server)
        with httpx2.stream(
            "POST", f"{server.url}/v1/chat/completions", json={"messages": HELLO, "stream": True}, timeout=30
        ) as response:
            lines = response.iter_lines()
            next(lines)
            server.signal()
            server.signal()
            start = time.monotonic()
            with contextlib.suppress(httpx2.HTTPError):
                list(lines)
        server.join()
        assert time.monotonic() - start < 6
        assert server.stopped_engine


def test_a_signal_while_loading_ends_it(tokenizer):
    with running(tokenizer, loaded=False) as server:
        until(lambda: httpx2.get(f"{server.url}/health").status_code == 200)
        server.signal()
        until(lambda: server.lifetime._stop.is_set())
        server.loaded.set()
        server.join()


def test_a_port_in_use_is_a_configuration_error():
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}.*--port"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("no such host", 0), ("127.0.0.1", 99999), ("203.0.113.7", 0)])
def test_addresses_that_cannot_be_listened_on(host, port):
    with pytest.raises(ConfigError):
        bind(host, port)


def test_ipv6_urls():
    try:
        sock = bind("::1", 0)
    except ConfigError:
        pytest.skip("this machine has no IPv6")
    with sock:
        assert url_of(sock).startswith("http://[::1]:")


def test_a_real_sigterm_ends_serve_with_a_clean_exit(tokenizer, tmp_path):
    """The signal wiring itself, which the other tests stand in for."""
    code = f"""
import contextlib
from ventoux.config import ServerConfig
from ventoux.server.run import Backend, serve
from ventoux.text.tokenizer import Tokenizer
from tests.fakes import FakeEngine

@contextlib.asynccontextmanager
async def start():
    yield Backend(FakeEngine(), Tokenizer.from_file({str(tokenizer.path)!r}), ("m",), 64)
    print("closed", flush=True)

serve(ServerConfig(port=0), start, on_ready=lambda url: print(url, flush=True))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=os.getcwd())
    try:
        url = process.stdout.readline().strip()
        assert httpx2.get(f"{url}/ready").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert process.stdout.read().strip() == "closed"
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_idle_connections_outlive_those_of_proxies(tokenizer, monkeypatch):
    """A server that closes first loses the request that a client or proxy sends on the old connection just then."""
    assert run.KEEP_ALIVE > 60
    monkeypatch.setattr(run, "KEEP_ALIVE", 0.2)
    with running(tokenizer) as server:
        server.wait_ready()
        with socket.create_connection(server.sock.getsockname(), timeout=10) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            received = b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.startswith(b"HTTP/1.1 200")


def test_a_request_with_two_lengths_ends_its_connection(live):
    """What a proxy takes for the rest of the body would be answered as a request of its own."""
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    with socket.create_connection(live.sock.getsockname(), timeout=10) as connection:
        connection.sendall(head + b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.startswith(b"HTTP/1.1 400") and received.count(b"HTTP/1.1") == 1


def exchange(server, *sent: bytes, pause: float = 0.0) -> bytes:
    """All that comes back on one connection, until the server closes it."""
    with socket.create_connection(server.sock.getsockname(), timeout=10) as connection:
        for data in sent:
            with contextlib.suppress(OSError):
                connection.sendall(data)
            time.sleep(pause)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def assert_refused(received: bytes, status: int, code: str) -> None:
    head, _, body = received.rpartition(b"\r\n\r\n")
    assert head.count(b"HTTP/1.1") == 1 and head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"content-type: application/json" in head and b"x-request-id: req-" in head
    assert json.loads(body)["error"]["code"] == code


def test_headers_that_never_end_are_given_up(tokenizer, monkeypatch):
    """A few thousand such connections, a byte now and then on each, were all the file descriptors there are."""
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT", 0.3)
    with running(tokenizer) as server:
        server.wait_ready()
        start = time.monotonic()
        assert_refused(exchange(server, b"GET /health HTT"), 408, "timeout")
        drip = [b"GET /health HTTP/1.1\r\n", *(b"x-a: b\r\n" for _ in range(8))]
        assert_refused(exchange(server, *drip, pause=0.1), 408, "timeout")
        assert time.monotonic() - start < 8
        # Also on a connection that has served a request before.
        again = exchange(server, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /health", pause=0.1)
        assert again.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in again


def test_slow_bodies_and_answers_are_no_slow_headers(tokenizer, monkeypatch):
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT", 0.2)
    with running(tokenizer) as server:
        server.wait_ready()
        server.says("done")
        body = json.dumps({"messages": HELLO}).encode()
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: close\r\n"
        )
        head += f"Content-Length: {len(body)}\r\n".encode()
        answer = exchange(server, head, b"\r\n", body[:10], body[10:], pause=0.15)
        assert answer.startswith(b"HTTP/1.1 200") and b"done" in answer


def test_connections_without_a_request_are_closed_in_the_end(tokenizer, monkeypatch):
    monkeypatch.setattr(run, "KEEP_ALIVE", 0.2)
    with running(tokenizer) as server:
        server.wait_ready()
        assert exchange(server) == b""


@pytest.mark.parametrize(
    "data", [b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a: b" * 5000]
)
def test_what_is_no_http_is_refused_in_the_usual_shape(live, data):
    """uvicorn answers in plain text, which clients show as no message at all."""
    assert_refused(exchange(live, data), 400, "invalid_request")


def test_a_broken_body_ends_the_connection_and_nothing_else(live):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    assert exchange(live, head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n").count(b"HTTP/1.1") <= 1
    assert httpx2.get(f"{live.url}/health").status_code == 200


def stalled(server, body) -> socket.socket:
    """A client with a small window, which sends a request and reads nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(server.sock.getsockname())
    payload = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    sock.sendall(head + f"Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
    return sock


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_reads_nothing_is_cut(tokenizer, monkeypatch, stream):
    """Its connection used to be held for as long as it liked: closing one waits until all is taken."""
    monkeypatch.setattr(protocol, "WRITE_TIMEOUT", 0.3)
    with running(tokenizer) as server:
        server.wait_ready()
        # More than the kernel holds for one connection.
        server.says("word " * 3000)
        asked = {"messages": HELLO, "stream": stream, "logprobs": True, "top_logprobs": 20}
        before = open_sockets()
        with stalled(server, asked):
            until(lambda: server.engine.closed, 30)
            # Our end is left, and the server's is not.
            until(lambda: open_sockets() == before + 1, 10)


def open_sockets() -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return found


def test_a_server_whose_engine_is_given_up_ends_with_an_error(tokenizer):
    """Nothing can be answered any more, and whoever runs it has to know: it used to stay, at 503."""
    with running(tokenizer) as server:
        server.wait_ready()
        with pytest.raises(EngineDeadError, match="could not be started again"):
            server.give_up()
            server.join()
            raise server.failure
