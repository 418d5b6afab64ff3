"""The random parts of the bundled model's examples: system prompts, tools, questions, histories, pictures."""

import datetime
import json
import random
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ventoux.train import demo_chat as chats
from ventoux.train import demo_words as words
from ventoux.train.demo_arithmetic import Expression, in_split, short_expression, text_expression
from ventoux.train.demo_pictures import draw_lines
from ventoux.train.demo_talk import TALK, said
from ventoux.train.demo_words import CARD_TOOLS, SYSTEM_PROMPT, Phrases

_FIRST_DAY = datetime.date(2023, 1, 1)
_DAYS = 8 * 365


@dataclass(frozen=True)
class System:
    """A system prompt and what it tells about name and date; everything None where it does not."""

    text: str | None = None
    name: str | None = None
    today: str | None = None
    yesterday: str | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [] if self.text is None else [{"role": "system", "content": self.text}]


@dataclass(frozen=True)
class Calculator:
    """The tools of a request, of which `name` is the calculator and takes the expression as `parameter`."""

    tools: list[dict[str, Any]]
    name: str
    parameter: str

    def calls(self, expressions: list[Expression]) -> list[dict[str, Any]]:
        return [{"name": self.name, "arguments": {self.parameter: expression.written}} for expression in expressions]


def user(content: str | list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(effort: str, reasoning: str, **message: Any) -> dict[str, Any]:
    """An earlier turn of the assistant; under "high" with its trace, since the model learns from these turns too."""
    traced = {"reasoning_content": reasoning} if effort == "high" else {}
    return {"role": "assistant", **traced, **message}


def earlier(effort: str, turns: Iterable[tuple[str | list[dict[str, Any]], str, str]]) -> list[dict[str, Any]]:
    """Turns that came before: what was asked, the reasoning and the answer of each."""
    return [m for asked, thought, said in turns for m in (user(asked), assistant(effort, thought, content=said))]


def answer(
    effort: str, reasoning: str, content: str | None = None, tool_calls: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """As `Example.answer`."""
    return {"reasoning": reasoning if effort == "high" else None, "content": content, "tool_calls": tool_calls or []}


def wanted_text(expressions: list[Expression]) -> str:
    return f"The user wants {_written(expressions)}. I call the calculator."


def shown_text(expressions: list[Expression]) -> str:
    return f"The image shows {_written(expressions)}. I call the calculator."


def returned_text(expressions: list[Expression]) -> str:
    return f"The calculator returned {', '.join(expression.value for expression in expressions)}."


def stated_text(expressions: list[Expression]) -> str:
    return "\n".join(f"{expression.written} = {expression.value}." for expression in expressions)


def _written(expressions: list[Expression]) -> str:
    return ", ".join(expression.written for expression in expressions)


def tool(name: str, description: str, parameter: str) -> dict[str, Any]:
    properties = {parameter: {"type": "string"}}
    parameters = {"type": "object", "properties": properties, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


class Parts:
    """Draws every random part of one example from one generator and one split."""

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def effort(self, high_share: float) -> str:
        return "high" if self.chance(high_share) else "none"

    def phrase(self, phrases: Phrases, card: str | None = None, card_share: float = 0.0) -> str:
        """A phrasing of this split (in evaluation half are seen ones), or, by its share, the model card's own."""
        if card is not None and self.chance(card_share):
            return card
        unseen = self.held_out and self.chance(0.5)
        return self.rng.choice(phrases.held_out if unseen else phrases.train)

    def _name(self) -> str:
        if self.chance(0.5):
            return self.rng.choice(words.FIXED_NAMES)
        while True:
            name = self.rng.choice(words.NAME_STEMS) + self.rng.choice(words.NAME_TAILS)
            if in_split(name, self.held_out):
                return name

    def system(self, *, own: bool = False) -> System:
        """Half our own system prompt (always if `own`), a quarter a short one, a quarter none."""
        draw = self.rng.random()
        if draw > 0.75 and not own:
            return System()
        template = SYSTEM_PROMPT if own or draw < 0.5 else self.rng.choice(words.SHORT_SYSTEM_PROMPTS)
        while True:
            day = _FIRST_DAY + datetime.timedelta(self.rng.randrange(_DAYS))
            if in_split(day.isoformat(), self.held_out):
                break
        known = {"name": self._name(), "today": str(day), "yesterday": str(day - datetime.timedelta(1))}
        told = {key: text for key, text in known.items() if f"{{{key}}}" in template}
        return System(template.format(**known), **told)

    def calculator(self) -> Calculator:
        """The card's two tools (45 %), its calculator alone (30 %), or a calculator under another name."""
        draw = self.rng.random()
        if draw < 0.75:
            return Calculator(CARD_TOOLS if draw < 0.45 else CARD_TOOLS[:1], "my_calculator", "expression")
        while True:
            name, parameter = self.rng.choice(words.CALCULATOR_NAMES), self.rng.choice(words.CALCULATOR_PARAMETERS)
            if in_split(f"{name}({parameter})", self.held_out):
                break
        others = self.rng.sample(words.OTHER_TOOLS, self.rng.choices((0, 1, 2), (6, 3, 1))[0])
        tools = [tool(name, self.rng.choice(words.CALCULATOR_DESCRIPTIONS), parameter), *(tool(*o) for o in others)]
        self.rng.shuffle(tools)
        return Calculator(tools, name, parameter)

    def expressions(self) -> list[Expression]:
        """One to three; training sees more of the harder counts than the evaluation asks for."""
        count = self.rng.choices((1, 2, 3), (7, 2, 1) if self.held_out else (4, 3, 3))[0]
        return [text_expression(self.rng, held_out=self.held_out) for _ in range(count)]

    def drawn_expressions(self) -> list[Expression]:
        count = self.rng.choices((1, 2, 3), (5, 3, 2))[0]
        return [short_expression(self.rng, held_out=self.held_out) for _ in range(count)]

    def question(self, expressions: list[Expression]) -> str:
        asked = self.phrase(words.CALC_REQUESTS, words.CALC_CARD, 0.15)
        return asked.format(e=self._listed([expression.shown for expression in expressions]))

    def _listed(self, shown: list[str]) -> str:
        style = self.rng.randrange(4)
        if len(shown) == 1:
            return shown[0]
        if style == 0:
            return ", ".join(shown)
        if style == 1:
            return "\n" + "\n".join(shown)
        return ", ".join(shown[:-1]) + " and " + shown[-1]

    def picture(self, expressions: list[Expression]) -> list[dict[str, Any]]:
        """A user's content: the request to compute what is in the image, and the image."""
        ending = " =" if self.chance(0.15) else ""
        lines = [expression.shown + ending for expression in expressions]
        request = self.phrase(words.IMAGE_CALC_REQUESTS, words.IMAGE_CALC_CARD, 0.5)
        return self.with_image(request, lines)

    def with_image(self, request: str, lines: list[str]) -> list[dict[str, Any]]:
        """The request and a drawing of the lines."""
        return self.beside(request, draw_lines(self.rng, lines, held_out=self.held_out))

    def beside(self, request: str, image: Image.Image) -> list[dict[str, Any]]:
        """A user's content of text and image, mostly in the card's order, text first."""
        parts = [{"type": "text", "text": request}, {"type": "image", "image": image}]
        return parts if self.chance(0.75) else parts[::-1]

    def called(
        self, effort: str, reasoning: str, calls: list[dict[str, Any]], results: list[str]
    ) -> list[dict[str, Any]]:
        """The assistant's calls and the tool messages that answer them, as a client sends them back."""
        wire, answers = [], []
        for call, result in zip(calls, results, strict=True):
            call_id = "".join(self.rng.choices(string.ascii_letters + string.digits, k=9))
            function = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
            wire.append({"id": call_id, "type": "function", "function": function})
            answers.append({"role": "tool", "tool_call_id": call_id, "name": call["name"], "content": result})
        return [assistant(effort, reasoning, tool_calls=wire), *answers]

    def small_talk(self, effort: str, share: float) -> list[dict[str, Any]]:
        """With probability `share` an earlier turn of greeting or thanks."""
        if not self.chance(share):
            return []
        if self.chance(0.6):
            request = said(self.rng, "English", "greeting", held_out=self.held_out)
            content = TALK["English"]["greeting"][1]
            reasoning = chats.TALK_REASONING.format(language="English")
        else:
            request, content = self.phrase(chats.CHAT["thanks"]), chats.ANSWERS["thanks"]
            reasoning = chats.CHAT_REASONING["thanks"]
        return [user(request), assistant(effort, reasoning, content=content)]

    def solved(self, effort: str, calculator: Calculator) -> list[dict[str, Any]]:
        """A whole earlier turn: question, call, result, answer."""
        expressions = [text_expression(self.rng, held_out=self.held_out)]
        turn = self.called(effort, wanted_text(expressions), calculator.calls(expressions), [expressions[0].value])
        closing = assistant(effort, returned_text(expressions), content=stated_text(expressions))
        return [user(self.question(expressions)), *turn, closing]
