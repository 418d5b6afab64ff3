"""The pool of threads: more of them than cores, so that workers come late, leave late, or miss a dispatch."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch

from ventoux.ops.cpu import instruction_sets, native_operators

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="installed without native code")
CORES = os.cpu_count() or 1


def test_workers_that_come_late_change_nothing():
    """Hundreds of short dispatches in a row, each with other work than the one before: a worker that entered one late,
    or that was not waited for, would write what belongs to another."""
    torch.manual_seed(0)
    weights = [torch.randn(rows, 64).bfloat16() for rows in (24, 200, 9, 120)]
    inputs = [torch.randn(rows, 64).bfloat16() for rows in (1, 3, 40)]
    one, many = native_operators(1), native_operators(min(4 * CORES, 16))
    expected = {(i, j): one.linear(x, w) for i, x in enumerate(inputs) for j, w in enumerate(weights)}
    for turn in range(300):
        for (i, j), right in expected.items():
            assert torch.equal(many.linear(inputs[i], weights[j]), right), f"turn {turn}, input {i}, weight {j}"


def test_two_pools_side_by_side():
    """Each with as many threads as there are cores, as two models in one process have them."""
    weight, x = torch.randn(300, 96), torch.randn(5, 96)
    right = native_operators(1).linear(x, weight)
    wrong: list[int] = []

    def work(number: int) -> None:
        ops = native_operators(CORES)
        wrong.extend(number for _ in range(500) if not torch.equal(ops.linear(x, weight), right))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(CORES < 2, reason="one core")
def test_workers_work():
    """The caller alone would give the same bits: what others did shows in the process's time alone. A worker that
    finds nothing to do spins for some 100 microseconds."""
    ops, weight, x = native_operators(2), torch.randn(4096, 1024), torch.randn(256, 1024)
    others = 0.0
    for _ in range(20):  # until the system had a core for it
        began, own = time.process_time(), time.thread_time()
        ops.linear(x, weight)
        others = (time.process_time() - began) - (time.thread_time() - own)
        if others > 0.005:
            break
    assert others > 0.005
