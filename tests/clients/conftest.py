"""A server with the bundled model, started with the interpreter of the main environment."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

# No client may look for credentials or settings of whoever runs the tests, or speak to anybody else.
for name in [name for name in os.environ if name.startswith(("OPENAI_", "ANTHROPIC_", "MISTRAL_", "LITELLM_", "LLM_"))]:
    del os.environ[name]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ventoux", default=".venv/bin/ventoux", help="the command that starts a server")


@pytest.fixture(scope="session")
def server(request, tmp_path_factory) -> Iterator[str]:
    """The URL of a running server, without /v1."""
    folder = tmp_path_factory.mktemp("server")
    command = [request.config.getoption("--ventoux"), "serve", "--port", "0", "--num-threads", "2"]
    command += ["--responses-store", str(folder / "responses.sqlite3")]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield _announced(process, log)
    finally:
        process.terminate()
        process.wait(20)


def _announced(process: subprocess.Popen, log) -> str:
    while process.poll() is None:
        if found := re.search(r"^ventoux serves .* on (http://\S+)", log.read_text(), re.M):
            return found.group(1)
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"the server ended: {log.read_text()}")


@pytest.fixture(scope="session")
def model() -> str:
    return "ventoux-demo"
