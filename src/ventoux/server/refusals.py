"""Request fields that clients know from other servers and that are not honoured here.

A field that we do not honour must not be ignored silently: it is refused by name, unless its value asks for nothing.
Fields that nobody knows are accepted and listed in a response header.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ventoux.errors import InvalidRequestError

# Values with which a field asks for nothing; null always does.
_REFUSED: dict[str, tuple[Any, ...]] = {
    # OpenAI
    "audio": (),
    "function_call": (),
    "functions": (),
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
    # vLLM and its kin
    "add_special_tokens": (False,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "early_stopping": (False,),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": (),
    "length_penalty": (1.0,),
    "logits_processors": ([],),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "priority": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "structured_outputs": (),
    "thinking_token_budget": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    # llama.cpp
    "grammar": ("",),
    "json_schema": (),
}

# These ask for nothing that could change an answer.
_HARMLESS = frozenset(
    {
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
_KNOWN_INSIDE: dict[str, frozenset[str]] = {
    path: frozenset(names.split())
    for path, names in {
        "messages": "role content tool_calls tool_call_id reasoning reasoning_content prefix",
        "messages.content": "type text image_url thinking closed",
        "messages.content.image_url": "url",
        "messages.tool_calls": "id type function index",
        "messages.tool_calls.function": "name arguments",
        "tools": "type function",
        "tools.function": "name description parameters strict",
    }.items()
}

_MAX_HEADER_NAMES = 32
_MAX_NAME_LENGTH = 64


def refuse_unsupported(extra: Mapping[str, Any]) -> list[str]:
    """Returns the names of the fields that nobody knows.

    Raises:
        InvalidRequestError: naming a field that is known but not honoured.
    """
    unknown = []
    for name, value in extra.items():
        if name in _REFUSED:
            # `1 == True`, so types are compared too.
            if value is not None and not any(value == v and type(value) is type(v) for v in _REFUSED[name]):
                raise InvalidRequestError(
                    f"{name} is not supported here; leave it out.", param=name, code="unsupported_parameter"
                )
        elif name not in _HARMLESS:
            unknown.append(name)
    return unknown


def unknown_inside(body: Mapping[str, Any]) -> list[str]:
    """The paths of all fields in `messages` and `tools` that mean nothing here, each of them once."""
    found: dict[str, None] = {}
    for path, known in _KNOWN_INSIDE.items():
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
