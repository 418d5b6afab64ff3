"""A chat request as sent -> what the engine is asked, with everything checked before the answer begins."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

from ventoux.engine.request import Request
from ventoux.errors import InvalidRequestError
from ventoux.server.generate import new_request_id
from ventoux.server.images import MessageImages
from ventoux.server.refusals import ignored_header
from ventoux.server.schemas import ChatRequest, TokenizeRequest, fit
from ventoux.server.service import Place, Service
from ventoux.server.wire import warn
from ventoux.text.answer import AnswerStream
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
    mode: ToolMode
    name: str | None = None

    @property
    def forced(self) -> bool:
        return self.mode in ("required", "named")


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
    grammar = await _grammar(service, body, choice, think=effort == "high")
    params = body.sampling(service.tokenizer.vocab_size, num_logprobs=body.num_logprobs, grammar=grammar)
    prompt = await encode_chat(service, body, effort, place=place)
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
        headers=headers,
    )


async def encode_chat(
    service: Service,
    body: ChatRequest | TokenizeRequest,
    effort: str,
    *,
    limit: PromptLimit | None = None,
    place: Place | None = None,
) -> Prompt:
    """Fetches and decodes images and renders the prompt of a request with messages; the heavy part runs in a thread.

    Prompts that leave no room for an answer are refused, or those beyond `limit`. `place` holds the images' pixels
    from then on; without one they are not kept.
    """
    images = MessageImages(body.messages or [], service.config)

    def encode() -> Prompt:
        return service.tokenizer.encode_chat(
            images.decoded(),
            tools=body.tools,
            reasoning_effort=effort,
            continue_final_message=bool(body.continue_final_message),
            limit=limit or service.prompt_limit,
        )

    if not images:
        return await asyncio.to_thread(encode)
    if place is not None:
        service.hold_pixels(place, 0)
    await images.fetch(service.media)
    async with service.image_slots:
        prompt = await asyncio.to_thread(encode)
    if place is not None:
        service.hold_pixels(place, sum(len(image.pixels) for image in prompt.images))
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
    if parsed.name is not None:
        names = [function.get("name") for tool in tools if isinstance(function := tool.get("function"), dict)]
        if parsed.name not in names:
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
            return ToolChoice("named", name)
    raise InvalidRequestError(
        'tool_choice must be "none", "auto", "required" or {"type": "function", "function": {"name": ...}}.',
        param="tool_choice",
    )


async def _grammar(service: Service, body: ChatRequest, choice: ToolChoice, *, think: bool) -> str | None:
    """The grammar of forced calls or of a response format. Compiled once here, so that a bad schema is a 400."""
    wanted = body.response_format.wanted() if body.response_format else None
    if wanted is None and not choice.forced:
        return None
    if wanted is not None and choice.forced:
        raise InvalidRequestError(
            "response_format and a required tool call exclude each other.", param="response_format"
        )
    tools = body.tools or []
    parallel = body.parallel_tool_calls is not False

    def compiled() -> str:
        compiler = service.grammars
        if wanted is None:
            grammar = compiler.tool_grammar(tools, name=choice.name, parallel_tool_calls=parallel, think=think)
            compiler.compile(grammar, param="tools")
        else:
            offered = tools if choice.mode == "auto" else ()
            grammar = compiler.json_grammar(wanted.schema, tools=offered, parallel_tool_calls=parallel, think=think)
            compiler.compile(grammar, param="response_format.json_schema.schema")
        return grammar

    return await asyncio.to_thread(compiled)
