"""doctor: passes here, and fails when something computes what it should not."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch

import ventoux.evals.selftest as selftest
from tests.tiny import write_tiny
from ventoux.ops.reference import REFERENCE, linear, route


def failed(ops=REFERENCE, bundled=None) -> dict[str, str]:
    return {outcome.name: outcome.detail for outcome in selftest.run_checks([ops], bundled) if not outcome.passed}


@pytest.fixture(autouse=True)
def small_tokenizer(monkeypatch):
    """The whole vocabulary takes two seconds to read; the golden prompt itself is tested in tests/golden."""
    monkeypatch.setattr(selftest, "check_tokenizer", lambda: "left out")


def test_every_operator_has_a_check():
    """But for `layers`, which is the others in one call: absorbed against expanded attention goes through it."""
    assert set(selftest.OPERATOR_CHECKS) == {field.name for field in fields(REFERENCE)} - {"name", "layers"}


def test_the_reference_passes():
    assert failed() == {}


def _late_latent_attention(q, kv_b, positions, cache, layout, scale):
    """Forgets that a page's slots go on in the next page."""
    pages = layout.pages_NP.flip(-1)
    return REFERENCE.latent_attention(q, kv_b, positions, cache, replace(layout, pages_NP=pages), scale)


BROKEN = {
    "rms_norm": lambda x, weight, eps: x * weight,
    "linear": lambda x, weight: linear(x, weight) + 1e-3,
    "head": lambda x, weight: linear(x, weight.roll(1, 0)),
    "rope": lambda x, cos, sin: torch.cat((x[..., ::2] * cos[:, None], x[..., 1::2] * sin[:, None]), dim=-1),
    "write_latent": lambda kv, norm, eps, positions, cache, slots: None,
    "latent_attention": _late_latent_attention,
    "packed_attention": lambda q, k, v, lengths, scale, causal: REFERENCE.packed_attention(
        q, k, v, lengths, scale, True
    ),
    "route": lambda x, gate, k, scale: route(x, gate, k, 1.0),
    "gated_mlp": lambda x, gate, up, down: REFERENCE.gated_mlp(x, up, gate, down),
    "moe": lambda x, weights, ids, gate_up, down, shared: REFERENCE.moe(
        x, weights, ids, gate_up.roll(7, 1), down, shared
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_operator_is_found(name):
    assert f"reference: operator {name}" in failed(replace(REFERENCE, **{name: BROKEN[name]}))


def test_nan_is_not_a_small_error():
    problems = failed(replace(REFERENCE, linear=lambda x, weight: linear(x, weight) * float("nan")))
    assert "off by nan" in problems["reference: operator linear"]


def test_absorbed_is_held_to_expanded():
    """A cache that rounds to bf16 shows here and in no single operator's check of shapes."""
    wrong = replace(
        REFERENCE,
        write_latent=lambda kv, norm, *rest: REFERENCE.write_latent(kv, norm * 1.01, *rest),
    )
    assert "reference: absorbed attention = expanded" in failed(wrong)


def test_an_exception_is_a_failure_not_a_crash():
    def broken(*_):
        raise RuntimeError("illegal instruction")

    problems = failed(replace(REFERENCE, rope=broken))
    assert "illegal instruction" in problems["reference: operator rope"]


def test_wrong_prompt_is_found(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(selftest, "GOLDEN_PROMPT", [1, 2, 3])
    with pytest.raises(selftest.SelfTestError, match="expected"):
        selftest.check_tokenizer()


def test_generation_is_checked(tmp_path):
    """A checkpoint without a tokenizer cannot answer: FAIL, with the reason."""
    assert "generation with the bundled model" in failed(bundled=write_tiny(tmp_path / "mute"))
    assert failed(bundled=write_tiny(tmp_path / "good", tokenizer=True)) == {}


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_exit_status_and_report(ventoux, checkpoint, monkeypatch, json_flag):
    monkeypatch.setattr("ventoux.checkpoint.hub.bundled_model", lambda: checkpoint)
    status, out, _ = ventoux("doctor", *json_flag)
    assert status == 0
    if json_flag:
        report = json.loads(out)
        assert report["passed"] and report["bundled_model"]
        assert report["versions"]["torch"] and report["machine"]["cores"] >= 1
        assert report["providers"][-1] == "reference" and "rope=reference" in report["operators"]
    else:
        assert "PASS" in out and "FAIL" not in out
    wrong = replace(REFERENCE, linear=lambda x, weight: linear(x, weight) * 1.01)
    monkeypatch.setattr("ventoux.build.all_operators", lambda num_threads: [wrong])
    status, out, _ = ventoux("doctor", *json_flag)
    assert status == 1
    assert ('"passed": false' if json_flag else "FAIL") in out


def test_the_start_up_plan_is_shown(tmp_path, capsys, monkeypatch):
    """Whether a model fits should be known before its weights are read."""
    from ventoux.cli import main

    folder = tmp_path / "model"
    folder.mkdir()
    write_tiny(folder)
    monkeypatch.setattr(selftest, "run_checks", lambda providers, bundled: [])
    assert main(["doctor", str(folder)]) == 0
    assert "engine plan:" in capsys.readouterr().out
    assert main(["doctor", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["max_model_len"] > 0
