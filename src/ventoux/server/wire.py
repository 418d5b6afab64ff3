"""Pieces of answers that several routes write alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ventoux.text.answer import AnswerStream, Logprobs, TokenScore

# JSON has no infinity; this is what OpenAI writes for a token outside of all that was considered.
MIN_LOGPROB = -9999.0
# Of the header `x-warning`, in characters. Node takes 16 KiB of headers together, nginx 4 KiB, and an agent's history
# may earn a warning for each of a thousand items.
MAX_WARNING = 1024


def usage(num_prompt_tokens: int, streams: Sequence[AnswerStream]) -> dict[str, Any]:
    """Token counts of a request so far. A prompt counts once, however many answers it gets.

    Ours alone: `drafted_tokens` were guessed by a draft, and `accepted_tokens` of them came true.
    """
    completion = sum(stream.num_tokens for stream in streams)
    reasoning = sum(stream.num_reasoning_tokens for stream in streams)
    cached = max((stream.num_cached_tokens for stream in streams), default=0)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": num_prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "drafted_tokens": sum(stream.num_drafted_tokens for stream in streams),
            "accepted_tokens": sum(stream.num_accepted_tokens for stream in streams),
        },
    }


def add_usage(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sum of several usages, key by key."""
    total: dict[str, Any] = {}
    for key, value in parts[0].items():
        values = [part[key] for part in parts]
        total[key] = add_usage(values) if isinstance(value, dict) else sum(values)
    return total


def chat_logprobs(entries: Sequence[Logprobs], details: Sequence[str] = ()) -> dict[str, Any]:
    """`details`, ours alone: further attributes of Logprobs that entries tell."""
    content = [{**_score(entry.chosen), "top_logprobs": [_score(top) for top in entry.top]} for entry in entries]
    for written, entry in zip(content, entries, strict=True):
        written.update((name, getattr(entry, name)) for name in details)
    return {"content": content, "refusal": None}


def logprob(score: TokenScore) -> float:
    return max(score.logprob, MIN_LOGPROB)


def _score(score: TokenScore) -> dict[str, Any]:
    return {"token": score.text, "logprob": logprob(score), "bytes": list(score.raw)}


def warn(headers: dict[str, str], text: str) -> None:
    """Tells the client that its request is honoured in another way than asked; what is too much becomes "..."."""
    before = headers.get("x-warning", "")
    if len(before) + len(text) > MAX_WARNING:
        text = "..."
    if not before.endswith("..."):
        headers["x-warning"] = f"{before}; {text}" if before else text


def prompt_logprobs(entries: Sequence[Logprobs | None]) -> list[dict[str, Any] | None]:
    """vLLM's form: per token of the prompt, the scores of it and of the most likely ones by id; the first has none."""
    return [
        {
            str(score.token_id): {"logprob": logprob(score), "rank": score.rank, "decoded_token": score.text}
            for score in (entry.chosen, *entry.top)
        }
        if entry is not None
        else None
        for entry in entries
    ]
