"""Weights from files: plain reads of one parameter at a time, in our row order.

Never mmap: mapped weights are page cache, which the kernel may evict and read again in the middle of a step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import torch

from ventoux.checkpoint.files import Checkpoint
from ventoux.checkpoint.shards import FLOAT_DTYPES, StoredTensor
from ventoux.errors import CheckpointError
from ventoux.model.tensors import Piece, TensorRow

TORCH_DTYPES: dict[str, torch.dtype] = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
assert set(TORCH_DTYPES) == set(FLOAT_DTYPES)
# One read: large enough for the disk, small enough for a smooth progress bar and for staging casts.
CHUNK_BYTES = 8 * 2**20


def stored_dtype(checkpoint: Checkpoint, row: TensorRow) -> torch.dtype:
    """The type in which a parameter is stored (pieces never differ: opening checked it)."""
    return TORCH_DTYPES[checkpoint.stored[checkpoint.pieces(row)[0].name].dtype]


def read_all(checkpoint: Checkpoint) -> Iterator[tuple[TensorRow, torch.Tensor]]:
    """All parameters as stored, each of `row.shape`, one at a time, in table order."""
    reader = ShardReader()
    for row in checkpoint.rows:
        target = torch.empty(row.shape, dtype=stored_dtype(checkpoint, row))
        read_into(checkpoint, row, target, reader)
        yield row, target


def read_into(checkpoint: Checkpoint, row: TensorRow, target: torch.Tensor, reader: ShardReader) -> None:
    """Fills a tensor of `row.shape` on any device with one parameter, cast to its type."""
    pieces = checkpoint.pieces(row)
    if checkpoint.layout == "hf" and row.vision_heads:
        halves = torch.empty(row.shape, dtype=stored_dtype(checkpoint, row))
        reader.read_into(checkpoint.stored[pieces[0].name], halves)
        target.copy_(pairs_from_halves(halves, row.vision_heads))
        return
    for piece in pieces:
        reader.read_into(checkpoint.stored[piece.name], part_of(target, piece))


def part_of(tensor: torch.Tensor, piece: Piece) -> torch.Tensor:
    """The part of a parameter (a view) that one piece holds."""
    part = tensor if piece.expert is None else tensor[piece.expert]
    return part if piece.rows is None else part[piece.rows[0] : piece.rows[1]]


def pairs_from_halves(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Hugging Face vision q/k rows, [first halves | second halves] of each head, to neighbours that rotate together.

    Example: one head of 4 rows a0 a1 b0 b1 (lane k turns a_k with b_k) becomes a0 b0 a1 b1.
    """
    return rows.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


def halves_from_pairs(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """The inverse of `pairs_from_halves`."""
    return rows.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).reshape(rows.shape)


class ShardReader:
    """Fills tensors from shards; one chunk of staging memory serves all casts.

    Args:
        advance: Called with the number of bytes of each finished read.
        drop_cache: Tell the kernel that the pages just read will not be needed again.
    """

    def __init__(self, advance: Callable[[int], None] | None = None, drop_cache: bool = False):
        self._advance = advance
        self._drop_cache = drop_cache and hasattr(os, "posix_fadvise")
        self._staging: torch.Tensor | None = None

    def read_into(self, stored: StoredTensor, target: torch.Tensor) -> None:
        """Fills the contiguous `target` (same number of values) with a stored tensor, cast to the target's type.

        With equal types and a target in main memory, bytes go straight into it; else through the staging chunk.

        Raises:
            CheckpointError: the file ended early or could not be read.
        """
        flat = target.view(-1)
        try:
            fd = os.open(stored.file, os.O_RDONLY)
            try:
                self._read(fd, stored.offset, flat, TORCH_DTYPES[stored.dtype])
                if self._drop_cache:
                    os.posix_fadvise(fd, stored.offset, stored.nbytes, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
        except OSError as error:
            raise CheckpointError(str(stored.file), [f"cannot be read: {error}"]) from error

    def _read(self, fd: int, offset: int, flat: torch.Tensor, dtype: torch.dtype) -> None:
        direct = flat.dtype == dtype and flat.device.type == "cpu"
        step = CHUNK_BYTES // dtype.itemsize
        for first in range(0, flat.numel(), step):
            part = flat[first : first + step]
            chunk = part if direct else self._stage(part.numel(), dtype)
            _read_exactly(fd, chunk.view(torch.uint8).numpy().data, offset + first * dtype.itemsize)
            if not direct:
                part.copy_(chunk)
            if self._advance is not None:
                self._advance(part.numel() * dtype.itemsize)

    def _stage(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        if self._staging is None:
            self._staging = torch.empty(CHUNK_BYTES, dtype=torch.uint8)
        return self._staging.view(dtype)[:count]


def _read_exactly(fd: int, view: memoryview, offset: int) -> None:
    """A read may return less than asked for; zero bytes mean that the file has shrunk since it was opened."""
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            raise OSError(f"the file ends at byte {offset + done}, {len(view) - done} bytes early")
        done += count
