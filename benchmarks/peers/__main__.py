"""`make bench-peers`: Ventoux and its peers on the same weights, in turns, and one result file of it all.

Engines take turns, a round of all of them after the other, since the speed of a shared machine drifts: ratios are taken
within a round, and what memory and matrix product give is measured after every case.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peers import report, weights
from peers.protocol import counts

from ventoux.evals import bench, machine
from ventoux.hardware import probe_hardware

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "peers"
NAMES = sorted(path.parent.name for path in HERE.glob("*/__main__.py"))
# What a whole round of one engine may take, whatever its cases' limits come to.
ROUND_SECONDS = 1800


@dataclass
class Peer:
    """A folder beside this file; all but `ventoux` have an environment of their own."""

    name: str
    problem: str | None = None  # why it is not measured
    variants: list[str] = field(default_factory=list)

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.name == "ventoux" else BUILD / self.name / "bin" / "python"

    def command(self, action: str, *words: str) -> list[str]:
        return [str(self.python), "-m", f"peers.{self.name}", action, *words]


def main() -> int:
    args = _arguments()
    models = BUILD / "models" / args.size
    print(f"writing synthetic weights: {args.size}", flush=True)
    weights.write(args.size, models)
    peers = [Peer(name) for name in NAMES if args.only is None or name in (*args.only, "ventoux")]
    for peer in peers:
        _prepare(peer, models)
    with machine.speeds_beside() as speeds:
        rounds = [_round(peers, models, args, seed, speeds) for seed in range(args.rounds)]
    results = report.summary(rounds, json.loads((models / "model.json").read_text()))
    results["not_measured"] = {peer.name: peer.problem for peer in peers if peer.problem}
    config = {name: value for name, value in vars(args).items() if name not in ("output", "note")}
    content = bench.result("peers", args.size, config, {**results, "rounds": rounds}, args.note)
    output = args.output or HERE.parent / "results" / f"{datetime.now(UTC):%Y-%m-%d}-{args.size}-peers.json"
    bench.write_result(output, content)
    print(report.table(results))
    print(f"wrote {output}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="peers", description=__doc__, allow_abbrev=False)
    parser.add_argument("--size", choices=weights.SIZES, default="mid")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prefill", type=counts, default="512,2048", help="prompt lengths (default: %(default)s)")
    parser.add_argument("--decode", type=counts, default="1,8,32", help="sequences at once (default: %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=128, help="at most, per sequence (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=40.0, help="limit of a case (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=probe_hardware().num_cores, help="(default: the cores)")
    parser.add_argument("--only", type=lambda text: text.split(","), help="these peers, and Ventoux")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    if unknown := sorted(set(args.only or ()).difference(NAMES)):
        parser.error(f"--only {','.join(unknown)}: there are {', '.join(NAMES)}.")
    if min(args.rounds, args.new_tokens, args.threads, args.seconds) <= 0:
        parser.error("--rounds, --new-tokens, --threads and --seconds must be positive.")
    return args


def _prepare(peer: Peer, models: Path) -> None:
    """Fills in the variants, or the problem."""
    if peer.name != "ventoux" and not (BUILD / peer.name / ".installed").exists():
        log = BUILD / peer.name / "install.log"
        told = [line for line in log.read_text().splitlines() if "error" in line.lower()] if log.exists() else []
        peer.problem = f"not installed: {told[-1] if told else 'see ' + log.name}"
        return
    print(f"preparing {peer.name}", flush=True)
    done = subprocess.run(peer.command("prepare", str(models)), cwd=HERE.parent, capture_output=True, text=True)
    if done.returncode:
        peer.problem = f"cannot be prepared: {_last_line(done.stderr)}"
    else:
        peer.variants = json.loads(done.stdout)["variants"]


def _round(
    peers: list[Peer], models: Path, args: argparse.Namespace, seed: int, speeds: Callable[[], machine.Speeds]
) -> list[dict[str, Any]]:
    """One entry per engine: its lines, each with what memory and matrix product gave right after it."""
    entries = []
    for peer in peers:
        for variant in peer.variants:
            print(f"round {seed + 1} of {args.rounds}: {peer.name} {variant}", flush=True)
            lines = _measure(peer, variant, models, args, seed, speeds)
            entries.append({"engine": f"{peer.name} {variant}", **lines})
    return entries


def _measure(
    peer: Peer,
    variant: str,
    models: Path,
    args: argparse.Namespace,
    seed: int,
    speeds: Callable[[], machine.Speeds],
) -> dict[str, Any]:
    flags = {name: ",".join(map(str, getattr(args, name))) for name in ("prefill", "decode")}
    flags |= {"new-tokens": args.new_tokens, "seconds": args.seconds, "threads": args.threads, "seed": seed}
    words = [f"--{name}={value}" for name, value in flags.items()]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    log = BUILD / f"{peer.name}.log"
    started = time.perf_counter()
    lines = []
    with (
        log.open("w") as errors,
        subprocess.Popen(
            ["timeout", str(ROUND_SECONDS), *peer.command("measure", str(models), variant, *words)],
            cwd=HERE.parent,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdin and process.stdout
        try:
            for text in process.stdout:
                line = json.loads(text)
                if line["case"] == "load":
                    # From the command to the first token of a short prompt, interpreter and imports included.
                    line["start_seconds"] = time.perf_counter() - started
                lines.append(line | asdict(speeds()))
                with suppress(OSError):  # it may have been ended meanwhile
                    print("on", file=process.stdin, flush=True)
        except BaseException:  # an interrupt does not reach the engine
            process.terminate()
            raise
        finally:
            with suppress(OSError):
                process.stdin.close()
    entry: dict[str, Any] = {"cases": lines}
    if process.returncode:
        entry["problem"] = f"exit status {process.returncode}: {_last_line(log.read_text())}"
        print(f"  {entry['problem']}", flush=True)
    return entry


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


if __name__ == "__main__":
    sys.exit(main())
