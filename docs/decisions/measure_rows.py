"""The figures of decisions 007 and 011: products with 1 to 32 rows, in every stored format, against the speed of the
memory; and the same bits in all. `python measure_rows.py avx512` takes another instruction set than the best."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from ventoux.evals.machine import describe, memory_bandwidth
from ventoux.hardware import probe_hardware
from ventoux.ops.cpu import native_operators
from ventoux.ops.formats import FP8, GROUP, Fp8Weight, Nvfp4Weight, Weight
from ventoux.ops.native import empty

ROWS, COLS = 65536, 1024
REPEATS = 9


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Median and least of REPEATS runs after one that does not count."""
    run()
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), min(taken)


def weights() -> dict[str, Weight]:
    """The same matrix size in each format, in memory as the loader takes it."""
    generator = torch.Generator().manual_seed(0)
    dense = empty((ROWS, COLS), torch.bfloat16).normal_(generator=generator)
    # Every code but FP8's NaN.
    codes = empty((ROWS, COLS), torch.uint8).random_(0, 127, generator=generator)
    nibbles = empty((ROWS, COLS // 2), torch.uint8).random_(0, 256, generator=generator)
    groups = empty((ROWS, COLS // GROUP), torch.uint8).random_(8, 127, generator=generator)
    ones = torch.ones(ROWS)
    return {
        "bf16": dense,
        "fp8": Fp8Weight(codes.view(FP8), ones),
        "nvfp4": Nvfp4Weight(nibbles, groups.view(FP8), ones),
    }


def main(instruction_set: str | None = None) -> None:
    threads = probe_hardware().num_cores
    ops = native_operators(threads, instruction_set)
    x = torch.randn(32, COLS, generator=torch.Generator().manual_seed(1)).bfloat16()
    torch.set_num_threads(threads)
    print(f"{describe()['cpu']}, {threads} thread(s), {ops.name}; medians and (best) of {REPEATS}")
    print(f"memory reads {memory_bandwidth()[0] / 1e9:.1f} GB/s")
    for name, weight in weights().items():
        together = ops.linear(x, weight)
        for count in (1, 2, 4, 8, 16, 32):
            taken, best = seconds(lambda count=count, weight=weight: ops.linear(x[:count], weight))
            work = 2 * count * ROWS * COLS / 1e9
            same = torch.equal(ops.linear(x[:count], weight), together[:count])
            speeds = f"{weight.nbytes / taken / 1e9:5.1f} ({weight.nbytes / best / 1e9:5.1f}) GB/s"
            rates = f"{work / taken:6.1f} ({work / best:6.1f}) GFLOP/s"
            print(f"{name:>5}, {count:>2} rows: {speeds}, {rates}, same bits: {same}")


if __name__ == "__main__":
    main(*sys.argv[1:])
