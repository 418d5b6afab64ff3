"""Facts, choices and the machine -> an immutable plan: everything that is decided before the first weight is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ventoux.config import EngineConfig, ModelConfig, Speculation, StoredWeights, TextConfig
from ventoux.errors import ConfigError
from ventoux.hardware import Hardware


@dataclass(frozen=True)
class EnginePlan:
    """Everything that is decided before the first weight is read. Printed at start, never changed."""

    dtype: str
    kv_cache_dtype: str
    device: str
    operators: str  # as asked for; once the engine is built, whose they are and for which instruction set
    num_threads: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    page_size: int
    num_pages: int
    speculation: str
    num_speculative_tokens: int
    adaptive_speculation: bool
    draft_max_model_len: int
    enable_prefix_caching: bool
    image_cache_size: int
    seed: int
    weight_bytes: int
    weight_formats: str
    cache_bytes: int
    step_bytes: int

    @property
    def torch_threads(self) -> int:
        """One beside native operators, which have `num_threads` of their own: these wait for work in a loop for a
        while, and torch's would take their cores for what is too little to share (docs/decisions/012)."""
        return 1 if self.operators.startswith("cpu") else self.num_threads

    def describe(self) -> str:
        lines = [f"  {f.name:<24}{getattr(self, f.name)}" for f in fields(self)]
        return "\n".join(["engine plan:", *lines])


# A sequence holds at least one token of prompt and one of answer.
_LOWEST = {"max_model_len": 2, "image_cache_size": 0} | dict.fromkeys(
    ("max_num_seqs", "max_num_batched_tokens", "page_size", "kv_cache_memory", "tensor_parallel_size", "num_threads"), 1
)
BYTES_PER_VALUE = {"bfloat16": 2, "float32": 4}
# Up to this many parameters, a CPU without bf16 instructions computes in fp32: twice the bytes, but they are few.
FP32_UP_TO_PARAMETERS = 500_000_000
# The cache that a CPU gets unasked, unless one sequence needs more: memory there is shared with everything else.
CPU_CACHE_BYTES = 4 * 2**30
PARTIAL_SUM_BYTES = 80 * 2**20  # csrc/attention.h: 64 MiB, grown by a quarter


def scratch_bytes(text: TextConfig, num_tokens: int, value_bytes: int) -> int:
    """What the native operators (csrc/) hold for a step of `num_tokens`, most of it in fp32: an upper bound."""
    heads, latent = text.num_attention_heads, text.latent_dim
    pairs = text.num_experts_per_tok + 1  # of a token and an expert; the shared one has every token
    inner = max(text.intermediate_size, pairs * text.moe_intermediate_size * max(text.n_shared_experts, 1))
    widest = max(text.hidden_size, text.q_lora_rank, heads * text.v_head_dim)
    stacked = 3 * text.hidden_size + 2 * text.q_lora_rank + heads * (text.qk_head_dim + text.v_head_dim) + latent
    # Rows as products read them (means of latents too), an MLP's hidden rows or those means, queries, what experts
    # give, normed rows, and activations of NVFP4 products at 2.5 bytes each. Rows are padded by up to 48 values.
    split = max(widest, heads * (text.kv_lora_rank + 48)) + 48
    hidden = max(inner, heads * text.kv_lora_rank, text.n_routed_experts) + pairs * heads * 48
    fixed = 5 * (max(inner, widest) + pairs * 128) // 8
    values = split + hidden + heads * (latent + 48) + pairs * text.hidden_size + (text.hidden_size + 48) + fixed
    # Memory grows in steps of a quarter; attention's partial sums have a limit of their own.
    return num_tokens * (values * 4 + stacked * value_bytes) * 5 // 4 + PARTIAL_SUM_BYTES


def resolve(
    model: ModelConfig,
    weights: StoredWeights,
    engine: EngineConfig,
    hardware: Hardware,
    speculation: Speculation | None = None,
) -> EnginePlan:
    """Turns facts, choices and machine into the plan.

    Raises:
        ConfigError: a choice cannot be honoured on this machine, saying what to change.
    """
    if engine.device == "cuda" and not hardware.cuda_name:
        raise ConfigError("--device cuda: no CUDA device was found here; leave the flag out to run on the CPU.")
    for f in fields(engine):
        value, allowed, lowest = getattr(engine, f.name), f.metadata.get("choices"), _LOWEST.get(f.name)
        if lowest is not None and value is not None and value < lowest:
            raise ConfigError(f"--{f.name.replace('_', '-')} must be at least {lowest}, got {value}.")
        if allowed and value not in allowed:
            raise ConfigError(f"--{f.name.replace('_', '-')} must be one of {', '.join(allowed)}, got {value!r}.")
    if not 0 < engine.memory_utilization <= 1:
        raise ConfigError(f"--memory-utilization must be in (0, 1], got {engine.memory_utilization}.")

    device = "cuda" if engine.device == "cuda" or (engine.device == "auto" and hardware.cuda_name) else "cpu"
    available = hardware.cuda_available_bytes if device == "cuda" else hardware.available_bytes
    if device == "cuda" and engine.tensor_parallel_size > 1:
        raise ConfigError(
            f"--tensor-parallel-size {engine.tensor_parallel_size}: one GPU per replica is all that is built so far;"
            " leave the flag out."
        )
    dtype = engine.dtype
    if dtype == "auto":
        small = weights.dense_parameters + weights.quantized_parameters <= FP32_UP_TO_PARAMETERS
        dtype = "float32" if device == "cpu" and small and not hardware.has_fast_bf16 else "bfloat16"
    kv_dtype = dtype if engine.kv_cache_dtype == "auto" else engine.kv_cache_dtype

    speculation = speculation or Speculation()
    draft = speculation.draft_weights
    dense_parameters = weights.dense_parameters + draft.dense_parameters
    weight_bytes = dense_parameters * BYTES_PER_VALUE[dtype] + weights.quantized_bytes + draft.quantized_bytes
    text = model.text
    step_bytes = 4 * engine.max_num_seqs * text.vocab_size  # logits
    step_bytes += scratch_bytes(text, engine.max_num_batched_tokens, BYTES_PER_VALUE[dtype])
    budget = int(available * engine.memory_utilization) - weight_bytes - step_bytes
    cached_values = text.cached_values + speculation.draft_cached_values
    page_bytes = cached_values * BYTES_PER_VALUE[kv_dtype] * engine.page_size
    longest = engine.max_model_len or text.max_position_embeddings
    if longest > text.max_position_embeddings:
        raise ConfigError(
            f"--max-model-len {longest} is more than the model's {text.max_position_embeddings} positions."
        )
    if engine.kv_cache_memory is not None:
        budget = engine.kv_cache_memory
    elif device == "cpu":
        budget = min(budget, max(CPU_CACHE_BYTES, math.ceil(longest / engine.page_size) * page_bytes))
    useful = engine.max_num_seqs * math.ceil(longest / engine.page_size)
    num_pages = min(budget // page_bytes, useful)
    if engine.max_model_len is None:
        longest = min(longest, max(num_pages, 0) * engine.page_size)
    needed = math.ceil(longest / engine.page_size)
    if num_pages < max(needed, 1):
        have = "nothing" if budget <= 0 else f"{budget / 2**30:.2f} GiB"
        wanted = f"one sequence of {longest} tokens needs {needed * page_bytes / 2**30:.2f} GiB" if longest else ""
        raise ConfigError(
            f"Not enough memory: {available / 2**30:.1f} GiB are free, the weights take"
            f" {weight_bytes / 2**30:.1f} GiB and a step {step_bytes / 2**30:.1f}, which leaves {have} for the cache"
            f"{'; ' + wanted if wanted else ''}."
            " Lower --max-model-len, raise --memory-utilization, or use a machine with more memory."
        )
    in_all = weight_bytes + step_bytes + num_pages * page_bytes
    if device == "cpu" and in_all > hardware.memory_bytes:
        # Only an explicit cache size gets here: the share of memory above has room for the weights.
        raise ConfigError(
            f"--kv-cache-memory: weights, cache and a step take {in_all / 2**30:.1f} GiB,"
            " more than this machine's memory."
        )
    return EnginePlan(
        dtype=dtype,
        kv_cache_dtype=kv_dtype,
        device=device,
        operators=engine.operators,
        num_threads=engine.num_threads or hardware.num_cores,
        max_model_len=longest,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        page_size=engine.page_size,
        num_pages=num_pages,
        speculation=speculation.method,
        num_speculative_tokens=speculation.num_tokens,
        adaptive_speculation=speculation.adaptive,
        draft_max_model_len=min(speculation.draft_max_model_len or longest, longest),
        enable_prefix_caching=engine.enable_prefix_caching,
        image_cache_size=engine.image_cache_size,
        seed=engine.seed,
        weight_bytes=weight_bytes,
        weight_formats=f"{weights.formats}, the rest {dtype}" if weights.formats else dtype,
        cache_bytes=num_pages * page_bytes,
        step_bytes=step_bytes,
    )
