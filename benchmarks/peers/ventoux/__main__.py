"""Ventoux, in the project's environment."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from peers import protocol

from ventoux import __version__
from ventoux.build import build_engine
from ventoux.config import EngineConfig
from ventoux.evals import bench

# Folder of the checkpoint, and how attention's projections and the head lie in memory.
VARIANTS = {
    "bf16": ("native", "stored", "stored"),
    "NVFP4": ("nvfp4", "stored", "stored"),
    "NVFP4 + FP8": ("nvfp4", "fp8", "fp8"),
    "NVFP4 throughout": ("nvfp4", "nvfp4", "nvfp4"),
}
CACHE_BYTES = 2**30


class Ventoux:
    def __init__(self, models: Path, variant: str, args: argparse.Namespace) -> None:
        folder, attention, head = VARIANTS[variant]
        most = max(*args.prefill, protocol.DECODE_PROMPT + args.new_tokens)
        choices = EngineConfig(
            dtype="bfloat16",
            attention_format=attention,
            head_format=head,
            num_threads=args.threads,
            max_num_seqs=max(args.decode),
            max_model_len=most + 1,
            kv_cache_memory=CACHE_BYTES,
            enable_prefix_caching=False,
        )
        self._engine = build_engine(models / folder, choices).engine
        plan = self._engine.plan
        self.facts: dict[str, Any] = {
            "versions": {"ventoux": __version__, "torch": torch.__version__},
            "note": f"operators {plan.operators}, computes in {plan.dtype}",
        }

    def prefill(self, prompt: list[int]) -> float:
        started = time.perf_counter()
        bench.run_prompts(self._engine, [prompt], new_tokens=1)
        return time.perf_counter() - started

    def decode(self, prompts: list[list[int]], new_tokens: int) -> float:
        return bench.decode_run(self._engine, prompts, new_tokens).tokens_per_second

    def weight_bytes(self, sequences: int) -> float:
        return bench.active_bytes(self._engine.runner.model, sequences)


if __name__ == "__main__":
    protocol.run(lambda models: list(VARIANTS), Ventoux)
