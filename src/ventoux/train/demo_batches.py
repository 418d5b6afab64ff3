"""Examples -> packed training batches, with the loss on the assistant's tokens only."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ventoux.model.decoder import ForwardInputs
from ventoux.text.tokenizer import Tokenizer
from ventoux.train.demo_data import Example


@dataclass(frozen=True)
class Encoded:
    """One conversation: ids, which of them the model must produce, and the images' pixels [3, H, W]."""

    task: str
    token_ids: list[int]
    is_target: list[bool]
    images: list[np.ndarray]


@dataclass(frozen=True)
class Batch:
    """`targets_T[i]` is the id that follows packed token i, -100 where no loss is taken."""

    inputs: ForwardInputs
    targets_T: torch.Tensor
    images: list[torch.Tensor]
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
    images = [np.frombuffer(i.pixels, dtype=np.float32).reshape(3, i.height, i.width) for i in prompt.images]
    mask = [False] * len(prompt.token_ids) + [True] * len(target)
    return Encoded(example.task, prompt.token_ids + target, mask, images)


def join(tokenizer: Tokenizer, first: Example, second: Example) -> Example | None:
    """`second` asked right after `first` in one conversation, so that one prompt serves two answers.

    Only for pairs whose settings agree: effort and tools are stated once, before the first user message.
    """
    if first.reasoning_effort != second.reasoning_effort or first.tools != second.tools:
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
    return Encoded(whole.task, whole.token_ids, mask, whole.images)


def pack(tokenizer: Tokenizer, items: list[Encoded], rng: random.Random, max_offset: int) -> Batch:
    """Packs conversations. One in four begins at a random position, so that late positions are trained as well."""
    ids: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    image_id = tokenizer.control.image
    for item in items:
        offset = rng.randrange(max_offset) if rng.random() < 0.25 else 0
        ids += item.token_ids
        following = zip(item.token_ids[1:], item.is_target[1:], strict=True)
        targets += [t if wanted else -100 for t, wanted in following] + [-100]
        positions += range(offset, offset + len(item.token_ids))
    images = [torch.from_numpy(image.copy()) for item in items for image in item.images]
    token_ids = torch.tensor(ids)
    inputs = ForwardInputs(
        token_ids_T=token_ids,
        positions_T=torch.tensor(positions),
        lengths=tuple(len(item.token_ids) for item in items),
        image_idx_M=(token_ids == image_id).nonzero().squeeze(1) if images else None,
    )
    return Batch(inputs, torch.tensor(targets), images, tuple(item.task for item in items))


def drill(tokenizer: Tokenizer, rng: random.Random) -> Encoded:
    """A random piece written several times over, with the loss on the repetitions.

    Nothing but copying helps here: it polishes the induction head that training starts with (see start.py).
    """
    length = rng.randint(3, 20)
    if rng.random() < 0.6:
        piece = [rng.choice(tokenizer.encode_text("0123456789+-*/() .=,")) for _ in range(length)]
    else:
        piece = [rng.randrange(tokenizer.num_special_tokens, tokenizer.vocab_size) for _ in range(length)]
    times = rng.randint(2, 4)
    ids = [tokenizer.bos_id] + piece * times
    return Encoded("drill", ids, [i > length for i in range(len(ids))], [])


def batches(
    tokenizer: Tokenizer,
    source: Callable[[int], Iterator[Example]],
    tokens_per_step: int,
    max_offset: int,
    first: int,
    drill_share: Callable[[int], float] = lambda step: 0.0,
) -> Iterator[Batch]:
    """One batch per step from step `first` on. Step n's data depend on n alone, so a resumed run goes on as it was.

    `drill_share(n)` is the share of step n's tokens that are drills.
    """
    step = first
    while True:
        rng = random.Random(f"pack-{step}")
        items: list[Encoded] = []
        drills = int(tokens_per_step * drill_share(step))
        while drills > 0:
            items.append(drill(tokenizer, rng))
            drills -= len(items[-1].token_ids)
        items += _conversations(tokenizer, source(step), tokens_per_step - sum(len(i.token_ids) for i in items), rng)
        yield pack(tokenizer, items, rng, max_offset)
        step += 1


def _conversations(
    tokenizer: Tokenizer, stream: Iterator[Example], num_tokens: int, rng: random.Random
) -> list[Encoded]:
    """Encoded examples of at least `num_tokens` in all; half of those that fit together are joined."""
    items: list[Encoded] = []
    held: dict[tuple, Example] = {}
    while num_tokens > 0:
        example = next(stream)
        key = (example.reasoning_effort, json.dumps(example.tools))
        earlier = held.pop(key, None)
        if earlier is not None and rng.random() < 0.5:
            example = join(tokenizer, earlier, example) or example
        held[key] = example
        items.append(encode_turns(tokenizer, example))
        num_tokens -= len(items[-1].token_ids)
    return items
