"""A checkpoint folder, opened: its config and headers are read and held against the tensor table. No torch and no
weights here; `reader.py` reads those, one parameter at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ventoux.checkpoint.keys import CONFIG_FILES, Layout, QuantFormat
from ventoux.checkpoint.params import Facts, find_layout, read_facts, require_loadable
from ventoux.checkpoint.shards import FLOAT_DTYPES, Shards, StoredTensor, read_shards
from ventoux.config import ModelConfig
from ventoux.errors import CheckpointError
from ventoux.model.tensors import HF_PREFIXES, Piece, TensorRow, hf_name, tensor_table

Prefixes = tuple[str, str, str, str]

# Stored beside the weights of FP8 and NVFP4 files.
SCALE_SUFFIXES = ("_scale", ".qscale_weight", ".qscale_act", "_scale_inv")
# Exports carry leftovers of quantization-aware training, and towers tensors that no reader uses; all readers skip them.
SKIPPED_PARTS = ("_fake_quantizer.",)
SKIPPED_PREFIXES = ("vision_encoder.", "vision_tower.", "model.vision_tower.")
# A draft may bring copies of the target's embeddings and head, and a tied model a copy of its embeddings.
DRAFT_COPIES = ("tok_embeddings.weight", "output.weight")


@dataclass(frozen=True)
class Checkpoint:
    """Facts and headers of one checkpoint. Opening it read no weights."""

    folder: Path
    layout: Layout
    config: ModelConfig
    quant_format: QuantFormat
    rows: tuple[TensorRow, ...]
    stored: dict[str, StoredTensor]
    skipped: tuple[str, ...]
    prefixes: Prefixes

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors that belong to the model, scales included."""
        return sum(t.nbytes for name, t in self.stored.items() if name not in self.skipped)

    def require_loadable(self) -> None:
        """Raises CheckpointError for number formats that are known but cannot be computed with yet."""
        require_loadable(str(self.folder), self.quant_format)

    def pieces(self, row: TensorRow) -> tuple[Piece, ...]:
        """The stored tensors that make up one parameter."""
        return pieces_of(row, self.layout, self.prefixes)

    def stored_names(self, row: TensorRow) -> list[str]:
        """The names under which a parameter's weights lie in the files, packed or not."""
        return [_expected(row, piece, self.quant_format, self.stored)[0] for piece in self.pieces(row)]


def open_checkpoint(folder: Path | str, layout: Literal["auto"] | Layout = "auto") -> Checkpoint:
    """Opens a folder in either layout, from its config file and headers alone (a second for 240 GB).

    Weights may be stored as bf16, fp16 or fp32; they are cast to the compute type while loading. FP8 and NVFP4
    folders open too, for `inspect`.

    Raises:
        CheckpointError: listing everything that is wrong: config keys, shards, and tensors missing, extra, misshapen
            or of another type.
    """
    folder = Path(folder)
    layout = find_layout(folder, layout)
    shards = read_shards(folder, layout)
    try:
        facts = read_facts(folder, layout)
    except CheckpointError as error:
        # Without a config there is no table to hold the headers against, but broken files can be named.
        config_problems = [f"{CONFIG_FILES[layout]}: {problem}" for problem in error.problems]
        raise CheckpointError(str(folder), config_problems + shards.problems) from error
    rows = tuple(tensor_table(facts.config))
    prefixes = _choose_prefixes(rows, shards.stored) if layout == "hf" else canonical_prefixes(facts.config)
    known: set[str] = set()
    problems = list(shards.problems)
    for row in rows:
        problems += _check_row(row, facts, prefixes, shards, known)
    skipped, extras = _judge_extras(shards.stored.keys() - known, rows, facts)
    problems += extras
    if problems:
        raise CheckpointError(str(folder), problems)
    return Checkpoint(folder, layout, facts.config, facts.quant_format, rows, shards.stored, tuple(skipped), prefixes)


# ---------------------------------------------------------------------------------------------------- rows and pieces


def canonical_prefixes(config: ModelConfig) -> Prefixes:
    """The Hugging Face spelling that we write: the published one, or that of a text-only Mistral4ForCausalLM."""
    return HF_PREFIXES[0] if config.vision is not None else HF_PREFIXES[2]


def pieces_of(row: TensorRow, layout: Layout, prefixes: Prefixes) -> tuple[Piece, ...]:
    """The tensors that a layout stores for one parameter: native files one per expert matrix, Hugging Face one."""
    return row.native if layout == "native" else (Piece(hf_name(row.path, prefixes)),)


def piece_shape(row: TensorRow, piece: Piece) -> tuple[int, ...]:
    shape = row.shape if piece.expert is None else row.shape[1:]
    return shape if piece.rows is None else (piece.rows[1] - piece.rows[0], *shape[1:])


# --------------------------------------------------------------------------------------------------------- validation


def _choose_prefixes(rows: tuple[TensorRow, ...], stored: dict[str, StoredTensor]) -> Prefixes:
    """The spelling that most of the stored names follow; names in another one then count as missing and extra."""
    return max(HF_PREFIXES, key=lambda prefixes: sum(hf_name(row.path, prefixes) in stored for row in rows))


def _check_row(row: TensorRow, facts: Facts, prefixes: Prefixes, shards: Shards, known: set[str]) -> list[str]:
    """Problems of one parameter; the stored names that belong to it are added to `known`."""
    problems, dtypes = [], set()
    for piece in pieces_of(row, facts.layout, prefixes):
        name, shape, allowed = _expected(row, piece, facts.quant_format, shards.stored)
        known.add(name)
        tensor = shards.stored.get(name)
        if tensor is None:
            if shards.unread is not None and name not in shards.unread:
                problems.append(f"{name} is missing")
            continue
        dtypes.add(tensor.dtype)
        if tensor.shape != shape:
            problems.append(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")
        if tensor.dtype not in allowed:
            problems.append(f"{name} is stored as {tensor.dtype}, expected {' or '.join(sorted(allowed))}")
    if len(dtypes) > 1 and not problems and facts.quant_format == "bf16":
        problems.append(f"{row.path} is stored in pieces of different types: {', '.join(sorted(dtypes))}")
    return problems


def _expected(
    row: TensorRow, piece: Piece, quant_format: QuantFormat, stored: dict[str, StoredTensor]
) -> tuple[str, tuple[int, ...], set[str]]:
    """Name, shape and allowed types of one stored tensor."""
    shape = piece_shape(row, piece)
    packed = piece.name.removesuffix("weight") + "weight_packed"
    if quant_format == "nvfp4" and row.quantizable and packed in stored:
        return packed, (*shape[:-1], shape[-1] // 2), {"U8"}
    if quant_format == "fp8" and row.quantizable:
        return piece.name, shape, {*FLOAT_DTYPES, "F8_E4M3"}
    return piece.name, shape, set(FLOAT_DTYPES)


def _judge_extras(names: set[str], rows: tuple[TensorRow, ...], facts: Facts) -> tuple[list[str], list[str]]:
    """Names beyond the table: those that readers skip, and problems for the others."""
    skipped, problems = [], []
    spellings = {hf_name(row.path, p) for row in rows for p in HF_PREFIXES} if facts.layout == "hf" else set()
    copies = set(DRAFT_COPIES) if facts.config.is_draft else set()
    if facts.config.text.tie_word_embeddings:
        copies |= {"output.weight", *(prefixes[1] + "weight" for prefixes in HF_PREFIXES)}
    for name in sorted(names):
        if facts.quant_format != "bf16" and name.endswith(SCALE_SUFFIXES):
            continue
        in_tower = facts.config.vision is not None and name.startswith(SKIPPED_PREFIXES)
        if name in spellings and name not in copies:
            problems.append(f"{name} is spelled with other prefixes than most tensors of this checkpoint")
        elif name in copies or in_tower or any(part in name for part in SKIPPED_PARTS):
            skipped.append(name)
        else:
            problems.append(f"{name} is not a tensor of this model")
    return skipped, problems
