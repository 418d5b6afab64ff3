"""Prometheus metrics: a registry of our own, engine numbers read when scraped, timings observed per request."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ventoux.engine.client import EngineClient
from ventoux.errors import EngineDeadError

# A small model answers in milliseconds, a long prompt on a CPU takes minutes.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)


class Metrics:
    """All metrics of one server; names begin with `ventoux_` and end as dashboards know them."""

    def __init__(self, engine: EngineClient):
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engine))
        self._first_token = self._histogram("time_to_first_token_seconds", "Request accepted to first token.")
        self._between = self._histogram("inter_token_latency_seconds", "Time between two outputs of a request.")
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds", "Time after the first token, divided by the tokens after it."
        )
        self._total = self._histogram("e2e_request_latency_seconds", "Request accepted to last token.")
        self._decode = self._histogram("request_decode_time_seconds", "First to last token.")
        self._prompt = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._generated = self._histogram("request_generation_tokens", "New tokens of a request.", _TOKENS)
        self._finished = Counter(
            "ventoux_request_success", "Requests ended, by reason.", ["finished_reason"], registry=self.registry
        )

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"ventoux_{name}", text, buckets=buckets, registry=self.registry)

    def timer(self, num_prompt_tokens: int) -> RequestTimer:
        """Starts the clock of one engine request."""
        self._prompt.observe(num_prompt_tokens)
        return RequestTimer(self)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def finished(self, timer: RequestTimer, reason: str) -> None:
        self._finished.labels(reason).inc()
        self._total.observe(timer.total_seconds)
        self._generated.observe(timer.num_tokens)
        if timer.num_tokens > 1:
            self._decode.observe(timer.decode_seconds)
            self._per_token.observe(timer.decode_seconds / (timer.num_tokens - 1))

    def output(self, seconds: float, *, first: bool) -> None:
        (self._first_token if first else self._between).observe(seconds)


class RequestTimer:
    """The clock of one engine request, over all of its sequences."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._start = time.perf_counter()
        self._first = self._last = self._start
        self.num_tokens = 0

    def tokens(self, count: int) -> None:
        """`count` tokens have just arrived."""
        if not count:
            return
        now = time.perf_counter()
        first = self.num_tokens == 0
        if first:
            self._first = now
        self._metrics.output(now - self._last, first=first)
        self._last = now
        self.num_tokens += count

    def finish(self, reason: str) -> None:
        self._metrics.finished(self, reason)

    @property
    def first_token_seconds(self) -> float:
        return self._first - self._start

    @property
    def decode_seconds(self) -> float:
        return self._last - self._first

    @property
    def total_seconds(self) -> float:
        return time.perf_counter() - self._start


class _EngineCollector(Collector):
    """Reads the engine's latest snapshot at every scrape; a dead engine shows as `ventoux_engine_up 0`."""

    def __init__(self, engine: EngineClient):
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        # Otherwise registering would collect once, before the engine is up.
        return []

    def collect(self) -> Iterable[Metric]:
        try:
            stats = self._engine.stats()
        except EngineDeadError:
            yield GaugeMetricFamily("ventoux_engine_up", "Whether the engine runs.", 0)
            return
        yield GaugeMetricFamily("ventoux_engine_up", "Whether the engine runs.", 1)
        used = stats.num_pages - stats.num_free_pages
        for name, text, value in (
            ("num_requests_running", "Sequences in the running batch.", stats.num_running),
            ("num_requests_waiting", "Sequences waiting for room.", stats.num_waiting),
            ("kv_cache_usage_perc", "Share of cache pages in use, 0 to 1.", used / max(stats.num_pages, 1)),
        ):
            yield GaugeMetricFamily(f"ventoux_{name}", text, value)
        for name, text, value in (
            ("num_preemptions", "Sequences put back for lack of pages.", stats.num_preemptions),
            ("num_steps", "Engine steps.", stats.num_steps),
            ("prompt_tokens", "Prompt tokens computed.", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated.", stats.generation_tokens),
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_cache_queries),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits),
            ("images_encoded", "Images encoded.", stats.num_images_encoded),
            ("request_failures", "Requests that the engine gave up on.", stats.num_failed),
            (
                "spec_decode_num_drafts",
                "Times that a sequence was computed with guesses.",
                stats.spec_decode_num_drafts,
            ),
            ("spec_decode_num_draft_tokens", "Tokens guessed.", stats.spec_decode_num_draft_tokens),
            ("spec_decode_num_accepted_tokens", "Guesses that came true.", stats.spec_decode_num_accepted_tokens),
        ):
            yield CounterMetricFamily(f"ventoux_{name}", text, value)
        by_place = CounterMetricFamily(
            "ventoux_spec_decode_num_accepted_tokens_per_pos", "Guesses that came true, by place.", labels=["position"]
        )
        for place, count in enumerate(stats.spec_decode_num_accepted_tokens_per_pos):
            by_place.add_metric([str(place)], count)
        yield by_place
