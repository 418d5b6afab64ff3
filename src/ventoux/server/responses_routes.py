"""The routes of /v1/responses."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from ventoux.errors import InvalidRequestError
from ventoux.server.body import read_json
from ventoux.server.errors import ApiError
from ventoux.server.reply import json_response, reply
from ventoux.server.response_store import StoredResponse
from ventoux.server.responses import responses_answer, responses_events
from ventoux.server.responses_request import not_found, prepare_responses
from ventoux.server.responses_schemas import ResponsesRequest
from ventoux.server.service import Service
from ventoux.server.sse import RESPONSES

# OpenAI's page sizes.
DEFAULT_PAGE = 20
MAX_PAGE = 100


def add_responses(app: FastAPI, service: Service) -> None:
    @app.post("/v1/responses", summary="OpenAI's newer form of a chat, streamed or not, kept for later")
    async def responses(request: Request) -> Response:
        body = await read_json(request, ResponsesRequest, service.config.max_request_bytes)
        prepare = partial(prepare_responses, service, body, request.scope["ventoux.place"])
        return await reply(request, service, prepare, body.stream, responses_events, responses_answer, RESPONSES)

    @app.get("/v1/responses/{response_id}", summary="A response that was kept")
    async def response(response_id: str, request: Request) -> Response:
        if request.query_params.get("stream") == "true":
            raise InvalidRequestError(
                "stream is not supported here: only background responses can be streamed later.",
                param="stream",
                code="unsupported_parameter",
            )
        return json_response((await _stored(service, response_id)).response)

    @app.delete("/v1/responses/{response_id}", summary="Forget a response")
    async def delete_response(response_id: str) -> Response:
        if service.responses is None or not await service.responses.delete(response_id):
            raise not_found(response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    @app.post("/v1/responses/{response_id}/cancel", summary="Refused: only background responses can be cancelled")
    async def cancel_response(response_id: str) -> Response:
        await _stored(service, response_id)
        raise ApiError(400, "Only responses created with background: true can be cancelled.", code="invalid_request")

    @app.get("/v1/responses/{response_id}/input_items", summary="The items that the request of a response brought")
    async def input_items(response_id: str, request: Request) -> Response:
        stored = await _stored(service, response_id)
        return json_response(_page(stored.input, request.query_params.get))


async def _stored(service: Service, response_id: str) -> StoredResponse:
    stored = None if service.responses is None else await service.responses.get(response_id)
    if stored is None:
        raise not_found(response_id)
    return stored


def _page(items: list[dict[str, Any]], query: Any) -> dict[str, Any]:
    """A list page by `order`, `after` and `limit`. Raises InvalidRequestError naming one of them."""
    order, after, limit = query("order", "desc"), query("after"), query("limit", str(DEFAULT_PAGE))
    if order not in ("asc", "desc"):
        raise InvalidRequestError("order must be asc or desc.", param="order", code="invalid_value")
    if not (limit.isascii() and limit.isdecimal() and len(limit) <= 3 and 1 <= int(limit) <= MAX_PAGE):
        raise InvalidRequestError(f"limit must be from 1 to {MAX_PAGE}.", param="limit", code="invalid_value")
    ordered = items if order == "asc" else items[::-1]
    ids = [item["id"] for item in ordered]
    if after is not None and after not in ids:
        raise InvalidRequestError("after is the id of no item of this response.", param="after", code="invalid_value")
    start = 0 if after is None else ids.index(after) + 1
    page = ordered[start : start + int(limit)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + len(page) < len(ordered),
    }
