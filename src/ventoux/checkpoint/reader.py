"""Weights from files: plain reads of one parameter at a time, in our row order.

Never mmap: mapped weights are page cache, which the kernel may evict and read again in the middle of a step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch

from ventoux.checkpoint.files import Checkpoint
from ventoux.checkpoint.shards import FLOAT_DTYPES, StoredTensor
from ventoux.checkpoint.stored import Held, piece_shape
from ventoux.errors import CheckpointError
from ventoux.model.tensors import Piece, TensorRow
from ventoux.ops.formats import (
    E2M1_MAX,
    FP8,
    FP8_MAX,
    GROUP,
    Fp8Weight,
    Nvfp4Weight,
    QuantizedWeight,
    Weight,
    to_fp8,
    to_nvfp4,
)
from ventoux.ops.native import empty

TORCH_DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F8_E4M3": FP8,
    "U8": torch.uint8,
}
assert set(FLOAT_DTYPES) < set(TORCH_DTYPES)
# One read: large enough for the disk, small enough for a smooth progress bar and for staging casts.
CHUNK_BYTES = 8 * 2**20
# The bits of each type's first number that is not finite: infinity, or NaN (e4m3fn). All larger ones are NaN.
_NOT_FINITE: dict[torch.dtype, tuple[type[np.signedinteger], type[np.unsignedinteger], int]] = {
    torch.bfloat16: (np.int16, np.uint16, 0x7F80),
    torch.float16: (np.int16, np.uint16, 0x7C00),
    torch.float32: (np.int32, np.uint32, 0x7F800000),
    FP8: (np.int8, np.uint8, 0x7F),
}
# Bytes judged at a time, so that the second look finds them in a core's second-level cache.
_JUDGED_BYTES = 256 * 2**10


def stored_dtype(checkpoint: Checkpoint, row: TensorRow) -> torch.dtype:
    """The type in which a parameter's values are stored (pieces never differ: opening checked it)."""
    return TORCH_DTYPES[checkpoint.stored[checkpoint.held[row.path][0].weights].dtype]


def read_all(checkpoint: Checkpoint) -> Iterator[tuple[TensorRow, Weight]]:
    """All parameters as stored, each of `row.shape`, one at a time, in table order.

    Raises:
        CheckpointError: at the first parameter that has NaN, infinity or an impossible scale.
    """
    reader = ShardReader(checkpoint)
    for row in checkpoint.rows:
        dtype = stored_dtype(checkpoint, row)
        weight = reader.read(row, dtype) if checkpoint.format_of(row) == "bf16" else reader.read_quantized(row)
        reader.raise_problems()
        yield row, weight


def part_of(tensor: torch.Tensor, piece: Piece) -> torch.Tensor:
    """The part of a parameter, or of its codes or scales, (a view) that one piece holds."""
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
    """Reads parameters of one checkpoint; one chunk of staging memory serves all casts.

    Values that no checkpoint may hold (NaN, infinity, scales that are not positive) are collected in `problems`.

    Args:
        advance: Called with the number of bytes of each finished read.
        drop_cache: Tell the kernel that the pages just read will not be needed again.
    """

    def __init__(self, checkpoint: Checkpoint, advance: Callable[[int], None] | None = None, drop_cache: bool = False):
        self.problems: list[str] = []
        self._checkpoint = checkpoint
        self._advance = advance
        self._drop_cache = drop_cache and hasattr(os, "posix_fadvise")
        self._staging: torch.Tensor | None = None

    def raise_problems(self) -> None:
        """Raises CheckpointError with all problems met so far, if there are any."""
        if self.problems:
            raise CheckpointError(str(self._checkpoint.folder), self.problems)

    def load(self, row: TensorRow, dtype: torch.dtype, device: torch.device | str = "cpu") -> Weight:
        """One parameter as the model wants it: quantized as stored, quantized now, or dense in `dtype`."""
        stored, wanted = self._checkpoint.format_of(row), self._checkpoint.loaded_as(row)
        if stored == wanted:
            return self.read(row, dtype, device) if stored == "bf16" else self.read_quantized(row, device)
        if wanted == "bf16":
            return self.read_quantized(row).dequantize(dtype).to(device)
        plain = self.read(row, stored_dtype(self._checkpoint, row), device)
        if self.problems:
            return plain  # NaN has no codes; the caller refuses the checkpoint
        return to_fp8(plain) if wanted == "fp8" else to_nvfp4(plain)

    def read(self, row: TensorRow, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
        """A plain parameter, or the codes of an FP8 one, cast to `dtype`; bytes go straight into its own memory."""
        target = empty(row.shape, dtype, device)
        held = self._checkpoint.held[row.path]
        if self._checkpoint.layout == "hf" and row.vision_heads:
            halves = torch.empty(row.shape, dtype=stored_dtype(self._checkpoint, row))
            self.read_into(held[0].weights, halves)
            return target.copy_(pairs_from_halves(halves, row.vision_heads))
        for piece in held:
            self.read_into(piece.weights, part_of(target, piece.piece))
        return target

    def read_quantized(self, row: TensorRow, device: torch.device | str = "cpu") -> QuantizedWeight:
        """A parameter in the format in which it is stored; codes and group scales go straight into their memory."""
        held = self._checkpoint.held[row.path]
        row_scale = torch.empty(row.shape[:-1], device=device)
        if self._checkpoint.format_of(row) == "fp8":
            for piece in held:
                part_of(row_scale, piece.piece).copy_(self._fp8_rows(row, piece))
            return Fp8Weight(self.read(row, FP8, device), row_scale)
        *rows, width = row.shape
        weight = Nvfp4Weight(
            empty((*rows, width // 2), torch.uint8, device),
            empty((*rows, width // GROUP), FP8, device),
            row_scale,
        )
        for piece in held:
            assert piece.scale is not None and piece.global_scale is not None
            self.read_into(piece.weights, part_of(weight.codes, piece.piece))
            self.read_into(piece.scale, part_of(weight.group_scale, piece.piece), signed=False)
            part_of(row_scale, piece.piece).copy_(self._factor(piece.global_scale, "nvfp4"))
        return weight

    def read_stored(self, name: str) -> torch.Tensor:
        """One stored tensor as it is."""
        stored = self._checkpoint.stored[name]
        target = torch.empty(stored.shape, dtype=TORCH_DTYPES[stored.dtype])
        self.read_into(name, target)
        return target

    def _fp8_rows(self, row: TensorRow, held: Held) -> torch.Tensor:
        """The multiplier of a piece, in any of its published shapes, repeated for each row."""
        assert held.scale is not None
        scale, shape = self._factor(held.scale, "fp8"), piece_shape(row, held.piece)[:-1]
        if scale.numel() == 1:
            return scale.reshape(()).expand(shape)
        if len(shape) == 1:
            return scale.reshape(shape)
        per_expert = scale.reshape(shape[0], -1)
        return per_expert.repeat_interleave(shape[1] // per_expert.shape[1], dim=1)

    def _factor(self, name: str, form: Literal["fp8", "nvfp4"]) -> torch.Tensor:
        """What a scale multiplies codes with, fp32: itself, or its reciprocal with NVFP4. Both must be finite, and so
        must be the largest weight that can come of it."""
        scale = torch.empty(self._checkpoint.stored[name].shape)
        self.read_into(name, scale, judge=False)
        inverse = scale.reciprocal()
        factor, largest = (scale, FP8_MAX) if form == "fp8" else (inverse, FP8_MAX * E2M1_MAX)
        bad = ~((scale > 0) & scale.isfinite() & inverse.isfinite() & (factor * largest).isfinite())
        if bad.any():
            self.problems.append(f"{name} must be more than 0 and give finite weights, is {scale[bad][0].item()}")
        return factor

    def read_into(self, name: str, target: torch.Tensor, *, signed: bool = True, judge: bool = True) -> None:
        """Fills the contiguous `target` (same number of values) with a stored tensor, cast to the target's type.

        With equal types and a target in main memory, bytes go straight into it; else through the staging chunk.

        Args:
            signed: False for scales, which may be 0 but not negative.
            judge: Note NaN and infinity in `problems`.

        Raises:
            CheckpointError: the file ended early or could not be read.
        """
        stored = self._checkpoint.stored[name]
        try:
            fd = os.open(stored.file, os.O_RDONLY)
            try:
                is_good = self._read(fd, stored, target.view(-1), signed, judge)
                if self._drop_cache:
                    os.posix_fadvise(fd, stored.offset, stored.nbytes, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
        except OSError as error:
            raise CheckpointError(str(stored.file), [f"cannot be read: {error}"]) from error
        if not is_good:
            self.problems.append(
                f"{name} holds NaN or infinite values" if signed else f"{name} holds NaN or negative scales"
            )

    def _read(self, fd: int, stored: StoredTensor, flat: torch.Tensor, signed: bool, judge: bool) -> bool:
        """False if some value is none that may be stored."""
        dtype = TORCH_DTYPES[stored.dtype]
        direct = flat.dtype == dtype and flat.device.type == "cpu"
        step = CHUNK_BYTES // dtype.itemsize
        is_good = True
        for first in range(0, flat.numel(), step):
            part = flat[first : first + step]
            chunk = part if direct else self._stage(part.numel(), dtype)
            raw = chunk.view(torch.uint8).numpy()
            _read_exactly(fd, raw.data, stored.offset + first * dtype.itemsize)
            if judge and is_good and dtype in _NOT_FINITE:
                is_good = _all_finite(raw, dtype) if signed else int(raw.max(initial=0)) < 0x7F
            if not direct:
                part.copy_(chunk)
            if self._advance is not None:
                self._advance(part.numel() * dtype.itemsize)
        return is_good

    def _stage(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        if self._staging is None:
            self._staging = torch.empty(CHUNK_BYTES, dtype=torch.uint8)
        return self._staging.view(dtype)[:count]


def _all_finite(raw: np.ndarray, dtype: torch.dtype) -> bool:
    """On the bits as integers, where what is not finite lies above what is: as signed numbers for those without a sign
    bit, as unsigned ones for those with it. 6 GB/s on one core, where isfinite does 0.07 of bf16."""
    signed, unsigned, first = _NOT_FINITE[dtype]
    sign = 1 << (8 * dtype.itemsize - 1)
    for start in range(0, len(raw), _JUDGED_BYTES):
        part = raw[start : start + _JUDGED_BYTES]
        if part.view(signed).max() >= first or part.view(unsigned).max() >= (first | sign):
            return False
    return True


def _read_exactly(fd: int, view: memoryview, offset: int) -> None:
    """A read may return less than asked for; zero bytes mean that the file has shrunk since it was opened."""
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            raise OSError(f"the file ends at byte {offset + done}, {len(view) - done} bytes early")
        done += count
