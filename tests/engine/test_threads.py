"""Who may use how many of torch's threads: one beside native operators, all for what needs them, and the caller's own
number is the caller's."""

from dataclasses import replace

import pytest
import torch

from tests.engines import request, tiny_engine
from ventoux.evals.machine import memory_bandwidth
from ventoux.hardware import probe_hardware


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("operators", "threads"), [("cpu (avx2)", 1), ("reference", 2)])
def test_a_step_uses_the_plans_threads_and_gives_them_back(three_threads, monkeypatch, operators, threads):
    """Torch's and the operators' own would wait for each other's cores; a host program has other plans for its own."""
    engine = tiny_engine()
    engine.plan = replace(engine.plan, operators=operators, num_threads=2)
    forward, seen = engine.runner.forward, set()

    def watched(chunks):
        seen.add(torch.get_num_threads())
        return forward(chunks)

    monkeypatch.setattr(engine.runner, "forward", watched)
    engine.add(request([5, 6, 7], max_tokens=2))
    while engine.has_work:
        engine.step()
    assert seen == {threads}
    assert torch.get_num_threads() == 3


def test_the_memory_is_measured_with_all_cores(three_threads):
    """Else the share of it that decoding comes to would look better than it is."""
    hardware = replace(probe_hardware(), num_cores=2, available_bytes=2**24)
    assert "2 thread(s)" in memory_bandwidth(hardware, repeats=1)[1]
    assert torch.get_num_threads() == 3
