"""The mean of checkpoints."""

import pytest
import torch

from tests.tiny import tiny_config, write_tiny
from ventoux.checkpoint.files import open_checkpoint
from ventoux.checkpoint.load import load_model
from ventoux.checkpoint.quantize import quantize
from ventoux.cli import main
from ventoux.ops.reference import REFERENCE


def parameters(path):
    return dict(load_model(open_checkpoint(path), REFERENCE, dtype=torch.float32).named_parameters())


def test_the_mean_is_that_of_every_parameter(tmp_path):
    """A parameter left out would be the first one's; a share given to the wrong model would show as well."""
    models = [write_tiny(tmp_path / str(seed), seed=seed, dtype=torch.bfloat16) for seed in (1, 2, 3)]
    (models[0] / "SYSTEM_PROMPT.txt").write_text("Be brief.")
    arguments = ["train", "mean", *map(str, models), "--shares", "0.5,0.3,0.2", "--export", str(tmp_path / "mean")]
    assert main(arguments) == 0
    one, two, three, mean = map(parameters, (*models, tmp_path / "mean"))
    for name, got in mean.items():
        want = 0.5 * one[name] + 0.3 * two[name] + 0.2 * three[name]
        torch.testing.assert_close(got, want.bfloat16().float(), atol=1e-2, rtol=1e-2)
    assert any(not torch.equal(mean[name], one[name]) for name in mean)
    assert (tmp_path / "mean" / "SYSTEM_PROMPT.txt").read_text() == "Be brief."


@pytest.mark.parametrize(
    ("shares", "other", "words"),
    [("0.5", {}, "as many shares"), ("0.5,0.6", {}, "add up to 1"), ("0.5,0.5", {"hidden_size": 48}, "shapes")],
)
def test_what_has_no_mean_is_refused(tmp_path, capsys, shares, other, words):
    models = [write_tiny(tmp_path / "a"), write_tiny(tmp_path / "b", config=tiny_config(**other))]
    assert main(["train", "mean", *map(str, models), "--shares", shares, "--export", str(tmp_path / "mean")]) != 0
    assert words in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def test_a_mean_of_quantized_models_is_refused(tmp_path, capsys):
    quantize(write_tiny(tmp_path / "plain"), tmp_path / "fp8", "fp8")
    models = [str(tmp_path / "plain"), str(tmp_path / "fp8")]
    assert main(["train", "mean", *models, "--shares", "0.5,0.5", "--export", str(tmp_path / "mean")]) != 0
    assert "is quantized (FP8)" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()
