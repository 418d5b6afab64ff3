"""`ventoux eval demo`: ask held-out examples through a server's API and print the table of what was right."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("demo",), help="what to measure")
    parser.add_argument("model", nargs="?", help="folder or Hub id (default: the bundled model)")
    parser.add_argument("--url", help="a server that runs already; otherwise one is started for the while")
    parser.add_argument("--model-name", default="ventoux-demo", help="the name to ask for (default: ventoux-demo)")
    parser.add_argument("--per-task", type=int, default=100, metavar="N", help="examples per task (default: 100)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="requests at a time (default: 8)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another set of held-out examples")
    parser.add_argument("--output", type=Path, metavar="FILE", help="result file (JSON)")
    parser.add_argument("--show-failures", action="store_true", help="print the first wrong answers of each task")


def run(args: argparse.Namespace) -> int:
    import asyncio
    import json

    from ventoux.cli.local_server import local_server
    from ventoux.cli.progress import loading_bar
    from ventoux.errors import ConfigError
    from ventoux.evals.demo import TASKS, USUAL_TASKS, evaluate, verdicts
    from ventoux.evals.machine import commit, describe, versions

    if args.per_task < 1:
        raise ConfigError("--per-task must be at least 1.")
    tasks = tuple(args.tasks or USUAL_TASKS)
    if unknown := set(tasks) - set(TASKS):
        raise ConfigError(f"--tasks: there is no {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}.")
    with (
        local_server(args.url, args.model, args.model_name) as url,
        loading_bar("asking", unit="questions") as progress,
    ):
        results = asyncio.run(
            evaluate(
                url,
                args.model_name,
                per_task=args.per_task,
                tasks=tasks,
                seed=args.seed,
                concurrency=args.concurrency,
                progress=progress,
            )
        )
    for what, told, met in verdicts(results):
        print(f"{what:<12}{told:<40}{'' if met is None else 'met' if met else 'missed'}")
        if args.show_failures and what in results:
            for expected, got in results[what].failures:
                print(f"    expected {json.dumps(expected, ensure_ascii=False)}")
                print(f"    got      {json.dumps(got, ensure_ascii=False)}")
    if drafted := sum(r.drafted_tokens for r in results.values()):
        print(f"{sum(r.accepted_tokens for r in results.values())} of {drafted} guesses accepted")
    if args.output:
        record = {
            "machine": describe(),
            "versions": versions(),
            "commit": commit(),
            "seed": args.seed,
            "bars": {what: {"told": " ".join(told.split()), "met": met} for what, told, met in verdicts(results)},
            "tasks": {
                t: {name: value for name, value in asdict(r).items() if name != "failures"} for t, r in results.items()
            },
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=2) + "\n")
    return 0
