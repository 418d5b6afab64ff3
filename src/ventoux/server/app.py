"""The HTTP application: what belongs to it, its routes, and the layers around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ventoux.config import ServerConfig
from ventoux.engine.client import EngineClient
from ventoux.server.answers import describe_answers
from ventoux.server.background import Background
from ventoux.server.batch_routes import BatchRequest, add_batches, add_files
from ventoux.server.batch_runner import BatchRunner
from ventoux.server.file_store import FileStore
from ventoux.server.generation_routes import add_generation, add_messages
from ventoux.server.keys import KeyRing
from ventoux.server.media import MediaFetcher
from ventoux.server.messages_schemas import CountTokensRequest, MessagesRequest
from ventoux.server.metrics import Metrics
from ventoux.server.plain_routes import add_models, add_operations, add_text
from ventoux.server.render import add_render
from ventoux.server.response_store import ResponseStore
from ventoux.server.responses_routes import add_responses
from ventoux.server.responses_schemas import ResponsesRequest
from ventoux.server.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from ventoux.server.service import Service
from ventoux.server.shell import (
    AdmissionLayer,
    ErrorLayer,
    HostLayer,
    KeyLayer,
    RequestLayer,
    error_response,
    is_loopback,
)
from ventoux.server.tracing import Tracer, make_tracer
from ventoux.text.tokenizer import Tokenizer

_BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/chat/completions/render": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/batches": BatchRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/v1/responses": ResponsesRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
_RATE_HEADERS = tuple(
    f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")
)
_EXPOSED_HEADERS = ("x-request-id", "request-id", "x-ignored-fields", "x-warning", "retry-after", *_RATE_HEADERS)


def create_app(
    engine: EngineClient,
    tokenizer: Tokenizer,
    served_names: Sequence[str],
    max_model_len: int,
    server_config: ServerConfig,
    *,
    media: MediaFetcher | None = None,
    tracer: Tracer | None = None,
) -> FastAPI:
    """The application that serves one engine. `app.state.service` is its Service.

    Args:
        served_names: Names that requests may use; the first is the default.
        media: Fetches images by URL; replaced in tests.
        tracer: Takes a span per request; replaced in tests.

    Raises:
        ConfigError: the key file or the traces' endpoint cannot be used.
    """
    keys = KeyRing(server_config)
    tracer = tracer or make_tracer(server_config)
    media = media or MediaFetcher(server_config)
    responses = _response_store(server_config)
    files = _file_store(server_config)
    metrics = Metrics(engine, served_names[0])
    service = Service(engine, tokenizer, served_names, max_model_len, server_config, media, metrics, responses)
    background = Background(service)
    batches = BatchRunner(service, files) if files is not None else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Each of these ends, whatever becomes of the others; the last one named first.
        async with AsyncExitStack() as ending:
            if tracer is not None:
                ending.push_async_callback(asyncio.to_thread, tracer.close)
            if responses is not None:
                ending.push_async_callback(responses.close)
            ending.push_async_callback(media.aclose)
            ending.push_async_callback(background.close)
            if files is not None:
                ending.push_async_callback(files.database.close)
            # Who names a file wants to know at start whether it works.
            if responses is not None and server_config.responses_store != ServerConfig.responses_store:
                await responses.open()
            if files is not None and server_config.files_store != ServerConfig.files_store:
                await files.database.open()
            if batches is not None:
                working = asyncio.create_task(batches.run())
                ending.push_async_callback(asyncio.gather, working, return_exceptions=True)
                ending.callback(working.cancel)
            yield

    app = FastAPI(
        title="Ventoux", docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan, openapi_url=None
    )
    app.state.service = service
    app.state.batches = batches
    app.add_exception_handler(HTTPException, _http_error)
    _add_openapi(app)
    add_generation(app, service)
    add_render(app, service)
    add_messages(app, service)
    add_responses(app, service, background)
    add_files(app, service, files)
    add_batches(app, service, files, batches)
    add_models(app, service)
    add_text(app, service)
    add_operations(app, service)
    # Added last is outermost: ids, CORS (preflights carry no key, errors must be readable), errors, keys, admission.
    app.add_middleware(AdmissionLayer, service=service)
    if keys.is_needed:
        app.add_middleware(KeyLayer, keys=keys)
    elif is_loopback(server_config.host):
        app.add_middleware(HostLayer, allowed=server_config.allowed_hosts)
    app.add_middleware(ErrorLayer)
    if server_config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(server_config.allowed_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=list(_EXPOSED_HEADERS),
        )
    paths = [route.path for route in app.routes if isinstance(route, Route) and "{" not in route.path]
    app.add_middleware(RequestLayer, metrics=metrics, paths=paths, tracer=tracer)
    return app


def _response_store(config: ServerConfig) -> ResponseStore | None:
    if config.responses_store == "none":
        return None
    return ResponseStore(Path(config.responses_store), config.max_stored_responses, config.max_stored_response_bytes)


def _file_store(config: ServerConfig) -> FileStore | None:
    return None if config.files_store == "none" else FileStore(Path(config.files_store), config.max_stored_file_bytes)


async def _http_error(request: Request, error: Exception) -> Response:
    return error_response(error, request.scope)


def _add_openapi(app: FastAPI) -> None:
    """Bodies are read by `read_json`, so their schemas are written into the description here."""
    generated = app.openapi

    def described() -> dict[str, Any]:
        spec = generated()
        template = "#/components/schemas/{model}"
        refs, definitions = models_json_schema([(m, "validation") for m in _BODIES.values()], ref_template=template)
        spec.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        for path, model in _BODIES.items():
            content = {"application/json": {"schema": refs[model, "validation"]}}
            spec["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        describe_answers(spec)
        return spec

    app.openapi = described
