"""Responses: answers as the events of OpenAI's stream. A complete answer is the object in the last of them."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from ventoux.server.errors import ApiError, to_api_error
from ventoux.server.generate import generate
from ventoux.server.response_store import StoredResponse
from ventoux.server.responses_request import ResponsesJob, new_item_id
from ventoux.server.service import Service
from ventoux.server.wire import chat_logprobs, usage, warn
from ventoux.text.answer import AnswerEvent, Logprobs
from ventoux.text.stream_parser import Content, Reasoning, ToolCallArguments, ToolCallStart, new_tool_call_id

logger = logging.getLogger(__name__)


async def responses_answer(service: Service, job: ResponsesJob) -> dict[str, Any]:
    """The complete response object. Failures are raised."""
    response: dict[str, Any] = {}
    async with aclosing(_events(service, job, _Writer(job, service))) as events:
        async for event in events:
            response = event.get("response", response)
    if job.store and not response["store"]:
        warn(job.headers, "the response could not be stored")
    return response


async def responses_events(service: Service, job: ResponsesJob) -> AsyncGenerator[dict[str, Any], None]:
    """The response as events. A failure is the last one, `response.failed`."""
    writer = _Writer(job, service)
    try:
        async with aclosing(_events(service, job, writer)) as events:
            async for event in events:
                yield event
    except Exception as e:
        error = to_api_error(e)
        yield writer.event("response.failed", response=await _kept(service, job, writer.failed(error)))


async def _events(service: Service, job: ResponsesJob, writer: _Writer) -> AsyncGenerator[dict[str, Any], None]:
    yield writer.event("response.created", response=job.frame)
    yield writer.event("response.in_progress", response=job.frame)
    chat = job.chat
    async with aclosing(generate(service, chat.request, chat.streams, chat.place)) as outputs:
        async for _, new in outputs:
            for event in new:
                for written in writer.write(event):
                    yield written
    status = "incomplete" if chat.streams[0].finish_reason == "length" else "completed"
    for written in writer.close(status):
        yield written
    response = await _kept(service, job, writer.ended(status))
    yield writer.event(f"response.{status}", response=response)


async def _kept(service: Service, job: ResponsesJob, response: dict[str, Any]) -> dict[str, Any]:
    """Stores a response that is to be stored; `store` tells whether it is there."""
    if job.store and service.responses is not None:
        response["store"] = await service.responses.put(StoredResponse(response, job.items))
    return response


class _Writer:
    """Writes answer events as items, of which one is open at a time, and numbers all events."""

    def __init__(self, job: ResponsesJob, service: Service):
        self._job = job
        self._is_control = service.tokenizer.is_control
        self._num_events = 0
        self._output: list[dict[str, Any]] = []
        self._item: dict[str, Any] | None = None
        self._pieces: list[str] = []
        # Scores of the open message, and those whose text has not come yet.
        self._scores: list[dict[str, Any]] = []
        self._waiting: list[Logprobs] = []

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        number = self._num_events
        self._num_events += 1
        return {"type": kind, "sequence_number": number, **fields}

    def write(self, event: AnswerEvent) -> Iterator[dict[str, Any]]:
        match event:
            case Logprobs():
                self._waiting.append(event)
                return
            case Reasoning(text):
                if not self._is_open("reasoning"):
                    yield from self._begin(
                        {"type": "reasoning", "summary": [], "content": [], "encrypted_content": None}
                    )
                    yield self._part("added", {"type": "reasoning_text", "text": ""})
                yield self._delta("response.reasoning_text.delta", text, content_index=0)
            case Content(text):
                if not self._is_open("message"):
                    yield from self._begin({"type": "message", "role": "assistant", "content": []})
                    yield self._part("added", _text_part("", []))
                scores = self._take_scores()
                yield self._delta("response.output_text.delta", text, content_index=0, logprobs=scores)
            case ToolCallStart(_, name):
                call = {"call_id": new_tool_call_id(), "name": name, "arguments": ""}
                yield from self._begin({"type": "function_call", **call})
            case ToolCallArguments(_, text):
                yield self._delta("response.function_call_arguments.delta", text)
        self._waiting = []

    def close(self, status: str = "completed") -> Iterator[dict[str, Any]]:
        """Ends the open item, if there is one."""
        item = self._item
        if item is None:
            return
        text = "".join(self._pieces)
        if item["type"] == "function_call":
            yield self._here("response.function_call_arguments.done", name=item["name"], arguments=text)
            item = {**item, "arguments": text}
        elif item["type"] == "reasoning":
            part = {"type": "reasoning_text", "text": text}
            yield self._here("response.reasoning_text.done", content_index=0, text=text)
            yield self._part("done", part)
            item = {**item, "content": [part]}
        else:
            part = _text_part(text, self._scores)
            yield self._here("response.output_text.done", content_index=0, text=text, logprobs=self._scores)
            yield self._part("done", part)
            item = {**item, "content": [part]}
        item = {**item, "status": status}
        yield self.event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._item = None

    def ended(self, status: str) -> dict[str, Any]:
        """The response object with its answer."""
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        done = int(time.time()) if status == "completed" else None
        return self._response(status, incomplete_details=details, completed_at=done)

    def failed(self, error: ApiError) -> dict[str, Any]:
        """The response object with what was complete when it failed."""
        return self._response("failed", error={"code": "server_error", "message": error.message})

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        chat = self._job.chat
        counts = _usage(len(chat.request.prompt_token_ids), chat.streams)
        return {**self._job.frame, "status": status, **fields, "output": self._output, "usage": counts}

    def _is_open(self, kind: str) -> bool:
        return self._item is not None and self._item["type"] == kind

    def _begin(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self.close()
        self._item = {"id": new_item_id(item["type"]), "status": "in_progress", **item}
        self._pieces, self._scores = [], []
        yield self.event("response.output_item.added", output_index=len(self._output), item=self._item)

    def _delta(self, kind: str, text: str, **fields: Any) -> dict[str, Any]:
        self._pieces.append(text)
        return self._here(kind, delta=text, **fields)

    def _part(self, what: str, part: dict[str, Any]) -> dict[str, Any]:
        return self._here(f"response.content_part.{what}", content_index=0, part=part)

    def _here(self, kind: str, **fields: Any) -> dict[str, Any]:
        """An event about the open item."""
        assert self._item is not None
        return self.event(kind, item_id=self._item["id"], output_index=len(self._output), **fields)

    def _take_scores(self) -> list[dict[str, Any]]:
        """The scores of the text that comes now; control tokens before it are no part of it."""
        if not self._job.include_logprobs:
            return []
        entries = [entry for entry in self._waiting if not self._is_control(entry.chosen.token_id)]
        scores = chat_logprobs(entries)["content"]
        self._scores += scores
        return scores


def _text_part(text: str, scores: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": scores}


def _usage(num_prompt_tokens: int, streams: Any) -> dict[str, Any]:
    counts = usage(num_prompt_tokens, streams)
    cached = counts["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": counts["completion_tokens_details"],
        "total_tokens": counts["total_tokens"],
    }
