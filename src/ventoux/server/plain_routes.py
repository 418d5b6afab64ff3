"""The routes that generate nothing: models, token ids, health, metrics, the pages."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from ventoux.errors import InvalidRequestError
from ventoux.server.body import read_json
from ventoux.server.pages import PageFiles, docs_page
from ventoux.server.refusals import ignored_header, refuse_unsupported, unknown_inside
from ventoux.server.reply import json_response
from ventoux.server.schemas import DetokenizeRequest, TokenizeRequest
from ventoux.server.service import Service
from ventoux.server.tokenize import prompt_ids


def add_models(app: FastAPI, service: Service) -> None:
    def described(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": service.created,
            "owned_by": "ventoux",
            "root": service.served_names[0],
            "parent": None,
            "max_model_len": service.max_model_len,
            # As Mistral has it; its client takes no model without a type.
            "type": "base",
            "max_context_length": service.max_model_len,
            "capabilities": {
                "completion_chat": True,
                "function_calling": True,
                "reasoning": True,
                "vision": service.tokenizer.takes_images,
            },
        }

    @app.get("/v1/models", summary="The served names")
    async def models() -> Response:
        return json_response({"object": "list", "data": [described(name) for name in service.served_names]})

    @app.get("/v1/models/{model:path}", summary="One served name")
    async def model(model: str) -> Response:
        return json_response(described(service.model(model)))


def add_text(app: FastAPI, service: Service) -> None:
    max_bytes = service.config.max_request_bytes

    @app.post("/tokenize", summary="Text or a chat to token ids")
    async def tokenize(request: Request) -> Response:
        body = await read_json(request, TokenizeRequest, max_bytes)
        service.model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequestError("Either prompt or messages is needed.", param="prompt")
        headers = _ignored(body)
        ids = await prompt_ids(service, body, headers)
        texts = [service.tokenizer.token_text(i) for i in ids] if body.return_token_strs else None
        answer = {"count": len(ids), "max_model_len": service.max_model_len, "tokens": ids, "token_strs": texts}
        return json_response(answer, headers)

    @app.post("/detokenize", summary="Token ids to text")
    async def detokenize(request: Request) -> Response:
        body = await read_json(request, DetokenizeRequest, max_bytes)
        service.model(body.model)
        return json_response({"prompt": service.tokenizer.decode(body.tokens)}, _ignored(body))


def _ignored(body: BaseModel) -> dict[str, str]:
    names = refuse_unsupported(body.model_extra or {}) + unknown_inside(dict(body))
    return {"x-ignored-fields": ignored_header(names)} if names else {}


def add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="The server is alive")
    async def health() -> Response:
        return json_response({"status": "ok"})

    @app.get("/ready", summary="Tokens can move: 503 while draining or without an engine")
    async def ready() -> Response:
        service.check_ready()
        return json_response({"status": "ready"})

    @app.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    page = PageFiles()

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return page.answer("index.html", request.headers.get("if-none-match"))

    @app.get("/status", include_in_schema=False)
    async def status(request: Request) -> Response:
        return page.answer("status.html", request.headers.get("if-none-match"))

    @app.get("/page/{name:path}", include_in_schema=False)
    async def page_file(request: Request, name: str) -> Response:
        return page.answer(name, request.headers.get("if-none-match"))

    @app.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        return Response(status_code=204)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return docs_page(app.openapi())

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return json_response(app.openapi())
