"""From an opened checkpoint to a model: built without memory, then filled parameter by parameter.

Peak memory is the weights plus one 8 MiB staging chunk: bytes are read straight into the parameters' own memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from ventoux.checkpoint.files import Checkpoint
from ventoux.checkpoint.reader import ShardReader, read_into
from ventoux.errors import CheckpointError
from ventoux.hardware import probe_hardware
from ventoux.model.eagle import Draft
from ventoux.model.mistral4 import Mistral4
from ventoux.ops.spec import Operators

Progress = Callable[[int, int], None]
Model = TypeVar("Model", bound=nn.Module)


def load_model(
    checkpoint: Checkpoint,
    ops: Operators,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Mistral4:
    """The target model, weights in `dtype` on `device`, ready for inference (no gradients, eval mode).

    Args:
        progress: Called with (bytes read, bytes in all) after every chunk.

    Raises:
        CheckpointError: the checkpoint is a draft, is in a number format that cannot be loaded, or a file changed
            under our hands.
    """
    if checkpoint.config.is_draft:
        raise CheckpointError(str(checkpoint.folder), ["this is an EAGLE draft, which needs a target model to run"])
    with torch.device("meta"):
        model = Mistral4(checkpoint.config, ops)
    _fill(model, checkpoint, dtype, torch.device(device), progress)
    if checkpoint.config.text.tie_word_embeddings:
        tied = model.language_model.embed_tokens.weight
        model.lm_head.register_parameter("weight", nn.Parameter(tied, requires_grad=False))
    return model.eval()


def load_draft(
    checkpoint: Checkpoint,
    ops: Operators,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Draft:
    """An EAGLE draft; arguments and errors as in `load_model`. Embeddings and head are the target's."""
    if not checkpoint.config.is_draft:
        raise CheckpointError(str(checkpoint.folder), ["this is a whole model, not an EAGLE draft"])
    with torch.device("meta"):
        draft = Draft(checkpoint.config.text, ops)
    _fill(draft, checkpoint, dtype, torch.device(device), progress)
    return draft.eval()


def _fill(
    model: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, progress: Progress | None
) -> None:
    checkpoint.require_loadable()
    total = sum(checkpoint.stored[p.name].nbytes for row in checkpoint.rows for p in checkpoint.pieces(row))
    # A warm page cache makes restarts fast, as long as there is room for the weights twice.
    drop_cache = 2 * total > probe_hardware().available_bytes
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    reader = ShardReader(advance, drop_cache)
    for row in checkpoint.rows:
        tensor = torch.empty(row.shape, dtype=dtype, device=device)
        read_into(checkpoint, row, tensor, reader)
        owner, _, name = row.path.rpartition(".")
        setattr(model.get_submodule(owner), name, nn.Parameter(tensor, requires_grad=False))
