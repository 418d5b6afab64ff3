"""Synthetic checkpoints of the architecture, the same numbers for all engines: `write(size, folder)`.

The folder gets `native` and `hf` (bf16, both layouts), `nvfp4` (experts quantized, as published), and `model.json`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ventoux.checkpoint.convert import convert
from ventoux.checkpoint.quantize import quantize
from ventoux.checkpoint.write import write_checkpoint
from ventoux.config import ModelConfig, RopeConfig, TextConfig
from ventoux.model.tensors import TensorRow, tensor_table
from ventoux.text.tekken import NUM_SPECIAL_TOKENS, write_tekken

# `tiny` is for trying things out; `mid` keeps the proportions of the published model, at a 77th of its size; `slice` is
# two layers of it at their true size. vLLM's latent attention wants the published kv_lora_rank + qk_rope_head_dim.
SIZES = {
    "tiny": TextConfig(
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        vocab_size=8192,
        q_lora_rank=128,
        intermediate_size=768,
        moe_intermediate_size=128,
        n_routed_experts=16,
    ),
    "mid": TextConfig(
        hidden_size=1024,
        num_hidden_layers=12,
        num_attention_heads=16,
        q_lora_rank=512,
        intermediate_size=3072,
        moe_intermediate_size=512,
        n_routed_experts=64,
    ),
    "slice": TextConfig(num_hidden_layers=2),
}


def write(size: str, folder: Path) -> None:
    """Does nothing if FOLDER is complete already."""
    if (folder / "model.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    # apply_scale: the engines understand its absence differently.
    text = replace(SIZES[size], rope=RopeConfig(apply_scale=True))
    config = ModelConfig(text=text, vision=None)
    native = folder / "native"
    write_checkpoint(native, config, "native", _rows(config))
    # vLLM asks for a tokenizer's file beside native weights.
    write_tekken(native, num_ranks=text.vocab_size - NUM_SPECIAL_TOKENS)
    convert(native, folder / "hf", "hf")
    quantize(native, folder / "nvfp4", "nvfp4")
    # Last: it says that all is there.
    (folder / "model.json").write_text(json.dumps(_facts(size, config), indent=2) + "\n")


def _rows(config: ModelConfig) -> Iterator[tuple[TensorRow, torch.Tensor]]:
    """Random tensors by which activations and logits stay of order 1."""
    generator = torch.Generator().manual_seed(0)
    for row in tensor_table(config):
        values = torch.empty(row.shape, dtype=torch.bfloat16).normal_(generator=generator)
        if row.part == "norms":
            values.mul_(0.1).add_(1)
        elif row.part != "embedding":
            values.mul_(row.shape[-1] ** -0.5)
        yield row, values


def _facts(size: str, config: ModelConfig) -> dict[str, Any]:
    """What the engines' scripts need to know; parameters are those that a decode step reads."""
    rows = [row for row in tensor_table(config) if row.part != "embedding"]
    return {
        "size": size,
        "vocab_size": config.text.vocab_size,
        "experts": config.text.n_routed_experts,
        "experts_per_token": config.text.num_experts_per_tok,
        "expert_parameters": sum(row.num_parameters for row in rows if row.is_routed),
        "shared_parameters": sum(row.num_parameters for row in rows if not row.is_routed),
        "head_parameters": sum(row.num_parameters for row in rows if row.part == "head"),
    }
