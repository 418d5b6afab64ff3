"""The routes of /v1/files and /v1/batches, in OpenAI's shapes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from ventoux.errors import InvalidRequestError
from ventoux.server.batch_runner import BatchRunner
from ventoux.server.batch_store import ENDED
from ventoux.server.body import READ_TIMEOUT, Body, read_json
from ventoux.server.errors import ApiError
from ventoux.server.file_store import FileStore
from ventoux.server.generate import new_request_id
from ventoux.server.paging import Paging, page
from ventoux.server.refusals import ignored_header
from ventoux.server.reply import json_response
from ventoux.server.responses_schemas import check_metadata
from ventoux.server.service import Service

WINDOW_SECONDS = 24 * 3600
_CHUNK = 2**20
MAX_STORED_AT_A_TIME = 2
_FILES = Paging(default=10_000, most=10_000)
_BATCHES = Paging(default=20, most=100)
# OpenAI's range: an hour to thirty days.
_EXPIRY = (3600, 30 * 24 * 3600)


_FORM = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["batch"]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": _EXPIRY[0], "maximum": _EXPIRY[1]},
    },
    "required": ["file", "purpose"],
}


class BatchRequest(Body):
    """POST /v1/batches"""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = Field(None, description="Up to 16 pairs of text, given back with the batch.")


def add_files(app: FastAPI, service: Service, files: FileStore | None) -> None:
    slots = asyncio.Semaphore(MAX_STORED_AT_A_TIME)

    @app.post(
        "/v1/files",
        summary="Keep a file: the input of a batch, as JSON lines",
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
    )
    async def upload(request: Request) -> Response:
        store = _there(files)
        most = min(service.config.max_request_bytes, store.max_bytes)
        # Uploads arrive on the disk; only some at a time are read into memory.
        async with _uploaded(request, most) as (file, seconds), slots:
            kept = await store.add((file.filename or "file")[:255], "batch", await file.read(), seconds)
        return json_response(kept)

    @app.get("/v1/files", summary="The files that are kept")
    async def list_files(request: Request) -> Response:
        purpose = request.query_params.get("purpose")
        found = [file for file in await _there(files).list() if purpose in (None, file["purpose"])]
        return json_response(page(found[::-1], request.query_params, _FILES))

    @app.get("/v1/files/{file_id}", summary="What is known of a file")
    async def get_file(file_id: str) -> Response:
        return json_response(_found(await _there(files).get(file_id), file_id, "file"))

    @app.delete("/v1/files/{file_id}", summary="Forget a file")
    async def delete_file(file_id: str) -> Response:
        if not await _there(files).delete(file_id):
            raise _missing(file_id, "file")
        return json_response({"id": file_id, "object": "file", "deleted": True})

    @app.get("/v1/files/{file_id}/content", summary="What is in a file")
    async def content(file_id: str) -> Response:
        store = _there(files)
        file = _found(await store.get(file_id), file_id, "file")

        async def chunks() -> AsyncGenerator[bytes, None]:
            for offset in range(0, file["bytes"], _CHUNK):
                yield await store.read(file_id, offset, _CHUNK) or b""

        headers = {"content-length": str(file["bytes"])}
        return StreamingResponse(chunks(), headers=headers, media_type="application/octet-stream")


def add_batches(app: FastAPI, service: Service, files: FileStore | None, runner: BatchRunner | None) -> None:
    @app.post("/v1/batches", summary="Answer the requests of a file, when there is time")
    async def create(request: Request) -> Response:
        body = await read_json(request, BatchRequest, service.config.max_request_bytes)
        check_metadata(body.metadata)
        _found(await _there(files).get(body.input_file_id), body.input_file_id, "file", param="input_file_id")
        running = _there(runner)
        record = _record(body)
        await running.store.add(record, service.served_names[0])
        running.wake()
        ignored = {"x-ignored-fields": ignored_header(body.model_extra)} if body.model_extra else {}
        return json_response(await running.store.get(record["id"]), ignored)

    @app.get("/v1/batches", summary="The batches that are kept")
    async def list_batches(request: Request) -> Response:
        return json_response(page(await _there(runner).store.list(), request.query_params, _BATCHES))

    @app.get("/v1/batches/{batch_id}", summary="How far a batch is")
    async def get_batch(batch_id: str) -> Response:
        return json_response(_found(await _there(runner).store.get(batch_id), batch_id, "batch"))

    @app.post("/v1/batches/{batch_id}/cancel", summary="Answer no more of its requests")
    async def cancel(batch_id: str) -> Response:
        running = _there(runner)
        batch, moved = await running.store.move(
            batch_id, ("validating", "in_progress"), "cancelling", cancelling_at=int(time.time())
        )
        batch = _found(batch, batch_id, "batch")
        if (
            not moved
            and (batch["status"] in ENDED or batch["status"] == "finalizing")
            and batch["status"] != "cancelled"
        ):
            message = f"A batch that is {batch['status']} cannot be cancelled."
            raise ApiError(400, message, code="invalid_request")
        running.wake()
        return json_response(batch)


def _there(kept: Any) -> Any:
    if kept is None:
        raise ApiError(404, "This server keeps no files, and so has no batches: see --files-store.", code="not_found")
    return kept


def _found(item: dict[str, Any] | None, item_id: str, kind: str, *, param: str | None = None) -> dict[str, Any]:
    if item is None:
        raise _missing(item_id, kind, param=param)
    return item


def _missing(item_id: str, kind: str, *, param: str | None = None) -> ApiError:
    return ApiError(404, f"There is no {kind} {item_id[:100]!r} here.", code=f"{kind}_not_found", param=param)


def _record(body: BatchRequest) -> dict[str, Any]:
    now = int(time.time())
    times = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    return {
        "id": new_request_id("batch_"),
        "object": "batch",
        "endpoint": body.endpoint,
        "errors": None,
        "input_file_id": body.input_file_id,
        "completion_window": body.completion_window,
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now,
        "expires_at": now + WINDOW_SECONDS,
        **{f"{name}_at": None for name in times},
        "metadata": body.metadata,
    }


@asynccontextmanager
async def _uploaded(request: Request, max_bytes: int) -> AsyncIterator[tuple[UploadFile, int | None]]:
    """An uploaded file, and the seconds that it is to be kept.

    Raises:
        ApiError: 415 no form, 413 too large, 408 too slow, 400 no file or not for a batch.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise ApiError(415, "The Content-Type must be multipart/form-data.", code="unsupported_media_type")
    parser = MultiPartParser(request.headers, _capped(request, max_bytes), max_files=1, max_fields=16)
    try:
        form = await parser.parse()
    except _UploadError as e:
        raise e.error from None
    except MultiPartException as e:
        raise ApiError(400, f"The form cannot be read: {e.message}", code="invalid_value") from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidRequestError("file is missing.", param="file", code="missing_required_parameter")
        if form.get("purpose") != "batch":
            raise InvalidRequestError("purpose must be batch.", param="purpose", code="unsupported_value")
        if not file.size:
            raise InvalidRequestError("The file is empty.", param="file")
        yield file, _seconds(form.get("expires_after[anchor]"), form.get("expires_after[seconds]"))
    finally:
        await form.close()


def _seconds(anchor: Any, seconds: Any) -> int | None:
    if anchor is None and seconds is None:
        return None
    low, high = _EXPIRY
    valid = isinstance(seconds, str) and re.fullmatch(r"[0-9]{1,9}", seconds) and low <= int(seconds) <= high
    if anchor != "created_at" or not valid:
        raise InvalidRequestError(
            f"expires_after must have anchor created_at and {low} to {high} seconds.", param="expires_after"
        )
    return int(seconds)


class _UploadError(MultiPartException):
    """Passes through the parser, which closes the file that it was writing, and no other exception's."""

    def __init__(self, error: ApiError):
        super().__init__(error.message)
        self.error = error


async def _capped(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body of a request, up to a size and for a time."""
    stream = request.stream()
    deadline = asyncio.get_running_loop().time() + READ_TIMEOUT
    size = 0
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise _UploadError(ApiError(408, "The request body did not arrive in time.", code="timeout")) from None
        except ClientDisconnect:
            message = "The client went away before its request was complete."
            raise _UploadError(ApiError(400, message, code="incomplete")) from None
        if chunk is None:
            return
        size += len(chunk)
        if size > max_bytes:
            # The rest is not read; closing tells the client so.
            message, headers = f"An upload may have at most {max_bytes} bytes.", {"connection": "close"}
            raise _UploadError(ApiError(413, message, code="request_too_large", headers=headers))
        yield chunk
