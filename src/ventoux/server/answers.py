"""What the routes answer, field by field, for the OpenAPI document. Tests compare the answers with it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema


class _Exact(BaseModel):
    """An object that has these fields and no others; those without a default are always there."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(_Exact):
    message: str = Field(min_length=1)
    type: str
    param: str | None
    code: str | None


class Error(_Exact):
    error: ErrorDetail


class AnthropicErrorDetail(_Exact):
    type: str
    message: str = Field(min_length=1)
    details: dict[str, Any] = Field(default_factory=dict)


class AnthropicError(_Exact):
    type: Literal["error"]
    error: AnthropicErrorDetail


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int]


class CalledFunction(_Exact):
    name: str
    arguments: str


class ToolCall(_Exact):
    id: str = Field(pattern="^[A-Za-z0-9]{9}$")
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(_Exact):
    role: Literal["assistant"]
    content: str | None
    reasoning: str | None
    reasoning_content: str | None
    refusal: None
    tool_calls: list[ToolCall] = Field(default_factory=list, min_length=1)


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_reason: str | int | None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice] = Field(min_length=1)
    usage: Usage


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice] = Field(min_length=1)
    usage: Usage


class AnthropicMessage(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str
    stop_sequence: str | None
    usage: dict[str, Any]


class Counted(_Exact):
    input_tokens: int


class ResponseObject(BaseModel):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    metadata: dict[str, str]


class Deleted(_Exact):
    id: str
    object: str
    deleted: Literal[True]


class ItemList(BaseModel):
    object: Literal["list"]
    data: list[dict[str, Any]]


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    type: Literal["base"]
    capabilities: dict[str, bool]


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


class Tokenized(_Exact):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(_Exact):
    prompt: str


class Status(BaseModel):
    status: str


class AnyObject(BaseModel):
    """An object that the reference describes."""


_STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")
_ANSWERS: dict[tuple[str, str], type[BaseModel]] = {
    ("post", "/v1/chat/completions"): ChatCompletion,
    ("post", "/v1/completions"): Completion,
    ("post", "/v1/messages"): AnthropicMessage,
    ("post", "/v1/messages/count_tokens"): Counted,
    ("post", "/v1/responses"): ResponseObject,
    ("get", "/v1/responses/{response_id}"): ResponseObject,
    ("post", "/v1/responses/{response_id}/cancel"): ResponseObject,
    ("delete", "/v1/responses/{response_id}"): Deleted,
    ("get", "/v1/responses/{response_id}/input_items"): ItemList,
    ("get", "/v1/files"): ItemList,
    ("delete", "/v1/files/{file_id}"): Deleted,
    ("get", "/v1/batches"): ItemList,
    ("get", "/v1/models"): ModelList,
    ("get", "/v1/models/{model}"): Model,
    ("post", "/tokenize"): Tokenized,
    ("post", "/detokenize"): Detokenized,
    ("get", "/health"): Status,
    ("get", "/ready"): Status,
}
# Routes whose answers are no JSON.
_OTHER_TYPES = {
    ("get", "/metrics"): "text/plain",
    ("get", "/v1/files/{file_id}/content"): "application/octet-stream",
}


def describe_answers(spec: dict[str, Any]) -> None:
    """Writes what every route of an OpenAPI document answers into it."""
    models = sorted({*_ANSWERS.values(), Error, AnthropicError, AnyObject}, key=lambda model: model.__name__)
    template = "#/components/schemas/{model}"
    refs, definitions = models_json_schema([(model, "serialization") for model in models], ref_template=template)
    schemas = spec.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions["$defs"])
    # FastAPI's own, of answers that are never given.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, operations in spec["paths"].items():
        error = refs[AnthropicError if path.startswith("/v1/messages") else Error, "serialization"]
        for method, operation in operations.items():
            content: dict[str, Any] = {}
            if kind := _OTHER_TYPES.get((method, path)):
                content[kind] = {"schema": {"type": "string"}}
            else:
                answer = _ANSWERS.get((method, path), AnyObject)
                content["application/json"] = {"schema": refs[answer, "serialization"]}
            if method == "post" and path in _STREAMED:
                content["text/event-stream"] = {"schema": {"type": "string"}}
            refused = {"description": "Refused", "content": {"application/json": {"schema": error}}}
            operation["responses"] = {
                "200": {"description": "The answer", "content": content},
                **dict.fromkeys(("4XX", "5XX"), refused),
            }
