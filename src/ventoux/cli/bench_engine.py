"""What `ventoux bench` measures of an engine in this process: latency, operators, throughput, speculation, formats."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ventoux.cli.flags import from_args
from ventoux.cli.progress import loading_bar
from ventoux.config import EngineConfig

if TYPE_CHECKING:
    from rich.table import Table

    from ventoux.engine.engine import Engine
    from ventoux.evals import machine
    from ventoux.evals.bench import Tick

# What a measurement gives: its configuration, its results, and a table of them.
Measured = tuple[dict[str, Any], dict[str, Any], "Table"]


def measure_latency(args: argparse.Namespace) -> Measured:
    from ventoux.evals import bench, machine
    from ventoux.evals.bench_context import check_context, long_context

    engine, loading = _load(args)
    check_context(engine, args.context, args.new_tokens)  # before all that is measured first would be lost
    num_runs = bench.num_latency_runs(args.prompt_tokens, args.batch_size, args.repeats)
    num_runs += len(args.context) * args.repeats
    with machine.speeds_beside() as speeds, ticks("measuring", num_runs, "runs", speeds) as tick:
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
    bench.add_shares(measured["decode"] + measured["long_context"])
    bench.add_peak_shares(measured["prefill"])
    config = {**bench.model_facts(engine), "decode_prompt_tokens": bench.DECODE_PROMPT, "new_tokens": args.new_tokens}
    results = {**measured, "memory": memory, "speculation": bench.acceptance(engine)}
    return config, results, _latency_table(results)


def _latency_table(results: dict[str, Any]) -> Table:
    memory = results["memory"]
    caption = (
        f"loaded in {memory['load_seconds']:.1f} s; resident at most {memory['peak_bytes'] / 2**30:.2f} GiB"
        f" ({memory['loaded_bytes'] / 2**30:.2f} GiB once loaded)\n{_limits(results['prefill'])}{_guesses(results)}"
    )
    table = new_table("measured", "tokens/s", "min - max", "of the limit", caption=caption)
    for row in results["prefill"]:
        table.add_row(
            f"prefill of {row['prompt_tokens']}",
            *_cells(row["tokens_per_second"]),
            f"{row['share_of_matrix_peak']:.0%} of {row['matrix_operations_per_second'] / 1e9:.0f} GFLOP/s",
        )
    decode = [(f"decode, batch {row['batch_size']}", row) for row in results["decode"]]
    decode += [(f"decode behind {row['context_tokens']}", row) for row in results["long_context"]]
    for name, row in decode:
        share = f"{row['share_of_bandwidth']:.0%} of {row['memory_bytes_per_second'] / 1e9:.1f} GB/s"
        table.add_row(name, *_cells(row["tokens_per_second"]), share)
    return table


def _limits(rows: list[dict[str, Any]]) -> str:
    return f"limits: {rows[0]['limits_method']}; after every run in a process beside, medians of a row's runs"


def _guesses(results: dict[str, Any]) -> str:
    """A line about speculation, if there was any."""
    if (found := results["speculation"]) is None:
        return ""
    by_position = ", ".join(f"{share:.0%}" for share in found["acceptance_by_position"])
    return f"\n{found['mean_accepted_tokens']:.2f} guesses came true per step with guesses; by position: {by_position}"


def measure_throughput(args: argparse.Namespace) -> Measured:
    from ventoux.evals import bench, machine

    engine, loading = _load(args)
    with ticks("measuring", args.repeats, "runs") as tick:
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
    table = new_table(
        *("measured", "per second", "min - max"),
        caption=f"{args.num_prompts} requests of {args.input_len} + {args.output_len} tokens{_guesses(results)}",
    )
    for name in ("requests", "output_tokens", "total_tokens"):
        table.add_row(name.replace("_", " "), *_cells(results[f"{name}_per_second"]))
    return bench.model_facts(engine), results, table


def measure_operators(args: argparse.Namespace) -> Measured:
    from ventoux.evals import bench, machine
    from ventoux.evals.bench_operators import add_shares, operators

    engine, _ = _load(args)
    num_cases = len(args.prompt_tokens) + len(args.batch_size) + len(args.context)
    num_runs = (2 * args.repeats + 1) * num_cases
    with machine.speeds_beside() as speeds, ticks("measuring", num_runs, "runs", speeds) as tick:
        rows = operators(
            engine,
            prompt_tokens=args.prompt_tokens,
            batch_sizes=args.batch_size,
            contexts=args.context,
            repeats=args.repeats,
            tick=tick,
        )
    add_shares(rows)
    table = new_table("per step", "ms", "share", "GB/s (of memory)", "GFLOP/s (of peak)", caption=_limits(rows))
    for row in rows:
        step = row["clocked_step_seconds"]["mean"]
        table.add_row(f"{row['case']} {row['size']}", f"{1e3 * row['step_seconds']['mean']:.2f}")
        for operator, found in sorted(row["operators"].items(), key=lambda item: -item[1]["seconds"]):
            cells = [f"{1e3 * found['seconds']:.2f}", f"{found['seconds'] / step:.1%}"]
            if found["operations"]:
                for what, share in (("bytes", "share_of_bandwidth"), ("operations", "share_of_matrix_peak")):
                    cells.append(f"{found[what] / found['seconds'] / 1e9:.1f} ({found[share]:.0%})")
            table.add_row(f"  {operator}", *cells)
    return bench.model_facts(engine), {"operators": rows}, table


def measure_formats(args: argparse.Namespace) -> Measured:
    from ventoux.build import all_operators
    from ventoux.checkpoint.files import open_checkpoint
    from ventoux.checkpoint.hub import resolve_model
    from ventoux.evals.bench_formats import formats
    from ventoux.evals.stored_prompts import prompts_for
    from ventoux.hardware import probe_hardware

    checkpoint, ops = open_checkpoint(resolve_model(args.model)), all_operators(probe_hardware().num_cores)[0]
    chosen, prompts = (
        [("fp8", "fp8"), ("nvfp4", "fp8"), ("stored", "nvfp4"), ("nvfp4", "nvfp4")],
        prompts_for(checkpoint),
    )
    with loading_bar("loading and comparing") as progress:
        rows = formats(checkpoint, ops, chosen, prompts.ids, progress)
    caption = f"against the weights as stored, on {prompts.what}"
    table = new_table("attention", "head", "weights", "KL, nats", "at most", "same top token", caption=caption)
    for row in rows:
        table.add_row(
            *(row["attention"], row["head"], f"{row['weight_bytes'] / 2**30:.3f} GiB"),
            *(f"{row['mean_kl']:.3g}", f"{row['max_kl']:.3g}", f"{row['same_top_token']:.1%}"),
        )
    return {"operators": ops.name, "prompts": prompts.what}, {"formats": rows}, table


def measure_speculation(args: argparse.Namespace) -> Measured:
    from ventoux.evals import bench
    from ventoux.evals.bench_speculation import num_runs, speculation

    engine, _ = _load(args)
    with ticks("measuring", num_runs(args.acceptance, args.batch_size, args.repeats), "runs") as tick:
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
    caption = f"{most} guesses a step; speed-up: mean of {args.repeats} runs beside those right before and after each"
    table = new_table("batch", "acceptance", "tokens/s", "without", "speed-up", "limit", caption=caption)
    for row in rows:
        rate, plain = row["tokens_per_second"]["median"], row["without_guesses"]["median"]
        error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.2f}"
        table.add_row(
            *(str(row["batch_size"]), f"{row['acceptance']:.2f}", f"{rate:.1f}", f"{plain:.1f}"),
            *(f"{row['speed_up']:.2f}{error}", f"{row['limit']:.2f}"),
        )
    config = {"num_speculative_tokens": most, "new_tokens": args.new_tokens, "adaptive": args.adaptive}
    return bench.model_facts(engine) | config, {"speculation": rows}, table


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
def ticks(title: str, total: int, unit: str, speeds: Tick = lambda: None) -> Iterator[Tick]:
    """Yields what moves the bar by one and gives what `speeds` measures then."""
    count = itertools.count(1)
    with loading_bar(title, unit=unit) as progress:

        def tick() -> machine.Speeds | None:
            progress(next(count), total)
            return speeds()

        yield tick


def new_table(first: str, *others: str, caption: str) -> Table:
    from rich.table import Table

    table = Table(first, caption=caption, caption_justify="left")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _cells(values: dict[str, Any]) -> tuple[str, str]:
    return f"{values['median']:.1f}", f"{values['min']:.1f} - {values['max']:.1f} (n={values['n']})"
