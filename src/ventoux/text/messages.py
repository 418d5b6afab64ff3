"""OpenAI-shaped messages and tools -> mistral-common's own records.

Only shapes are translated here, one message at a time so that an error can name the message. What a prompt may hold and
how it is written is mistral-common's to say; its three families of exceptions become InvalidRequestError here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mistral_common.exceptions import (
    InvalidFunctionCallException,
    InvalidMessageStructureException,
    InvalidToolMessageException,
    MistralCommonException,
)
from mistral_common.protocol.instruct.chunk import ImageChunk, TextChunk, ThinkChunk
from mistral_common.protocol.instruct.messages import (
    AssistantMessage,
    ChatMessage,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from mistral_common.protocol.instruct.tool_calls import Function, Tool, ToolCall
from PIL.Image import Image
from pydantic import ValidationError

from ventoux.errors import InvalidRequestError

# Deeper than any schema or argument seen in use, and far from Python's 1000 frames: validation takes several per level.
MAX_NESTING = 64
# mistral-common quotes user text in some messages; an error must not carry a megabyte of it.
MAX_ERROR_LENGTH = 400

# Checking a tool's schema takes 0.4 ms, and nobody has so many tools.
MAX_TOOLS = 512

# role: the content parts that it may hold
_PARTS: dict[str, tuple[str, ...]] = {
    "system": ("text",),
    "user": ("text", "image"),
    "assistant": ("text", "thinking"),
    "tool": ("text", "image"),
}


@contextmanager
def refusing(param: str) -> Iterator[None]:
    """Turns every exception that mistral-common raises for user input into InvalidRequestError about `param`."""
    try:
        yield
    except InvalidRequestError:
        raise
    except MistralCommonException as e:
        raise refusal(param, e.message) from e
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False, include_input=False)[0]
        raise refusal(param + _path(first["loc"]), first["msg"].removeprefix("Value error, ")) from e
    except RecursionError as e:
        raise refusal(param, "nested too deeply.") from e
    except ValueError as e:
        raise refusal(param, str(e)) from e


def refusal(param: str, message: str, code: str = "invalid_value") -> InvalidRequestError:
    if len(message) > MAX_ERROR_LENGTH:
        message = message[:MAX_ERROR_LENGTH] + "..."
    return InvalidRequestError(f"{param}: {message}", param=param, code=code)


def _path(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)


def check_text(value: Any, param: str) -> None:
    """Refuses NUL and lone surrogates in any string of a JSON value, and values nested too deeply.

    Neither can be written as text and read back, so no prompt holds them; walks without recursion.
    """
    stack = [(value, param, 0)]
    while stack:
        item, where, depth = stack.pop()
        if isinstance(item, str):
            _check_string(item, where)
        elif isinstance(item, (dict, list, tuple)):
            if depth == MAX_NESTING:
                raise refusal(param, f"nested more than {MAX_NESTING} levels deep.")
            if isinstance(item, dict):
                for key in item:
                    _check_string(str(key), where)
                stack.extend((child, f"{where}.{key}", depth + 1) for key, child in item.items())
            else:
                stack.extend((child, f"{where}[{i}]", depth + 1) for i, child in enumerate(item))


def _check_string(text: str, param: str) -> None:
    if "\0" in text:
        raise refusal(param, "holds a NUL character.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise refusal(param, f"holds a lone surrogate at character {e.start}, which is no text.") from e


def to_tools(tools: Sequence[dict[str, Any]]) -> list[Tool]:
    """Raises InvalidRequestError naming `tools[i]...`, also for two tools of one name."""
    if len(tools) > MAX_TOOLS:
        raise refusal("tools", f"there are {len(tools)}; at most {MAX_TOOLS} are taken.")
    converted: list[Tool] = []
    seen: dict[str, int] = {}
    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        if not isinstance(tool, dict):
            raise refusal(where, "must be an object.", "invalid_type")
        check_text(tool, where)
        function = tool.get("function")
        if not isinstance(function, dict):
            raise refusal(f"{where}.function", "must be an object.", "invalid_type")
        with refusing(f"{where}.function"):
            function = Function.from_openai(function)
        with refusing(where):
            converted.append(Tool(type=tool.get("type", "function"), function=function))
        name = function.name
        if name in seen:
            raise refusal(f"{where}.function.name", f"{name!r} is already the name of tools[{seen[name]}].")
        seen[name] = i
    return converted


def to_messages(messages: Sequence[dict[str, Any]], *, continue_final_message: bool) -> list[ChatMessage]:
    """Converts a conversation; the last assistant message gets its prefix mark if it is to be continued.

    Raises:
        InvalidRequestError: naming `messages[i]...`.
    """
    if not isinstance(messages, (list, tuple)):
        raise refusal("messages", "must be a list of messages.", "invalid_type")
    if not messages:
        raise refusal("messages", "must hold at least one message.", "empty_array")
    converted: list[ChatMessage] = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            raise refusal(where, "must be an object.", "invalid_type")
        check_text(message, where)
        with refusing(where):
            converted.append(_converter(message, where)(message, where))
        if message.get("prefix") and i < len(messages) - 1:
            raise refusal(f"{where}.prefix", "only the last message can be continued.")
    if continue_final_message or messages[-1].get("prefix"):
        last = converted[-1]
        if not isinstance(last, AssistantMessage):
            raise refusal(
                f"messages[{len(messages) - 1}].role", "only an assistant message can be continued as the last one."
            )
        converted[-1] = last.model_copy(update={"prefix": True})
    return converted


def _converter(message: dict[str, Any], where: str) -> Callable[[dict[str, Any], str], ChatMessage]:
    role = message.get("role")
    if role == "user":
        return _user
    if role == "assistant":
        return _assistant
    if role == "tool":
        return _tool
    if role in ("system", "developer"):
        return _system
    raise refusal(f"{where}.role", f"must be system, developer, user, assistant or tool, got {role!r}.")


def _user(message: dict[str, Any], where: str) -> ChatMessage:
    return UserMessage(content=_content(message, "user", where))


def _system(message: dict[str, Any], where: str) -> ChatMessage:
    return SystemMessage(content=_content(message, "system", where))


def _tool(message: dict[str, Any], where: str) -> ChatMessage:
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str) or not call_id:
        raise refusal(f"{where}.tool_call_id", "a tool message needs the id of the call that it answers.")
    # `name` is left out: v15 prompts do not hold it, and mistral-common would refuse names with a dot.
    return ToolMessage(content=_content(message, "tool", where), tool_call_id=call_id)


def _assistant(message: dict[str, Any], where: str) -> ChatMessage:
    for field in ("reasoning", "reasoning_content"):
        if not isinstance(message.get(field), (str, type(None))):
            raise refusal(f"{where}.{field}", "must be a string.", "invalid_type")
    openai: dict[str, Any] = {"role": "assistant"}
    # Servers send "" where there was no reasoning; an empty think block would be another prompt.
    openai |= {field: message[field] for field in ("reasoning", "reasoning_content") if message.get(field)}
    if message.get("content") is not None:
        content = _content(message, "assistant", where)
        openai["content"] = content if isinstance(content, str) else [chunk.to_openai() for chunk in content]
    converted = AssistantMessage.from_openai(openai)
    calls = message.get("tool_calls")
    if not isinstance(calls, (list, type(None))):
        raise refusal(f"{where}.tool_calls", "must be a list.", "invalid_type")
    tool_calls = [_tool_call(call, f"{where}.tool_calls[{j}]") for j, call in enumerate(calls or [])]
    return converted.model_copy(update={"tool_calls": tool_calls or None})


def _tool_call(call: Any, where: str) -> ToolCall:
    if not isinstance(call, dict):
        raise refusal(where, "must be an object.", "invalid_type")
    if not call.get("id"):
        raise refusal(f"{where}.id", "a tool call needs an id.", "missing_required_parameter")
    with refusing(where):
        return ToolCall.from_openai(call)


def _content(message: dict[str, Any], role: str, where: str) -> Any:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        chunks = [_chunk(part, role, f"{where}.content[{j}]") for j, part in enumerate(content)]
        return [chunk for chunk in chunks if not _is_empty_thinking(chunk)]
    raise refusal(f"{where}.content", "must be a string or a list of content parts.", "invalid_type")


def _is_empty_thinking(chunk: Any) -> bool:
    return isinstance(chunk, ThinkChunk) and chunk.closed and not chunk.thinking


def _chunk(part: Any, role: str, where: str) -> TextChunk | ThinkChunk | ImageChunk:
    if not isinstance(part, dict):
        raise refusal(where, "must be an object.", "invalid_type")
    kind = part.get("type")
    if kind not in _PARTS[role]:
        allowed = " or ".join(_PARTS[role])
        raise refusal(
            f"{where}.type", f"must be {allowed} in messages of role {role}, got {kind!r}.", "unsupported_value"
        )
    with refusing(where):
        if kind == "text":
            return TextChunk.from_openai(part)
        if kind == "thinking":
            return ThinkChunk.from_openai({**part, "thinking": _thinking_text(part.get("thinking"), where)})
        image = part.get("image")
        if not isinstance(image, Image) or 0 in image.size:
            raise refusal(f"{where}.image", "must be a decoded image of at least one pixel.", "invalid_image")
        return ImageChunk(image=image)


def is_empty_answer(message: ChatMessage) -> bool:
    """An assistant message that says nothing. A model may answer so, and clients send it back.

    mistral-common cannot write one, so it is left out of the prompt; one that is to be continued is simply started.
    """
    return isinstance(message, AssistantMessage) and not message.content and not message.tool_calls


def _thinking_text(thinking: Any, where: str) -> Any:
    """Mistral's API wraps the text of a thinking chunk in a list of text chunks; mistral-common wants a string."""
    if not isinstance(thinking, list):
        return thinking
    texts = []
    for k, piece in enumerate(thinking):
        text = piece.get("text") if isinstance(piece, dict) and piece.get("type") == "text" else None
        if not isinstance(text, str):
            raise refusal(f"{where}.thinking[{k}]", 'must be {"type": "text", "text": "..."}.')
        texts.append(text)
    return "".join(texts)


def blame(error: MistralCommonException, messages: Sequence[ChatMessage], index: int) -> InvalidRequestError:
    """The refusal for a conversation that is not allowed: `messages[index]` is the first one that makes it so."""
    message, where, text = messages[index], f"messages[{index}]", error.message
    if isinstance(error, InvalidMessageStructureException):
        about_ids = "tool call id" in text
        field = ("tool_call_id" if isinstance(message, ToolMessage) else "tool_calls") if about_ids else "role"
        return refusal(f"{where}.{field}", text, "invalid_message_order")
    if isinstance(error, InvalidToolMessageException):
        return refusal(f"{where}.tool_call_id", text)
    field = "tool_calls" if isinstance(error, InvalidFunctionCallException) else "content"
    return refusal(f"{where}.{field}", text)
