"""What a checkpoint is and what it needs to run here, from its config and headers alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ventoux.checkpoint.files import Checkpoint, open_checkpoint
from ventoux.checkpoint.keys import Layout, QuantFormat
from ventoux.checkpoint.schemes import FORMAT_NAMES
from ventoux.checkpoint.shards import ITEM_BYTES
from ventoux.config import EngineConfig, ModelConfig
from ventoux.errors import ConfigError
from ventoux.hardware import Hardware, probe_hardware
from ventoux.model.tensors import Part, TensorRow
from ventoux.plan import BYTES_PER_VALUE, EnginePlan, resolve


@dataclass(frozen=True)
class Report:
    """All numbers are exact counts; memory is in bytes.

    `active_parameters` are those that one token is multiplied with: attention, norms, router, the chosen and the
    shared experts of every layer, and the head. Embeddings (one row is read) and vision are not in it.
    """

    folder: Path
    layout: Layout
    quant_formats: tuple[QuantFormat, ...]
    formats_by_part: dict[Part, tuple[QuantFormat, ...]]
    config: ModelConfig
    num_files: int
    num_tensors: int
    dtypes: dict[str, int]
    total_parameters: int
    scale_elements: int
    active_parameters: int
    embedding_parameters: int
    vision_parameters: int
    stored_bytes: int
    bytes_by_part: dict[str, int]
    skipped: tuple[str, ...]
    cache_bytes_per_1k_tokens: int
    plan: EnginePlan | None
    obstacle: str | None


def inspect_checkpoint(
    folder: Path | str, layout: Literal["auto"] | Layout = "auto", hardware: Hardware | None = None
) -> Report:
    """Reads headers only: about a second for the whole 119B model.

    Args:
        hardware: The machine to judge by; None looks at this one.

    Raises:
        CheckpointError: the checkpoint is broken; all problems are listed.
    """
    checkpoint = open_checkpoint(folder, layout)
    config = checkpoint.config
    total = sum(row.num_parameters for row in checkpoint.rows)
    bytes_by_part, num_weights = _measure(checkpoint)
    own = [t for name, t in checkpoint.stored.items() if name not in checkpoint.skipped]
    plan, obstacle = _plan(checkpoint, hardware or probe_hardware())
    cache_dtype = plan.kv_cache_dtype if plan is not None else "bfloat16"
    text = config.text
    return Report(
        folder=checkpoint.folder,
        layout=checkpoint.layout,
        quant_formats=checkpoint.quant_formats,
        formats_by_part=checkpoint.formats_by_part(),
        config=config,
        num_files=len({t.file for t in own}),
        num_tensors=len(own),
        dtypes=dict(Counter(t.dtype for t in own).most_common()),
        total_parameters=total,
        scale_elements=sum(t.nbytes // ITEM_BYTES[t.dtype] for t in own) - num_weights,
        active_parameters=sum(_active(row, config) for row in checkpoint.rows),
        embedding_parameters=sum(row.num_parameters for row in checkpoint.rows if row.part == "embedding"),
        vision_parameters=sum(row.num_parameters for row in checkpoint.rows if row.part == "vision"),
        stored_bytes=checkpoint.stored_bytes,
        bytes_by_part=bytes_by_part,
        skipped=checkpoint.skipped,
        cache_bytes_per_1k_tokens=1024 * text.latent_dim * text.num_hidden_layers * BYTES_PER_VALUE[cache_dtype],
        plan=plan,
        obstacle=obstacle,
    )


def _active(row: TensorRow, config: ModelConfig) -> int:
    if row.part in ("embedding", "vision"):
        # A tied head is the embedding table, and the head is multiplied.
        return row.num_parameters if row.part == "embedding" and config.text.tie_word_embeddings else 0
    if row.is_routed:
        return row.num_parameters // config.text.n_routed_experts * config.text.num_experts_per_tok
    return row.num_parameters


def _measure(checkpoint: Checkpoint) -> tuple[dict[str, int], int]:
    """Stored bytes per part of the model (quantized weights count as they are stored), and how many stored elements
    are weights; what is left over are scales."""
    by_part: Counter[str] = Counter()
    num_weights, weight_bytes = 0, 0
    for row in checkpoint.rows:
        for held in checkpoint.held[row.path]:
            stored = checkpoint.stored[held.weights]
            by_part[row.part] += stored.nbytes
            weight_bytes += stored.nbytes
            num_weights += stored.nbytes // ITEM_BYTES[stored.dtype]
    if checkpoint.stored_bytes > weight_bytes:
        by_part["scales"] = checkpoint.stored_bytes - weight_bytes
    return dict(by_part.most_common()), num_weights


def _plan(checkpoint: Checkpoint, hardware: Hardware) -> tuple[EnginePlan | None, str | None]:
    """The plan that `serve` would make here, or what stands in the way."""
    if checkpoint.config.is_draft:
        return None, "an EAGLE draft runs beside its target model, not alone."
    try:
        return resolve(checkpoint.config, checkpoint.weights(), EngineConfig(), hardware), None
    except ConfigError as error:
        return None, str(error)


# ---------------------------------------------------------------------------------------------------------- rendering


def render(report: Report) -> RenderableType:
    """The report as tables for a terminal."""
    text = report.config.text
    kind = "EAGLE draft" if report.config.is_draft else "Mistral Small 4 architecture"
    experts = f", {text.n_routed_experts} experts, {text.num_experts_per_tok} per token"
    if report.config.is_draft:
        experts = ", all dense"
    facts = _grid()
    facts.add_row("folder", Text(str(report.folder)))
    facts.add_row(
        "model",
        f"{kind}: {text.num_hidden_layers} layers of {text.hidden_size}{'' if report.config.is_draft else experts}",
    )
    facts.add_row("images", "yes" if report.config.vision is not None else "no")
    facts.add_row("layout", {"native": "native (params.json)", "hf": "Hugging Face (config.json)"}[report.layout])
    formats = [FORMAT_NAMES[form] for form in report.quant_formats] or ["not quantized"]
    facts.add_row("weights", " and ".join(formats))
    stored = ", ".join(f"{count:,} x {dtype}" for dtype, count in report.dtypes.items())
    facts.add_row("stored", f"{report.num_tensors:,} tensors in {report.num_files} file(s): {stored}")
    if report.skipped:
        facts.add_row("skipped", f"{len(report.skipped):,} tensors that the model does not use")
    facts.add_row("parameters", _count(report.total_parameters))
    facts.add_row("active per token", f"{_count(report.active_parameters)} with the head")
    if report.scale_elements:
        facts.add_row("scale elements", f"{report.scale_elements:,}")

    parts = Table("part", "format", "stored", "share", title="bytes by part", title_justify="left")
    by_name: dict[str, tuple[QuantFormat, ...]] = dict(report.formats_by_part.items())
    for part, nbytes in report.bytes_by_part.items():
        names = ", ".join(FORMAT_NAMES[form] for form in by_name.get(part, ()))
        parts.add_row(part.replace("_", " "), names, size(nbytes), f"{nbytes / report.stored_bytes:.1%}")
    parts.add_row("all", "", size(report.stored_bytes), "100.0%")
    return Group(facts, parts, _needs(report))


def _needs(report: Report) -> Table:
    needs = _grid()
    needs.add_row("cache", f"{size(report.cache_bytes_per_1k_tokens)} per 1024 tokens of one sequence")
    plan = report.plan
    if plan is None:
        needs.add_row("runs here", Text(f"no: {report.obstacle}"))
        return needs
    needs.add_row("runs here", f"yes, in {plan.dtype} on the {plan.device}")
    needs.add_row("weights in memory", size(plan.weight_bytes))
    tokens = plan.num_pages * plan.page_size
    needs.add_row("cache in memory", f"{size(plan.cache_bytes)}: {tokens:,} tokens in all")
    needs.add_row("a step in memory", f"{size(plan.step_bytes)} at most: {plan.max_num_batched_tokens:,} tokens")
    needs.add_row("longest sequence", f"{plan.max_model_len:,} tokens")
    return needs


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _count(number: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number:,} ({number / unit:.2f}{name})"
    return f"{number:,}"


def size(nbytes: int) -> str:
    """Bytes in binary units, e.g. 5.62 GiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.2f} {name}"
    return f"{nbytes} B"
