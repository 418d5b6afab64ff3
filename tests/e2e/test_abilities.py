"""What the bundled model must be able to do, asked through the server (see src/ventoux/demo/MODEL_CARD.md for figures).

The default tier asks a few questions of each kind, with room for bad luck; `make slow` asks enough of them to hold the
model to its bars. A model, a tokenizer or a prompt that was broken on the way fails both.
"""

from __future__ import annotations

import asyncio

import pytest

from ventoux.evals.demo import evaluate
from ventoux.train.demo_data import TASKS

# Long input takes minutes: the model card says what was measured.
ASKED = tuple(name for name, task in TASKS.items() if task.bar is not None and not name.startswith("long"))


def ask(server: str, per_task: int, tasks) -> dict:
    return asyncio.run(evaluate(server, "ventoux-demo", per_task=per_task, tasks=tasks))


def test_a_few_of_each(server):
    results = ask(server, 8, ASKED)
    for task, result in results.items():
        assert result.right >= 4, (task, result.failures)
    assert all(r.effort_respected == r.asked for r in results.values()), results


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_bars(server):
    results = ask(server, 300, ASKED)
    for task, result in results.items():
        bar = TASKS[task].bar
        assert bar is not None and result.right >= bar * result.asked, (task, result.right, result.failures)
    asked = sum(r.asked for r in results.values())
    assert sum(r.effort_respected for r in results.values()) >= 0.99 * asked
