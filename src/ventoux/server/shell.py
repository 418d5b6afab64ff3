"""Layers around all routes, as plain ASGI: ids, errors and one log line; keys; admission.

They judge `scope["path"]`, which is what the router judges. A URL rebuilt from the Host header is not that.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ventoux.server.errors import ApiError, to_api_error
from ventoux.server.generate import new_request_id
from ventoux.server.service import Service
from ventoux.server.sse import ClientGoneError

logger = logging.getLogger(__name__)
PUBLIC_PATHS = frozenset({"/", "/health", "/ready", "/favicon.ico"})
GENERATING_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"})
# Clients of these expect errors in Anthropic's form.
ANTHROPIC_PATHS = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
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
    """Gives every answer an `x-request-id`, answers HEAD like GET without a body, logs one line per request."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_request_id("req-")
        method = scope["method"]
        # nginx's number for a client that left before its answer began.
        status = 499
        start = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # A new list: an answer that is sent many times shares its own. Anthropic's clients read `request-id`.
                names = (b"x-request-id", b"request-id") if route_path(scope) in ANTHROPIC_PATHS else (b"x-request-id",)
                ids = [(name, request_id.encode()) for name in names]
                message = {**message, "headers": [*message["headers"], *ids]}
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app({**scope, "method": "GET" if method == "HEAD" else method}, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - start
            # repr: a path is the client's text, and must not write lines of its own into the log.
            logger.info("%s %s %r %d %.3f s", request_id, method, scope["path"][:200], status, seconds)


class ErrorLayer:
    """Turns every exception into an error answer, as long as no answer has begun."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        headers = Headers(scope=scope)

        async def noting_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if "content-length" in headers and "transfer-encoding" in headers:
                # A proxy in front may see another end of this request than we do: nothing after it can be trusted.
                message = "Content-Length and Transfer-Encoding exclude each other."
                raise ApiError(400, message, headers={"connection": "close"})
            await self._app(scope, receive, noting_send)
        except ClientGoneError:
            pass
        except Exception as e:
            if begun or scope["type"] != "http":
                raise
            await error_response(e, scope)(scope, receive, send)


class KeyLayer:
    """Asks for an API key everywhere but on the public paths."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]):
        self._app = app
        self._keys = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._open(scope)):
            await self._app(scope, receive, send)
            return
        raise ApiError(
            401,
            "A valid API key is needed: send it as Authorization: Bearer KEY, or as x-api-key: KEY.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )

    def _open(self, scope: Scope) -> bool:
        if route_path(scope) in PUBLIC_PATHS:
            return True
        headers = Headers(scope=scope)
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        # Clients that know both headers may send another server's key in one of them.
        given = [bearer.strip() if kind.lower() == "bearer" else "", headers.get("x-api-key", "")]
        # Digests of equal length, all of them compared: the time taken tells nothing about the keys.
        matches = [hmac.compare_digest(_digest(key.encode()), known) for key in given for known in self._keys]
        return any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


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
