"""What the user says about speculation (`--speculative-config`), checked; no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, Literal, cast, get_args

from ventoux.errors import ConfigError

Method = Literal["eagle", "ngram", "none"]
FLAG = "--speculative-config"
# Each guess is a row of the verifying forward; beyond this many, even a guess that mostly comes true is not worth it.
MAX_SPECULATIVE_TOKENS = 16
# Keys of other servers that change nothing here: one draft, one device, greedy guesses, operators by machine.
_WITHOUT_EFFECT = {"draft_tensor_parallel_size": (1,), "attention_backend": None, "draft_sample_method": ("greedy",)}


@dataclass(frozen=True)
class SpeculativeConfig:
    """`method` None: EAGLE if `model` is given or a draft lies in the target's folder, else no speculation.

    `max_model_len` bounds the draft's own context, in tokens: sequences that grow beyond it go on without guesses.
    The n-gram method looks for `prompt_lookup_max` down to `prompt_lookup_min` tokens. `adaptive` False: always as many
    guesses as there is room for, however few come true.
    """

    method: Method | None = None
    model: str | None = None
    num_speculative_tokens: int = 3
    max_model_len: int | None = None
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2
    adaptive: bool = True


def parse_speculative(given: str | dict[str, Any] | None) -> SpeculativeConfig:
    """From JSON or its mapping, under the names that vLLM made common; numbers may be strings, as on the model card.

    Raises:
        ConfigError: no object, an unknown key, a value of the wrong type or out of its range; all problems at once.
    """
    if given is None:
        return SpeculativeConfig()
    try:
        values = json.loads(given) if isinstance(given, str) else dict(given)
    except ValueError as error:
        raise ConfigError(f"{FLAG} must be a JSON object, got {given!r}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{FLAG} must be a JSON object, got {given!r}.")
    problems = []
    for key, allowed in _WITHOUT_EFFECT.items():
        value = values.pop(key, None)
        if value is not None and allowed is not None and value not in allowed:
            problems.append(f"{key} can only be {', '.join(map(str, allowed))} here, got {value!r}")
    known = {f.name for f in fields(SpeculativeConfig)}
    problems += [f"unknown key {key!r}" for key in values if key not in known]
    if values.get("method", "none") not in (*get_args(Method), None):
        problems.append(f"method must be one of {', '.join(get_args(Method))}, got {values['method']!r}")
    if not isinstance(values.get("model"), str | None):
        problems.append(f"model must be a folder or a Hub id, got {values['model']!r}")
    if not isinstance(values.get("adaptive", True), bool):
        problems.append(f"adaptive must be true or false, got {values['adaptive']!r}")
    numbers: dict[str, int] = {}
    for key in known - {"method", "model", "adaptive"}:
        if values.get(key) is not None:
            number = _count(values[key])
            if number is None:
                problems.append(f"{key} must be a whole number from 1 on, got {values[key]!r}")
            else:
                numbers[key] = number
    problems += _contradictions(values, numbers)
    if problems:
        raise ConfigError(f"{FLAG}: {'; '.join(problems)}.")
    method = cast(Method | None, values.get("method"))
    adaptive = values.get("adaptive", True)
    return SpeculativeConfig(method=method, model=values.get("model"), adaptive=adaptive, **numbers)


def _count(value: object) -> int | None:
    try:
        number = int(value) if isinstance(value, str | int) and not isinstance(value, bool) else 0
    except ValueError:
        return None
    return number if number >= 1 else None


def _contradictions(values: dict[str, Any], numbers: dict[str, int]) -> list[str]:
    problems = []
    if numbers.get("num_speculative_tokens", 1) > MAX_SPECULATIVE_TOKENS:
        problems.append(f"num_speculative_tokens must be at most {MAX_SPECULATIVE_TOKENS}")
    default = SpeculativeConfig()
    longest = numbers.get("prompt_lookup_max", default.prompt_lookup_max)
    if numbers.get("prompt_lookup_min", min(default.prompt_lookup_min, longest)) > longest:
        problems.append("prompt_lookup_min must not exceed prompt_lookup_max")
    if values.get("method") in ("ngram", "none") and values.get("model"):
        problems.append(f"method {values['method']!r} takes no model")
    return problems
