"""Request bodies: read with a cap and a deadline, decoded strictly, before anything else looks at them."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema
from starlette.requests import ClientDisconnect, Request

from ventoux.server.context import current
from ventoux.server.errors import ApiError, dotted

# A body that has not arrived by then will not: 64 MiB in a minute is 9 Mbit/s.
READ_TIMEOUT = 60.0
# Far more than all fields that any client knows; a million of them would hold up the event loop for seconds.
MAX_FIELDS = 256
# Entries of one field, token ids aside: messages of 16 tokens each would fill 256k tokens.
MAX_ENTRIES = 16_384
# Objects, lists and what is separated by commas, over the whole body; commas in texts count too. 64 MiB of "1," are 34
# million values, which took 2 GB, and each of them an error message of 1 kB on top. A prompt of a million token ids
# is far below this.
MAX_VALUES = 2_000_000

Model = TypeVar("Model", bound=BaseModel)


def _stop_at_first_error(schema: Any) -> None:
    """In every list of a schema: an error for each of a million wrong items took 7 seconds and a gigabyte."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for inner in schema.values():
            _stop_at_first_error(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            _stop_at_first_error(inner)


class Body(BaseModel):
    """A JSON object of a request. Fields that are not declared are kept apart, in `model_extra`."""

    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _stop_at_first_error(schema)
        return schema

    def extra_inside(self) -> list[str]:
        """The paths of undeclared fields in objects that have a schema of their own."""
        paths = []
        for name, inner in dict(self).items():
            if isinstance(inner, Body):
                paths += [f"{name}.{path}" for path in [*(inner.model_extra or {}), *inner.extra_inside()]]
        return paths


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
    fields = decode_object(body)
    del body
    current().note_body(fields)
    return schema.model_validate(fields)


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


def _are_ids(value: dict | list) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _too_large(max_bytes: int) -> ApiError:
    # The rest of the body is not read; closing tells the client so.
    headers = {"connection": "close"}
    return ApiError(
        413, f"The request body is larger than {max_bytes} bytes.", code="request_too_large", headers=headers
    )


def decode_object(body: bytes) -> dict[str, Any]:
    if sum(body.count(sign) for sign in (b",", b"[", b"{")) > MAX_VALUES:
        raise ApiError(400, f"The request body holds more than {MAX_VALUES} values.", code="invalid_json")
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
    for name, value in decoded.items():
        if isinstance(value, dict | list) and len(value) > MAX_ENTRIES and not _are_ids(value):
            message = f"{dotted((name,))} has more than {MAX_ENTRIES} entries."
            raise ApiError(400, message, code="invalid_value", param=dotted((name,)))
    return decoded
