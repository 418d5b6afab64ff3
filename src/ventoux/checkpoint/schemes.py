"""The quantization block of a config file: what it claims, and what we write. The files themselves decide how each
weight is read (`stored.py`); a claim that they do not keep is an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ventoux.checkpoint.json_reader import Reader
from ventoux.checkpoint.keys import Layout, QuantFormat, Required
from ventoux.model.tensors import Part

FORMAT_NAMES: dict[QuantFormat, str] = {"bf16": "plain", "fp8": "FP8", "nvfp4": "NVFP4"}
# compressed-tensors' names of them.
_PACKED: dict[str, QuantFormat] = {"nvfp4-pack-quantized": "nvfp4", "float-quantized": "fp8", "naive-quantized": "fp8"}
# The block of the published NVFP4 files says 0.13.0.
_COMPRESSED_TENSORS = "0.13.0"
_NVFP4_WEIGHTS = {
    "num_bits": 4,
    "type": "float",
    "symmetric": True,
    "group_size": 16,
    "strategy": "tensor_group",
    "dynamic": False,
    "observer": "static_minmax",
    "scale_dtype": "torch.float8_e4m3fn",
}
_FP8_WEIGHTS = {
    "num_bits": 8,
    "type": "float",
    "symmetric": True,
    "strategy": "tensor",
    "dynamic": False,
    "observer": "static_minmax",
}
# Modules that are never quantized, as the published files name them.
_HF_IGNORED = ("model.vision_tower", "model.multi_modal_projector")
_IGNORED = ("model.embed_tokens", "re:patch_merger.*", "re:vision_encoder.*", "re:vision_language_adapter.*")
_IGNORED_ROUTER = "re:.*gate$"
# Which modules are meant, in either spelling.
_TARGETS: dict[Part, tuple[str, ...]] = {
    "attention": ("re:.*kv_a_proj_with_mqa$", "re:.*q_a_proj$", "re:.*self_attn.*", "re:.*attention.*"),
    "experts": ("re:.*experts.*",),
    "shared_experts": ("re:.*shared_experts.*",),
    "dense": ("re:.*feed_forward.*", "re:.*eagle_linear$"),
    "head": ("lm_head", "output"),
}


# ------------------------------------------------------------------------------------------------------------ reading


def read_claim(reader: Reader) -> tuple[frozenset[QuantFormat], dict[str, Any] | None]:
    """The formats that a config file claims (none: its weights are plain), and its block as it stands.

    FP8 stands under `quantization` in native files and `quantization_config` in Hugging Face ones; compressed-tensors
    writes the latter into both. Problems go to the reader, naming what is not known.
    """
    claimed: set[QuantFormat] = set()
    content = None
    for name in ("quantization", "quantization_config"):
        block = reader.get(name)
        if block is Required:
            continue
        if not isinstance(block, Mapping):
            reader.problems.append(f"{name} must be an object, is {json.dumps(block)[:80]}")
            continue
        content = {name: block}
        if block.get("quant_method") == "compressed-tensors":
            claimed |= _read_compressed_tensors(reader, name, block)
        elif "qformat_weight" in block or block.get("quant_method") == "fp8":
            claimed |= _read_fp8(reader, name, block)
        else:
            method = block.get("quant_method", block)
            reader.problems.append(f"{name} is neither FP8 nor NVFP4, but {json.dumps(method)[:120]}")
    return frozenset(claimed), content


def _read_fp8(reader: Reader, name: str, block: Mapping[str, Any]) -> set[QuantFormat]:
    """Static and dynamic activation schemes alike: activations are not quantized here."""
    known = {
        "qformat_weight": ("fp8_e4m3",),
        "qscheme_act": ("TENSOR", "NO_SCALES"),
        "activation_scheme": ("static", "dynamic"),
        "fmt": ("e4m3",),
        "scale_fmt": ("float",),
    }
    for key, values in known.items():
        if key in block and block[key] not in values:
            reader.problems.append(f"{name}.{key} is {json.dumps(block[key])[:80]}; known: {', '.join(values)}")
    # transformers means blocks of 128 x 128 when the key is left out, but then it writes it.
    if block.get("weight_block_size") is not None:
        blocks = json.dumps(block["weight_block_size"])[:80]
        reader.problems.append(f"{name}.weight_block_size is {blocks}; only one scale per matrix is supported")
    return {"fp8"}


def _read_compressed_tensors(reader: Reader, name: str, block: Mapping[str, Any]) -> set[QuantFormat]:
    for key, content in block.items():
        # kv_cache_scheme, sparsity_config, transform_config and the like: what weights or cache need besides.
        dense = key == "sparsity_config" and isinstance(content, Mapping) and content.get("format") == "dense"
        if key.endswith(("_config", "_scheme")) and content and not dense:
            reader.problems.append(f"{name}.{key} is {json.dumps(content)[:80]}, which is not supported")
    form, groups = block.get("format"), block.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        if isinstance(form, str) and form in _PACKED:
            return {_PACKED[form]}
        reader.problems.append(f"{name}.format is {json.dumps(form)[:80]}; known: {', '.join(_PACKED)}")
        return set()
    found: set[QuantFormat] = set()
    for group, content in groups.items():
        weights = content.get("weights") if isinstance(content, Mapping) else None
        scheme = _scheme_of(weights) if isinstance(weights, Mapping) else None
        if scheme is None:
            reader.problems.append(
                f"{name}.config_groups.{group} has weights of an unknown scheme: {json.dumps(weights)[:160]}"
            )
        else:
            found.add(scheme)
    return found


def _scheme_of(weights: Mapping[str, Any]) -> QuantFormat | None:
    if weights.get("type") != "float" or weights.get("symmetric") is False or weights.get("dynamic"):
        return None
    bits, strategy = weights.get("num_bits"), weights.get("strategy")
    if bits == 4 and strategy == "tensor_group" and weights.get("group_size") == 16:
        return "nvfp4"
    return "fp8" if bits == 8 and strategy in ("tensor", "channel") else None


# ------------------------------------------------------------------------------------------------------------ writing


def fp8_block(layout: Layout, *, static: bool, head: bool) -> dict[str, Any]:
    """The published block of FP8 files.

    Args:
        static: The files hold activation scales.
        head: The head is quantized too.
    """
    if layout == "native":
        scheme = "TENSOR" if static else "NO_SCALES"
        return {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": scheme}}
    block = {
        "quant_method": "fp8",
        "activation_scheme": "static" if static else "dynamic",
        "weight_block_size": None,
        "modules_to_not_convert": [*_HF_IGNORED, *([] if head else ["lm_head"])],
    }
    return {"quantization_config": block}


def compressed_tensors_block(formats: Mapping[Part, QuantFormat]) -> dict[str, Any]:
    """The block of native files with NVFP4 weights: one group of all linears as published, or one per format.

    Weight-only: groups have no `input_activations`, since no activation scales were measured.

    Args:
        formats: The format of each part that could be quantized, in this checkpoint.
    """
    used = sorted({form for form in formats.values() if form != "bf16"}, reverse=True)
    ignored = [*_IGNORED, _IGNORED_ROUTER]
    for part, form in formats.items():
        if form == "bf16":
            ignored += [target for target in _TARGETS[part] if target != "output"]
    groups = {}
    for form in used:
        targets = [t for part, f in formats.items() if f == form for t in _TARGETS[part]]
        weights = _NVFP4_WEIGHTS if form == "nvfp4" else _FP8_WEIGHTS
        groups["NVFP4A16" if form == "nvfp4" else "FP8A16"] = {
            "targets": ["Linear"] if len(used) == 1 else targets,
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
            "format": "nvfp4-pack-quantized" if form == "nvfp4" else "float-quantized",
        }
    block = {
        "quant_method": "compressed-tensors",
        "version": _COMPRESSED_TENSORS,
        "format": "nvfp4-pack-quantized" if len(used) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "config_groups": groups,
        "ignore": ignored,
    }
    return {"quantization_config": block}
