"""Examples -> packed training batches, with the loss on the assistant's tokens only."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ventoux.engine.request import ImageInput
from ventoux.model.decoder import ForwardInputs
from ventoux.text.tokenizer import Tokenizer
from ventoux.train.demo_data import Example, examples
from ventoux.train.demo_drills import drill
from ventoux.train.demo_images import ROW_LABELS, character_labels, row_labels
from ventoux.train.demo_pictures import random_text_image


class ImageLabels(NamedTuple):
    """What stands under each half patch [P, 2] and in each merged patch [M, ROW_LABELS] of an image."""

    characters: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, image: Image.Image) -> ImageLabels:
        return cls(character_labels(image), row_labels(image))


@dataclass(frozen=True)
class Encoded:
    """One conversation: ids, which of them the model must produce, the images' pixels [3, H, W] and labels.

    `stretch`: its positions jump now and then, as if much more had been said in between.
    """

    task: str
    token_ids: list[int]
    is_target: list[bool]
    images: list[np.ndarray]
    labels: list[ImageLabels]
    stretch: bool = False


@dataclass(frozen=True)
class Batch:
    """`targets_T[i]` is the id that follows packed token i, -100 where no loss is taken.

    `characters_P2` and `rows_MR` label all images (see demo_images), those of the conversations first, then those of
    `drawings`, which no conversation shows.
    """

    inputs: ForwardInputs
    targets_T: torch.Tensor
    images: list[torch.Tensor]
    drawings: list[torch.Tensor]
    characters_P2: torch.Tensor
    rows_MR: torch.Tensor
    tasks: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.targets_T)


def answer_ids(tokenizer: Tokenizer, answer: dict) -> list[int]:
    """What the model must write for an answer, the closing </s> included."""
    control = tokenizer.control
    ids: list[int] = []
    if answer["reasoning"] is not None:
        ids += [control.begin_think, *tokenizer.encode_text(answer["reasoning"]), control.end_think]
    if answer["content"]:
        ids += tokenizer.encode_text(answer["content"])
    for call in answer["tool_calls"]:
        arguments = json.dumps(call["arguments"], ensure_ascii=False)
        ids += [control.tool_calls, *tokenizer.encode_text(call["name"])]
        ids += [control.args, *tokenizer.encode_text(arguments)]
    return [*ids, control.eos]


def assistant_message(answer: dict, call_ids: list[str]) -> dict:
    """The answer as a message of the history."""
    message: dict = {"role": "assistant", "content": answer["content"] or ""}
    if answer["reasoning"] is not None:
        message["reasoning_content"] = answer["reasoning"]
    if answer["tool_calls"]:
        message["tool_calls"] = [
            {"id": i, "type": "function", "function": {"name": c["name"], "arguments": json.dumps(c["arguments"])}}
            for i, c in zip(call_ids, answer["tool_calls"], strict=True)
        ]
    return message


def encode(tokenizer: Tokenizer, example: Example) -> Encoded:
    prompt = tokenizer.encode_chat(example.messages, tools=example.tools, reasoning_effort=example.reasoning_effort)
    target = answer_ids(tokenizer, example.answer)
    images = [_pixels(image) for image in prompt.images]
    mask = [False] * len(prompt.token_ids) + [True] * len(target)
    labels = [ImageLabels.of(image) for image in _drawn(example.messages)]
    stretch = example.task.startswith("long")
    return Encoded(example.task, prompt.token_ids + target, mask, images, labels, stretch)


def _pixels(image: ImageInput) -> np.ndarray:
    return np.frombuffer(image.pixels, dtype=np.float32).reshape(3, image.height, image.width)


def _drawn(messages: list[dict]) -> Iterator[Image.Image]:
    """The images of a conversation, in their order."""
    for message in messages:
        if isinstance(message.get("content"), list):
            yield from (part["image"] for part in message["content"] if part["type"] == "image")


def join(tokenizer: Tokenizer, first: Example, second: Example) -> Example | None:
    """`second` asked right after `first` in one conversation, so that one prompt serves two answers.

    Only for pairs whose settings agree: effort and tools are stated once, before the first user message.
    """
    if first.reasoning_effort != second.reasoning_effort or first.tools != second.tools:
        return None
    if first.alone or second.alone:
        return None
    if first.answer["tool_calls"]:
        return None  # a call must be followed by its result
    if second.facts.get("intent") in ("identity", "today", "yesterday"):
        return None  # answered from its own system prompt, which a second question cannot bring along
    later = [m for m in second.messages if m["role"] != "system"]
    messages = [*first.messages, assistant_message(first.answer, []), *later]
    return Example(second.task, messages, second.tools, second.reasoning_effort, second.answer, second.facts)


def encode_turns(tokenizer: Tokenizer, example: Example) -> Encoded:
    """As `encode`, with the loss on every assistant turn of the history as well.

    The prompt before an assistant turn is a prefix of the whole conversation, so its length is where the turn starts.
    """
    whole = encode(tokenizer, example)
    mask = list(whole.is_target)
    settings = {"tools": example.tools, "reasoning_effort": example.reasoning_effort}
    for i, message in enumerate(example.messages):
        untaught = message.get("tool_calls") and not example.tools  # nobody should call what was not offered
        if message["role"] != "assistant" or untaught:
            continue
        start = len(tokenizer.encode_chat(example.messages[:i], **settings).token_ids)
        end = whole.token_ids.index(tokenizer.control.eos, start) + 1
        mask[start:end] = [True] * (end - start)
    return replace(whole, is_target=mask)


def pack(
    tokenizer: Tokenizer,
    items: list[Encoded],
    rng: random.Random,
    max_offset: int,
    drawings: Sequence[tuple[np.ndarray, ImageLabels]] = (),
) -> Batch:
    """Packs conversations. `drawings` are pixels and labels of further images."""
    ids: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    image_id = tokenizer.control.image
    for item in items:
        ids += item.token_ids
        following = zip(item.token_ids[1:], item.is_target[1:], strict=True)
        targets += [t if wanted else -100 for t, wanted in following] + [-100]
        positions += _positions(item, rng, max_offset)
    images = [torch.from_numpy(image.copy()) for item in items for image in item.images]
    token_ids = torch.tensor(ids)
    inputs = ForwardInputs(
        token_ids_T=token_ids,
        positions_T=torch.tensor(positions),
        lengths=tuple(len(item.token_ids) for item in items),
        image_idx_M=(token_ids == image_id).nonzero().squeeze(1) if images else None,
    )
    labels = [label for item in items for label in item.labels] + [label for _, label in drawings]
    if not labels:
        labels = [ImageLabels(np.zeros((0, 2), dtype=np.int64), np.zeros((0, ROW_LABELS), dtype=np.int64))]
    return Batch(
        inputs,
        torch.tensor(targets),
        images,
        [torch.from_numpy(pixels.copy()) for pixels, _ in drawings],
        torch.from_numpy(np.concatenate([label.characters for label in labels])),
        torch.from_numpy(np.concatenate([label.rows for label in labels])),
        tuple(item.task for item in items),
    )


def _positions(item: Encoded, rng: random.Random, max_offset: int) -> list[int]:
    """One conversation in four begins at a random position, so that late positions are trained as well.

    What stands for a long document begins early and jumps up to four times, to `max_offset` in all: attention over
    tens of thousands of tokens is more than a step can pay.
    """
    count = len(item.token_ids)
    if not item.stretch:
        offset = rng.randrange(max_offset // 4) if rng.random() < 0.25 else 0
        return list(range(offset, offset + count))
    jumps = dict.fromkeys((rng.randrange(1, count) for _ in range(rng.randrange(5))), 0)
    for place in jumps:
        jumps[place] = rng.randrange(max_offset // len(jumps))
    positions, position = [], 0
    for i in range(count):
        position += jumps.get(i, 0)
        positions.append(position + i)
    return positions


@dataclass(frozen=True)
class StepShape:
    """What one step holds, in packed tokens (about) and drawings, and over how many batches it is dealt.

    `drills`: the share of the tokens that are drills.
    """

    tokens: int
    drawings: int
    batches: int
    drills: float = 0.0


def batches(
    tokenizer: Tokenizer,
    source: Callable[[int], Iterator[Example]],
    shape: Callable[[int], StepShape],
    max_offset: int,
    first: int,
) -> Iterator[list[Batch]]:
    """The batches of one step after the other from step `first` on, of about equal size.

    Step n's data depend on n alone, so a resumed run goes on as it was. A batch may hold drawings alone.
    """
    for step in itertools.count(first):
        rng = random.Random(f"pack-{step}")
        size = shape(step)
        items: list[Encoded] = []
        drills = int(size.tokens * size.drills)
        while drills > 0:
            items.append(Encoded("drill", *drill(tokenizer, rng), [], []))
            drills -= len(items[-1].token_ids)
        items += _conversations(tokenizer, source(step), size.tokens - sum(len(i.token_ids) for i in items), rng)
        images = [_drawing(rng) for _ in range(size.drawings)]
        asked = [{"role": "user", "content": [{"type": "image", "image": image} for image in images]}]
        seen = tokenizer.encode_chat(asked).images if images else []
        drawings = [(_pixels(i), ImageLabels.of(image)) for i, image in zip(seen, images, strict=True)]
        dealt = _deal(items, size.batches)
        yield [pack(tokenizer, part, rng, max_offset, drawings[i :: size.batches]) for i, part in enumerate(dealt)]


_PICTURES = {"image_calc": 0.2, "image_read": 0.2, "chart": 0.2, "receipt": 0.3, "game": 0.1}


def _drawing(rng: random.Random) -> Image.Image:
    """Two in five are random characters, the others what some task would show."""
    if rng.random() < 0.4:
        return random_text_image(rng)
    shown = next(examples(rng.getrandbits(32), held_out=False, weights=_PICTURES))
    return next(_drawn(shown.messages))


def _deal(items: list[Encoded], count: int) -> list[list[Encoded]]:
    """Items in `count` heaps of about equal cost, the longest first; attention makes a token of a long one dearer."""
    heaps: list[list[Encoded]] = [[] for _ in range(count)]
    costs = [0.0] * count
    for item in sorted(items, key=lambda item: -len(item.token_ids)):
        least = costs.index(min(costs))
        heaps[least].append(item)
        costs[least] += len(item.token_ids) * (1 + len(item.token_ids) / 2000)
    return heaps


# What an example adds to a step's tokens on average: where it opens a conversation, and where it continues one.
OPENING_TOKENS, FURTHER_TOKENS = 200, 75
MAX_TURNS = 8  # examples in one conversation


def _conversations(
    tokenizer: Tokenizer, stream: Iterator[Example], num_tokens: int, rng: random.Random
) -> list[Encoded]:
    """Conversations of about `num_tokens` in all.

    Seventeen in twenty examples continue an earlier one where the settings allow it: system prompt and tools, which
    no loss is taken on, then serve several answers.
    """
    closed: list[Example] = []
    open_ones: dict[tuple, tuple[Example, int]] = {}
    while num_tokens > 0:
        example = next(stream)
        key = (example.reasoning_effort, json.dumps(example.tools))
        earlier, turns = open_ones.pop(key, (None, 0))
        joined = None
        if earlier is not None and turns < MAX_TURNS and rng.random() < 0.85:
            joined = join(tokenizer, earlier, example)
        if joined is None and earlier is not None:
            closed.append(earlier)
        open_ones[key] = (example, 1) if joined is None else (joined, turns + 1)
        num_tokens -= OPENING_TOKENS if joined is None else FURTHER_TOKENS
    closed += [example for example, _ in open_ones.values()]
    return [encode_turns(tokenizer, example) for example in closed]
