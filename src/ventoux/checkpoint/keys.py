"""The keys of `params.json` (native) and `config.json` (Hugging Face): one row per field of our records, with its
path in both files. Pure data; `params.py` reads and writes by it.

Paths are dotted. Hugging Face paths of the text model are relative to its own block: `text_config` in a
Mistral3ForConditionalGeneration, the whole file in a Mistral4ForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Layout = Literal["native", "hf"]
QuantFormat = Literal["bf16", "fp8", "nvfp4"]

CONFIG_FILES: dict[Layout, str] = {"native": "params.json", "hf": "config.json"}


class Required:
    """The default of a key that every file must state."""


@dataclass(frozen=True)
class Key:
    """`sparse` names the layouts whose published files have no such key: there it is our own extension, written only
    when the value differs from `default`."""

    field: str
    native: str
    hf: str
    default: Any = Required
    zero_ok: bool = False
    sparse: tuple[Layout, ...] = ()

    def path(self, layout: Layout) -> str:
        return self.native if layout == "native" else self.hf


@dataclass(frozen=True)
class Fact:
    """A key whose only supported value is `value`: another one would change the arithmetic. A file without the key
    is read as if it said `absent` (peers' default), which is `value` unless given. `alias` is another spelling of
    the same value."""

    path: str
    value: Any
    absent: Any = Required
    written: bool = False
    alias: Any = Required

    @property
    def when_absent(self) -> Any:
        return self.value if self.absent is Required else self.absent


TEXT_KEYS = (
    Key("hidden_size", "dim", "hidden_size"),
    Key("num_hidden_layers", "n_layers", "num_hidden_layers"),
    Key("num_attention_heads", "n_heads", "num_attention_heads"),
    Key("vocab_size", "vocab_size", "vocab_size"),
    Key("q_lora_rank", "q_lora_rank", "q_lora_rank"),
    Key("kv_lora_rank", "kv_lora_rank", "kv_lora_rank"),
    Key("qk_nope_head_dim", "qk_nope_head_dim", "qk_nope_head_dim"),
    Key("qk_rope_head_dim", "qk_rope_head_dim", "qk_rope_head_dim"),
    Key("v_head_dim", "v_head_dim", "v_head_dim"),
    Key("intermediate_size", "hidden_dim", "intermediate_size"),
    Key("rms_norm_eps", "norm_eps", "rms_norm_eps"),
    # Native readers take 128,000 positions when the file does not say (the draft's file may not).
    Key("max_position_embeddings", "max_position_embeddings", "max_position_embeddings", default=128_000),
)
# A native file without `moe` is a draft: all its layers are dense.
MOE_KEYS = (
    Key("moe_intermediate_size", "moe.expert_hidden_dim", "moe_intermediate_size"),
    Key("n_routed_experts", "moe.num_experts", "n_routed_experts"),
    Key("num_experts_per_tok", "moe.num_experts_per_tok", "num_experts_per_tok"),
    Key("n_shared_experts", "moe.num_shared_experts", "n_shared_experts"),
    Key("first_k_dense_replace", "moe.first_k_dense_replace", "first_k_dense_replace", default=0, zero_ok=True),
    Key("routed_scaling_factor", "moe.routed_scale", "routed_scaling_factor", default=1.0),
)
# The Hugging Face key stands in the outer block, and there its default differs between classes: it must be stated.
TIED_KEY = Key("tie_word_embeddings", "tied_embeddings", "tie_word_embeddings", default=False)

_R = "rope_parameters."
ROPE_KEYS = (
    Key("rope_theta", "rope_theta", _R + "rope_theta"),
    Key("factor", "yarn.factor", _R + "factor"),
    Key(
        "original_max_position_embeddings",
        "yarn.original_max_position_embeddings",
        _R + "original_max_position_embeddings",
    ),
    Key("beta_fast", "yarn.beta", _R + "beta_fast"),
    Key("beta_slow", "yarn.alpha", _R + "beta_slow"),
    Key("llama_4_scaling_beta", "llama_4_scaling.beta", _R + "llama_4_scaling_beta", zero_ok=True),
    Key("apply_scale", "yarn.apply_scale", _R + "apply_scale", default=False, sparse=("hf",)),
)
# Hugging Face files have one original length for both uses; ours writes a second one only where they differ.
LLAMA_4_ORIGINAL_KEY = Key(
    "llama_4_original_max_position_embeddings",
    "llama_4_scaling.original_max_position_embeddings",
    _R + "llama_4_original_max_position_embeddings",
)

VISION_KEYS = (
    Key("hidden_size", "hidden_size", "hidden_size"),
    Key("num_hidden_layers", "num_hidden_layers", "num_hidden_layers"),
    Key("num_attention_heads", "num_attention_heads", "num_attention_heads"),
    Key("intermediate_size", "intermediate_size", "intermediate_size"),
    Key("image_size", "image_size", "image_size"),
    Key("patch_size", "patch_size", "patch_size"),
    Key("num_channels", "num_channels", "num_channels", default=3),
    Key("rope_theta", "rope_theta", "rope_theta", default=10000.0),
    Key("rms_norm_eps", "norm_eps", "norm_eps", default=1e-5, sparse=("native", "hf")),
)
IMAGE_TOKEN_KEYS = (
    Key("image_token_id", "vision_encoder.image_token_id", "image_token_index", default=10),
    Key("image_break_token_id", "vision_encoder.image_break_token_id", "image_break_token_id", 12, sparse=("hf",)),
    Key("image_end_token_id", "vision_encoder.image_end_token_id", "image_end_token_id", 13, sparse=("hf",)),
)
MERGE_KEY = Key("spatial_merge_size", "vision_encoder.spatial_merge_size", "spatial_merge_size", default=2)
# Native files leave these to the tokenizer.
TOKEN_KEYS = (
    Key("bos_token_id", "bos_token_id", "bos_token_id", default=1, zero_ok=True, sparse=("native",)),
    Key("eos_token_id", "eos_token_id", "eos_token_id", default=2, zero_ok=True, sparse=("native",)),
    Key("pad_token_id", "pad_token_id", "pad_token_id", default=11, zero_ok=True, sparse=("native",)),
)

NATIVE_FACTS = (
    Fact("activation", "silu"),
    Fact("use_biases", False),
    Fact("use_qk_norm", False),
    Fact("sliding_window", None),
    Fact("multimodal", None),
    Fact("moe.route_every_n", 1, written=True),
    Fact("moe.num_expert_groups", 1, written=True),
    Fact("moe.num_expert_groups_per_tok", 1, written=True),
)
NATIVE_VISION_FACTS = (
    Fact("adapter_bias", False, written=True),
    Fact("mm_projector_id", "patch_merge", absent="", written=True),
    Fact("add_pre_mm_projector_layer_norm", True, absent=False, written=True),
)
HF_TEXT_FACTS = (
    Fact("hidden_act", "silu", written=True),
    Fact("attention_bias", False, written=True),
    Fact("mlp_bias", False),
    Fact("n_group", 1, written=True),
    Fact("topk_group", 1, written=True),
    Fact("norm_topk_prob", True, written=True),
    Fact("scoring_func", "softmax"),
    Fact("moe_layer_freq", 1),
    Fact("sliding_window", None),
    Fact("rope_interleave", True, written=True),
    Fact(_R + "rope_type", "yarn", written=True),
    Fact(_R + "type", "yarn", written=True),
    Fact(_R + "truncate", True),
    Fact(_R + "attention_factor", 1.0),
    # Only their ratio acts (on cos and sin), and it is 1 while both are equal; the softmax scale takes no mscale.
    Fact(_R + "mscale", 1.0, written=True),
    Fact(_R + "mscale_all_dim", 1.0, written=True),
)
HF_OUTER_FACTS = (
    Fact("projector_hidden_act", "gelu", written=True),
    Fact("multimodal_projector_bias", False, written=True),
    Fact("vision_feature_layer", -1, written=True),
)
HF_VISION_FACTS = (
    Fact("model_type", "pixtral", written=True),
    # The class default is gelu; the published file says silu.
    Fact("hidden_act", "silu", absent="gelu", written=True),
    Fact("attention_bias", False),
    Fact(_R + "rope_type", "axial", alias="default"),
)

# Blocks in which a key that no row above names is refused: each of their keys acts on the arithmetic. The values are
# the keys known to be harmless.
STRICT_BLOCKS: dict[Layout, dict[str, frozenset[str]]] = {
    "native": {
        "yarn": frozenset(),
        "llama_4_scaling": frozenset(),
        "moe": frozenset({"expert_parallel", "expert_model_parallel"}),
    },
    "hf": {"rope_parameters": frozenset({"max_position_embeddings", "partial_rotary_factor"})},
}
