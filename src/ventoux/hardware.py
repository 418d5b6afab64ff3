"""Machine: what we found, as far as plans depend on it. No torch here; `build.probe` adds what only torch can tell."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hardware:
    """The machine, as far as the plan depends on it."""

    num_cores: int
    memory_bytes: int
    available_bytes: int
    cpu_flags: frozenset[str] = frozenset()
    cpu_name: str = ""
    cuda_name: str = ""
    cuda_available_bytes: int = 0

    @property
    def has_fast_bf16(self) -> bool:
        """Without one of these, CPUs emulate bf16 products: torch then multiplies fp32 faster than bf16."""
        return bool(self.cpu_flags & {"avx512_bf16", "amx_bf16", "bf16"})


def probe_hardware() -> Hardware:
    """Reads /proc; falls back to what the standard library knows on other systems."""
    flags: frozenset[str] = frozenset()
    name = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                flags = frozenset(value.split())
            elif key.strip() == "model name":
                name = value.strip()
            if flags and name:
                break
    except OSError:
        pass
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = total
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    limit, free = container_memory(Path("/sys/fs/cgroup"))
    total, available = min(total, limit), min(available, free)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return Hardware(num_cores=cores, memory_bytes=total, available_bytes=available, cpu_flags=flags, cpu_name=name)


def container_memory(root: Path) -> tuple[int, int]:
    """(limit, free) bytes of the container (cgroup v2) at `root`; page cache is free: checkpoints once read fill it."""
    try:
        limit = int((root / "memory.max").read_text())
        used = int((root / "memory.current").read_text())
        statistics = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        return limit, limit - used + int(statistics["inactive_file"])
    except (OSError, ValueError, KeyError):  # "max" is no number
        return 2**63, 2**63
