"""Others can read what we write: compressed-tensors decodes our NVFP4 and mixed files by their own config block, and
transformers takes our FP8 files into its own modules. A format that only we can read would pass every other test."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import wide_config, write_tiny
from ventoux.checkpoint.files import open_checkpoint
from ventoux.checkpoint.load import load_model
from ventoux.checkpoint.quantize import quantize
from ventoux.checkpoint.reader import part_of, read_all
from ventoux.ops.formats import dense
from ventoux.ops.reference import REFERENCE


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    for layout in ("native", "hf"):
        write_tiny(root / layout, layout, wide_config(), seed=9, dtype=torch.bfloat16)
    return root


def compressed_config(folder):
    quantization = pytest.importorskip("compressed_tensors.quantization")
    block = json.loads((folder / "params.json").read_text())["quantization_config"]
    return quantization.QuantizationConfig.model_validate(block)


@pytest.mark.parametrize(
    "choices",
    [{}, {"attention": "nvfp4", "head": "nvfp4"}, {"attention": "fp8", "head": "fp8"}],
    ids=["published", "all nvfp4", "mixed"],
)
def test_compressed_tensors_reads_our_nvfp4(source, tmp_path, choices):
    """Each linear by the scheme that the block's targets and ignore list give it, as the library matches them."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    from compressed_tensors.utils import is_match

    quantize(source / "native", tmp_path / "out", "nvfp4", **choices)
    config = compressed_config(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "consolidated.safetensors")
    by_format = {
        "nvfp4-pack-quantized": compressors.NVFP4PackedCompressor,
        "float-quantized": compressors.FloatQuantizationCompressor,
    }
    decoded = 0
    for row, weight in read_all(open_checkpoint(tmp_path / "out")):
        if not row.path.endswith("proj.weight") and row.part not in ("experts", "router", "head"):
            continue
        ours = dense(weight, torch.bfloat16)
        for piece in row.native:
            linear = piece.name.removesuffix("weight")
            # Readers of native files rename the head before they match.
            name = "lm_head" if row.part == "head" else linear.removesuffix(".")
            module = torch.nn.Linear(1, 1, bias=False)
            groups = [
                group for group in config.config_groups.values() if is_match(name, module, group.targets, config.ignore)
            ]
            if linear + "weight" in stored and stored[linear + "weight"].dtype == torch.bfloat16:
                assert not groups, f"{name} is plain, and the block says that it is quantized"
                continue
            (group,) = groups
            state = {n.removeprefix(linear): t for n, t in stored.items() if n.startswith(linear)}
            theirs = by_format[group.format].decompress(state, group)["weight"].bfloat16()
            mine = part_of(ours, piece)
            # One rounding to bf16 each, of fp32 values that differ by at most two roundings.
            assert torch.allclose(theirs.float(), mine.float(), rtol=2**-7, atol=0), name
            assert (theirs == mine).float().mean() > 0.9
            decoded += 1
    assert decoded >= 36


def test_our_rounding_is_that_of_compressed_tensors(source):
    """Given our scales, its own quantizer makes the same codes, ties included."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    from ventoux.checkpoint.schemes import compressed_tensors_block
    from ventoux.ops.formats import quantize_nvfp4

    block = compressed_tensors_block({"experts": "nvfp4"})
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(**block["quantization_config"]["config_groups"]["NVFP4A16"]["weights"]),
    )
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-3, 1.0, 300.0):
        weight = torch.randn(64, 128, generator=generator) * scale
        # Multiples of amax / 24 are midpoints and grid points alike.
        weight[::2] = (weight[::2] * 24 / weight.abs().max()).round() * weight.abs().max() / 24
        codes, group_scale, global_scale = quantize_nvfp4(weight)
        state = {"weight": weight, "weight_scale": group_scale.float(), "weight_global_scale": global_scale}
        theirs = compressors.NVFP4PackedCompressor.compress(state, scheme)
        assert torch.equal(theirs["weight_packed"], codes)


def test_transformers_takes_our_fp8(source, tmp_path, monkeypatch):
    """On a machine without a GPU transformers would dequantize on its own, and forgets fused experts while doing so;
    without that step it fills its FP8 modules, which must fit name for name and shape for shape."""
    pytest.importorskip("accelerate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Mistral3ForConditionalGeneration
        from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

        monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda *args, **kwargs: None)
        quantize(source / "hf", tmp_path / "fp8", "fp8")
        theirs, info = Mistral3ForConditionalGeneration.from_pretrained(
            tmp_path / "fp8", dtype=torch.bfloat16, output_loading_info=True
        )
    assert not any(info.values()), info
    ours = load_model(open_checkpoint(tmp_path / "fp8"), REFERENCE, dtype=torch.bfloat16)
    compared = 0
    for path in ("self_attn.q_a_proj", "self_attn.q_b_proj", "self_attn.kv_b_proj", "self_attn.o_proj"):
        for i in range(2):
            module = theirs.get_submodule(f"model.language_model.layers.{i}.{path}")
            assert module.weight.dtype == torch.float8_e4m3fn
            wanted = (module.weight.float() * module.weight_scale_inv).bfloat16()
            mine = ours.get_submodule(f"language_model.layers.{i}.{path}").weight
            assert torch.equal(dense(mine, torch.bfloat16), wanted)
            compared += 1
    for i in range(2):
        experts = theirs.get_submodule(f"model.language_model.layers.{i}.mlp.experts")
        mine = ours.get_submodule(f"language_model.layers.{i}.mlp.experts")
        for name in ("gate_up_proj", "down_proj"):
            codes, scale = getattr(experts, name).float(), getattr(experts, name + "_scale_inv")
            assert scale.shape == (5, 2 if name == "gate_up_proj" else 1, 1)
            rows = scale.repeat_interleave(codes.shape[1] // scale.shape[1], dim=1)
            assert torch.equal(getattr(mine, name).dequantize(torch.float32), codes * rows)
            compared += 1
    assert compared == 12
