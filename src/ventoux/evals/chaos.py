"""A server under mixed load with clients that leave and clients that mean harm: which of its promises it breaks.

Promises: every good request gets a whole answer of the right form, or a 503 that says when to come back; every hostile
one gets its answer; a fixed question gets the same answer as on a quiet server; memory stays where it was; in the end
no page, request or file handle is held.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2

from ventoux.errors import EngineError
from ventoux.evals.chaos_load import Asked, canary, draw, text_of
from ventoux.evals.chaos_watch import Processes, gauges, memory_report
from ventoux.evals.hostile import CASES
from ventoux.evals.hostile_media import MEDIA_CASES
from ventoux.evals.hostile_wire import RAW_CASES, Raw

ABORTED, HOSTILE, CANARY = 0.10, 0.05, 0.05
# Some seconds between two looks at memory.
SAMPLE_SECONDS = 2.0
# How long a server may take to let go of what it held.
SETTLE_SECONDS = 15.0
# Longest wait for one answer: a server that gives none within it hangs.
ANSWER_SECONDS = 180.0
MAX_LISTED = 20
_HOSTILE = (*(case for case in (*CASES, *MEDIA_CASES) if case.config is None), *RAW_CASES)


class Chaos:
    """One run. `url` with or without the final /v1; the server must be on this machine."""

    def __init__(
        self, url: str, *, model: str | None, api_key: str | None, clients: int, seconds: float, seed: int = 0
    ):
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = model
        self.clients = clients
        self.seconds = seconds
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._rng = random.Random(seed)
        self._counts: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._broken: Counter[str] = Counter()
        self._max_model_len = 0
        self._quiet = ""
        # A running mean, out of which abort times are drawn.
        self._answer_seconds = 0.5

    def run(self, tick: Callable[[float], None] = lambda seconds: None) -> dict[str, Any]:
        """The result; its `broken` lists promises, and is empty if all were kept. `tick` gets the seconds so far.

        Raises:
            ConfigError: the server is not on this machine, or psutil is missing.
            EngineError: the server cannot be reached.
        """
        try:
            return asyncio.run(self._run(tick))
        except httpx2.HTTPError as error:
            raise EngineError(f"{self.url}: {error or type(error).__name__}") from error

    async def _run(self, tick: Callable[[float], None]) -> dict[str, Any]:
        limits = httpx2.Limits(max_connections=self.clients + 4, max_keepalive_connections=self.clients)
        timeout = httpx2.Timeout(ANSWER_SECONDS, pool=None)
        processes = Processes(self.url)
        samples = []
        async with httpx2.AsyncClient(
            base_url=self.url, headers=self._headers, limits=limits, timeout=timeout
        ) as client:
            await self._prepare(client)
        samples.append(processes.sample(0.0))
        started = time.monotonic()
        async with (
            httpx2.AsyncClient(base_url=self.url, headers=self._headers, limits=limits, timeout=timeout) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(self.clients):
                group.create_task(self._client(client, started + self.seconds))
            while (passed := time.monotonic() - started) < self.seconds:
                await asyncio.sleep(min(SAMPLE_SECONDS, self.seconds - passed))
                samples.append(processes.sample(time.monotonic() - started))
                tick(passed)
        left = await self._settle()
        for name, value in left.items():
            self._break(f"{name} is {value} after the end")
        # Handles are compared with a quiet server, so this last one counts.
        samples.append(processes.sample(time.monotonic() - started))
        rows, broken = memory_report(samples)
        return self._result(rows, broken)

    def _result(self, rows: list[dict[str, Any]], broken: list[str]) -> dict[str, Any]:
        listed = [f"{what} ({count} times)" for what, count in self._broken.most_common(MAX_LISTED)]
        return {
            "requests": dict(sorted(self._counts.items())),
            "kinds": dict(sorted(self._kinds.items())),
            "mean_answer_seconds": self._answer_seconds,
            "processes": rows,
            "broken": [*broken, *listed],
        }

    def _break(self, what: str) -> None:
        self._broken[what[:300]] += 1

    async def _prepare(self, client: httpx2.AsyncClient) -> None:
        """Learns the model, and asks everything once, so that first-time work is not taken for growth."""
        response = await client.get("/v1/models")
        if response.status_code != 200:
            raise EngineError(f"{self.url}/v1/models: {response.status_code}: {response.text[:400]}")
        first = response.json()["data"][0]
        self.model, self._max_model_len = self.model or first["id"], first["max_model_len"]
        asked = canary(self.model)
        answer = await client.post(asked.path, json=asked.body)
        if answer.status_code != 200:
            raise EngineError(f"{self.url}: {answer.status_code}: {answer.text[:400]}")
        self._quiet = text_of(answer.json())
        for _ in range(30):
            await self._ask(client, draw(self._rng, self.model, self._max_model_len))

    async def _client(self, client: httpx2.AsyncClient, until: float) -> None:
        assert self.model is not None
        while time.monotonic() < until:
            fate = self._rng.random()
            if fate < HOSTILE:
                await self._attack(client)
            elif fate < HOSTILE + CANARY:
                await self._ask(client, canary(self.model))
            elif fate < HOSTILE + CANARY + ABORTED:
                asked = draw(self._rng, self.model, self._max_model_len)
                await self._leave(client, asked, self._rng.uniform(0, 2 * self._answer_seconds))
            else:
                await self._ask(client, draw(self._rng, self.model, self._max_model_len))

    async def _leave(self, client: httpx2.AsyncClient, asked: Asked, after: float) -> None:
        """Sends a request and closes the connection, wherever its answer is."""
        self._counts["aborted"] += 1
        try:
            async with asyncio.timeout(after):
                await self._read(client, asked)
        except (TimeoutError, httpx2.HTTPError):
            return

    async def _ask(self, client: httpx2.AsyncClient, asked: Asked) -> None:
        started = time.monotonic()
        try:
            status, events, headers = await self._read(client, asked)
        except httpx2.HTTPError as error:
            self._break(f"{asked.kind}: {type(error).__name__}: {error}")
            return
        if status in (503, 529) and "retry-after" in headers:
            self._counts["told to come back"] += 1
            return
        self._counts["answered"] += 1
        self._kinds[asked.kind] += 1
        self._answer_seconds += (time.monotonic() - started - self._answer_seconds) / 50
        failed = next((event for event in events if event.get("error")), None)
        if status != 200 or failed or not events:
            self._break(f"{asked.kind}: {status}: {json.dumps(failed)}")
        elif fault := asked.fault(events):
            self._break(f"{asked.kind}: {fault}")
        elif asked.kind == "canary" and text_of(events[0]) != self._quiet:
            self._break(f"the same question got another answer than on a quiet server: {text_of(events[0])}")

    async def _read(
        self, client: httpx2.AsyncClient, asked: Asked
    ) -> tuple[int, list[dict[str, Any]], Mapping[str, str]]:
        """The status, all events or the one object, and the headers."""
        events: list[dict[str, Any]] = []
        async with client.stream("POST", asked.path, json=asked.body) as response:
            if not response.headers["content-type"].startswith("text/event-stream"):
                return response.status_code, [json.loads(await response.aread())], response.headers
            async for sent in httpx2.EventSource(response):
                if sent.data != "[DONE]":
                    events.append(json.loads(sent.data))
        return response.status_code, events, response.headers

    async def _attack(self, client: httpx2.AsyncClient) -> None:
        self._counts["hostile"] += 1
        case = self._rng.choice(_HOSTILE)
        try:
            if isinstance(case, Raw):
                status = await self._send_bytes(case.data)
            else:
                # Made in a thread: ten megabytes of JSON would hold up the other clients.
                content = await asyncio.to_thread(case.content)
                response = await client.request(case.method, case.path, content=content, headers=dict(case.headers))
                status = response.status_code
        except (httpx2.HTTPError, OSError) as error:
            self._break(f"hostile, {case.what}: {type(error).__name__}")
            return
        if status in (503, 529):
            self._counts["told to come back"] += 1
        elif status != case.status:
            self._break(f"hostile, {case.what}: {status} instead of {case.status}")

    async def _send_bytes(self, data: bytes) -> int:
        """The status that comes back on a connection of its own; the rest of it is not waited for."""
        url = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        try:
            writer.write(data)
            line = await asyncio.wait_for(reader.readline(), ANSWER_SECONDS)
            return int(line.split()[1])
        finally:
            writer.close()

    async def _settle(self) -> dict[str, float]:
        """What is still held when the server has had its time; empty if nothing is."""
        deadline = time.monotonic() + SETTLE_SECONDS
        async with httpx2.AsyncClient(base_url=self.url, headers=self._headers) as client:
            while True:
                response = await client.get("/metrics")
                held = {name: value for name, value in gauges(response.text).items() if value}
                if not held or time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.5)
        # Its own connection is closed by now, and the server needs a moment to see that.
        await asyncio.sleep(1.0)
        return held
