"""Request fields that clients know from other servers and that are not honoured here.

A field that we do not honour must not be ignored silently: it is refused by name, unless its value asks for nothing.
Fields that nobody knows are accepted and listed in a response header.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def ignored_header(names: Iterable[str]) -> str:
    """Names for a header: what is not a plain word is escaped, since clients choose it; long lists are cut."""
    listed = list(names)
    shown = ["".join(c if c.isascii() and (c.isalnum() or c in "_-.") else "?" for c in n) for n in listed]
    cut = [n[:_MAX_NAME_LENGTH] for n in shown[:_MAX_HEADER_NAMES]]
    return ", ".join(cut + ["..."] * (len(listed) > _MAX_HEADER_NAMES))
