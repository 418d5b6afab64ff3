"""Log lines: one per request, no prompts, and nothing that a client writes can look like another line."""

from __future__ import annotations

import io
import json
import logging

import pytest

from ventoux.server.logs import JsonFormatter, RequestLine, TextFormatter, configure

CHAT = "/v1/chat/completions"
ODD = "a\nERROR forged\r\x1b[31m\x00\u2028\u202e\ud800 b"


@pytest.fixture
def lines():
    """What a handler with each formatter writes while a test runs."""
    root, streams, handlers = logging.getLogger("ventoux"), {}, []
    level = root.level
    root.setLevel(logging.INFO)
    for name, formatter in (("text", TextFormatter()), ("json", JsonFormatter())):
        streams[name] = io.StringIO()
        handlers.append(logging.StreamHandler(streams[name]))
        handlers[-1].setFormatter(formatter)
        root.addHandler(handlers[-1])
    yield lambda name: streams[name].getvalue().split("\n")[:-1]
    root.setLevel(level)
    for handler in handlers:
        root.removeHandler(handler)


def test_exactly_one_line_per_request_with_what_became_of_it(server, lines):
    server.says("one two")
    server.chat(model="alias", user="u-1", metadata={"team": "a b"}, top_g=1)
    server.chat(stream=True)
    server.chat(n=0)
    server.get("/nothing", headers={"x-request-id": "mine"})
    server.get("/health")
    records = [json.loads(line) for line in lines("json")]
    assert len(records) == len(lines("text")) == 5
    whole, streamed, refused, unknown, health = records
    assert whole["message"] == "request" and whole["level"] == "info" and whole["time"].endswith("Z")
    assert (whole["method"], whole["path"], whole["status"]) == ("POST", CHAT, 200)
    assert (whole["model"], whole["user"], whole["metadata"]) == ("alias", "u-1", {"team": "a b"})
    assert whole["finish"] == "stop" and whole["prompt_tokens"] > 2 and whole["new_tokens"] > 2
    assert whole["ignored_fields"] == "top_g"
    assert 0 <= whole["queue_seconds"] <= whole["first_token_seconds"] <= whole["seconds"]
    assert streamed["stream"] is True and streamed["new_tokens"] == whole["new_tokens"]
    assert refused["status"] == 400 and "finish" not in refused
    assert unknown["request_id"] == "mine" and unknown["status"] == 404
    assert health["path"] == "/health"
    assert f"method=POST path={CHAT} status=200" in lines("text")[0] and 'metadata="{' in lines("text")[0]


def test_several_engine_requests_are_one_line(server, lines):
    server.says("one")
    server.post("/v1/completions", {"prompt": ["a", "b", "c"]})
    (record,) = [json.loads(line) for line in lines("json")]
    assert record["prompt_tokens"] == sum(len(r.prompt_token_ids) for r in server.engine.requests)
    assert record["finish"] == "stop"


def test_prompts_and_answers_are_not_logged(server, lines, monkeypatch):
    server.says("the secret answer")
    message = [{"role": "user", "content": "my secret prompt"}]
    for stream in (False, True):
        server.chat(message, stream=stream)
    server.chat([{"role": "secret", "content": "my secret prompt"}])
    server.engine.failure = (1, "internal_error")
    server.chat(message)
    assert lines("text") and "secret" not in "\n".join(lines("text") + lines("json"))


def test_what_clients_write_stays_in_its_line(server, lines):
    server.says("a")
    server.chat(user=ODD.replace("\ud800", ""), metadata={ODD[:20]: ODD[:20]}, model=None)
    server.get("/v1/models/x%0aERROR%20forged%1b[31m%e2%80%a8")
    server.get("/health", headers={"x-request-id": "a b"})
    for name in ("text", "json"):
        assert len(lines(name)) == 3
        for line in lines(name):
            assert line.isprintable() and len(line.splitlines()) == 1
    assert json.loads(lines("json")[0])["user"] == ODD.replace("\ud800", "")


def test_tracebacks_stay_below_their_record_and_hold_the_requests_id(server, lines, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError(ODD)

    monkeypatch.setattr(type(server.tokenizer), "encode_chat", broken)
    server.chat()
    failed, request = (json.loads(line) for line in lines("json"))
    assert failed["request_id"] == request["request_id"] and "RuntimeError" in failed["exception"]
    text = lines("text")
    heads = [line for line in text if not line.startswith("    ")]
    assert [line.partition(" ")[0] for line in heads] == ["ERROR", "INFO"]
    assert all(line.isprintable() for line in text)


def test_messages_are_escaped_in_both_forms():
    record = logging.LogRecord("x", logging.WARNING, "", 0, "said %s", (ODD,), None)
    text = TextFormatter().format(record)
    assert text.isprintable() and text.startswith("WARNING said a\\nERROR forged")
    line = JsonFormatter().format(record)
    assert line.isascii() and line.isprintable() and json.loads(line)["message"] == "said " + ODD
    assert str(RequestLine({"a": "", "b": 'x="y"', "c": 1.5, "d": True})) == 'a="" b="x=\\"y\\"" c=1.5 d=true'


def test_configure_sets_one_handler(capsys):
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        for form in ("text", "json"):
            configure(form)
            logging.getLogger("ventoux.x").info("hello")
            logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    finally:
        for handler in root.handlers[:]:
            root.removeHandler(handler)
        for handler in before:
            root.addHandler(handler)
        root.setLevel(level)
    first, second = capsys.readouterr().err.strip().split("\n")
    assert first == "INFO hello" and json.loads(second)["message"] == "hello"


def test_bodies_leave_only_what_is_short(server, lines):
    server.says("a")
    server.chat(user="x" * 5000, metadata={f"k{i}": "v" * 5000 for i in range(50)})
    (line,) = lines("json")
    assert len(line) < 8000
