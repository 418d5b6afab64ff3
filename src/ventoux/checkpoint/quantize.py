"""Writing a checkpoint with FP8 or NVFP4 weights, in the published layouts, one parameter in memory at a time.

What is written can be read by others: FP8 with one scale per matrix in either layout (Hugging Face: one per expert),
NVFP4 as compressed-tensors packs it, native. Scales come from the weights alone; there are no activation scales, so
that readers use weight-only arithmetic or scale activations as they come.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ventoux.checkpoint.convert import check_target
from ventoux.checkpoint.files import Checkpoint, canonical_prefixes, open_checkpoint, pieces_of
from ventoux.checkpoint.keys import Layout, QuantFormat
from ventoux.checkpoint.reader import halves_from_pairs, part_of, read_all, stored_dtype
from ventoux.checkpoint.schemes import compressed_tensors_block, fp8_block
from ventoux.checkpoint.stored import GROUP, Held, named, piece_shape
from ventoux.checkpoint.write import MAX_SHARD_BYTES, PlannedTensor, Progress, copy_side_files, write_tensors
from ventoux.errors import CheckpointError
from ventoux.model.tensors import Part, Piece, TensorRow
from ventoux.ops.formats import FP8, Fp8Weight, Nvfp4Weight, Weight, dense, quantize_fp8, quantize_nvfp4

Choice = Literal["fp8", "nvfp4", "none"]
PARTIAL = ".partial"


@dataclass(frozen=True)
class PartError:
    """What quantizing did to one part of the model: root mean square of the differences, and as a share of the root
    mean square of the weights."""

    part: Part
    format: QuantFormat
    num_parameters: int
    rmse: float
    relative_rmse: float


@dataclass(frozen=True)
class Quantized:
    """The checkpoint that was written, opened, and its errors by part."""

    checkpoint: Checkpoint
    source_bytes: int
    errors: tuple[PartError, ...]


def quantize(
    src: Path | str,
    dst: Path | str,
    form: Literal["fp8", "nvfp4"],
    *,
    attention: Choice | None = None,
    head: Choice = "none",
    progress: Progress | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Quantized:
    """Writes the checkpoint in `src` to `dst` with quantized experts, shared experts and dense layers.

    Everything is written to `dst` + ".partial" first and renamed when it is whole. With all parts in FP8 the layout is
    that of the source; NVFP4 is written native. An FP8 source can become NVFP4; its other linears are then plain bf16.

    Args:
        attention: Format of attention's projections; None does as the published files: FP8 with FP8, plain with NVFP4.
        head: Format of the output head; published files have it plain.
        progress: Called with (bytes written, bytes in all).

    Raises:
        CheckpointError: the source is no good, is quantized already or has widths that NVFP4 cannot group; `dst` is in
            use or cannot be replaced as a whole; or it could not be written (disk full). Nothing is left in `dst` then.
    """
    src, dst = Path(src), Path(dst).resolve()  # of a symbolic link, the folder behind it is replaced
    check_target(src, dst)
    if dst == Path.cwd() or dst.is_mount():
        raise CheckpointError(str(dst), ["is the current folder or where a disk is mounted; name a folder inside it"])
    checkpoint = open_checkpoint(src)
    formats = _formats(checkpoint, form, attention, head)
    writer = _Writer(checkpoint, formats)
    partial = dst.with_name(dst.name + PARTIAL)
    plan = list(writer.plan())
    _check_room(partial, sum(item.nbytes for item in plan))
    try:
        write_tensors(
            partial,
            checkpoint.config,
            writer.layout,
            plan,
            writer.tensors(),
            quantization=writer.block(),
            max_shard_bytes=max_shard_bytes,
            progress=progress,
        )
        copy_side_files(src, partial)
        open_checkpoint(partial, writer.layout)
    except BaseException as error:
        # Whatever went wrong, an interrupt included: half a checkpoint helps nobody and may be what fills the disk.
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise CheckpointError(str(partial), [f"cannot be written: {error}"]) from error
        raise
    try:
        os.replace(partial, dst)
    except OSError as error:
        raise CheckpointError(str(dst), [f"{error}; what was to stand here is whole, in {partial}"]) from error
    return Quantized(open_checkpoint(dst, writer.layout), checkpoint.stored_bytes, writer.errors())


def _check_room(partial: Path, nbytes: int) -> None:
    if partial.exists():
        problem = "is there already, left by a run that was killed or used by one that still runs; remove it first"
        raise CheckpointError(str(partial), [problem])
    parent = next(folder for folder in partial.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(parent).free
    if nbytes > free:
        needed, there = (f"{n / 2**30:.1f} GiB" for n in (nbytes, free))
        raise CheckpointError(str(partial), [f"writing needs {needed}, and {there} are free on that disk"])


def _formats(
    checkpoint: Checkpoint, form: Literal["fp8", "nvfp4"], attention: Choice | None, head: Choice
) -> dict[Part, QuantFormat]:
    """The format of each part that could be quantized and that this model has.

    Raises CheckpointError for what cannot be done, all of it at once.
    """
    where, there = str(checkpoint.folder), {row.part for row in checkpoint.rows}
    if attention is None:
        attention = "fp8" if form == "fp8" else "none"
    wanted: list[tuple[Part, Choice]] = [
        *(("experts", form), ("shared_experts", form), ("dense", form)),
        *(("attention", attention), ("head", head)),
    ]
    formats: dict[Part, QuantFormat] = {
        part: "bf16" if choice == "none" else choice for part, choice in wanted if part in there
    }
    problems = []
    if head != "none" and "head" not in there:
        problems.append("the head cannot be quantized: this model has none of its own")
    if "nvfp4" in checkpoint.quant_formats:
        problems.append("the weights are NVFP4 already; start from a bf16 or FP8 checkpoint")
    elif "fp8" in checkpoint.quant_formats and "nvfp4" not in formats.values():
        problems.append("the weights are FP8 already")
    problems += [
        f"{row.path} is {row.shape[-1]} wide; NVFP4 needs a width divisible by {GROUP}"
        for row in checkpoint.rows
        if formats.get(row.part) == "nvfp4" and row.shape[-1] % GROUP
    ]
    if problems:
        raise CheckpointError(where, problems)
    return formats


@dataclass
class _Sums:
    squared_error: float = 0.0
    squared: float = 0.0
    count: int = 0


class _Writer:
    """Plan and data of the new checkpoint, and the errors that were made on the way."""

    def __init__(self, checkpoint: Checkpoint, formats: dict[Part, QuantFormat]):
        self._checkpoint = checkpoint
        self._formats = formats
        self._compressed = "nvfp4" in formats.values()
        self.layout: Layout = "native" if self._compressed else checkpoint.layout
        self._sums: defaultdict[Part, _Sums] = defaultdict(_Sums)
        prefixes = canonical_prefixes(checkpoint.config)
        self._targets = {row.path: self._held(row, pieces_of(row, self.layout, prefixes)) for row in checkpoint.rows}

    def _held(self, row: TensorRow, pieces: tuple[Piece, ...]) -> list[Held]:
        form = self._format(row)
        held = [named(row, piece, form, self.layout, compressed=self._compressed) for piece in pieces]
        return [replace(piece, activation_scale=None) for piece in held]

    def _format(self, row: TensorRow) -> QuantFormat:
        return self._formats.get(row.part, "bf16")

    def block(self) -> dict[str, Any]:
        if self._compressed:
            return compressed_tensors_block(self._formats)
        return fp8_block(self.layout, static=False, head=self._formats.get("head") == "fp8")

    def errors(self) -> tuple[PartError, ...]:
        return tuple(
            PartError(
                part,
                self._formats[part],
                sums.count,
                (sums.squared_error / sums.count) ** 0.5,
                (sums.squared_error / sums.squared) ** 0.5 if sums.squared else 0.0,
            )
            for part, sums in self._sums.items()
        )

    def plan(self) -> Iterator[PlannedTensor]:
        for row in self._checkpoint.rows:
            for held in self._targets[row.path]:
                for name, shape, dtype in self._shapes(row, held):
                    yield PlannedTensor(name, shape, dtype, row.path)

    def _shapes(self, row: TensorRow, held: Held) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        shape = piece_shape(row, held.piece)
        if held.format == "bf16":
            is_plain = self._checkpoint.format_of(row) == "bf16"
            yield held.weights, shape, stored_dtype(self._checkpoint, row) if is_plain else torch.bfloat16
            return
        assert held.scale is not None
        if held.format == "fp8":
            yield held.weights, shape, FP8
            # compressed-tensors has [1] where the others have a scalar.
            fused = (shape[0], len(row.native) // shape[0], 1)
            scale = fused if len(shape) == 3 else (1,) if self._compressed else ()
            yield held.scale, scale, torch.float32
            return
        assert held.global_scale is not None
        *rows, width = shape
        yield held.weights, (*rows, width // 2), torch.uint8
        yield held.scale, (*rows, width // GROUP), FP8
        yield held.global_scale, (1,), torch.float32

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for row, weight in read_all(self._checkpoint):
            make = {"bf16": self._plain, "fp8": self._fp8, "nvfp4": self._nvfp4}[self._format(row)]
            for held in self._targets[row.path]:
                for tensor in make(row, weight, held.piece):
                    yield row.path, tensor

    def _plain(self, row: TensorRow, weight: Weight, piece: Piece) -> list[torch.Tensor]:
        tensor = dense(weight, torch.bfloat16)
        if self.layout == "hf" and row.vision_heads:
            tensor = halves_from_pairs(tensor, row.vision_heads)
        return [part_of(tensor, piece)]

    def _fp8(self, row: TensorRow, weight: Weight, piece: Piece) -> list[torch.Tensor]:
        if piece.expert is None and len(weight.shape) == 3:
            # All experts in one tensor: each matrix has its own scale, w1 and w3 too.
            codes, scales = torch.empty(weight.shape, dtype=FP8), []
            for matrix in row.native:
                part, scale = self._fp8(row, weight, matrix)
                part_of(codes, matrix).copy_(part)
                scales.append(scale)
            return [codes, torch.stack(scales).reshape(weight.shape[0], -1, 1)]
        values = _values(weight, piece)
        codes, scale = quantize_fp8(values)
        self._note(row.part, values, Fp8Weight(codes, scale.expand(len(codes))))
        return [codes, scale.reshape(1) if self._compressed else scale]

    def _nvfp4(self, row: TensorRow, weight: Weight, piece: Piece) -> list[torch.Tensor]:
        values = _values(weight, piece)
        codes, group_scale, global_scale = quantize_nvfp4(values)
        row_scale = global_scale.reciprocal().expand(len(codes))
        self._note(row.part, values, Nvfp4Weight(codes, group_scale, row_scale))
        return [codes, group_scale, global_scale]

    def _note(self, part: Part, values: torch.Tensor, quantized: Fp8Weight | Nvfp4Weight) -> None:
        sums = self._sums[part]
        sums.squared_error += _sum_of_squares(quantized.dequantize(torch.float32) - values)
        sums.squared += _sum_of_squares(values)
        sums.count += values.numel()


def _sum_of_squares(values: torch.Tensor) -> float:
    """In units of the largest, whose square may be more than fp32 holds. A matrix has at most 5e8 values: few enough
    for torch's pairwise sums."""
    largest = values.abs().max().item()
    return (values / largest).square().sum().item() * largest**2 if largest else 0.0


def _values(weight: Weight, piece: Piece) -> torch.Tensor:
    """One matrix in fp32."""
    if isinstance(weight, torch.Tensor):
        return part_of(weight, piece).float()
    assert isinstance(weight, Fp8Weight), "an NVFP4 source was refused"
    return Fp8Weight(part_of(weight.codes, piece), part_of(weight.row_scale, piece)).dequantize(torch.float32)
