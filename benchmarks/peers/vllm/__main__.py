"""vLLM's CPU build, in bf16 with the settings that its server has, prefix caching aside."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from peers import protocol

MAX_MODEL_LEN = 4096
CACHE_GIB = 1


class Vllm:
    def __init__(self, models: Path, variant: str, args: argparse.Namespace) -> None:
        # Before the import, which reads them. One process, so that its memory and its steps are ours to see.
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{args.threads - 1}",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "HF_HUB_OFFLINE": "1",
        }
        latent = "amx_bf16" in Path("/proc/cpuinfo").read_text()
        if not latent:
            # Its latent attention for other processors knows DeepSeek's head size only ("Unsupported block size").
            os.environ["VLLM_MLA_DISABLE"] = "1"
        import torch
        import vllm

        self._models = models
        self._vllm = vllm
        llm = vllm.LLM(
            model=str(models / "native"),
            config_format="mistral",
            load_format="mistral",
            tokenizer_mode="mistral",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=max(args.decode),
            max_num_batched_tokens=MAX_MODEL_LEN,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self._engine = llm.llm_engine
        self._num_requests = 0
        self.facts: dict[str, Any] = {
            "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
            "note": f"native layout, {'latent' if latent else 'expanded'} attention, steps of up to 4096 tokens",
        }

    def prefill(self, prompt: list[int]) -> float:
        started = time.perf_counter()
        self._add([prompt], 1)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return time.perf_counter() - started

    def decode(self, prompts: list[list[int]], new_tokens: int) -> float:
        self._add(prompts, new_tokens)
        lengths: dict[str, int] = {}
        started, before = 0.0, 0
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                lengths[output.request_id] = len(output.outputs[0].token_ids)
            if not started and len(lengths) == len(prompts):
                started, before = time.perf_counter(), sum(lengths.values())
        return (sum(lengths.values()) - before) / (time.perf_counter() - started)

    def weight_bytes(self, sequences: int) -> float:
        return protocol.bf16_bytes(self._models, sequences)

    def _add(self, prompts: list[list[int]], new_tokens: int) -> None:
        wanted = self._vllm.SamplingParams(
            temperature=0, max_tokens=new_tokens, min_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        for prompt in prompts:
            self._num_requests += 1
            self._engine.add_request(str(self._num_requests), {"prompt_token_ids": prompt}, wanted)


if __name__ == "__main__":
    protocol.run(lambda models: ["bf16"], Vllm)
