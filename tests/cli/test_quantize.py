"""`ventoux quantize` from the command line, and what other commands say about its results."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.checkpoint.test_quantized import rewrite
from tests.tiny import tiny_draft_config, wide_config, write_tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "model"
    return write_tiny(folder, config=wide_config(), dtype=torch.bfloat16, tokenizer=True)


def test_quantize_reports_errors_and_divergence(ventoux, source, tmp_path):
    status, out, _ = ventoux("quantize", source, tmp_path / "q", "--format", "nvfp4", "--attention", "fp8")
    assert status == 0
    for words in ("native layout", "shared experts", "NVFP4", "FP8", "KL(source || quantized)", "same top token"):
        assert words in out
    assert "on 4 stored texts of 64 tokens" in out
    assert (tmp_path / "q" / "tekken.json").is_file()


def test_inspect_names_the_format_of_each_part(ventoux, source, tmp_path):
    assert ventoux("quantize", source, tmp_path / "q", "--format", "nvfp4", "--head", "fp8", "--no-check")[0] == 0
    status, out, _ = ventoux("inspect", tmp_path / "q")
    assert status == 0
    lines = {line.split("│")[1].strip(): line for line in out.splitlines() if line.count("│") == 5}
    assert "NVFP4" in lines["experts"] and "NVFP4" in lines["shared experts"]
    assert "FP8" in lines["head"] and "plain" in lines["attention"] and "plain" in lines["norms"]
    report = json.loads(ventoux("inspect", tmp_path / "q", "--json")[1])
    assert report["quant_formats"] == ["fp8", "nvfp4"]
    assert report["formats_by_part"]["experts"] == ["nvfp4"]
    assert "experts nvfp4" in report["plan"]["weight_formats"]


def test_without_a_tokenizer_tokens_are_random(ventoux, source, tmp_path):
    (shutil.copytree(source, tmp_path / "src") / "tekken.json").unlink()
    status, out, _ = ventoux("quantize", tmp_path / "src", tmp_path / "q", "--format", "fp8")
    assert status == 0 and "on 4 prompts of 64 random tokens" in out


def test_texts_that_are_few_tokens(ventoux, source, tmp_path, monkeypatch):
    monkeypatch.setattr("ventoux.evals.stored_prompts.TEXTS", ("a longer one", "b", "of words", "as they come"))
    status, out, _ = ventoux("quantize", source, tmp_path / "q", "--format", "fp8")
    assert status == 0 and "on 4 stored texts of 2 tokens" in out


def test_logits_that_are_not_finite_are_not_compared(ventoux, source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "src")
    rewrite(folder, lambda tensors: tensors["norm.weight"].fill_(3e38))
    status, _, err = ventoux("quantize", folder, tmp_path / "q", "--format", "fp8")
    assert status == 2 and "logits are not finite" in err


def test_no_check_loads_no_model(ventoux, source, tmp_path):
    status, out, _ = ventoux("quantize", source, tmp_path / "q", "--format", "fp8", "--no-check")
    assert status == 0 and "KL(" not in out


def test_generate_with_quantized_weights(ventoux, source, tmp_path):
    """The whole way: plan, load, engine, text."""
    assert ventoux("quantize", source, tmp_path / "q", "--format", "fp8", "--no-check")[0] == 0
    small = ("--max-tokens", "3", "--temperature", "0", "--max-model-len", "64", "--kv-cache-memory", "1MiB")
    status, _, err = ventoux("generate", tmp_path / "q", "--prompt", "Hello", *small)
    assert status == 0, err


def test_a_draft_has_no_logits(ventoux, tmp_path):
    write_tiny(tmp_path / "draft", config=tiny_draft_config(), dtype=torch.bfloat16)
    status, out, _ = ventoux("quantize", tmp_path / "draft", tmp_path / "q", "--format", "fp8")
    assert status == 0 and "a draft has none" in out


def test_refusals_are_exit_status_2(ventoux, source, tmp_path, checkpoint):
    status, _, err = ventoux("quantize", checkpoint, tmp_path / "q", "--format", "nvfp4")
    assert status == 2 and "divisible by 16" in err and "Traceback" not in err
    status, _, err = ventoux("quantize", source, source, "--format", "fp8")
    assert status == 2 and "is the source itself" in err
    assert not (tmp_path / "q").exists() and not (tmp_path / "q.partial").exists()


@pytest.mark.parametrize("words", [("--format", "int4"), ("--attention", "fp8")])
def test_flags_that_are_wrong_or_missing(ventoux, source, tmp_path, words):
    with pytest.raises(SystemExit) as exit_:
        ventoux("quantize", source, tmp_path / "q", *words)
    assert exit_.value.code == 2
