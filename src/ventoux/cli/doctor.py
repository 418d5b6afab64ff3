"""`ventoux doctor`: what this machine has, what a server would plan on it, and whether it computes correctly."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", help="whose start-up plan to show: Hub id or folder (default: the bundled model)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")


def run(args: argparse.Namespace) -> int:
    from ventoux.build import all_operators, plan_start
    from ventoux.checkpoint.hub import bundled_model, resolve_model
    from ventoux.config import EngineConfig
    from ventoux.errors import CheckpointError
    from ventoux.evals import machine, selftest
    from ventoux.hardware import probe_hardware

    providers = all_operators(probe_hardware().num_cores)
    try:
        bundled = bundled_model()
    except CheckpointError:
        bundled = None
    folder = bundled if args.model is None else resolve_model(args.model)
    plan = None if folder is None else plan_start(folder, EngineConfig()).plan
    outcomes = selftest.run_checks(providers, bundled)
    passed = all(outcome.passed for outcome in outcomes)
    report = {
        "machine": machine.describe(),
        "versions": machine.versions(),
        "providers": [provider.name for provider in providers],
        "operators": providers[0].describe(),
        "bundled_model": bundled is not None,
        "plan": None if plan is None else asdict(plan),
        "checks": [asdict(outcome) for outcome in outcomes],
        "passed": passed,
    }
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
        if plan is not None:
            print(plan.describe())
    return 0 if passed else 1


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    machine = report["machine"]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("system", machine["system"])
    facts.add_row("CPU", f"{machine['cpu']}, {machine['cores']} core(s) for this process")
    facts.add_row("instruction sets", " ".join(machine["instruction_sets"]) or "none that matter here")
    gib = [machine[name] / 2**30 for name in ("memory_bytes", "available_bytes")]
    facts.add_row("memory", f"{gib[0]:.1f} GiB, {gib[1]:.1f} GiB available")
    facts.add_row("CUDA", machine["cuda"] or "none")
    facts.add_row("providers", ", ".join(report["providers"]))
    facts.add_row("operators", report["operators"])
    facts.add_row("bundled model", "present" if report["bundled_model"] else "not part of this installation")
    facts.add_row("versions", ", ".join(f"{name} {version or '-'}" for name, version in report["versions"].items()))
    checks = Table("", "self-test", "seconds", "", box=None)
    for check in report["checks"]:
        verdict = "[green]PASS[/green]" if check["passed"] else "[bold red]FAIL[/bold red]"
        checks.add_row(verdict, check["name"], f"{check['seconds']:.2f}", check["detail"].replace("[", r"\["))
    console = Console()
    console.print(facts)
    console.print(checks)
