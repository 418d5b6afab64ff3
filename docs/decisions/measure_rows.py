"""The figures of decision 007: products with 1 to 32 rows against the speed of the memory, and the same bits in all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from ventoux.evals.machine import describe
from ventoux.hardware import probe_hardware
from ventoux.ops.cpu import empty, native_operators

ROWS, COLS = 65536, 1024
REPEATS = 9


def seconds(run: Callable[[], object]) -> float:
    """Median of REPEATS runs after one that does not count."""
    run()
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    threads = probe_hardware().num_cores
    ops = native_operators(threads)
    weight = empty((ROWS, COLS), torch.bfloat16)
    weight.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(32, COLS, generator=torch.Generator().manual_seed(1)).bfloat16()
    together = ops.linear(x, weight)
    torch.set_num_threads(threads)
    plain = weight.view(torch.float32)
    print(f"{describe()['cpu']}, {threads} thread(s), {ops.name}")
    print(f"torch sum of the same bytes as fp32: {weight.nbytes / seconds(lambda: plain.sum()) / 1e9:.1f} GB/s")
    for count in (1, 2, 4, 8, 16, 32):
        taken = seconds(lambda count=count: ops.linear(x[:count], weight))
        speed, work = weight.nbytes / taken / 1e9, 2 * count * weight.numel() / taken / 1e9
        same = torch.equal(ops.linear(x[:count], weight), together[:count])
        print(f"{count:>3} rows: {speed:5.1f} GB/s of weights, {work:6.1f} GFLOP/s, same bits: {same}")


if __name__ == "__main__":
    main()
