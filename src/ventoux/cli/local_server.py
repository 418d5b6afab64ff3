"""A server for the length of a command: the one that runs already, or one started here on a free port."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

from ventoux.errors import EngineDeadError


@contextlib.contextmanager
def local_server(url: str | None, model: str | None, name: str) -> Iterator[str]:
    """Yields the base URL. Raises EngineDeadError if the server cannot be started, with what it said."""
    if url is not None:
        yield url.rstrip("/").removesuffix("/v1")
        return
    command = [sys.executable, "-m", "ventoux", "serve", *([model] if model else [])]
    command += ["--port", "0", "--served-model-name", name]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = _announced_url(process)
        # What it says from now on must be read, or it stops once the pipe is full (64 KiB).
        threading.Thread(target=process.communicate, daemon=True).start()
        yield url
    finally:
        process.terminate()
        process.wait()


def _announced_url(process: subprocess.Popen[str]) -> str:
    """Reads the server's messages up to the line that says where it serves."""
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"^ventoux serves .* on (http://\S+)", line):
            return found.group(1)
    raise EngineDeadError("the server did not start:\n" + "".join(said[-20:]))
