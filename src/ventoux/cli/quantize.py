"""`ventoux quantize`: write a checkpoint with FP8 or NVFP4 weights, and say what that did to it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ventoux.cli.progress import loading_bar

if TYPE_CHECKING:
    from ventoux.checkpoint.quantize import Quantized

CHOICES = ("fp8", "nvfp4", "none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", help="Hub id or folder, either layout, bf16 or (for NVFP4) FP8")
    parser.add_argument("dst", type=Path, help="folder to write; must not exist, or be empty")
    parser.add_argument(
        "--format", choices=CHOICES[:2], required=True, help="format of experts, shared experts and dense layers"
    )
    parser.add_argument(
        "--attention", choices=CHOICES, help="format of attention's projections (default: fp8 with fp8, else none)"
    )
    parser.add_argument(
        "--head", choices=CHOICES, default="none", help="format of the output head (default: %(default)s)"
    )
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="load both models, one after the other, and compare their logits (default: yes)",
    )


def run(args: argparse.Namespace) -> int:
    from ventoux.checkpoint import compare
    from ventoux.checkpoint.convert import check_target
    from ventoux.checkpoint.files import open_checkpoint
    from ventoux.checkpoint.hub import resolve_model
    from ventoux.checkpoint.quantize import quantize

    src = resolve_model(args.src)
    source = open_checkpoint(src)
    check_target(src, args.dst)
    check = args.check and not source.config.is_draft
    if check:
        compare.check_memory(source)
    started = time.monotonic()
    with loading_bar("quantizing") as progress:
        result = quantize(src, args.dst, args.format, attention=args.attention, head=args.head, progress=progress)
    _report(args.dst, result, time.monotonic() - started)
    if check:
        _compare(src, args.dst)
    elif source.config.is_draft and args.check:
        print("logits: not compared, a draft has none without its target model")
    return 0


def _compare(src: Path, dst: Path) -> None:
    from ventoux.build import all_operators
    from ventoux.checkpoint import compare
    from ventoux.checkpoint.files import open_checkpoint
    from ventoux.evals.stored_prompts import prompts_for
    from ventoux.hardware import probe_hardware

    source, ops = open_checkpoint(src), all_operators(probe_hardware().num_cores)[0]
    prompts, dtype = prompts_for(source), compare.compute_dtype(source)
    both = []
    for folder, title in ((src, "loading the source"), (dst, "loading the result")):
        with loading_bar(title) as progress:
            both.append(compare.logits_of(open_checkpoint(folder), ops, dtype, prompts.ids, progress))
    found = compare.divergence(*both)
    print(
        f"logits on {prompts.what}: KL(source || quantized) {found.mean_kl:.4g} nats on average,"
        f" {found.max_kl:.4g} at most; same top token {found.same_top_token:.1%}"
    )


def _report(dst: Path, result: Quantized, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    from ventoux.checkpoint.inspect import size
    from ventoux.checkpoint.schemes import FORMAT_NAMES

    written = result.checkpoint
    num_files = len({tensor.file for tensor in written.stored.values()})
    print(
        f"wrote {dst}: {written.layout} layout, {len(written.stored):,} tensors in {num_files} file(s),"
        f" {size(result.source_bytes)} -> {size(written.stored_bytes)} in {seconds:.1f} s"
    )
    table = Table("part", "format", "parameters", "RMSE", "of the weights' RMS")
    for error in result.errors:
        table.add_row(
            error.part.replace("_", " "), FORMAT_NAMES[error.format], f"{error.num_parameters:,}",
            f"{error.rmse:.3g}", f"{error.relative_rmse:.2%}",
        )  # fmt: skip
    Console().print(table)
