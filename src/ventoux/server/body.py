"""Request bodies: read with a cap and a deadline, decoded strictly, before anything else looks at them."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request

from ventoux.server.errors import ApiError

# A body that has not arrived by then will not: 64 MiB in a minute is 9 Mbit/s.
READ_TIMEOUT = 60.0
# Far more than all fields that any client knows; a million of them would hold up the event loop for seconds.
MAX_FIELDS = 256

Model = TypeVar("Model", bound=BaseModel)


async def read_json(request: Request, schema: type[Model], max_bytes: int) -> Model:
    """Reads and validates a JSON body.

    Raises:
        ApiError: 415 not JSON or compressed, 413 too large, 408 too slow, 400 no valid JSON object.
        pydantic.ValidationError: a field is missing or of the wrong type.
    """
    _check_headers(request, max_bytes)
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            body = await _read(request, max_bytes)
    except TimeoutError:
        raise ApiError(408, "The request body did not arrive in time.", code="timeout") from None
    return schema.model_validate(_decode(body))


def _check_headers(request: Request, max_bytes: int) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "The Content-Type must be application/json.", code="unsupported_media_type")
    # Compressed bodies are refused: no client needs them, and a bomb cannot hide in one.
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Compressed request bodies are not accepted.", code="unsupported_media_type")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)


async def _read(request: Request, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)
            chunks.append(chunk)
    except ClientDisconnect:
        raise ApiError(400, "The client went away before its request was complete.", code="incomplete") from None
    return b"".join(chunks)


def _too_large(max_bytes: int) -> ApiError:
    # The rest of the body is not read; closing tells the client so.
    headers = {"connection": "close"}
    return ApiError(
        413, f"The request body is larger than {max_bytes} bytes.", code="request_too_large", headers=headers
    )


def _decode(body: bytes) -> dict[str, Any]:
    try:
        # Strict: NaN, infinities, invalid UTF-8 and lone surrogates are errors; depth is bounded by the interpreter.
        decoded = msgspec.json.decode(body)
    except (ValueError, RecursionError) as e:
        reason = "it is nested too deeply" if isinstance(e, RecursionError) else str(e)
        raise ApiError(400, f"The request body is not valid JSON: {reason}.", code="invalid_json") from e
    if not isinstance(decoded, dict):
        raise ApiError(400, "The request body must be a JSON object.", code="invalid_json")
    if len(decoded) > MAX_FIELDS:
        raise ApiError(400, f"The request body has more than {MAX_FIELDS} fields.", code="invalid_json")
    return decoded
