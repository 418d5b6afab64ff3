"""Clients that vanish, by the hundred."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct

import httpx2

from tests.faults.conftest import PROMPTS, choice_of, completion, memory, until

NUM_DISCONNECTS = 500
ABREAST = 25


def raw_request(port: int, path: str, body: dict) -> bytes:
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(payload)}\r\n\r\n".encode() + payload


async def vanish(port: int, number: int, rng: random.Random) -> None:
    """Sends a request, wholly or in part, reads for a moment or not at all, and resets the connection."""
    prompt = [1500 + (number * 7 + i) % 2000 for i in range(rng.choice((5, 50, 3000)))]
    body = completion(prompt, max_tokens=500, stream=rng.random() < 0.7, n=rng.choice((1, 1, 3)))
    data = raw_request(port, "/v1/completions", body)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)
    await writer.drain()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(rng.choice((0.0, 0.01, 0.2))):
            await reader.read(100)
    # No goodbye: the kernel sends a reset.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def test_500_clients_that_vanish_change_nothing_for_the_others(live):
    """At every moment of a request; what it held must come back, and nobody else's answer may change by a bit."""
    port = httpx2.URL(live.url).port
    rng = random.Random(5)
    slots = asyncio.Semaphore(ABREAST)

    async def one(number: int) -> None:
        async with slots:
            await vanish(port, number, rng)

    async def others(client: httpx2.AsyncClient, storm: asyncio.Future) -> list:
        found = []
        while not storm.done() or len(found) < len(PROMPTS):
            body = completion(PROMPTS[len(found) % len(PROMPTS)], logprobs=3)
            found.append(choice_of(await client.post(live.url + "/v1/completions", json=body)))
        return found

    async def storm(first: int, count: int) -> list:
        async with httpx2.AsyncClient(timeout=60) as client:
            leaving = asyncio.gather(*(one(first + i) for i in range(count)))
            found = await others(client, leaving)
            await leaving
            return found

    # The first ones warm pools and caches up.
    asyncio.run(storm(0, 50))
    until(lambda: live.metric("num_requests_running") == 0)
    before = memory(live.pid), memory(live.engine)
    slots = asyncio.Semaphore(ABREAST)
    engine, started = live.engine, live.metric("request_prompt_tokens_count")
    found = asyncio.run(storm(50, NUM_DISCONNECTS - 50))
    assert all(answer == live.quiet[i % len(PROMPTS)] for i, answer in enumerate(found))
    until(lambda: live.metric("num_requests_running") == live.metric("num_requests_waiting") == 0)
    assert live.engine == engine
    after = memory(live.pid), memory(live.engine)
    assert all(b - a < 40 * 2**20 for a, b in zip(before, after, strict=True)), (before, after)
    # Each has one end in the metrics, whenever it came, and one in the log.
    until(lambda: live.metric("request_success_total") == live.metric("request_prompt_tokens_count"))
    until(lambda: len(live.lines(" finish=")) == live.metric("request_success_total"))
    assert live.metric("request_prompt_tokens_count") > started + NUM_DISCONNECTS / 2
