"""From an opened checkpoint to a model: built without memory, then filled parameter by parameter.

Several threads read. Peak memory is the weights plus one 8 MiB staging chunk for each: bytes are read straight into the
parameters' own memory, codes of quantized weights included.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import nn

from ventoux.checkpoint.files import Checkpoint
from ventoux.checkpoint.reader import ShardReader
from ventoux.errors import CheckpointError
from ventoux.hardware import probe_hardware
from ventoux.model.eagle import Draft
from ventoux.model.mistral4 import Mistral4
from ventoux.model.tensors import TensorRow
from ventoux.ops.formats import Weight
from ventoux.ops.spec import Operators

Progress = Callable[[int, int], None]
# Parameters that are read at the same time: one thread copies 2 to 3 GB/s out of the page cache, and judges the values.
MAX_READERS = 8
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

    Quantized linears keep their codes: their `weight` (of experts `gate_up_proj`, `down_proj`) is a `Fp8Weight` or
    `Nvfp4Weight` instead of a parameter.

    Args:
        progress: Called with (bytes read, bytes in all) after every chunk.

    Raises:
        CheckpointError: the checkpoint is a draft, a file changed under our hands, or weights or scales hold values
            that they must not; all such tensors are listed.
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
    read = (name for held in checkpoint.held.values() for piece in held for name in piece.names_read)
    total = sum(checkpoint.stored[name].nbytes for name in read)
    # A warm page cache makes restarts fast, as long as there is room for the weights twice.
    hardware = probe_hardware()
    drop_cache = 2 * total > hardware.available_bytes
    done, lock = 0, threading.Lock()

    def advance(nbytes: int) -> None:
        nonlocal done
        with lock:
            done += nbytes
            if progress is not None:
                progress(done, total)

    def load(row: TensorRow) -> tuple[Weight, list[str]]:
        reader = ShardReader(checkpoint, advance, drop_cache)
        return reader.load(row, dtype, device), reader.problems

    problems: list[str] = []
    pool = ThreadPoolExecutor(min(MAX_READERS, hardware.num_cores), "ventoux-load")
    try:
        for row, (weight, found) in zip(checkpoint.rows, pool.map(load, checkpoint.rows), strict=True):
            owner, _, name = row.path.rpartition(".")
            _place(model.get_submodule(owner), name, weight)
            problems += found
    finally:
        # After an error: what has not begun need not.
        pool.shutdown(cancel_futures=True)
    if problems:
        raise CheckpointError(str(checkpoint.folder), problems)


def _place(module: nn.Module, name: str, weight: Weight) -> None:
    """Codes are no parameter: nothing can be learnt of them, and `parameters()` is for those who train or cast."""
    if isinstance(weight, torch.Tensor):
        setattr(module, name, nn.Parameter(weight, requires_grad=False))
        return
    delattr(module, name)
    setattr(module, name, weight)
