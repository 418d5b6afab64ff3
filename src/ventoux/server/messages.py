"""Anthropic's messages. A complete answer is a fold over the events that a stream sends."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any

import msgspec

from ventoux.server.generate import generate
from ventoux.server.messages_request import MessagesJob
from ventoux.server.service import Service
from ventoux.text.answer import AnswerEvent
from ventoux.text.stream_parser import Content, Reasoning, ToolCallArguments, ToolCallStart, new_tool_call_id


async def messages_answer(service: Service, job: MessagesJob) -> dict[str, Any]:
    """The complete answer."""
    async with aclosing(messages_events(service, job)) as events:
        return _fold([event async for event in events])


async def messages_events(service: Service, job: MessagesJob) -> AsyncGenerator[dict[str, Any], None]:
    """The answer as Anthropic's events: the message's frame, its content block by block, why it ended."""
    chat = job.chat
    [stream] = chat.streams
    frame = {
        "id": chat.request.request_id,
        "type": "message",
        "role": "assistant",
        "model": chat.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(job),
    }
    yield {"type": "message_start", "message": frame}
    yield {"type": "ping"}
    writer = _BlockWriter(include_reasoning=chat.include_reasoning)
    async with aclosing(generate(service, chat.request, chat.streams, chat.place)) as outputs:
        async for _, new in outputs:
            for event in new:
                for written in writer.write(event):
                    yield written
    for written in writer.close():
        yield written
    sequence = stream.stop_reason if isinstance(stream.stop_reason, str) else None
    delta = {"stop_reason": _stop_reason(job), "stop_sequence": sequence}
    yield {"type": "message_delta", "delta": delta, "usage": _usage(job)}
    yield {"type": "message_stop"}


def _stop_reason(job: MessagesJob) -> str:
    [stream] = job.chat.streams
    if stream.finish_reason == "length":
        return "max_tokens" if job.chat.request.params.max_tokens == job.max_tokens else "model_context_window_exceeded"
    if stream.num_tool_calls:
        return "tool_use"
    return "end_turn" if stream.stop_reason is None else "stop_sequence"


def _usage(job: MessagesJob) -> dict[str, Any]:
    """Token counts so far. Tokens that were found in the cache are no part of `input_tokens`."""
    [stream] = job.chat.streams
    return {
        "input_tokens": len(job.chat.request.prompt_token_ids) - stream.num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": stream.num_cached_tokens,
        "output_tokens": stream.num_tokens,
        "output_tokens_details": {"thinking_tokens": stream.num_reasoning_tokens},
    }


class _BlockWriter:
    """Writes answer events as content blocks, of which one is open at a time."""

    def __init__(self, *, include_reasoning: bool):
        self._include_reasoning = include_reasoning
        self._index = -1
        self._open: str | None = None
        self._digest = hashlib.sha256()

    def write(self, event: AnswerEvent) -> Iterator[dict[str, Any]]:
        match event:
            case Reasoning(text) if self._include_reasoning:
                if self._open != "thinking":
                    yield from self._begin({"type": "thinking", "thinking": "", "signature": ""})
                    self._digest = hashlib.sha256()
                self._digest.update(text.encode())
                yield self._delta({"type": "thinking_delta", "thinking": text})
            case Content(text):
                if self._open != "text":
                    yield from self._begin({"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            case ToolCallStart(_, name):
                yield from self._begin({"type": "tool_use", "id": new_tool_call_id(), "name": name, "input": {}})
            case ToolCallArguments(_, text):
                yield self._delta({"type": "input_json_delta", "partial_json": text})

    def close(self) -> Iterator[dict[str, Any]]:
        """Ends the open block, if there is one."""
        if self._open == "thinking":
            # Nobody checks it here, but clients drop thoughts that are not signed.
            signature = base64.b64encode(self._digest.digest()).decode()
            yield self._delta({"type": "signature_delta", "signature": signature})
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._index}
        self._open = None

    def _begin(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self.close()
        self._index += 1
        self._open = block["type"]
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _fold(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream of events amounts to."""
    message: dict[str, Any] = {}
    blocks: list[dict[str, Any]] = []
    pieces: list[list[str]] = []
    for event in events:
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                blocks.append(dict(event["content_block"]))
                pieces.append([])
            case "content_block_delta":
                match event["delta"]:
                    case {"type": "signature_delta", "signature": signature}:
                        blocks[-1]["signature"] = signature
                    case {"text": piece} | {"thinking": piece} | {"partial_json": piece}:
                        pieces[-1].append(piece)
            case "message_delta":
                message = {**message, **event["delta"], "usage": event["usage"]}
    content = [_complete(block, "".join(parts)) for block, parts in zip(blocks, pieces, strict=True)]
    return {**message, "content": content}


def _complete(block: dict[str, Any], text: str) -> dict[str, Any]:
    if block["type"] == "tool_use":
        return {**block, "input": _input(text)}
    return {**block, block["type"]: text}


def _input(arguments: str) -> Any:
    """Arguments as an object. Those that were cut off by the token limit are none, and still must not be lost."""
    try:
        return msgspec.json.decode(arguments)
    except (ValueError, RecursionError):
        return {"INVALID_JSON": arguments}
