"""The tensor table: one row per parameter of our modules, with its names in both layouts, shape and part.

Pure data. Loaders, converters, `inspect` and tests read it; no other file spells a native name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ventoux.config import ModelConfig, TextConfig, VisionConfig

Part = Literal["embedding", "head", "attention", "experts", "shared_experts", "router", "norms", "vision", "dense"]


@dataclass(frozen=True)
class Piece:
    """One stored tensor and the place it takes: rows [start, stop) of expert `expert` of the parameter."""

    name: str
    expert: int | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class TensorRow:
    """One parameter.

    `path` is its name in our modules. Hugging Face files store it whole under that name with another prefix (see
    HF_PREFIXES); native files store it in `native` pieces. `split_axis` is the axis that tensor parallelism cuts.
    `vision_heads` > 0 marks rows that HF files keep half-split per head and native files (and we) in pairs.
    """

    path: str
    native: tuple[Piece, ...]
    shape: tuple[int, ...]
    part: Part
    quantizable: bool = False
    split_axis: int | None = None
    vision_heads: int = 0

    @property
    def num_parameters(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def is_routed(self) -> bool:
        return self.part == "experts"


# On-disk spellings of our three roots: (language model, head, vision tower, projector).
HF_PREFIXES: tuple[tuple[str, str, str, str], ...] = (
    ("language_model.model.", "language_model.lm_head.", "vision_tower.", "multi_modal_projector."),
    ("model.language_model.", "lm_head.", "model.vision_tower.", "model.multi_modal_projector."),
    ("model.", "lm_head.", "vision_tower.", "multi_modal_projector."),
)
OUR_PREFIXES = ("language_model.", "lm_head.", "vision_tower.", "multi_modal_projector.")


def hf_name(path: str, prefixes: tuple[str, str, str, str]) -> str:
    """The on-disk Hugging Face name of one of our parameters, e.g. `language_model.norm.weight` ->
    `language_model.model.norm.weight` with the first spelling."""
    for ours, theirs in zip(OUR_PREFIXES, prefixes, strict=True):
        if path.startswith(ours):
            return theirs + path.removeprefix(ours)
    raise AssertionError(f"{path} has no root in the tensor table")


def tensor_table(config: ModelConfig) -> list[TensorRow]:
    """All rows of a checkpoint, in the order in which they are read and written."""
    if config.is_draft:
        return list(_draft_rows(config.text))
    rows = list(_text_rows(config.text))
    if config.vision is not None:
        rows += _vision_rows(config.vision, config.text.hidden_size)
    return rows


def _row(path: str, native: str, shape: tuple[int, ...], part: Part, **marks) -> TensorRow:
    return TensorRow(path, (Piece(native),), shape, part, **marks)


def _text_rows(c: TextConfig) -> Iterator[TensorRow]:
    D, V = c.hidden_size, c.vocab_size
    yield _row("language_model.embed_tokens.weight", "tok_embeddings.weight", (V, D), "embedding", split_axis=0)
    for i in range(c.num_hidden_layers):
        yield from _layer_rows(c, i, "language_model.")
    yield _row("language_model.norm.weight", "norm.weight", (D,), "norms")
    if not c.tie_word_embeddings:
        yield _row("lm_head.weight", "output.weight", (V, D), "head", split_axis=0)


def _draft_rows(c: TextConfig) -> Iterator[TensorRow]:
    D = c.hidden_size
    yield _row("eagle_linear.weight", "eagle_linear.weight", (D, 2 * D), "dense", quantizable=True)
    for i in range(c.num_hidden_layers):
        yield from _layer_rows(c, i, "")
    yield _row("norm.weight", "norm.weight", (D,), "norms")


def _layer_rows(c: TextConfig, i: int, root: str) -> Iterator[TensorRow]:
    p, n = f"{root}layers.{i}.", f"layers.{i}."
    D, H, X = c.hidden_size, c.num_attention_heads, c.qk_head_dim
    kv_b = H * (c.qk_nope_head_dim + c.v_head_dim)
    a, na = p + "self_attn.", n + "attention."
    q = {"part": "attention", "quantizable": True}
    yield _row(p + "input_layernorm.weight", n + "attention_norm.weight", (D,), "norms")
    yield _row(a + "q_a_proj.weight", na + "wq_a.weight", (c.q_lora_rank, D), **q)
    yield _row(a + "q_a_layernorm.weight", na + "q_a_norm.weight", (c.q_lora_rank,), "norms")
    yield _row(a + "q_b_proj.weight", na + "wq_b.weight", (H * X, c.q_lora_rank), split_axis=0, **q)
    yield _row(a + "kv_a_proj_with_mqa.weight", na + "wkv_a_with_mqa.weight", (c.latent_dim, D), **q)
    yield _row(a + "kv_a_layernorm.weight", na + "kv_a_norm.weight", (c.kv_lora_rank,), "norms")
    yield _row(a + "kv_b_proj.weight", na + "wkv_b.weight", (kv_b, c.kv_lora_rank), split_axis=0, **q)
    yield _row(a + "o_proj.weight", na + "wo.weight", (D, H * c.v_head_dim), split_axis=1, **q)
    yield _row(p + "post_attention_layernorm.weight", n + "ffn_norm.weight", (D,), "norms")
    if c.is_dense(i):
        yield from _mlp_rows(p + "mlp.", n + "feed_forward.", D, c.intermediate_size, "dense")
        return
    F, E = c.moe_intermediate_size, c.n_routed_experts
    yield _row(p + "mlp.gate.weight", n + "gate.weight", (E, D), "router")
    yield from _mlp_rows(p + "mlp.shared_experts.", n + "shared_experts.", D, F * c.n_shared_experts, "shared_experts")
    gate_up = [
        Piece(f"{n}experts.{e}.{w}.weight", e, rows)
        for e in range(E)
        for w, rows in (("w1", (0, F)), ("w3", (F, 2 * F)))
    ]
    down = [Piece(f"{n}experts.{e}.w2.weight", e) for e in range(E)]
    experts = {"part": "experts", "quantizable": True, "split_axis": 0}
    yield TensorRow(p + "mlp.experts.gate_up_proj", tuple(gate_up), (E, 2 * F, D), **experts)
    yield TensorRow(p + "mlp.experts.down_proj", tuple(down), (E, D, F), **experts)


def _mlp_rows(path: str, native: str, D: int, F: int, part: Part, quantizable: bool = True) -> Iterator[TensorRow]:
    marks = {"part": part, "quantizable": quantizable}
    yield _row(path + "gate_proj.weight", native + "w1.weight", (F, D), split_axis=0, **marks)
    yield _row(path + "up_proj.weight", native + "w3.weight", (F, D), split_axis=0, **marks)
    yield _row(path + "down_proj.weight", native + "w2.weight", (D, F), split_axis=1, **marks)


def _vision_rows(v: VisionConfig, text_hidden_size: int) -> Iterator[TensorRow]:
    D, H, inner = v.hidden_size, v.num_attention_heads, v.num_attention_heads * v.head_dim
    conv = (D, v.num_channels, v.patch_size, v.patch_size)
    yield _row("vision_tower.patch_conv.weight", "vision_encoder.patch_conv.weight", conv, "vision")
    yield _row("vision_tower.ln_pre.weight", "vision_encoder.ln_pre.weight", (D,), "vision")
    for i in range(v.num_hidden_layers):
        p, n = f"vision_tower.transformer.layers.{i}.", f"vision_encoder.transformer.layers.{i}."
        yield _row(p + "attention_norm.weight", n + "attention_norm.weight", (D,), "vision")
        for x, heads in (("q", H), ("k", H), ("v", 0)):
            yield _row(
                f"{p}attention.{x}_proj.weight", f"{n}attention.w{x}.weight", (inner, D), "vision", vision_heads=heads
            )
        yield _row(p + "attention.o_proj.weight", n + "attention.wo.weight", (D, inner), "vision")
        yield _row(p + "ffn_norm.weight", n + "ffn_norm.weight", (D,), "vision")
        yield from _mlp_rows(p + "feed_forward.", n + "feed_forward.", D, v.intermediate_size, "vision", False)
    P, T = "multi_modal_projector.", text_hidden_size
    yield _row(P + "norm.weight", "pre_mm_projector_norm.weight", (D,), "vision")
    merged = (D, D * v.spatial_merge_size**2)
    merger = "patch_merger.merging_layer.weight"
    yield _row(P + merger, merger, merged, "vision")
    yield _row(P + "linear_1.weight", "vision_language_adapter.w_in.weight", (T, D), "vision")
    yield _row(P + "linear_2.weight", "vision_language_adapter.w_out.weight", (T, T), "vision")
