"""`ventoux bench`: measure an engine, or a running server; print a table and write a result file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ventoux.cli import bench_engine
from ventoux.cli.bench_engine import Measured, new_table, ticks
from ventoux.cli.flags import add_flags, parse_count
from ventoux.cli.offline import MODEL_HELP
from ventoux.cli.progress import loading_bar
from ventoux.config import EngineConfig
from ventoux.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    described = "prefill and decode speed of one engine, and memory"
    latency = kinds.add_parser("latency", help=described, description=described, allow_abbrev=False)
    latency.add_argument(
        "--prompt-tokens", type=_counts, default=[512, 2048], metavar="N,N", help="(default: 512,2048)"
    )
    latency.add_argument("--batch-size", type=_counts, default=[1, 8, 32], metavar="N,N", help="(default: 1,8,32)")
    latency.add_argument(
        "--context",
        type=_counts,
        default=[],
        metavar="N,N",
        help="decode one sequence behind so many tokens too, whose latents are made up, not computed",
    )
    latency.add_argument("--new-tokens", type=_count, default=64, metavar="N", help="per sequence (default: 64)")

    described = "where a step's time goes: each operator's share, and what it reaches of memory and matrix units"
    operators = kinds.add_parser("operators", help=described, description=described, allow_abbrev=False)
    operators.add_argument("--prompt-tokens", type=_counts, default=[512], metavar="N,N", help="(default: 512)")
    operators.add_argument("--batch-size", type=_counts, default=[1, 8, 32], metavar="N,N", help="(default: 1,8,32)")
    operators.add_argument(
        "--context", type=_counts, default=[], metavar="N,N", help="decode one sequence behind so many made-up tokens"
    )

    described = "many requests at once"
    throughput = kinds.add_parser("throughput", help=described, description=described, allow_abbrev=False)
    throughput.add_argument("--num-prompts", type=_count, default=64, metavar="N", help="requests (default: 64)")

    described = "a running server, as its clients see it"
    serve = kinds.add_parser("serve", help=described, description=described, allow_abbrev=False)
    serve.add_argument("--url", default="http://127.0.0.1:8000", help="(default: %(default)s)")
    serve.add_argument("--model", metavar="NAME", help="the server's model (default: its first)")
    serve.add_argument("--api-key", help="key that the server wants")
    serve.add_argument("--concurrency", type=_counts, default=[1, 8, 32], metavar="N,N", help="(default: 1,8,32)")
    serve.add_argument(
        "--rounds",
        type=_count,
        default=3,
        metavar="N",
        help="of all levels, one after the other (default: %(default)s)",
    )
    serve.add_argument(
        "--chaos",
        action="store_true",
        help="a mixed load with aborts and hostile requests instead; exit status 1 if the server breaks a promise",
    )
    serve.add_argument(
        "--duration", type=_count, default=1200, metavar="SECONDS", help="of --chaos (default: %(default)s)"
    )

    described = "what a draft brings, by how many of its guesses come true"
    speculation = kinds.add_parser("speculation", help=described, description=described, allow_abbrev=False)
    speculation.add_argument(
        "--acceptance",
        type=_shares,
        default=[0.0, 0.5, 0.7, 0.9, 1.0],
        metavar="X,X",
        help="(default: 0,0.5,0.7,0.9,1)",
    )
    speculation.add_argument(
        "--adaptive", action="store_true", help="as many guesses as pay, as a server has it, instead of a fixed number"
    )
    speculation.add_argument("--batch-size", type=_counts, default=[1, 8], metavar="N,N", help="(default: 1,8)")
    speculation.add_argument("--new-tokens", type=_count, default=64, metavar="N", help="per sequence (default: 64)")

    described = "what --attention-format and --head-format do to the logits"
    formats = kinds.add_parser("formats", help=described, description=described, allow_abbrev=False)
    formats.add_argument("model", nargs="?", help=MODEL_HELP + "; it needs no tokenizer")

    for kind in (throughput, serve):
        kind.add_argument("--input-len", type=_count, default=128, metavar="N", help="prompt tokens (default: 128)")
        kind.add_argument("--output-len", type=_count, default=64, metavar="N", help="new tokens (default: 64)")
    for kind, repeats in ((latency, 3), (operators, 2), (throughput, 1), (serve, 2), (speculation, 3)):
        kind.add_argument("--repeats", type=_count, default=repeats, metavar="N", help="(default: %(default)s)")
    for kind in (latency, operators, throughput, serve, speculation, formats):
        kind.add_argument("--output", type=Path, metavar="FILE", help="write the result there, as JSON")
        kind.add_argument("--note", default="", metavar="TEXT", help="put into the result file")
    for kind in (latency, operators, throughput, speculation):
        kind.add_argument("model", nargs="?", help=MODEL_HELP + "; it needs no tokenizer")
        add_flags(kind, EngineConfig, "engine")


def _count(text: str) -> int:
    value = parse_count(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _shares(text: str) -> list[float]:
    shares = [float(part) for part in text.split(",")]
    if not all(0 <= share <= 1 for share in shares):
        raise argparse.ArgumentTypeError(f"must lie in 0 to 1, got {text}")
    return shares


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from ventoux.evals.bench import result, write_result

    if args.output is not None and args.output.is_dir():
        raise ConfigError(f"--output {args.output} is a folder; name a file in it.")
    kinds: dict[str, Callable[[argparse.Namespace], Measured]] = {
        "latency": bench_engine.measure_latency,
        "operators": bench_engine.measure_operators,
        "throughput": bench_engine.measure_throughput,
        "serve": _serve,
        "speculation": bench_engine.measure_speculation,
        "formats": bench_engine.measure_formats,
    }
    measure = _chaos if args.what == "serve" and args.chaos else kinds[args.what]
    config, results, table = measure(args)
    Console().print(table)
    if args.output is not None:
        model = Path(args.model).name if args.model else "bundled"
        if args.what == "serve":
            model = config["model"]
        write_result(args.output, result(args.what, model, config, results, args.note))
        print(f"wrote {args.output}")
    for promise in results.get("broken", ()):
        print(f"broken: {promise}", file=sys.stderr)
    return 1 if results.get("broken") else 0


def _serve(args: argparse.Namespace) -> Measured:
    from ventoux.evals.bench_serve import ServeBench

    bench = ServeBench(
        args.url,
        model=args.model,
        api_key=args.api_key,
        input_tokens=args.input_len,
        output_tokens=args.output_len,
    )
    with ticks("measuring", sum(args.concurrency) * args.repeats * args.rounds, "requests") as tick:
        levels = bench.run(args.concurrency, args.repeats, args.rounds, tick)
    caption = f"milliseconds: p50 / p90 / p99; others: medians of {args.rounds} round(s) (range)"
    table = new_table("clients", "first token, ms", "between tokens, ms", "tokens/s", "requests/s", caption=caption)
    for row in levels:
        table.add_row(
            str(row["concurrency"]),
            *(_ranks(row["time_to_first_token_ms"]), _ranks(row["inter_token_latency_ms"])),
            *(_spread(row["output_tokens_per_second"], 0), _spread(row["requests_per_second"], 1)),
        )
    config = {"url": bench.url, "model": bench.model, "input_tokens": args.input_len, "output_tokens": args.output_len}
    return {**config, "rounds": args.rounds}, {"levels": levels}, table


def _chaos(args: argparse.Namespace) -> Measured:
    from ventoux.evals.chaos import ABORTED, HOSTILE, Chaos

    clients = max(args.concurrency)
    chaos = Chaos(args.url, model=args.model, api_key=args.api_key, clients=clients, seconds=args.duration)
    with loading_bar("disturbing", unit="s") as progress:
        results = chaos.run(lambda seconds: progress(round(seconds), args.duration))
    counts = results["requests"]
    caption = ", ".join(f"{count} {what}" for what, count in counts.items())
    table = new_table(
        "process", "second quarter, MiB", "last quarter, MiB", "peak, MiB", "file handles", caption=caption
    )
    for row in results["processes"]:
        sizes = (row[name] / 2**20 for name in ("second_quarter_bytes", "last_quarter_bytes", "peak_bytes"))
        handles = f"{row['file_handles_before']} - {row['file_handles_after']}"
        table.add_row(row["process"], *(f"{size:.1f}" for size in sizes), handles)
    config = {"url": chaos.url, "model": chaos.model, "clients": clients, "seconds": args.duration}
    return {**config, "share_aborted": ABORTED, "share_hostile": HOSTILE}, results, table


def _spread(found: dict[str, float], digits: int) -> str:
    low, high = found["min"], found["max"]
    return f"{found['median']:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def _ranks(values: dict[str, float | None]) -> str:
    return " / ".join("-" if value is None else f"{value:.1f}" for value in values.values())
