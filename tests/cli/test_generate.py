"""generate: one prompt as text, a file as JSON lines."""

from __future__ import annotations

import io
import json

import pytest

from ventoux.cli.lines import ResultWriter, read_lines
from ventoux.llm import LLM, CompletionOutput, RequestOutput
from ventoux.text.stream_parser import Message

FAST = ("--num-threads", "1", "--max-model-len", "256")
HELLO = [{"role": "user", "content": "Hello"}]


def rows(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def generate(ventoux, checkpoint, tmp_path):
    """generate(lines, *flags): writes the lines, runs them, returns status, rows and standard error."""

    def run(lines: list, *flags: object):
        path = tmp_path / "in.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        status, out, err = ventoux("generate", checkpoint, "--input", path, *FAST, *flags)
        return status, rows(out), err

    return run


def test_lines_come_back_in_order(generate):
    """Short and long answers finish in another order than they began in."""
    lines = [
        {"prompt": "one two three", "max_tokens": 12, "ignore_eos": True, "id": "long"},
        {"prompt": [1, 1010, 1020], "max_tokens": 1, "ignore_eos": True},
        "",
        {"messages": HELLO, "max_tokens": 3, "ignore_eos": True, "reasoning_effort": "high"},
    ]
    status, results, err = generate(lines)
    assert status == 0
    assert [row["id"] for row in results] == ["long", 2, 4]
    assert [row["usage"]["completion_tokens"] for row in results] == [12, 1, 3]
    assert results[1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    for row in results:
        assert set(row) == {"id", "text", "reasoning", "tool_calls", "finish_reason", "usage"}
        assert row["finish_reason"] == "length"
    assert "3 requests in" in err


BAD = [
    ("{", "line 2: not JSON", None),
    ("[1]", "line 2: must be a JSON object", None),
    ({"prompt": "x", "temprature": 1}, "line 2: unknown field 'temprature'", "temprature"),
    ({"prompt": "x", "temperature": "hot"}, "line 2: temperature: expected `float`", "temperature"),
    ({"prompt": "x", "temperature": 9}, "temperature must be in", "temperature"),
    ({"prompt": "x", "stop": [1]}, "line 2: stop: expected `str`", "stop"),
    ({"prompt": ["x"]}, "line 2: prompt must be text or a list of token ids", "prompt"),
    ({"prompt": [True]}, "line 2: prompt must be text or a list of token ids", "prompt"),
    ({"prompt": []}, "line 2: prompt holds no token ids", "prompt"),
    ({"prompt": [10**6]}, "prompt token ids must lie in", None),
    ({"prompt": "x", "messages": HELLO}, 'needs either "prompt" or "messages"', "prompt"),
    ({"max_tokens": 3}, 'needs either "prompt" or "messages"', "prompt"),
    ({"prompt": "x", "tools": []}, "tools goes with messages", "tools"),
    ({"messages": "Hello"}, "messages must be a list", "messages"),
    ({"messages": ["Hello"]}, "must be an object", "messages[0]"),
    ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role", "messages[0].role"),
    ({"messages": HELLO, "reasoning_effort": "some"}, "reasoning_effort", "reasoning_effort"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url", "image_url"),
    ({"prompt": "x " * 300}, "maximum context length is 256", "prompt"),
]


@pytest.mark.parametrize(("line", "message", "param"), BAD, ids=[message for _, message, _ in BAD])
def test_a_bad_line_costs_the_others_nothing(generate, line, message, param):
    good = {"prompt": "x", "max_tokens": 2, "ignore_eos": True}
    status, results, err = generate([good, line, good])
    assert status == 1
    assert "1 failed" in err
    first, bad, last = results
    assert message in bad["error"]["message"]
    if param is not None:
        assert bad["error"]["param"] == param
    assert first["usage"]["completion_tokens"] == last["usage"]["completion_tokens"] == 2


def test_flags_are_defaults_for_lines(generate):
    lines = [{"prompt": "x", "ignore_eos": True}, {"prompt": "x", "ignore_eos": True, "max_tokens": 5}]
    _, results, _ = generate(lines, "--max-tokens", "2")
    assert [row["usage"]["completion_tokens"] for row in results] == [2, 5]


def test_greedy_lines_agree_with_a_single_run(generate):
    """The same prompt five times in one batch, and once alone."""
    line = {"prompt": "the same", "temperature": 0, "max_tokens": 6}
    _, batch, _ = generate([line] * 5)
    _, alone, _ = generate([line])
    assert {row["text"] for row in batch} == {alone[0]["text"]}


def test_several_answers_and_logprobs(generate):
    line = {"prompt": "x", "n": 2, "logprobs": 1, "seed": 1, "max_tokens": 2, "ignore_eos": True, "stop": "qqqq"}
    _, (row,), _ = generate([line])
    assert len(row["outputs"]) == 2 and row["outputs"][0]["text"] == row["text"]
    assert row["usage"]["completion_tokens"] == 4
    assert set(row["logprobs"][0]) == {"token_id", "token", "logprob", "rank", "top"}


def test_logit_bias_keys_are_text_in_json(generate):
    """JSON has no other keys; they must arrive as token ids and act."""
    line = {"prompt": "x", "max_tokens": 3, "temperature": 0, "logit_bias": {"1065": 100}}
    _, (row,), _ = generate([line])
    assert row["text"] == "AAA"


def test_output_file_and_standard_input(ventoux, checkpoint, tmp_path):
    target = tmp_path / "out.jsonl"
    line = json.dumps({"prompt": "x", "max_tokens": 1, "ignore_eos": True})
    status, out, _ = ventoux("generate", checkpoint, "--input", "-", "--output", target, *FAST, stdin=line)
    assert status == 0 and out == ""
    assert len(rows(target.read_text())) == 1


def test_prompt_prints_its_answer_only(ventoux, checkpoint):
    """What is printed piece by piece is what a batch gives whole."""
    flags = ("--raw", "--temperature", "0", "--max-tokens", "8")
    status, out, _ = ventoux("generate", checkpoint, "-p", "Once upon", *flags, *FAST)
    line = json.dumps({"prompt": "Once upon", "temperature": 0, "max_tokens": 8})
    _, batch, _ = ventoux("generate", checkpoint, "--input", "-", *FAST, stdin=line)
    assert status == 0
    assert out == rows(batch)[0]["text"] + "\n"


def test_prompt_is_a_chat_unless_raw(ventoux, checkpoint):
    flags = ("--temperature", "0", "--max-tokens", "8", *FAST)
    chat = ventoux("generate", checkpoint, "-p", "-", *flags, stdin="Hello")[1]
    line = json.dumps({"messages": HELLO, "temperature": 0, "max_tokens": 8})
    _, batch, _ = ventoux("generate", checkpoint, "--input", "-", *FAST, stdin=line)
    assert chat == rows(batch)[0]["text"] + "\n"
    assert chat != ventoux("generate", checkpoint, "-p", "Hello", "--raw", *flags)[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-p", "x", "--output", "y"), "--output belongs to --input"),
        (("-p", "x", "--raw", "--reasoning-effort", "high"), "--reasoning-effort needs the chat form"),
        (("--input", "nowhere.jsonl"), "nowhere.jsonl: No such file"),
        (("--input", "-", "--raw"), "--chat and --raw belong to -p"),
        (("--input", "-", "--output", "/nowhere/x"), "/nowhere/x: No such file"),
        (("-p", "x", "--temperature", "3"), "temperature must be in"),
        (("-p", "x", "--device", "cuda", "--max-tokens", "1"), "no CUDA device"),
    ],
)
def test_mistakes_of_the_caller(ventoux, checkpoint, words, message):
    status, _, err = ventoux("generate", checkpoint, *words)
    assert status == 2
    assert message in err and "Traceback" not in err


def answer(tokens: int = 1) -> RequestOutput:
    output = CompletionOutput(0, "x", [1] * tokens, "stop", None, None, Message())
    return RequestOutput("r", None, [1], None, 0, [output])


class Target(io.BytesIO):
    """Remembers what had arrived at each flush."""

    def __init__(self):
        super().__init__()
        self.flushed: list[list] = []

    def flush(self):
        self.flushed.append([row["id"] for row in rows(self.getvalue().decode())])


def test_results_are_written_as_they_finish_in_the_order_of_the_lines():
    """A run that was interrupted after hours had written nothing."""
    lines = read_lines([b"{", *(json.dumps({"prompt": "x", "id": c}).encode() for c in "abcd")], {})
    target = Target()
    writer = ResultWriter(target, lines)
    assert writer.num_done == 1
    for position in (1, 0, 3):
        writer.put(position, answer(2))
    # "b" came first and waited for "a"; "d" waits for "c".
    assert target.flushed == [[1], [1, "a", "b"], [1, "a", "b"]]
    assert (writer.num_done, writer.num_tokens, writer.num_failed) == (4, 4, 1)
    writer.rescue()
    assert target.flushed[-1] == [1, "a", "b", "d"] and writer.num_tokens == 6
    writer.rescue()
    assert target.flushed[-1] == [1, "a", "b", "d"], "written twice"


def test_an_interrupted_run_keeps_its_results(ventoux, checkpoint, tmp_path, monkeypatch):
    """Ctrl-C while the second of three is answered: what was done is in the file, the one behind the gap too."""
    target = tmp_path / "out.jsonl"
    seen = []

    def interrupted(self, items, on_result):
        on_result(0, answer())
        seen.append(target.read_text())
        on_result(2, answer())
        raise KeyboardInterrupt

    monkeypatch.setattr(LLM, "batch", interrupted)
    stdin = "".join(json.dumps({"prompt": "x", "id": c}) + "\n" for c in "abc")
    status, _, _ = ventoux("generate", checkpoint, "--input", "-", "--output", target, *FAST, stdin=stdin)
    assert status == 130
    assert [row["id"] for row in rows(seen[0])] == ["a"]
    assert [row["id"] for row in rows(target.read_text())] == ["a", "c"]
