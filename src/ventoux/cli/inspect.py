"""`ventoux inspect`: what a checkpoint is and what it needs, from its headers alone."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from ventoux.cli.offline import MODEL_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help=MODEL_HELP + "; a Hub id is downloaded first")
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object")


def run(args: argparse.Namespace) -> int:
    from ventoux.checkpoint.hub import resolve_model
    from ventoux.checkpoint.inspect import inspect_checkpoint, render

    report = inspect_checkpoint(resolve_model(args.model))
    if args.json:
        print(json.dumps(asdict(report), indent=2, default=str))
        return 0
    from rich.console import Console

    Console().print(render(report))
    return 0
