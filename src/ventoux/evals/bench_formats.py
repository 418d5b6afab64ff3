"""What quantizing attention and head while loading does to a model: bytes, and the distance of its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ventoux.checkpoint import compare
from ventoux.checkpoint.files import Checkpoint, narrow
from ventoux.checkpoint.load import Progress
from ventoux.ops.spec import Operators
from ventoux.plan import BYTES_PER_VALUE


def formats(
    checkpoint: Checkpoint,
    ops: Operators,
    chosen: Sequence[tuple[str, str]],
    prompts: torch.Tensor,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Loads the model as stored, then with each choice of (attention, head), one at a time, and compares logits.

    Args:
        prompts: Token ids [prompts, tokens].

    Raises:
        CheckpointError: a choice cannot be had; before anything is loaded.
        ConfigError: the memory does not hold the model.
    """
    narrowed = [narrow(checkpoint, {"attention": attention, "head": head}) for attention, head in chosen]
    compare.check_memory(checkpoint)
    dtype = compare.compute_dtype(checkpoint)
    source = compare.logits_of(checkpoint, ops, dtype, prompts, progress)
    rows = []
    for (attention, head), variant in zip(chosen, narrowed, strict=True):
        found = compare.divergence(source, compare.logits_of(variant, ops, dtype, prompts, progress))
        weights = variant.weights()
        plain_bytes = weights.dense_parameters * BYTES_PER_VALUE[str(dtype).removeprefix("torch.")]
        rows.append(
            {
                "attention": attention,
                "head": head,
                "weight_bytes": plain_bytes + weights.quantized_bytes,
                "mean_kl": found.mean_kl,
                "max_kl": found.max_kl,
                "same_top_token": found.same_top_token,
            }
        )
    return rows
