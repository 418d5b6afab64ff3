"""Conversion: no bit changes on the way there and back, and nothing of the user's is overwritten."""

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import tiny_config, tiny_draft_config, write_tiny
from ventoux.checkpoint.convert import convert
from ventoux.checkpoint.files import open_checkpoint
from ventoux.checkpoint.params import read_config
from ventoux.checkpoint.reader import halves_from_pairs, pairs_from_halves, read_all
from ventoux.checkpoint.write import model_rows, write_checkpoint
from ventoux.errors import CheckpointError


def contents(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("layout", ["native", "hf"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("vision", [True, False])
def test_there_and_back_is_bit_exact(tmp_path, layout, dtype, vision):
    source = write_tiny(tmp_path / "a", layout, tiny_config(vision), seed=8, dtype=dtype)
    there = convert(source, tmp_path / "b", max_shard_bytes=100_000)
    back = convert(tmp_path / "b", tmp_path / "c")
    assert there.layout != layout == back.layout
    assert read_config(source) == read_config(tmp_path / "c")
    assert (tmp_path / "b").joinpath("params.json" if layout == "hf" else "config.json").exists()
    before, after = contents(source), contents(tmp_path / "c")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype == dtype
        assert torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8)), name


def test_vision_rows_are_permuted_and_only_those(tmp_path):
    """Index by index: lane k turns elements (2k, 2k+1) in native rows, (k, k + head_dim/2) in Hugging Face rows.

    Forgetting the permutation cancels out in a round trip; only this sees it.
    """
    write_tiny(tmp_path / "native", "native", seed=8)
    convert(tmp_path / "native", tmp_path / "hf")
    native, hf = contents(tmp_path / "native"), contents(tmp_path / "hf")
    heads, head_dim = 2, 12
    order = [
        head * head_dim + 2 * lane + half for head in range(heads) for half in range(2) for lane in range(head_dim // 2)
    ]
    for layer in range(2):
        for ours, theirs in (("wq", "q_proj"), ("wk", "k_proj"), ("wv", "v_proj"), ("wo", "o_proj")):
            source = native[f"vision_encoder.transformer.layers.{layer}.attention.{ours}.weight"]
            target = hf[f"vision_tower.transformer.layers.{layer}.attention.{theirs}.weight"]
            assert torch.equal(target, source[order] if ours in ("wq", "wk") else source), theirs


def test_row_orders_are_inverse_and_as_documented():
    rows = torch.tensor([[0], [1], [10], [11], [2], [3], [12], [13]])
    pairs = pairs_from_halves(rows, 2)
    assert pairs.flatten().tolist() == [0, 10, 1, 11, 2, 12, 3, 13]
    assert torch.equal(halves_from_pairs(pairs, 2), rows)


def test_side_files_come_along_and_progress_ends_at_the_total(tmp_path):
    source = write_tiny(tmp_path / "a", tokenizer=True)
    (source / "SYSTEM_PROMPT.txt").write_text("Be brief.")
    (source / "notes.txt").write_text("mine")
    seen = []
    convert(source, tmp_path / "b", progress=lambda *numbers: seen.append(numbers))
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert names == {"config.json", "model.safetensors", "tekken.json", "SYSTEM_PROMPT.txt"}
    assert (tmp_path / "b" / "SYSTEM_PROMPT.txt").read_text() == "Be brief."
    total = sum(tensor.nbytes for tensor in contents(source).values())
    assert seen[-1] == (total, total)


def test_refusals(tmp_path):
    source = write_tiny(tmp_path / "a")
    with pytest.raises(CheckpointError, match="is the source itself"):
        convert(source, tmp_path / "x" / ".." / "a", force=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="not empty"):
        convert(source, tmp_path / "full")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        convert(source, tmp_path / "file", force=True)
    draft = write_tiny(tmp_path / "draft", config=tiny_draft_config())
    with pytest.raises(CheckpointError, match="only the native layout"):
        convert(draft, tmp_path / "draft-hf")
    assert (tmp_path / "full" / "thesis.txt").exists() and not (tmp_path / "draft-hf").exists()


def test_force_replaces_the_old_checkpoint_and_nothing_else(tmp_path):
    """Leftover shards of an earlier run would be stored twice."""
    source = write_tiny(tmp_path / "a", seed=2)
    target = write_tiny(tmp_path / "b", "hf", seed=9, max_shard_bytes=100_000)
    (target / "notes.txt").write_text("mine")
    convert(source, target, force=True)
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors", "notes.txt"}
    wanted = {row.path: tensor for row, tensor in read_all(open_checkpoint(source))}
    assert all(torch.equal(tensor, wanted[row.path]) for row, tensor in read_all(open_checkpoint(target)))


def test_a_folder_cut_short_is_no_checkpoint(tmp_path):
    """The config file is written last."""
    from tests.tiny import tiny_model

    rows = list(model_rows(tiny_model(), tiny_config()))[:-1]
    with pytest.raises(ValueError, match=r"expected multi_modal_projector.linear_2.weight .* got nothing"):
        write_checkpoint(tmp_path, tiny_config(), "native", rows)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        open_checkpoint(tmp_path)
