"""How fast a running server is, as its clients see it: any server with OpenAI's streaming completions."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx2

from ventoux.errors import EngineError
from ventoux.evals.bench import random_prompt, spread

# Prompts are ids 1000 to 1255, the single bytes: every tekken vocabulary has them, and most others have such ids too.
VOCABULARY = 1256
PERCENTILES = (50, 90, 99)


@dataclass
class _Answer:
    """Times in seconds since the request was sent, one per chunk that carries text."""

    times: list[float] = field(default_factory=list)
    num_tokens: int = 0


@dataclass
class _Level:
    """So many clients at once, over all rounds."""

    answers: list[_Answer] = field(default_factory=list)
    tokens_per_second: list[float] = field(default_factory=list)  # of each round
    requests_per_second: list[float] = field(default_factory=list)

    def result(self, concurrency: int) -> dict[str, Any]:
        times = [answer.times for answer in self.answers]
        return {
            "concurrency": concurrency,
            "num_requests": len(times),
            "time_to_first_token_ms": percentiles([one[0] for one in times]),
            # Between chunks that carry text: a token that ends inside a character sends none.
            "inter_token_latency_ms": percentiles([b - a for one in times for a, b in pairwise(one)]),
            "output_tokens_per_second": spread(self.tokens_per_second),
            "requests_per_second": spread(self.requests_per_second),
        }


class ServeBench:
    """Clients that send one request after another.

    Args:
        url: With or without the final /v1.
        model: None takes the first one that the server lists.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        input_tokens: int = 128,
        output_tokens: int = 64,
        transport: httpx2.AsyncBaseTransport | None = None,
    ):
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self.model = model
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._transport = transport

    def run(
        self, concurrency: Sequence[int], repeats: int, rounds: int = 1, tick: Callable[[], object] = lambda: None
    ) -> list[dict[str, Any]]:
        """For each level, that many clients send `repeats` requests each. Levels take turns in so many rounds, since a
        shared machine changes its speed. `tick` is called after every request.

        Raises:
            EngineError: the server cannot be reached, refuses, or sends no stream.
        """
        try:
            return asyncio.run(self._run(concurrency, repeats, rounds, tick))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise EngineError(f"{self.url}: {error or type(error).__name__}") from error
        except (json.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise EngineError(f"{self.url}: this is not how an OpenAI-compatible server answers ({error!r})") from error

    async def _run(
        self, concurrency: Sequence[int], repeats: int, rounds: int, tick: Callable[[], object]
    ) -> list[dict[str, Any]]:
        levels = {count: _Level() for count in concurrency}
        limits = httpx2.Limits(max_connections=max(concurrency))
        timeout = httpx2.Timeout(None, connect=10.0)
        async with httpx2.AsyncClient(
            headers=self._headers, limits=limits, timeout=timeout, transport=self._transport
        ) as client:
            if self.model is None:
                response = await client.get(self.url + "/models")
                await _check(response)
                self.model = response.json()["data"][0]["id"]
            # One request ahead, so that the first level does not pay for connections and first-time work.
            await self._ask(client, seed=-1)
            for turn in range(rounds):
                for count, level in levels.items():
                    await self._measure(level, client, count, repeats, turn, tick)
        return [level.result(count) for count, level in levels.items()]

    async def _measure(
        self,
        level: _Level,
        client: httpx2.AsyncClient,
        count: int,
        repeats: int,
        turn: int,
        tick: Callable[[], object],
    ) -> None:
        answers: list[_Answer] = []

        async def one_client(number: int) -> None:
            for repeat in range(repeats):
                answers.append(await self._ask(client, seed=hash((count, number, repeat, turn))))
                tick()

        started = time.perf_counter()
        await asyncio.gather(*(one_client(number) for number in range(count)))
        seconds = time.perf_counter() - started
        level.answers += answers
        level.tokens_per_second.append(sum(answer.num_tokens for answer in answers) / seconds)
        level.requests_per_second.append(len(answers) / seconds)

    async def _ask(self, client: httpx2.AsyncClient, seed: int) -> _Answer:
        body = {
            "model": self.model,
            "prompt": random_prompt(self.input_tokens, VOCABULARY, seed),
            "max_tokens": self.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer = _Answer()
        started = time.perf_counter()
        async with client.stream("POST", self.url + "/completions", json=body) as response:
            await _check(response)
            async for sent in httpx2.EventSource(response):
                if sent.data == "[DONE]":
                    break
                chunk = json.loads(sent.data)
                if "error" in chunk:
                    raise EngineError(f"{self.url}: {chunk['error']}")
                if any(choice.get("text") for choice in chunk.get("choices") or []):
                    answer.times.append(time.perf_counter() - started)
                if usage := chunk.get("usage"):
                    answer.num_tokens = usage["completion_tokens"]
        if not answer.times:
            raise EngineError(f"{self.url}: an answer of {self.output_tokens} tokens came without any text.")
        # A server that reports no usage: at least one token per chunk.
        answer.num_tokens = answer.num_tokens or len(answer.times)
        return answer


def percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """Milliseconds, by nearest rank; None where there is nothing to rank."""
    ranked = sorted(seconds)
    return {
        f"p{p}": ranked[min(len(ranked) * p // 100, len(ranked) - 1)] * 1000 if ranked else None for p in PERCENTILES
    }


async def _check(response: httpx2.Response) -> None:
    if not response.is_success:
        await response.aread()
        raise EngineError(f"{response.url}: {response.status_code}: {response.text[:400]}")
