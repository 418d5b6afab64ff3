"""llm: the library and the command, with a model entry such as its users write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def ask(server, model, tmp_path):
    entry = f"- model_id: local\n  model_name: {model}\n  api_base: {server}/v1\n  can_stream: true\n"
    entry += "  supports_tools: true\n  supports_schema: true\n  vision: true\n  api_key_name: ventoux\n"
    (tmp_path / "extra-openai-models.yaml").write_text(entry)
    (tmp_path / "keys.json").write_text('{"ventoux": "none"}')

    def call(*words: str) -> str:
        command = [str(Path(sys.executable).with_name("llm")), *words]
        env = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_a_prompt_streamed_and_not(ask):
    fields = ("-m", "local", "-o", "temperature", "0", "-o", "max_tokens", "40")
    whole = ask(*fields, "--no-stream", "Hi")
    assert "Hello" in whole and ask(*fields, "Hi") == whole


def test_a_tool(ask):
    functions = "def my_calculator(expression: str) -> str:\n    'Evaluates an expression.'\n    return '408'\n"
    fields = ("-m", "local", "-o", "temperature", "0", "-o", "max_tokens", "100")
    assert "408" in ask(*fields, "--functions", functions, "What is 12 * 34?")


def test_a_schema(ask):
    assert (
        ask("-m", "local", "-o", "max_tokens", "300", "--schema", "name, count int", "A thing.").strip().startswith("{")
    )
