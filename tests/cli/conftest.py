"""A tiny random checkpoint with a tokenizer, and the command line called in this process."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny
from ventoux.cli import main


@pytest.fixture(autouse=True)
def one_thread():
    """Engines set torch's threads for the whole process; two of them on busy cores make tiny models 50 times slower."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "model", tokenizer=True)


@pytest.fixture
def ventoux(capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """ventoux(*words, stdin="") -> exit status, standard output, standard error."""

    def call(*words: object, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
