"""What the bundled model can do: held-out examples, asked through a server's public API, judged by code."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from ventoux.errors import EngineError
from ventoux.train.demo_data import TASKS, Example, effort_respected, example, judge

Progress = Callable[[int, int], None]
# The card's temperature for its alphabet sentence; everything else is asked greedily.
TEMPERATURES = {"alphabet": 0.1}


@dataclass
class TaskResult:
    """Counts of one task. `failures` keeps the first few wrong answers as (expected, got)."""

    asked: int = 0
    right: int = 0
    effort_respected: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    failures: list[tuple[dict, dict]] = field(default_factory=list)

    def add(self, one: Example, reply: dict, counts: dict[str, int]) -> None:
        """`counts`: the response's `completion_tokens_details`."""
        self.asked += 1
        self.drafted_tokens += counts["drafted_tokens"]
        self.accepted_tokens += counts["accepted_tokens"]
        self.effort_respected += effort_respected(one, reply)
        if judge(one, reply):
            self.right += 1
        elif len(self.failures) < 5:
            self.failures.append((one.answer, reply))


async def evaluate(
    url: str,
    model: str,
    *,
    per_task: int,
    tasks: Sequence[str] = TASKS,
    seed: int = 0,
    concurrency: int = 8,
    progress: Progress | None = None,
) -> dict[str, TaskResult]:
    """Asks `per_task` held-out examples of each task, `concurrency` at a time.

    Raises EngineError if the server cannot be reached or answers anything but 200.
    """
    results = {task: TaskResult() for task in tasks}
    places = asyncio.Semaphore(concurrency)
    jobs = [
        (task, example(task, random.Random(f"eval-{seed}-{task}-{i}"), held_out=True))
        for task in tasks
        for i in range(per_task)
    ]
    done = 0
    first_failure: Exception | None = None

    async with httpx2.AsyncClient(base_url=url, timeout=300) as client:

        async def ask(number: int, task: str, one: Example) -> None:
            nonlocal done
            try:
                async with places:
                    response = await client.post("/v1/chat/completions", json=body_of(one, model, seed=number))
            except httpx2.HTTPError as error:
                raise EngineError(f"{url} does not answer: {error}") from error
            if response.status_code != 200:
                raise EngineError(f"the server answered {response.status_code}: {response.text[:300]}")
            answer = response.json()
            results[task].add(one, reply_of(answer), answer["usage"]["completion_tokens_details"])
            done += 1
            if progress is not None:
                progress(done, len(jobs))

        try:
            async with asyncio.TaskGroup() as group:
                for number, (task, one) in enumerate(jobs):
                    group.create_task(ask(number, task, one))
        except* EngineError as failed:
            first_failure = failed.exceptions[0]
    if first_failure is not None:
        raise first_failure
    return results


def body_of(one: Example, model: str, *, seed: int) -> dict[str, Any]:
    """The example as a chat completions request, images as PNG data URLs."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(m) for m in one.messages],
        "reasoning_effort": one.reasoning_effort,
        "temperature": TEMPERATURES.get(one.task, 0.0),
        "max_tokens": 400,
        "seed": seed,
    }
    if one.tools:
        body["tools"] = one.tools
    return body


def _message(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_part(part) for part in content]}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    buffer = io.BytesIO()
    part["image"].save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def reply_of(response: dict[str, Any]) -> dict[str, Any]:
    """A response's message in the shape of `Example.answer`; arguments that are no JSON stay text."""
    message = response["choices"][0]["message"]
    calls = []
    for call in message.get("tool_calls") or ():
        arguments = call["function"]["arguments"]
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments)
        calls.append({"name": call["function"]["name"], "arguments": arguments})
    return {"reasoning": message.get("reasoning"), "content": message.get("content"), "tool_calls": calls}
