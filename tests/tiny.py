"""Tiny random checkpoints with odd sizes, so that a swapped axis, a wrong split or a square-only kernel shows.

No two sizes that could be mistaken for each other are equal, except where the family ties them together.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from ventoux.checkpoint.keys import Layout
from ventoux.checkpoint.write import MAX_SHARD_BYTES, model_rows, write_checkpoint
from ventoux.config import ModelConfig, TextConfig, VisionConfig
from ventoux.model.eagle import Draft
from ventoux.model.mistral4 import Mistral4
from ventoux.ops.reference import REFERENCE
from ventoux.ops.spec import Operators
from ventoux.text.tekken import write_tekken

# 1000 control ids and 317 ranks: what `write_tekken(num_ranks=317)` makes.
NUM_RANKS = 317
VOCAB_SIZE = 1000 + NUM_RANKS

TEXT = TextConfig(
    hidden_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    vocab_size=VOCAB_SIZE,
    q_lora_rank=24,
    kv_lora_rank=20,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=10,
    intermediate_size=52,
    moe_intermediate_size=28,
    n_routed_experts=5,
    num_experts_per_tok=2,
)
VISION = VisionConfig(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=2, head_dim=12, intermediate_size=36, image_size=140
)


def tiny_config(vision: bool = True, **changes) -> ModelConfig:
    """A target model; `changes` go to the text part (`n_routed_experts=7`, `rope=RopeConfig(...)`)."""
    return ModelConfig(text=dataclasses.replace(TEXT, **changes), vision=VISION if vision else None)


def wide_config(vision: bool = True, **changes) -> ModelConfig:
    """As `tiny_config`, with all widths of quantizable linears divisible by 16, as NVFP4 needs."""
    widths = {"hidden_size": 48, "moe_intermediate_size": 32, "q_lora_rank": 32, "kv_lora_rank": 16, "v_head_dim": 64}
    return tiny_config(vision, **{**widths, **changes})


def tiny_draft_config(**changes) -> ModelConfig:
    """An EAGLE draft for `tiny_config()`: two dense layers. Fields of the experts keep their defaults, unused."""
    own = {f: getattr(TEXT, f) for f in DRAFT_FIELDS}
    text = TextConfig(**{**own, "first_k_dense_replace": TEXT.num_hidden_layers, **changes})
    return ModelConfig(text=text, vision=None, is_draft=True)


DRAFT_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "q_lora_rank", "kv_lora_rank"),
    *("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "intermediate_size"),
)


def tiny_model(config: ModelConfig | None = None, seed: int = 0, ops: Operators = REFERENCE) -> Mistral4:
    """A random fp32 target: activations and logits of order 1, norm weights around but not at 1."""
    model = Mistral4(config or tiny_config(), ops)
    _init(model, seed)
    return model.requires_grad_(False).eval()


def tiny_draft(config: ModelConfig | None = None, seed: int = 0, ops: Operators = REFERENCE) -> Draft:
    draft = Draft((config or tiny_draft_config()).text, ops)
    _init(draft, seed)
    return draft.requires_grad_(False).eval()


def _init(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            values = 1 + 0.2 * torch.randn(parameter.shape, generator=generator)
        elif name.endswith("embed_tokens.weight"):
            values = torch.randn(parameter.shape, generator=generator)
        else:
            fan_in = parameter[0].numel() if "conv" in name else parameter.shape[-1]
            values = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
        parameter.data.copy_(values)


def write_tiny(
    folder: Path | str,
    layout: Layout = "native",
    config: ModelConfig | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    tokenizer: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Writes `tiny_model(config, seed)` (or the draft) as a checkpoint; with `tokenizer`, a fitting tekken.json."""
    config = config or tiny_config()
    model = tiny_draft(config, seed) if config.is_draft else tiny_model(config, seed)
    rows = model_rows(model, config)
    write_checkpoint(folder, config, layout, rows, dtype=dtype, max_shard_bytes=max_shard_bytes)
    if tokenizer:
        write_tekken(folder, num_ranks=config.text.vocab_size - 1000)
    return Path(folder)
