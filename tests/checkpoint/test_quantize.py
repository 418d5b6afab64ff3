"""Quantizing: what is written reads back as what the quantizer made, in the published layouts; conversion keeps every
bit or refuses; and a run that does not finish leaves nothing that could be taken for a model."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoint.test_quantized import W1, W3, rewrite, weights
from tests.tiny import tiny_config, tiny_draft_config, wide_config, write_tiny
from ventoux.checkpoint import write
from ventoux.checkpoint.compare import check_memory, compute_dtype, divergence, logits_of, random_prompts
from ventoux.checkpoint.convert import convert
from ventoux.checkpoint.files import open_checkpoint
from ventoux.checkpoint.quantize import quantize
from ventoux.errors import CheckpointError, ConfigError
from ventoux.ops.formats import quantize_fp8, quantize_nvfp4
from ventoux.ops.reference import REFERENCE


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    for layout in ("native", "hf"):
        write_tiny(root / layout, layout, wide_config(), seed=6, dtype=torch.bfloat16, tokenizer=True)
    return root


def contents(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and tensor.shape == theirs[name].shape, name
        assert torch.equal(tensor.view(-1).view(torch.uint8), theirs[name].view(-1).view(torch.uint8)), name


# ----------------------------------------------------------------------------------------------------- what is written


def test_nvfp4_as_published(sources, tmp_path):
    """Experts and the shared expert packed, all else as it was; the block that compressed-tensors reads."""
    result = quantize(sources / "native", tmp_path / "nvfp4", "nvfp4", max_shard_bytes=100_000)
    source, written = contents(sources / "native"), contents(tmp_path / "nvfp4")
    packed = {n.removesuffix("weight") for n in source if "experts." in n}
    assert len(packed) == 2 * (5 + 1) * 3
    for linear in packed:
        codes, group_scale, global_scale = quantize_nvfp4(source.pop(linear + "weight"))
        assert torch.equal(written.pop(linear + "weight_packed"), codes)
        assert torch.equal(written.pop(linear + "weight_scale").view(torch.uint8), group_scale.view(torch.uint8))
        assert torch.equal(written.pop(linear + "weight_global_scale"), global_scale)
    same_bits(written, source)
    index = json.loads((tmp_path / "nvfp4" / "consolidated.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == result.checkpoint.stored_bytes
    params = json.loads((tmp_path / "nvfp4" / "params.json").read_text())
    block = params["quantization_config"]
    assert block["quant_method"] == "compressed-tensors" and block["format"] == "nvfp4-pack-quantized"
    (group,) = block["config_groups"].values()
    assert group["weights"]["group_size"] == 16 and group["weights"]["strategy"] == "tensor_group"
    assert group["input_activations"] is None, "no activation scales were measured"
    assert {"re:.*attention.*", "lm_head", "re:.*gate$"} <= set(block["ignore"])
    assert params["dtype"] == "bfloat16"


def test_fp8_as_published_native(sources, tmp_path):
    quantize(sources / "native", tmp_path / "fp8", "fp8")
    source, written = contents(sources / "native"), contents(tmp_path / "fp8")
    codes, scale = quantize_fp8(source[W3 + "weight"])
    assert torch.equal(written[W3 + "weight"].view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(written[W3 + "qscale_weight"], scale) and scale.shape == ()
    quantized = {name for name, tensor in written.items() if tensor.dtype == torch.float8_e4m3fn}
    assert len(quantized) == 2 * (5 + (5 + 1) * 3)
    assert not any("gate" in name or "vision" in name or name.startswith(("tok", "output")) for name in quantized)
    params = json.loads((tmp_path / "fp8" / "params.json").read_text())
    assert params["quantization"] == {"qformat_weight": "fp8_e4m3", "qscheme_act": "NO_SCALES"}


def test_fp8_as_published_hugging_face(sources, tmp_path):
    quantize(sources / "hf", tmp_path / "fp8", "fp8")
    written = contents(tmp_path / "fp8")
    experts = "language_model.model.layers.0.mlp.experts."
    assert written[experts + "gate_up_proj"].shape == (5, 64, 48)
    assert written[experts + "gate_up_proj_scale_inv"].shape == (5, 2, 1), "w1 and w3 have their own"
    assert written[experts + "down_proj_scale_inv"].shape == (5, 1, 1)
    assert written["language_model.model.layers.0.self_attn.o_proj.weight_scale_inv"].shape == ()
    block = json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]
    assert block["quant_method"] == "fp8" and block["weight_block_size"] is None
    assert block["activation_scheme"] == "dynamic" and "lm_head" in block["modules_to_not_convert"]


def test_the_reported_error_is_the_error(sources, tmp_path):
    result = quantize(sources / "hf", tmp_path / "out", "nvfp4", attention="fp8", head="nvfp4")
    before, after = weights(sources / "hf"), weights(tmp_path / "out")
    assert [(e.part, e.format) for e in result.errors] == [
        ("attention", "fp8"), ("shared_experts", "nvfp4"), ("experts", "nvfp4"), ("head", "nvfp4"),
    ]  # fmt: skip
    for error in result.errors:
        paths = [
            r.path for r in result.checkpoint.rows if r.part == error.part and r.path in before and "norm" not in r.path
        ]
        difference = torch.cat([(after[p] - before[p]).flatten() for p in paths])
        assert error.num_parameters == len(difference)
        assert error.rmse == pytest.approx(difference.square().mean().sqrt().item(), rel=1e-4)
        size = torch.cat([before[p].flatten() for p in paths]).square().mean().sqrt().item()
        assert error.relative_rmse == pytest.approx(error.rmse / size, rel=1e-4)
        assert 0.01 < error.relative_rmse < (0.04 if error.format == "fp8" else 0.13)


def test_both_layouts_give_the_same_model(sources, tmp_path):
    for layout in ("native", "hf"):
        quantize(sources / layout, tmp_path / layout, "nvfp4", attention="nvfp4", head="fp8")
    same_bits(contents(tmp_path / "native"), contents(tmp_path / "hf"))


def test_an_fp8_source_becomes_nvfp4(sources, tmp_path):
    """The base repository is FP8: its attention becomes plain bf16, as in the published NVFP4 files."""
    quantize(sources / "hf", tmp_path / "fp8", "fp8")
    quantize(tmp_path / "fp8", tmp_path / "nvfp4", "nvfp4")
    before, after = weights(tmp_path / "fp8"), weights(tmp_path / "nvfp4")
    path = "language_model.layers.0.self_attn.o_proj.weight"
    assert torch.equal(after[path], before[path].bfloat16().float())
    path = "language_model.layers.0.mlp.experts.down_proj"
    assert 0.05 < ((after[path] - before[path]).norm() / before[path].norm()) < 0.13


def test_side_files_come_along_and_progress_ends_at_the_total(sources, tmp_path):
    seen = []
    result = quantize(sources / "native", tmp_path / "out", "fp8", progress=lambda *numbers: seen.append(numbers))
    assert seen[-1] == (result.checkpoint.stored_bytes,) * 2
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"params.json", "consolidated.safetensors", "tekken.json"}
    assert os.listdir(tmp_path) == ["out"]


# -------------------------------------------------------------------------------------------------- how far logits are


def test_divergence_of_logits(sources, tmp_path):
    prompts = random_prompts(1317)
    assert prompts.min() >= 1000 and torch.equal(prompts, random_prompts(1317))
    dtype = compute_dtype(open_checkpoint(sources / "native"))
    assert dtype == torch.float32
    kls = []
    source = logits_of(open_checkpoint(sources / "native"), REFERENCE, dtype, prompts)
    for form in ("fp8", "nvfp4"):
        quantize(sources / "native", tmp_path / form, form)
        found = divergence(source, logits_of(open_checkpoint(tmp_path / form), REFERENCE, dtype, prompts))
        assert 0 < found.mean_kl < found.max_kl and found.same_top_token > 0.5
        kls.append(found.mean_kl)
    assert kls[0] < kls[1], "8 bits are closer than 4"
    same = divergence(source, source)
    assert (same.mean_kl, same.max_kl, same.same_top_token) == (0, 0, 1)


def test_kl_by_hand():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    wanted = 0.5 * (torch.log(torch.tensor(0.5 / 0.9)) + torch.log(torch.tensor(0.5 / 0.1)))
    assert divergence(p.log(), q.log()).mean_kl == pytest.approx(wanted.item(), rel=1e-5)


def test_a_source_too_large_to_compare_is_refused_before_hours_of_work(sources, monkeypatch):
    from ventoux.checkpoint import compare
    from ventoux.hardware import Hardware

    small = Hardware(num_cores=1, memory_bytes=1000, available_bytes=1000)
    monkeypatch.setattr(compare, "probe_hardware", lambda: small)
    with pytest.raises(ConfigError, match="--no-check"):
        check_memory(open_checkpoint(sources / "native"))


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("config", "choices", "wanted"),
    [
        (tiny_config(), {"form": "nvfp4"}, ["is 40 wide", "is 28 wide"]),
        (wide_config(vision=False, tie_word_embeddings=True), {"form": "fp8", "head": "fp8"}, ["none of its own"]),
        (tiny_draft_config(), {"form": "fp8", "head": "fp8"}, ["none of its own"]),
    ],
)
def test_what_cannot_be_quantized_is_refused_before_anything_is_written(tmp_path, config, choices, wanted):
    write_tiny(tmp_path / "src", config=config, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError) as caught:
        quantize(tmp_path / "src", tmp_path / "dst", **choices)
    for words in wanted:
        assert any(words in problem for problem in caught.value.problems)
    assert os.listdir(tmp_path) == ["src"]


def test_quantized_sources_and_targets_in_use(sources, tmp_path):
    quantize(sources / "native", tmp_path / "fp8", "fp8")
    with pytest.raises(CheckpointError, match="are FP8 already"):
        quantize(tmp_path / "fp8", tmp_path / "x", "fp8")
    quantize(sources / "native", tmp_path / "nvfp4", "nvfp4")
    with pytest.raises(CheckpointError, match="are NVFP4 already"):
        quantize(tmp_path / "nvfp4", tmp_path / "x", "fp8")
    with pytest.raises(CheckpointError, match="not empty"):
        quantize(sources / "native", tmp_path / "fp8", "nvfp4")
    (tmp_path / "y.partial").mkdir()
    (tmp_path / "y.partial" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="left by a run that was killed"):
        quantize(sources / "native", tmp_path / "y", "fp8")
    assert (tmp_path / "y.partial" / "thesis.txt").exists()


def test_a_disk_that_is_too_small_is_noticed_at_once(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 900_000, 100_000))
    with pytest.raises(CheckpointError, match=r"needs 0\.0 GiB, and 0\.0 GiB are free"):
        quantize(sources / "native", tmp_path / "new" / "dst", "fp8")
    assert os.listdir(tmp_path) == []


def test_a_link_to_an_empty_folder(sources, tmp_path):
    (tmp_path / "disk" / "there").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "there")
    result = quantize(sources / "native", tmp_path / "link", "fp8")
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["there"]
    assert result.checkpoint.folder == tmp_path / "disk" / "there"


@pytest.mark.parametrize("where", ["current", "mount"])
def test_a_folder_that_cannot_be_replaced(sources, tmp_path, monkeypatch, where):
    dst = tmp_path / "dst"
    dst.mkdir()
    if where == "current":
        monkeypatch.chdir(dst)
        dst = Path(".")
    else:
        monkeypatch.setattr(Path, "is_mount", lambda path: path == dst)
    with pytest.raises(CheckpointError, match="name a folder inside it"):
        quantize(sources / "native", dst, "fp8")
    assert os.listdir(tmp_path) == ["dst"]


def test_what_is_whole_is_kept_where_it_cannot_be_renamed(sources, tmp_path, monkeypatch):
    def replace(src, dst):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(CheckpointError, match=r"busy.*is whole, in .*dst\.partial"):
        quantize(sources / "native", tmp_path / "dst", "fp8")
    monkeypatch.undo()
    assert open_checkpoint(tmp_path / "dst.partial").quant_formats == ("fp8",)


def test_errors_of_weights_whose_squares_are_too_large(sources, tmp_path):
    source = shutil.copytree(sources / "native", tmp_path / "src")
    rewrite(source, lambda tensors: [tensors[name].mul_(2.0**80) for name in tensors if ".experts." in name])
    found, usual = quantize(source, tmp_path / "large", "fp8"), quantize(sources / "native", tmp_path / "usual", "fp8")
    for large, small in zip(found.errors, usual.errors, strict=True):
        assert large.relative_rmse == pytest.approx(small.relative_rmse, rel=1e-3)


def test_nan_in_the_source(sources, tmp_path):
    source = shutil.copytree(sources / "native", tmp_path / "src")
    rewrite(source, lambda tensors: tensors[W1 + "weight"][3, 5].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=r"experts\.2\.w1\.weight holds NaN or infinite values"):
        quantize(source, tmp_path / "dst", "fp8")
    assert os.listdir(tmp_path) == ["src"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "ctrl-c"])
@pytest.mark.parametrize("after", [3, 10**9], ids=["weights", "config"])
def test_a_run_cut_short_leaves_nothing(sources, tmp_path, monkeypatch, error, after):
    """While weights are written, or when all of them are and the config file is next."""
    calls = 0

    def failing(*args):
        nonlocal calls
        calls += 1
        if calls > after or args[0] is None:
            raise error
        return header(*args)

    def fail(*_):
        raise error

    header = write._bytes_of
    monkeypatch.setattr(write, "_bytes_of", failing) if after < 100 else monkeypatch.setattr(
        write, "write_config", fail
    )
    with pytest.raises((CheckpointError, KeyboardInterrupt)) as caught:
        quantize(sources / "native", tmp_path / "dst", "nvfp4", max_shard_bytes=50_000)
    assert os.listdir(tmp_path) == []
    assert not isinstance(error, OSError) or "No space left on device" in str(caught.value)


# ------------------------------------------------------------------------------------------------- conversion of those


def add_activation_scales(tensors):
    for i, name in enumerate([n for n in tensors if n.endswith("qscale_weight")]):
        shared = ".w1." in name or ".w3." in name
        tensors[name.replace("_weight", "_act")] = torch.tensor(0.5 if shared else 0.5 + i)


@pytest.mark.parametrize("activations", [False, True])
def test_fp8_there_and_back_is_bit_exact(sources, tmp_path, activations):
    folder = tmp_path / "a"
    quantize(sources / "native", folder, "fp8")
    if activations:
        rewrite(folder, add_activation_scales)
        params = json.loads((folder / "params.json").read_text())
        params["quantization"]["qscheme_act"] = "TENSOR"
        (folder / "params.json").write_text(json.dumps(params))
    there = convert(folder, tmp_path / "b")
    assert there.layout == "hf" and there.quant_formats == ("fp8",)
    block = json.loads((tmp_path / "b" / "config.json").read_text())["quantization_config"]
    assert block["activation_scheme"] == ("static" if activations else "dynamic")
    if activations:
        assert contents(tmp_path / "b")[
            "language_model.model.layers.1.mlp.experts.down_proj_activation_scale"
        ].shape == (5,)
    convert(tmp_path / "b", tmp_path / "c")
    same_bits(contents(folder), contents(tmp_path / "c"))
    assert json.loads((folder / "params.json").read_text()) == json.loads((tmp_path / "c" / "params.json").read_text())
    before, after = weights(folder), weights(tmp_path / "b")
    assert all(torch.equal(tensor, after[path]) for path, tensor in before.items())


def test_equal_scales_of_w1_and_w3_become_one(sources, tmp_path):
    """The published shape, [E, 1, 1]."""
    quantize(sources / "native", tmp_path / "a", "fp8")

    def level(tensors):
        for name in [n for n in tensors if ".w3.qscale" in n]:
            tensors[name] = tensors[name.replace(".w3.", ".w1.")].clone()

    rewrite(tmp_path / "a", level)
    convert(tmp_path / "a", tmp_path / "b")
    assert contents(tmp_path / "b")["language_model.model.layers.0.mlp.experts.gate_up_proj_scale_inv"].shape == (
        5,
        1,
        1,
    )
    convert(tmp_path / "b", tmp_path / "c")
    same_bits(contents(tmp_path / "a"), contents(tmp_path / "c"))


@pytest.mark.parametrize("choices", [{}, {"attention": "fp8", "head": "fp8"}], ids=["nvfp4", "mixed"])
def test_nvfp4_converts_to_its_own_layout_only(sources, tmp_path, choices):
    quantize(sources / "native", tmp_path / "a", "nvfp4", **choices)
    with pytest.raises(CheckpointError, match="native layout only"):
        convert(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    convert(tmp_path / "a", tmp_path / "c", "native", max_shard_bytes=50_000)
    same_bits(contents(tmp_path / "a"), contents(tmp_path / "c"))
    assert json.loads((tmp_path / "a" / "params.json").read_text()) == json.loads(
        (tmp_path / "c" / "params.json").read_text()
    )


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda t: t.update({W3 + "qscale_act": torch.tensor(9.0)}), "w1 and w3 have different activation scales"),
        (lambda t: t.pop(W3 + "qscale_act"), "activation_scales for some experts and none for others"),
        (lambda t: t.update({W3 + "qscale_weight": t[W3 + "qscale_weight"].half()}), "scales of different types"),
    ],
)
def test_fp8_that_the_other_layout_cannot_hold(sources, tmp_path, change, wanted):
    quantize(sources / "native", tmp_path / "a", "fp8")
    rewrite(tmp_path / "a", add_activation_scales)
    rewrite(tmp_path / "a", change)
    with pytest.raises(CheckpointError, match=wanted):
        convert(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_scales_per_row_have_no_place_in_the_other_layout(sources, tmp_path):
    quantize(sources / "hf", tmp_path / "a", "fp8")
    name = "language_model.model.layers.0.mlp.experts.gate_up_proj_scale_inv"
    rewrite(tmp_path / "a", lambda t: t.update({name: t[name].repeat_interleave(32, 1)}))
    with pytest.raises(CheckpointError, match="scale per row"):
        convert(tmp_path / "a", tmp_path / "b")
