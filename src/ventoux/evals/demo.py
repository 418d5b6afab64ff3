"""What the bundled model can do: held-out examples, asked through a server's public API, judged by code."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from ventoux.errors import EngineError
from ventoux.train.demo_data import EFFORT_BAR, TASKS, THINKING_GAIN, Example, effort_respected, evaluation, judge

Progress = Callable[[int, int], None]
# Reading tens of thousands of tokens takes minutes on a laptop: fewer questions are asked about those.
MOST_ASKED = {"long_8k": 300, "long_32k": 30, "long_128k": 10}
# What is asked unless tasks are named: 128 thousand tokens take minutes to read.
USUAL_TASKS = tuple(task for task in TASKS if task != "long_128k")
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

    @property
    def share(self) -> float:
        return self.right / self.asked

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


def verdicts(results: Mapping[str, TaskResult]) -> list[tuple[str, str, bool | None]]:
    """The bars: (what, how much of how many in per cent, whether it is met); None where no bar is set."""
    lines: list[tuple[str, str, bool | None]] = []
    for task, result in results.items():
        bar = TASKS[task].bar
        told = f"{result.right:>4} of {result.asked:<4}{100 * result.share:6.1f} %"
        if bar is not None:
            told += f"   bar {100 * bar:.0f} %"
        lines.append((task, told, None if bar is None else result.share >= bar))
    if {"sum_think", "sum_direct"} <= set(results):
        gain = results["sum_think"].share - results["sum_direct"].share
        told = f"{100 * gain:20.1f}     bar {100 * THINKING_GAIN:.0f} points"
        lines.append(("thinking", told, gain >= THINKING_GAIN))
    asked, kept = (sum(getattr(r, name) for r in results.values()) for name in ("asked", "effort_respected"))
    told = f"{kept:>4} of {asked:<4}{100 * kept / asked:6.1f} %   bar {100 * EFFORT_BAR:.0f} %"
    return [*lines, ("effort", told, kept / asked >= EFFORT_BAR)]


async def evaluate(
    url: str,
    model: str,
    *,
    per_task: int,
    tasks: Iterable[str] = USUAL_TASKS,
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
        (task, group)
        for task in tasks
        for group in evaluation(task, seed, min(per_task, MOST_ASKED.get(task, per_task)))
    ]
    num_questions = sum(len(group) for _, group in jobs)
    done = 0
    first_failure: Exception | None = None

    async with httpx2.AsyncClient(base_url=url, timeout=1200) as client:

        async def ask(number: int, task: str, group: list[Example]) -> None:
            """One place for the group, one question after the other: the server's cache still holds the document that
            they share. With a place per question sixty groups took turns, and each read its document anew."""
            nonlocal done
            async with places:
                for one in group:
                    try:
                        response = await client.post("/v1/chat/completions", json=body_of(one, model, seed=number))
                    except httpx2.HTTPError as error:
                        raise EngineError(f"{url} does not answer: {error}") from error
                    if response.status_code != 200:
                        raise EngineError(f"the server answered {response.status_code}: {response.text[:300]}")
                    answer = response.json()
                    results[task].add(one, reply_of(answer), answer["usage"]["completion_tokens_details"])
                    done += 1
                    if progress is not None:
                        progress(done, num_questions)

        try:
            async with asyncio.TaskGroup() as group:
                for number, (task, examples) in enumerate(jobs):
                    group.create_task(ask(number, task, examples))
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
    if one.schema:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "field", "schema": one.schema}}
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
