"""What clients may send to Anthropic's routes, field by field."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

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


class Thinking(Body):
    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = Field(None, ge=1)
    display: Literal["summarized", "omitted"] | None = None


class MessagesToolChoice(Body):
    type: Literal["auto", "any", "none", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    effort: str | None = None
    format: OutputFormat | None = None


class CountTokensRequest(Body):
    """POST /v1/messages/count_tokens"""

    model: str | None = Field(None, description="One of the served names; the first one if left out.")
    messages: list[dict[str, Any]] = Field(min_length=1)
    system: TextOrObjects | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    def headers(self) -> dict[str, str]:
        """What the client is told beside the answer.

        Raises:
            InvalidRequestError: naming a field that is known but not honoured.
        """
        unknown = refuse_unsupported(self.model_extra or {}, RULES)
        unknown += self.extra_inside() + unknown_inside(dict(self), RULES)
        headers = {"x-ignored-fields": ignored_header(unknown)} if unknown else {}
        if self.output_config is not None and self.output_config.effort is not None:
            warn(headers, "output_config.effort has no effect")
        return headers


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages"""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


# Anthropic's, with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "container": (),
    # Keeping all thinking is what happens here.
    "context_management": ({}, {"edits": []}, {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}),
    "diagnostics": ({},),
    "inference_geo": (),
    "mcp_servers": ([],),
    "output_format": (),
    "speed": ("standard",),
    # Conversations that the server keeps. Taken without a word, the next turn would come without its history.
    "thread": (),
}
_INSTEAD = {
    "output_format": "output_config",
    "response_format": "output_config",
    "reasoning_effort": "thinking",
    "stop": "stop_sequences",
    **dict.fromkeys(("max_completion_tokens", "max_new_tokens", "max_output_tokens", "num_predict"), "max_tokens"),
}
_HARMLESS = frozenset({"anthropic_beta", "anthropic_version", "cache_control", "user_profile_id", "workspace_id"})
_INSIDE = {
    "system": "type text cache_control",
    "messages": "role content",
    "messages.content": (
        "type text source thinking signature id name input tool_use_id content is_error cache_control"
    ),
    "messages.content.source": "type media_type data url",
    "messages.content.content": "type text source cache_control",
    "messages.content.content.source": "type media_type data url",
    "tools": "type name description input_schema strict cache_control eager_input_streaming",
}
RULES = FieldRules(
    refused=elsewhere(ChatRequest.model_fields, _REFUSED, without=MessagesRequest.model_fields),
    instead=_INSTEAD,
    harmless=COMPLETIONS.harmless | _HARMLESS,
    inside=_INSIDE,
)
