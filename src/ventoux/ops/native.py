"""The compiled module of csrc/, if it was installed, and memory for the weights that it streams through."""

from __future__ import annotations

from collections.abc import Sequence

import torch

try:
    from ventoux.ops import _native as native
except ImportError:  # installed without a compiler
    native = None


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """Memory for weights: as torch.empty, but asking for huge pages, without which a product that streams through
    gigabytes waits for the TLB. Does nothing special where there are none."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    if native is not None and tensor.device.type == "cpu":
        native.use_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor
