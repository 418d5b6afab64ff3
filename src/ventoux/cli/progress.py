"""Progress bars on anything that takes longer than a second; silent before that, and plain when not on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def loading_bar(title: str, *, unit: str = "bytes", delay: float = 1.0) -> Iterator[Callable[[int, int], None]]:
    """Yields progress(done, total). Nothing is drawn before `delay` seconds have passed."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    console = Console(stderr=True)
    bar = Progress(TextColumn(title), BarColumn(), *columns, TimeRemainingColumn(), console=console)
    task = bar.add_task(title, total=None)
    started = time.monotonic()
    last_line = started

    def progress(done: int, total: int) -> None:
        nonlocal last_line
        now = time.monotonic()
        if now - started < delay:
            return
        if console.is_terminal:
            bar.start()
            bar.update(task, completed=done, total=total)
        elif now - last_line > 10 or done == total:
            # A log file gets a line every ten seconds instead of a moving bar.
            print(f"{title}: {done} of {total} {unit}", file=sys.stderr, flush=True)
            last_line = now

    try:
        yield progress
    finally:
        bar.stop()
