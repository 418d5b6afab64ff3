"""What a checkpoint is: `params.json` (native) or `config.json` (Hugging Face) to `ModelConfig` and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ventoux.checkpoint import keys
from ventoux.checkpoint.json_reader import Reader, read_json
from ventoux.checkpoint.keys import CONFIG_FILES, Fact, Key, Layout, QuantFormat, Required
from ventoux.checkpoint.schemes import read_claim
from ventoux.config import ModelConfig, RopeConfig, TextConfig, VisionConfig
from ventoux.errors import CheckpointError


@dataclass(frozen=True)
class Facts:
    """All that the config file says. `claimed` holds the formats of quantized weights that it names, `quantization`
    the block that does, under its key."""

    config: ModelConfig
    layout: Layout
    claimed: frozenset[QuantFormat]
    quantization: dict[str, Any] | None


def find_layout(folder: Path, layout: Literal["auto"] | Layout = "auto") -> Layout:
    """Which layout to read: the one asked for, else native where there is a params.json, else Hugging Face.

    Raises:
        CheckpointError: the folder, or its config file, does not exist.
    """
    if not folder.is_dir():
        raise CheckpointError(str(folder), ["no such folder"])
    wanted: tuple[Layout, ...] = ("native", "hf") if layout == "auto" else (layout,)
    for candidate in wanted:
        if (folder / CONFIG_FILES[candidate]).exists():
            return candidate
    names = " or ".join(CONFIG_FILES[candidate] for candidate in wanted)
    raise CheckpointError(str(folder), [f"there is no {names} in this folder, so it holds no checkpoint"])


def read_config(folder: Path | str, layout: Literal["auto"] | Layout = "auto") -> tuple[ModelConfig, Layout]:
    """The model that a folder's config file describes.

    Raises:
        CheckpointError: listing every missing, wrong or unsupported key.
    """
    facts = read_facts(folder, layout)
    return facts.config, facts.layout


def read_facts(folder: Path | str, layout: Literal["auto"] | Layout = "auto") -> Facts:
    """As `read_config`, with what the file says about quantization."""
    folder = Path(folder)
    layout = find_layout(folder, layout)
    path = folder / CONFIG_FILES[layout]
    reader = Reader(read_json(path), layout)
    config = _read_native(reader) if layout == "native" else _read_hf(reader)
    claimed, quantization = read_claim(reader)
    if config is not None and not reader.problems:
        reader.problems += _check(config)
    if reader.problems or config is None:
        raise CheckpointError(str(path), reader.problems)
    return Facts(config, layout, claimed, quantization)


def write_config(
    config: ModelConfig,
    folder: Path | str,
    layout: Layout,
    dtype: str = "bfloat16",
    quantization: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `params.json` or `config.json`; reading it back gives an equal `config`. `dtype` is a note to readers,
    `quantization` the block of that name (see `schemes.py`).

    Raises:
        CheckpointError: a draft in the Hugging Face layout, which has no names for drafts.
    """
    if config.is_draft and layout == "hf":
        raise CheckpointError(str(folder), ["a draft has only the native layout"])
    content = _native_content(config, dtype) if layout == "native" else _hf_content(config, dtype)
    content |= quantization or {}
    path = Path(folder) / CONFIG_FILES[layout]
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------------ reading


_ROPE = (*keys.ROPE_KEYS, keys.LLAMA_4_ORIGINAL_KEY)


def _read_native(reader: Reader) -> ModelConfig | None:
    is_draft = reader.get("moe") is Required
    text = reader.record(TextConfig, (*keys.TEXT_KEYS, keys.TIED_KEY))
    if is_draft:
        text["first_k_dense_replace"] = text.get("num_hidden_layers", 0)
    else:
        text |= reader.record(TextConfig, keys.MOE_KEYS)
    rope = reader.record(RopeConfig, _ROPE)
    reader.check_facts(keys.NATIVE_FACTS)
    reader.check_strict_blocks((*keys.MOE_KEYS, *_ROPE), keys.NATIVE_FACTS)
    vision = None
    if reader.get("vision_encoder") is not Required and not is_draft:
        reader.check_facts(keys.NATIVE_VISION_FACTS, "vision_encoder.")
        vision = _read_vision(reader, "vision_encoder.")
    return _assemble(reader, text, rope, vision, is_draft, "")


def _read_hf(reader: Reader) -> ModelConfig | None:
    model_type = reader.get("model_type")
    if model_type not in ("mistral3", "mistral4"):
        stated = "missing" if model_type is Required else json.dumps(model_type)
        reader.problems.append(f"model_type is {stated}; Mistral Small 4 says mistral3 (or mistral4, text only)")
        return None
    root = ""
    if model_type == "mistral3":
        root = "text_config."
        inner = reader.get("text_config.model_type")
        if inner != "mistral4":
            stated = "missing" if inner is Required else json.dumps(inner)
            reader.problems.append(f"text_config.model_type is {stated}; Mistral Small 4 says mistral4")
            return None
        reader.check_facts(keys.HF_OUTER_FACTS)
        if reader.get("image_token_index") is Required:  # its other spelling
            reader.content["image_token_index"] = reader.content.get("image_token_id")
    text = reader.record(TextConfig, (*keys.TEXT_KEYS, *keys.MOE_KEYS), root)
    # The outer block decides; readers disagree on the default, so one of the two must say it.
    tied_root = "" if reader.get("tie_word_embeddings") is not Required else root
    stated_key = Key("tie_word_embeddings", "", "tie_word_embeddings")
    text |= reader.record(TextConfig, (stated_key,), tied_root)
    rope = reader.record(RopeConfig, keys.ROPE_KEYS, root)
    original = rope.get("original_max_position_embeddings", Required)
    second = Key("llama_4_original_max_position_embeddings", "", keys.LLAMA_4_ORIGINAL_KEY.hf, default=original)
    if original is not Required:
        rope |= reader.record(RopeConfig, (second,), root)
    reader.check_facts(keys.HF_TEXT_FACTS, root)
    reader.check_strict_blocks(_ROPE, keys.HF_TEXT_FACTS, root)
    _check_partial_rotary(reader, text, root)
    vision = None
    if model_type == "mistral3":
        reader.check_facts(keys.HF_VISION_FACTS, "vision_config.")
        vision = _read_vision(reader, "vision_config.")
    return _assemble(reader, text, rope, vision, False, root)


def _check_partial_rotary(reader: Reader, text: dict[str, Any], root: str) -> None:
    """Readers take the rotary width from here: it must agree with `qk_rope_head_dim`."""
    share = reader.get(root + "rope_parameters.partial_rotary_factor")
    nope, rope = text.get("qk_nope_head_dim"), text.get("qk_rope_head_dim")
    if share is Required or nope is None or rope is None:
        return
    head_dim = reader.get(root + "head_dim")
    head_dim = nope + rope if head_dim is Required else head_dim
    if not isinstance(share, int | float) or not isinstance(head_dim, int) or round(share * head_dim) != rope:
        reader.problems.append(
            f"{root}rope_parameters.partial_rotary_factor is {json.dumps(share)} of head_dim {json.dumps(head_dim)},"
            f" which is not qk_rope_head_dim ({rope})"
        )


def _read_vision(reader: Reader, root: str) -> dict[str, Any]:
    vision = reader.record(VisionConfig, keys.VISION_KEYS, root)
    vision |= reader.record(VisionConfig, (keys.MERGE_KEY,))
    hidden, heads = vision.get("hidden_size", 0), vision.get("num_attention_heads", 1)
    head_dim = Key("head_dim", "head_dim", "head_dim", default=hidden // heads)
    vision |= reader.record(VisionConfig, (head_dim,), root)
    # transformers 5 moved the base of the angles into a block of its own.
    theta = Key("rope_theta", "", "rope_parameters.rope_theta", default=vision.get("rope_theta"))
    if reader.layout == "hf":
        vision |= reader.record(VisionConfig, (theta,), root)
    return vision


def _assemble(
    reader: Reader, text: dict, rope: dict, vision: dict | None, is_draft: bool, token_root: str
) -> ModelConfig | None:
    tokens = reader.record(ModelConfig, keys.TOKEN_KEYS, token_root)
    image_tokens = reader.record(ModelConfig, keys.IMAGE_TOKEN_KEYS)
    if reader.problems:
        return None
    return ModelConfig(
        text=TextConfig(**text, rope=RopeConfig(**rope)),
        vision=None if vision is None else VisionConfig(**vision),
        is_draft=is_draft,
        **tokens,
        **image_tokens,
    )


def _check(config: ModelConfig) -> list[str]:
    """What must hold between the numbers."""
    text, vision = config.text, config.vision
    problems = []
    if text.qk_rope_head_dim % 2:
        problems.append(f"qk_rope_head_dim must be even, is {text.qk_rope_head_dim}")
    if text.num_experts_per_tok > text.n_routed_experts:
        problems.append(f"{text.num_experts_per_tok} experts per token, but only {text.n_routed_experts} experts")
    if text.first_k_dense_replace > text.num_hidden_layers:
        problems.append(f"{text.first_k_dense_replace} dense layers, but only {text.num_hidden_layers} layers")
    if vision is not None and vision.head_dim % 4:
        problems.append(f"the vision tower's head_dim must be a multiple of 4, is {vision.head_dim}")
    return problems


# ------------------------------------------------------------------------------------------------------------ writing


def _put(content: dict[str, Any], path: str, value: Any) -> None:
    *blocks, leaf = path.split(".")
    for block in blocks:
        content = content.setdefault(block, {})
    content[leaf] = value


def _put_record(content: dict[str, Any], record: Any, rows: Iterable[Key], layout: Layout, root: str = "") -> None:
    for key in rows:
        value = getattr(record, key.field)
        if layout not in key.sparse or value != key.default:
            _put(content, root + key.path(layout), value)


def _put_facts(content: dict[str, Any], facts: Iterable[Fact], root: str = "") -> None:
    for fact in facts:
        if fact.written:
            _put(content, root + fact.path, fact.value)


def _native_content(config: ModelConfig, dtype: str) -> dict[str, Any]:
    text, vision = config.text, config.vision
    content: dict[str, Any] = {}
    _put_record(content, text, (*keys.TEXT_KEYS, keys.TIED_KEY), "native")
    content |= {"n_kv_heads": text.num_attention_heads, "head_dim": text.qk_head_dim, "dtype": dtype}
    _put_record(content, text.rope, _ROPE, "native")
    _put_record(content, config, keys.TOKEN_KEYS, "native")
    if config.is_draft:
        return content
    _put_record(content, text, keys.MOE_KEYS, "native")
    _put_facts(content, keys.NATIVE_FACTS)
    if vision is not None:
        _put_record(content, vision, keys.VISION_KEYS, "native", "vision_encoder.")
        _put_record(content, vision, (keys.MERGE_KEY,), "native")
        _put_record(content, config, keys.IMAGE_TOKEN_KEYS, "native")
        _put_facts(content, keys.NATIVE_VISION_FACTS, "vision_encoder.")
        _put(content, "vision_encoder.max_image_size", vision.image_size)
        if vision.head_dim * vision.num_attention_heads != vision.hidden_size:
            _put(content, "vision_encoder.head_dim", vision.head_dim)
    return content


def _hf_content(config: ModelConfig, dtype: str) -> dict[str, Any]:
    text, vision = config.text, config.vision
    inner: dict[str, Any] = {"model_type": "mistral4", "dtype": dtype}
    _put_record(inner, text, (*keys.TEXT_KEYS, *keys.MOE_KEYS, keys.TIED_KEY), "hf")
    inner |= {
        "num_key_value_heads": text.num_attention_heads,
        "head_dim": text.qk_head_dim,
        "qk_head_dim": text.qk_head_dim,
    }
    _put_record(inner, config, keys.TOKEN_KEYS, "hf")
    _put_facts(inner, keys.HF_TEXT_FACTS)
    _put_record(inner, text.rope, keys.ROPE_KEYS, "hf")
    rope = inner["rope_parameters"]
    rope["partial_rotary_factor"] = text.qk_rope_head_dim / text.qk_head_dim
    if text.rope.llama_4_original_max_position_embeddings != text.rope.original_max_position_embeddings:
        _put_record(inner, text.rope, (keys.LLAMA_4_ORIGINAL_KEY,), "hf")
    if vision is None:
        return {"architectures": ["Mistral4ForCausalLM"], **inner}
    outer: dict[str, Any] = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": "mistral3",
        "dtype": dtype,
        "text_config": inner,
    }
    _put_record(outer, text, (keys.TIED_KEY,), "hf")
    _put_record(outer, vision, keys.VISION_KEYS, "hf", "vision_config.")
    _put_record(outer, vision, (keys.MERGE_KEY,), "hf")
    _put(outer, "vision_config.head_dim", vision.head_dim)
    _put_facts(outer, keys.HF_VISION_FACTS, "vision_config.")
    _put_record(outer, config, keys.IMAGE_TOKEN_KEYS, "hf")
    _put_facts(outer, keys.HF_OUTER_FACTS)
    return outer
