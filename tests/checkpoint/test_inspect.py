"""Inspection of the published checkpoints, as sparse files with their real headers: 120 GB without a byte of weights.

The numbers are the Hub's own; a wrong row in the tensor table, or a scale counted as a weight, changes them.
"""

import io
import json
import math
import struct

import pytest
from rich.console import Console

from tests.checkpoint.test_params import NVFP4, put
from tests.tiny import tiny_config, tiny_draft_config, write_tiny
from ventoux.checkpoint.files import pieces_of
from ventoux.checkpoint.inspect import inspect_checkpoint, render
from ventoux.checkpoint.shards import ITEM_BYTES
from ventoux.checkpoint.stored import piece_shape
from ventoux.config import ModelConfig
from ventoux.hardware import Hardware
from ventoux.model.tensors import HF_PREFIXES, tensor_table

BIG = Hardware(num_cores=64, memory_bytes=2**40, available_bytes=2**40, cpu_flags=frozenset({"amx_bf16"}))
SMALL = Hardware(num_cores=2, memory_bytes=16 * 2**30, available_bytes=12 * 2**30)


def write_headers(path, tensors):
    """A safetensors file of the right length, all holes."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def fp8_tensors():
    """The base repository in the Hugging Face layout: one pair of scales per linear, stacked ones for experts."""
    tensors = {}
    for row in tensor_table(ModelConfig()):
        (piece,) = pieces_of(row, "hf", HF_PREFIXES[0])
        tensors[piece.name] = ("F8_E4M3" if row.quantizable else "BF16", row.shape)
        if row.is_routed:
            tensors[piece.name + "_scale_inv"] = ("BF16", (row.shape[0], 1, 1))
            tensors[piece.name + "_activation_scale"] = ("BF16", (row.shape[0],))
        elif row.quantizable:
            tensors[piece.name + "_scale_inv"] = ("F32", ())
            tensors[piece.name.removesuffix("weight") + "activation_scale"] = ("F32", ())
    return tensors


def nvfp4_tensors():
    """The NVFP4 repository, native: routed and shared experts packed, all else bf16."""
    tensors = {}
    for row in tensor_table(ModelConfig()):
        for piece in row.native:
            shape = piece_shape(row, piece)
            if row.part not in ("experts", "shared_experts"):
                tensors[piece.name] = ("BF16", shape)
                continue
            linear, (out, width) = piece.name.removesuffix("weight"), shape
            tensors[linear + "weight_packed"] = ("U8", (out, width // 2))
            tensors[linear + "weight_scale"] = ("F8_E4M3", (out, width // 16))
            tensors[linear + "weight_global_scale"] = ("F32", (1,))
            tensors[linear + "input_global_scale"] = ("F32" if row.is_routed else "BF16", (1,))
    return tensors


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp8")
    quantization = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    put(folder, "hf", [("quantization_config", quantization)])
    tensors = list(fp8_tensors().items())
    for number, part in enumerate((tensors[:300], tensors[300:600], tensors[600:]), 1):
        write_headers(folder / f"model-{number:05d}-of-00003.safetensors", dict(part))
    return folder


def test_fp8_base(fp8):
    report = inspect_checkpoint(fp8, hardware=BIG)
    assert (report.layout, report.quant_formats, report.num_files) == ("hf", ("fp8",), 3)
    assert report.scale_elements == 19_008
    assert report.total_parameters + report.scale_elements == 119_401_317_952
    assert report.active_parameters == 6_095_717_376
    assert report.active_parameters + report.embedding_parameters == 6_632_588_288
    assert report.vision_parameters == 428_472_320
    assert report.bytes_by_part["experts"] == 36 * 3_221_225_472
    assert sum(report.bytes_by_part.values()) == report.stored_bytes
    # FP8 elements, bf16 ones (experts' scales among them), and 36 x 8 pairs of dense scales.
    assert report.stored_bytes == 117_879_865_344 + 2 * 1_521_452_032 + 4 * 36 * 16
    # In memory: codes of all but kv_b_proj, fp32 scales of their rows, and what is plain in bf16.
    kv_b = 36 * 6144 * 256
    rows = 36 * (1024 + 4096 + 320 + 4096 + 2048 * 2 + 4096 + 128 * (4096 + 4096))
    plain = report.total_parameters - 117_879_865_344
    assert report.plan.weight_bytes == 117_879_865_344 - kv_b + 4 * rows + 2 * (plain + kv_b)


def test_nvfp4(tmp_path):
    put(tmp_path, "native", [("quantization_config", NVFP4)])
    write_headers(tmp_path / "consolidated.safetensors", nvfp4_tensors())
    report = inspect_checkpoint(tmp_path, hardware=BIG)
    assert (report.layout, report.quant_formats) == ("native", ("nvfp4",))
    assert (report.num_tensors, report.stored_bytes) == (56_313, 70_801_959_560)
    assert report.total_parameters + 19_008 == 119_401_317_952
    quantized = 36 * 129 * 3 * 2048 * 4096
    rows = 36 * 129 * (2048 + 2048 + 4096)
    plain = report.total_parameters - quantized
    assert report.plan.weight_bytes == quantized // 2 + quantized // 16 + 4 * rows + 2 * plain
    assert report.plan.weight_formats == "shared_experts nvfp4, experts nvfp4, the rest bfloat16"


def test_bf16_at_full_size(tmp_path):
    """What it needs, to the byte: 320 latent values per token and layer."""
    put(tmp_path, "hf")
    write_headers(tmp_path / "model.safetensors", {name: ("BF16", shape) for name, (_, shape) in bf16_rows()})
    report = inspect_checkpoint(tmp_path, hardware=BIG)
    assert report.stored_bytes == 2 * (119_401_317_952 - 19_008)
    assert report.plan.weight_bytes == report.stored_bytes
    assert report.cache_bytes_per_1k_tokens == 1024 * 23_040
    assert report.obstacle is None
    small = inspect_checkpoint(tmp_path, hardware=SMALL)
    assert small.plan is None and "Not enough memory" in small.obstacle


def bf16_rows():
    return [
        item for item in fp8_tensors().items() if not item[0].endswith("_scale_inv") and "activation" not in item[0]
    ]


def text_of(report):
    out = io.StringIO()
    Console(width=100, file=out).print(render(report))
    return out.getvalue()


def test_rendering(fp8, tmp_path):
    text = text_of(inspect_checkpoint(fp8, hardware=BIG))
    for wanted in ("Hugging Face", "FP8", "119,401,298,944", "6,095,717,376", "128 experts, 4 per token", "experts"):
        assert wanted in text
    # Brackets in a path are no markup.
    folder = write_tiny(tmp_path / "[red]odd", config=tiny_config())
    assert "[red]odd" in text_of(inspect_checkpoint(folder, hardware=SMALL)).replace("\n", "")


def test_draft(tmp_path):
    report = inspect_checkpoint(write_tiny(tmp_path, config=tiny_draft_config()), hardware=SMALL)
    assert report.total_parameters == report.active_parameters
    assert "beside its target" in report.obstacle
    assert "EAGLE draft" in text_of(report)
