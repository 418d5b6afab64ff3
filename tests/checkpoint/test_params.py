"""Config files: published ones read as the facts say, ours read back equal, and whatever would change the arithmetic
is refused by name."""

import copy
import dataclasses
import json

import pytest

from tests.tiny import tiny_config, tiny_draft_config
from ventoux.checkpoint.params import read_config, read_facts, write_config
from ventoux.config import ModelConfig, RopeConfig, TextConfig, VisionConfig
from ventoux.errors import CheckpointError

# The files of Mistral Small 4 119B-2603, as far as they are known verbatim.
NATIVE = {
    "dim": 4096, "n_layers": 36, "head_dim": 128, "hidden_dim": 12288, "n_heads": 32, "n_kv_heads": 32,
    "rope_theta": 10000.0, "norm_eps": 1e-6, "vocab_size": 131072, "tied_embeddings": False,
    "max_position_embeddings": 1048576, "q_lora_rank": 1024, "kv_lora_rank": 256, "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64, "v_head_dim": 128,
    "yarn": {"alpha": 1, "beta": 32, "factor": 128, "original_max_position_embeddings": 8192, "apply_scale": False},
    "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 8192},
    "moe": {
        "expert_parallel": 1, "expert_model_parallel": 1, "route_every_n": 1, "first_k_dense_replace": 0,
        "num_experts": 128, "num_experts_per_tok": 4, "num_expert_groups": 1, "num_expert_groups_per_tok": 1,
        "routed_scale": 1.0, "expert_hidden_dim": 2048, "num_shared_experts": 1,
    },
    "vision_encoder": {
        "hidden_size": 1024, "num_channels": 3, "image_size": 1540, "max_image_size": 1540, "patch_size": 14,
        "rope_theta": 10000.0, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "adapter_bias": False, "mm_projector_id": "patch_merge", "spatial_merge_size": 2,
        "add_pre_mm_projector_layer_norm": True, "image_token_id": 10, "image_break_token_id": 12,
        "image_end_token_id": 13,
    },
}  # fmt: skip
HF = {
    "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "dtype": "bfloat16",
    "image_token_index": 10, "multimodal_projector_bias": False, "projector_hidden_act": "gelu",
    "spatial_merge_size": 2, "tie_word_embeddings": False, "vision_feature_layer": -1,
    "text_config": {
        "model_type": "mistral4", "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 11, "first_k_dense_replace": 0, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 12288, "kv_lora_rank": 256,
        "max_position_embeddings": 1048576, "moe_intermediate_size": 2048, "n_group": 1, "n_routed_experts": 128,
        "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 32, "num_experts_per_tok": 4,
        "num_hidden_layers": 36, "num_key_value_heads": 32, "q_lora_rank": 1024, "qk_head_dim": 128,
        "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_interleave": True,
        "rope_parameters": {
            "type": "yarn", "rope_type": "yarn", "rope_theta": 10000.0, "factor": 128.0,
            "original_max_position_embeddings": 8192, "max_position_embeddings": 1048576, "beta_fast": 32.0,
            "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
            "partial_rotary_factor": 0.5,
        },
        "routed_scaling_factor": 1.0, "topk_group": 1, "use_cache": True, "v_head_dim": 128, "vocab_size": 131072,
    },
    "vision_config": {
        "model_type": "pixtral", "attention_dropout": 0.0, "head_dim": 64, "hidden_act": "silu", "hidden_size": 1024,
        "image_size": 1540, "intermediate_size": 4096, "num_attention_heads": 16, "num_channels": 3,
        "num_hidden_layers": 24, "patch_size": 14, "rope_theta": 10000.0,
    },
}  # fmt: skip
PUBLISHED = {"native": ("params.json", NATIVE), "hf": ("config.json", HF)}


def put(folder, layout, changes=(), content=None):
    """Writes the published file with `changes`: (dotted path, value); a value of None takes the key away."""
    name, published = PUBLISHED[layout]
    content = copy.deepcopy(published if content is None else content)
    for path, value in changes:
        *blocks, leaf = path.split(".")
        node = content
        for block in blocks:
            node = node.setdefault(block, {})
        if value is None:
            del node[leaf]
        else:
            node[leaf] = value
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("layout", ["native", "hf"])
def test_published_file_is_the_default_config(tmp_path, layout):
    """Every default of our records is a published value; a swapped key (alpha/beta) would show here."""
    assert read_config(put(tmp_path, layout)) == (ModelConfig(), layout)


def different(record):
    """A record in which no field has its default value."""
    changed = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, bool):
            changed[field.name] = not value
        elif isinstance(value, int):
            changed[field.name] = value + 4
        elif isinstance(value, float):
            changed[field.name] = value * 1.5
        elif dataclasses.is_dataclass(value):
            changed[field.name] = different(value)
    return dataclasses.replace(record, **changed)


@pytest.mark.parametrize("layout", ["native", "hf"])
@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(different(ModelConfig()), is_draft=False),
        ModelConfig(text=different(TextConfig()), vision=None),
        tiny_config(),
        tiny_config(rope=RopeConfig(apply_scale=True)),
    ],
    ids=["all different", "text only", "tiny", "apply_scale"],
)
def test_what_we_write_reads_back_equal(tmp_path, layout, config):
    """A field that one layout forgets to write, or reads from another key, comes back as its default."""
    write_config(config, tmp_path, layout)
    assert read_config(tmp_path) == (config, layout)


def test_draft_reads_back_and_has_no_hf_layout(tmp_path):
    write_config(tiny_draft_config(), tmp_path, "native")
    assert "moe" not in json.loads((tmp_path / "params.json").read_text())
    assert read_config(tmp_path) == (tiny_draft_config(), "native")
    with pytest.raises(CheckpointError, match="only the native layout"):
        write_config(tiny_draft_config(), tmp_path, "hf")


def test_draft_file_without_vision_or_positions(tmp_path):
    """The draft's own file: no `moe` key, perhaps no maximum; peers then take 128,000 positions."""
    changes = [("moe", None), ("vision_encoder", None), ("n_layers", 2), ("max_position_embeddings", None)]
    config, _ = read_config(put(tmp_path, "native", changes))
    assert config.is_draft and config.vision is None
    assert config.text.first_k_dense_replace == config.text.num_hidden_layers == 2
    assert config.text.max_position_embeddings == 128_000


def test_native_wins_unless_asked_otherwise(tmp_path):
    put(put(tmp_path, "native"), "hf", [("text_config.num_hidden_layers", 7)])
    assert read_config(tmp_path)[1] == "native"
    config, layout = read_config(tmp_path, "hf")
    assert (config.text.num_hidden_layers, layout) == (7, "hf")


@pytest.mark.parametrize(
    ("layout", "path", "value"),
    [
        ("native", "moe.route_every_n", 2),
        ("native", "moe.num_expert_groups", 8),
        ("native", "moe.bias_update", 0.1),
        ("native", "yarn.attn_factor", 0.7),
        ("native", "llama_4_scaling.floor", 4),
        ("native", "vision_encoder.adapter_bias", True),
        ("native", "vision_encoder.mm_projector_id", None),
        ("native", "vision_encoder.add_pre_mm_projector_layer_norm", None),
        ("native", "sliding_window", 4096),
        ("native", "activation", "gelu"),
        ("native", "kv_lora_rank", None),
        ("native", "dim", "4096"),
        ("native", "dim", True),
        ("native", "n_layers", 0),
        ("native", "norm_eps", -1e-6),
        ("native", "yarn.apply_scale", 1),
        ("native", "qk_rope_head_dim", 63),
        ("native", "quantization", {"qformat_weight": "int3"}),
        ("hf", "text_config.attention_bias", True),
        ("hf", "text_config.n_group", 4),
        ("hf", "text_config.norm_topk_prob", False),
        ("hf", "text_config.hidden_act", "gelu"),
        ("hf", "text_config.rope_interleave", False),
        ("hf", "text_config.q_lora_rank", None),
        ("hf", "text_config.rope_parameters.rope_type", "llama3"),
        ("hf", "text_config.rope_parameters.mscale_all_dim", 0.5),
        ("hf", "text_config.rope_parameters.partial_rotary_factor", 0.25),
        ("hf", "text_config.rope_parameters.short_factor", [1.0]),
        ("hf", "text_config.num_experts_per_tok", 129),
        ("hf", "text_config.eos_token_id", [2, 3]),
        ("hf", "vision_config.hidden_act", None),
        ("hf", "vision_config.model_type", "siglip"),
        ("hf", "vision_feature_layer", -2),
        ("hf", "projector_hidden_act", "relu"),
        ("hf", "tie_word_embeddings", None),
        ("hf", "text_config.model_type", "mistral"),
        ("hf", "model_type", "llama"),
        ("hf", "quantization_config", {"quant_method": "gptq"}),
    ],
)
def test_what_would_change_the_arithmetic_is_refused_by_name(tmp_path, layout, path, value):
    with pytest.raises(CheckpointError) as caught:
        read_config(put(tmp_path, layout, [(path, value)]))
    assert len(caught.value.problems) == 1
    problem = caught.value.problems[0]
    assert path.rpartition(".")[2] in problem or "experts per token" in problem


@pytest.mark.parametrize(
    ("layout", "path", "value"),
    [
        ("native", "max_seq_len", 32768),
        ("native", "dtype", "bfloat16"),
        ("hf", "text_config.attention_dropout", 0.1),
        ("hf", "transformers_version", "5.23.0"),
        ("hf", "vision_config.rope_parameters", {"rope_theta": 10000.0, "rope_type": "axial"}),
    ],
)
def test_harmless_keys_are_ignored(tmp_path, layout, path, value):
    assert read_config(put(tmp_path, layout, [(path, value)]))[0] == ModelConfig()


def test_other_spelling_of_the_image_token(tmp_path):
    config, _ = read_config(put(tmp_path, "hf", [("image_token_index", None), ("image_token_id", 99)]))
    assert config.image_token_id == 99


def test_all_problems_at_once(tmp_path):
    changes = [("dim", None), ("yarn.gamma", 1), ("moe.route_every_n", 2), ("vision_encoder.patch_size", "14")]
    with pytest.raises(CheckpointError) as caught:
        read_config(put(tmp_path, "native", changes))
    for name in ("dim is missing", "yarn.gamma", "route_every_n", "patch_size"):
        assert sum(name in problem for problem in caught.value.problems) == 1
    assert len(caught.value.problems) == 4


NVFP4 = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}


@pytest.mark.parametrize(
    ("layout", "block", "quant", "wanted"),
    [
        ("native", "quantization", {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}, {"fp8"}),
        ("hf", "quantization_config", {"quant_method": "fp8", "activation_scheme": "static"}, {"fp8"}),
        ("native", "quantization_config", NVFP4, {"nvfp4"}),
        ("native", "quantization", NVFP4, {"nvfp4"}),
        ("hf", "quantization_config", None, set()),
    ],
)
def test_number_formats_are_recognised(tmp_path, layout, block, quant, wanted):
    changes = [] if quant is None else [(block, quant)]
    assert read_facts(put(tmp_path, layout, changes)).claimed == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{", "not JSON"),
        ("[]", "must hold a JSON object"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        ('{"dim": NaN}', "dim must be of type int"),
        ('{"dim": ' + "[" * 100_000, "not JSON"),
        ('{"dim": ' + "9" * 5000 + "}", "not JSON"),
        ('{"dim": ' + "9" * 400 + "}", "dim must be less than 2"),
        ('{"rope_theta": ' + "9" * 400 + "}", "rope_theta must be of type float"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, wanted):
    (tmp_path / "params.json").write_text(text)
    with pytest.raises(CheckpointError, match=wanted):
        read_config(tmp_path)


def test_folders_that_are_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        read_config(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"no params.json or config.json"):
        read_config(tmp_path)
    put(tmp_path, "native")
    with pytest.raises(CheckpointError, match=r"no config.json"):
        read_config(tmp_path, "hf")


def test_vision_defaults_match_the_record():
    """`head_dim` is not in native files: it is hidden_size / heads, and the record must agree."""
    assert VisionConfig().head_dim == VisionConfig().hidden_size // VisionConfig().num_attention_heads
