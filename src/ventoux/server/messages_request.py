"""A request in Anthropic's form -> a chat request. Shapes are translated here; the chat's rules judge the result."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ventoux.server.chat_request import ChatJob, prepare_chat
from ventoux.server.messages_schemas import CountTokensRequest, MessagesRequest
from ventoux.server.schemas import ChatRequest, TokenizeRequest
from ventoux.server.service import Place, Service
from ventoux.server.tokenize import prompt_ids
from ventoux.server.translation import Translation
from ventoux.text.messages import refusal

_NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "response_format.json_schema.schema": "output_config.format.schema",
    "reasoning_effort": "thinking",
    "thinking_token_budget": "thinking.budget_tokens",
}
# Claude Code's book-keeping, no instruction: it is another with every request, so that nothing after it would be found
# in the prefix cache.
_BILLING_LINE = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# The kinds of blocks that each role may hold.
_BLOCKS = {
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}


@dataclass(frozen=True)
class MessagesJob:
    """A checked request: the chat that it amounts to, and the limit that was asked for."""

    chat: ChatJob
    max_tokens: int

    @property
    def headers(self) -> dict[str, str]:
        return self.chat.headers


async def prepare_messages(service: Service, body: MessagesRequest, place: Place) -> MessagesJob:
    """Raises InvalidRequestError, ModelNotFoundError, ApiError 503; nothing has reached the engine then."""
    headers = body.headers()
    translation = _conversation(body)
    chat = ChatRequest.model_validate(
        {
            **_prompt_fields(body, translation),
            **_choice_fields(body),
            "max_tokens": body.max_tokens,
            "stop": body.stop_sequences,
            "stream": body.stream,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "thinking_token_budget": body.thinking.budget_tokens if body.thinking else None,
            "include_reasoning": not (body.thinking and body.thinking.display == "omitted"),
        }
    )
    with translation.naming(headers):
        job = await prepare_chat(service, chat, place, id_prefix="msg_", headers=headers)
    return MessagesJob(job, body.max_tokens)


async def count_tokens(service: Service, body: CountTokensRequest) -> tuple[dict[str, Any], dict[str, str]]:
    """The answer of the counting route, and its headers. Raises InvalidRequestError, ModelNotFoundError."""
    headers = body.headers()
    service.model(body.model)
    translation = _conversation(body)
    fields = _prompt_fields(body, translation)
    with translation.naming(headers):
        ids = await prompt_ids(service, TokenizeRequest.model_validate(fields), headers)
    return {"input_tokens": len(ids)}, headers


def _prompt_fields(body: CountTokensRequest, translation: Translation) -> dict[str, Any]:
    """The fields of a chat that its prompt is made of."""
    thinks = body.thinking is not None and body.thinking.type != "disabled"
    return {
        "model": body.model,
        "messages": translation.messages,
        "tools": list(_tools(body.tools, translation)) if body.tools else None,
        "reasoning_effort": "high" if thinks else "none",
        # A last message of the assistant is a beginning that the answer goes on with.
        "continue_final_message": body.messages[-1].get("role") == "assistant",
    }


def _choice_fields(body: MessagesRequest) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if body.output_config is not None and body.output_config.format is not None:
        schema = {"name": "output", "schema": body.output_config.format.schema_}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    choice = body.tool_choice
    if choice is None:
        return fields
    if (choice.type == "tool") != (choice.name is not None):
        raise refusal("tool_choice.name", 'is for tool_choice of type "tool", which needs it.')
    named = {"type": "function", "function": {"name": choice.name}}
    fields["tool_choice"] = _CHOICES.get(choice.type, named)
    fields["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    return fields


def _tools(tools: list[dict[str, Any]], translation: Translation) -> Iterator[dict[str, Any]]:
    for i, tool in enumerate(tools):
        kind = tool.get("type")
        if kind not in (None, "custom"):
            raise refusal(
                f"tools[{i}].type", f"must be custom, got {kind!r}: there are no other tools here.", "unsupported_value"
            )
        if not isinstance(tool.get("input_schema"), dict):
            raise refusal(f"tools[{i}].input_schema", "must be a JSON schema.", "invalid_type")
        translation.name(f"tools[{i}].function", f"tools[{i}]")
        translation.name(f"tools[{i}].function.parameters", f"tools[{i}].input_schema")
        function = {"name": tool.get("name"), "parameters": tool["input_schema"]}
        function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
        yield {"type": "function", "function": function}


def _conversation(body: CountTokensRequest) -> Translation:
    translation = Translation(_NAMES)
    if body.system:
        translation.message("system", "system")
        _system_text(body.system, "system", translation)
    for i, message in enumerate(body.messages):
        role, where = message.get("role"), f"messages[{i}]"
        if not isinstance(role, str) or role not in _BLOCKS:
            raise refusal(f"{where}.role", f"must be user, assistant or system, got {role!r}.")
        if role == "system":
            translation.message("system", where)
            _system_text(message.get("content"), f"{where}.content", translation)
            continue
        blocks = list(_blocks(message.get("content"), f"{where}.content", _BLOCKS[role]))
        if role == "assistant":
            _assistant(blocks, where, translation)
        else:
            _user(blocks, where, translation)
    return translation


def _blocks(content: Any, where: str, kinds: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], str]]:
    """The blocks of a content with their paths; a string is one block of text."""
    if isinstance(content, str):
        yield {"type": "text", "text": content}, where
        return
    if not isinstance(content, list):
        raise refusal(where, "must be a string or a list of content blocks.", "invalid_type")
    for j, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in kinds:
            raise refusal(f"{where}[{j}].type", f"must be {' or '.join(kinds)}, got {kind!r}.", "unsupported_value")
        yield block, f"{where}[{j}]"


def _system_text(content: Any, where: str, translation: Translation) -> None:
    """Blocks are separate instructions: a blank line goes between them."""
    message = translation.messages[-1]
    for block, origin in _blocks(content, where, ("text",)):
        text = block.get("text")
        if not isinstance(text, str):
            raise refusal(f"{origin}.text", "must be a string.", "invalid_type")
        if text := _BILLING_LINE.sub("", text):
            translation.text("\n\n" + text if message["content"] else text, origin)
    if not message["content"]:
        translation.messages.pop()


def _user(blocks: list[tuple[dict[str, Any], str]], where: str, translation: Translation) -> None:
    """Results answer the calls before them, so they come first; what else the user says follows."""
    for block, origin in blocks:
        if block["type"] == "tool_result":
            translation.message("tool", origin, tool_call_id=block.get("tool_use_id"))
            translation.name(f"messages[{len(translation.messages) - 1}].tool_call_id", f"{origin}.tool_use_id")
            if block.get("is_error"):
                translation.text("Error: ", origin)
            # A tool may have nothing to say.
            content = "" if block.get("content") is None else block["content"]
            _parts(_blocks(content, f"{origin}.content", ("text", "image")), translation)
    said = [(block, origin) for block, origin in blocks if block["type"] != "tool_result"]
    if said or not blocks:
        translation.message("user", where)
        _parts(iter(said), translation)


def _assistant(blocks: list[tuple[dict[str, Any], str]], where: str, translation: Translation) -> None:
    translation.message("assistant", where)
    for block, origin in blocks:
        kind = block["type"]
        if kind == "tool_use":
            if not isinstance(block.get("input"), dict):
                raise refusal(f"{origin}.input", "must be an object.", "invalid_type")
            arguments = json.dumps(block["input"], ensure_ascii=False)
            translation.call(block.get("id"), block.get("name"), arguments, origin)
        elif kind == "thinking":
            translation.part({"type": "thinking", "thinking": block.get("thinking")}, origin)
        elif kind == "text":
            translation.text(block.get("text"), origin)
        # Redacted thinking is another server's secret: there is nothing in it to read.


def _parts(blocks: Iterator[tuple[dict[str, Any], str]], translation: Translation) -> None:
    for block, origin in blocks:
        if block["type"] == "text":
            translation.text(block.get("text"), origin)
            continue
        translation.part({"type": "image_url", "image_url": {"url": _image_url(block, origin)}}, origin)
        message = translation.messages[-1]
        part = f"messages[{len(translation.messages) - 1}].content[{len(message['content']) - 1}]"
        translation.name(f"{part}.image_url", f"{origin}.source")


def _image_url(block: dict[str, Any], origin: str) -> str:
    match block.get("source"):
        case {"type": "base64", "media_type": str(media_type), "data": str(data)}:
            return f"data:{media_type};base64,{data}"
        case {"type": "url", "url": str(url)}:
            return url
    raise refusal(
        f"{origin}.source",
        'must be {"type": "base64", "media_type": ..., "data": ...} or {"type": "url", "url": ...}.',
        "invalid_image",
    )
