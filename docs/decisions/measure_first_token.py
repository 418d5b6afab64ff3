"""From the command to the first token, beside what the machine takes to hand out that much memory: by turns, each in a
process of its own.

    python measure_first_token.py CHECKPOINT [--rounds 5] [--threads 2]

`touch` writes zeros to as much memory as the checkpoint's files hold, with as many threads and the same
huge pages, and does nothing else. The files are read once before, so that they lie in the page cache.
"""

from __future__ import annotations

import argparse
import mmap
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    files = list(args.checkpoint.glob("*.safetensors"))
    for file in files:
        with file.open("rb") as opened:
            while opened.read(2**24):
                pass
    size = sum(file.stat().st_size for file in files)
    found: dict[str, list[float]] = {"touch": [], "first token": [], "import torch": []}
    for _ in range(args.rounds):
        found["touch"].append(seconds("--touch", str(size), str(args.threads)))
        found["first token"].append(seconds("--answer", str(args.checkpoint), str(args.threads)))
        found["import torch"].append(seconds("--import"))
    print(f"{size / 1e9:.2f} GB of weights; seconds, medians of {args.rounds} (range)")
    for name, each in found.items():
        print(f"{name:13} {statistics.median(each):.2f} ({min(each):.2f} - {max(each):.2f})")


def seconds(*args: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, __file__, *args], check=True)
    return time.perf_counter() - began


def touch(size: int, threads: int) -> None:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    values = np.frombuffer(memory, dtype=np.uint8)
    workers = [threading.Thread(target=part.fill, args=(0,)) for part in np.array_split(values, threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def answer(folder: Path, threads: int) -> None:
    from ventoux.build import build_engine
    from ventoux.config import EngineConfig
    from ventoux.evals import bench

    choices = EngineConfig(dtype="bfloat16", max_model_len=2048, kv_cache_memory=2**28, num_threads=threads)
    engine = build_engine(folder, choices).engine
    bench.run_prompts(engine, bench.random_prompts(engine, 1, 16, seed=0), new_tokens=1)


if __name__ == "__main__":
    match sys.argv[1]:
        case "--touch":
            touch(int(sys.argv[2]), int(sys.argv[3]))
        case "--answer":
            answer(Path(sys.argv[2]), int(sys.argv[3]))
        case "--import":
            import torch  # noqa: F401
        case _:
            main()
