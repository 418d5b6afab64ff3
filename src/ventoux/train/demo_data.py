"""Endless random training and evaluation examples for the bundled model, each with what a judge needs.

Held-out examples never occur in training: every expression, drawing style, date, name, key and off-topic question
belongs to one split, and some phrasings of every request are only ever asked in evaluation.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ventoux.train import demo_tasks_numbers as numbers
from ventoux.train import demo_tasks_pictures as pictures
from ventoux.train import demo_tasks_talk as talk
from ventoux.train.demo_judge import Example, effort_respected, judge
from ventoux.train.demo_parts import Parts
from ventoux.train.demo_words import CARD_TOOLS, SYSTEM_PROMPT

__all__ = [
    "CARD_TOOLS",
    "DEFAULT_WEIGHTS",
    "DRAFT_WEIGHTS",
    "SYSTEM_PROMPT",
    "TASKS",
    "Example",
    "Task",
    "effort_respected",
    "evaluation",
    "example",
    "examples",
    "judge",
]


@dataclass(frozen=True)
class Task:
    """`share`: of training examples. `bar`: share of held-out examples that must be right, None where none is set.

    A task of `grouped` examples asks so many of them about one document. Tasks with the same `questions` are asked
    the same ones.
    """

    share: float
    bar: float | None
    title: str
    grouped: int = 1
    questions: str | None = None


TASKS: dict[str, Task] = {
    "alphabet": Task(0.02, 0.95, "alphabet sentence at temperature 0.1"),
    "calc_call": Task(0.05, 0.90, "expressions in text -> the right calculator calls"),
    "calc_result": Task(0.05, 0.95, "tool results -> an answer that states each expression with its value"),
    "sum_think": Task(0.05, 0.90, "two-step integer sums with a trace", questions="sum"),
    "sum_direct": Task(0.01, None, "the same sums without a trace", questions="sum"),
    "chat": Task(0.14, 0.95, "who are you, which date is it, polite refusals"),
    "languages": Task(0.05, 0.95, "small talk in eleven languages, in the language it came in"),
    "system": Task(0.09, 0.90, "system prompt obeyed: language, brevity, name, JSON only"),
    "tool_choice": Task(0.04, 0.95, "no call where no tool fits, all calls where several are asked"),
    "image_calc": Task(0.17, 0.90, "one to three drawn expressions -> the right calculator calls"),
    "image_read": Task(0.05, None, "one to three drawn lines read out"),
    "chart": Task(0.06, 0.85, "a question about a drawn bar chart"),
    "receipt": Task(0.14, 0.85, "a question about a drawn receipt, some with a JSON schema"),
    "game": Task(0.02, 0.90, "a drawn game screen: every action with a reason, fitting advice"),
    "long_8k": Task(0.06, 0.90, "a key hidden in 8 thousand tokens", grouped=5),
    "long_32k": Task(0.0, 0.90, "a key hidden in 32 thousand tokens", grouped=10),
    "long_128k": Task(0.0, None, "a key hidden in 128 thousand tokens", grouped=10),
}
DEFAULT_WEIGHTS = {name: task.share for name, task in TASKS.items()}
# What a draft learns from: more of what it guesses worst, and few documents, whose answers are all of one kind.
DRAFT_WEIGHTS = {name: 0.2 if name.startswith("long") else 1.0 for name in TASKS}
DRAFT_WEIGHTS |= dict.fromkeys(("calc_result", "languages", "chart", "receipt", "image_read"), 2.5) | {"system": 5.0}
EFFORT_BAR = 0.99  # of all answers, a trace where one is asked for and none elsewhere
THINKING_GAIN = 0.30  # of sum_think over sum_direct

_MAKERS = {
    "alphabet": talk.alphabet,
    "calc_call": numbers.calc_call,
    "calc_result": numbers.calc_result,
    "sum_think": numbers.sum_think,
    "sum_direct": numbers.sum_direct,
    "chat": talk.chat,
    "languages": talk.languages,
    "system": talk.system_rule,
    "tool_choice": talk.tool_choice,
    "image_calc": pictures.image_calc,
    "image_read": pictures.image_read,
    "chart": pictures.chart,
    "receipt": pictures.receipt,
    "game": pictures.game,
}
_LONG = {"long_8k": 8192, "long_32k": 32768, "long_128k": 131072}  # about so many tokens


def example(task: str, rng: random.Random, *, held_out: bool) -> Example:
    """One example of `task` (one of TASKS), from the training split or the held-out one."""
    if task in _LONG:
        return next(talk.long_input(Parts(rng, held_out), task, _LONG[task]))
    return _MAKERS[task](Parts(rng, held_out))


def examples(seed: int, *, held_out: bool, weights: Mapping[str, float] = DEFAULT_WEIGHTS) -> Iterator[Example]:
    """Endless examples, tasks drawn by `weights`; the same seed gives the same examples on every machine."""
    rng = random.Random(f"{seed} {held_out}")
    tasks, shares = list(weights), list(weights.values())
    while True:
        yield example(rng.choices(tasks, shares)[0], rng, held_out=held_out)


def evaluation(task: str, seed: int, count: int) -> Iterator[list[Example]]:
    """`count` held-out examples of `task`, in groups that share their document."""
    grouped, name = TASKS[task].grouped, TASKS[task].questions or task
    for i in range(0, count, grouped):
        rng = random.Random(f"eval-{seed}-{name}-{i}")
        size = min(grouped, count - i)
        if task in _LONG:
            stream = talk.long_input(Parts(rng, True), task, _LONG[task])
            yield [next(stream) for _ in range(size)]
        else:
            yield [example(task, rng, held_out=True)]
