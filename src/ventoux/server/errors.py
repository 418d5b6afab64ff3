"""Every error that reaches a client: OpenAI's {"error": {...}} body, or Anthropic's. Decided here and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ventoux.errors import (
    EngineDeadError,
    InvalidRequestError,
    ModelNotFoundError,
    NumericalError,
    SlowReaderError,
    UserError,
    VentouxError,
)

logger = logging.getLogger(__name__)

# Seconds after which a client that was answered 503 should come back.
RETRY_AFTER = "5"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
}
_CODES = {404: "not_found", 405: "method_not_allowed"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    529: "overloaded_error",
}
# Anthropic's own status for a server that has too much to do; its clients wait and come back.
_ANTHROPIC_OVERLOADED = 529


class ApiError(VentouxError):
    """An HTTP status with an error body."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        if status == 503:
            self.headers.setdefault("retry-after", RETRY_AFTER)

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """As OpenAI has it."""
        return Response(msgspec.json.encode(self.body()), self.status, self.headers, media_type="application/json")

    def anthropic_body(self) -> dict[str, Any]:
        error: dict[str, Any] = {"type": _ANTHROPIC_TYPES.get(self._anthropic_status, "invalid_request_error")}
        # There is no field for the parameter, so the message has to name it.
        where = f"{self.param}: " if self.param is not None and self.param not in self.message else ""
        # Agents shorten their conversation when a message begins so.
        error["message"] = ("prompt is too long: " if self.code == "context_length_exceeded" else where) + self.message
        if self.code is not None:
            error["details"] = {"error_code": self.code, "param": self.param}
        return {"type": "error", "error": error}

    def anthropic_response(self) -> Response:
        content = msgspec.json.encode(self.anthropic_body())
        return Response(content, self._anthropic_status, self.headers, media_type="application/json")

    @property
    def _anthropic_status(self) -> int:
        return _ANTHROPIC_OVERLOADED if self.code == "overloaded" else self.status


def to_api_error(error: Exception) -> ApiError:
    """What a client is told about any exception. Texts of errors that nobody raised on purpose stay in the log."""
    match error:
        case ApiError():
            return error
        case ModelNotFoundError():
            return ApiError(404, str(error), code=error.code, param=error.param)
        case InvalidRequestError():
            return ApiError(400, _printable(str(error)), code=error.code, param=error.param)
        case UserError():
            return ApiError(400, _printable(str(error)))
        case ValidationError():
            return _from_pydantic(error)
        case EngineDeadError():
            return ApiError(503, "The engine is not running; nothing can be generated now.", code="engine_dead")
        case SlowReaderError():
            # Only a stream can be so slow, and its answer has begun: nobody sees the status.
            return ApiError(408, "The answer was not read as fast as it came, and was cut.", code="slow_reader")
        case NumericalError():
            return ApiError(500, "The model's output was not finite for this request.", code="numerical_error")
        case HTTPException():
            status = error.status_code
            return ApiError(status, f"{error.detail}.", code=_CODES.get(status), headers=error.headers)
        case RecursionError():
            return ApiError(400, "The request is nested too deeply.", code="invalid_json")
    logger.error("a request failed unexpectedly", exc_info=error)
    return ApiError(500, "The server failed on this request; its log says why.", code="internal_error")


def from_engine(error: str | None, code: str | None) -> ApiError:
    """The error of a sequence that the engine gave up on: our failures have these codes, all others are the user's."""
    match code:
        case "engine_dead":
            return to_api_error(EngineDeadError())
        case "engine_crashed":
            # Clients would send it again, with two more deaths of the engine each time.
            message = "The engine ended twice while it computed this request, which is not tried again."
            return ApiError(500, message, code="engine_crashed", headers={"x-should-retry": "false"})
        case "numerical_error":
            return to_api_error(NumericalError())
        case None | "internal_error":
            return ApiError(500, "The engine failed on this request; the server's log says why.", code="internal_error")
    return ApiError(400, _printable(error or "The engine refused this request."), code=code)


def _from_pydantic(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = dotted(first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return ApiError(400, f"{param or 'request body'}: {message}.", code=code, param=param)


def dotted(loc: Sequence[str | int]) -> str | None:
    """("messages", 0, "role") -> "messages[0].role"."""
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return _printable(path.removeprefix("."))[:200] or None


def _printable(text: str) -> str:
    """Lone surrogates, which clients can send as escapes, cannot be encoded in an answer."""
    return text.encode("utf-8", errors="replace").decode("utf-8")
