"""Native <-> Hugging Face layout, bit-exact there and back: names, fusing of experts and order of vision rows change,
numbers never do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ventoux.checkpoint.files import Checkpoint, open_checkpoint
from ventoux.checkpoint.keys import Layout
from ventoux.checkpoint.reader import read_all, stored_dtype
from ventoux.checkpoint.write import MAX_SHARD_BYTES, copy_side_files, remove_checkpoint, write_checkpoint
from ventoux.errors import CheckpointError


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

    Holds one parameter in memory at a time. Tokenizer, prompts and templates are copied along.

    Args:
        progress: Called with (bytes written, bytes in all).
        force: Replace a checkpoint that `dst` already holds; other files there stay.

    Raises:
        CheckpointError: the source is no good, its number format cannot be converted, or `dst` is the source, a file
            or a folder with something in it.
    """
    src, dst = Path(src), Path(dst)
    checkpoint = open_checkpoint(src)
    checkpoint.require_loadable()
    if layout is None:
        layout = "hf" if checkpoint.layout == "native" else "native"
    _check_target(src, dst, force)
    if dst.exists():
        remove_checkpoint(dst)
    write_checkpoint(
        dst,
        checkpoint.config,
        layout,
        read_all(checkpoint),
        dtype={row.path: stored_dtype(checkpoint, row) for row in checkpoint.rows},
        max_shard_bytes=max_shard_bytes,
        progress=progress,
    )
    copy_side_files(src, dst)
    return open_checkpoint(dst, layout)


def _check_target(src: Path, dst: Path, force: bool) -> None:
    if dst.exists() and not dst.is_dir():
        raise CheckpointError(str(dst), ["is a file; name a folder to write to"])
    if dst.resolve() == src.resolve():
        raise CheckpointError(str(dst), ["is the source itself; name another folder"])
    if dst.is_dir() and any(dst.iterdir()) and not force:
        raise CheckpointError(
            str(dst), ["the folder is not empty; name another, or use force to replace what it holds"]
        )
