"""What clients may send to /v1/responses, field by field."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ventoux.engine.limits import MAX_LOGPROBS
from ventoux.errors import InvalidRequestError
from ventoux.server.refusals import (
    COMPLETIONS,
    FieldRules,
    elsewhere,
    ignored_header,
    refuse_unsupported,
    unknown_inside,
)
from ventoux.server.schemas import Body, ChatRequest, TextOrObjects
from ventoux.server.wire import warn

# OpenAI's limits: pairs, characters of a key, characters of a value.
MAX_METADATA = (16, 64, 512)

_INCLUDES = frozenset(
    {
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "message.output_text.logprobs",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Body):
    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "all_turns"] | None = None
    mode: Literal["standard"] | None = None


class ResponsesStreamOptions(Body):
    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(Body):
    """POST /v1/responses"""

    model: str | None = Field(None, description="One of the served names; the first one if left out.")
    input: TextOrObjects
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = Field(None, description="Keep the response, which is the default.")
    background: bool | None = Field(None, description="Answer at once with the id; not streamed.")
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    include: list[str] | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = Field(None, description='"auto", "none", "required", or {"type": "function", "name": ...}.')
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None

    @property
    def wants_logprobs(self) -> bool:
        return "message.output_text.logprobs" in (self.include or ()) or bool(self.top_logprobs)

    def headers(self) -> dict[str, str]:
        """What the client is told beside the answer.

        Raises:
            InvalidRequestError: a field is known but not honoured, or out of its range.
        """
        unknown = refuse_unsupported(self.model_extra or {}, RULES)
        unknown += self.extra_inside() + unknown_inside(dict(self), RULES)
        self._check()
        headers = {"x-ignored-fields": ignored_header(unknown)} if unknown else {}
        if self.reasoning is not None and (self.reasoning.summary or self.reasoning.generate_summary):
            warn(headers, "reasoning is not summarized: it comes in full")
        return headers

    def _check(self) -> None:
        for name in self.include or ():
            if name not in _INCLUDES:
                raise InvalidRequestError(f"include knows no {name[:100]!r}.", param="include", code="invalid_value")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options needs stream: true.", param="stream_options")
        check_metadata(self.metadata)


def check_metadata(metadata: dict[str, str] | None) -> None:
    """Raises InvalidRequestError if there is more of it than OpenAI takes."""
    pairs, key_length, value_length = MAX_METADATA
    given = metadata or {}
    if len(given) > pairs or any(len(k) > key_length or len(v) > value_length for k, v in given.items()):
        raise InvalidRequestError(
            f"metadata takes {pairs} pairs, keys of {key_length} and values of {value_length} characters.",
            param="metadata",
        )


# OpenAI's, with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "access_programs": (),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "max_tool_calls": (),
    "moderation": (),
    "prompt": (),
    "truncation": ("disabled",),
}
_INSTEAD = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_new_tokens", "num_predict"), "max_output_tokens"),
    "messages": "input",
    "reasoning_effort": "reasoning",
    "response_format": "text",
    "conversation": "previous_response_id",
}
_INSIDE = {
    "input": "type role content id status call_id name arguments output summary encrypted_content phase",
    "input.content": "type text image_url detail annotations logprobs refusal",
    "input.summary": "type text",
    "input.output": "type text image_url detail annotations logprobs",
    "tools": "type name description parameters strict",
}
RULES = FieldRules(
    refused=elsewhere(ChatRequest.model_fields, _REFUSED, without=ResponsesRequest.model_fields),
    instead=_INSTEAD,
    harmless=COMPLETIONS.harmless | {"client_metadata", "prompt_cache_options"},
    inside=_INSIDE,
)
