"""What a result was measured on: the machine, its memory's speed, the versions, the commit."""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ventoux import __version__
from ventoux.build import probe
from ventoux.errors import EngineError
from ventoux.hardware import Hardware
from ventoux.ops.threads import torch_threads

PACKAGES = (
    *("torch", "mistral-common", "llguidance", "safetensors", "huggingface-hub", "numpy", "pillow", "msgspec"),
    *("pydantic", "fastapi", "uvicorn", "httpx2", "rich"),
)
MATRIX_SIZE = 2048
# Instruction sets that decide how fast a CPU can multiply, x86 then Arm.
INSTRUCTION_SETS = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)


def describe(hardware: Hardware | None = None) -> dict[str, Any]:
    """The machine in plain values; memory in bytes."""
    hardware = hardware or probe()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": hardware.cpu_name or platform.processor() or "unknown",
        "cores": hardware.num_cores,
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in hardware.cpu_flags],
        "memory_bytes": hardware.memory_bytes,
        "available_bytes": hardware.available_bytes,
        "cuda": hardware.cuda_name or None,
        "load_average": os.getloadavg()[0],
    }


def versions() -> dict[str, str | None]:
    """None: not installed."""
    found: dict[str, str | None] = {"ventoux": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """The commit that the running source belongs to, "+" for one with changes; None outside a repository."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository.
        git("ls-files", "--error-unmatch", "../errors.py")
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "..", "../../../csrc") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def memory_bandwidth(hardware: Hardware | None = None, repeats: int = 5) -> tuple[float, str]:
    """Bytes per second, and how they were measured: the best of `repeats` fp32 sums over 1 GiB (less where memory is
    short).

    The best, not the median: it stands for what the machine can do, and others may be using it.
    """
    hardware = hardware or probe()
    nbytes = min(2**30, hardware.available_bytes // 8)
    values = torch.ones(nbytes // 4)
    seconds = []
    with torch_threads(hardware.num_cores):
        for _ in range(repeats):
            started = time.perf_counter()
            values.sum()
            seconds.append(time.perf_counter() - started)
    method = f"torch fp32 sum over {nbytes / 2**20:.0f} MiB, {hardware.num_cores} thread(s), best of {repeats}"
    return nbytes / min(seconds), method


def matrix_peak(hardware: Hardware | None = None, repeats: int = 3) -> tuple[float, str]:
    """Operations per second of torch's square product, and how they were measured: the best run, in bf16 where the
    processor multiplies that, else in fp32. (Without such instructions one product in bf16 took 40 seconds.)"""
    hardware = hardware or probe()
    dtype = torch.bfloat16 if hardware.has_fast_bf16 else torch.float32
    values = torch.ones(MATRIX_SIZE, MATRIX_SIZE, dtype=dtype)
    seconds = math.inf
    with torch_threads(hardware.num_cores):
        for _ in range(repeats):
            started = time.perf_counter()
            torch.matmul(values, values)
            seconds = min(seconds, time.perf_counter() - started)
    name, size = str(dtype).removeprefix("torch."), MATRIX_SIZE
    method = f"torch {name} product of {size} x {size}, {hardware.num_cores} thread(s), best of {repeats}"
    return 2 * MATRIX_SIZE**3 / seconds, method


@dataclass(frozen=True)
class Speeds:
    """What the machine gave at one moment: the limits of decoding and of prompts."""

    bytes_per_second: float
    operations_per_second: float
    method: str


@contextmanager
def speeds_beside() -> Iterator[Callable[[], Speeds]]:
    """Yields what measures memory and matrix product now, in a process of its own: the gigabyte that it takes does not
    count as this one's. On a shared machine both change by a factor of two within minutes, so they are measured beside
    every run and not once.

    Raises:
        EngineError: that process ended.
    """
    command = [sys.executable, "-m", "ventoux.evals.machine"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        asked, told = child.stdin, child.stdout
        assert asked and told

        def measure() -> Speeds:
            try:
                print("now", file=asked, flush=True)
                return Speeds(**json.loads(told.readline()))
            except (OSError, ValueError) as error:
                raise EngineError("the process that measures the machine's memory ended") from error

        try:
            yield measure
        finally:
            with suppress(OSError):  # it may have ended by itself
                asked.close()


def measure_when_asked() -> None:
    """The process beside: a line of JSON for every line read."""
    for _ in sys.stdin:
        (memory, summed), (matrix, multiplied) = memory_bandwidth(), matrix_peak()
        print(json.dumps(asdict(Speeds(memory, matrix, f"{summed}; {multiplied}"))), flush=True)


def peak_memory() -> int:
    """The most bytes that this process ever had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # which the benchmark gets too
        measure_when_asked()
