"""The forms that a client may give an answer's text: JSON, a regular expression, one of several texts, a grammar.

Each is checked for what would cost llguidance seconds, and written as one rule of a Lark grammar.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from llguidance.gbnf_to_lark import any_to_lark

from ventoux.text.messages import check_text, refusal

# llguidance takes 0.1 s for an object of 1000 properties and 38 s for one of 10,000; arrays of up to 10,000 items take
# 0.1 s, of a million 8 s. Its own limits come into play later than that.
MAX_SCHEMA_PROPERTIES = 1000
MAX_SCHEMA_ITEMS = 10_000
# llguidance builds a state per remainder, without any limit of its own: "multipleOf": 99999 takes 5 s, 123456789 takes
# more memory than there is. Several multiples that meet in one number count as their least common multiple.
MAX_SCHEMA_REMAINDERS = 10_000
# Compiling takes time in proportion to the schema, and real ones have a few kilobytes.
MAX_SCHEMA_BYTES = 256 * 1024
# A text of 200,000 letters takes a second at the first token.
MAX_GRAMMAR_LENGTH = 32 * 1024
MAX_CHOICES = 1000

# JSON as prompts write it, ", " and ": ". With free whitespace a model in doubt can write blanks until max_tokens.
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Form(Protocol):
    @property
    def param(self) -> str:
        """The request field that it comes from."""
        ...

    @property
    def code(self) -> str:
        """The error code of one that cannot be followed."""
        ...

    def check(self) -> None:
        """Raises InvalidRequestError if it is too large, or no text."""
        ...

    def rule(self) -> str:
        """The right-hand side of a Lark rule; it may use SAFE_WS."""
        ...


@dataclass(frozen=True)
class JsonForm:
    """JSON that follows a schema; None: any object."""

    schema: dict[str, Any] | None
    param: str = "response_format.json_schema.schema"
    code: str = "invalid_json_schema"

    def check(self) -> None:
        check_text(self.schema, self.param)
        if len(json.dumps(self.schema)) > MAX_SCHEMA_BYTES:
            raise refusal(self.param, f"may have at most {MAX_SCHEMA_BYTES} bytes.", self.code)
        check_size([self.schema], self.param)

    def rule(self) -> str:
        return f"SAFE_WS? {self.json()}"

    def json(self) -> str:
        schema = {"x-guidance": _COMPACT, **(self.schema or {"type": "object"})}
        return f"%json {json.dumps(schema, ensure_ascii=False)}"


@dataclass(frozen=True)
class RegexForm:
    """Text that a regular expression matches as a whole: no look-around, no back references."""

    pattern: str
    param: str
    code: str = "invalid_grammar"

    def check(self) -> None:
        _check_length(self.pattern, self.param)

    def rule(self) -> str:
        # Anchors say what is so anyway. In Lark a slash ends the expression, and so does a line.
        pattern = re.sub(r"\A\^|(?<!\\)((?:\\\\)*)\$\Z", r"\1", self.pattern)
        written = re.sub(r"\\.|[/\n\r]", _escaped, pattern, flags=re.DOTALL)
        return f"/({written})/"


@dataclass(frozen=True)
class ChoiceForm:
    """One of several texts."""

    choices: Sequence[str]
    param: str
    code: str = "invalid_grammar"

    def check(self) -> None:
        if not 0 < len(self.choices) <= MAX_CHOICES:
            raise refusal(self.param, f"must hold 1 to {MAX_CHOICES} texts.")
        if not all(self.choices):
            raise refusal(self.param, "a text to choose must not be empty.")
        for i, choice in enumerate(self.choices):
            check_text(choice, f"{self.param}[{i}]")
        _check_length("".join(self.choices), self.param)

    def rule(self) -> str:
        return " | ".join(f"/{''.join(map(_literal, choice))}/" for choice in self.choices)


@dataclass(frozen=True)
class LarkForm:
    """Text that a grammar in llguidance's Lark dialect, or in llama.cpp's GBNF, allows."""

    grammar: str
    param: str
    code: str = "invalid_grammar"

    def check(self) -> None:
        _check_length(self.grammar, self.param)
        if "%json" in self.grammar:
            # There its schema could not be checked for what takes seconds.
            raise refusal(self.param, "%json is not supported in grammars; use response_format.", "invalid_grammar")

    def rule(self) -> str:
        try:
            lark = any_to_lark(self.grammar)
        except RecursionError:
            raise refusal(self.param, "nested too deeply.", "invalid_grammar") from None
        except Exception as e:  # the converter raises bare Exceptions
            raise refusal(self.param, f"is neither Lark nor GBNF: {e}".partition("\n")[0], "invalid_grammar") from e
        return f"%lark {{\n{lark}\n}}"


def _check_length(text: str, param: str) -> None:
    check_text(text, param)
    if not text:
        raise refusal(param, "must not be empty.")
    if len(text) > MAX_GRAMMAR_LENGTH:
        raise refusal(param, f"has {len(text)} characters; at most {MAX_GRAMMAR_LENGTH} can be followed.")


def _escaped(found: re.Match[str]) -> str:
    text = found[0]
    if text == "/":
        return "\\/"
    return text.replace("\\\n", "\\n").replace("\\\r", "\\r").replace("\n", "\\n").replace("\r", "\\r")


def _literal(character: str) -> str:
    """A character as a regular expression of its own."""
    if character.isascii() and not character.isalnum():
        return f"\\x{ord(character):02x}"
    return character if character.isprintable() else f"\\u{{{ord(character):x}}}"


def check_size(schemas: Sequence[Any], param: str) -> None:
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
