"""Writing a checkpoint: shards, index and config file, one parameter in memory at a time."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ventoux.checkpoint.files import Prefixes, canonical_prefixes, pieces_of
from ventoux.checkpoint.keys import CONFIG_FILES, Layout
from ventoux.checkpoint.params import write_config
from ventoux.checkpoint.reader import TORCH_DTYPES, halves_from_pairs, part_of
from ventoux.checkpoint.shards import FLOAT_DTYPES, INDEX_SUFFIX, STEMS
from ventoux.checkpoint.stored import piece_shape
from ventoux.config import ModelConfig
from ventoux.errors import CheckpointError
from ventoux.model.tensors import TensorRow, tensor_table

Progress = Callable[[int, int], None]
Row = tuple[TensorRow, torch.Tensor]

MAX_SHARD_BYTES = 5_000_000_000
FLOAT_TYPES = {TORCH_DTYPES[name] for name in FLOAT_DTYPES}
# What lies beside the weights and means the same in both layouts.
SIDE_FILES = (
    *("tekken.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("SYSTEM_PROMPT.txt", "chat_template.jinja", "chat_template.json", "generation_config.json"),
    *("processor_config.json", "preprocessor_config.json", "README.md", "LICENSE"),
)


@dataclass(frozen=True)
class PlannedTensor:
    """One stored tensor to come. `path` is the parameter that it belongs to."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    path: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_checkpoint(
    folder: Path | str,
    config: ModelConfig,
    layout: Layout,
    rows: Iterable[Row],
    *,
    dtype: torch.dtype | Mapping[str, torch.dtype] = torch.bfloat16,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Writes one checkpoint of plain weights; the config file comes last, so that a folder cut short is not taken for
    a checkpoint.

    Args:
        folder: Made if it does not exist. Side files that are already in it stay.
        rows: Every row of the tensor table with its tensor, in table order; any device. See `model_rows`.
        dtype: The stored type: one for all, or one per `row.path`. Tensors are cast to it.
        progress: Called with (bytes written, bytes in all).

    Raises:
        CheckpointError: a draft in the Hugging Face layout, or a file that could not be written (disk full).
        ValueError: `rows` is not the tensor table of `config`.
    """
    refuse_hf_draft(folder, config, layout)
    prefixes = canonical_prefixes(config)
    plan = [
        PlannedTensor(piece.name, piece_shape(row, piece), of_row, row.path)
        for row in tensor_table(config)
        for of_row in [dtype if isinstance(dtype, torch.dtype) else dtype[row.path]]
        for piece in pieces_of(row, layout, prefixes)
    ]
    parts = _parts(rows, layout, prefixes)
    write_tensors(folder, config, layout, plan, parts, max_shard_bytes=max_shard_bytes, progress=progress)


def refuse_hf_draft(folder: Path | str, config: ModelConfig, layout: Layout) -> None:
    if config.is_draft and layout == "hf":
        raise CheckpointError(str(folder), ["a draft has only the native layout"])


def write_tensors(
    folder: Path | str,
    config: ModelConfig,
    layout: Layout,
    plan: Sequence[PlannedTensor],
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    quantization: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Shards, index and at last the config file, from (path, tensor) pairs in the order of the plan; arguments and
    errors as in `write_checkpoint`.

    Args:
        quantization: That block of the config file, under its key.
    """
    folder = Path(folder)
    shards = _cut(plan, max_shard_bytes)
    total = sum(item.nbytes for item in plan)
    parts = iter(tensors)
    weight_map: dict[str, str] = {}
    done = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, shard in enumerate(shards, 1):
            name = _shard_name(layout, number, len(shards))
            weight_map |= {item.name: name for item in shard}
            with (folder / name).open("wb") as file:
                file.write(_header(shard))
                for item in shard:
                    file.write(_bytes_of(item, next(parts, None)))
                    done += item.nbytes
                    if progress is not None:
                        progress(done, total)
                file.flush()
                # A disk that is full may say so only now.
                os.fsync(file.fileno())
        if next(parts, None) is not None:
            raise ValueError("more tensors were given than the tensor table has")
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / (STEMS[layout] + INDEX_SUFFIX)).write_text(json.dumps(index, indent=1), encoding="utf-8")
        plain = Counter(item.dtype for item in plan if item.dtype in FLOAT_TYPES)
        write_config(config, folder, layout, str(plain.most_common(1)[0][0]).removeprefix("torch."), quantization)
    except OSError as error:
        raise CheckpointError(str(folder), [f"cannot be written: {error}"]) from error


def model_rows(model: nn.Module, config: ModelConfig) -> Iterator[Row]:
    """The rows of a module (`Mistral4` or `Draft`) for `write_checkpoint`."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for row in tensor_table(config):
        yield row, parameters[row.path].detach()


def copy_side_files(source: Path, target: Path) -> list[str]:
    """Copies tokenizer, prompts, templates and the like; returns the names copied."""
    copied = [name for name in SIDE_FILES if (source / name).is_file()]
    for name in copied:
        shutil.copyfile(source / name, target / name)
    return copied


def remove_checkpoint(folder: Path) -> None:
    """Removes the weights and config files of a checkpoint (either layout), and nothing else."""
    for pattern in ("*.safetensors", "*" + INDEX_SUFFIX, *CONFIG_FILES.values()):
        for path in folder.glob(pattern):
            os.unlink(path)


def _cut(plan: Sequence[PlannedTensor], max_shard_bytes: int) -> list[list[PlannedTensor]]:
    """Fills shards in order; a tensor larger than the limit gets a shard of its own."""
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for item in plan:
        if shards[-1] and size + item.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += item.nbytes
    return shards


def _shard_name(layout: Layout, number: int, total: int) -> str:
    numbers = "" if total == 1 else f"-{number:05d}-of-{total:05d}"
    return f"{STEMS[layout]}{numbers}.safetensors"


def _header(shard: list[PlannedTensor]) -> bytes:
    names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for item in shard:
        entries[item.name] = {
            "dtype": names[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [offset, offset + item.nbytes],
        }
        offset += item.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _parts(rows: Iterable[Row], layout: Layout, prefixes: Prefixes) -> Iterator[tuple[str, torch.Tensor]]:
    """The stored tensors of each row, in the order of the plan."""
    for row, tensor in rows:
        if layout == "hf" and row.vision_heads:
            tensor = halves_from_pairs(tensor, row.vision_heads)
        for piece in pieces_of(row, layout, prefixes):
            yield row.path, part_of(tensor, piece)


def _bytes_of(item: PlannedTensor, part: tuple[str, torch.Tensor] | None) -> memoryview:
    if part is None or part[0] != item.path or part[1].shape != item.shape:
        given = "nothing" if part is None else f"{part[0]} {list(part[1].shape)}"
        raise ValueError(f"expected {item.path} {list(item.shape)} ({item.name}), got {given}")
    tensor = part[1].to(device="cpu", dtype=item.dtype).contiguous()
    return tensor.view(-1).view(torch.uint8).numpy().data
