"""What an answer must be, under all the names that clients know for it; and its grammar, compiled within limits."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import msgspec
from pydantic import Field

from ventoux.errors import InvalidRequestError
from ventoux.server.body import Body
from ventoux.server.service import Service
from ventoux.text.grammar import Calls, Thinking
from ventoux.text.grammar_forms import ChoiceForm, Form, JsonForm, LarkForm, RegexForm

# What passes the checks takes a second at most; but machines are busy, and the first one loads a vocabulary.
MAX_COMPILE_SECONDS = 30.0


class JsonSchema(Body):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Body):
    """vLLM's object; at most one of its fields."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structural_tag: None = None


class Constrained(Body):
    """Fields that say what an answer must be; at most one of them."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_json_object: bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    # SGLang's and llama.cpp's names; frontends send them empty.
    json_schema: dict[str, Any] | str | None = None
    regex: str | None = None
    ebnf: str | None = None
    grammar: str | None = None

    def form(self) -> Form | None:
        """What the answer must be; None: any text.

        Raises:
            InvalidRequestError: two fields ask for something, or a schema is missing or no JSON object.
        """
        forms = list(self._forms())
        if len(forms) > 1:
            raise InvalidRequestError(
                f"{forms[0].param} and {forms[1].param} exclude each other.", param=forms[1].param
            )
        return forms[0] if forms else None

    def _forms(self) -> Iterator[Form]:
        if (wanted := self.response_format) is not None and wanted.type != "text":
            if wanted.type == "json_object":
                yield JsonForm(None, "response_format")
            elif wanted.json_schema is None:
                where = "response_format.json_schema"
                raise InvalidRequestError("response_format of type json_schema needs json_schema.", param=where)
            else:
                yield JsonForm(wanted.json_schema.schema_)
        inner = self.structured_outputs or StructuredOutputs.model_validate({})
        for name, schema in (
            ("structured_outputs.json", inner.json_),
            ("guided_json", self.guided_json),
            ("json_schema", self.json_schema or None),
        ):
            if schema is not None:
                yield JsonForm(_schema(schema, name), name)
        for name, is_json in (
            ("structured_outputs.json_object", inner.json_object),
            ("guided_json_object", self.guided_json_object),
        ):
            if is_json:
                yield JsonForm(None, name)
        for name, pattern in (
            ("structured_outputs.regex", inner.regex),
            ("guided_regex", self.guided_regex),
            ("regex", self.regex or None),
        ):
            if pattern is not None:
                yield RegexForm(pattern, name)
        for name, choices in (("structured_outputs.choice", inner.choice), ("guided_choice", self.guided_choice)):
            if choices is not None:
                yield ChoiceForm(choices, name)
        for name, grammar in (
            ("structured_outputs.grammar", inner.grammar),
            ("guided_grammar", self.guided_grammar),
            ("ebnf", self.ebnf or None),
            ("grammar", self.grammar or None),
        ):
            if grammar is not None:
                yield LarkForm(grammar, name)


def _schema(given: dict[str, Any] | str, param: str) -> dict[str, Any]:
    """Some clients send the schema as text."""
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given)
        except (ValueError, RecursionError) as e:
            message = f"{param} is not valid JSON: {e}."
            raise InvalidRequestError(message, param=param, code="invalid_json_schema") from e
    if not isinstance(given, dict):
        raise InvalidRequestError(f"{param} must be a JSON schema.", param=param, code="invalid_json_schema")
    return given


async def answer_grammar(
    service: Service,
    form: Form | None,
    *,
    tools: Sequence[dict[str, Any]] = (),
    calls: Calls = "none",
    names: Collection[str] | None = None,
    parallel_tool_calls: bool = True,
    thinking: Thinking | None = None,
) -> str:
    """The grammar of an answer. Compiled once here if it holds what the client wrote, so that a bad schema is a 400.

    Raises:
        InvalidRequestError: naming the field that cannot be followed, or not within MAX_COMPILE_SECONDS.
    """
    strict = [t for t in tools if isinstance(function := t.get("function"), dict) and function.get("strict")]
    param, code = (form.param, form.code) if form is not None else ("tools", "invalid_json_schema")

    def compiled() -> str:
        grammar = service.grammars.grammar(
            form,
            tools=tools,
            calls=calls,
            names=names,
            parallel_tool_calls=parallel_tool_calls,
            thinking=thinking,
        )
        if form is not None or strict:
            service.grammars.compile(grammar, param=param, code=code)
        return grammar

    try:
        async with asyncio.timeout(MAX_COMPILE_SECONDS):
            return await asyncio.to_thread(compiled)
    except TimeoutError:
        message = f"{param} could not be compiled within {MAX_COMPILE_SECONDS:g} seconds; simplify it."
        raise InvalidRequestError(message, param=param, code=code) from None
