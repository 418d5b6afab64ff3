"""What torch's threads cost beside native operators: decoding with one of them and with all, the machine otherwise idle
and with a neighbour that keeps one core busy; and what sampling costs on one. Prints the tables of decision 012.

    python docs/decisions/measure_threads.py
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import ventoux
from ventoux.build import build_engine
from ventoux.config import EngineConfig
from ventoux.engine.request import SamplingParams
from ventoux.engine.sampler import _draw, rows_of
from ventoux.evals.bench import decode_run, random_prompts
from ventoux.plan import EnginePlan

BATCHES, NEW_TOKENS, REPEATS = (1, 8, 32), 96, 3
RULES = {
    "all tokens": SamplingParams(),
    "top-p 0.95": SamplingParams(top_p=0.95),
    "top-k 50": SamplingParams(top_k=50),
    "min-p 0.05": SamplingParams(min_p=0.05),
}
BUSY = "while True: pass"


def main() -> None:
    choices = EngineConfig(speculative_config='{"method": "none"}', max_model_len=4096)
    engine = build_engine(Path(ventoux.__file__).parent / "demo", choices).engine
    one_thread = engine.plan
    all_threads = replace(one_thread, operators="reference")  # a name alone: they stay native
    print("bundled model, tokens/s decoding", *BATCHES, "sequences")
    for neighbour in (False, True):
        busy = subprocess.Popen([sys.executable, "-c", BUSY]) if neighbour else None
        try:
            runs: dict[EnginePlan, list[list[float]]] = {one_thread: [], all_threads: []}
            for repeat in range(REPEATS):
                for plan, found in runs.items():
                    engine.plan = plan
                    prompts = (random_prompts(engine, batch, 128, repeat) for batch in BATCHES)
                    found.append([decode_run(engine, some, NEW_TOKENS).tokens_per_second for some in prompts])
        finally:
            if busy is not None:
                busy.kill()
                busy.wait()
        for plan, found in runs.items():
            medians = [round(statistics.median(column)) for column in zip(*found, strict=True)]
            print("beside a busy process" if neighbour else "alone", f"torch threads {plan.torch_threads}:", *medians)
    torch.set_num_threads(1)
    for vocab_size in (5096, 131072):
        logits_KV = 3 * torch.randn(32, vocab_size, generator=torch.Generator().manual_seed(0))
        print(f"32 rows of {vocab_size}: finite, largest {milliseconds(rows_of, logits_KV):.2f} ms")
        for rule, params in RULES.items():
            cost = milliseconds(draw_all, logits_KV, params)
            print(f"32 rows of {vocab_size}: {rule} {cost:.1f} ms")


def draw_all(logits_KV: torch.Tensor, params: SamplingParams) -> list[int]:
    return [_draw(row_V, params, 0.5) for row_V in logits_KV]


def milliseconds(work: Callable, *arguments) -> float:
    work(*arguments)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        work(*arguments)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    main()
