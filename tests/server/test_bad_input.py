"""Hostile and mistaken requests: the right status, OpenAI's error body, and an engine that never hears of them.

Most of them are rows of `ventoux.evals.hostile`; here are the tests that ask them all, and what no row can say.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from pathlib import Path

import pytest

from tests.server.bad_inputs import ALL_CASES, ELSEWHERE, Answer, Asked, ask_all, page, streamed
from tests.server.conftest import HELLO, assert_error
from tests.server.test_run import running
from ventoux.evals.hostile_media import data_url, picture, seen
from ventoux.evals.hostile_wire import RAW_CASES

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
PAGE = Path(__file__).parents[2] / "docs" / "bad-inputs.md"


@pytest.fixture(scope="module")
def answers(tokenizer) -> list[Answer]:
    return asyncio.run(ask_all(tokenizer))


@pytest.mark.parametrize("number", range(len(ALL_CASES)), ids=[f"{c.group}-{c.what}"[:90] for c in ALL_CASES])
def test_every_row_is_answered_as_it_should_be(answers, number):
    """Any status, or blame for any other field, than the row says; a refused request that costs a step."""
    answer = answers[number]
    case = answer.case
    assert answer.status == case.status, answer.text[:400]
    assert answer.reached_engine is (case.status == 200)
    if case.status != 200:
        error = json.loads(answer.text)["error"]
        assert error["message"] and error["type"]
        assert len(answer.text) < 2000, "an answer that repeats what was sent"
    if case.param is not None:
        assert (answer.param or "").startswith(case.param), answer.text


def test_streams_are_refused_before_they_begin_and_alike(answers, tokenizer):
    """A status of 200 with an error inside, which clients take for an answer."""
    asked = Asked(tokenizer)

    async def ask() -> None:
        for answer in answers:
            # The large ones take the same way, only longer.
            content = streamed(answer.case) if len(answer.case.content()) < 100_000 else None
            if content is not None:
                again = await asked.ask(answer.case, content)
                assert (again.status, again.code, again.param) == (answer.status, answer.code, answer.param), again
                assert not again.reached_engine
        await asked.close()

    asyncio.run(ask())


def test_the_page_of_bad_inputs_is_what_the_answers_are(answers):
    """An answer that changed, or a row that was added."""
    assert PAGE.read_text(encoding="utf-8") == page(answers), "run: python docs/generate.py"


def test_tests_that_the_page_names_exist():
    for _, _, named in ELSEWHERE:
        file, _, test = named.partition("::")
        assert re.search(rf"^def {test}\(", Path(__file__).with_name(file).read_text(encoding="utf-8"), re.M), named


@pytest.fixture(scope="module")
def live(tokenizer):
    with running(tokenizer) as server:
        server.wait_ready()
        yield server


@pytest.mark.parametrize("case", RAW_CASES, ids=lambda case: case.what)
def test_bytes_that_are_hostile_below_json(live, case):
    received = b""
    with socket.create_connection(live.sock.getsockname(), timeout=10) as connection:
        # The rest of a megabyte is not read: the connection is reset behind the answer.
        with contextlib.suppress(ConnectionError):
            connection.sendall(case.data)
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(4096):
                received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {case.status} ".encode())
    assert json.loads(body)["error"]["message"] and body.count(b"HTTP/1.1") == 0
    assert live.engine.requests == []


@pytest.fixture
def unharmed(server):
    """Whatever a test sends, nothing of it may reach the engine, and a good request works afterwards."""
    yield
    assert server.engine.requests == []
    server.says("fine")
    assert server.chat().status_code == 200


@pytest.mark.usefixtures("unharmed")
def test_a_million_keys_do_not_hold_up_the_others(server):
    body = ("{" + ",".join(f'"k{i}":1' for i in range(1_000_000)) + "}").encode()
    # Processor time: on a busy machine the clock says nothing.
    start = time.process_time()
    assert_error(server.request("POST", CHAT, content=body, headers=JSON), 400, code="invalid_json")
    assert time.process_time() - start < 2


@pytest.mark.usefixtures("unharmed")
def test_deep_but_valid_json_is_refused_by_name(server):
    deep: dict = {}
    for _ in range(300):
        deep = {"a": deep}
    assert_error(server.chat([{"role": "user", "content": [deep]}]), 400)
    assert_error(server.chat(tools=[{"type": "function", "function": {"name": "a", "parameters": deep}}]), 400)


@pytest.mark.usefixtures("unharmed")
def test_content_type_with_charset_is_json(server):
    response = server.request("POST", CHAT, content=b"{}", headers={"content-type": "Application/JSON; charset=utf-8"})
    assert_error(response, 400, param="messages", code="missing_required_parameter")


@pytest.mark.usefixtures("unharmed")
def test_wrong_methods_are_told_the_right_ones(server):
    response = server.get(CHAT)
    assert_error(response, 405, code="method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.usefixtures("unharmed")
def test_prompt_too_long(server):
    for stream in (False, True):
        response = server.chat([{"role": "user", "content": "word " * 400}], stream=stream)
        assert_error(response, 400, param="messages", code="context_length_exceeded")
        assert "256" in response.json()["error"]["message"]


@pytest.mark.usefixtures("unharmed")
def test_a_prompt_of_ten_megabytes_is_refused_at_once(server):
    """They were tokenized whole, 25 seconds each, before anybody looked at the length."""
    text = "word " * 2_000_000
    start = time.process_time()
    response = server.chat([{"role": "user", "content": text}])
    assert_error(response, 400, param="messages", code="context_length_exceeded")
    split = [{"role": "user", "content": text[:100_000]}] * 100
    assert_error(server.chat(split), 400, param="messages", code="context_length_exceeded")
    for prompt in (text, ["a", text]):
        response = server.post("/v1/completions", {"prompt": prompt})
        assert_error(response, 400, param="prompt", code="context_length_exceeded")
    assert time.process_time() - start < 3


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", []),
        ("function_call", "auto"),
        ("audio", {"voice": "x"}),
        ("modalities", ["audio"]),
        ("store", True),
        ("prediction", {}),
        ("web_search_options", {}),
        ("best_of", 2),
        ("best_of", True),
        ("suffix", "x"),
        ("chat_template", "x"),
        ("chat_template_kwargs", {"a": 1}),
        ("use_beam_search", True),
        ("bad_words", ["x"]),
        ("safe_prompt", True),
        ("typical_p", 0.9),
        ("top_a", 0.1),
        ("tfs", 0.5),
        ("tfs_z", 0.5),
        ("mirostat", 2),
        ("mirostat", True),
        ("mirostat_mode", 1),
        ("mirostat_tau", 6.0),
        ("mirostat_eta", 0.2),
        ("repeat_penalty", 1.1),
        ("min_new_tokens", 5),
        ("max_new_tokens", 5),
        ("max_output_tokens", 5),
        ("stop_regex", "a+"),
        ("structural_tag", {}),
        ("thinking", {"type": "enabled"}),
        ("thinking", True),
        ("enable_thinking", True),
        ("reasoning", {"effort": "high"}),
        ("detokenize", False),
        ("separate_reasoning", False),
        ("chat_template_kwargs", {"enable_thinking": True}),
    ],
)
def test_known_fields_that_are_not_honoured_are_refused_by_name(server, field, value):
    assert_error(server.chat(**{field: value}), 400, param=field, code="unsupported_parameter")


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_other_routes_refuse_them_too(server, path):
    response = server.post(path, {"prompt": "a", "repeat_penalty": 1.1})
    assert_error(response, 400, param="repeat_penalty", code="unsupported_parameter")
    assert "use repetition_penalty" in response.json()["error"]["message"]


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("detail", ["original", "", 1, {}, True])
def test_unknown_image_details(server, detail):
    response = server.chat(seen({"url": data_url(picture()), "detail": detail}))
    assert_error(response, 400, param="messages[0].content[1].image_url.detail", code="unsupported_value")


@pytest.mark.usefixtures("unharmed")
def test_body_over_the_limit(make_server, server):
    small = make_server(max_request_bytes=1000)
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}]}).encode()
    assert_error(small.request("POST", CHAT, content=body, headers=JSON), 413, code="request_too_large")

    async def chunks():
        # No Content-Length, no end: only counting stops it.
        while True:
            yield b" " * 100

    assert_error(small.request("POST", CHAT, content=chunks(), headers=JSON), 413, code="request_too_large")
    assert small.engine.requests == []


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [1, "a"]}, "prompt[0]"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, True]}, "prompt[0]"),
        ({"prompt": [99999999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "", "add_special_tokens": False}, "prompt"),
        ({"prompt": "a" * 2 + "\0"}, "prompt"),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": ["a"] * 20, "n": 100}, "n"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "stream_options": {}}, "stream_options"),
        ({"prompt": "word " * 400}, "prompt"),
    ],
)
def test_bad_completions(server, body, param):
    assert_error(server.post("/v1/completions", body), 400, param=param)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"messages": [{"role": "x"}]}, "messages[0].role"),
        ("/tokenize", {"messages": HELLO, "reasoning_effort": "some"}, "reasoning_effort"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**9]}, "tokens"),
    ],
)
def test_bad_tokenize_and_detokenize(server, path, body, param):
    assert_error(server.post(path, body), 400, param=param)


def test_images_that_are_too_large_together(make_server):
    """Each of them passes, but small files can hold large pictures: decoded, a request of 1 MB would take gigabytes."""
    server = make_server(max_image_pixels=100)
    part = {"type": "image_url", "image_url": {"url": data_url(picture(size=(10, 10)))}}
    server.says("ok")
    assert server.chat([{"role": "user", "content": [part] * 4}]).status_code == 200
    refused = server.chat([{"role": "user", "content": [part] * 5}])
    assert_error(refused, 400, param="messages[0].content[4].image_url", code="invalid_image")


@pytest.mark.usefixtures("unharmed")
def test_the_number_of_tools_has_one_limit(server):
    """Chats took 512 and /tokenize 1000."""
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": {}}} for i in range(513)]
    assert_error(server.post("/tokenize", {"messages": HELLO, "tools": tools}), 400, param="tools")
    assert_error(server.chat(tools=tools), 400, param="tools")
