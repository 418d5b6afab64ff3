"""What the engine is asked and what it answers. No torch, no text: token ids in, token ids out.

These records also cross the process border (msgspec encodes them), so they hold plain values only.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort", "error"]


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How to choose tokens. Field names are the ones that vLLM made common.

    `stop` strings are honoured above the engine, where text exists; the engine itself knows token ids only.
    Values are checked where requests enter (`check()`), so the engine can rely on them.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 or -1: all tokens
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    max_tokens: int | None = None  # None: all the room that is left
    min_tokens: int = 0
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    logprobs: int | None = None  # k most likely tokens beside the chosen one
    prompt_logprobs: int | None = None
    # A Lark grammar (llguidance) that the output must follow; None: free.
    grammar: str | None = None
    routed_experts: bool = False  # say which experts computed each token

    def check(self, vocab_size: int) -> None:
        """Raises InvalidRequestError naming the field, if any value is of another type or out of its range."""
        from ventoux.engine.limits import check_sampling, check_types

        check_types(self)
        check_sampling(self, vocab_size)


class ImageInput(msgspec.Struct, kw_only=True):
    """One preprocessed image: normalised float32 pixels, C x H x W, little-endian bytes.

    Height and width are multiples of patch_size * merge (28). `content_hash` is a SHA-256 over shape and pixels:
    it names the image in the prefix cache and in the cache of encoded images.
    """

    pixels: bytes
    height: int
    width: int
    content_hash: bytes


class Request(msgspec.Struct, kw_only=True):
    """One prompt with its images. The i-th image's rows replace its run of [IMG] tokens, in order of appearance."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    images: list[ImageInput] = []
    # Prefix pages are shared only among requests with the same salt.
    cache_salt: str = ""


class TokenLogprob(msgspec.Struct, array_like=True):
    """Log-probability of one token under the model, before temperature, penalties and cuts; rank 1 = most likely."""

    token_id: int
    logprob: float
    rank: int


class TokenOutput(msgspec.Struct, array_like=True):
    """One new token of one sequence."""

    token_id: int
    # The chosen token first, then the k most likely (the chosen one may come up again); empty if not asked for.
    logprobs: list[TokenLogprob] = []
    drafted: bool = False  # a draft had guessed it
    # If asked for: per layer, the experts of the row that the token was sampled from.
    experts: list[list[int]] = []


class EngineOutput(msgspec.Struct, kw_only=True, omit_defaults=True, tag="output"):
    """What one step brought for one sequence of a request.

    The first output of a sequence carries `num_cached_tokens`, `queue_seconds` (from the request's arrival at the
    engine to the sequence's first step) and, if asked for, `prompt_logprobs` (one entry per prompt token; the first is
    empty). `finish_reason` ends the sequence; `stop_token_id` says which id ended it, and that id is not among
    `tokens`. `error` is set exactly when `finish_reason` is "error".
    """

    request_id: str
    index: int = 0
    tokens: list[TokenOutput] = []
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error: str | None = None
    error_code: str | None = None
    num_cached_tokens: int = 0
    queue_seconds: float = 0.0
    prompt_logprobs: list[list[TokenLogprob]] | None = None
    # Tokens that were guessed for this sequence so far, and how many of them came true.
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0


class EngineStats(msgspec.Struct, kw_only=True, tag="stats"):
    """A snapshot of the engine, taken after each step. The last two fields are filled in by who supervises it."""

    num_running: int = 0
    num_waiting: int = 0
    num_pages: int = 0
    num_free_pages: int = 0
    num_preemptions: int = 0
    num_steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_cache_queries: int = 0  # prompt tokens looked up
    prefix_cache_hits: int = 0  # prompt tokens found
    num_images_encoded: int = 0
    num_failed: int = 0
    spec_decode_num_drafts: int = 0  # times that a sequence was computed together with guesses
    spec_decode_num_draft_tokens: int = 0
    spec_decode_num_accepted_tokens: int = 0
    spec_decode_num_accepted_tokens_per_pos: list[int] = []
    num_engine_restarts: int = 0
    is_silent: bool = False  # no sign of life for almost a second
