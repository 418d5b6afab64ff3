"""A checkpoint folder, opened: its config and headers are read and held against the tensor table. No torch and no
weights here; `reader.py` reads those, one parameter at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from ventoux.checkpoint.keys import CONFIG_FILES, Layout, QuantFormat
from ventoux.checkpoint.params import Facts, find_layout, read_facts
from ventoux.checkpoint.schemes import FORMAT_NAMES
from ventoux.checkpoint.shards import Shards, StoredTensor, read_shards
from ventoux.checkpoint.stored import (
    FP8_SCALES,
    GROUP,
    Held,
    check,
    find,
    is_loaded_dense,
    may_be_quantized,
    weight_bytes,
)
from ventoux.config import ModelConfig, StoredWeights
from ventoux.errors import CheckpointError
from ventoux.model.tensors import HF_PREFIXES, Part, Piece, TensorRow, hf_name, tensor_table

Prefixes = tuple[str, str, str, str]

# Exports carry leftovers of quantization-aware training, and towers tensors that no reader uses; all readers skip them.
SKIPPED_PARTS = ("_fake_quantizer.",)
SKIPPED_PREFIXES = ("vision_encoder.", "vision_tower.", "model.vision_tower.")
# A draft may bring copies of the target's embeddings and head, and a tied model a copy of its embeddings.
DRAFT_COPIES = ("tok_embeddings.weight", "output.weight")
# The linears of one expert, where Hugging Face files do not fuse them (exports by compressed-tensors).
_UNFUSED = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


@dataclass(frozen=True)
class Checkpoint:
    """Facts and headers of one checkpoint. Opening it read no weights.

    `held` says for each parameter, by its path, which stored tensors make it up. `quantization` is that block of the
    config file under its key, None where there is none. `narrowed` says which parts are quantized while they are
    loaded; see `narrow`.
    """

    folder: Path
    layout: Layout
    config: ModelConfig
    quantization: dict[str, Any] | None
    rows: tuple[TensorRow, ...]
    stored: dict[str, StoredTensor]
    skipped: tuple[str, ...]
    held: dict[str, tuple[Held, ...]]
    narrowed: Mapping[Part, QuantFormat] = field(default_factory=dict)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors that belong to the model, scales included."""
        return sum(t.nbytes for name, t in self.stored.items() if name not in self.skipped)

    @property
    def quant_formats(self) -> tuple[QuantFormat, ...]:
        """The formats other than plain that occur, e.g. ("fp8",)."""
        found: set[QuantFormat] = {form for row in self.rows if (form := self.format_of(row)) != "bf16"}
        return tuple(sorted(found))

    def format_of(self, row: TensorRow) -> QuantFormat:
        """How a parameter is stored; "bf16" stands for all plain types."""
        return self.held[row.path][0].format

    def loaded_as(self, row: TensorRow) -> QuantFormat:
        """What a parameter is in memory; "bf16" stands for the compute type."""
        if is_loaded_dense(row):
            return "bf16"
        stored = self.format_of(row)
        return self.narrowed.get(row.part, stored) if stored == "bf16" and may_be_quantized(row) else stored

    def formats_by_part(self) -> dict[Part, tuple[QuantFormat, ...]]:
        """The formats that occur in each part of the model."""
        found: dict[Part, set[QuantFormat]] = {}
        for row in self.rows:
            found.setdefault(row.part, set()).add(self.format_of(row))
        return {part: tuple(sorted(formats)) for part, formats in found.items()}

    def weights(self) -> StoredWeights:
        """What the plan has to know: how much stays as it is stored, and how much takes the compute type."""
        kept = [row for row in self.rows if self.loaded_as(row) != "bf16"]
        stored = {part: "+".join(formats) for part, formats in self.formats_by_part().items()}
        parts = stored | {part: f"{form} (made while loading)" for part, form in self.narrowed.items()}
        quantized = sum(row.num_parameters for row in kept)
        return StoredWeights(
            dense_parameters=sum(row.num_parameters for row in self.rows) - quantized,
            quantized_parameters=quantized,
            quantized_bytes=sum(weight_bytes(row, self.loaded_as(row), 0) for row in kept),
            formats=", ".join(f"{part} {form}" for part, form in parts.items() if form != "bf16"),
        )


def narrow(checkpoint: Checkpoint, formats: Mapping[Part, str]) -> Checkpoint:
    """The same files, some parts of which are to be quantized while they are loaded: to "fp8" or "nvfp4"; "stored"
    leaves a part as it is.

    Raises:
        CheckpointError: the model has no such part, it is quantized already, or its width does not fit NVFP4.
    """
    problems = []
    wanted = {part: cast(QuantFormat, form) for part, form in formats.items() if form != "stored"}
    for part, form in wanted.items():
        rows = [row for row in checkpoint.rows if row.part == part and may_be_quantized(row)]
        stored = {checkpoint.format_of(row) for row in rows} - {"bf16"}
        if not rows:
            problems.append(f"this model has no {part} of its own to quantize")
        if stored:
            problems.append(f"its {part} is stored as {' and '.join(sorted(stored))} already")
        problems += [
            f"{row.path} is {row.shape[-1]} wide; NVFP4 needs a width divisible by {GROUP}"
            for row in rows
            if form == "nvfp4" and row.shape[-1] % GROUP
        ]
    if problems:
        raise CheckpointError(str(checkpoint.folder), problems)
    return replace(checkpoint, narrowed=wanted)


def open_checkpoint(folder: Path | str, layout: Literal["auto"] | Layout = "auto") -> Checkpoint:
    """Opens a folder in either layout, from its config file and headers alone (a second for 240 GB).

    Weights may be stored as bf16, fp16 or fp32, which are cast to the compute type while loading, or as FP8 or NVFP4.
    Each linear is judged by what is stored, so that formats may be mixed.

    Raises:
        CheckpointError: listing everything that is wrong: config keys, shards, tensors missing, extra, misshapen or of
            another type, and formats that the config claims and the files do not hold, or the reverse.
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
    there = shards.stored.keys() | (shards.unread or set())
    prefixes = _choose_prefixes(rows, there) if layout == "hf" else canonical_prefixes(facts.config)
    known: set[str] = set()
    problems = list(shards.problems)
    held: dict[str, tuple[Held, ...]] = {}
    for row in rows:
        pieces = _unfused_pieces(row, prefixes, there) if layout == "hf" else row.native
        held[row.path] = tuple(
            find(row, piece, layout, shards.stored, there) for piece in pieces or pieces_of(row, layout, prefixes)
        )
        problems += _check_row(row, held[row.path], shards, known)
    skipped, extras = _judge_extras(shards.stored.keys() - known, rows, facts, shards.stored)
    problems += extras + _check_claim(facts, rows, held, shards)
    if problems:
        raise CheckpointError(str(folder), problems)
    return Checkpoint(folder, layout, facts.config, facts.quantization, rows, shards.stored, tuple(skipped), held)


# ---------------------------------------------------------------------------------------------------- rows and pieces


def canonical_prefixes(config: ModelConfig) -> Prefixes:
    """The Hugging Face spelling that we write: the published one, or that of a text-only Mistral4ForCausalLM."""
    return HF_PREFIXES[0] if config.vision is not None else HF_PREFIXES[2]


def pieces_of(row: TensorRow, layout: Layout, prefixes: Prefixes) -> tuple[Piece, ...]:
    """The tensors that a layout stores for one parameter: native files one per expert matrix, Hugging Face one."""
    return row.native if layout == "native" else (Piece(hf_name(row.path, prefixes)),)


def _unfused_pieces(row: TensorRow, prefixes: Prefixes, there: Collection[str]) -> tuple[Piece, ...]:
    """The pieces of experts that a Hugging Face file stores one by one; empty where it does not."""
    if not row.is_routed:
        return ()
    root = hf_name(row.path, prefixes).rpartition(".")[0]
    pieces = []
    for piece in row.native:
        name = f"{root}.{piece.expert}.{_UNFUSED[piece.name.split('.')[-2]]}.weight"
        pieces.append(Piece(name, piece.expert, piece.rows))
    first = pieces[0].name
    return tuple(pieces) if first in there or first + "_packed" in there else ()


# --------------------------------------------------------------------------------------------------------- validation


def _choose_prefixes(rows: tuple[TensorRow, ...], there: Collection[str]) -> Prefixes:
    """The spelling that most of the stored names follow; names in another one then count as missing and extra."""
    return max(HF_PREFIXES, key=lambda prefixes: sum(hf_name(row.path, prefixes) in there for row in rows))


def _check_row(row: TensorRow, held: tuple[Held, ...], shards: Shards, known: set[str]) -> list[str]:
    """Problems of one parameter; the stored names that belong to it are added to `known`."""
    problems, dtypes = [], set()
    for piece in held:
        known.update(piece.names)
        for name in piece.names:
            if name in shards.stored or shards.unread is None or name in shards.unread:
                continue
            why = "" if name == piece.weights else f": {piece.weights} is {FORMAT_NAMES[piece.format]} and needs it"
            problems.append(f"{name} is missing{why}")
        problems += check(row, piece, shards.stored)
        if piece.weights in shards.stored:
            dtypes.add(shards.stored[piece.weights].dtype)
    if len(dtypes) > 1 and not problems:
        problems.append(f"{row.path} is stored in pieces of different types: {', '.join(sorted(dtypes))}")
    return problems


def _check_claim(
    facts: Facts, rows: tuple[TensorRow, ...], held: dict[str, tuple[Held, ...]], shards: Shards
) -> list[str]:
    """What the config file says about quantization against what the files hold."""
    found: dict[QuantFormat, list[str]] = {}
    for row in rows:
        found.setdefault(held[row.path][0].format, []).append(row.path)
    name, problems = CONFIG_FILES[facts.layout], []
    for form in sorted(found.keys() - facts.claimed - {"bf16"}):
        claimed = " and ".join(FORMAT_NAMES[c] for c in sorted(facts.claimed)) or "no quantization"
        paths = found[form]
        problems.append(
            f"{name} claims {claimed}, but {len(paths)} parameters are stored as {FORMAT_NAMES[form]}: {paths[0]}, ..."
        )
    # Shards that cannot be read may hold what is claimed.
    for form in sorted(facts.claimed - found.keys()) if shards.unread == set() else ():
        problems.append(f"{name} claims {FORMAT_NAMES[form]}, but no weight is stored so")
    return problems


def _judge_extras(
    names: set[str], rows: tuple[TensorRow, ...], facts: Facts, stored: dict[str, StoredTensor]
) -> tuple[list[str], list[str]]:
    """Names beyond the table: those that readers skip, and problems for the others."""
    skipped, problems = [], []
    spellings = {hf_name(row.path, p) for row in rows for p in HF_PREFIXES} if facts.layout == "hf" else set()
    copies = set(DRAFT_COPIES) if facts.config.is_draft else set()
    if facts.config.text.tie_word_embeddings:
        copies |= {"output.weight", *(prefixes[1] + "weight" for prefixes in HF_PREFIXES)}
    for name in sorted(names):
        in_tower = facts.config.vision is not None and name.startswith(SKIPPED_PREFIXES)
        weight = _scaled_by(name)
        if name in spellings and name not in copies:
            problems.append(f"{name} is spelled with other prefixes than most tensors of this checkpoint")
        elif name in copies or in_tower or any(part in name for part in SKIPPED_PARTS):
            skipped.append(name)
        elif weight is not None and weight in stored:
            problems.append(f"{name} scales nothing: {weight} is stored as {stored[weight].dtype}")
        else:
            problems.append(f"{name} is not a tensor of this model")
    return skipped, problems


def _scaled_by(name: str) -> str | None:
    """The weight that a tensor of this name would be a scale of; None if it is not named like a scale."""
    base, _, leaf = name.rpartition(".")
    if leaf in FP8_SCALES or leaf in FP8_SCALES.values() or leaf in ("weight_global_scale", "input_global_scale"):
        return base + ".weight"
    fused = name.removesuffix("_scale_inv").removesuffix("_activation_scale")
    return fused if fused != name else None
