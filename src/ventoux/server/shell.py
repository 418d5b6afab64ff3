"""Layers around all routes, as plain ASGI: ids, errors and one log line; keys; admission.

They judge `scope["path"]`, which is what the router judges. A URL rebuilt from the Host header is not that.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ventoux.server.context import RequestContext, current, entered
from ventoux.server.errors import ApiError, to_api_error
from ventoux.server.generate import new_request_id
from ventoux.server.keys import KeyRing
from ventoux.server.logs import RequestLine
from ventoux.server.metrics import Metrics
from ventoux.server.service import Service
from ventoux.server.sse import ClientGoneError
from ventoux.server.tracing import Tracer

logger = logging.getLogger(__name__)
PUBLIC_PATHS = frozenset({"/", "/health", "/ready", "/favicon.ico", "/status"})
# The files of the pages at / and /status: they ask for the key.
PUBLIC_FOLDER = "/page/"
# The operator's, once there is a key of the operator's.
ADMIN_PATHS = frozenset({"/metrics", "/docs", "/openapi.json"})
GENERATING_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"})
# Clients of these expect errors in Anthropic's form.
ANTHROPIC_PATHS = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
# Clients send about twenty; a proxy in front adds a few.
MAX_HEADERS = 128
MAX_HEADER_BYTES = 64 * 1024
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def route_path(scope: Scope) -> str:
    """The path below the prefix that a proxy in front adds."""
    path, root = scope["path"], scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def error_response(error: Exception, scope: Scope) -> Response:
    """The answer to a request that failed, as this route's clients expect it."""
    answer = to_api_error(error)
    return answer.anthropic_response() if route_path(scope) in ANTHROPIC_PATHS else answer.response()


class RequestLayer:
    """Gives every answer an `x-request-id`, answers HEAD like GET without a body; one log line and span per request."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str], tracer: Tracer | None = None):
        """`paths`: those that metrics name; all others are "other"."""
        self._app = app
        self._paths = frozenset(paths)
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        context = RequestContext(given if _REQUEST_ID.fullmatch(given) else new_request_id("req-"))
        path, method = route_path(scope), scope["method"]
        span = self._tracer.begin(scope, path) if self._tracer else None
        # nginx's number for a client that left before its answer began.
        status = 499
        notes: dict[str, str] = {}

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                notes.update(_notes(message))
                # A new list: an answer that is sent many times shares its own. Anthropic's clients read `request-id`.
                names = (b"x-request-id", b"request-id") if path in ANTHROPIC_PATHS else (b"x-request-id",)
                ids = [(name, context.request_id.encode()) for name in names]
                message = {**message, "headers": [*message["headers"], *ids]}
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        with entered(context):
            try:
                await self._app({**scope, "method": "GET" if method == "HEAD" else method}, receive, send_with_id)
            finally:
                if self._tracer and span:
                    self._tracer.end(span, path, status, context)
                seconds = time.perf_counter() - context.start
                self._metrics.answered(path if path in self._paths else "other", status)
                logger.info(RequestLine(_log_fields(scope, status, seconds, context) | notes))


def _notes(start: Message) -> dict[str, str]:
    """What an answer's headers tell its client, for the log: what was ignored, and what was done otherwise."""
    headers = Headers(raw=start["headers"])
    names = {"ignored_fields": "x-ignored-fields", "warning": "x-warning"}
    return {field: headers[name] for field, name in names.items() if name in headers}


def _log_fields(scope: Scope, status: int, seconds: float, context: RequestContext) -> dict[str, Any]:
    client = scope.get("client")
    fields: dict[str, Any] = {
        "request_id": context.request_id,
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": status,
        "seconds": round(seconds, 3),
        "key": context.key,
        **context.notes,
    }
    if context.reasons:
        fields |= {
            "finish": ",".join(dict.fromkeys(context.reasons)),
            "prompt_tokens": context.num_prompt_tokens,
            "cached_tokens": context.num_cached_tokens,
            "new_tokens": context.num_new_tokens,
        }
        for name in ("queue_seconds", "first_token_seconds"):
            if (value := getattr(context, name)) is not None:
                fields[name] = round(value, 3)
    return {name: value for name, value in fields.items() if value is not None}


class ErrorLayer:
    """Turns every exception into an error answer, as long as no answer has begun."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # of an ASGI server that runs the application itself
            await self._app(scope, receive, send)
            return
        begun = False

        async def noting_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            _check_headers(scope)
            await self._app(scope, receive, noting_send)
        except ClientGoneError:
            pass
        except Exception as e:
            if begun or scope["type"] != "http":
                raise
            await error_response(e, scope)(scope, receive, send)


def _check_headers(scope: Scope) -> None:
    """Raises ApiError for headers that are too many, or for a request that a proxy in front may read otherwise."""
    raw = scope["headers"]
    if scope.get("http_version", "1.1") not in ("1.0", "1.1", "2"):
        raise ApiError(400, "HTTP/1.1 is spoken here.", code="invalid_request", headers={"connection": "close"})
    if len(raw) > MAX_HEADERS or sum(len(name) + len(value) for name, value in raw) > MAX_HEADER_BYTES:
        message = f"At most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together are taken."
        raise ApiError(431, message, code="headers_too_large", headers={"connection": "close"})
    headers = Headers(scope=scope)
    if "content-length" in headers and "transfer-encoding" in headers:
        # A proxy may see another end of this request than we do: nothing after it can be trusted.
        message = "Content-Length and Transfer-Encoding exclude each other."
        raise ApiError(400, message, headers={"connection": "close"})


class HostLayer:
    """On a loopback address without keys: refuses names that only a browser led astray would use.

    A web page may give its own name this machine's address once it is loaded (DNS rebinding). Its scripts then talk to
    us as to their own server, and only the Host header tells. Such names are registered ones, so they have a dot.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]):
        self._app = app
        self._allowed = frozenset(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_local(Headers(scope=scope).get("host", "")):
            message = "This server answers to names of this machine only; its operator may add --allowed-hosts NAME."
            raise ApiError(403, message, code="host_not_allowed")
        await self._app(scope, receive, send)

    def _is_local(self, host: str) -> bool:
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        name = name.lower().rstrip(".")
        return "." not in name or name.endswith(".localhost") or name in self._allowed or _is_address(name)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class KeyLayer:
    """Asks for an API key everywhere but on the public paths, and holds each key to its limits."""

    def __init__(self, app: ASGIApp, keys: KeyRing):
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope) if scope["type"] == "http" else None
        public = path is not None and (path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDER))
        if public or scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        entry = self._keys.find(_given_keys(scope)) if path is not None else None
        if entry is None:
            raise _unauthorized(
                "A valid API key is needed: send it as Authorization: Bearer KEY, or as x-api-key: KEY."
            )
        key, account = entry
        context = current()
        context.key, context.charge, context.hold = key.name, account.charge, account.held
        if path in ADMIN_PATHS and self._keys.has_admin and not key.is_admin:
            raise _unauthorized("This path needs a key of the server's operator.")
        with account.admitted() if scope["method"] == "POST" else nullcontext():
            await self._app(scope, receive, _with_headers(send, account.headers()))


def _given_keys(scope: Scope) -> list[str]:
    headers = Headers(scope=scope)
    kind, _, bearer = headers.get("authorization", "").partition(" ")
    # Clients that know both headers may send another server's key in one of them.
    return [bearer.strip() if kind.lower() == "bearer" else "", headers.get("x-api-key", "")]


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    added = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def send_with_headers(message: Message) -> None:
        if added and message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return send_with_headers


class AdmissionLayer:
    """Holds a place for every request that may generate, from its headers to the last byte of its answer."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or route_path(scope) not in GENERATING_PATHS:
            await self._app(scope, receive, send)
            return
        with self._service.admitted() as place:
            await self._app({**scope, "ventoux.place": place}, receive, send)
