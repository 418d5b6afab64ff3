"""`ventoux bench`: measure latency, throughput, or a running server; print a table and write a result file."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ventoux.cli.flags import add_flags, from_args, parse_count
from ventoux.cli.offline import MODEL_HELP
from ventoux.cli.progress import loading_bar
from ventoux.config import EngineConfig
from ventoux.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from ventoux.engine.engine import Engine


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
    for kind, repeats in ((latency, 3), (throughput, 1), (serve, 2), (speculation, 3)):
        kind.add_argument("--repeats", type=_count, default=repeats, metavar="N", help="(default: %(default)s)")
    for kind in (latency, throughput, serve, speculation, formats):
        kind.add_argument("--output", type=Path, metavar="FILE", help="write the result there, as JSON")
        kind.add_argument("--note", default="", metavar="TEXT", help="put into the result file")
    for kind in (latency, throughput, speculation):
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
    kinds: dict[str, Callable[[argparse.Namespace], _Measured]] = {
        "latency": _latency,
        "throughput": _throughput,
        "serve": _serve,
        "speculation": _speculation,
        "formats": _formats,
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


# What a measurement gives: its configuration, its results, and a table of them.
_Measured = tuple[dict[str, Any], dict[str, Any], "Table"]


def _latency(args: argparse.Namespace) -> _Measured:
    from ventoux.evals import bench, machine
    from ventoux.evals.bench_context import check_context, long_context

    engine, loading = _load(args)
    check_context(engine, args.context, args.new_tokens)  # before all that is measured first would be lost
    num_runs = bench.num_latency_runs(args.prompt_tokens, args.batch_size, args.repeats)
    num_runs += len(args.context) * args.repeats
    with _ticks("measuring", num_runs, "runs") as tick:
        measured = bench.latency(
            engine,
            prompt_tokens=args.prompt_tokens,
            batch_sizes=args.batch_size,
            new_tokens=args.new_tokens,
            repeats=args.repeats,
            tick=tick,
        )
        measured["long_context"] = long_context(
            engine, contexts=args.context, new_tokens=args.new_tokens, repeats=args.repeats, tick=tick
        )
    memory = {**loading, "peak_bytes": machine.peak_memory()}
    # Last: it needs a gigabyte itself, which must not count as the engine's.
    bandwidth = machine.memory_bandwidth()
    bench.add_shares(measured["decode"] + measured["long_context"], bandwidth["bytes_per_second"])
    config = {**bench.model_facts(engine), "decode_prompt_tokens": bench.DECODE_PROMPT, "new_tokens": args.new_tokens}
    results = {**measured, "memory": memory, "memory_bandwidth": bandwidth, "speculation": bench.acceptance(engine)}
    return config, results, _latency_table(results)


def _latency_table(results: dict[str, Any]) -> Table:
    memory, bandwidth = results["memory"], results["memory_bandwidth"]
    caption = (
        f"loaded in {memory['load_seconds']:.1f} s; resident at most {memory['peak_bytes'] / 2**30:.2f} GiB"
        f" ({memory['loaded_bytes'] / 2**30:.2f} GiB once loaded)\nmemory reads"
        f" {bandwidth['bytes_per_second'] / 1e9:.1f} GB/s: {bandwidth['method']}{_guesses(results)}"
    )
    table = _table("measured", "tokens/s", "min - max", "of memory speed", caption=caption)
    for row in results["prefill"]:
        table.add_row(f"prefill of {row['prompt_tokens']}", *_cells(row["tokens_per_second"]), "")
    decode = [(f"decode, batch of {row['batch_size']}", row) for row in results["decode"]]
    decode += [(f"decode behind {row['context_tokens']}", row) for row in results["long_context"]]
    for name, row in decode:
        table.add_row(name, *_cells(row["tokens_per_second"]), f"{row['share_of_bandwidth']:.1%}")
    return table


def _guesses(results: dict[str, Any]) -> str:
    """A line about speculation, if there was any."""
    if (found := results["speculation"]) is None:
        return ""
    by_position = ", ".join(f"{share:.0%}" for share in found["acceptance_by_position"])
    return f"\n{found['mean_accepted_tokens']:.2f} guesses came true per step with guesses; by position: {by_position}"


def _throughput(args: argparse.Namespace) -> _Measured:
    from ventoux.evals import bench, machine

    engine, loading = _load(args)
    with _ticks("measuring", args.repeats, "runs") as tick:
        results = bench.throughput(
            engine,
            num_requests=args.num_prompts,
            input_tokens=args.input_len,
            output_tokens=args.output_len,
            repeats=args.repeats,
            tick=tick,
        )
    results["memory"] = {**loading, "peak_bytes": machine.peak_memory()}
    results["speculation"] = bench.acceptance(engine)
    table = _table(
        *("measured", "per second", "min - max"),
        caption=f"{args.num_prompts} requests of {args.input_len} + {args.output_len} tokens{_guesses(results)}",
    )
    for name in ("requests", "output_tokens", "total_tokens"):
        table.add_row(name.replace("_", " "), *_cells(results[f"{name}_per_second"]))
    return bench.model_facts(engine), results, table


def _formats(args: argparse.Namespace) -> _Measured:
    from ventoux.build import all_operators
    from ventoux.checkpoint.compare import NUM_PROMPTS, PROMPT_TOKENS
    from ventoux.checkpoint.files import open_checkpoint
    from ventoux.checkpoint.hub import resolve_model
    from ventoux.evals.bench_formats import formats
    from ventoux.hardware import probe_hardware

    checkpoint, ops = open_checkpoint(resolve_model(args.model)), all_operators(probe_hardware().num_cores)[0]
    chosen = [("fp8", "fp8"), ("nvfp4", "fp8"), ("stored", "nvfp4"), ("nvfp4", "nvfp4")]
    with loading_bar("loading and comparing") as progress:
        rows = formats(checkpoint, ops, chosen, progress)
    caption = f"against the weights as stored, on {NUM_PROMPTS} prompts of {PROMPT_TOKENS} random tokens"
    table = _table("attention", "head", "weights", "KL, nats", "at most", "same top token", caption=caption)
    for row in rows:
        table.add_row(
            *(row["attention"], row["head"], f"{row['weight_bytes'] / 2**30:.3f} GiB"),
            *(f"{row['mean_kl']:.3g}", f"{row['max_kl']:.3g}", f"{row['same_top_token']:.1%}"),
        )
    return {"operators": ops.name}, {"formats": rows}, table


def _speculation(args: argparse.Namespace) -> _Measured:
    from ventoux.evals import bench
    from ventoux.evals.bench_speculation import num_runs, speculation

    engine, _ = _load(args)
    with _ticks("measuring", num_runs(args.acceptance, args.batch_size, args.repeats), "runs") as tick:
        rows = speculation(
            engine,
            acceptances=args.acceptance,
            batch_sizes=args.batch_size,
            new_tokens=args.new_tokens,
            repeats=args.repeats,
            adaptive=args.adaptive,
            tick=tick,
        )
    most = engine.plan.num_speculative_tokens
    caption = f"{most} guesses a step; speed-up: mean of {args.repeats} runs beside the ones right before and after"
    table = _table("batch", "acceptance", "tokens/s", "without", "speed-up", "limit", caption=caption)
    for row in rows:
        rate, plain = row["tokens_per_second"]["median"], row["without_guesses"]["median"]
        error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.2f}"
        table.add_row(
            *(str(row["batch_size"]), f"{row['acceptance']:.2f}", f"{rate:.1f}", f"{plain:.1f}"),
            *(f"{row['speed_up']:.2f}{error}", f"{row['limit']:.2f}"),
        )
    config = {"num_speculative_tokens": most, "new_tokens": args.new_tokens, "adaptive": args.adaptive}
    return bench.model_facts(engine) | config, {"speculation": rows}, table


def _serve(args: argparse.Namespace) -> _Measured:
    from ventoux.evals.bench_serve import ServeBench

    bench = ServeBench(
        args.url,
        model=args.model,
        api_key=args.api_key,
        input_tokens=args.input_len,
        output_tokens=args.output_len,
    )
    with _ticks("measuring", sum(args.concurrency) * args.repeats, "requests") as tick:
        levels = bench.run(args.concurrency, args.repeats, tick)
    table = _table(
        "clients", "first token, ms", "between tokens, ms", "tokens/s", "requests/s", caption="p50 / p90 / p99"
    )
    for row in levels:
        table.add_row(
            str(row["concurrency"]),
            *(_ranks(row["time_to_first_token_ms"]), _ranks(row["inter_token_latency_ms"])),
            *(f"{row['output_tokens_per_second']:.1f}", f"{row['requests_per_second']:.2f}"),
        )
    config = {"url": bench.url, "model": bench.model, "input_tokens": args.input_len, "output_tokens": args.output_len}
    return config, {"levels": levels}, table


def _chaos(args: argparse.Namespace) -> _Measured:
    from ventoux.evals.chaos import ABORTED, HOSTILE, Chaos

    clients = max(args.concurrency)
    chaos = Chaos(args.url, model=args.model, api_key=args.api_key, clients=clients, seconds=args.duration)
    with loading_bar("disturbing", unit="s") as progress:
        results = chaos.run(lambda seconds: progress(round(seconds), args.duration))
    counts = results["requests"]
    caption = ", ".join(f"{count} {what}" for what, count in counts.items())
    table = _table("process", "second quarter, MiB", "last quarter, MiB", "peak, MiB", "file handles", caption=caption)
    for row in results["processes"]:
        sizes = (row[name] / 2**20 for name in ("second_quarter_bytes", "last_quarter_bytes", "peak_bytes"))
        handles = f"{row['file_handles_before']} - {row['file_handles_after']}"
        table.add_row(row["process"], *(f"{size:.1f}" for size in sizes), handles)
    config = {"url": chaos.url, "model": chaos.model, "clients": clients, "seconds": args.duration}
    return {**config, "share_aborted": ABORTED, "share_hostile": HOSTILE}, results, table


def _load(args: argparse.Namespace) -> tuple[Engine, dict[str, Any]]:
    """The engine alone: no tokenizer is looked for."""
    from ventoux.build import build_engine
    from ventoux.checkpoint.hub import resolve_model
    from ventoux.evals.machine import peak_memory

    folder = resolve_model(args.model)
    started = time.perf_counter()
    with loading_bar("loading weights") as progress:
        engine = build_engine(folder, from_args(EngineConfig, args), progress).engine
    return engine, {"load_seconds": time.perf_counter() - started, "loaded_bytes": peak_memory()}


@contextmanager
def _ticks(title: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    count = itertools.count(1)
    with loading_bar(title, unit=unit) as progress:
        yield lambda: progress(next(count), total)


def _table(first: str, *others: str, caption: str) -> Table:
    from rich.table import Table

    table = Table(first, caption=caption, caption_justify="left")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _cells(values: dict[str, Any]) -> tuple[str, str]:
    return f"{values['median']:.1f}", f"{values['min']:.1f} - {values['max']:.1f} (n={values['n']})"


def _ranks(values: dict[str, float | None]) -> str:
    return " / ".join("-" if value is None else f"{value:.1f}" for value in values.values())
