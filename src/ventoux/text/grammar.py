"""Constrained decoding: what an answer may be -> a Lark grammar -> which tokens may come next.

llguidance matches it. A call is written as mistral-common's grammar factory has it, which a test compares. The factory
itself reads the vocabulary before it writes anything, which takes a second or three with the interpreter's lock. And
its rules let free text come before a required call: a model that would rather talk then never calls.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from mistral_common.guidance.tokenizer import from_mistral_tokenizer

from ventoux.errors import InvalidRequestError
from ventoux.text.grammar_forms import Form, JsonForm, check_size
from ventoux.text.messages import refusal, to_tools
from ventoux.text.tokenizer import Tokenizer

# llguidance's own limits, 2000 and 50,000, end an object of 500 optional properties at its first brace: each of them is
# a few items of the parser's row. With 1000 of them a step takes 25 ms.
MAX_ROW_ITEMS = 20_000
MAX_STEP_ITEMS = 500_000
# Work on the expressions of a grammar before its first token: a second at most. llguidance's own limit, a million, lets
# a terminal that is made of itself four times over, twelve times in a row, take five.
MAX_LEXER_FUEL = 300_000
_BLANKS = "SAFE_WS: /[ \\t\\r\\n]{1,8}/\n"
_FREE = "/(.|\\n)+/"

# Of a strict tool without a schema, as mistral-common has it.
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}

Calls = Literal["none", "auto", "required"]


@dataclass(frozen=True)
class Thinking:
    """A think block before the answer.

    Attributes:
        is_open: The prompt has begun it already; else it may be left out.
        max_tokens: It is closed after so many tokens; None: whenever the model likes.
    """

    is_open: bool = False
    max_tokens: int | None = None


class GrammarMatcher:
    """Follows one sequence through its grammar. Not thread-safe; one per sequence."""

    def __init__(self, matcher: LLMatcher):
        self._matcher = matcher

    def accept(self, token_id: int) -> bool:
        """Takes the next token; False if the grammar does not allow it, after which only a new matcher helps."""
        return self._matcher.consume_token(token_id)

    def fill(self, mask: np.ndarray) -> None:
        """Writes which tokens may come next into a bool array `[vocab_size]`; the end token where the text may end.

        Raises InvalidRequestError if the grammar has become too complex at this place.
        """
        mask[:] = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8)[: len(mask)] != 0
        if self._matcher.is_error():
            # Otherwise nothing but the end would be allowed, and the answer would end in the middle.
            reason = _first_line(self._matcher.get_error())
            raise InvalidRequestError(f"the grammar cannot be followed any further: {reason}", code="invalid_grammar")

    def is_stopped(self) -> bool:
        """Nothing but the end token may follow."""
        return self._matcher.is_stopped()

    def clone(self) -> GrammarMatcher:
        """A matcher at the same place that goes on by itself; takes microseconds, compiling takes up to a second."""
        return GrammarMatcher(self._matcher.deep_copy())


class GrammarCompiler:
    """Writes grammars for one tokenizer and compiles them. The first compilation reads the vocabulary."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        return from_mistral_tokenizer(self._tokenizer.mistral)

    def grammar(
        self,
        form: Form | None = None,
        *,
        tools: Sequence[dict[str, Any]] = (),
        calls: Calls = "none",
        names: Collection[str] | None = None,
        parallel_tool_calls: bool = True,
        thinking: Thinking | None = None,
    ) -> str:
        """The grammar of an answer.

        Args:
            form: What the answer's text must be; None: any text.
            tools: OpenAI-shaped definitions. Arguments follow the schema of tools marked `strict`; of others they are
                any JSON object.
            calls: "none": no call can be written. "auto": calls may follow free text, or stand instead of a `form`.
                "required": calls and nothing else.
            names: Only these tools may be called; None: all.
            parallel_tool_calls: One or more calls, else exactly one.
            thinking: None: there is no think block.

        Raises:
            InvalidRequestError: `form` or `tools` is wrong. Whether a schema is usable, `compile` finds out.
        """
        call = self._calls(tools, names, parallel_tool_calls) if calls != "none" else ""
        if form is not None:
            form.check()
        text = _FREE if form is None else "form"
        answer = {
            "required": call,
            "auto": f"{_FREE}? ({call})?" if form is None else f"form | {call}",
            "none": f"{_FREE}?" if form is None else text,
        }[calls]
        rules = [self._thinking(thinking), f"answer: {answer}"]
        if form is not None and calls != "required":
            rules.append(f"form: {form.rule()}")
        return "\n".join([*rules, _BLANKS])

    def compile(
        self, grammar: str, *, param: str = "response_format", code: str = "invalid_json_schema"
    ) -> GrammarMatcher:
        """A matcher at the grammar's beginning.

        Raises:
            InvalidRequestError: about `param`: what it is made of is no schema, no expression or no grammar, holds
                what llguidance cannot follow, or is too large.
        """
        limits = LLParserLimits(
            max_items_in_row=MAX_ROW_ITEMS, step_max_items=MAX_STEP_ITEMS, initial_lexer_fuel=MAX_LEXER_FUEL
        )
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            # Some are found to be too complex only where the first token is chosen.
            matcher.compute_logit_bias()
        if matcher.is_error():
            raise refusal(param, f"cannot be followed: {_first_line(matcher.get_error())}", code)
        return GrammarMatcher(matcher)

    def _thinking(self, thinking: Thinking | None) -> str:
        if thinking is None:
            return "start: answer"
        control = self._tokenizer.control
        begin, end = f"<[{control.begin_think}]>", f"<[{control.end_think}]>"
        if thinking.max_tokens == 0:
            return f"start: {end} answer" if thinking.is_open else "start: answer"
        limit = "" if thinking.max_tokens is None else f"[max_tokens={thinking.max_tokens}]"
        block = f"thought? {end}" if thinking.is_open else f"({begin} thought {end})?"
        return f"start: {block} answer\nthought{limit}: {_FREE}"

    def _calls(self, tools: Sequence[dict[str, Any]], names: Collection[str] | None, parallel: bool) -> str:
        converted = [tool.function for tool in to_tools(tools)]
        check_size([function.parameters for function in converted if function.strict], "tools")
        allowed = [function for function in converted if names is None or function.name in names]
        if not allowed:
            raise refusal("tool_choice", "no tool in tools may be called.")
        free = [json.dumps(function.name) for function in allowed if not function.strict]
        calls = [self._call(f"({' | '.join(free)})", None)] if free else []
        for function in allowed:
            if function.strict:
                calls.append(self._call(json.dumps(function.name), function.parameters or _NO_ARGUMENTS))
        return f"({' | '.join(calls)}){'+' if parallel else ''}"

    def _call(self, name: str, schema: dict[str, Any] | None) -> str:
        control = self._tokenizer.control
        arguments = JsonForm(schema).json()
        return f"(<[{control.tool_calls}]> SAFE_WS? {name} <[{control.args}]> SAFE_WS? {arguments} SAFE_WS?)"


def _first_line(error: str) -> str:
    """It says what is wrong; a listing of the grammar, or a backtrace, follows."""
    return error.partition("\n")[0]
