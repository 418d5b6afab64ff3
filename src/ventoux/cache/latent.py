"""The latent cache: per layer one tensor [P, S, kv_lora_rank + qk_rope_head_dim], shared by all heads."""

from __future__ import annotations

import torch

from ventoux.config import TextConfig


def make_latent_cache(
    config: TextConfig, num_pages: int, page_size: int, dtype: torch.dtype, device: str
) -> list[torch.Tensor]:
    """Unwritten pages cost address space only: the operating system backs them when they are first written."""
    shape = (num_pages, page_size, config.latent_dim)
    return [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
