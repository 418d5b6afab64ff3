"""Token ids of prompts that are only counted or looked at."""

from __future__ import annotations

import asyncio

from ventoux.server.chat_request import encode_chat, known_effort
from ventoux.server.schemas import TokenizeRequest
from ventoux.server.service import Service


async def prompt_ids(service: Service, body: TokenizeRequest, headers: dict[str, str]) -> list[int]:
    """The ids of a text or a chat, also if it is too long, up to `service.counting_limit`.

    `headers` get what the client is to be warned of. Raises InvalidRequestError.
    """
    limit = service.counting_limit
    async with service.counting_slots:
        if body.messages is None:
            encode, text = service.tokenizer.encode_text, body.prompt or ""
            return await asyncio.to_thread(encode, text, bos=body.add_special_tokens, limit=limit)
        effort = known_effort(body.reasoning_effort, headers)
        return (await encode_chat(service, body, effort, headers, limit=limit)).token_ids
