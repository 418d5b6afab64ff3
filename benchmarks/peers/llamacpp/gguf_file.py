"""The synthetic checkpoint as a GGUF file: the Hugging Face layout's tensors under llama.cpp's names."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NAMES = {
    "input_layernorm": gguf.MODEL_TENSOR.ATTN_NORM,
    "post_attention_layernorm": gguf.MODEL_TENSOR.FFN_NORM,
    "self_attn.q_a_proj": gguf.MODEL_TENSOR.ATTN_Q_A,
    "self_attn.q_a_layernorm": gguf.MODEL_TENSOR.ATTN_Q_A_NORM,
    "self_attn.q_b_proj": gguf.MODEL_TENSOR.ATTN_Q_B,
    "self_attn.kv_a_proj_with_mqa": gguf.MODEL_TENSOR.ATTN_KV_A_MQA,
    "self_attn.kv_a_layernorm": gguf.MODEL_TENSOR.ATTN_KV_A_NORM,
    "self_attn.o_proj": gguf.MODEL_TENSOR.ATTN_OUT,
    "mlp.gate": gguf.MODEL_TENSOR.FFN_GATE_INP,
    "mlp.shared_experts.gate_proj": gguf.MODEL_TENSOR.FFN_GATE_SHEXP,
    "mlp.shared_experts.up_proj": gguf.MODEL_TENSOR.FFN_UP_SHEXP,
    "mlp.shared_experts.down_proj": gguf.MODEL_TENSOR.FFN_DOWN_SHEXP,
    "mlp.experts.gate_up_proj": gguf.MODEL_TENSOR.FFN_GATE_UP_EXP,
    "mlp.experts.down_proj": gguf.MODEL_TENSOR.FFN_DOWN_EXP,
    "embed_tokens": gguf.MODEL_TENSOR.TOKEN_EMBD,
    "norm": gguf.MODEL_TENSOR.OUTPUT_NORM,
    "lm_head": gguf.MODEL_TENSOR.OUTPUT,
}
BF16, F32 = gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F32


def write(source: Path, target: Path) -> None:
    """Weights stay bf16; what llama.cpp wants in fp32 (norms, the router) is widened. No vocabulary is written."""
    config = json.loads((source / "config.json").read_text())
    config = config.get("text_config", config)
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.MISTRAL4])
    _add_facts(writer, config)
    for name, tensor in _tensors(source):
        layer, name = _split(name)
        if name == "self_attn.kv_b_proj":
            keys, values = _split_kv_b(tensor, config)
            _add(writer, gguf.MODEL_TENSOR.ATTN_K_B, layer, keys)
            _add(writer, gguf.MODEL_TENSOR.ATTN_V_B, layer, values)
        else:
            _add(writer, NAMES[name], layer, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


def active_bytes(file: Path, expert_share: float) -> float:
    """Bytes that a decode step reads of the file, if it meets this share of the experts."""
    count = 0.0
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.name != "token_embd.weight":
            count += int(tensor.n_bytes) * (expert_share if "_exps." in tensor.name else 1)
    return count


def _add_facts(writer: gguf.GGUFWriter, c: dict[str, Any]) -> None:
    rope = c["rope_parameters"]
    writer.add_vocab_size(c["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    # In llama.cpp's latent attention all heads share one key, the latent and the rope part, and one value, the latent.
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(c["q_lora_rank"])
    writer.add_kv_lora_rank(c["kv_lora_rank"])
    writer.add_key_length(c["kv_lora_rank"] + c["qk_rope_head_dim"])
    writer.add_value_length(c["kv_lora_rank"])
    writer.add_key_length_mla(c["qk_nope_head_dim"] + c["qk_rope_head_dim"])
    writer.add_value_length_mla(c["v_head_dim"])
    writer.add_leading_dense_block_count(c["first_k_dense_replace"])
    writer.add_expert_count(c["n_routed_experts"])
    writer.add_expert_used_count(c["num_experts_per_tok"])
    writer.add_expert_shared_count(c["n_shared_experts"])
    writer.add_expert_feed_forward_length(c["moe_intermediate_size"])
    writer.add_expert_weights_scale(c["routed_scaling_factor"])
    writer.add_expert_weights_norm(c["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    writer.add_rope_dimension_count(c["qk_rope_head_dim"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    # llama.cpp divides it by 0.1 again.
    writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    writer.add_attn_temperature_length(rope["original_max_position_embeddings"])


def _tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and bf16 values as uint16, mapped: a safetensors file is a JSON header and the bytes behind it."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                values = np.frombuffer(mapped, np.uint16, (end - begin) // 2, 8 + length + begin)
                yield name, values.reshape(entry["shape"])


def _split(name: str) -> tuple[int | None, str]:
    """`model.layers.3.mlp.gate.weight` -> (3, `mlp.gate`)."""
    for prefix in ("language_model.", "model."):
        name = name.removeprefix(prefix)
    name = name.removesuffix(".weight")
    if not name.startswith("layers."):
        return None, name
    _, layer, name = name.split(".", 2)
    return int(layer), name


def _split_kv_b(tensor: np.ndarray, c: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Keys [heads, latent, nope] and values [heads, v, latent], as llama.cpp multiplies with them."""
    by_head = tensor.reshape(c["num_attention_heads"], c["qk_nope_head_dim"] + c["v_head_dim"], c["kv_lora_rank"])
    keys, values = by_head[:, : c["qk_nope_head_dim"]], by_head[:, c["qk_nope_head_dim"] :]
    return np.ascontiguousarray(keys.transpose(0, 2, 1)), np.ascontiguousarray(values)


def _add(writer: gguf.GGUFWriter, kind: gguf.MODEL_TENSOR, layer: int | None, bf16: np.ndarray) -> None:
    name = gguf.TENSOR_NAMES[kind].format(bid=layer) + ".weight"
    if bf16.ndim == 1 or kind == gguf.MODEL_TENSOR.FFN_GATE_INP:
        widened = (bf16.astype(np.uint32) << 16).view(np.float32)
        writer.add_tensor(name, widened, raw_dtype=F32)
    else:
        writer.add_tensor(name, bf16.view(np.uint8), raw_dtype=BF16)
