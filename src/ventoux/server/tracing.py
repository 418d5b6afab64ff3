"""OpenTelemetry traces: one span per request, under the names that the conventions for generative AI give.

An extra (`pip install ventoux[otel]`), imported only when an endpoint is configured. Spans hold numbers and names,
never prompts or answers. They are sent in the background, and dropped when nobody takes them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from ventoux.config import ServerConfig
from ventoux.errors import ConfigError
from ventoux.server.context import RequestContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}
_SAMPLING = {
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "n": "choice.count",
}
# Probes come every few seconds, and nobody looks for them in traces.
_UNTRACED = frozenset({"/health", "/ready", "/metrics"})
# A collector that is gone delays the server's end so long; its spans are lost.
EXPORT_SECONDS = 3.0


def make_tracer(config: ServerConfig) -> Tracer | None:
    """None unless an endpoint is configured. Raises as `make_exporter`."""
    exporter = make_exporter(config)
    return None if exporter is None else Tracer(exporter)


def make_exporter(config: ServerConfig) -> SpanExporter | None:
    """None unless an endpoint is configured. Raises ConfigError if it is no URL, or the extra is not installed."""
    endpoint = config.otlp_traces_endpoint
    if not endpoint:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--otlp-traces-endpoint {endpoint}: give a URL such as http://127.0.0.1:4318.")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as e:
        raise ConfigError("--otlp-traces-endpoint needs an extra: pip install 'ventoux[otel]'.") from e
    # A collector's address is enough; what has a path is taken as it is.
    url = endpoint if parts.path.strip("/") else endpoint.rstrip("/") + "/v1/traces"
    return OTLPSpanExporter(endpoint=url, timeout=EXPORT_SECONDS)


class Tracer:
    """Starts a span with a request and ends it with what became of it."""

    def __init__(self, exporter: SpanExporter, *, batched: bool = True):
        """`batched`: spans are sent in the background; otherwise at once, for tests."""
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, which the SDK reads, win.
        resource = Resource.create()
        if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "ventoux"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor((BatchSpanProcessor if batched else SimpleSpanProcessor)(exporter))
        self._tracer = self._provider.get_tracer("ventoux")

    def begin(self, scope: Scope, path: str) -> Span | None:
        """A span below the caller's, if a `traceparent` names it; None for what is not traced."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if path in _UNTRACED:
            return None
        headers = Headers(scope=scope)
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        parent = TraceContextTextMapPropagator().extract(carrier)
        method = scope["method"]
        attributes = {"http.request.method": method, "url.path": path[:200]}
        # Paths that nobody serves are a client's text: no name for a span.
        name = f"{method} {path}" if path in _OPERATIONS else method
        return self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)

    def end(self, span: Span, path: str, status: int, context: RequestContext) -> None:
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("http.response.status_code", status)
        span.set_attribute("ventoux.request_id", context.request_id)
        if context.key is not None:
            span.set_attribute("ventoux.key", context.key)
        if status >= 500 or "error" in context.reasons:
            span.set_attribute("error.type", str(status))
            span.set_status(Status(StatusCode.ERROR))
        if path in _OPERATIONS:
            _describe(span, _OPERATIONS[path], context)
        span.end()

    def close(self) -> None:
        """Sends what is left; waits for it as long as one export may take."""
        self._provider.shutdown()


def _describe(span: Span, operation: str, context: RequestContext) -> None:
    model = context.notes.get("model")
    span.update_name(f"{operation} {model}" if model else operation)
    span.set_attributes({"gen_ai.operation.name": operation, "gen_ai.provider.name": "ventoux"})
    if model:
        span.set_attribute("gen_ai.request.model", model)
    for name, value in context.sampling.items():
        span.set_attribute(f"gen_ai.request.{_SAMPLING.get(name, name)}", value)
    if not context.reasons:
        return
    span.set_attributes(
        {
            "gen_ai.usage.input_tokens": context.num_prompt_tokens,
            "gen_ai.usage.output_tokens": context.num_new_tokens,
            "gen_ai.usage.cache_read.input_tokens": context.num_cached_tokens,
            "gen_ai.response.finish_reasons": context.reasons,
            "gen_ai.latency.e2e": time.perf_counter() - context.start,
        }
    )
    for name, seconds in (
        ("time_in_queue", context.queue_seconds),
        ("time_to_first_token", context.first_token_seconds),
    ):
        if seconds is not None:
            span.set_attribute(f"gen_ai.latency.{name}", seconds)
