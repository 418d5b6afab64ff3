"""Request fields that clients know from other servers and that are not honoured here.

A field that we do not honour must not be ignored silently: it is refused by name, unless its value asks for nothing.
Fields that nobody knows are accepted and listed in a response header.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ventoux.errors import InvalidRequestError

# Values with which a field asks for nothing; null always does.
_REFUSED: dict[str, tuple[Any, ...]] = {
    # OpenAI
    "audio": (),
    "function_call": (),
    "functions": (),
    "max_output_tokens": (),
    "modalities": (["text"],),
    "prediction": (),
    "store": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
    "best_of": (1,),
    "suffix": ("",),
    # Mistral
    "safe_prompt": (False,),
    "guardrails": ([],),
    # vLLM, SGLang and their kin
    "add_special_tokens": (False,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "chat_template": (),
    # Reasoning is off unless asked for.
    "chat_template_kwargs": ({}, {"enable_thinking": False}, {"thinking": False}),
    "detokenize": (True,),
    "documents": ([],),
    "early_stopping": (False,),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "lora_path": (),
    "max_new_tokens": (),
    "media_io_kwargs": ({},),
    "min_new_tokens": (0,),
    "mm_processor_kwargs": ({},),
    "no_stop_trim": (False,),
    "priority": (0,),
    "prompt_embeds": (),
    "repetition_detection": (),
    "return_hidden_states": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "separate_reasoning": (True,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "stop_regex": ("", []),
    "stream_reasoning": (True,),
    "structural_tag": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    # Other names of reasoning_effort
    "enable_thinking": (False,),
    "reasoning": ({},),
    "reasoning_budget": (-1, 0),
    "thinking": ({"type": "disabled"}, False),
    "thinking_budget": (0,),
    # llama.cpp, Ollama and their frontends, which send every sampler they know, turned off or at its default
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "mirostat": (0,),
    "mirostat_eta": (0.1,),
    "mirostat_mode": (0,),
    "mirostat_tau": (5,),
    "n_predict": (-1,),
    "n_probs": (0,),
    "num_predict": (-1,),
    "repeat_last_n": (0, 64),
    "repeat_penalty": (1,),
    "smoothing_factor": (0,),
    "tfs": (1,),
    "tfs_z": (1,),
    "top_a": (0,),
    "top_n_sigma": (-1, 0),
    "typical_p": (1,),
    "xtc_probability": (0,),
}

# Fields that do here what the refused one asks for.
_INSTEAD: dict[str, str] = {
    **dict.fromkeys(("max_new_tokens", "max_output_tokens", "n_predict", "num_predict"), "max_tokens"),
    **dict.fromkeys(("reasoning", "thinking", "enable_thinking", "chat_template_kwargs"), "reasoning_effort"),
    **dict.fromkeys(("reasoning_budget", "thinking_budget"), "thinking_token_budget"),
    "structural_tag": "structured_outputs",
    **dict.fromkeys(("functions", "function_call"), "tools and tool_choice"),
    "min_new_tokens": "min_tokens",
    "repeat_penalty": "repetition_penalty",
    "n_probs": "logprobs",
}

# These ask for nothing that could change an answer.
_HARMLESS = frozenset(
    {
        "guided_decoding_backend",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "user",
    }
)

# Messages and tools are taken as they come: where fields stand in them, and which of these mean something here.
_KNOWN_INSIDE = {
    "messages": "role content tool_calls tool_call_id reasoning reasoning_content prefix",
    "messages.content": "type text image_url thinking closed",
    "messages.content.image_url": "url detail",
    "messages.tool_calls": "id type function index",
    "messages.tool_calls.function": "name arguments",
    "tools": "type function",
    "tools.function": "name description parameters strict",
}

_MAX_HEADER_NAMES = 32
_MAX_NAME_LENGTH = 64


@dataclass(frozen=True)
class FieldRules:
    """What one protocol does with fields that its schema does not declare.

    Attributes:
        refused: Names that are known but not honoured, each with the values that ask for nothing; null always does.
        instead: For some of them, what does here what they ask for.
        harmless: Names that are accepted without a word.
        inside: Of objects without a schema, by their path: the fields that mean something, with blanks between.
    """

    refused: Mapping[str, tuple[Any, ...]]
    instead: Mapping[str, str]
    harmless: frozenset[str]
    inside: Mapping[str, str]


COMPLETIONS = FieldRules(_REFUSED, _INSTEAD, _HARMLESS, _KNOWN_INSIDE)


# What only chats honour. Their values that ask for nothing anywhere:
_NEUTRAL_ELSEWHERE: dict[str, tuple[Any, ...]] = {"n": (1,), "logprobs": (False,), "echo": (False,)}


def elsewhere(
    honoured: Iterable[str], refused: Mapping[str, tuple[Any, ...]], *, without: Collection[str]
) -> dict[str, tuple[Any, ...]]:
    """The `refused` of a protocol of its own: its names, and all that the other routes honour or refuse.

    `without`: the names that mean something in this protocol.
    """
    chat = {name: _NEUTRAL_ELSEWHERE.get(name, ()) for name in honoured}
    known = {**COMPLETIONS.refused, **chat, **refused}
    return {name: values for name, values in known.items() if name not in without}


def refuse_unsupported(extra: Mapping[str, Any], rules: FieldRules = COMPLETIONS) -> list[str]:
    """Returns the names of the fields that nobody knows.

    Raises:
        InvalidRequestError: naming a field that is known but not honoured.
    """
    unknown = []
    for name, value in extra.items():
        if name in rules.refused:
            # `1 == True`, so it is compared too whether they are booleans; 1 and 1.0 are the same number.
            neutral = any(value == v and isinstance(value, bool) is isinstance(v, bool) for v in rules.refused[name])
            if value is not None and not neutral:
                advice = f"use {rules.instead[name]}" if name in rules.instead else "leave it out"
                raise InvalidRequestError(
                    f"{name} is not supported here; {advice}.", param=name, code="unsupported_parameter"
                )
        elif name not in rules.harmless:
            unknown.append(name)
    return unknown


def unknown_inside(body: Mapping[str, Any], rules: FieldRules = COMPLETIONS) -> list[str]:
    """The paths of all fields that mean nothing here in objects without a schema, each of them once."""
    found: dict[str, None] = {}
    for path, names in rules.inside.items():
        known = names.split()
        for fields in _objects_at(body, path.split(".")):
            found |= {
                f"{path}.{name}": None for name, value in fields.items() if name not in known and value is not None
            }
    return list(found)


def _objects_at(value: Any, path: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """All objects at a path; lists on the way are gone through."""
    for item in value if isinstance(value, list) else (value,):
        if not isinstance(item, Mapping):
            continue
        if not path:
            yield item
        elif path[0] in item:
            yield from _objects_at(item[path[0]], path[1:])


def ignored_header(names: Iterable[str]) -> str:
    """Names for a header: what is not a plain word is escaped, since clients choose it; long lists are cut."""
    listed = list(names)
    shown = ["".join(c if c.isascii() and (c.isalnum() or c in "_-.") else "?" for c in n) for n in listed]
    cut = [n[:_MAX_NAME_LENGTH] for n in shown[:_MAX_HEADER_NAMES]]
    return ", ".join(cut + ["..."] * (len(listed) > _MAX_HEADER_NAMES))
