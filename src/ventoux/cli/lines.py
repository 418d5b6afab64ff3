"""JSON lines: requests in, results out, in the same order. A line that is wrong gets an error for its result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec

from ventoux.engine.request import SamplingParams
from ventoux.errors import InvalidRequestError, VentouxError
from ventoux.llm import BatchItem, CompletionOutput, RequestOutput
from ventoux.text.answer import Logprobs, TokenScore
from ventoux.text.stream_parser import new_tool_call_id

_SAMPLING = frozenset(SamplingParams.__struct_fields__)
_CHAT_ONLY = ("tools", "reasoning_effort", "continue_final_message")
_FIELDS = frozenset({"id", "prompt", "messages", *_CHAT_ONLY}) | _SAMPLING


@dataclass(frozen=True)
class Line:
    """One line: its id (its number, if it brought none) and either what to run or what is wrong with it."""

    id: Any
    item: BatchItem | None
    error: VentouxError | None = None


def read_lines(file: Iterable[bytes], defaults: dict[str, Any]) -> list[Line]:
    """Reads requests; blank lines are skipped. `defaults` holds for fields that a line does not bring."""
    lines = []
    for number, content in enumerate(file, 1):
        if not content.strip():
            continue
        line_id: Any = number
        try:
            fields = _decode(content, f"line {number}")
            line_id = fields.get("id", number)
            lines.append(Line(line_id, _item(fields, defaults, f"line {number}")))
        except InvalidRequestError as error:
            lines.append(Line(line_id, None, error))
    return lines


def _decode(content: bytes, where: str) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"{where}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequestError(f"{where}: must be a JSON object.")
    return {name: value for name, value in fields.items() if value is not None}


def _item(fields: dict[str, Any], defaults: dict[str, Any], where: str) -> BatchItem:
    for name in fields:
        if name not in _FIELDS:
            raise InvalidRequestError(f"{where}: unknown field {name!r}.", param=name)
    if ("prompt" in fields) == ("messages" in fields):
        raise InvalidRequestError(f'{where}: needs either "prompt" or "messages".', param="prompt")
    sampling = {name: value for name, value in {**defaults, **fields}.items() if name in _SAMPLING}
    params = _params(sampling, where)
    if "messages" in fields:
        options = {name: value for name, value in {**defaults, **fields}.items() if name in _CHAT_ONLY}
        if not isinstance(fields["messages"], list):
            raise InvalidRequestError(f"{where}: messages must be a list.", param="messages")
        return BatchItem(fields["messages"], params, options)
    for name in _CHAT_ONLY:
        if name in fields:
            raise InvalidRequestError(f"{where}: {name} goes with messages, not with a prompt.", param=name)
    return BatchItem(_prompt(fields["prompt"], where), params)


def _prompt(prompt: Any, where: str) -> str | list[int]:
    if prompt == []:
        raise InvalidRequestError(f"{where}: prompt holds no token ids.", param="prompt")
    try:
        return msgspec.convert(prompt, str | list[int])
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"{where}: prompt must be text or a list of token ids.", param="prompt") from error


def _params(sampling: dict[str, Any], where: str) -> SamplingParams:
    if isinstance(sampling.get("stop"), str):
        sampling["stop"] = [sampling["stop"]]
    for name, value in sampling.items():
        try:
            # One at a time, so that the message can name the field; JSON spells the keys of logit_bias as text.
            msgspec.convert({name: value}, SamplingParams, str_keys=True)
        except msgspec.ValidationError as error:
            reason = str(error).partition(" - at ")[0]
            raise InvalidRequestError(f"{where}: {name}: {reason[:1].lower()}{reason[1:]}.", param=name) from error
    return msgspec.convert(sampling, SamplingParams, str_keys=True)


class ResultWriter:
    """Writes one JSON object per line, in the order of the lines, each as soon as all before it are written.

    Attributes:
        num_done: Lines with a result, written or held back; wrong lines have one from the start.
        num_tokens: Tokens generated, in lines that are written.
        num_failed: Lines written that hold an error.
    """

    def __init__(self, target: BinaryIO, lines: Sequence[Line]):
        self._target = target
        self._lines = lines
        self._runnable = [number for number, line in enumerate(lines) if line.item is not None]
        self._held: dict[int, RequestOutput | VentouxError] = {
            number: line.error for number, line in enumerate(lines) if line.error is not None
        }
        self._next = 0
        self.num_done = len(self._held)
        self.num_tokens = self.num_failed = 0

    def put(self, position: int, result: RequestOutput | VentouxError) -> None:
        """Takes the result of the line at `position` among those that could be run."""
        self._held[self._runnable[position]] = result
        self.num_done += 1
        self.flush()

    def flush(self) -> None:
        """Writes what follows the lines that are written, and sees to it that it survives whatever comes."""
        while self._next in self._held:
            self._write(self._next)
            self._next += 1
        self._target.flush()

    def rescue(self) -> None:
        """Writes all results that there are, when no others will come; their ids say whose they are."""
        for number in sorted(self._held):
            self._write(number)
        self._target.flush()

    def _write(self, number: int) -> None:
        line, result = self._lines[number], self._held.pop(number)
        if isinstance(result, VentouxError):
            self.num_failed += 1
            row = {"id": line.id, "error": _error(result)}
        else:
            row = {"id": line.id, **_answer_row(result)}
            self.num_tokens += row["usage"]["completion_tokens"]
        self._target.write(msgspec.json.encode(row) + b"\n")


def _error(error: VentouxError) -> dict[str, Any]:
    return {
        "message": str(error),
        "param": getattr(error, "param", None),
        "code": getattr(error, "code", None),
    }


def _answer_row(result: RequestOutput) -> dict[str, Any]:
    """The first answer's fields; with n > 1 all answers are under "outputs" too."""
    answers = [_answer(output) for output in result.outputs]
    num_prompt, num_new = len(result.prompt_token_ids), sum(len(output.token_ids) for output in result.outputs)
    row = {
        **answers[0],
        "usage": {"prompt_tokens": num_prompt, "completion_tokens": num_new, "total_tokens": num_prompt + num_new},
    }
    if len(answers) > 1:
        row["outputs"] = answers
    if result.prompt_logprobs is not None:
        row["prompt_logprobs"] = [scores and _scores(scores) for scores in result.prompt_logprobs]
    return row


def _answer(output: CompletionOutput) -> dict[str, Any]:
    calls = [
        {"id": new_tool_call_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in output.message.tool_calls
    ]
    answer: dict[str, Any] = {
        "text": output.text,
        "reasoning": output.message.reasoning or None,
        "tool_calls": calls,
        "finish_reason": "tool_calls" if calls and output.finish_reason == "stop" else output.finish_reason,
    }
    if output.logprobs is not None:
        answer["logprobs"] = [_scores(scores) for scores in output.logprobs]
    return answer


def _scores(scores: Logprobs) -> dict[str, Any]:
    return {**_score(scores.chosen), "top": [_score(score) for score in scores.top]}


def _score(score: TokenScore) -> dict[str, Any]:
    return {"token_id": score.token_id, "token": score.text, "logprob": score.logprob, "rank": score.rank}
