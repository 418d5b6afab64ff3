"""Engine outputs of one sequence -> the events of one answer: text as it becomes certain, tool calls, logprobs.

The server and the offline `LLM` both read answers through this, streamed or not; a complete answer is a fold over the
same events. No HTTP types here.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ventoux.engine.request import EngineOutput, FinishReason, SamplingParams, TokenLogprob, TokenOutput
from ventoux.text.detokenizer import StopStrings
from ventoux.text.stream_parser import (
    Content,
    Event,
    Message,
    Reasoning,
    StreamParser,
    ToolCallArguments,
    ToolCallStart,
    fold,
)
from ventoux.text.tokenizer import Tokenizer


class TokenScore(msgspec.Struct, frozen=True):
    """A token with its log-probability; `raw` holds its bytes, which need not be whole characters."""

    token_id: int
    text: str
    raw: bytes
    logprob: float
    rank: int


class Logprobs(msgspec.Struct, frozen=True, tag=True):
    """Scores at one generated token: the token itself, and the k most likely ones, best first."""

    chosen: TokenScore
    top: list[TokenScore]
    drafted: bool = False  # a draft had guessed it
    experts: list[list[int]] = []  # per layer, if asked for


AnswerEvent = Event | Logprobs


class Answer(msgspec.Struct):
    """A complete answer."""

    message: Message
    logprobs: list[Logprobs]


def fold_answer(events: Iterable[AnswerEvent]) -> Answer:
    """The complete answer that a stream of events amounts to."""
    texts: list[Event] = []
    logprobs: list[Logprobs] = []
    for event in events:
        if isinstance(event, Logprobs):
            logprobs.append(event)
        else:
            texts.append(event)
    return Answer(fold(texts), logprobs)


def token_score(tokenizer: Tokenizer, score: TokenLogprob) -> TokenScore:
    return TokenScore(
        score.token_id,
        tokenizer.token_text(score.token_id),
        tokenizer.token_bytes(score.token_id),
        score.logprob,
        score.rank,
    )


class AnswerStream:
    """One sequence's answer. Stop strings are looked for in the visible content, not in reasoning or arguments.

    Args:
        params: The request's; `stop`, `include_stop_str_in_output` and `logprobs` are read.
        parse_reasoning: False: reasoning comes out as content.
        parse_tools: False: tool calls come out as content.
        start_in_reasoning: The prompt ends inside an open think block.
        max_tool_calls: The answer ends before a further call; None: any number.

    Attributes:
        finish_reason: None while the sequence runs. A stop string or the call limit makes it "stop" here, above the
            engine; then `must_abort` is set and the caller has to abort the sequence there.
        stop_reason: The stop string, or the stop token id other than end-of-sequence, that ended the answer.
        token_ids: Generated ids that belong to the answer.
        num_tokens: The same, counting the token that stopped it.
        prompt_logprobs: If asked for, one entry per prompt token, from the sequence's first output; the first is None.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        *,
        parse_reasoning: bool = True,
        parse_tools: bool = True,
        start_in_reasoning: bool = False,
        max_tool_calls: int | None = None,
    ):
        self._tokenizer = tokenizer
        self._parser = StreamParser(
            tokenizer,
            parse_tools=parse_tools,
            parse_reasoning=parse_reasoning,
            start_in_reasoning=start_in_reasoning,
        )
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)
        self._num_top = params.logprobs
        self._max_tool_calls = max_tool_calls
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.must_abort = False
        self.token_ids: list[int] = []
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.num_drafted_tokens = 0
        self.num_accepted_tokens = 0
        self.num_tool_calls = 0
        self.prompt_logprobs: list[Logprobs | None] | None = None

    @property
    def num_reasoning_tokens(self) -> int:
        return self._parser.num_reasoning_tokens

    def push(self, output: EngineOutput) -> list[AnswerEvent]:
        """Feeds one engine output and returns the events that are certain now; none once the answer has ended."""
        events: list[AnswerEvent] = []
        if self.finish_reason is not None:
            return events
        self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        self.num_drafted_tokens, self.num_accepted_tokens = output.num_drafted_tokens, output.num_accepted_tokens
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = [self._scores(scores) if scores else None for scores in output.prompt_logprobs]
        # Token by token: what a speculative step brought after a stop string is no part of the answer.
        for token in output.tokens:
            self.token_ids.append(token.token_id)
            self.num_tokens += 1
            if self._num_top is not None and token.logprobs:
                events.append(self._scores(token.logprobs, token))
            self._filter(self._parser.push([token.token_id]), events)
            if self.must_abort:
                return events
        if output.finish_reason is not None:
            self._finish(output, events)
        return events

    def _finish(self, output: EngineOutput, events: list[AnswerEvent]) -> None:
        self._filter(self._parser.finish(), events)
        if self.must_abort:
            # The engine has ended the sequence itself; there is nothing left to abort.
            self.must_abort = False
            return
        self._append(events, Content(self._stops.flush()))
        self.finish_reason = output.finish_reason
        if output.stop_token_id is not None:
            self.num_tokens += 1
            if output.stop_token_id != self._tokenizer.eos_id:
                self.stop_reason = output.stop_token_id

    def _filter(self, parsed: list[Event], events: list[AnswerEvent]) -> None:
        """Passes content through the stop strings; ends the answer at a stop string or beyond the last allowed call."""
        for event in parsed:
            if isinstance(event, Content):
                text, stopped = self._stops.feed(event.text)
                self._append(events, Content(text))
                if stopped:
                    self._stop(self._stops.stopped_by)
                    return
                continue
            # Other events come after the content before them, so that nothing may be held back any longer.
            self._append(events, Content(self._stops.flush()))
            if isinstance(event, ToolCallStart):
                if self.num_tool_calls == self._max_tool_calls:
                    self._stop(None)
                    return
                self.num_tool_calls += 1
            self._append(events, event)

    def _stop(self, reason: str | None) -> None:
        self.finish_reason = "stop"
        self.stop_reason = reason
        self.must_abort = True

    def _append(self, events: list[AnswerEvent], event: Event) -> None:
        """Adds an event, joined with the one before if both are pieces of the same text."""
        last = events[-1] if events else None
        match last, event:
            case _, (Reasoning("") | Content("")):
                return
            case (Reasoning(before), Reasoning(text)) | (Content(before), Content(text)):
                events[-1] = type(event)(before + text)
            case ToolCallArguments(index, before), ToolCallArguments(same, text) if index == same:
                events[-1] = ToolCallArguments(index, before + text)
            case _:
                events.append(event)

    def _scores(self, scores: list[TokenLogprob], token: TokenOutput | None = None) -> Logprobs:
        chosen, *top = (token_score(self._tokenizer, score) for score in scores)
        return Logprobs(chosen, top, token.drafted, token.experts) if token else Logprobs(chosen, top)
