"""The latent cache: per layer one tensor [P, S, kv_lora_rank + qk_rope_head_dim], shared by all heads."""

from __future__ import annotations

import numpy as np
import torch

from ventoux.config import TextConfig


def make_latent_cache(
    config: TextConfig, num_pages: int, page_size: int, dtype: torch.dtype, device: str, *, zeroed: bool = False
) -> list[torch.Tensor]:
    """Unwritten pages cost address space only: the operating system backs them when they are first written.

    `zeroed`: slots that are read before they were ever written hold zeros. (numpy asks the system for memory that is
    zero; torch would write zeros, and so make all of it real.)
    """
    shape = (num_pages, page_size, config.latent_dim)
    if not zeroed:
        return [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
    if device != "cpu":
        return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
    raw = (num_pages, page_size, config.latent_dim * dtype.itemsize)
    return [torch.from_numpy(np.zeros(raw, np.uint8)).view(dtype) for _ in range(config.num_hidden_layers)]
