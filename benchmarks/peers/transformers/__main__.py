"""transformers, in bf16 with its grouped product over experts, the fastest of its ways on a CPU."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from peers import protocol


class Transformers:
    def __init__(self, models: Path, variant: str, args: argparse.Namespace) -> None:
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(args.threads)
        self._models = models
        self._model = transformers.Mistral4ForCausalLM.from_pretrained(
            models / "hf", dtype=torch.bfloat16, experts_implementation="grouped_mm", attn_implementation="sdpa"
        ).eval()
        # Mapped pages of the file could be evicted while the machine is measured.
        for parameter in self._model.parameters():
            parameter.data = parameter.data.clone()
        self.facts: dict[str, Any] = {
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            "note": "experts grouped_mm, attention sdpa, weights copied from the mapped file",
        }

    @torch.inference_mode()
    def prefill(self, prompt: list[int]) -> float:
        started = time.perf_counter()
        self._model(input_ids=torch.tensor([prompt]), logits_to_keep=1).logits.argmax(-1)
        return time.perf_counter() - started

    @torch.inference_mode()
    def decode(self, prompts: list[list[int]], new_tokens: int) -> float:
        out = self._model(input_ids=torch.tensor(prompts), logits_to_keep=1)
        started = time.perf_counter()
        for _ in range(new_tokens - 1):
            newest = out.logits.argmax(-1)
            out = self._model(input_ids=newest, past_key_values=out.past_key_values, logits_to_keep=1)
        return len(prompts) * (new_tokens - 1) / (time.perf_counter() - started)

    def weight_bytes(self, sequences: int) -> float:
        return protocol.bf16_bytes(self._models, sequences)


if __name__ == "__main__":
    protocol.run(lambda models: ["bf16"], Transformers)
