"""The table of `make bench-peers`: medians over rounds, shares of the machine, ratios taken within a round."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest

from benchmarks.peers import protocol, report

MODEL = {
    "shared_parameters": 300,
    "head_parameters": 100,
    "expert_parameters": 800,
    "experts": 8,
    "experts_per_token": 2,
}


def entry(engine, prefill, decode, bandwidth=1000.0, peak=10_000.0, **more):
    load = {"case": "load", "seconds": 2.0, "start_seconds": 3.0, "versions": {"x": "1"}, "note": "as it comes"}
    cases = [
        load,
        {"case": "prefill 512", "tokens": 512, "tokens_per_second": prefill, "cold": False},
        {"case": "decode 4", "sequences": 4, "new_tokens": 9, "tokens_per_second": decode, "weight_bytes": 50},
        {"case": "memory", "peak_bytes": 7 * 2**30},
    ]
    speeds = {"bytes_per_second": bandwidth, "operations_per_second": peak}
    return {"engine": engine, "cases": [case | speeds for case in cases], **more}


def summary(rounds):
    return report.summary(rounds, MODEL) | {"not_measured": {"vllm": "not installed: no wheel"}}


def test_ratios_are_taken_within_a_round():
    """The machine is twice as fast in the second round: medians of each engine alone would tell another ratio."""
    rounds = [
        [entry("ventoux bf16", 9.0, 20.0), entry("other bf16", 3.0, 10.0)],
        [entry("ventoux bf16", 12.0, 40.0), entry("other bf16", 6.0, 20.0)],
        [entry("ventoux bf16", 9.0, 30.0), entry("other bf16", 9.0, 10.0)],
    ]
    results = summary(rounds)
    assert results["ratios"]["decode 4"]["ventoux bf16"]["other bf16"] == 2.0
    assert results["ratios"]["prefill 512"]["ventoux bf16"]["other bf16"] == 2.0
    assert results["engines"]["ventoux bf16"]["cases"]["decode 4"]["tokens_per_second"]["median"] == 30.0
    assert set(results["ratios"]["decode 4"]) == {"ventoux bf16"}, "peers are not compared with each other"


def test_shares_of_the_machine_are_those_of_the_round():
    """Decode: steps per second times bytes. Prefill: two operations per active parameter, the head's left out."""
    results = summary([[entry("ventoux bf16", 5.0, 40.0, bandwidth=1000.0)], [entry("ventoux bf16", 5.0, 40.0, 500.0)]])
    cases = results["engines"]["ventoux bf16"]["cases"]
    assert cases["decode 4"]["share_of_bandwidth"] == pytest.approx((10 * 50 / 1000 + 10 * 50 / 500) / 2)
    active = 300 - 100 + 800 * 2 / 8
    assert cases["prefill 512"]["share_of_matrix_peak"] == pytest.approx(5 * 2 * active / 10_000)


def test_what_was_not_measured_is_said_and_costs_no_other_number():
    broken = entry("other bf16", 1.0, 1.0, problem="exit status 124: no message")
    del broken["cases"][1:]
    results = summary([[entry("ventoux bf16", 9.0, 20.0), broken]])
    assert results["ratios"] == {}
    text = report.table(results)
    assert "vllm: not installed" in text and "other bf16: exit status 124" in text
    row = next(line for line in text.splitlines() if line.startswith("other bf16"))
    assert row.split()[2:4] == ["-", "-"]


def test_a_prompt_that_was_read_once_only_is_no_ratio():
    """A first prompt pays for what is touched for the first time: comparing it would flatter whoever was timed warm."""
    slow = entry("other bf16", 1.0, 10.0)
    slow["cases"][1]["cold"] = True
    results = summary([[entry("ventoux bf16", 9.0, 20.0), slow]])
    assert "prefill 512" not in results["ratios"] and "decode 4" in results["ratios"]


ENGINE = """
import json, sys
for case in ("load", "decode 1", "memory"):
    print(json.dumps({"case": case}), flush=True)
    if case == "decode 1" and "ends" in sys.argv:
        sys.exit(3)
    assert sys.stdin.readline() == "on\\n"
"""


@pytest.mark.parametrize(("words", "count", "problem"), [((), 3, None), (("ends",), 2, "exit status 3")])
def test_limits_are_measured_while_the_engine_waits(monkeypatch, tmp_path, words, count, problem):
    """Also when it ends meanwhile."""
    monkeypatch.syspath_prepend(Path(protocol.__file__).parents[1])
    main = importlib.import_module("peers.__main__")
    monkeypatch.setattr(main, "BUILD", tmp_path)
    monkeypatch.setattr(main.Peer, "command", lambda *_: [sys.executable, "-c", ENGINE, *words])
    moments = iter(range(9))
    args = argparse.Namespace(prefill=[1], decode=[1], new_tokens=1, seconds=1.0, threads=1)
    found = main._measure(main.Peer("x"), "", tmp_path, args, 0, lambda: main.machine.Speeds(next(moments), 1.0, ""))
    assert [line["bytes_per_second"] for line in found["cases"]] == list(range(count))
    assert problem in found["problem"] if problem else "problem" not in found


@pytest.mark.parametrize("text", ["", "0", "8,-1", "8,x", "8,,1"])
def test_counts_that_are_none_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        protocol.counts(text)
