"""What a server's processes hold while it runs: memory, file handles, pages; read from outside."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ventoux.errors import ConfigError

# Memory may differ by so much between the second and the last quarter of a run: allocators keep what they once had.
ALLOWED_GROWTH = 0.05
ALLOWED_BYTES = 16 * 2**20
# Pools open theirs when they are first needed: image decoders, databases. A leak of one a request is far beyond.
ALLOWED_HANDLES = 8
_GAUGES = ("kv_cache_usage_perc", "num_requests_running", "num_requests_waiting")
# What the command lines of the server's children hold. Image decoders may come and go; the engine may not.
_NAMES = {"ventoux.worker": "engine", "ventoux.server.decode_worker": "image decoders"}
_LASTING = ("server", "engine")


class Sample(NamedTuple):
    """One look at a server. By the kind of process: resident bytes, open file handles, and process ids."""

    seconds: float
    bytes: Mapping[str, int]
    handles: Mapping[str, int]
    pids: Mapping[str, frozenset[int]]


class Processes:
    """The process that listens where a URL points, and its children.

    Raises:
        ConfigError: it is not on this machine, or psutil is missing.
    """

    def __init__(self, url: str):
        try:
            import psutil
        except ImportError as error:
            raise ConfigError("--chaos reads the server's memory with psutil: pip install 'ventoux[bench]'.") from error
        port = urlsplit(url).port
        owners = {
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        }
        pid = next((owner for owner in owners if owner is not None), None)
        if pid is None:
            raise ConfigError(f"--chaos: no process of yours listens on port {port} here; run it beside the server.")
        self._root = psutil.Process(pid)

    def sample(self, seconds: float) -> Sample:
        """Processes that have ended are missing."""
        import psutil

        memory: Counter[str] = Counter()
        handles: Counter[str] = Counter()
        pids: dict[str, set[int]] = {}
        try:
            found = [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            found = []
        for process in found:
            try:
                name = "server" if process == self._root else _name(process.cmdline())
                memory[name] += process.memory_info().rss
                handles[name] += process.num_fds()
            except psutil.Error:
                continue
            pids.setdefault(name, set()).add(process.pid)
        return Sample(seconds, memory, handles, {name: frozenset(ids) for name, ids in pids.items()})


def _name(command: Sequence[str]) -> str:
    return next((_NAMES[word] for word in command if word in _NAMES), "other")


def gauges(metrics: str) -> dict[str, float]:
    """The values of what must be zero when nothing runs, out of Prometheus' text."""
    found = {name: re.search(rf"^ventoux_{name}(?:\{{[^}}]*\}})? (\S+)$", metrics, re.M) for name in _GAUGES}
    return {name: float(match.group(1)) for name, match in found.items() if match}


def memory_report(samples: Sequence[Sample]) -> tuple[list[dict[str, Any]], list[str]]:
    """Per kind of process its memory over the run, and the promises that were broken."""
    rows, broken = [], []
    first, last = samples[0], samples[-1]
    for name in _LASTING:
        if any(sample.pids.get(name) != first.pids.get(name) for sample in samples):
            broken.append(f"the {name} process ended")
    for name in last.bytes:
        series = [(sample.seconds, sample.bytes[name]) for sample in samples if name in sample.bytes]
        before = _median(series, last.seconds / 4, last.seconds / 2)
        after = _median(series, last.seconds * 3 / 4, last.seconds)
        if after - before > before * ALLOWED_GROWTH + ALLOWED_BYTES:
            broken.append(f"{name}: memory grew by {(after - before) / 2**20:.0f} MiB")
        handles = first.handles.get(name, 0), last.handles[name]
        if name in _LASTING and handles[1] > handles[0] + ALLOWED_HANDLES:
            broken.append(f"{name}: {handles[1] - handles[0]} more file handles than before")
        rows.append(
            {
                "process": name,
                "second_quarter_bytes": before,
                "last_quarter_bytes": after,
                "peak_bytes": max(size for _, size in series),
                "file_handles_before": handles[0],
                "file_handles_after": handles[1],
                "resident_bytes": [[round(at), size] for at, size in series[:: max(len(series) // 60, 1)]],
            }
        )
    return rows, broken


def _median(series: Sequence[tuple[float, int]], start: float, end: float) -> float:
    """Of the sizes between two times; of all where there are none."""
    return statistics.median([size for at, size in series if start <= at <= end] or [size for _, size in series])
