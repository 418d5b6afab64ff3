"""What one API key may use: requests at a time, requests per minute, tokens per minute; 429 beyond that.

Minutes are not counted by the clock: an allowance refills evenly, and is full after a minute without use. Tokens are
charged as they become known (the prompt's when it reaches the engine, the answer's at its end), so an allowance can
fall below zero; then requests wait until it is above again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ventoux.server.errors import ApiError

Clock = Callable[[], float]


@dataclass(frozen=True)
class Limits:
    """None: without a limit."""

    max_concurrent_requests: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class Allowance:
    """`per_minute` units that refill evenly."""

    def __init__(self, per_minute: int, clock: Clock):
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()

    @property
    def left(self) -> float:
        now = self._clock()
        self._level = min(self._level + (now - self._at) * self.per_minute / 60, self.per_minute)
        self._at = now
        return self._level

    def take(self, count: int) -> None:
        self._level = self.left - count

    def seconds_until(self, level: float) -> float:
        return max(level - self.left, 0.0) * 60 / self.per_minute

    def headers(self, unit: str) -> dict[str, str]:
        """As OpenAI has them: the limit, what is left, and when it is full again."""
        return {
            f"x-ratelimit-limit-{unit}": str(self.per_minute),
            f"x-ratelimit-remaining-{unit}": str(max(math.floor(self.left), 0)),
            f"x-ratelimit-reset-{unit}": _duration(self.seconds_until(self.per_minute)),
        }


class Account:
    """The use of one key; lives in one event loop."""

    def __init__(self, limits: Limits, clock: Clock = time.monotonic):
        self.limits = limits
        self.num_running = 0
        requests, tokens = limits.requests_per_minute, limits.tokens_per_minute
        self._requests = None if requests is None else Allowance(requests, clock)
        self._tokens = None if tokens is None else Allowance(tokens, clock)

    def headers(self) -> dict[str, str]:
        """The `x-ratelimit-` headers of an answer; none without a limit."""
        requests = {} if self._requests is None else self._requests.headers("requests")
        return requests | ({} if self._tokens is None else self._tokens.headers("tokens"))

    def charge(self, num_tokens: int) -> None:
        if self._tokens is not None:
            self._tokens.take(num_tokens)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Holds a place for one request. Raises ApiError 429 if a limit is reached; that request counts for nothing."""
        most = self.limits.max_concurrent_requests
        if most is not None and self.num_running >= most:
            raise self._refusal(f"This API key has {most} request(s) running, as many as it may.", 1.0)
        if self._requests is not None and self._requests.left < 1:
            message = f"This API key may make {self._requests.per_minute} request(s) per minute."
            raise self._refusal(message, self._requests.seconds_until(1))
        if self._tokens is not None and self._tokens.left <= 0:
            message = f"This API key may use {self._tokens.per_minute} token(s) per minute."
            raise self._refusal(message, self._tokens.seconds_until(1))
        if self._requests is not None:
            self._requests.take(1)
        with self.held():
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds a place, whatever the limits: for what an admitted request leaves behind."""
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1

    def _refusal(self, message: str, seconds: float) -> ApiError:
        # The header is in whole seconds; OpenAI's clients prefer the finer one.
        waits = {"retry-after": str(max(math.ceil(seconds), 1)), "retry-after-ms": str(math.ceil(seconds * 1000))}
        return ApiError(429, message, code="rate_limit_exceeded", headers=waits | self.headers())


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 0s, 120ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms" if seconds else "0s"
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{rest:.4g}s"
