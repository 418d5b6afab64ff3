"""Every example runs to its end: a name that was changed under an example's feet shows here.

The model is tiny and random, so what is said is not looked at; how it is said is.
"""

from __future__ import annotations

import json
import runpy
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import uvicorn

import ventoux
from tests.tiny import write_tiny
from ventoux.build import build_engine
from ventoux.config import EngineConfig, ServerConfig
from ventoux.engine.loop import ThreadClient
from ventoux.server.app import create_app
from ventoux.text.stream_parser import Message, ToolCall
from ventoux.text.tokenizer import Tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"


# Programs that take a model and print what it answers.
ASKING = ("alphabet.py", "reasoning.py", "game.py", "languages.py", "tool_choice.py")


def load(name: str) -> dict:
    return runpy.run_path(str(EXAMPLES / name))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Two threads on a busy machine wait for each other at every operator: 0.2 s per token instead of 15 ms."""
    monkeypatch.setattr(ventoux, "LLM", partial(ventoux.LLM, num_threads=1), raising=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("tiny"), tokenizer=True))


def test_there_is_a_test_for_every_example():
    tested = {
        "offline.py",
        "stream.py",
        "tools.py",
        "vision.py",
        "server_client.py",
        "receipt.py",
        "long_input.py",
        *ASKING,
    }
    assert {p.name for p in EXAMPLES.glob("*.py")} == tested


@pytest.mark.parametrize("name", ASKING)
def test_asking(name, checkpoint, capsys):
    """Catches an example that breaks on the way; the random model's long answers are cut short."""
    load(name)["main"](checkpoint)
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_offline(checkpoint, capsys):
    load("offline.py")["main"](checkpoint)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("answer:") for line in lines)
    assert sum("log-probability" in line for line in lines) == 2


def test_stream(checkpoint, capsys):
    load("stream.py")["main"](checkpoint)
    out = capsys.readouterr().out
    assert "[content]" in out or "[reasoning]" in out


def test_vision(checkpoint, capsys):
    load("vision.py")["main"](checkpoint)
    # 28 x 140 pixels: a row of five [IMG] tokens and its end.
    assert int(capsys.readouterr().out.split("prompt tokens: ")[1].split()[0]) > 6


def test_tools(checkpoint, capsys):
    load("tools.py")["main"](checkpoint)
    assert capsys.readouterr().out


class ScriptedLLM:
    """Calls the calculator, then repeats what it was told."""

    def __init__(self):
        self.asked = []

    def chat(self, messages, params, *, tools):
        self.asked.append(list(messages))
        message = Message(tool_calls=[ToolCall("my_calculator", '{"expression": "12 * 34"}')])
        if messages[-1]["role"] == "tool":
            message = Message(content=f"It is {messages[-1]['content']}.")
        output = type("Output", (), {"message": message})
        return type("Result", (), {"outputs": [output]})


def test_tools_answers_a_call(checkpoint):
    """The random model never calls, so the loop is driven by a script; the tokenizer must accept its history."""
    llm = ScriptedLLM()
    example = load("tools.py")
    assert example["converse"](llm, "What is 12 * 34?") == "It is 408."
    tokenizer = Tokenizer.from_file(checkpoint)
    assert tokenizer.encode_chat(llm.asked[-1], tools=[example["CALCULATOR"]]).token_ids


@pytest.mark.parametrize(
    "expression", ["", "__import__('os')", "1 +", "2 ** 9999", "'a' * 9", "1/0", "-" * 199 + "1" * 2]
)
def test_tools_evaluates_nothing_but_arithmetic(expression):
    arguments = json.dumps({"expression": expression})
    assert load("tools.py")["run"]("my_calculator", arguments).startswith("error: ")


@pytest.fixture
def url(checkpoint):
    folder = Path(checkpoint)
    built = build_engine(folder, EngineConfig(max_model_len=512, num_threads=1))
    client = ThreadClient(built.engine)
    app = create_app(client, Tokenizer.from_file(folder), ["tiny"], built.plan.max_model_len, ServerConfig())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it had begun"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
    client.close()


def test_long_input(checkpoint, capsys):
    load("long_input.py")["main"](checkpoint, "30")
    assert int(capsys.readouterr().out.split("prompt tokens: ")[1].split()[0]) > 300


def test_receipt(url, capsys):
    load("receipt.py")["main"](url)
    assert 'as JSON: {"total": ' in capsys.readouterr().out  # of a random model the number need not end


def test_server_client(url, capsys):
    load("server_client.py")["main"](url)
    assert "as JSON: {'polite': " in capsys.readouterr().out
