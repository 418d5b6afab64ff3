"""Ranges of every sampling field, in one table; what lies outside is refused by name. No torch."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import msgspec

from ventoux.errors import InvalidRequestError

if TYPE_CHECKING:
    from ventoux.engine.request import SamplingParams

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1000
MAX_LOGIT_BIAS = 1024

# field: (lowest, highest, lowest is allowed)
_RANGES: dict[str, tuple[float, float, bool]] = {
    "n": (1, MAX_N, True),
    "temperature": (0.0, 2.0, True),
    "top_p": (0.0, 1.0, False),
    "top_k": (-1, 2**31 - 1, True),
    "min_p": (0.0, 1.0, True),
    "presence_penalty": (-2.0, 2.0, True),
    "frequency_penalty": (-2.0, 2.0, True),
    "repetition_penalty": (0.0, 10.0, False),
    "seed": (-(2**63), 2**63 - 1, True),
    "max_tokens": (1, 2**31 - 1, True),
    "min_tokens": (0, 2**31 - 1, True),
    "logprobs": (0, MAX_LOGPROBS, True),
    "prompt_logprobs": (0, MAX_LOGPROBS, True),
}


def check_types(params: SamplingParams) -> None:
    """Raises InvalidRequestError (param = the field's name) for a value of the wrong type."""
    try:
        msgspec.convert(msgspec.structs.asdict(params), type(params))
    except msgspec.ValidationError as error:
        # "Expected `int`, got `str` - at `$.stop_token_ids[0]`"
        reason, _, place = str(error).partition(" - at ")
        name = re.split(r"\W+", place.partition("$.")[2])[0]
        raise InvalidRequestError(f"{name}: {reason[:1].lower()}{reason[1:]}.", param=name) from error


def check_sampling(params: SamplingParams, vocab_size: int) -> None:
    """Raises InvalidRequestError (param = the field's name) for the first value out of range."""
    for name, (low, high, closed) in _RANGES.items():
        value = getattr(params, name)
        if value is None:
            continue
        inside = math.isfinite(value) and (low <= value if closed else low < value) and value <= high
        if not inside:
            bracket = "[" if closed else "("
            raise InvalidRequestError(f"{name} must be in {bracket}{low}, {high}], got {value}.", param=name)
    if params.max_tokens is not None and params.min_tokens > params.max_tokens:
        raise InvalidRequestError(
            f"min_tokens ({params.min_tokens}) must not be more than max_tokens ({params.max_tokens}).",
            param="min_tokens",
        )
    if len(params.stop) > MAX_STOP_STRINGS:
        raise InvalidRequestError(
            f"stop takes at most {MAX_STOP_STRINGS} strings, got {len(params.stop)}.", param="stop"
        )
    if any(not 0 < len(s) <= MAX_STOP_LENGTH for s in params.stop):
        raise InvalidRequestError(f"each stop string must have 1 to {MAX_STOP_LENGTH} characters.", param="stop")
    _check_ids("stop_token_ids", params.stop_token_ids, vocab_size)
    if len(params.logit_bias) > MAX_LOGIT_BIAS:
        raise InvalidRequestError(f"logit_bias takes at most {MAX_LOGIT_BIAS} entries.", param="logit_bias")
    _check_ids("logit_bias", params.logit_bias, vocab_size)
    for bias in params.logit_bias.values():
        if not (math.isfinite(bias) and -100 <= bias <= 100):
            raise InvalidRequestError(f"logit_bias values must be in [-100, 100], got {bias}.", param="logit_bias")


def _check_ids(name: str, ids, vocab_size: int) -> None:
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequestError(
                f"{name} holds token id {token_id}, but ids run from 0 to {vocab_size - 1}.", param=name
            )
