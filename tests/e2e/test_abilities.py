"""What the bundled model must be able to do, asked through the server (see src/ventoux/demo/MODEL_CARD.md for figures).

The default tier asks a few questions of each kind, with room for bad luck; `make slow` asks enough of them to hold the
model to its bars. A model, a tokenizer or a prompt that was broken on the way fails both.
"""

from __future__ import annotations

import asyncio

import pytest

from ventoux.evals.demo import evaluate
from ventoux.train.demo_data import TASKS

# Task: share that must be right.
BARS = {task: TASKS[task].bar or 0.0 for task in ("alphabet", "calc_call", "calc_result")}


def ask(server: str, per_task: int, tasks) -> dict:
    return asyncio.run(evaluate(server, "ventoux-demo", per_task=per_task, tasks=tasks))


def test_a_few_of_each(server):
    results = ask(server, 8, ("alphabet", "calc_call", "calc_result", "sum_think", "chat"))
    for task in BARS:
        assert results[task].right >= 5, results[task].failures
    assert all(r.effort_respected == r.asked for r in results.values()), results


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_bars(server):
    results = ask(server, 100, (*BARS, "sum_think", "chat", "image_calc", "game"))
    for task, bar in BARS.items():
        assert results[task].right >= bar * results[task].asked, (task, results[task].right, results[task].failures)
    asked = sum(r.asked for r in results.values())
    assert sum(r.effort_respected for r in results.values()) >= 0.99 * asked
