"""Chat completions. Both forms of an answer come from the same events: chunks write them down, a message folds them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ventoux.server.chat_request import ChatJob
from ventoux.server.generate import generate
from ventoux.server.service import Service
from ventoux.server.wire import chat_logprobs, prompt_logprobs, usage
from ventoux.text.answer import Answer, AnswerEvent, AnswerStream, Logprobs, fold_answer
from ventoux.text.stream_parser import Content, Reasoning, ToolCallArguments, ToolCallStart, new_tool_call_id


async def chat_answer(service: Service, job: ChatJob) -> dict[str, Any]:
    """The complete answer."""
    created = int(time.time())
    events: list[list[AnswerEvent]] = [[] for _ in job.streams]
    async with aclosing(generate(service, job.request, job.streams, job.place)) as outputs:
        async for index, new in outputs:
            events[index] += new
    scores = job.streams[0].prompt_logprobs
    return {
        "id": job.request.request_id,
        "object": "chat.completion",
        "created": created,
        "model": job.model,
        "choices": [
            _choice(job, index, fold_answer(events[index]), stream) for index, stream in enumerate(job.streams)
        ],
        "usage": usage(len(job.request.prompt_token_ids), job.streams),
        "system_fingerprint": None,
        **({"prompt_logprobs": prompt_logprobs(scores)} if scores is not None else {}),
    }


def _choice(job: ChatJob, index: int, answer: Answer, stream: AnswerStream) -> dict[str, Any]:
    written = answer.message
    reasoning = written.reasoning if job.include_reasoning and written.reasoning else None
    message: dict[str, Any] = {
        "role": "assistant",
        # Clients take null as "only calls"; an answer without calls always has text, if only empty.
        "content": written.content or (None if written.tool_calls else ""),
        "reasoning": reasoning,
        "reasoning_content": reasoning,
        "refusal": None,
    }
    if written.tool_calls:
        message["tool_calls"] = [
            {
                "id": new_tool_call_id(),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in written.tool_calls
        ]
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(job, answer.logprobs) if job.request.params.logprobs is not None else None,
        "finish_reason": finish_reason(job, stream),
        "stop_reason": stream.stop_reason,
    }


def _logprobs(job: ChatJob, scores: list[Logprobs]) -> dict[str, Any]:
    return chat_logprobs(scores, job.logprob_details)


def finish_reason(job: ChatJob, stream: AnswerStream) -> str | None:
    """ "tool_calls" when the model chose to call; a named choice ends with "stop", as OpenAI has it."""
    if stream.finish_reason == "stop" and stream.num_tool_calls and job.tool_choice.mode in ("auto", "required"):
        return "tool_calls"
    return stream.finish_reason


async def chat_chunks(service: Service, job: ChatJob) -> AsyncGenerator[dict[str, Any], None]:
    """The answer as chunks, choices interleaved: per choice the role, deltas, the finish reason; then usage."""
    writer = _ChunkWriter(job)
    for index in range(len(job.streams)):
        yield writer.chunk(index, {"role": "assistant", "content": ""})
    async with aclosing(generate(service, job.request, job.streams, job.place)) as outputs:
        async for index, events in outputs:
            for chunk in writer.chunks(index, events):
                yield chunk
            stream = job.streams[index]
            if stream.finish_reason is not None:
                yield writer.chunk(index, {}, finish=finish_reason(job, stream), stop_reason=stream.stop_reason)
    if job.include_usage:
        yield writer.usage_chunk()


class _ChunkWriter:
    """Writes the events of one job as chunks."""

    def __init__(self, job: ChatJob):
        self._job = job
        self._head = {
            "id": job.request.request_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": job.model,
            "system_fingerprint": None,
        }

    def chunks(self, index: int, events: list[AnswerEvent]) -> list[dict[str, Any]]:
        """Scores go with the first delta of their step, or in a chunk of their own if it has none."""
        scores = [event for event in events if isinstance(event, Logprobs)]
        deltas = [delta for event in events if (delta := self._delta(event)) is not None]
        if scores and not deltas:
            deltas = [{}]
        return [self.chunk(index, delta, scores=scores if i == 0 else []) for i, delta in enumerate(deltas)]

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        scores: list[Logprobs] | None = None,
        finish: str | None = None,
        stop_reason: str | int | None = None,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": _logprobs(self._job, scores) if scores else None,
            "finish_reason": finish,
        }
        if finish is not None:
            choice["stop_reason"] = stop_reason
        chunk = {**self._head, "choices": [choice]}
        if self._job.include_usage:
            chunk["usage"] = self._usage() if self._job.continuous_usage else None
        return chunk

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        return usage(len(self._job.request.prompt_token_ids), self._job.streams)

    def _delta(self, event: AnswerEvent) -> dict[str, Any] | None:
        match event:
            case Reasoning(text):
                # Clients look for one name or the other.
                return {"reasoning": text, "reasoning_content": text} if self._job.include_reasoning else None
            case Content(text):
                return {"content": text}
            case ToolCallStart(index, name):
                call = {"id": new_tool_call_id(), "type": "function", "function": {"name": name, "arguments": ""}}
                return {"tool_calls": [{"index": index, **call}]}
            case ToolCallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        return None
