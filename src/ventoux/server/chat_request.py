"""A chat request as sent -> what the engine is asked, with everything checked before the answer begins."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

from ventoux.engine.request import Request
from ventoux.errors import InvalidRequestError
from ventoux.server.constraints import answer_grammar
from ventoux.server.generate import new_request_id
from ventoux.server.images import MessageImages
from ventoux.server.refusals import ignored_header
from ventoux.server.schemas import ChatRequest, TokenizeRequest, fit
from ventoux.server.service import Place, Service
from ventoux.server.wire import warn
from ventoux.text.answer import AnswerStream
from ventoux.text.grammar import Calls, Thinking
from ventoux.text.limit import PromptLimit
from ventoux.text.messages import MAX_TOOLS
from ventoux.text.tokenizer import Prompt

# The model knows "none" and "high"; other levels that clients send count as the nearer one.
_EFFORTS = {
    "none": "none",
    "minimal": "none",
    "low": "high",
    "medium": "high",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}

ToolMode = Literal["none", "auto", "required", "named"]


@dataclass(frozen=True)
class ToolChoice:
    """`names`: only these tools may be called; None: all."""

    mode: ToolMode
    names: tuple[str, ...] | None = None

    @property
    def forced(self) -> bool:
        return self.mode in ("required", "named")

    @property
    def calls(self) -> Calls:
        return "required" if self.mode == "named" else self.mode


@dataclass(frozen=True)
class ChatJob:
    """A checked chat request: what the engine gets, and how its answer is to be written."""

    request: Request
    place: Place
    model: str
    tool_choice: ToolChoice
    streams: list[AnswerStream]
    include_reasoning: bool
    include_usage: bool
    continuous_usage: bool
    logprob_details: tuple[str, ...]
    headers: dict[str, str] = field(default_factory=dict)


async def prepare_chat(
    service: Service,
    body: ChatRequest,
    place: Place,
    *,
    id_prefix: str = "chatcmpl-",
    headers: dict[str, str] | None = None,
) -> ChatJob:
    """Checks a request and renders its prompt.

    Args:
        id_prefix: Of the request's id, with its separator.
        headers: What the client is told beside the answer; more is added.

    Raises:
        InvalidRequestError, ModelNotFoundError, ApiError 503: nothing has reached the engine then.
    """
    model = service.model(body.model)
    headers = {} if headers is None else headers
    if unknown := body.unknown_fields():
        headers["x-ignored-fields"] = ignored_header(unknown)
    body.check_combinations()
    effort = reasoning_effort(body, headers)
    choice = tool_choice(body)
    params = body.sampling(service.tokenizer.vocab_size, num_logprobs=body.num_logprobs)
    prompt = await encode_chat(service, body, effort, headers, place=place)
    params.grammar = await _grammar(service, body, choice, prompt, effort)
    params.routed_experts = bool(body.return_routed_experts)
    params = fit(params, len(prompt.token_ids), service.max_model_len, param="messages")
    options = body.stream_options
    return ChatJob(
        request=Request(
            request_id=new_request_id(id_prefix),
            prompt_token_ids=prompt.token_ids,
            params=params,
            images=prompt.images,
            cache_salt=body.cache_salt or "",
        ),
        place=place,
        model=model,
        tool_choice=choice,
        streams=[
            AnswerStream(
                service.tokenizer,
                params,
                parse_tools=choice.mode != "none",
                start_in_reasoning=prompt.in_reasoning,
                max_tool_calls=1 if body.parallel_tool_calls is False else None,
            )
            for _ in range(params.n)
        ],
        include_reasoning=body.include_reasoning is not False,
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.include_usage and options.continuous_usage_stats),
        logprob_details=body.logprob_details,
        headers=headers,
    )


async def encode_chat(
    service: Service,
    body: ChatRequest | TokenizeRequest,
    effort: str,
    headers: dict[str, str],
    *,
    limit: PromptLimit | None = None,
    place: Place | None = None,
) -> Prompt:
    """Fetches and decodes images and renders the prompt of a request with messages; the heavy part runs in a thread.

    Prompts that leave no room for an answer are refused, or those beyond `limit`. `place` holds the images' pixels
    from then on; without one they are not kept. `headers` get what the client is to be warned of.
    """
    images = MessageImages(repaired(body.messages or [], headers), service.config)

    def encode() -> Prompt:
        return service.tokenizer.encode_chat(
            images.decoded(service.media.decoder),
            tools=body.tools,
            reasoning_effort=effort,
            continue_final_message=bool(body.continue_final_message),
            limit=limit or service.prompt_limit,
        )

    if not images:
        prompt = await asyncio.to_thread(encode)
        if place is not None:
            service.hold_tokens(place, len(prompt.token_ids))
        return prompt
    if place is not None:
        service.hold_pixels(place, 0)
    await images.fetch(service.media)
    async with service.image_slots:
        prompt = await asyncio.to_thread(encode)
    if place is not None:
        service.hold_pixels(place, sum(len(image.pixels) for image in prompt.images))
        service.hold_tokens(place, len(prompt.token_ids))
    return prompt


def reasoning_effort(body: ChatRequest, headers: dict[str, str]) -> str:
    """The effort that the model knows; `headers` get a warning if it is not the one that was asked for."""
    asked = body.reasoning_effort
    if body.prompt_mode is not None:
        if body.prompt_mode != "reasoning":
            raise InvalidRequestError('prompt_mode must be "reasoning".', param="prompt_mode")
        if asked is not None and _EFFORTS.get(asked) != "high":
            raise InvalidRequestError(
                'prompt_mode: "reasoning" is reasoning_effort: "high", and the two disagree.', param="prompt_mode"
            )
        asked = asked or "high"
    return known_effort(asked, headers)


def known_effort(asked: str | None, headers: dict[str, str]) -> str:
    """As `reasoning_effort`, of the field alone. Raises InvalidRequestError."""
    if asked is None:
        return "none"
    effort = _EFFORTS.get(asked)
    if effort is None:
        raise InvalidRequestError(
            f"reasoning_effort must be one of {', '.join(_EFFORTS)}.", param="reasoning_effort", code="invalid_value"
        )
    if effort != asked:
        warn(headers, f"reasoning_effort {asked} counts as {effort}")
    return effort


def tool_choice(body: ChatRequest) -> ToolChoice:
    """Checks `tools` and `tool_choice` as far as they concern each other."""
    tools, choice = body.tools or [], body.tool_choice
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError(f"At most {MAX_TOOLS} tools are taken, got {len(tools)}.", param="tools")
    for i, tool in enumerate(tools):
        if tool.get("type") != "function":
            raise InvalidRequestError(
                f"tools[{i}].type must be function.", param=f"tools[{i}].type", code="unsupported_value"
            )
    if choice is None:
        return ToolChoice("auto" if tools else "none")
    parsed = _parse_choice(choice)
    if parsed.forced and not tools:
        raise InvalidRequestError("tool_choice requires a call, but there are no tools.", param="tool_choice")
    known = [function.get("name") for tool in tools if isinstance(function := tool.get("function"), dict)]
    if any(name not in known for name in parsed.names or ()):
        raise InvalidRequestError("tool_choice names a tool that is not in tools.", param="tool_choice")
    return parsed if tools else ToolChoice("none")


def _parse_choice(choice: Any) -> ToolChoice:
    match choice:
        case "none" | "auto" | "required":
            return ToolChoice(choice)
        case "any":
            # Mistral's name for it.
            return ToolChoice("required")
        case {"type": "function", "function": {"name": str(name)}}:
            return ToolChoice("named", (name,))
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [_, *_] as tools},
        }:
            return ToolChoice(mode, tuple(_allowed_name(tool) for tool in tools))
    raise InvalidRequestError(
        'tool_choice must be "none", "auto", "required", {"type": "function", "function": {"name": ...}} or'
        ' {"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [...]}}.',
        param="tool_choice",
    )


def _allowed_name(tool: Any) -> str:
    match tool:
        case {"type": "function", "function": {"name": str(name)}}:
            return name
    raise InvalidRequestError("tool_choice allows functions by name, and nothing else.", param="tool_choice")


async def _grammar(service: Service, body: ChatRequest, choice: ToolChoice, prompt: Prompt, effort: str) -> str | None:
    """The grammar of the answer; None if it may be anything.

    With tools there always is one: calls are whole then, and their arguments parse. The same holds if there are none
    but the conversation has calls: a model that has called goes on calling, and its call would be shown as text.
    """
    form = body.form()
    if form is not None and choice.forced:
        raise InvalidRequestError(f"{form.param} and a required tool call exclude each other.", param=form.param)
    thinking = None
    if effort == "high" or prompt.in_reasoning:
        thinking = Thinking(prompt.in_reasoning, body.thinking_token_budget)
    has_called = any(message.get("tool_calls") for message in body.messages)
    is_limited = thinking is not None and thinking.max_tokens is not None
    if form is None and not body.tools and not has_called and not is_limited:
        return None
    return await answer_grammar(
        service,
        form,
        tools=body.tools or (),
        calls=choice.calls,
        names=choice.names,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        thinking=thinking,
    )


def repaired(messages: list[dict[str, Any]], headers: dict[str, str]) -> list[dict[str, Any]]:
    """A system message right after an assistant's or a tool's has no place in the format: it becomes the user's.

    So do those that follow it. `headers` get a warning.
    """
    taken, names = [], []
    after: Any = None
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role in ("system", "developer") and after in ("assistant", "tool"):
            taken.append({**message, "role": "user"})
            names.append(f"messages[{i}]")
            continue
        taken.append(message)
        after = role
    if names:
        warn(headers, f"{', '.join(names[:8])}{', ...' * (len(names) > 8)} of role system count as user")
    return taken
