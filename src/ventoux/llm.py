"""The offline face: load a model in this process, then generate, chat and stream.

from ventoux import LLM, SamplingParams
llm = LLM()                                             # the bundled model
print(llm.chat([{"role": "user", "content": "Hi"}]).outputs[0].text)
"""

from __future__ import annotations

import itertools
import json
import queue
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ventoux.build import Progress, build_engine
from ventoux.checkpoint.hub import resolve_model
from ventoux.config import EngineConfig, ServerConfig
from ventoux.engine.loop import ThreadClient
from ventoux.engine.request import EngineOutput, FinishReason, Request, SamplingParams
from ventoux.errors import ContextLengthError, EngineError, InvalidRequestError, UserError, VentouxError
from ventoux.text.answer import Answer, AnswerEvent, AnswerStream, Logprobs, fold_answer
from ventoux.text.images import decode_data_url
from ventoux.text.limit import PromptLimit
from ventoux.text.stream_parser import Message
from ventoux.text.tokenizer import Tokenizer

Prompt = str | list[int]
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class CompletionOutput:
    """One answer. `text` is what a reader sees; `message` has reasoning and tool calls apart (chats only)."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: str | int | None
    logprobs: list[Logprobs] | None
    message: Message


@dataclass(frozen=True)
class RequestOutput:
    """The answers to one prompt, in the order of their index."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[Logprobs | None] | None
    num_cached_tokens: int
    outputs: list[CompletionOutput]


@dataclass(frozen=True)
class BatchItem:
    """One request of a batch: a raw prompt (text or token ids), or messages with the options of `LLM.chat`."""

    prompt: Prompt | Messages
    params: SamplingParams = field(default_factory=SamplingParams)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    request: Request
    prompt: str | None
    streams: list[AnswerStream]


class LLM:
    """A model in this process. `model` is a folder (either layout), a Hub id, or None for the bundled one.

    Args:
        choices: fields of `EngineConfig`, e.g. `max_model_len=8192`, `dtype="float32"`. `speculative_config` may be a
            mapping.

    Raises:
        CheckpointError, ConfigError: the model cannot be loaded here.
    """

    def __init__(self, model: str | Path | None = None, *, progress: Progress | None = None, **choices: Any):
        folder = resolve_model(None if model is None else str(model))
        if isinstance(drafting := choices.get("speculative_config"), dict):
            choices["speculative_config"] = json.dumps(drafting)
        built = build_engine(folder, EngineConfig(**choices), progress)
        self.plan = built.plan
        self.config = built.config
        self.tokenizer = Tokenizer.from_file(folder)
        self.tokenizer.require_vocabulary(built.config.text.vocab_size)
        self.client = ThreadClient(built.engine)
        self._ids = itertools.count()

    def close(self) -> None:
        """Stops the engine; requests that are still open end with an error."""
        self.client.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None) -> list[RequestOutput]:
        """Continues raw prompts (text or token ids), without any chat format; results come in prompt order."""
        single = isinstance(prompts, str) or _is_ids(prompts)
        batch = cast(list[Prompt], [prompts] if single else list(prompts))
        return self._complete([self._raw_job(prompt, params or SamplingParams()) for prompt in batch])

    def chat(self, messages: Messages, params: SamplingParams | None = None, **options: Any) -> RequestOutput:
        """Answers a conversation of OpenAI-shaped messages.

        Args:
            options: `tools`, `reasoning_effort` ("none" or "high"), `continue_final_message`.

        Raises:
            InvalidRequestError: naming the field. Images are data URLs or {"type": "image", "image": PIL image}.
        """
        return self._complete([self._chat_job(messages, params or SamplingParams(), options)])[0]

    def batch(
        self,
        items: Sequence[BatchItem],
        on_result: Callable[[int, RequestOutput | VentouxError], None] | None = None,
    ) -> list[RequestOutput | VentouxError]:
        """Runs raw prompts and conversations side by side; results come in their order.

        One that is refused or fails gives its error in place of an answer, and costs the others nothing.

        Args:
            on_result: called with the position of an item and its result, as each is done, whatever their order.
        """
        results: dict[int, RequestOutput | VentouxError] = {}

        def done(i: int, result: RequestOutput | VentouxError) -> None:
            results[i] = result
            if on_result is not None:
                on_result(i, result)

        jobs: list[_Job] = []
        positions: list[int] = []
        for i, item in enumerate(items):
            try:
                jobs.append(self._job(item.prompt, item.params, item.options))
                positions.append(i)
            except UserError as error:
                done(i, error)
        self._run(jobs, lambda number, result: done(positions[number], result))
        return [results[i] for i in range(len(items))]

    def stream(
        self, prompt: Prompt | Messages, params: SamplingParams | None = None, **options: Any
    ) -> Generator[AnswerEvent, None, FinishReason | None]:
        """As `chat` (or, for text or token ids, as `generate`), event by event as the text becomes certain.

        Leaving the iterator early ends the request. The generator returns the finish reason (to `yield from`).
        """
        job = self._job(prompt, params or SamplingParams(), options)
        if job.request.params.n != 1:
            raise InvalidRequestError("n must be 1 in a stream.", param="n")
        (stream,) = job.streams
        try:
            for output in self._outputs([job]):
                if output.finish_reason == "error":
                    raise _error(output)
                yield from stream.push(output)
                self._obey_stop(stream, output)
        finally:
            self.client.abort(job.request.request_id)
        return stream.finish_reason

    def _complete(self, jobs: list[_Job]) -> list[RequestOutput]:
        """All results in their order; the first error is raised and ends all of them."""
        results: dict[int, RequestOutput] = {}

        def keep(number: int, result: RequestOutput | EngineError) -> None:
            if isinstance(result, EngineError):
                raise result
            results[number] = result

        self._run(jobs, keep)
        return [results[number] for number in range(len(jobs))]

    def _run(self, jobs: list[_Job], on_end: Callable[[int, RequestOutput | EngineError], None]) -> None:
        """Runs jobs side by side. `on_end` gets each one's number and result; whatever it raises ends all of them."""
        events: dict[tuple[str, int], list[AnswerEvent]] = {}
        errors: dict[str, EngineError] = {}
        numbers = {job.request.request_id: number for number, job in enumerate(jobs)}
        unfinished = {job.request.request_id: job.request.params.n for job in jobs}
        try:
            for output in self._outputs(jobs):
                name, key = output.request_id, (output.request_id, output.index)
                job = jobs[numbers[name]]
                if output.finish_reason == "error":
                    errors.setdefault(name, _error(output))
                else:
                    events.setdefault(key, []).extend(job.streams[output.index].push(output))
                    self._obey_stop(job.streams[output.index], output)
                if output.finish_reason is not None:
                    unfinished[name] -= 1
                    if not unfinished[name]:
                        on_end(numbers[name], errors.get(name) or _request_output(job, events))
        finally:
            for job in jobs:
                self.client.abort(job.request.request_id)

    def _outputs(self, jobs: list[_Job]) -> Iterator[EngineOutput]:
        """Submits all jobs, then yields outputs as they come until every sequence has finished."""
        outputs: queue.SimpleQueue[EngineOutput] = queue.SimpleQueue()
        for job in jobs:
            self.client.submit_to(job.request, outputs.put)
        unfinished = sum(job.request.params.n for job in jobs)
        while unfinished:
            output = outputs.get()
            unfinished -= output.finish_reason is not None
            yield output

    def _obey_stop(self, stream: AnswerStream, output: EngineOutput) -> None:
        if stream.must_abort:
            self.client.abort(output.request_id, output.index)

    def _job(self, prompt: Prompt | Messages, params: SamplingParams, options: dict[str, Any]) -> _Job:
        if isinstance(prompt, str) or _is_ids(prompt):
            return self._raw_job(cast(Prompt, prompt), params)
        return self._chat_job(cast(Messages, prompt), params, options)

    def _raw_job(self, prompt: Prompt, params: SamplingParams) -> _Job:
        limit = PromptLimit.for_answer(self.plan.max_model_len)
        ids = self.tokenizer.encode_text(prompt, bos=True, limit=limit) if isinstance(prompt, str) else list(prompt)
        request = self._request(ids, params)
        text = prompt if isinstance(prompt, str) else None
        options = {"parse_reasoning": False, "parse_tools": False}
        return _Job(request, text, [AnswerStream(self.tokenizer, params, **options) for _ in range(params.n)])

    def _chat_job(self, messages: Messages, params: SamplingParams, options: dict[str, Any]) -> _Job:
        limit = PromptLimit.for_answer(self.plan.max_model_len)
        prompt = self.tokenizer.encode_chat([_with_images(m) for m in messages], limit=limit, **options)
        request = self._request(prompt.token_ids, params)
        request.images = prompt.images
        streams = [
            AnswerStream(self.tokenizer, params, start_in_reasoning=prompt.in_reasoning) for _ in range(params.n)
        ]
        return _Job(request, None, streams)

    def _request(self, token_ids: list[int], params: SamplingParams) -> Request:
        """Checks here what the engine would refuse, so that one bad prompt is an exception and not a lost batch."""
        params.check(self.config.text.vocab_size)
        if len(token_ids) >= self.plan.max_model_len:
            raise ContextLengthError(len(token_ids), self.plan.max_model_len, param="prompt")
        return Request(request_id=f"llm-{next(self._ids)}", prompt_token_ids=token_ids, params=params)


def _is_ids(prompts: Any) -> bool:
    return isinstance(prompts, list) and bool(prompts) and all(isinstance(item, int) for item in prompts)


def _error(output: EngineOutput) -> EngineError:
    return EngineError(output.error or "the engine gave no reason")


def _with_images(message: dict[str, Any]) -> dict[str, Any]:
    """Decodes the data URLs of a message; whoever wants to fetch from the network does so before."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message  # text, or a mistake that the tokenizer names
    parts = []
    for part in content:
        if isinstance(part, dict) and part.get("type") == "image_url":
            limits = ServerConfig()
            url = part.get("image_url")
            url = url.get("url") if isinstance(url, dict) else url
            if not isinstance(url, str):
                raise InvalidRequestError('image_url must be {"url": "data:image/..."}.', param="image_url")
            image = decode_data_url(url, max_bytes=limits.max_image_bytes, max_pixels=limits.max_image_pixels)
            part = {"type": "image", "image": image}
        parts.append(part)
    return {**message, "content": parts}


def _request_output(job: _Job, events: dict[tuple[str, int], list[AnswerEvent]]) -> RequestOutput:
    outputs = []
    for index, stream in enumerate(job.streams):
        answer: Answer = fold_answer(events.get((job.request.request_id, index), []))
        assert stream.finish_reason is not None, "a finished sequence has a reason"
        outputs.append(
            CompletionOutput(
                index=index,
                text=answer.message.content or "",
                token_ids=stream.token_ids,
                finish_reason=stream.finish_reason,
                stop_reason=stream.stop_reason,
                logprobs=answer.logprobs if job.request.params.logprobs is not None else None,
                message=answer.message,
            )
        )
    first = job.streams[0]
    return RequestOutput(
        request_id=job.request.request_id,
        prompt=job.prompt,
        prompt_token_ids=job.request.prompt_token_ids,
        prompt_logprobs=first.prompt_logprobs,
        num_cached_tokens=first.num_cached_tokens,
        outputs=outputs,
    )
