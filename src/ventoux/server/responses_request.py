"""A request to /v1/responses -> a chat request. Items are translated here; the chat's rules judge the result."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ventoux.errors import InvalidRequestError
from ventoux.server.chat_request import ChatJob, prepare_chat
from ventoux.server.errors import ApiError
from ventoux.server.responses_schemas import ResponsesRequest
from ventoux.server.schemas import ChatRequest
from ventoux.server.service import Place, Service
from ventoux.server.translation import Translation
from ventoux.server.wire import warn
from ventoux.text.messages import refusal

_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
}
# Item types that a conversation may hold, with the beginning of their ids.
_ID_PREFIXES = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_", "function_call_output": "fco_"}
# Traces of tools that run elsewhere, and of clients' own book-keeping. Agents such as Codex send them back with every
# turn; a model that has no such tools can do nothing with them.
_TOOLS_ELSEWHERE = (
    *("apply_patch", "code_interpreter", "computer", "custom_tool", "file_search", "image_generation", "local_shell"),
    *("mcp", "shell", "tool_search", "web_search"),
)
_LEFT_OUT = frozenset(
    {f"{name}_call{end}" for name in _TOOLS_ELSEWHERE for end in ("", "_output")}
    | {"tool_search_output", "mcp_approval_request", "mcp_approval_response", "mcp_list_tools"}
    | {"compaction", "compaction_trigger", "context_compaction"}
)
# Tools that come with the input instead of beside it.
_MORE_TOOLS = "additional_tools"
_PARTS = {
    "user": ("input_text", "input_image"),
    "system": ("input_text",),
    "developer": ("input_text",),
    "assistant": ("output_text", "refusal", "input_text"),
}


@dataclass(frozen=True)
class ResponsesJob:
    """A checked request: the chat that it amounts to, the response object before its answer, and what to keep."""

    chat: ChatJob
    frame: dict[str, Any]
    items: list[dict[str, Any]]
    store: bool
    include_logprobs: bool

    @property
    def headers(self) -> dict[str, str]:
        return self.chat.headers


async def prepare_responses(service: Service, body: ResponsesRequest, place: Place) -> ResponsesJob:
    """Raises InvalidRequestError, ModelNotFoundError, ApiError 404 and 503; nothing has reached the engine then."""
    headers = body.headers()
    if body.store and service.responses is None:
        raise InvalidRequestError(
            "store is not supported here: this server keeps no responses.", param="store", code="unsupported_parameter"
        )
    translation = Translation(_NAMES)
    if body.instructions:
        translation.message("system", "instructions")
        translation.text(body.instructions, "instructions")
    for item in await _history(service, body.previous_response_id):
        _translate(item, "previous_response_id", translation)
    items = _items(body.input)
    for i, item in enumerate(items):
        if item["type"] in _LEFT_OUT:
            warn(headers, f"input[{i}] of type {item['type']} is left out: this server runs no such tools")
        _translate(item, f"input[{i}]" if isinstance(body.input, list) else "input", translation)
    if body.previous_response_id is None and not any(item["type"] in _ID_PREFIXES for item in items):
        # Clients ask nothing to see whether a server answers.
        translation.message("user", "input")
    chat = ChatRequest.model_validate(_chat_fields(body, items, translation, headers))
    with translation.naming(headers):
        job = await prepare_chat(service, chat, place, id_prefix="resp_", headers=headers)
    store = body.store is not False and service.responses is not None
    return ResponsesJob(job, _frame(body, job, store), items, store, body.wants_logprobs)


def new_item_id(kind: str) -> str:
    return _ID_PREFIXES.get(kind, "item_") + secrets.token_hex(16)


def is_unfinished(response: dict[str, Any]) -> bool:
    """It was begun in the background, and has not ended as far as the store knows."""
    return response["status"] in ("queued", "in_progress")


def not_found(response_id: str, *, param: str | None = None) -> ApiError:
    return ApiError(404, f"There is no response {response_id[:100]!r} here.", code="response_not_found", param=param)


async def _history(service: Service, previous: str | None) -> list[dict[str, Any]]:
    """The items of the response that a request goes on from, and of all before it."""
    if previous is None:
        return []
    chain = None if service.responses is None else await service.responses.chain(previous)
    if chain is None:
        raise not_found(previous, param="previous_response_id")
    if is_unfinished(chain[-1].response):
        raise InvalidRequestError(
            "previous_response_id names a response that is not complete.", param="previous_response_id"
        )
    return [item for stored in chain for item in [*stored.input, *stored.response["output"]]]


def _items(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The input as complete items, each with a type, an id, and contents in parts."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    items = []
    for i, sent in enumerate(given):
        kind = sent.get("type") or "message"
        if not isinstance(kind, str) or kind not in {*_ID_PREFIXES, *_LEFT_OUT, _MORE_TOOLS}:
            message = f"must be {', '.join(_ID_PREFIXES)}, got {kind!r}: there is nothing else here."
            raise refusal(f"input[{i}].type", message, "unsupported_value")
        if not isinstance(sent.get("id"), (str, type(None))):
            raise refusal(f"input[{i}].id", "must be a string.", "invalid_type")
        item = {**sent, "id": sent.get("id") or new_item_id(kind), "type": kind}
        if kind == "message":
            if item.get("role") not in tuple(_PARTS):
                raise refusal(f"input[{i}].role", f"must be {', '.join(_PARTS)}, got {item.get('role')!r}.")
            if isinstance(item.get("content"), str):
                part = "output_text" if item["role"] == "assistant" else "input_text"
                extra = {"annotations": []} if part == "output_text" else {}
                item["content"] = [{"type": part, "text": item["content"], **extra}]
        if kind != "reasoning":
            item.setdefault("status", "completed")
        items.append(item)
    return items


def _chat_fields(
    body: ResponsesRequest, items: list[dict[str, Any]], translation: Translation, headers: dict[str, str]
) -> dict[str, Any]:
    offered = [*(body.tools or ()), *_tools_among(items)]
    return {
        "model": body.model,
        "messages": translation.messages,
        "tools": list(_tools(offered, translation, headers)) or None,
        "tool_choice": _tool_choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "response_format": _response_format(body),
        "max_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "logprobs": body.wants_logprobs,
        "top_logprobs": body.top_logprobs,
        "stream": body.stream,
    }


def _tools_among(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for i, item in enumerate(items):
        if item["type"] == _MORE_TOOLS:
            tools = item.get("tools")
            if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
                raise refusal(f"input[{i}].tools", "must be a list of objects.", "invalid_type")
            yield from tools


def _tools(tools: list[dict[str, Any]], translation: Translation, headers: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Functions. Tools that OpenAI runs are left out with a warning: clients such as Codex offer them unasked."""
    for i, tool in enumerate(tools):
        kind = tool.get("type")
        if not isinstance(kind, str):
            raise refusal(f"tools[{i}].type", f"must be a string, got {kind!r}.", "invalid_type")
        if kind != "function":
            warn(headers, f"tools[{i}] of type {kind[:40]!a} is left out: this server runs no tools")
            continue
        translation.name(f"tools[{i}].function", f"tools[{i}]")
        known = ("name", "description", "parameters", "strict")
        yield {"type": "function", "function": {name: tool[name] for name in known if tool.get(name) is not None}}


def _tool_choice(choice: Any) -> Any:
    match choice:
        case None | "none" | "auto" | "required":
            return choice
        case {"type": "function", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": mode, "tools": [_, *_] as tools}:
            named = [_tool_choice(tool) for tool in tools if isinstance(tool, dict)]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}
    raise refusal(
        "tool_choice",
        'must be "none", "auto", "required", {"type": "function", "name": ...} or {"type": "allowed_tools", ...}.',
    )


def _response_format(body: ResponsesRequest) -> dict[str, Any] | None:
    wanted = body.text.format if body.text else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "json_object"}
    if wanted.schema_ is None:
        raise refusal("text.format.schema", "is needed for the type json_schema.", "missing_required_parameter")
    return {"type": "json_schema", "json_schema": {"name": wanted.name, "schema": wanted.schema_}}


def _translate(item: dict[str, Any], origin: str, translation: Translation) -> None:
    """Adds an item to the conversation. Reasoning, text and calls that belong to one turn become one message."""
    kind = item["type"]
    if kind == "message":
        role = item["role"]
        if role != "assistant" or _said(translation):
            translation.message(role, origin)
        _parts(item.get("content"), f"{origin}.content", _PARTS[role], translation)
    elif kind == "function_call_output":
        translation.message("tool", origin, tool_call_id=item.get("call_id"))
        translation.name(f"messages[{len(translation.messages) - 1}].tool_call_id", f"{origin}.call_id")
        _parts(item.get("output"), f"{origin}.output", (*_PARTS["user"], "output_text"), translation)
    elif kind == "function_call":
        if not _in_turn(translation):
            translation.message("assistant", origin)
        translation.call(item.get("call_id"), item.get("name"), item.get("arguments"), origin)
    elif kind == "reasoning" and (text := _reasoning_text(item)):
        if _said(translation):
            translation.message("assistant", origin)
        translation.part({"type": "thinking", "thinking": text}, origin)


def _in_turn(translation: Translation) -> bool:
    """The assistant's turn has begun: what it says or calls next belongs to the last message."""
    return bool(translation.messages) and translation.messages[-1]["role"] == "assistant"


def _said(translation: Translation) -> bool:
    """No turn of the assistant is open, or it holds more than reasoning."""
    last = translation.messages[-1] if _in_turn(translation) else None
    return last is None or "tool_calls" in last or any(part["type"] != "thinking" for part in last["content"])


def _reasoning_text(item: dict[str, Any]) -> str:
    """The reasoning itself, or its summary if that is all there is."""
    for field in ("content", "summary"):
        parts = item.get(field)
        texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        if texts:
            return "".join(text for text in texts if isinstance(text, str))
    return ""


def _parts(content: Any, where: str, kinds: tuple[str, ...], translation: Translation) -> None:
    if isinstance(content, str):
        translation.text(content, where)
        return
    if not isinstance(content, list):
        raise refusal(where, "must be a string or a list of content parts.", "invalid_type")
    for j, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in kinds:
            raise refusal(f"{where}[{j}].type", f"must be {' or '.join(kinds)}, got {kind!r}.", "unsupported_value")
        if kind == "input_image":
            # As in chats, where the two stand together.
            image = {"url": part.get("image_url"), "detail": part.get("detail")}
            translation.part({"type": "image_url", "image_url": image}, f"{where}[{j}]")
        else:
            translation.text(part.get("refusal" if kind == "refusal" else "text"), f"{where}[{j}]")


def _frame(body: ResponsesRequest, job: ChatJob, store: bool) -> dict[str, Any]:
    """The response object as it is before anything was generated."""
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    return {
        "id": job.request.request_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": bool(body.background),
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "model": job.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "service_tier": "default",
        "store": store,
        "temperature": job.request.params.temperature,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": job.request.params.top_p,
        "truncation": "disabled",
        "usage": None,
        "metadata": body.metadata or {},
    }
