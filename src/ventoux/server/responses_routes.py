"""The routes of /v1/responses."""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from ventoux.errors import InvalidRequestError
from ventoux.server.background import Background
from ventoux.server.body import read_json
from ventoux.server.errors import ApiError
from ventoux.server.paging import Paging, page
from ventoux.server.reply import json_response, reply
from ventoux.server.response_store import StoredResponse
from ventoux.server.responses import responses_answer, responses_events
from ventoux.server.responses_request import not_found, prepare_responses
from ventoux.server.responses_schemas import ResponsesRequest
from ventoux.server.service import Service
from ventoux.server.sse import RESPONSES

_ITEMS = Paging(default=20, most=100)


def add_responses(app: FastAPI, service: Service, background: Background) -> None:
    @app.post("/v1/responses", summary="OpenAI's newer form of a chat, streamed or not, kept for later")
    async def responses(request: Request) -> Response:
        body = await read_json(request, ResponsesRequest, service.config.max_request_bytes)
        if body.background:
            job = await background.start(body)
            return json_response(job.frame, job.headers)
        prepare = partial(prepare_responses, service, body, request.scope["ventoux.place"])
        return await reply(request, service, prepare, body.stream, responses_events, responses_answer, RESPONSES)

    @app.get("/v1/responses/{response_id}", summary="A response that was kept")
    async def response(response_id: str, request: Request) -> Response:
        if request.query_params.get("stream") == "true":
            raise InvalidRequestError(
                "stream is not supported here: what was kept is not streamed again.",
                param="stream",
                code="unsupported_parameter",
            )
        return json_response(background.shown(await _stored(service, response_id)))

    @app.delete("/v1/responses/{response_id}", summary="Forget a response")
    async def delete_response(response_id: str) -> Response:
        await background.forget(response_id)
        if service.responses is None or not await service.responses.delete(response_id):
            raise not_found(response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    @app.post("/v1/responses/{response_id}/cancel", summary="Work no more on a response in the background")
    async def cancel_response(response_id: str) -> Response:
        if not (await _stored(service, response_id)).response["background"]:
            message = "Only responses created with background: true can be cancelled."
            raise ApiError(400, message, code="invalid_request")
        await background.cancel(response_id)
        return json_response(background.shown(await _stored(service, response_id)))

    @app.get("/v1/responses/{response_id}/input_items", summary="The items that the request of a response brought")
    async def input_items(response_id: str, request: Request) -> Response:
        stored = await _stored(service, response_id)
        return json_response(page(stored.input[::-1], request.query_params, _ITEMS))


async def _stored(service: Service, response_id: str) -> StoredResponse:
    stored = None if service.responses is None else await service.responses.get(response_id)
    if stored is None:
        raise not_found(response_id)
    return stored
