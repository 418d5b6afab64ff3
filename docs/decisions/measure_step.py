"""The figures of decision 016: how much of a decode step is native code, and how much lies around it. Of the installed
package alone, or of another state of the sources beside it, each in a process of its own, by turns.

    python measure_step.py CHECKPOINT [--other OLD/src] [--batch 1,32] [--rounds 5]

OLD is `git archive COMMIT src | tar -x -C OLD` with that commit's `_native*.so` in OLD/src/ventoux/ops.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path

NEW_TOKENS = 96


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--other", default="")
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    sources = {"other": args.other, "installed": ""} if args.other else {"installed": ""}
    for batch in args.batch.split(","):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in sources}
        for _ in range(args.rounds):
            for name, source in sources.items():
                command = [sys.executable, __file__, "--worker", source, args.checkpoint, batch]
                found[name].append(json.loads(subprocess.check_output(command, text=True)))
        for name, rounds in found.items():
            middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
            print(
                f"{batch} sequences, {name}: step {middle['step']:.0f} us,"
                f" native {middle['native']:.0f}, around it {middle['step'] - middle['native']:.0f}"
            )
        if args.other:
            pairs = list(zip(found["other"], found["installed"], strict=True))
            ratios = [old["step"] / new["step"] for old, new in pairs]
            print(f"  {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} - {max(ratios):.2f})")


def worker(source: str, checkpoint: str, batch: int) -> None:
    if source:
        # An editable installation answers for the package before any path does.
        sys.meta_path[:] = [f for f in sys.meta_path if f is PathFinder or f.find_spec("ventoux", None) is None]
        sys.path.insert(0, source)
    from ventoux.build import build_engine
    from ventoux.config import EngineConfig
    from ventoux.engine.engine import Engine
    from ventoux.evals import bench
    from ventoux.ops import cpu

    inside = 0.0

    class Timed:
        """Native code's face, with a clock around each call."""

        def __init__(self, runtime):
            self.runtime = runtime

        def __getattr__(self, name):
            call = getattr(self.runtime, name)

            def timed(*args):
                nonlocal inside
                began = time.perf_counter()
                result = call(*args)
                inside += time.perf_counter() - began
                return result

            setattr(self, name, timed)
            return timed

    made = cpu._Native.__init__
    cpu._Native.__init__ = lambda self, runtime, *args: made(self, Timed(runtime), *args)
    steps: list[tuple[float, float]] = []
    step = Engine.step

    def timed_step(*args):
        before, began = inside, time.perf_counter()
        outputs = step(*args)
        steps.append((time.perf_counter() - began, inside - before))
        return outputs

    Engine.step = timed_step
    dtype = "auto" if Path(checkpoint).name == "demo" else "bfloat16"
    choices = EngineConfig(dtype=dtype, max_model_len=1024, kv_cache_memory=2**28)
    engine = build_engine(Path(checkpoint), choices).engine
    engine.speculation = None
    bench.decode_run(engine, bench.random_prompts(engine, batch, bench.DECODE_PROMPT, seed=0), 8)
    steps.clear()
    bench.decode_run(engine, bench.random_prompts(engine, batch, bench.DECODE_PROMPT, seed=1), NEW_TOKENS)
    whole, native = (statistics.median(column) for column in zip(*steps, strict=True))
    print(json.dumps({"step": 1e6 * whole, "native": 1e6 * native}))


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        worker(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
