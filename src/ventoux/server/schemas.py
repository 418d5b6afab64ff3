"""What clients may send, field by field, with types; and how it becomes SamplingParams.

Strict types: no booleans as numbers, no numbers as text. null means "not given" everywhere. Ranges of sampling fields
are `engine/limits.py`'s. Messages and tools stay as they came: the text room judges them, naming the message.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ventoux.engine.limits import MAX_LOGPROBS
from ventoux.engine.request import SamplingParams
from ventoux.errors import ContextLengthError, InvalidRequestError
from ventoux.server.body import Body
from ventoux.server.constraints import Constrained
from ventoux.server.refusals import refuse_unsupported, unknown_inside

MAX_CACHE_SALT_LENGTH = 256
# OpenAI's default for plain completions. Chats end by themselves, so they may use all the room there is.
DEFAULT_COMPLETION_TOKENS = 16
# Scores of prompts in one answer. 84,000 of them hold up everybody else's events for a second or three; a prompt of
# 256k tokens with 20 alternatives each would have 5 million.
MAX_PROMPT_SCORES = 2**19


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _text_or_objects(value: Any) -> Any:
    # Without this an error would name the kind that it tried beside the field.
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        return value
    raise ValueError("must be a string or a list of objects")


TextOrObjects = Annotated[str | list[dict[str, Any]], BeforeValidator(_text_or_objects)]


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    # Mistral's name for what happens here always: tool calls go out piece by piece.
    stream_tool_calls: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Generation(Constrained):
    """Fields that chat and plain completions share."""

    model: str | None = Field(None, description="One of the served names; the first one if left out.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    random_seed: int | None = Field(None, description="Mistral's name of `seed`.")
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: Annotated[list[str] | None, BeforeValidator(_as_list)] = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="Scores of the prompt's tokens.")
    cache_salt: str | None = Field(None, description="Prompts share cached prefixes only under the same salt.")

    def limit(self) -> tuple[str, int | None]:
        """The name and value of the field that limits the number of new tokens."""
        return "max_tokens", self.max_tokens

    def unknown_fields(self) -> list[str]:
        """Names of fields that nobody knows; raises InvalidRequestError for those that are known but not honoured."""
        return refuse_unsupported(self.model_extra or {}) + self.extra_inside() + unknown_inside(dict(self))

    def check_combinations(self) -> None:
        """Raises InvalidRequestError for fields that contradict each other."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options needs stream: true.", param="stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequestError("prompt_logprobs cannot be streamed.", param="prompt_logprobs")
        if self.seed is not None and self.random_seed is not None and self.seed != self.random_seed:
            raise InvalidRequestError("seed and random_seed are the same and disagree.", param="random_seed")
        if self.cache_salt is not None and not 0 < len(self.cache_salt) <= MAX_CACHE_SALT_LENGTH:
            raise InvalidRequestError(
                f"cache_salt must have 1 to {MAX_CACHE_SALT_LENGTH} characters.", param="cache_salt"
            )

    def sampling(self, vocab_size: int, *, num_logprobs: int | None, grammar: str | None = None) -> SamplingParams:
        """Raises InvalidRequestError naming the field, if any value is out of its range."""
        given = {
            "n": self.n,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": _logit_bias(self.logit_bias),
            "seed": self.seed if self.seed is not None else self.random_seed,
            "max_tokens": self.limit()[1],
            "min_tokens": self.min_tokens,
            "stop": self.stop,
            "stop_token_ids": self.stop_token_ids,
            "ignore_eos": self.ignore_eos,
            "include_stop_str_in_output": self.include_stop_str_in_output,
            "logprobs": num_logprobs,
            "prompt_logprobs": self.prompt_logprobs,
            "grammar": grammar,
        }
        params = SamplingParams(**{name: value for name, value in given.items() if value is not None})
        try:
            params.check(vocab_size)
        except InvalidRequestError as e:
            if e.param == "max_tokens":
                e.param = self.limit()[0]
            raise
        return params


def fit(params: SamplingParams, num_prompt_tokens: int, max_model_len: int, *, param: str) -> SamplingParams:
    """Sets `max_tokens` to at most the room that the prompt leaves.

    Raises:
        ContextLengthError: there is no room for a single token.
        InvalidRequestError: `min_tokens` is more than that room, or there would be too many scores of the prompt.
    """
    room = max_model_len - num_prompt_tokens
    if room < 1:
        raise ContextLengthError(num_prompt_tokens, max_model_len, param=param)
    if params.min_tokens > room:
        raise InvalidRequestError(
            f"min_tokens is {params.min_tokens}, but the prompt leaves room for {room}.", param="min_tokens"
        )
    if params.prompt_logprobs is not None:
        num_scores = params.n * num_prompt_tokens * (params.prompt_logprobs + 1)
        if num_scores > MAX_PROMPT_SCORES:
            raise InvalidRequestError(
                f"The prompt would get {num_scores} scores; {MAX_PROMPT_SCORES} can be told.", param="prompt_logprobs"
            )
    params.max_tokens = min(params.max_tokens or room, room)
    return params


def _logit_bias(bias: dict[str, float] | None) -> dict[int, float] | None:
    if bias is None:
        return None
    for key in bias:
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise InvalidRequestError(f"logit_bias keys must be token ids, got {key[:40]!r}.", param="logit_bias")
    return {int(key): value for key, value in bias.items()}


class ChatRequest(_Generation):
    """POST /v1/chat/completions"""

    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = Field(None, description='"auto", "none", "required", one function, or allowed_tools.')
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = Field(None, description='"none" or "high"; other levels count as the nearer one.')
    prompt_mode: str | None = Field(None, description='Mistral\'s older switch: "reasoning" is effort "high".')
    include_reasoning: bool | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    return_drafted: bool | None = Field(None, description="Entries of logprobs say whether a draft guessed the token.")
    return_routed_experts: bool | None = Field(None, description="And which experts of each layer computed it.")
    thinking_token_budget: int | None = Field(None, ge=0, le=2**31 - 1, description="Reasoning ends after so many.")
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    echo: Literal[False] | None = None

    def limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def logprob_details(self) -> tuple[str, ...]:
        """What entries of logprobs tell beside OpenAI's keys."""
        asked = {"drafted": self.return_drafted, "experts": self.return_routed_experts}
        return tuple(name for name, wanted in asked.items() if wanted)

    def check_combinations(self) -> None:
        super().check_combinations()
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise InvalidRequestError(
                "max_tokens and max_completion_tokens are the same and disagree.", param="max_completion_tokens"
            )
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
        for name in ("return_drafted", "return_routed_experts"):
            if getattr(self, name) and not self.logprobs:
                raise InvalidRequestError(f"{name} needs logprobs: true.", param=name)
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt exclude each other.", param="continue_final_message"
            )
        if self.add_generation_prompt is False and not self.continue_final_message:
            raise InvalidRequestError(
                "add_generation_prompt: false needs continue_final_message: true.", param="add_generation_prompt"
            )


class CompletionRequest(_Generation):
    """POST /v1/completions"""

    prompt: Any = Field(description="A string, a list of token ids, or a list of either.")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None
    add_special_tokens: bool | None = Field(None, description="Begin text prompts with <s> (default: true).")

    def limit(self) -> tuple[str, int | None]:
        return "max_tokens", DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens


class TokenizeRequest(Body):
    """POST /tokenize: a plain prompt, or a chat."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool = True
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    """POST /detokenize"""

    model: str | None = None
    tokens: list[int]
