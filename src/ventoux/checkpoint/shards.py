"""Safetensors files as they lie on disk: finding them and parsing their headers. No torch, so `inspect` is quick."""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ventoux.checkpoint.json_reader import LFS_MAGIC, read_json
from ventoux.checkpoint.keys import Layout
from ventoux.errors import CheckpointError

STEMS: dict[Layout, str] = {"native": "consolidated", "hf": "model"}
INDEX_SUFFIX = ".safetensors.index.json"

# What weights may be stored as, to be computed with.
FLOAT_DTYPES = ("BF16", "F16", "F32")
ITEM_BYTES = {
    name: size
    for size, names in (
        (1, "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0"),
        (2, "I16 U16 F16 BF16"),
        (4, "I32 U32 F32"),
        (8, "I64 U64 F64"),
    )
    for name in names.split()
}
# The limit that the format's own library keeps.
MAX_HEADER_BYTES = 100_000_000
_NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie: [offset, offset + nbytes) of `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass
class Shards:
    """What the headers say. `unread` holds the names that the index puts into files that cannot be read; it is None
    when such files exist and no index tells what is in them."""

    stored: dict[str, StoredTensor] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unread: set[str] | None = field(default_factory=set)


def read_shards(folder: Path, layout: Layout) -> Shards:
    """Reads the headers of all shards of one layout. Problems are collected, not raised."""
    shards = Shards()
    index = _find_index(folder, layout, shards.problems)
    weight_map = _read_weight_map(index, shards.problems) if index is not None else None
    files = _list_files(folder, layout, shards) if weight_map is None else sorted(set(weight_map.values()))
    broken = set()
    for name in files:
        try:
            header = read_header(folder / name)
        except CheckpointError as error:
            broken.add(name)
            shards.problems += [f"{name} {problem}" for problem in error.problems]
            continue
        for twice in header.keys() & shards.stored.keys():
            shards.problems.append(f"{twice} is stored twice: in {shards.stored[twice].file.name} and in {name}")
        shards.stored |= header
    if weight_map is None:
        shards.unread = None if broken or shards.unread is None else set()
        return shards
    shards.unread = {tensor for tensor, file in weight_map.items() if file in broken}
    for tensor, file in weight_map.items():
        if file not in broken and (tensor not in shards.stored or shards.stored[tensor].file.name != file):
            shards.problems.append(f"the index puts {tensor} into {file}, but it is not there")
    return shards


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, from its header alone.

    Raises:
        CheckpointError: the file is missing, no safetensors file, truncated or inconsistent.
    """

    def fail(problem: str) -> CheckpointError:
        return CheckpointError(str(path), [problem])

    again = "download it again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(max(8, len(LFS_MAGIC)))
            if start.startswith(LFS_MAGIC.encode()):
                raise fail("is a Git LFS pointer, not the tensors themselves: run `git lfs pull`")
            if len(start) < 8:
                raise fail(f"is {'empty' if not start else 'truncated'} ({size} bytes): {again}")
            (length,) = struct.unpack("<Q", start[:8])
            if length > MAX_HEADER_BYTES:
                raise fail(f"is no safetensors file: its header would have {length} bytes")
            if 8 + length > size:
                raise fail(f"is truncated: its header alone takes {8 + length} bytes, found {size}: {again}")
            file.seek(8)
            raw = file.read(length)
    except FileNotFoundError as error:
        raise fail("is missing") from error
    except OSError as error:
        raise fail(f"cannot be read: {error}") from error
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        stored = {name: _parse_entry(path, 8 + length, entry) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise fail(f"has a corrupt header ({error!r}): {again}") from error
    problem = _check_extent(stored, 8 + length, size)
    if problem:
        raise fail(problem)
    return stored


def _parse_entry(path: Path, base: int, entry: dict[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if dtype not in ITEM_BYTES:
        raise ValueError(f"unknown dtype {dtype}")
    if any(type(n) is not int or n < 0 for n in (begin, end, *shape)):
        raise ValueError(f"shape {shape}, offsets {begin}:{end}")
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"{end - begin} bytes for {dtype} {list(shape)}")
    return StoredTensor(path, dtype, shape, base + begin, end - begin)


def _check_extent(stored: dict[str, StoredTensor], base: int, size: int) -> str | None:
    """The format wants tensors back to back, from the end of the header to the end of the file."""
    end = base
    for name, tensor in sorted(stored.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset != end:
            return f"has a corrupt header: {name} begins at byte {tensor.offset}, expected {end}"
        end += tensor.nbytes
    if size < end:
        return f"is truncated: expected {end} bytes, found {size}: download it again"
    if size > end:
        return f"is longer than its header says: expected {end} bytes, found {size}"
    return None


def _find_index(folder: Path, layout: Layout, problems: list[str]) -> Path | None:
    """Any name will do, but one repository may hold an index per layout, and one without the layout's stem counts
    only when it is alone."""
    found = sorted(path for path in folder.glob("*" + INDEX_SUFFIX) if _may_belong(path.name, layout))
    named = [path for path in found if path.name.startswith(STEMS[layout])]
    candidates = named or found
    if len(candidates) > 1:
        problems.append(f"several index files: {', '.join(path.name for path in candidates)}")
    return candidates[0] if candidates else None


def _may_belong(name: str, layout: Layout) -> bool:
    other: Layout = "hf" if layout == "native" else "native"
    return not name.startswith(STEMS[other])


def _read_weight_map(index: Path, problems: list[str]) -> dict[str, str] | None:
    try:
        weight_map = read_json(index).get("weight_map")
    except CheckpointError as error:
        problems += [f"{index.name} {problem}" for problem in error.problems]
        return None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        problems.append(f"{index.name} has no weight_map from tensor names to file names")
        return None
    outside = sorted({file for file in weight_map.values() if Path(file).name != file})
    if outside:
        problems.append(f"{index.name} names files outside the folder: {', '.join(outside[:5])}")
        return None
    return weight_map


def _list_files(folder: Path, layout: Layout, shards: Shards) -> list[str]:
    """Without an index: the layout's own files, or whatever safetensors files there are."""
    found = sorted(path.name for path in folder.glob("*.safetensors") if _may_belong(path.name, layout))
    files = [name for name in found if name.startswith(STEMS[layout])] or found
    if not files:
        shards.problems.append("there is no safetensors file for this layout")
        shards.unread = None
    numbers = {(int(m[1]), int(m[2])) for m in map(_NUMBERED.search, files) if m}
    for total in sorted({total for _, total in numbers}):
        absent = [n for n in range(1, total + 1) if (n, total) not in numbers]
        if absent:
            shards.problems.append(f"missing shards {', '.join(map(str, absent))} of {total}")
            shards.unread = None
    return files
