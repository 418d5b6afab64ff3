"""The model of `ventoux chat` when it runs in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ventoux.cli.conversation import Cut
from ventoux.engine.request import SamplingParams
from ventoux.llm import LLM
from ventoux.text.answer import AnswerEvent


class LocalModel:
    """`fields` are the fields of SamplingParams that hold for every answer."""

    def __init__(self, llm: LLM, fields: dict[str, Any]):
        self._llm = llm
        self._params = SamplingParams(**fields)

    def stream(
        self, messages: list[dict[str, Any]], *, tools: list[dict[str, Any]] | None, reasoning_effort: str
    ) -> Iterator[AnswerEvent | Cut]:
        reason = yield from self._llm.stream(messages, self._params, tools=tools, reasoning_effort=reasoning_effort)
        if reason == "length":
            yield Cut()
