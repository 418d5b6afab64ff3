"""`ventoux convert`: write a checkpoint in the other layout."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ventoux.cli.progress import loading_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", help="Hub id or folder, either layout")
    parser.add_argument("dst", type=Path, help="folder to write")
    parser.add_argument(
        "--layout",
        choices=("native", "hf"),
        help="layout to write: Mistral's own or Hugging Face's (default: the other)",
    )
    parser.add_argument("--force", action="store_true", help="replace a checkpoint that DST already holds")


def run(args: argparse.Namespace) -> int:
    from ventoux.checkpoint.convert import convert
    from ventoux.checkpoint.hub import resolve_model
    from ventoux.checkpoint.inspect import size

    started = time.monotonic()
    src = resolve_model(args.src)
    with loading_bar("writing") as progress:
        written = convert(src, args.dst, args.layout, progress=progress, force=args.force)
    seconds = time.monotonic() - started
    num_files = len({tensor.file for tensor in written.stored.values()})
    print(
        f"wrote {args.dst}: {written.layout} layout, {len(written.stored):,} tensors in {num_files} file(s),"
        f" {size(written.stored_bytes)} in {seconds:.1f} s"
    )
    return 0
