"""The routes that generate: chat, plain completions, Anthropic's messages."""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from ventoux.server.body import read_json
from ventoux.server.chat import chat_answer, chat_chunks
from ventoux.server.chat_request import prepare_chat
from ventoux.server.completions import completion_answer, completion_chunks, prepare_completion
from ventoux.server.messages import messages_answer, messages_events
from ventoux.server.messages_request import count_tokens, prepare_messages
from ventoux.server.messages_schemas import CountTokensRequest, MessagesRequest
from ventoux.server.reply import json_response, reply
from ventoux.server.schemas import ChatRequest, CompletionRequest
from ventoux.server.service import Service
from ventoux.server.sse import ANTHROPIC


def add_generation(app: FastAPI, service: Service) -> None:
    max_bytes = service.config.max_request_bytes

    @app.post("/v1/chat/completions", summary="Chat, streamed or not, with images, tools and reasoning")
    async def chat_completions(request: Request) -> Response:
        body = await read_json(request, ChatRequest, max_bytes)
        prepare = partial(prepare_chat, service, body, request.scope["ventoux.place"])
        return await reply(request, service, prepare, body.stream, chat_chunks, chat_answer)

    @app.post("/v1/completions", summary="Plain completions of text or token ids")
    async def completions(request: Request) -> Response:
        body = await read_json(request, CompletionRequest, max_bytes)
        prepare = partial(prepare_completion, service, body, request.scope["ventoux.place"])
        return await reply(request, service, prepare, body.stream, completion_chunks, completion_answer)


def add_messages(app: FastAPI, service: Service) -> None:
    max_bytes = service.config.max_request_bytes

    @app.post("/v1/messages", summary="Chat in Anthropic's form, streamed or not, with images, tools and thinking")
    async def messages(request: Request) -> Response:
        body = await read_json(request, MessagesRequest, max_bytes)
        prepare = partial(prepare_messages, service, body, request.scope["ventoux.place"])
        return await reply(request, service, prepare, body.stream, messages_events, messages_answer, ANTHROPIC)

    @app.post("/v1/messages/count_tokens", summary="The length of a prompt in Anthropic's form")
    async def messages_count_tokens(request: Request) -> Response:
        body = await read_json(request, CountTokensRequest, max_bytes)
        return json_response(*await count_tokens(service, body))
