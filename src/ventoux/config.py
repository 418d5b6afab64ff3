"""Facts (the checkpoint) and choices (the user), as records. No torch here; this file alone reads the environment.

Together with the machine (`hardware.py`) they make the plan (`plan.py`).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

# ---------------------------------------------------------------------------------------------- facts: the checkpoint


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions with YaRN, and the query scale that grows with position."""

    rope_theta: float = 10000.0
    factor: float = 128.0
    original_max_position_embeddings: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    # s4(p) = 1 + beta * ln(1 + floor(p / original)); 0 turns it off.
    llama_4_scaling_beta: float = 0.1
    llama_4_original_max_position_embeddings: int = 8192
    # Native `yarn.apply_scale`. The published model says false: the softmax scale carries no mscale.
    apply_scale: bool = False


@dataclass(frozen=True)
class TextConfig:
    """The decoder, under its Hugging Face names. An EAGLE draft is the same record with every layer dense."""

    hidden_size: int = 4096
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    vocab_size: int = 131072
    q_lora_rank: int = 1024
    kv_lora_rank: int = 256
    qk_nope_head_dim: int = 64
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    intermediate_size: int = 12288
    moe_intermediate_size: int = 2048
    n_routed_experts: int = 128
    num_experts_per_tok: int = 4
    n_shared_experts: int = 1
    first_k_dense_replace: int = 0
    routed_scaling_factor: float = 1.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 1048576
    tie_word_embeddings: bool = False
    rope: RopeConfig = field(default_factory=RopeConfig)

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Cached values per token and layer: the latent and the rope key, shared by all heads."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def cached_values(self) -> int:
        """Cached values per token in all layers."""
        return self.latent_dim * self.num_hidden_layers

    @property
    def softmax_scale(self) -> float:
        """1/sqrt(qk_head_dim); with `apply_scale`, YaRN's mscale squared on top."""
        scale = self.qk_head_dim**-0.5
        if self.rope.apply_scale and self.rope.factor > 1:
            scale *= (0.1 * math.log(self.rope.factor) + 1.0) ** 2
        return scale

    def is_dense(self, layer: int) -> bool:
        return layer < self.first_k_dense_replace


@dataclass(frozen=True)
class VisionConfig:
    """The Pixtral tower and the projector, under their Hugging Face names."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    head_dim: int = 64
    intermediate_size: int = 4096
    image_size: int = 1540
    patch_size: int = 14
    num_channels: int = 3
    rope_theta: float = 10000.0
    spatial_merge_size: int = 2
    rms_norm_eps: float = 1e-5


@dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint is. `vision` is None for text-only checkpoints; a draft has `is_draft` set."""

    text: TextConfig = field(default_factory=TextConfig)
    vision: VisionConfig | None = field(default_factory=VisionConfig)
    is_draft: bool = False
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 11
    image_token_id: int = 10
    image_break_token_id: int = 12
    image_end_token_id: int = 13


@dataclass(frozen=True)
class StoredWeights:
    """How the files hold the weights, as far as the plan depends on it.

    `dense_parameters` take the compute type in memory; the `quantized_parameters` stay as they are stored, in
    `quantized_bytes`. `formats` names what is quantized, e.g. "experts nvfp4, shared_experts nvfp4".
    """

    dense_parameters: int
    quantized_parameters: int = 0
    quantized_bytes: int = 0
    formats: str = ""


@dataclass(frozen=True)
class Speculation:
    """Who guesses tokens ("eagle", "ngram", "none"), how many, and what a draft model takes."""

    method: str = "none"
    num_tokens: int = 0
    draft_weights: StoredWeights = StoredWeights(0)
    draft_cached_values: int = 0
    draft_max_model_len: int | None = None
    adaptive: bool = True


# ------------------------------------------------------------------------------------------------- choices: the user


def _choice(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field that is also a command-line flag; `cli.py` derives the flag from it."""
    return field(default=default, metadata={"help": help, **metadata})


LOAD_FORMATS = ("stored", "fp8", "nvfp4")


@dataclass(frozen=True)
class EngineConfig:
    """Choices about the engine. Each field is a `--flag` of `ventoux serve` with the same name."""

    max_model_len: int | None = _choice(None, "longest prompt plus answer, in tokens (16384, 256k; default: what fits)")
    max_num_seqs: int = _choice(128, "sequences that run at the same time")
    max_num_batched_tokens: int = _choice(2048, "tokens per engine step (the chunked-prefill budget)")
    memory_utilization: float = _choice(
        0.8, "share of the device's free memory for weights and cache", aliases=("--gpu-memory-utilization",)
    )
    kv_cache_memory: int | None = _choice(None, "bytes for the latent cache (4GiB; default: from the share of memory)")
    page_size: int = _choice(16, "tokens per cache page", aliases=("--block-size",))
    enable_prefix_caching: bool = _choice(True, "reuse cached pages of prompts that begin alike")
    dtype: str = _choice("auto", "compute type", choices=("auto", "bfloat16", "float32"))
    kv_cache_dtype: str = _choice("auto", "cache type", choices=("auto", "bfloat16", "float32"))
    attention_format: str = _choice(
        "stored", "attention's projections in memory, quantized while they are loaded", choices=LOAD_FORMATS
    )
    head_format: str = _choice("stored", "the output head in memory, likewise", choices=LOAD_FORMATS)
    device: str = _choice("auto", "where to run", choices=("auto", "cpu", "cuda"))
    tensor_parallel_size: int = _choice(
        1, "GPUs per replica (a CPU is one device: there it changes nothing)", aliases=("-tp",)
    )
    operators: str = _choice(
        "auto", "who computes: native code (cpu) or plain PyTorch", choices=("auto", "cpu", "reference")
    )
    speculative_config: str | None = _choice(
        None,
        'drafting as JSON, e.g. {"method": "ngram"} (default: the draft in the model\'s folder, if any)',
        aliases=("-sc",),
    )
    num_threads: int | None = _choice(None, "CPU threads (default: the cores that this process may use)")
    seed: int = _choice(0, "seed of the generator that seeds requests which bring none")
    yarn_apply_scale: bool | None = _choice(None, "override the checkpoint's YaRN softmax scale rule")
    image_cache_size: int = _choice(64, "encoded images kept, so that a repeated image is not encoded again")


@dataclass(frozen=True)
class ServerConfig:
    """Choices about the HTTP server. Each field is a `--flag` of `ventoux serve` with the same name."""

    host: str = _choice("127.0.0.1", "address to listen on")
    port: int = _choice(8000, "port to listen on")
    served_model_name: tuple[str, ...] = _choice((), "name(s) that clients may use (default: MODEL)", nargs="+")
    api_key: tuple[str, ...] = _choice((), "key(s) that clients must send (default: none needed)", nargs="+")
    api_key_file: str = _choice("", "file of keys, one a line, with names and limits; read again when it changes")
    admin_api_key: tuple[str, ...] = _choice(
        (), "key(s) of the operator: with one, /metrics, /docs and /openapi.json are closed to other keys", nargs="+"
    )
    ssl_certfile: str = _choice("", "PEM file with the certificate chain: serve HTTPS; read again when it changes")
    ssl_keyfile: str = _choice("", "PEM file with the certificate's key (default: it lies in --ssl-certfile)")
    allowed_hosts: tuple[str, ...] = _choice(
        (), "Host names to answer to beside local ones, on a loopback address without keys", nargs="+"
    )
    allowed_media_domains: tuple[str, ...] = _choice(
        (), "hosts that image URLs may name; a listed host may also be private or loopback", nargs="+"
    )
    allowed_origins: tuple[str, ...] = _choice((), "origins that browsers may call from (CORS)", nargs="+")
    limit_images: int = _choice(16, "images per request")
    max_image_bytes: int = _choice(20 * 2**20, "bytes of one encoded image")
    max_image_pixels: int = _choice(50_000_000, "pixels of one image, judged before it is decoded")
    image_workers: int = _choice(2, "processes that decode images; 0 decodes them in the server's own")
    media_timeout: float = _choice(5.0, "seconds for fetching one image")
    max_request_bytes: int = _choice(64 * 2**20, "bytes of one request body")
    max_queued_requests: int = _choice(1024, "requests in flight; more are answered 503")
    max_queued_tokens: int = _choice(
        2**20, "prompt tokens of requests that wait for their first token; more are answered 503"
    )
    hang_timeout: float = _choice(30.0, "seconds without a sign of life before the engine process is started anew")
    step_timeout: float = _choice(300.0, "seconds that one step of the engine may take before it counts as hung")
    max_failed_starts: int = _choice(5, "starts of the engine that may fail in a row before the server gives up")
    drain_timeout: float = _choice(30.0, "seconds that running answers get to finish after SIGTERM")
    responses_store: str = _choice("~/.local/state/ventoux/responses.sqlite3", "file for /v1/responses, or none")
    max_stored_responses: int = _choice(10_000, "responses kept; those unused for longest make room")
    max_stored_response_bytes: int = _choice(2**30, "bytes of all responses kept")
    files_store: str = _choice("~/.local/state/ventoux/files.sqlite3", "file for /v1/files and /v1/batches, or none")
    max_stored_file_bytes: int = _choice(2**30, "bytes of all files and batches kept; the oldest files make room")
    root_path: str = _choice("", "path prefix set by a proxy in front")
    log_format: str = _choice("text", "how log lines are written", choices=("text", "json"))
    otlp_traces_endpoint: str = _choice("", "send OpenTelemetry traces to this URL, e.g. http://127.0.0.1:4318")


# ------------------------------------------------------------------------------------------------------- environment


def engine_environment() -> dict[str, str]:
    """The environment of an engine process: ours, with OpenMP threads that sleep instead of spin at barriers.

    A spinning thread takes the core away from the one that is waited for as soon as anything else runs: on 2 cores with
    other work, torch steps of 2 ms were seen to take 500 ms. Who sets OMP_WAIT_POLICY is obeyed.
    """
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
