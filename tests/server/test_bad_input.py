"""Hostile and mistaken requests: the right status, OpenAI's error body, and an engine that never hears of them."""

from __future__ import annotations

import base64
import io
import json
import struct
import time
import zlib

import pytest
from PIL import Image

from tests.server.conftest import HELLO, TOOL, assert_error

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def unharmed(server):
    """Whatever a test sends, nothing of it may reach the engine, and a good request works afterwards."""
    yield
    assert server.engine.requests == []
    server.says("fine")
    assert server.chat().status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"messages": [}',
        b'{"messages": "\xff"}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": 1e999}',
        b'{"messages": "\\ud800"}',
        b"[" * 10_000,
        b'{"a":' * 10_000,
        b'{"messages": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    ],
)
def test_no_json(server, body):
    assert_error(server.request("POST", CHAT, content=body, headers=JSON), 400, code="invalid_json")


def test_a_million_keys_do_not_hold_up_the_others(server):
    body = ("{" + ",".join(f'"k{i}":1' for i in range(1_000_000)) + "}").encode()
    # Processor time: on a busy machine the clock says nothing.
    start = time.process_time()
    assert_error(server.request("POST", CHAT, content=body, headers=JSON), 400, code="invalid_json")
    assert time.process_time() - start < 2


def test_deep_but_valid_json_is_refused_by_name(server):
    deep: dict = {}
    for _ in range(300):
        deep = {"a": deep}
    assert_error(server.chat([{"role": "user", "content": [deep]}]), 400)
    assert_error(server.chat(tools=[{"type": "function", "function": {"name": "a", "parameters": deep}}]), 400)


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
def test_content_type(server, kind):
    headers = {"content-type": kind} if kind else {}
    response = server.request("POST", CHAT, content=b'{"messages": []}', headers=headers)
    assert_error(response, 415, code="unsupported_media_type")


def test_content_type_with_charset_is_json(server):
    response = server.request("POST", CHAT, content=b"{}", headers={"content-type": "Application/JSON; charset=utf-8"})
    assert_error(response, 400, param="messages", code="missing_required_parameter")


def test_compressed_bodies_are_not_unpacked(server):
    body = zlib.compress(b" " * 1_000_000)
    response = server.request("POST", CHAT, content=body, headers={**JSON, "content-encoding": "deflate"})
    assert_error(response, 415, code="unsupported_media_type")


def test_wrong_paths_and_methods(server):
    assert_error(server.get("/v1/nothing"), 404, code="not_found")
    assert_error(server.get("/v1/chat/completions/"), 404, code="not_found")
    response = server.get(CHAT)
    assert_error(response, 405, code="method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/tokenize", "/detokenize"])
def test_unknown_model(server, path):
    body = {"model": "gpt-4", "messages": HELLO, "prompt": "a", "tokens": [1]}
    if path == "/tokenize":
        del body["messages"]
    response = server.post(path, body)
    assert_error(response, 404, param="model", code="model_not_found")
    assert response.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("messages", [[], "hello", {"role": "user"}, [1], ["hi"], [[]]])
def test_messages_of_the_wrong_shape(server, messages):
    response = server.chat(messages)
    assert_error(response, 400)
    assert response.json()["error"]["param"].startswith("messages")


def test_messages_null_or_missing(server):
    assert_error(server.post(CHAT, {"messages": None}), 400, param="messages")
    assert_error(server.post(CHAT, {}), 400, param="messages", code="missing_required_parameter")


CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
ASKED = {"role": "user", "content": "q"}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "king", "content": "x"}], "messages[0].role"),
        ([{"content": "x"}], "messages[0].role"),
        ([ASKED, {"role": "tool", "content": "1", "tool_call_id": "call_1"}], "messages[1].role"),
        ([ASKED, {"role": "assistant", "content": "a"}, {"role": "system", "content": "s"}], "messages[2].role"),
        ([ASKED, {"role": "assistant", "content": "a"}], "messages[1].role"),
        ([ASKED, CALLED, {"role": "tool", "content": "1"}], "messages[2].tool_call_id"),
        ([ASKED, CALLED, {"role": "tool", "content": "1", "tool_call_id": None}], "messages[2].tool_call_id"),
        ([ASKED, CALLED, {"role": "tool", "content": "1", "tool_call_id": "other"}], "messages[2].tool_call_id"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "poem", "text": "x"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "input_text", "text": "x"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "image", "image": "x"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].image_url"),
        ([{"role": "user", "content": "a\0b"}], "messages[0].content"),
    ],
)
def test_messages_that_make_no_conversation(server, messages, param):
    assert_error(server.chat(messages), 400, param=param)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", [1]),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -5),
        ("top_k", 1.5),
        ("min_p", 2),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("repetition_penalty", 0),
        ("n", 0),
        ("n", -1),
        ("n", 10**9),
        ("n", "2"),
        ("n", True),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 10**12),
        ("max_completion_tokens", 0),
        ("min_tokens", -1),
        ("seed", 2**70),
        ("seed", "7"),
        ("stop", ["a"] * 17),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", "x" * 1_000_000),
        ("stop", 7),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [10**9]),
        ("stop_token_ids", ["a"]),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1.0": 1}),
        ("logit_bias", {"9999999": 1}),
        ("logit_bias", {"5": 1e9}),
        ("logit_bias", {str(i): 1 for i in range(1025)}),
        ("logit_bias", [1]),
        ("top_logprobs", 5),
        ("reasoning_effort", "banana"),
        ("reasoning_effort", 3),
        ("prompt_mode", "thinking"),
        ("stream_options", "yes"),
        ("cache_salt", ""),
        ("cache_salt", "x" * 300),
        ("tools", {}),
        ("tools", "add"),
        ("continue_final_message", "yes"),
        ("add_generation_prompt", False),
        ("echo", True),
    ],
)
def test_fields_out_of_range_or_of_the_wrong_type(server, field, value, stream):
    response = server.chat(stream=stream, **{field: value})
    assert_error(response, 400)
    assert response.json()["error"]["param"].partition(".")[0].partition("[")[0] == field


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens"),
        ({"min_tokens": 9, "max_tokens": 5}, "min_tokens"),
        ({"min_tokens": 255}, "min_tokens"),
        ({"seed": 1, "random_seed": 2}, "random_seed"),
        ({"prompt_mode": "reasoning", "reasoning_effort": "none"}, "prompt_mode"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)
def test_fields_that_contradict_each_other(server, fields, param):
    assert_error(server.chat(**fields), 400, param=param)


def test_prompt_too_long(server):
    for stream in (False, True):
        response = server.chat([{"role": "user", "content": "word " * 400}], stream=stream)
        assert_error(response, 400, param="messages", code="context_length_exceeded")
        assert "256" in response.json()["error"]["message"]


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
        ("guided_json", {}),
        ("guided_regex", "a"),
        ("structured_outputs", {"json": {}}),
        ("bad_words", ["x"]),
        ("safe_prompt", True),
        ("prompt_logprobs", 1),
        ("thinking_token_budget", 100),
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
        ("regex", "a+"),
        ("ebnf", "root ::= x"),
        ("stop_regex", "a+"),
        ("guided_json_object", True),
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


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_other_routes_refuse_them_too(server, path):
    response = server.post(path, {"prompt": "a", "repeat_penalty": 1.1})
    assert_error(response, 400, param="repeat_penalty", code="unsupported_parameter")
    assert "use repetition_penalty" in response.json()["error"]["message"]


@pytest.mark.parametrize("detail", ["original", "", 1, {}, True])
def test_unknown_image_details(server, detail):
    response = server.chat(seen({"url": data_url(picture()), "detail": detail}))
    assert_error(response, 400, param="messages[0].content[1].image_url.detail", code="unsupported_value")


def tool(**function):
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, **function}}


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([tool(name="with spaces")], "tools[0].function.name"),
        ([tool(name="x" * 65)], "tools[0].function.name"),
        ([tool(name=None)], "tools[0].function.name"),
        ([tool(), tool()], "tools[1].function.name"),
        ([TOOL, {"type": "web_search"}], "tools[1].type"),
        ([{"type": "function"}], "tools[0].function"),
        ([{"type": "function", "function": "add"}], "tools[0].function"),
        ([tool(parameters={"type": "nonsense"})], "tools[0].function"),
        ([tool(name=f"f{i}") for i in range(513)], "tools"),
    ],
)
def test_bad_tools(server, tools, param):
    response = server.chat(tools=tools)
    assert_error(response, 400)
    assert response.json()["error"]["param"].startswith(param)


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "required"},
        {"tool_choice": "required", "tools": []},
        {"tool_choice": "sometimes", "tools": [TOOL]},
        {"tool_choice": 1, "tools": [TOOL]},
        {"tool_choice": {"type": "function"}, "tools": [TOOL]},
        {"tool_choice": {"type": "function", "function": {"name": "sub"}}, "tools": [TOOL]},
        {"tool_choice": {"type": "function", "function": {"name": "add"}}},
    ],
)
def test_bad_tool_choice(server, fields):
    assert_error(server.chat(**fields), 400, param="tool_choice")


def schema(value):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        "json",
        schema("text"),
        schema({"type": "nonsense"}),
        schema({"type": "string", "pattern": "(("}),
        schema({"$ref": "http://169.254.169.254/schema"}),
        schema({"enum": ["x" * 5_000_000]}),
    ],
)
def test_bad_response_format(server, response_format):
    response = server.chat(response_format=response_format)
    assert_error(response, 400)
    assert response.json()["error"]["param"].startswith("response_format")


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(size=(30, 20), kind="PNG", mode="RGB", **options) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, kind, **options)
    return out.getvalue()


def png_bomb(side: int) -> bytes:
    """A valid 1-bit PNG of side x side pixels in a few kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def seen(url, **fields) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": url}]}]


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,!!!",
        "data:image/png,abc",
        "data:text/html;base64,PGI+",
        data_url(b""),
        data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        data_url(b"SIMPLE  =                    T", "image/fits"),
        data_url(picture(kind="JPEG", size=(300, 300))[:-400], "image/jpeg"),
        data_url(png_bomb(9000)),
    ],
)
def test_bad_image_data(server, url):
    response = server.chat(seen({"url": url}))
    assert_error(response, 400, param="messages[0].content[1].image_url", code="invalid_image")


@pytest.mark.parametrize("value", [None, 7, {}, {"url": None}, {"url": ""}, ""])
def test_image_parts_without_a_url(server, value):
    assert_error(server.chat(seen(value)), 400, param="messages[0].content[1].image_url", code="invalid_image")


def test_too_many_images(server):
    part = {"type": "image_url", "image_url": {"url": data_url(picture())}}
    assert_error(server.chat([{"role": "user", "content": [part] * 17}]), 400, code="too_many_images")


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


def test_the_number_of_tools_has_one_limit(server):
    """Chats took 512 and /tokenize 1000."""
    tools = [tool(name=f"f{i}") for i in range(513)]
    assert_error(server.post("/tokenize", {"messages": HELLO, "tools": tools}), 400, param="tools")
