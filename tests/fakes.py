"""Test doubles: an engine that speaks what it was told to, a resolver and a transport that touch no network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

import httpx2

from ventoux.engine.request import EngineOutput, EngineStats, Request, TokenLogprob, TokenOutput
from ventoux.errors import EngineDeadError

EOS = 2
# Token ids of each of a request's sequences.
Script = Callable[[Request], Sequence[Sequence[int]]]


def scores(token_id: int, k: int) -> list[TokenLogprob]:
    """The chosen token at -0.25, then the k "most likely": itself and the ids after it, one nat apart."""
    return [TokenLogprob(token_id, -0.25, 1)] + [TokenLogprob(token_id + i, -0.25 - i, i + 1) for i in range(k)]


class FakeEngine:
    """An EngineClient that writes scripted tokens, `step` at a time, all sequences in turn.

    A sequence ends at the first EOS (or the script's end, as if there were one), or at `max_tokens`.
    """

    def __init__(self, script: Script | Sequence[int] = (), *, step: int = 1, num_cached_tokens: int = 0):
        self.script = script if callable(script) else lambda request: [list(script)] * request.params.n
        self.step = step
        self.num_cached_tokens = num_cached_tokens
        self.requests: list[Request] = []
        self.aborted: list[tuple[str, int | None]] = []
        self.closed: list[str] = []
        self.dead = False
        self.num_waiting = 0
        # While it is cleared, no step happens.
        self.gate = asyncio.Event()
        self.gate.set()
        # (token number, error code): the first sequence fails there.
        self.failure: tuple[int, str] | None = None

    def abort(self, request_id: str, index: int | None = None) -> None:
        self.aborted.append((request_id, index))

    def stats(self) -> EngineStats:
        if self.dead:
            raise EngineDeadError("dead")
        counts = {"num_steps": 7, "prompt_tokens": 11, "prefix_cache_hits": 3}
        return EngineStats(num_waiting=self.num_waiting, num_pages=100, num_free_pages=75, **counts)

    async def submit(self, request: Request) -> AsyncGenerator[EngineOutput, None]:
        self.stats()
        self.requests.append(request)
        sequences = [_Sequence(request, i, tokens) for i, tokens in enumerate(self.script(request))]
        try:
            while open_ones := [s for s in sequences if not s.ended]:
                await self.gate.wait()
                for sequence in open_ones:
                    await asyncio.sleep(0)
                    yield self._output(request, sequence)
        finally:
            self.closed.append(request.request_id)

    def _output(self, request: Request, sequence: _Sequence) -> EngineOutput:
        first = sequence.done == 0
        output = sequence.advance(self.step)
        if first:
            output.num_cached_tokens = self.num_cached_tokens
            k = request.params.prompt_logprobs
            if k is not None:
                output.prompt_logprobs = [[], *(scores(t, k) for t in request.prompt_token_ids[1:])]
        if {(request.request_id, sequence.index), (request.request_id, None)} & set(self.aborted):
            output = EngineOutput(request_id=request.request_id, index=sequence.index, finish_reason="abort")
        if self.failure and sequence.index == 0 and sequence.done >= self.failure[0]:
            code = self.failure[1]
            output = EngineOutput(
                request_id=request.request_id, finish_reason="error", error="secret: 0x7f", error_code=code
            )
        sequence.ended = output.finish_reason is not None
        return output


class _Sequence:
    def __init__(self, request: Request, index: int, tokens: Sequence[int]):
        self.request, self.index, self.tokens = request, index, list(tokens)
        self.done = 0
        self.ended = False

    def advance(self, count: int) -> EngineOutput:
        params = self.request.params
        output = EngineOutput(request_id=self.request.request_id, index=self.index)
        limit = params.max_tokens or len(self.tokens) + 1
        for _ in range(count):
            token = self.tokens[self.done] if self.done < len(self.tokens) else EOS
            if token == EOS or token in params.stop_token_ids:
                output.finish_reason, output.stop_token_id = "stop", token
                break
            self.done += 1
            top = scores(token, params.logprobs) if params.logprobs is not None else []
            output.tokens.append(TokenOutput(token, top))
            if self.done == limit:
                output.finish_reason = "length"
                break
        return output


class FakeResolver:
    """Names to addresses, from a table; an address resolves to itself. Remembers what was asked."""

    def __init__(self, table: dict[str, list[str]] | None = None):
        self.table = table or {}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host in self.table:
            return self.table[host]
        if host.replace(".", "").isdigit() or ":" in host:
            return [host]
        raise OSError("no such host")


class FakeWeb(httpx2.AsyncBaseTransport):
    """Answers by the Host header and path; remembers the address of every connection asked for."""

    def __init__(self, pages: dict[str, Callable[[httpx2.Request], httpx2.Response] | httpx2.Response] | None = None):
        self.pages = pages or {}
        self.connections: list[tuple[str, str]] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.connections.append((request.url.host, request.headers["host"]))
        page = self.pages[request.headers["host"] + request.url.path]
        response = page(request) if callable(page) else page
        if not response.is_stream_consumed:
            return response
        # Made from bytes: to be read as a stream, like what a network brings.
        headers = {name: value for name, value in response.headers.items() if name != "content-length"}
        return httpx2.Response(response.status_code, headers=headers, stream=httpx2.ByteStream(response.content))
