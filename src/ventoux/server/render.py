"""What a chat request amounts to, with nothing generated: its prompt in pieces and as ids, its limits, its grammar."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from ventoux.server.body import read_json
from ventoux.server.chat_request import ChatJob, prepare_chat
from ventoux.server.reply import json_response
from ventoux.server.schemas import ChatRequest
from ventoux.server.service import Service
from ventoux.text.tokenizer import Tokenizer


def add_render(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions/render", summary="The prompt of a chat and its ids, nothing generated")
    async def render(request: Request) -> Response:
        body = await read_json(request, ChatRequest, service.config.max_request_bytes)
        with service.admitted() as place:
            job = await prepare_chat(service, body, place)
        return json_response(await asyncio.to_thread(_rendered, service, job), job.headers)


def _rendered(service: Service, job: ChatJob) -> dict[str, Any]:
    ids = job.request.prompt_token_ids
    return {
        "object": "chat.completion.render",
        "model": job.model,
        "count": len(ids),
        "max_model_len": service.max_model_len,
        "pieces": prompt_pieces(service.tokenizer, ids),
        "token_ids": ids,
        "images": [{"width": image.width, "height": image.height} for image in job.request.images],
        "sampling": msgspec.to_builtins(job.request.params),
    }


def prompt_pieces(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Token ids as runs of one kind: control tokens one by one, text, and images as the number of their tokens."""
    control = tokenizer.control
    image_ids = {control.image, control.image_break, control.image_end}
    number = 0

    def kind(token_id: int) -> tuple[str, int]:
        """Its kind, and what keeps it apart from its neighbours of the same kind."""
        nonlocal number
        mine = number
        if token_id in image_ids:
            number += token_id == control.image_end
            return "image", mine
        if tokenizer.is_control(token_id):
            number += 1
            return "control", mine
        return "text", 0

    pieces = []
    for (name, _), run in groupby(token_ids, kind):
        ids = list(run)
        piece: dict[str, Any] = {"type": name, "count": len(ids)}
        if name == "control":
            piece["text"] = tokenizer.token_text(ids[0])
        elif name == "text":
            piece["text"] = tokenizer.decode(ids)
        pieces.append(piece)
    return pieces
