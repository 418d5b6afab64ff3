"""Constrained decoding: tool_choice and response_format -> a Lark grammar -> which tokens may come next.

How a tool call is written comes from mistral-common's grammar factory; llguidance matches it. The templates are ours:
mistral-common's lets free text come before a required call, and a model that would rather talk then never calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np
from llguidance import LLMatcher
from mistral_common.guidance.grammar_factory import GrammarFactory
from mistral_common.protocol.instruct.tool_calls import Tool, ToolChoiceEnum

from ventoux.text.messages import check_text, refusal, refusing, to_tools
from ventoux.text.tokenizer import Tokenizer

_ANSWER = """
answer: {% if json_schema_str %}SAFE_WS? %json {{ json_schema_str }}{% endif %}
{%- if json_schema_str and fcall %} | {% endif %}
{%- if fcall %}({{ fcall }}){% endif %}
SAFE_WS: /[ \\t\\r\\n]{1,8}/
"""
_WITHOUT_THINKING = "start: answer" + _ANSWER
_WITH_THINKING = "start: think? answer\nthink: {{ begin_think_token }} /(.|\\n)+/ {{ end_think_token }}" + _ANSWER
# llguidance takes 0.1 s for an object of 1000 properties and 38 s for one of 10,000; arrays of up to 10,000 items take
# 0.1 s, of a million 8 s. Its own limits come into play later than that.
MAX_SCHEMA_PROPERTIES = 1000
MAX_SCHEMA_ITEMS = 10_000
# llguidance builds a state per remainder, without any limit of its own: "multipleOf": 99999 takes 5 s, 123456789 takes
# more memory than there is. Several multiples that meet in one number count as their least common multiple.
MAX_SCHEMA_REMAINDERS = 10_000

_ANY_OBJECT: dict[str, Any] = {"type": "object"}
# JSON as prompts write it, ", " and ": ". With free whitespace a model in doubt can write blanks until max_tokens.
_SEPARATORS = '{"x-guidance": {"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}, '


class GrammarMatcher:
    """Follows one sequence through its grammar. Not thread-safe; one per sequence."""

    def __init__(self, matcher: LLMatcher):
        self._matcher = matcher

    def accept(self, token_id: int) -> bool:
        """Takes the next token; False if the grammar does not allow it, after which only a new matcher helps."""
        return self._matcher.consume_token(token_id)

    def fill(self, mask: np.ndarray) -> None:
        """Writes which tokens may come next into a bool array `[vocab_size]`; the end token where the text may end."""
        mask[:] = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8)[: len(mask)] != 0

    def is_stopped(self) -> bool:
        """Nothing but the end token may follow."""
        return self._matcher.is_stopped()

    def clone(self) -> GrammarMatcher:
        """A matcher at the same place that goes on by itself; takes microseconds, compiling takes up to a second."""
        return GrammarMatcher(self._matcher.deep_copy())


class GrammarCompiler:
    """Writes grammars for one tokenizer and compiles them. Building it reads the vocabulary once."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    @cached_property
    def _factory(self) -> GrammarFactory:
        return GrammarFactory(self._tokenizer.mistral)

    def tool_grammar(
        self,
        tools: Sequence[dict[str, Any]],
        *,
        name: str | None = None,
        parallel_tool_calls: bool = True,
        think: bool = False,
    ) -> str:
        """The grammar of an answer that is calls and nothing else.

        Args:
            tools: OpenAI-shaped definitions. Arguments follow the schema of tools marked `strict`; of others they are
                any JSON object.
            name: Only this tool may be called (a named tool_choice); None: any of them (tool_choice "required").
            parallel_tool_calls: One or more calls, else exactly one.
            think: A think block may come first.

        Raises:
            InvalidRequestError: `tools` is wrong or empty, or has no tool of this name.
        """
        converted = to_tools(tools)
        _check_size([tool.function.parameters for tool in converted if tool.function.strict], "tools")
        if not converted:
            raise refusal("tool_choice", "a call is required, but there are no tools.")
        if name is not None:
            converted = [tool for tool in converted if tool.function.name == name]
            if not converted:
                raise refusal("tool_choice", f"there is no tool named {name!r} in tools.")
        return self._render(converted, None, ToolChoiceEnum.required, parallel_tool_calls, think)

    def json_grammar(
        self,
        schema: dict[str, Any] | None,
        *,
        tools: Sequence[dict[str, Any]] = (),
        parallel_tool_calls: bool = True,
        think: bool = False,
    ) -> str:
        """The grammar of an answer that is JSON, or calls of `tools`.

        Args:
            schema: The JSON schema to follow; None: any object (response_format "json_object").

        Raises:
            InvalidRequestError: `tools` is wrong. Whether the schema is usable, `compile` finds out.
        """
        check_text(schema, "response_format.json_schema.schema")
        _check_size([schema], "response_format.json_schema.schema")
        mode = ToolChoiceEnum.auto if tools else ToolChoiceEnum.none
        converted = to_tools(tools)
        _check_size([tool.function.parameters for tool in converted if tool.function.strict], "tools")
        return self._render(converted, schema or _ANY_OBJECT, mode, parallel_tool_calls, think)

    def compile(self, grammar: str, *, param: str = "response_format") -> GrammarMatcher:
        """A matcher at the grammar's beginning.

        Raises:
            InvalidRequestError: about `param`: a schema that is none, holds what llguidance cannot follow, or is too
                large.
        """
        matcher = LLMatcher(self._factory.llg_tokenizer, grammar, log_level=0)
        if matcher.is_error():
            # The first line says what is wrong; a listing of the grammar, or a backtrace, follows.
            reason = matcher.get_error().partition("\n")[0]
            raise refusal(param, f"cannot be followed: {reason}", "invalid_json_schema")
        return GrammarMatcher(matcher)

    def _render(
        self, tools: list[Tool], schema: dict[str, Any] | None, mode: ToolChoiceEnum, parallel: bool, think: bool
    ) -> str:
        with refusing("tools" if tools else "response_format"):
            grammar = self._factory.get_lark_from_jinja(
                template=_WITH_THINKING if think else _WITHOUT_THINKING,
                mode=mode,
                tools=tools or None,
                json_schema=schema,
                parallel_tool_calls=parallel,
                json_only=not tools,
                force_tool_names=bool(tools),
            )
        return grammar.replace("%json {", "%json " + _SEPARATORS)


def _check_size(schemas: Sequence[Any], param: str) -> None:
    """Refuses schemas that would take seconds to compile; each counts as a property itself."""
    num_properties, num_items = len(schemas), 0
    multiples: list[int] = []
    stack = list(schemas)
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        if not isinstance(item, dict):
            continue
        stack.extend(item.values())
        properties = item.get("properties")
        num_properties += len(properties) if isinstance(properties, dict) else 0
        counts = (item.get(key) for key in ("minItems", "maxItems", "minProperties", "maxProperties"))
        num_items += sum(count for count in counts if isinstance(count, (int, float)))
        if isinstance(multiple := item.get("multipleOf"), (int, float)):
            multiples.append(_digits(multiple))
    if num_properties > MAX_SCHEMA_PROPERTIES:
        message = f"has {num_properties} properties; at most {MAX_SCHEMA_PROPERTIES} can be followed."
        raise refusal(param, message, "invalid_json_schema")
    if num_items > MAX_SCHEMA_ITEMS:
        message = f"asks for up to {num_items} items; at most {MAX_SCHEMA_ITEMS} can be counted."
        raise refusal(param, message, "invalid_json_schema")
    if len(multiples) * math.lcm(*multiples) > MAX_SCHEMA_REMAINDERS:
        raise refusal(param, "its multipleOf values are too large to be followed.", "invalid_json_schema")


def _digits(multiple: int | float) -> int:
    """The number without sign, decimal point and the zeros at its end, none of which cost anything: 0.25 -> 25."""
    return int("".join(map(str, Decimal(str(multiple)).normalize().as_tuple().digits)))
