"""chat: commands, the tool loop, interruptions; local on a tiny checkpoint, remote on a scripted server."""

from __future__ import annotations

import io
import json
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx2
import pytest
from PIL import Image
from rich.console import Console

from ventoux.cli.calculator import TOOL, call
from ventoux.cli.chat import AnswerPrinter, Talk, image_part, printable
from ventoux.cli.conversation import MAX_ROUNDS, Conversation, Cut, ToolResult
from ventoux.cli.remote import RemoteModel
from ventoux.errors import EngineError, InvalidImageError, InvalidRequestError
from ventoux.text.stream_parser import Content, Reasoning, ToolCallArguments, ToolCallStart

# In fp32, whatever the machine would choose: the random model's answer in bf16 is control tokens alone.
FAST = ("--num-threads", "1", "--dtype", "float32", "--max-model-len", "256", "--temperature", "0", "--max-tokens", "6")
SUM = [ToolCallStart(0, "calculator"), ToolCallArguments(0, '{"expression"'), ToolCallArguments(0, ': "2 + 3"}')]


class Scripted:
    """A model that gives one list of events per request; an exception in it is raised there."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked: list[dict] = []

    def stream(self, messages, *, tools, reasoning_effort):
        self.asked.append({"messages": [*messages], "tools": tools, "effort": reasoning_effort})
        for event in self.answers.pop(0):
            if isinstance(event, BaseException):
                raise event
            yield event


def talk(model, lines: str, monkeypatch) -> tuple[int, str]:
    screen = io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    status = Talk(Conversation(model, call), Console(file=screen, width=200)).run()
    return status, screen.getvalue()


# ------------------------------------------------------------------------------------------------------- conversation


def test_turns_go_into_the_next_request(monkeypatch):
    model = Scripted([Reasoning("hm"), Content("Hel"), Content("lo")], [Content("again")])
    status, screen = talk(model, "/system Be brief.\nHi\n/think on\nHo\n", monkeypatch)
    assert status == 0
    assert "hm\nHello\n" in screen and "again\n" in screen
    assert model.asked[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    assert model.asked[1]["messages"][2:] == [
        {"role": "assistant", "content": "Hello", "reasoning_content": "hm"},
        {"role": "user", "content": "Ho"},
    ]
    assert [asked["effort"] for asked in model.asked] == ["none", "high"]


def test_tool_calls_are_answered_until_there_are_words(monkeypatch):
    model = Scripted([Content("Let me see."), *SUM], [Content("It is 5.")])
    status, screen = talk(model, "/tools on\n2 + 3?\n", monkeypatch)
    assert status == 0
    assert 'Let me see.\n-> calculator {"expression": "2 + 3"}\n<- 5\nIt is 5.\n' in screen
    assert model.asked[0]["tools"] == [TOOL]
    _, called, result = model.asked[1]["messages"]
    (made,) = called["tool_calls"]
    assert made["function"] == {"name": "calculator", "arguments": '{"expression": "2 + 3"}'}
    assert result == {"role": "tool", "tool_call_id": made["id"], "content": "5"}


def test_an_answer_that_was_cut_says_so(monkeypatch):
    """It looked like an answer that just ends there; the next question gets it without the note."""
    model = Scripted([Content("One, two"), Cut()], [Content("three")])
    status, screen = talk(model, "Count\nGo on\n", monkeypatch)
    assert status == 0
    assert "One, two\n[cut: the answer has reached --max-tokens, or the context is full]\nthree\n" in screen
    assert model.asked[1]["messages"][1] == {"role": "assistant", "content": "One, two"}


def test_parallel_calls_get_their_own_results():
    second = [ToolCallStart(1, "calculator"), ToolCallArguments(1, '{"expression": "2 * 3"}')]
    model = Scripted([*SUM, *second], [Content("5 and 6")])
    conversation = Conversation(model, call)
    results = [event.text for event in conversation.ask("q") if isinstance(event, ToolResult)]
    ids = [made["id"] for made in conversation.turns[1]["tool_calls"]]
    assert results == ["5", "6"] and len(set(ids)) == 2
    assert [turn["tool_call_id"] for turn in conversation.turns[2:4]] == ids


def test_a_model_that_only_calls_is_stopped():
    conversation = Conversation(Scripted(*[SUM] * (MAX_ROUNDS + 1)), call)
    *_, last = conversation.ask("q")
    assert isinstance(last, Content) and "rounds of tool calls" in last.text
    assert conversation.turns == [], "the unanswered question stays in the way of the next one"
    assert len(conversation.model.answers) == 1


def test_words_before_a_stop_stay_as_the_answer():
    conversation = Conversation(Scripted([Content("one "), Content("two ")]), call)
    with closing(conversation.ask("q")) as events:
        assert next(events) == Content("one ")
    assert conversation.turns == [{"role": "user", "content": "q"}, {"role": "assistant", "content": "one "}]


def test_a_question_without_answer_is_taken_back_with_its_image():
    """Otherwise two user messages would follow each other, and the image would be lost."""
    conversation = Conversation(Scripted([EngineError("no")]), call)
    conversation.images.append({"type": "image_url"})
    with pytest.raises(EngineError):
        list(conversation.ask("q"))
    assert conversation.turns == [] and conversation.images == [{"type": "image_url"}]


def test_stop_in_the_middle_of_tool_calls_leaves_no_open_call():
    """A call without its result would make every later request invalid."""
    conversation = Conversation(Scripted([Content("a")], SUM, [KeyboardInterrupt()]), call)
    list(conversation.ask("first"))
    with pytest.raises(KeyboardInterrupt):
        list(conversation.ask("second"))
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant"]


# ------------------------------------------------------------------------------------------------------------ terminal


def test_ctrl_c_stops_the_answer_only(monkeypatch):
    model = Scripted([Content("I beg"), KeyboardInterrupt()], [Content("fine")])
    status, screen = talk(model, "a\nb\n", monkeypatch)
    assert status == 0
    assert "I beg\n[stopped]\nfine\n" in screen


def test_an_error_is_shown_and_the_talk_goes_on(monkeypatch):
    model = Scripted([Content("x"), EngineError("it broke")], [Content("fine")])
    status, screen = talk(model, "a\nb\n", monkeypatch)
    assert "x\nerror: it broke\nfine\n" in screen
    assert status == 1, "a script must see that an answer is missing"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/foo", "there is no command /foo"),
        ("/think", "/think takes on or off"),
        ("/tools maybe", "/tools takes on or off"),
        ("/image", "/image needs the path"),
        ("/image nowhere.png", "nowhere.png: No such file"),
    ],
)
def test_commands_that_are_no_good(line, message, monkeypatch):
    model = Scripted()
    status, screen = talk(model, line + "\n", monkeypatch)
    assert status == 1 and f"error: {message}" in screen
    assert model.asked == [], "a mistyped command went to the model"


def test_commands(monkeypatch):
    model = Scripted([Content("a")], [Content("b")])
    lines = "/help\n\nHi\n/reset\n/tools on\n/tools off\n/system x\n/system\nHo\n/quit\nnever\n"
    status, screen = talk(model, lines, monkeypatch)
    assert status == 0 and "/image PATH" in screen
    assert model.asked[1] == {"messages": [{"role": "user", "content": "Ho"}], "tools": None, "effort": "none"}
    assert len(model.asked) == 2


def test_an_image_goes_with_the_next_message_only(tmp_path, monkeypatch):
    path = tmp_path / "my image.png"
    Image.new("RGB", (30, 20), "red").save(path)
    model = Scripted([Content("red")], [Content("yes")])
    _, screen = talk(model, f"/image {path}\nWhat is this?\nSure?\n", monkeypatch)
    assert "30 x 20 pixels" in screen
    text, image = model.asked[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is this?"}
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert model.asked[1]["messages"][2]["content"] == "Sure?"


def test_what_is_no_image(tmp_path):
    path = tmp_path / "x.png"
    path.write_text("no")
    with pytest.raises(InvalidImageError):
        image_part(path)


def test_text_is_printed_as_it_is():
    """No markup, no emoji codes, tabs kept; but nothing that could drive the terminal."""
    screen = io.StringIO()
    text = "[bold]a[/bold] :smile: \t[link=x] 1234\x1b[31m\x07\x9b2J\r end  "
    AnswerPrinter(Console(file=screen, width=20)).print([Content(text)])
    assert screen.getvalue() == "[bold]a[/bold] :smile: \t[link=x] 1234[31m2J end  \n"
    assert printable("a\n\tb\x00é\x7f😀") == "a\n\tbé😀"


# --------------------------------------------------------------------------------------------------------------- local


def test_local_model_answers(ventoux, checkpoint):
    status, out, _ = ventoux("chat", checkpoint, *FAST, stdin="Hi\n/think on\nHo\n/reset\nHi\n")
    assert status == 0
    first, cut, note, *_ = lines = out.splitlines()
    assert cut.startswith("[cut") and note == "reasoning is on"
    assert first and lines[-2] and lines[-1] == cut, "an answer is empty, or not marked as cut"


def test_local_model_refuses_and_goes_on(ventoux, checkpoint):
    long = "word " * 300
    status, out, _ = ventoux("chat", checkpoint, *FAST, stdin=f"{long}\nHi\n")
    assert status == 1
    assert "error: This model's maximum context length is 256" in out.splitlines()[0]
    assert len(out.splitlines()) >= 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--api-key", "x"), "belong to --url"),
        (("model", "--url", "http://x"), "exclude each other"),
        (("--url", "http://127.0.0.1:9/v1"), "127.0.0.1:9"),
        (("--url", "no url"), "no url"),
    ],
)
def test_mistakes_of_the_caller(ventoux, words, message):
    status, _, err = ventoux("chat", *words)
    assert status in (1, 2)
    assert message in err and "Traceback" not in err


# -------------------------------------------------------------------------------------------------------------- remote


def delta(**fields) -> dict:
    return {"choices": [{"index": 0, "delta": fields}]}


def remote(*chunks: dict | str, **options) -> tuple[RemoteModel, list[dict]]:
    """A model on a server that always answers with these chunks, and the bodies that it was sent."""
    bodies: list[dict] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": "served"}]})
        bodies.append(json.loads(request.content))
        lines = [chunk if isinstance(chunk, str) else f"data: {json.dumps(chunk)}" for chunk in chunks]
        headers = {"content-type": "text/event-stream; charset=utf-8"}
        return httpx2.Response(200, headers=headers, content="\n\n".join([*lines, "data: [DONE]", ""]).encode())

    return RemoteModel("http://server", transport=httpx2.MockTransport(answer), **options), bodies


def ask(model: RemoteModel, tools=None, effort="none") -> list:
    return list(model.stream([{"role": "user", "content": "q"}], tools=tools, reasoning_effort=effort))


@pytest.mark.parametrize(
    "fields",
    [{"reasoning": "hm"}, {"reasoning_content": "hm"}, {"reasoning": "hm", "reasoning_content": "hm"}],
)
def test_reasoning_under_either_name_comes_once(fields):
    model, _ = remote(delta(role="assistant", content=""), delta(**fields), delta(content="é"))
    assert ask(model) == [Reasoning("hm"), Content("é")]


def test_tool_calls_of_a_server():
    calls = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "calculator", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"expression"'}},
        {"index": 0, "function": {"name": None, "arguments": ': "2 + 3"}'}},
        {"index": 1, "id": "b", "function": {"name": "other", "arguments": "{}"}},
    ]
    model, _ = remote(*(delta(tool_calls=[one]) for one in calls))
    assert ask(model) == [*SUM, ToolCallStart(1, "other"), ToolCallArguments(1, "{}")]


def test_what_a_server_is_sent():
    model, bodies = remote(delta(content="x"), ": a comment", fields={"temperature": 0.5})
    ask(model)
    ask(model, tools=[TOOL], effort="high")
    message = {"model": "served", "messages": [{"role": "user", "content": "q"}], "stream": True, "temperature": 0.5}
    assert bodies == [message, {**message, "tools": [TOOL], "reasoning_effort": "high"}]


@pytest.mark.parametrize("url", ["http://server", "http://server/", "http://server/v1", "http://server/v1/"])
def test_urls_with_and_without_v1(url):
    asked = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append((str(request.url), request.headers.get("authorization")))
        return httpx2.Response(200, json={"data": [{"id": "served"}]})

    RemoteModel(url, api_key="k", transport=httpx2.MockTransport(answer))
    assert asked == [("http://server/v1/models", "Bearer k")]


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ({"error": {"message": "the engine is gone"}}, "the engine is gone"),
        ("data: {", "no stream of chat completion chunks"),
        ("data: [1]", "no stream of chat completion chunks"),
        (delta(tool_calls=[{"index": 0, "function": {}}]), "no stream of chat completion chunks"),
    ],
)
def test_errors_in_a_stream(chunk, message):
    model, _ = remote(delta(content="x"), chunk)
    with pytest.raises(EngineError, match=message):
        ask(model)


@pytest.mark.parametrize(
    ("status", "error"), [(401, InvalidRequestError), (404, InvalidRequestError), (503, EngineError)]
)
@pytest.mark.parametrize("body", [b'{"error": {"message": "not so"}}', b'{"error": "not so"}'])
def test_refusals_are_told_in_the_servers_words(status, error, body):
    transport = httpx2.MockTransport(lambda request: httpx2.Response(status, content=body))
    with pytest.raises(error, match=f"{status}: not so"):
        RemoteModel("http://server", transport=transport)
    with pytest.raises(error, match=f"{status}: not so"):
        ask(RemoteModel("http://server", name="m", transport=transport))


def test_a_page_is_no_server():
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, content=b"<html>"))
    with pytest.raises(EngineError, match="lists no model"):
        RemoteModel("http://server", transport=transport)
    with pytest.raises(EngineError, match="text/event-stream"):
        ask(RemoteModel("http://server", name="m", transport=transport))


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._send("application/json", {"data": [{"id": "served"}]}, "")

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self._send("text/event-stream", delta(content="over the wire"), "data: ")

    def _send(self, kind: str, content: dict, prefix: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write((prefix + json.dumps(content) + "\n\n").encode())

    def log_message(self, *_):
        pass


def test_the_whole_way_to_a_server(ventoux):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            status, out, err = ventoux("chat", "--url", f"http://127.0.0.1:{server.server_port}", stdin="Hi\n")
        finally:
            server.shutdown()
            thread.join()
    assert (status, out) == (0, "over the wire\n"), err


@pytest.mark.parametrize(("reason", "cut"), [("length", True), ("stop", False), ("tool_calls", False)])
def test_a_server_says_whether_an_answer_was_cut(reason, cut):
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    model, _ = remote(delta(content="x"), last)
    assert (ask(model)[-1] == Cut()) is cut
