"""inspect and convert on a tiny checkpoint."""

from __future__ import annotations

import json

import pytest

from tests.tiny import tiny_config
from ventoux.model.tensors import tensor_table


def test_inspect_as_json(ventoux, checkpoint):
    status, out, _ = ventoux("inspect", checkpoint, "--json")
    report = json.loads(out)
    assert status == 0
    assert report["layout"] == "native"
    assert report["total_parameters"] == sum(row.num_parameters for row in tensor_table(tiny_config()))
    assert report["config"]["text"]["n_routed_experts"] == 5
    assert report["plan"]["max_model_len"] > 0


def test_inspect_as_tables(ventoux, checkpoint):
    status, out, _ = ventoux("inspect", checkpoint)
    assert status == 0
    for words in ("native (params.json)", "active per token", "shared experts", "longest sequence"):
        assert words in out


def test_inspect_what_is_not_there(ventoux, tmp_path):
    status, _, err = ventoux("inspect", tmp_path / "nowhere")
    assert status == 2
    assert "no such folder" in err and "Traceback" not in err


def test_convert_there_and_back(ventoux, checkpoint, tmp_path):
    """Without --layout the other one is written; back again, the weights are the same bytes."""
    status, out, _ = ventoux("convert", checkpoint, tmp_path / "hf")
    assert status == 0
    assert "hf layout" in out and "tensors in 1 file(s)" in out
    assert (tmp_path / "hf" / "tekken.json").is_file()
    assert ventoux("convert", tmp_path / "hf", tmp_path / "back", "--layout", "native")[0] == 0
    name = "consolidated.safetensors"
    assert (tmp_path / "back" / name).read_bytes() == (checkpoint / name).read_bytes()


def test_convert_overwrites_only_when_told(ventoux, checkpoint, tmp_path):
    assert ventoux("convert", checkpoint, tmp_path / "hf")[0] == 0
    status, _, err = ventoux("convert", checkpoint, tmp_path / "hf", "--layout", "native")
    assert status == 2 and "not empty" in err
    assert (tmp_path / "hf" / "config.json").is_file(), "the refused conversion destroyed its target"
    assert ventoux("convert", checkpoint, tmp_path / "hf", "--layout", "native", "--force")[0] == 0
    assert (tmp_path / "hf" / "params.json").is_file()
    assert not (tmp_path / "hf" / "config.json").exists(), "two layouts in one folder"


def test_layouts_are_two(ventoux, checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        ventoux("convert", checkpoint, tmp_path / "x", "--layout", "gguf")
    assert exit_.value.code == 2
    assert "gguf" in capsys.readouterr().err
