"""Native <-> Hugging Face layout, bit-exact there and back: names, fusing of experts and order of vision rows change,
numbers never do. What the other layout cannot hold is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ventoux.checkpoint.files import Checkpoint, canonical_prefixes, open_checkpoint, pieces_of
from ventoux.checkpoint.keys import Layout
from ventoux.checkpoint.reader import TORCH_DTYPES, ShardReader, halves_from_pairs, part_of, stored_dtype
from ventoux.checkpoint.schemes import fp8_block
from ventoux.checkpoint.stored import Held, named, piece_shape
from ventoux.checkpoint.write import (
    MAX_SHARD_BYTES,
    PlannedTensor,
    copy_side_files,
    refuse_hf_draft,
    remove_checkpoint,
    write_tensors,
)
from ventoux.errors import CheckpointError
from ventoux.model.tensors import TensorRow


def convert(
    src: Path | str,
    dst: Path | str,
    layout: Layout | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    force: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Checkpoint:
    """Writes the checkpoint in `src` to `dst` in `layout` (default: the other one) and opens the result.

    Holds one parameter in memory at a time. Tokenizer, prompts and templates are copied along. Quantized weights keep
    their codes and scales.

    Args:
        progress: Called with (bytes written, bytes in all).
        force: Replace a checkpoint that `dst` already holds; other files there stay.

    Raises:
        CheckpointError: the source is no good, the layout cannot hold what it holds (NVFP4 in the Hugging Face layout,
            FP8 experts whose w1 and w3 have different activation scales, a draft), or `dst` is the source, a file or a
            folder with something in it.
    """
    src, dst = Path(src), Path(dst)
    checkpoint = open_checkpoint(src)
    if layout is None:
        layout = "hf" if checkpoint.layout == "native" else "native"
    check_target(src, dst, force)
    refuse_hf_draft(dst, checkpoint.config, layout)
    converter = _Converter(checkpoint, layout)
    if dst.exists():
        remove_checkpoint(dst)
    write_tensors(
        dst,
        checkpoint.config,
        layout,
        list(converter.plan()),
        converter.tensors(),
        quantization=_block(checkpoint, layout),
        max_shard_bytes=max_shard_bytes,
        progress=progress,
    )
    copy_side_files(src, dst)
    return open_checkpoint(dst, layout)


def check_target(src: Path, dst: Path, force: bool = False) -> None:
    """Raises CheckpointError unless `dst` is a folder to be made, an empty one, or one that `force` may replace."""
    if dst.exists() and not dst.is_dir():
        raise CheckpointError(str(dst), ["is a file; name a folder to write to"])
    if dst.resolve() == src.resolve():
        raise CheckpointError(str(dst), ["is the source itself; name another folder"])
    if dst.is_dir() and any(dst.iterdir()) and not force:
        raise CheckpointError(
            str(dst), ["the folder is not empty; name another, or use force to replace what it holds"]
        )


def _is_compressed(checkpoint: Checkpoint) -> bool:
    blocks = (checkpoint.quantization or {}).values()
    return any(block.get("quant_method") == "compressed-tensors" for block in blocks)


def _block(checkpoint: Checkpoint, layout: Layout) -> dict[str, Any] | None:
    """The quantization block of the result. compressed-tensors spells its own the same way in both layouts."""
    if checkpoint.quantization is None or layout == checkpoint.layout or _is_compressed(checkpoint):
        return checkpoint.quantization
    static = any(piece.activation_scale is not None for held in checkpoint.held.values() for piece in held)
    head = any(row.part == "head" and checkpoint.format_of(row) == "fp8" for row in checkpoint.rows)
    return fp8_block(layout, static=static, head=head)


def _are_alike(source: tuple[Held, ...], targets: tuple[Held, ...]) -> bool:
    """Whether both cut a parameter into the same pieces."""
    return [(s.piece.expert, s.piece.rows) for s in source] == [(t.piece.expert, t.piece.rows) for t in targets]


class _Converter:
    """Plan and data of the other layout. Making one refuses what that layout cannot hold, all of it at once."""

    def __init__(self, checkpoint: Checkpoint, layout: Layout):
        self._checkpoint = checkpoint
        self._layout: Layout = layout
        self._reader = ShardReader(checkpoint)
        self._targets = {row.path: self._target(row) for row in checkpoint.rows}
        # Scales of FP8 experts that are fused or taken apart: [experts, 1], or [experts, 2] for w1 and w3.
        self._scales: dict[str, dict[str, torch.Tensor]] = {}
        problems = []
        if layout == "hf" and ("nvfp4" in checkpoint.quant_formats or _is_compressed(checkpoint)):
            problems.append("NVFP4 and compressed-tensors weights are written in the native layout only")
        else:
            for row in checkpoint.rows:
                if not _are_alike(checkpoint.held[row.path], self._targets[row.path]):
                    problems += self._gather_scales(row) if checkpoint.format_of(row) == "fp8" else []
            problems += self._reader.problems
        if problems:
            raise CheckpointError(str(checkpoint.folder), problems)

    def _target(self, row: TensorRow) -> tuple[Held, ...]:
        """What is to hold a parameter."""
        form, compressed = self._checkpoint.format_of(row), _is_compressed(self._checkpoint)
        pieces = pieces_of(row, self._layout, canonical_prefixes(self._checkpoint.config))
        targets = [named(row, piece, form, self._layout, compressed=compressed) for piece in pieces]
        source = self._checkpoint.held[row.path]
        if len(source) == len(targets):
            # Some weights may come with activation scales and others without.
            there = [piece.activation_scale is not None for piece in source]
        else:
            there = [source[0].activation_scale is not None] * len(targets)
        return tuple(
            target if has_scale else replace(target, activation_scale=None)
            for target, has_scale in zip(targets, there, strict=True)
        )

    def _gather_scales(self, row: TensorRow) -> list[str]:
        """Reads the scales of all experts of one parameter; returns why the other layout cannot hold them."""
        source, num_experts = self._checkpoint.held[row.path], row.shape[0]
        found = self._scales[row.path] = {}
        for role in ("scale", "activation_scale"):
            names = [name for piece in source if (name := getattr(piece, role)) is not None]
            if not names:
                continue
            if len(names) < len(source):
                return [f"{row.path} has {role}s for some experts and none for others"]
            each = [self._reader.read_stored(name).reshape(-1) for name in names]
            if len({(scale.dtype, len(scale)) for scale in each}) > 1:
                return [f"{row.path} has {role}s of different types or shapes"]
            values = torch.cat(each)
            values = values.expand(num_experts) if len(values) == 1 else values
            if len(values) not in (num_experts, 2 * num_experts) or (len(names) > 1 and len(each[0]) > 1):
                return [f"{row.path} has a {role} per row; the other layout keeps one per matrix"]
            values = values.reshape(num_experts, -1)
            if (values == values[:, :1]).all():
                values = values[:, :1]
            if role == "activation_scale" and values.shape[1] > 1:
                return [f"{row.path}: w1 and w3 have different activation scales; the other layout keeps one for both"]
            found[role] = values
        return []

    def plan(self) -> Iterator[PlannedTensor]:
        for row in self._checkpoint.rows:
            source, targets = self._checkpoint.held[row.path], self._targets[row.path]
            if _are_alike(source, targets):
                pairs = [
                    (s, t)
                    for held, target in zip(source, targets, strict=True)
                    for s, t in zip(held.names, target.names, strict=True)
                ]
                for from_name, name in pairs:
                    stored = self._checkpoint.stored[from_name]
                    yield PlannedTensor(name, stored.shape, TORCH_DTYPES[stored.dtype], row.path)
                continue
            for target in targets:
                dtype = stored_dtype(self._checkpoint, row)
                yield PlannedTensor(target.weights, piece_shape(row, target.piece), dtype, row.path)
                for role, values in self._scales.get(row.path, {}).items():
                    part = _scale_of(values, role, target)
                    yield PlannedTensor(getattr(target, role), tuple(part.shape), part.dtype, row.path)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The data of the plan, in its order."""
        for row in self._checkpoint.rows:
            for tensor in self._tensors(row):
                self._reader.raise_problems()
                yield row.path, tensor

    def _tensors(self, row: TensorRow) -> Iterator[torch.Tensor]:
        source, targets = self._checkpoint.held[row.path], self._targets[row.path]
        if _are_alike(source, targets) and self._checkpoint.format_of(row) != "bf16":
            yield from (self._reader.read_stored(name) for piece in source for name in piece.names)
            return
        whole = self._reader.read(row, stored_dtype(self._checkpoint, row))
        if self._layout == "hf" and row.vision_heads:
            whole = halves_from_pairs(whole, row.vision_heads)
        for target in targets:
            yield part_of(whole, target.piece)
            for role, values in self._scales.get(row.path, {}).items():
                yield _scale_of(values, role, target)


def _scale_of(values: torch.Tensor, role: str, target: Held) -> torch.Tensor:
    """The scale of one expert's matrix, a scalar; or of all experts: [E, 1, 1], where w1 and w3 differ [E, 2, 1]; one
    [E] for activations."""
    if target.piece.expert is None:
        return values.squeeze(1) if role == "activation_scale" else values.unsqueeze(-1)
    is_second = target.piece.rows is not None and target.piece.rows[0] > 0
    return values[target.piece.expert, -1 if is_second else 0]
