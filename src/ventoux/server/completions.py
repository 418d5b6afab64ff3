"""Plain completions: text or token ids in, text out, nothing parsed."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ventoux.engine.request import Request
from ventoux.errors import InvalidRequestError
from ventoux.server.constraints import answer_grammar
from ventoux.server.generate import generate, merge, new_request_id
from ventoux.server.refusals import ignored_header
from ventoux.server.schemas import CompletionRequest, fit
from ventoux.server.service import Place, Service
from ventoux.server.wire import add_usage, logprob, prompt_logprobs, usage
from ventoux.text.answer import AnswerEvent, AnswerStream, Logprobs, fold_answer
from ventoux.text.stream_parser import Content

# Prompts, and answers over all prompts, of one request.
MAX_PROMPTS = 1024
MAX_ANSWERS = 1024


@dataclass(frozen=True)
class PromptJob:
    """One prompt of a completion request; its n answers are choices `first`, `first` + 1, ..."""

    request: Request
    first: int
    streams: list[AnswerStream]
    # What `echo` puts before each answer, None without it; and the text of the prompt's first token.
    echo: str | None
    first_token: str


@dataclass(frozen=True)
class CompletionJob:
    request_id: str
    model: str
    prompts: list[PromptJob]
    place: Place
    logprobs: bool
    prompt_logprobs: bool
    include_usage: bool
    continuous_usage: bool
    headers: dict[str, str] = field(default_factory=dict)

    def usage(self) -> dict[str, Any]:
        return add_usage([usage(len(p.request.prompt_token_ids), p.streams) for p in self.prompts])


async def prepare_completion(service: Service, body: CompletionRequest, place: Place) -> CompletionJob:
    """Raises InvalidRequestError, ModelNotFoundError; nothing has reached the engine then."""
    model = service.model(body.model)
    headers = {}
    if unknown := body.unknown_fields():
        headers["x-ignored-fields"] = ignored_header(unknown)
    body.check_combinations()
    params = body.sampling(service.tokenizer.vocab_size, num_logprobs=body.logprobs)
    if body.echo and params.prompt_logprobs is None:
        params.prompt_logprobs = params.logprobs
    if (form := body.form()) is not None:
        params.grammar = await answer_grammar(service, form)
    prompts = split_prompt(body.prompt)
    if len(prompts) * params.n > MAX_ANSWERS:
        raise InvalidRequestError(f"At most {MAX_ANSWERS} answers are given per request.", param="n")
    bos = body.add_special_tokens is not False
    encoded = await asyncio.to_thread(lambda: [_encode(service, prompt, bos) for prompt in prompts])
    service.hold_tokens(place, sum(map(len, encoded)))
    request_id = new_request_id("cmpl-")
    jobs = []
    for i, (ids, prompt) in enumerate(zip(encoded, prompts, strict=True)):
        fitted = fit(msgspec.structs.replace(params), len(ids), service.max_model_len, param="prompt")
        text = prompt if isinstance(prompt, str) else service.tokenizer.decode(ids)
        jobs.append(
            PromptJob(
                request=Request(
                    request_id=f"{request_id}-{i}",
                    prompt_token_ids=ids,
                    params=fitted,
                    cache_salt=body.cache_salt or "",
                ),
                first=i * fitted.n,
                streams=[
                    AnswerStream(service.tokenizer, fitted, parse_reasoning=False, parse_tools=False)
                    for _ in range(fitted.n)
                ],
                echo=text if body.echo else None,
                first_token=service.tokenizer.token_text(ids[0]),
            )
        )
    options = body.stream_options
    return CompletionJob(
        request_id=request_id,
        model=model,
        prompts=jobs,
        place=place,
        logprobs=body.logprobs is not None,
        prompt_logprobs=body.prompt_logprobs is not None,
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.include_usage and options.continuous_usage_stats),
        headers=headers,
    )


def split_prompt(prompt: Any) -> list[str | list[int]]:
    """The four forms of a prompt as a list of prompts. Raises InvalidRequestError."""
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and _is_id(prompt[0])):
        prompt = [prompt]
    if not isinstance(prompt, list) or not 0 < len(prompt) <= MAX_PROMPTS:
        raise InvalidRequestError(
            f"prompt must be a string, a list of token ids, or a list of 1 to {MAX_PROMPTS} of either.", param="prompt"
        )
    for i, item in enumerate(prompt):
        if not isinstance(item, str) and not (isinstance(item, list) and item and all(map(_is_id, item))):
            raise InvalidRequestError(
                f"prompt[{i}] must be a string or a list of token ids that is not empty.", param=f"prompt[{i}]"
            )
    return prompt


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _encode(service: Service, prompt: str | list[int], bos: bool) -> list[int]:
    if isinstance(prompt, str):
        ids = service.tokenizer.encode_text(prompt, bos=bos, limit=service.prompt_limit)
        if not ids:
            raise InvalidRequestError("The prompt is empty.", param="prompt")
        return ids
    for token_id in prompt:
        if not 0 <= token_id < service.tokenizer.vocab_size:
            raise InvalidRequestError(
                f"prompt holds token id {token_id}, but ids run from 0 to {service.tokenizer.vocab_size - 1}.",
                param="prompt",
            )
    if service.tokenizer.control.image in prompt:
        raise InvalidRequestError("prompt holds [IMG] tokens, but images can only be sent in chats.", param="prompt")
    return prompt


async def completion_answer(service: Service, job: CompletionJob) -> dict[str, Any]:
    """The complete answer: the chunks' choices, added up."""
    writer = _ChoiceWriter(job)
    events: defaultdict[int, list[AnswerEvent]] = defaultdict(list)
    async with aclosing(_outputs(service, job)) as outputs:
        async for prompt, index, new in outputs:
            events[prompt.first + index] += new
    choices = []
    for prompt in job.prompts:
        for index, stream in enumerate(prompt.streams):
            answer = fold_answer(events[prompt.first + index])
            choices.append(writer.choice(prompt, index, answer.message.content, answer.logprobs, stream))
    return {
        "id": job.request_id,
        "object": "text_completion",
        "created": writer.created,
        "model": job.model,
        "choices": choices,
        "usage": job.usage(),
    }


async def completion_chunks(service: Service, job: CompletionJob) -> AsyncGenerator[dict[str, Any], None]:
    """The answer as chunks, choices interleaved; then usage."""
    writer = _ChoiceWriter(job)
    head = {"id": job.request_id, "object": "text_completion", "created": writer.created, "model": job.model}
    async with aclosing(_outputs(service, job)) as outputs:
        async for prompt, index, new in outputs:
            stream = prompt.streams[index]
            text = "".join(event.text for event in new if isinstance(event, Content))
            scores = [event for event in new if isinstance(event, Logprobs)]
            if not (text or scores or stream.finish_reason):
                continue
            chunk = {**head, "choices": [writer.choice(prompt, index, text, scores, stream)]}
            if job.include_usage:
                chunk["usage"] = job.usage() if job.continuous_usage else None
            yield chunk
    if job.include_usage:
        yield {**head, "choices": [], "usage": job.usage()}


async def _outputs(
    service: Service, job: CompletionJob
) -> AsyncGenerator[tuple[PromptJob, int, Sequence[AnswerEvent]], None]:
    iterators = [generate(service, prompt.request, prompt.streams, job.place) for prompt in job.prompts]
    async with aclosing(merge(iterators)) as merged:
        async for i, (index, events) in merged:
            yield job.prompts[i], index, events


class _ChoiceWriter:
    """Writes choices. The first one of an answer begins with the echo; text offsets go on from choice to choice."""

    def __init__(self, job: CompletionJob):
        self._job = job
        self._offsets: dict[int, int] = {}
        self.created = int(time.time())

    def choice(
        self, prompt: PromptJob, index: int, text: str, scores: Sequence[Logprobs], stream: AnswerStream
    ) -> dict[str, Any]:
        number = prompt.first + index
        entries: list[Logprobs | None] = list(scores)
        if number not in self._offsets:
            self._offsets[number] = 0
            if prompt.echo is not None:
                text = prompt.echo + text
                entries = list(stream.prompt_logprobs or []) + entries
        choice = {
            "index": number,
            "text": text,
            "logprobs": self._logprobs(number, entries, prompt.first_token) if self._job.logprobs else None,
            "finish_reason": stream.finish_reason,
            "stop_reason": stream.stop_reason,
        }
        if self._job.prompt_logprobs:
            choice["prompt_logprobs"] = prompt_logprobs(stream.prompt_logprobs or [])
        return choice

    def _logprobs(self, number: int, entries: Sequence[Logprobs | None], first_token: str) -> dict[str, Any]:
        """OpenAI's older form: parallel lists. A prompt's first token has no score, only its text."""
        written: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            token = entry.chosen.text if entry else first_token
            written["tokens"].append(token)
            written["token_logprobs"].append(logprob(entry.chosen) if entry else None)
            top = {score.text: logprob(score) for score in [*entry.top, entry.chosen]} if entry else None
            written["top_logprobs"].append(top)
            written["text_offset"].append(self._offsets[number])
            self._offsets[number] += len(token)
        return written
