"""Anthropic's messages: what a request becomes, what an answer looks like, and the real client on top of it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json

import anthropic
import httpx2
import pytest
from PIL import Image

from tests.fakes import FakeEngine, FakeWeb
from tests.server.conftest import MODEL, TOOL, Server, named_events
from ventoux.server import sse

THINK, END_THINK, CALLS, ARGS = 34, 35, 9, 32
PATH = "/v1/messages"
HI = [{"role": "user", "content": "Hi"}]
ADD = {
    "name": "add",
    "description": "Adds",
    "input_schema": {"type": "object", "properties": {"a": {"type": "number"}}},
}
ASKED = {"role": "user", "content": "What is 1 + 1?"}
USE = {"type": "tool_use", "id": "toolu_01", "name": "add", "input": {"a": 1}}
CALLED = {"role": "assistant", "content": [USE]}


def text(value: str, **fields) -> dict:
    return {"type": "text", "text": value, **fields}


def result(content, **fields) -> dict:
    return {"type": "tool_result", "tool_use_id": "toolu_01", "content": content, **fields}


def send(server: Server, messages=HI, path: str = PATH, **fields) -> httpx2.Response:
    body = {"messages": messages, **({"max_tokens": 100} if path == PATH else {}), **fields}
    return server.post(path, {name: value for name, value in body.items() if value is not ...})


def prompt(server: Server) -> str:
    return "".join(map(server.tokenizer.token_text, server.engine.requests[-1].prompt_token_ids))


def png(size: tuple[int, int] = (56, 28)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return buffer.getvalue()


def picture(data: bytes) -> dict:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(data).decode()}
    return {"type": "image", "source": source}


def assert_refused(response: httpx2.Response, status: int, kind: str, *, names: str = "", code: str = "") -> None:
    """Anthropic's error body and nothing else."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"] == response.headers["request-id"]
    body = response.json()
    assert set(body) == {"type", "error"} and body["type"] == "error"
    assert set(body["error"]) <= {"type", "message", "details"}
    assert body["error"]["type"] == kind
    assert names in body["error"]["message"], body
    if code:
        assert body["error"]["details"]["error_code"] == code


# --------------------------------------------------------------------------------------------------------- answers


def test_plain_answer(make_server):
    server = make_server(engine=FakeEngine(num_cached_tokens=3))
    server.says("Hello there")
    response = send(server, model=MODEL)
    answer = response.json()
    assert answer.pop("id").startswith("msg_")
    request = server.engine.requests[0]
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "Hello there"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            # What was found in the cache is counted apart.
            "input_tokens": len(request.prompt_token_ids) - 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": len(server.tokenizer.encode_text("Hello there")) + 1,
            "output_tokens_details": {"thinking_tokens": 0},
        },
    }
    assert response.headers["request-id"] == response.headers["x-request-id"]
    assert request.params.max_tokens == 100


def test_blocks_of_an_answer(server):
    server.says(THINK, "hm, 1", END_THINK, "Let me see.", CALLS, "add", ARGS, '{"a": 1}', CALLS, "add", ARGS, "{}")
    answer = send(server, tools=[ADD], thinking={"type": "enabled", "budget_tokens": 50}).json()
    thought, said, first, second = answer["content"]
    signature = base64.b64encode(hashlib.sha256(b"hm, 1").digest()).decode()
    assert thought == {"type": "thinking", "thinking": "hm, 1", "signature": signature}
    assert said == {"type": "text", "text": "Let me see."}
    assert (first["type"], first["name"], first["input"], second["input"]) == ("tool_use", "add", {"a": 1}, {})
    assert len(first["id"]) == len(second["id"]) == 9 and first["id"] != second["id"]
    assert answer["stop_reason"] == "tool_use"
    thought_tokens = len(server.tokenizer.encode_text("hm, 1"))
    assert answer["usage"]["output_tokens_details"] == {"thinking_tokens": thought_tokens}


@pytest.mark.parametrize(
    ("fields", "reason", "sequence"),
    [
        ({}, "end_turn", None),
        ({"max_tokens": 2}, "max_tokens", None),
        # The prompt leaves less room than was asked for.
        ({"max_tokens": 100_000}, "model_context_window_exceeded", None),
        ({"stop_sequences": ["two", "never"]}, "stop_sequence", "two"),
    ],
)
def test_stop_reasons(make_server, fields, reason, sequence):
    server = make_server(max_model_len=64)
    server.says("one two three " + ("and so on " * 50 if reason.startswith("model") else ""))
    answer = send(server, **fields).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, sequence)
    delta = next(e for e in named_events(send(server, stream=True, **fields)) if e["type"] == "message_delta")
    assert delta["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_arguments_that_were_cut_off_are_not_lost(server):
    server.says(CALLS, "add", ARGS, '{"a": 1, "text": "never ends')
    [block] = send(server, tools=[ADD]).json()["content"]
    assert block["input"] == {"INVALID_JSON": '{"a": 1, "text": "never ends'}


def test_an_answer_of_nothing(server):
    server.says()
    assert send(server).json()["content"] == []
    kinds = [event["type"] for event in named_events(send(server, stream=True))]
    assert kinds == ["message_start", "ping", "message_delta", "message_stop"]


# --------------------------------------------------------------------------------------------------------- streams


def test_events_come_in_the_exact_order(make_server):
    server = make_server(engine=FakeEngine(step=100, num_cached_tokens=2))
    server.says(THINK, "hm", END_THINK, "Hi", CALLS, "add", ARGS, '{"a": 1}')
    events = named_events(send(server, tools=[ADD], stream=True))
    length = len(server.engine.requests[0].prompt_token_ids)
    signature = base64.b64encode(hashlib.sha256(b"hm").digest()).decode()
    start, use = events[0]["message"], events[9]["content_block"]
    assert start["usage"]["input_tokens"] == length and start["usage"]["output_tokens"] == 0
    assert (start["content"], start["stop_reason"]) == ([], None)

    def begin(index, **block):
        return {"type": "content_block_start", "index": index, "content_block": block}

    def delta(index, **fields):
        return {"type": "content_block_delta", "index": index, "delta": fields}

    assert events[1:-2] == [
        {"type": "ping"},
        begin(0, type="thinking", thinking="", signature=""),
        delta(0, type="thinking_delta", thinking="hm"),
        delta(0, type="signature_delta", signature=signature),
        {"type": "content_block_stop", "index": 0},
        begin(1, type="text", text=""),
        delta(1, type="text_delta", text="Hi"),
        {"type": "content_block_stop", "index": 1},
        begin(2, type="tool_use", id=use["id"], name="add", input={}),
        delta(2, type="input_json_delta", partial_json='{"a": 1}'),
        {"type": "content_block_stop", "index": 2},
    ]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["input_tokens"] == length - 2
    assert events[-2]["usage"]["cache_read_input_tokens"] == 2
    assert events[-1] == {"type": "message_stop"}


@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize(
    "parts",
    [
        ("plain é 🎉",),
        (THINK, " a\n", END_THINK, "\n b "),
        (THINK, "no end"),
        (THINK, "x", CALLS, "add", ARGS, '{"a": [1, "é"]}', CALLS, "add", ARGS, "{}", "after"),
        (CALLS, "no such thing"),
        ("text", THINK, "again", END_THINK, "more"),
    ],
)
def test_streaming_equals_not_streaming(make_server, step, parts):
    """The client's own accumulation of the stream against the complete answer: text lost or doubled at any split."""
    server = make_server(engine=FakeEngine(step=step))
    server.says(*parts)
    whole = send(server, tools=[ADD]).json()

    async def streamed(http):
        async with client(http).messages.stream(model=MODEL, max_tokens=100, messages=HI, tools=[ADD]) as stream:
            return await stream.get_final_message()

    built = server.ask(streamed).to_dict()
    for block in [*whole["content"], *built["content"]]:
        block.pop("id", None)
        block.pop("parsed_output", None)
    assert built["content"] == whole["content"]
    assert (built["stop_reason"], built["usage"]) == (whole["stop_reason"], whole["usage"])


def test_display_omitted_leaves_thoughts_out_of_both_forms(server):
    server.says(THINK, "secret", END_THINK, "yes")
    thinking = {"type": "adaptive", "display": "omitted"}
    assert send(server, thinking=thinking).json()["content"] == [text("yes")]
    assert "secret" not in send(server, thinking=thinking, stream=True).text


def test_an_error_in_a_stream_is_an_error_event(make_server):
    server = make_server()
    server.says("one two three four")
    server.engine.failure = (2, "numerical_error")
    events = named_events(send(server, stream=True))
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "api_error" and "secret" not in events[-1]["error"]["message"]
    assert "message_stop" not in [event["type"] for event in events]


def test_silence_is_broken_by_pings(server, monkeypatch):
    monkeypatch.setattr(sse, "PING_SECONDS", 0.02)
    server.says("late")

    async def scenario(http):
        server.engine.gate.clear()
        asking = asyncio.create_task(http.post(PATH, json={"messages": HI, "max_tokens": 9, "stream": True}))
        while not server.engine.requests:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)
        server.engine.gate.set()
        return await asking

    kinds = [event["type"] for event in named_events(server.ask(scenario))]
    # One belongs to the protocol.
    assert kinds.count("ping") > 1 and kinds[-1] == "message_stop"


# --------------------------------------------------------------------------------------------------------- requests


def same_prompt(server: Server, body: dict, chat: dict) -> None:
    """A request in Anthropic's form and a chat request give the same prompt, and it is counted right."""
    server.says("a")
    response = send(server, **body)
    assert response.status_code == 200, response.text
    server.chat(**chat)
    first, second = server.engine.requests[-2:]
    assert prompt(server) and first.prompt_token_ids == second.prompt_token_ids
    counted = send(server, path=PATH + "/count_tokens", **body)
    assert counted.json() == {"input_tokens": len(first.prompt_token_ids)}


CALL = {"id": "toolu_01", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    ("body", "chat"),
    [
        ({}, {"messages": HI}),
        (
            {"messages": [{"role": "user", "content": [text("a"), text("b")]}]},
            {"messages": [{"role": "user", "content": "ab"}]},
        ),
        (
            {"system": [text("Be brief.", cache_control={"type": "ephemeral"}), text("Be kind.")]},
            {"messages": [{"role": "system", "content": "Be brief.\n\nBe kind."}, *HI]},
        ),
        # Claude Code's own line changes with every request: nothing would be found in the prefix cache.
        (
            {
                "system": [
                    text("x-anthropic-billing-header: cc_version=2; cch=1a2b;"),
                    text("Be brief."),
                    text("Be kind."),
                ]
            },
            {"messages": [{"role": "system", "content": "Be brief.\n\nBe kind."}, *HI]},
        ),
        (
            {"system": "x-anthropic-billing-header: cc_version=2; cch=1a2b;\nBe brief."},
            {"messages": [{"role": "system", "content": "Be brief."}, *HI]},
        ),
        ({"system": "Be brief."}, {"messages": [{"role": "system", "content": "Be brief."}, *HI]}),
        ({"system": ""}, {"messages": HI}),
        ({"system": "x-anthropic-billing-header: cc_version=2;"}, {"messages": HI}),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, *HI]},
            {"messages": [{"role": "system", "content": "Be brief."}, *HI]},
        ),
        # A tool's result comes before what the user says beside it, whatever their order.
        (
            {
                "messages": [
                    ASKED,
                    {"role": "assistant", "content": [text("Let me see."), USE]},
                    {"role": "user", "content": [text("Well?"), result([text("2")])]},
                ],
                "tools": [ADD],
            },
            {
                "messages": [
                    ASKED,
                    {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "toolu_01", "content": "2"},
                    {"role": "user", "content": "Well?"},
                ],
                "tools": [TOOL],
            },
        ),
        (
            {"messages": [ASKED, CALLED, {"role": "user", "content": [result("no", is_error=True)]}], "tools": [ADD]},
            {
                "messages": [
                    ASKED,
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "toolu_01", "content": "Error: no"},
                ],
                "tools": [TOOL],
            },
        ),
        (
            {
                "messages": [ASKED, CALLED, {"role": "user", "content": [result(None)]}],
                "tools": [{**ADD, "type": "custom"}],
            },
            {
                "messages": [
                    ASKED,
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "toolu_01", "content": ""},
                ],
                "tools": [TOOL],
            },
        ),
        (
            {
                "messages": [
                    ASKED,
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "hm", "signature": "x"},
                            {"type": "redacted_thinking", "data": "x"},
                            text("2"),
                        ],
                    },
                    *HI,
                ],
                "thinking": {"type": "enabled", "budget_tokens": 20},
            },
            {
                "messages": [ASKED, {"role": "assistant", "content": "2", "reasoning": "hm"}, *HI],
                "reasoning_effort": "high",
            },
        ),
        # The assistant's last words are a beginning.
        (
            {"messages": [*HI, {"role": "assistant", "content": "I say"}]},
            {"messages": [*HI, {"role": "assistant", "content": "I say"}], "continue_final_message": True},
        ),
    ],
)
def test_prompts_are_those_of_the_chat(server, body, chat):
    same_prompt(server, body, chat)


@pytest.mark.parametrize(
    ("thinking", "effort"),
    [
        (None, "none"),
        ({"type": "disabled"}, "none"),
        ({"type": "adaptive"}, "high"),
        ({"type": "enabled", "budget_tokens": 1024}, "high"),
    ],
)
def test_thinking_is_the_effort(server, thinking, effort):
    server.says("a")
    response = send(server, thinking=thinking)
    assert json.loads(prompt(server).split("[MODEL_SETTINGS]")[1].split("[/")[0])["reasoning_effort"] == effort
    assert "x-warning" not in response.headers
    limited = "max_tokens=1024" in (server.engine.requests[0].params.grammar or "")
    assert limited == (thinking == {"type": "enabled", "budget_tokens": 1024})


def test_images_by_base64_and_by_url(make_server):
    web = FakeWeb(
        {"pictures.example/red.png": httpx2.Response(200, content=png(), headers={"content-type": "image/png"})}
    )
    server = make_server(web=web, max_model_len=512)
    server.resolver.table["pictures.example"] = ["93.184.216.34"]
    server.says("red")
    linked = {"type": "image", "source": {"type": "url", "url": "https://pictures.example/red.png"}}
    for block in (picture(png()), linked):
        assert send(server, [{"role": "user", "content": [text("What?"), block]}]).status_code == 200
        # A tool may answer with a picture too.
        tool = send(server, [ASKED, CALLED, {"role": "user", "content": [result([text("x"), block])]}], tools=[ADD])
        assert tool.status_code == 200, tool.text
    assert [len(request.images) for request in server.engine.requests] == [1, 1, 1, 1]
    first, _, third, _ = server.engine.requests
    assert first.prompt_token_ids == third.prompt_token_ids
    counted = send(server, [{"role": "user", "content": [text("What?"), linked]}], path=PATH + "/count_tokens")
    assert counted.json() == {"input_tokens": len(first.prompt_token_ids)}


@pytest.mark.parametrize(
    ("choice", "forced", "calls"),
    [
        ({"type": "auto"}, False, 2),
        ({"type": "auto", "disable_parallel_tool_use": True}, False, 1),
        ({"type": "any"}, True, 2),
        ({"type": "any", "disable_parallel_tool_use": True}, True, 1),
        ({"type": "tool", "name": "add"}, True, 2),
        ({"type": "none"}, False, 0),
    ],
)
def test_tool_choice(server, choice, forced, calls):
    server.says(CALLS, "add", ARGS, '{"a": 1}', CALLS, "add", ARGS, '{"a": 2}')
    answer = send(server, tools=[ADD], tool_choice=choice).json()
    assert [block["type"] for block in answer["content"]].count("tool_use") == calls
    assert answer["stop_reason"] == ("tool_use" if calls else "end_turn")
    may_say_nothing_else = "answer: (" in server.engine.requests[0].params.grammar
    assert may_say_nothing_else == forced


def test_sampling_fields_reach_the_engine(server):
    server.says("a")
    send(server, temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["x"], max_tokens=5)
    params = server.engine.requests[0].params
    found = (params.temperature, params.top_p, params.top_k, params.stop, params.max_tokens)
    assert found == (0.5, 0.9, 7, ["x"], 5)


def test_output_format_becomes_a_grammar(server):
    server.says("{}")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert send(server, output_config={"format": {"type": "json_schema", "schema": schema}}).status_code == 200
    assert '"integer"' in server.engine.requests[0].params.grammar


def test_unknown_fields_are_named_and_the_usual_ones_are_not(server):
    """What Claude Code sends with every request must pass without a word; what nobody knows is named."""
    server.says("a")
    cached = {"cache_control": {"type": "ephemeral"}}
    response = send(
        server,
        [{"role": "user", "content": [text("Hi", **cached)]}],
        system=[text("Be kind.", **cached)],
        tools=[{**ADD, **cached, "eager_input_streaming": True}],
        metadata={"user_id": "u"},
        service_tier="auto",
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "medium"},
        **cached,
    )
    assert response.status_code == 200, response.text
    assert "x-ignored-fields" not in response.headers
    assert response.headers["x-warning"] == "output_config.effort has no effect"
    odd = send(
        server,
        [{"role": "user", "content": [text("Hi", odd=1)]}],
        banana=1,
        thinking={"type": "disabled", "odd": 1},
        tools=[{**ADD, "input_examples": [{"a": 1}]}],
    )
    names = ["banana", "thinking.odd", "messages.content.odd", "tools.input_examples"]
    assert odd.headers["x-ignored-fields"].split(", ") == names
    for path in (PATH, PATH + "/count_tokens"):
        assert send(server, path=path, banana=1).headers["x-ignored-fields"] == "banana"


# ------------------------------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"max_tokens": ...}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"messages": ...}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [USE]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}
                ]
            },
            "messages[0].content[0].source",
        ),
        # Translation adds and moves messages: errors must still name what was sent.
        (
            {"system": "s", "messages": [{"role": "user", "content": [text("a"), picture(b"no picture")]}]},
            "messages[0].content[1].source",
        ),
        (
            {
                "messages": [
                    *HI,
                    CALLED,
                    {"role": "user", "content": [result("1"), text("a"), picture(b"no picture")]},
                ],
                "tools": [ADD],
            },
            "messages[2].content[2].source",
        ),
        (
            {
                "messages": [*HI, CALLED, {"role": "user", "content": [text("a"), result([text("a\0")])]}],
                "tools": [ADD],
            },
            "messages[2].content[1].content[0].text",
        ),
        ({"system": [text("a"), {"type": "text", "text": 1}]}, "system[1].text"),
        ({"system": [picture(png())]}, "system[0].type"),
        ({"system": 1}, "system"),
        (
            {"messages": [*HI, {"role": "assistant", "content": [{**USE, "input": "x"}]}, *HI]},
            "messages[1].content[0].input",
        ),
        (
            {"messages": [*HI, {"role": "assistant", "content": [{**USE, "id": None}]}, *HI]},
            "messages[1].content[0].id",
        ),
        (
            {"messages": [{"role": "user", "content": [{**result("x"), "tool_use_id": 5}]}]},
            "messages[0].content[0].tool_use_id",
        ),
        ({"messages": [{"role": "user", "content": [result("x")]}]}, "messages[0].content[0]"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -5}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"thinking": {"type": "banana"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens"),
        ({"tools": [{"name": "add"}]}, "tools[0].input_schema"),
        ({"tools": [{**ADD, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [ADD, ADD]}, "tools[1].name"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tools": [{**ADD, "input_schema": {"type": "nothing"}}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "sub"}, "tools": [ADD]}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}, "tools": [ADD]}, "tool_choice.name"),
        ({"tool_choice": "auto", "tools": [ADD]}, "tool_choice"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "string", "pattern": "(("}}}},
            "output_config.format.schema",
        ),
        # Known but not honoured.
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management"),
        ({"speed": "fast"}, "speed"),
        ({"output_format": {}}, "use output_config"),
        ({"reasoning_effort": "high"}, "use thinking"),
        ({"stop": "x"}, "use stop_sequences"),
        ({"max_completion_tokens": 5}, "use max_tokens"),
        ({"n": 2}, "n is not supported"),
        ({"seed": 2}, "seed is not supported"),
        ({"guided_json": {}}, "guided_json"),
    ],
)
def test_bad_requests(server, fields, names):
    """Refused before a stream opens, naming what was sent, and the engine never hears of it."""
    for stream in (False, True):
        assert_refused(send(server, **{"stream": stream, **fields}), 400, "invalid_request_error", names=names)
    assert server.engine.requests == []


def test_bad_requests_of_the_counting_route(server):
    path = PATH + "/count_tokens"
    assert_refused(send(server, [], path=path), 400, "invalid_request_error", names="messages")
    assert_refused(send(server, path=path, model="gpt-4"), 404, "not_found_error", code="model_not_found")
    assert_refused(send(server, path=path, speed="fast"), 400, "invalid_request_error", names="speed")
    bad = [{"role": "user", "content": [picture(b"x")]}]
    assert_refused(send(server, bad, path=path), 400, "invalid_request_error", names="messages[0].content[0].source")


def test_errors_have_anthropics_form_and_status(make_server):
    server = make_server(api_key=("secret",), max_request_bytes=2000)
    assert_refused(send(server), 401, "authentication_error")
    key = {"x-api-key": "secret"}
    body = {"messages": HI, "max_tokens": 5}
    assert_refused(server.post(PATH, {**body, "model": "gpt-4"}, headers=key), 404, "not_found_error")
    assert_refused(server.post(PATH, {**body, "system": "a" * 3000}, headers=key), 413, "request_too_large")
    assert_refused(server.get(PATH, headers=key), 405, "invalid_request_error")
    headers = {**key, "content-type": "text/plain"}
    assert_refused(server.request("POST", PATH, content=b"{}", headers=headers), 415, "invalid_request_error")
    headers = {**key, "content-type": "application/json"}
    assert_refused(server.request("POST", PATH, content=b"{", headers=headers), 400, "invalid_request_error")
    # The other routes keep theirs.
    assert "type" not in server.get("/v1/nothing", headers=key).json()


def test_either_header_holds_the_key(make_server):
    """Clients that know both may have another server's key in one of them."""
    server = make_server(api_key=("secret",))
    server.says("a")
    body = {"messages": HI, "max_tokens": 5}
    for headers in (
        {"x-api-key": "secret"},
        {"authorization": "Bearer secret"},
        {"x-api-key": "sk-ant-other", "authorization": "Bearer secret"},
        {"x-api-key": "secret", "authorization": "Bearer other"},
    ):
        assert server.post(PATH, body, headers=headers).status_code == 200
    for headers in ({"x-api-key": "other"}, {"x-api-key": ""}, {"authorization": "Basic secret"}):
        assert_refused(server.post(PATH, body, headers=headers), 401, "authentication_error")


def test_a_full_server_is_overloaded_and_a_dead_one_is_not(make_server):
    server = make_server(max_queued_requests=1)

    async def scenario(http):
        server.engine.gate.clear()
        first = asyncio.create_task(http.post(PATH, json={"messages": HI, "max_tokens": 5}))
        while not server.engine.requests:
            await asyncio.sleep(0.001)
        refused = await http.post(PATH, json={"messages": HI, "max_tokens": 5})
        server.engine.gate.set()
        assert (await first).status_code == 200
        return refused

    server.says("a")
    refused = server.ask(scenario)
    assert_refused(refused, 529, "overloaded_error")
    assert refused.headers["retry-after"]
    server.engine.dead = True
    assert_refused(send(server), 503, "api_error", code="engine_dead")


def test_a_prompt_that_is_too_long_says_so_in_the_words_that_agents_look_for(server):
    response = send(server, [{"role": "user", "content": "word " * 500}])
    assert_refused(response, 400, "invalid_request_error", names="prompt is too long: ", code="context_length_exceeded")


# ------------------------------------------------------------------------------------------------- the real client


def client(http: httpx2.AsyncClient) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url="http://test", api_key="EMPTY", http_client=http, max_retries=0)


def test_the_client_runs_a_round_of_tools(server):
    def answer(request):
        parts = [" is the sum"] if "toolu" in prompt(server) or "TOOL_RESULTS" in prompt(server) else None
        ids = server.tokenizer.encode_text
        called = [CALLS, *ids("add"), ARGS, *ids('{"a": 3}')]
        return [ids(parts[0]) if parts else called]

    server.engine.script = answer

    async def talk(http):
        create = client(http).messages.create
        first = await create(model=MODEL, max_tokens=50, messages=[ASKED], tools=[ADD])
        [use] = first.content
        assert (first.stop_reason, use.type, use.name, use.input) == ("tool_use", "tool_use", "add", {"a": 3})
        answered = {"type": "tool_result", "tool_use_id": use.id, "content": "3"}
        history = [ASKED, first.to_param(), {"role": "user", "content": [answered]}]
        return await create(model=MODEL, max_tokens=50, messages=history, tools=[ADD])

    assert server.ask(talk).content[0].text == " is the sum"


def test_the_client_streams_thoughts_and_text(server):
    server.says(THINK, "one two", END_THINK, "three four")

    async def talk(http):
        thinking = {"type": "enabled", "budget_tokens": 1024}
        options = {"model": MODEL, "max_tokens": 2000, "messages": HI, "thinking": thinking}
        async with client(http).messages.stream(**options) as stream:
            seen = [event async for event in stream]
            return seen, await stream.get_final_message()

    seen, final = server.ask(talk)
    assert "".join(event.thinking for event in seen if event.type == "thinking") == "one two"
    assert "".join(event.text for event in seen if event.type == "text") == "three four"
    thought, said = final.content
    assert (thought.thinking, said.text, final.stop_reason) == ("one two", "three four", "end_turn")


def test_the_client_counts_tokens_and_sends_pictures(make_server):
    server = make_server(max_model_len=512)
    server.says("red")

    async def talk(http):
        messages = [{"role": "user", "content": [picture(png()), text("What?")]}]
        counted = await client(http).messages.count_tokens(model=MODEL, messages=messages, system="Be brief.")
        answer = await client(http).messages.create(
            model=MODEL, max_tokens=9, messages=messages, system="Be brief.", extra_headers={"anthropic-beta": "x-1"}
        )
        return counted.input_tokens, answer

    counted, answer = server.ask(talk)
    assert counted == answer.usage.input_tokens and answer.content[0].text == "red"
    assert answer._request_id is not None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model": "claude"}, anthropic.NotFoundError),
        ({"extra_body": {"temperature": 9}}, anthropic.BadRequestError),
        ({"messages": []}, anthropic.BadRequestError),
    ],
)
def test_the_client_raises_its_own_errors(server, options, error):
    async def talk(http):
        with pytest.raises(error) as caught:
            await client(http).messages.create(**{"model": MODEL, "max_tokens": 9, "messages": HI, **options})
        return caught.value

    raised = server.ask(talk)
    assert raised.type in ("not_found_error", "invalid_request_error") and raised.request_id


def test_the_client_raises_for_an_error_in_a_stream(server):
    server.says("one two three four")
    server.engine.failure = (2, "internal_error")

    async def talk(http):
        stream = await client(http).messages.create(model=MODEL, max_tokens=9, messages=HI, stream=True)
        with pytest.raises(anthropic.APIStatusError, match="api_error"):
            [event async for event in stream]

    server.ask(talk)
