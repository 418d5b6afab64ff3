"""Prometheus metrics: a registry of our own, engine numbers read when scraped, timings observed per request."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ventoux.engine.client import EngineClient
from ventoux.engine.request import EngineStats
from ventoux.errors import EngineDeadError
from ventoux.server.context import current

# A small model answers in milliseconds, a long prompt on a CPU takes minutes.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
_OWN = "ventoux_"
# Ours alone: vLLM has no such metric, or another one of that name.
_NOT_VLLM = (
    "engine_up",
    "engine_restarts",
    "num_steps",
    "images_encoded",
    "request_failures",
    "http_requests",
    "key_tokens",
)


class Metrics:
    """All metrics of one server: `ventoux_...`, and those that vLLM has as `vllm:...` too, for existing dashboards."""

    def __init__(self, engine: EngineClient, model: str = "ventoux"):
        """`model`: the label `model_name` of the metrics under vLLM's names."""
        self._own = CollectorRegistry()
        self._own.register(_EngineCollector(engine))
        self._first_token = self._histogram("time_to_first_token_seconds", "Request accepted to first token.")
        self._between = self._histogram("inter_token_latency_seconds", "Time between two outputs of a request.")
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds", "Time after the first token, divided by the tokens after it."
        )
        self._total = self._histogram("e2e_request_latency_seconds", "Request accepted to last token.")
        self._queue = self._histogram("request_queue_time_seconds", "Request accepted to its first step.")
        self._prefill = self._histogram("request_prefill_time_seconds", "First step to first token.")
        self._decode = self._histogram("request_decode_time_seconds", "First to last token.")
        self._inference = self._histogram("request_inference_time_seconds", "First step to last token.")
        self._prompt = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._generated = self._histogram("request_generation_tokens", "New tokens of a request.", _TOKENS)
        self._longest = self._histogram(
            "request_max_num_generation_tokens", "New tokens of a request's longest answer.", _TOKENS
        )
        self._finished = self._counter("request_success", "Requests ended, by reason.", "finished_reason")
        self._answered = self._counter("http_requests", "HTTP requests answered, by path and status.", "path", "status")
        self._by_key = self._counter("key_tokens", "Tokens by the name of the API key that paid for them.", "key")
        self.registry = CollectorRegistry()
        self.registry.register(_BothNames(self._own, model))

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(_OWN + name, text, buckets=buckets, registry=self._own)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(_OWN + name, text, labels, registry=self._own)

    def timer(self, num_prompt_tokens: int) -> RequestTimer:
        """Starts the clock of one engine request, whose prompt the current HTTP request's key pays for."""
        self._prompt.observe(num_prompt_tokens)
        self.charge(num_prompt_tokens)
        return RequestTimer(self, num_prompt_tokens)

    def charge(self, num_tokens: int) -> None:
        """Counts tokens for the key of the current HTTP request."""
        context = current()
        context.charge(num_tokens)
        if context.key is not None:
            self._by_key.labels(context.key).inc(num_tokens)

    def answered(self, path: str, status: int) -> None:
        """One HTTP request has ended. `path` is one of few: every other one is a series that stays."""
        self._answered.labels(path, status).inc()

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def started(self, queue_seconds: float, first_token_seconds: float) -> None:
        self._queue.observe(queue_seconds)
        self._prefill.observe(max(first_token_seconds - queue_seconds, 0.0))

    def finished(self, timer: RequestTimer, reason: str, longest: int) -> None:
        self._finished.labels(reason).inc()
        self._total.observe(timer.total_seconds)
        self._generated.observe(timer.num_tokens)
        self._longest.observe(longest)
        if timer.queue_seconds is not None:
            self._inference.observe(max(timer.total_seconds - timer.queue_seconds, 0.0))
        if timer.num_tokens > 1:
            self._decode.observe(timer.decode_seconds)
            self._per_token.observe(timer.decode_seconds / (timer.num_tokens - 1))

    def output(self, seconds: float, *, first: bool) -> None:
        (self._first_token if first else self._between).observe(seconds)


class RequestTimer:
    """The clock of one engine request, over all of its sequences."""

    def __init__(self, metrics: Metrics, num_prompt_tokens: int):
        self._metrics = metrics
        self._start = time.perf_counter()
        self._first = self._last = self._start
        self.num_prompt_tokens = num_prompt_tokens
        self.num_tokens = 0
        self.queue_seconds: float | None = None

    def started(self, queue_seconds: float) -> None:
        """The first output is here; the engine says how long the request had waited for its first step."""
        if self.queue_seconds is None:
            self.queue_seconds = queue_seconds
            self._metrics.started(queue_seconds, time.perf_counter() - self._start)

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

    def finish(self, reason: str, num_cached_tokens: int = 0, longest: int = 0) -> None:
        """The request has ended: its numbers go into the metrics, the log line, and what the key has used.

        `longest`: tokens of its longest answer.
        """
        self._metrics.finished(self, reason, longest)
        self._metrics.charge(self.num_tokens)
        context = current()
        context.finished(reason, self.num_prompt_tokens, num_cached_tokens, self.num_tokens)
        if context.queue_seconds is None:
            context.queue_seconds = self.queue_seconds
        if context.first_token_seconds is None and self.num_tokens:
            context.first_token_seconds = self._first - context.start

    @property
    def first_token_seconds(self) -> float:
        return self._first - self._start

    @property
    def decode_seconds(self) -> float:
        return self._last - self._first

    @property
    def total_seconds(self) -> float:
        return time.perf_counter() - self._start


class _BothNames(Collector):
    """Every metric under our name; then those that vLLM has under its name, with its labels."""

    def __init__(self, own: CollectorRegistry, model: str):
        self._own = own
        self._labels = {"model_name": model, "engine": "0"}

    def describe(self) -> Iterable[Metric]:
        # Otherwise registering would collect once, before the engine is up.
        return []

    def collect(self) -> Iterable[Metric]:
        families = list(self._own.collect())
        yield from families
        for family in families:
            if family.name.removeprefix(_OWN) not in _NOT_VLLM:
                yield self._renamed(family)

    def _renamed(self, family: Metric) -> Metric:
        renamed = Metric(family.name.replace(_OWN, "vllm:", 1), family.documentation, family.type)
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                name = sample.name.replace(_OWN, "vllm:", 1)
                renamed.add_sample(name, {**self._labels, **sample.labels}, sample.value)
        return renamed


class _EngineCollector(Collector):
    """Reads the engine's latest snapshot at every scrape; a dead engine shows as `ventoux_engine_up 0`."""

    def __init__(self, engine: EngineClient):
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        try:
            stats = self._engine.stats()
        except EngineDeadError:
            yield GaugeMetricFamily("ventoux_engine_up", "Whether the engine runs.", 0)
            return
        yield GaugeMetricFamily("ventoux_engine_up", "Whether the engine runs.", 0 if stats.is_silent else 1)
        yield from _families(stats)


def _families(stats: EngineStats) -> Iterator[Metric]:
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
        ("engine_restarts", "Times that the engine process was started anew.", stats.num_engine_restarts),
        ("request_failures", "Requests that the engine gave up on.", stats.num_failed),
        ("spec_decode_num_drafts", "Times that a sequence was computed with guesses.", stats.spec_decode_num_drafts),
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
