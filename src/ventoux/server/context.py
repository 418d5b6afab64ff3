"""What is known of one HTTP request so far: for its log line, its trace, and the API key that pays for it.

A context variable carries it, so that the layers around the routes and the reader of the engine's outputs can write
into one record without every route passing it on. Tasks that a request starts inherit it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

# Of a body, what log lines and traces tell. Never a prompt.
_NOTED = ("model", "stream", "user", "metadata")
_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "max_output_tokens", "seed", "n")
_MAX_TEXT = 200
_MAX_PAIRS = 16


def _nobody_pays(num_tokens: int) -> None:
    pass


@dataclass(eq=False)
class RequestContext:
    """Counts are sums over the engine requests of one HTTP request; times are in seconds since `start`."""

    request_id: str = ""
    start: float = field(default_factory=time.perf_counter)
    # The name of the API key; None: none was needed.
    key: str | None = None
    charge: Callable[[int], None] = _nobody_pays
    # Holds a place of that key for work that goes on after the answer.
    hold: Callable[[], AbstractContextManager[None]] = nullcontext
    notes: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, float] = field(default_factory=dict)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_new_tokens: int = 0
    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    reasons: list[str] = field(default_factory=list)

    def note_body(self, body: Mapping[str, Any]) -> None:
        """Keeps who asks and how, cut to a length that no log line suffers from."""
        for name in _NOTED:
            if (value := _short(body.get(name))) is not None:
                self.notes[name] = value
        for name in _SAMPLING:
            value = body.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                self.sampling[name] = value

    def finished(self, reason: str, num_prompt_tokens: int, num_cached_tokens: int, num_new_tokens: int) -> None:
        """One engine request has ended."""
        self.reasons.append(reason)
        self.num_prompt_tokens += num_prompt_tokens
        self.num_cached_tokens += num_cached_tokens
        self.num_new_tokens += num_new_tokens


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    if isinstance(value, Mapping):
        pairs = list(value.items())[:_MAX_PAIRS]
        return {k[:_MAX_TEXT]: v[:_MAX_TEXT] for k, v in pairs if isinstance(k, str) and isinstance(v, str)} or None
    return value if isinstance(value, bool) else None


_CURRENT: ContextVar[RequestContext | None] = ContextVar("ventoux_request", default=None)


def current() -> RequestContext:
    """The request that this task works for; outside of all requests one that nobody reads."""
    return _CURRENT.get() or RequestContext()


@contextmanager
def entered(context: RequestContext) -> Iterator[RequestContext]:
    """`context` is the current one until the end of the block."""
    token = _CURRENT.set(context)
    try:
        yield context
    finally:
        _CURRENT.reset(token)
