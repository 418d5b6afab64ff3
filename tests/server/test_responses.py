"""OpenAI's responses: what a request becomes, the events of a stream, what is kept, and the real client."""

from __future__ import annotations

import asyncio
import base64
import io
import json

import httpx2
import openai
import pytest
from PIL import Image
from pydantic import BaseModel

from tests.fakes import FakeEngine
from tests.server.conftest import MODEL, TOOL, Server, assert_error, named_events

THINK, END_THINK, CALLS, ARGS = 34, 35, 9, 32
PATH = "/v1/responses"
ADD = {"type": "function", **TOOL["function"]}
CALL = {"type": "function_call", "call_id": "call_1", "name": "add", "arguments": '{"a": 1}'}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "2"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}


@pytest.fixture
def keeping(make_server, tmp_path) -> Server:
    """A server that keeps responses."""
    return make_server(responses_store=str(tmp_path / "folder" / "responses.sqlite3"))


def send(server: Server, given="Hi", **fields) -> httpx2.Response:
    return server.post(PATH, {"input": given, **fields})


def said(role: str, text: str) -> dict:
    return {"role": role, "content": text}


def image(size: tuple[int, int] = (56, 28)) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "input_image", "image_url": url, "detail": "auto"}


# --------------------------------------------------------------------------------------------------------- answers


def test_plain_answer(make_server):
    server = make_server(engine=FakeEngine(num_cached_tokens=3))
    server.says("Hello there")
    response = send(server, instructions="Be kind.", metadata={"a": "b"}, max_output_tokens=50, temperature=0.5).json()
    request = server.engine.requests[0]
    tokens = len(server.tokenizer.encode_text("Hello there")) + 1
    [message] = response.pop("output")
    assert message.pop("id").startswith("msg_")
    part = {"type": "output_text", "text": "Hello there", "annotations": [], "logprobs": []}
    assert message == {"type": "message", "role": "assistant", "status": "completed", "content": [part]}
    assert response["id"] == request.request_id and response["id"].startswith("resp_")
    details = response["usage"].pop("output_tokens_details")
    assert details["reasoning_tokens"] == 0
    expected = {
        "object": "response",
        "status": "completed",
        "model": MODEL,
        "instructions": "Be kind.",
        "metadata": {"a": "b"},
        "max_output_tokens": 50,
        "temperature": 0.5,
        "store": False,
        "error": None,
        "incomplete_details": None,
        "previous_response_id": None,
        "text": {"format": {"type": "text"}},
        "usage": {
            "input_tokens": len(request.prompt_token_ids),
            "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
            "output_tokens": tokens,
            "total_tokens": len(request.prompt_token_ids) + tokens,
        },
    }
    assert {name: response[name] for name in expected} == expected
    assert (request.params.max_tokens, request.params.temperature) == (50, 0.5)


def test_items_of_an_answer(server):
    server.says(THINK, "hm, 1", END_THINK, "Let me see.", CALLS, "add", ARGS, '{"a": 1}', CALLS, "add", ARGS, "{}")
    response = send(server, tools=[ADD], reasoning={"effort": "high"}).json()
    thought, message, first, second = response["output"]
    assert thought["type"] == "reasoning" and thought["summary"] == []
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm, 1"}]
    assert message["content"][0]["text"] == "Let me see."
    assert [(call["type"], call["name"], call["arguments"]) for call in (first, second)] == [
        ("function_call", "add", '{"a": 1}'),
        ("function_call", "add", "{}"),
    ]
    assert len(first["call_id"]) == 9 and first["call_id"] != second["call_id"] != second["id"]
    assert {item["status"] for item in response["output"]} == {"completed"}


def test_an_answer_that_was_cut_is_incomplete(server):
    server.says("one two three four")
    response = send(server, max_output_tokens=2).json()
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["output"][-1]["status"] == "incomplete" and response["completed_at"] is None
    assert named_events(send(server, max_output_tokens=2, stream=True))[-1]["type"] == "response.incomplete"


def test_logprobs_are_those_of_the_text(make_server):
    """Reasoning and control tokens are scored too, but are no part of the text."""
    server = make_server(engine=FakeEngine(step=3))
    server.says(THINK, "hm", END_THINK, "Hé!", CALLS, "add", ARGS, "{}")
    fields = {"tools": [ADD], "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part = send(server, **fields).json()["output"][1]["content"][0]
    assert b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode() == part["text"] == "Hé!"
    assert {len(entry["top_logprobs"]) for entry in part["logprobs"]} == {2}
    events = named_events(send(server, stream=True, **fields))
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [entry for event in deltas for entry in event["logprobs"]] == part["logprobs"]


# --------------------------------------------------------------------------------------------------------- streams


def test_events_come_in_the_exact_order(make_server):
    server = make_server(engine=FakeEngine(step=100))
    server.says(THINK, "hm", END_THINK, "Hi", CALLS, "add", ARGS, '{"a": 1}')
    events = named_events(send(server, tools=[ADD], stream=True))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [(event["type"].removeprefix("response."), event.get("output_index")) for event in events] == [
        ("created", None),
        ("in_progress", None),
        ("output_item.added", 0),
        ("content_part.added", 0),
        ("reasoning_text.delta", 0),
        ("reasoning_text.done", 0),
        ("content_part.done", 0),
        ("output_item.done", 0),
        ("output_item.added", 1),
        ("content_part.added", 1),
        ("output_text.delta", 1),
        ("output_text.done", 1),
        ("content_part.done", 1),
        ("output_item.done", 1),
        ("output_item.added", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.done", 2),
        ("output_item.done", 2),
        ("completed", None),
    ]
    for event in events[:2]:
        assert event["response"]["status"] == "in_progress" and event["response"]["output"] == []
    final = events[-1]["response"]
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == final["output"]
    # Every event about an item bears its id.
    for event in events:
        if "item_id" in event:
            assert event["item_id"] == final["output"][event["output_index"]]["id"]
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert [(item["status"], item["type"]) for item in added] == [
        ("in_progress", "reasoning"),
        ("in_progress", "message"),
        ("in_progress", "function_call"),
    ]
    assert added[1]["content"] == [] and added[2]["arguments"] == ""


@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize(
    "parts",
    [
        ("plain é 🎉",),
        (),
        (THINK, " a\n", END_THINK, "\n b "),
        (THINK, "no end"),
        (THINK, "x", CALLS, "add", ARGS, '{"a": [1, "é"]}', CALLS, "add", ARGS, "{}", "after"),
        (CALLS, "no such thing"),
    ],
)
def test_deltas_add_up_to_the_items(make_server, step, parts):
    """Text lost or doubled at any split, and rules applied in one form only."""
    server = make_server(engine=FakeEngine(step=step))
    server.says(*parts)
    whole = send(server, tools=[ADD]).json()
    events = named_events(send(server, tools=[ADD], stream=True))
    final = events[-1]["response"]
    texts: dict[int, str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            texts[event["output_index"]] = texts.get(event["output_index"], "") + event["delta"]
        if event["type"].endswith("text.done"):
            assert event["text"] == texts[event["output_index"]]
        if event["type"].endswith("arguments.done"):
            assert event["arguments"] == texts[event["output_index"]]

    def told(response: dict) -> list[str]:
        items = response["output"]
        return [item["arguments"] if "arguments" in item else item["content"][0]["text"] for item in items]

    assert told(final) == told(whole) == [texts[i] for i in range(len(texts))]
    assert [item["type"] for item in final["output"]] == [item["type"] for item in whole["output"]]
    assert final["usage"] == whole["usage"]


@pytest.mark.parametrize("code", ["numerical_error", "internal_error"])
def test_a_failure_in_a_stream_is_its_last_event(keeping, code):
    keeping.says(CALLS, "add", ARGS, "{}", "one two three four")
    keeping.engine.failure = (6, code)
    events = named_events(send(keeping, tools=[ADD], stream=True))
    failed = events[-1]
    assert failed["type"] == "response.failed" and failed["response"]["status"] == "failed"
    assert failed["sequence_number"] == len(events) - 1
    assert failed["response"]["error"]["code"] == "server_error" and "secret" not in str(failed)
    assert keeping.get(f"{PATH}/{failed['response']['id']}").json() == failed["response"]
    assert_error(send(keeping, tools=[ADD]), 500, code=code)


# --------------------------------------------------------------------------------------------------------- requests


def prompts(server: Server, given, fields: dict, chat: dict) -> tuple[list[int], list[int]]:
    server.says("a")
    response = send(server, given, **fields)
    assert response.status_code == 200, response.text
    assert server.chat(**chat).status_code == 200
    first, second = server.engine.requests[-2:]
    return first.prompt_token_ids, second.prompt_token_ids


HI = said("user", "Hi")
CHAT_CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CHAT_RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "2"}


@pytest.mark.parametrize(
    ("given", "fields", "messages"),
    [
        ("Hi", {}, [HI]),
        ("Hi", {"instructions": "Be kind."}, [said("system", "Be kind."), HI]),
        ([said("developer", "Be kind."), {"type": "message", **HI}], {}, [said("system", "Be kind."), HI]),
        ([{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}], {}, [HI]),
        ([HI, said("assistant", "Ho"), HI], {}, [HI, said("assistant", "Ho"), HI]),
        # Nothing is asked by clients that look whether a server answers.
        ([], {"instructions": "Be kind."}, [said("system", "Be kind."), said("user", "")]),
        # Reasoning, text and calls of one turn are one message.
        (
            [HI, THOUGHT, said("assistant", "Ho"), CALL, RESULT],
            {"tools": [ADD]},
            [HI, {**said("assistant", "Ho"), "reasoning": "hm", "tool_calls": [CHAT_CALL]}, CHAT_RESULT],
        ),
        (
            [HI, CALL, {**CALL, "call_id": "call_2"}, RESULT, {**RESULT, "call_id": "call_2", "output": "3"}, HI],
            {"tools": [ADD]},
            [
                HI,
                {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL, {**CHAT_CALL, "id": "call_2"}]},
                CHAT_RESULT,
                {**CHAT_RESULT, "tool_call_id": "call_2", "content": "3"},
                HI,
            ],
        ),
        (
            [HI, said("assistant", "Ho"), said("assistant", "Ho"), HI],
            {},
            [HI, said("assistant", "Ho"), said("assistant", "Ho"), HI],
        ),
        (
            [
                HI,
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
                said("assistant", "Ho"),
                HI,
            ],
            {},
            [HI, {**said("assistant", "Ho"), "reasoning": "hm"}, HI],
        ),
        (
            [HI, {"type": "reasoning", "summary": []}, said("assistant", "Ho"), HI],
            {},
            [HI, said("assistant", "Ho"), HI],
        ),
        (
            [HI, CALL, {**RESULT, "output": [{"type": "input_text", "text": "2"}]}],
            {"tools": [ADD]},
            [HI, {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]}, CHAT_RESULT],
        ),
    ],
)
def test_prompts_are_those_of_the_chat(server, given, fields, messages):
    first, second = prompts(
        server, given, fields, {"messages": messages, "tools": [TOOL] if "tools" in fields else None}
    )
    assert first == second


def test_images(make_server):
    server = make_server(max_model_len=512)
    server.says("red")
    assert send(server, [{"role": "user", "content": [{"type": "input_text", "text": "What?"}, image()]}]).is_success
    assert send(server, [HI, CALL, {**RESULT, "output": [image()]}], tools=[ADD]).is_success
    assert [len(request.images) for request in server.engine.requests] == [1, 1]


@pytest.mark.parametrize(
    ("choice", "forced", "calls"),
    [
        ("auto", False, 2),
        (None, False, 2),
        ("required", True, 2),
        ({"type": "function", "name": "add"}, True, 2),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]}, True, 2),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "add"}]}, False, 2),
        ("none", False, 0),
    ],
)
def test_tool_choice(server, choice, forced, calls):
    server.says(CALLS, "add", ARGS, '{"a": 1}', CALLS, "add", ARGS, '{"a": 2}')
    response = send(server, tools=[ADD], tool_choice=choice).json()
    assert [item["type"] for item in response["output"]].count("function_call") == calls
    may_say_nothing_else = "answer: (" in server.engine.requests[0].params.grammar
    assert may_say_nothing_else == forced
    single = send(server, tools=[ADD], tool_choice=choice, parallel_tool_calls=False).json()
    assert [item["type"] for item in single["output"]].count("function_call") == min(calls, 1)


@pytest.mark.parametrize("hosted", ["web_search", "file_search", "computer_use_preview", "mcp", "namespace"])
def test_tools_that_the_server_would_run_are_left_out_with_a_warning(server, hosted):
    """Codex offers them with every request; refusing them would refuse Codex."""
    server.says("Hi.")
    response = send(server, tools=[{"type": hosted, "name": "x"}, ADD])
    assert response.is_success and f"tools[0] of type '{hosted}'" in response.headers["x-warning"]
    assert send(server, tools=[{"type": hosted}]).is_success
    prompts = ["".join(map(server.tokenizer.token_text, r.prompt_token_ids)) for r in server.engine.requests]
    assert all(hosted not in prompt for prompt in prompts) and "add" in prompts[0]


def test_warnings_stay_short(server):
    """Proxies and clients refuse an answer with headers of tens of kilobytes, and agents send such histories."""
    server.says("Hi.")
    calls = [{"type": "web_search_call", "id": f"ws_{i}", "status": "completed"} for i in range(500)]
    warning = send(server, input=[{"role": "user", "content": "Hi"}, *calls]).headers["x-warning"]
    assert "input[1] of type web_search_call" in warning and warning.endswith("; ...") and len(warning) < 1100


def test_formats_become_grammars(server):
    server.says("{}")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for form in ({"type": "json_schema", "name": "x", "schema": schema}, {"type": "json_object"}, {"type": "text"}):
        response = send(server, text={"format": form})
        assert response.json()["text"]["format"] == form
    grammars = [request.params.grammar for request in server.engine.requests]
    assert '"integer"' in grammars[0] and "%json" in grammars[1] and grammars[2] is None


@pytest.mark.parametrize(
    ("reasoning", "effort", "warnings"),
    [
        (None, "none", 0),
        ({"effort": "high"}, "high", 0),
        ({"effort": "medium"}, "high", 1),
        ({"effort": "medium", "summary": "auto"}, "high", 2),
        ({"summary": "auto"}, "none", 1),
    ],
)
def test_effort_reaches_the_prompt(server, reasoning, effort, warnings):
    server.says("a")
    response = send(server, reasoning=reasoning)
    prompt = "".join(map(server.tokenizer.token_text, server.engine.requests[0].prompt_token_ids))
    assert f'"reasoning_effort": "{effort}"' in prompt
    assert len(response.headers.get("x-warning", "").split("; ")) == max(warnings, 1)
    assert ("x-warning" in response.headers) == (warnings > 0)


def test_reminders_in_the_middle_become_the_users(server):
    """Agents put them behind answers and results, where the model's format has no place for them."""
    reminder = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be short."}]}
    given = [HI, CALL, RESULT, reminder, HI]
    response = send(server, given, instructions="Be kind.", tools=[ADD])
    assert response.is_success, response.text
    assert response.headers["x-warning"] == "input[3] of role system count as user"
    assert send(server, [*given[:3], {**reminder, "role": "user"}, HI], instructions="Be kind.", tools=[ADD]).is_success
    first, second = server.engine.requests
    assert first.prompt_token_ids == second.prompt_token_ids


def test_unknown_fields_are_named_and_the_usual_ones_are_not(server):
    """What Codex sends with every request must pass without a word; what nobody knows is named."""
    server.says("a")
    usual = {
        "instructions": "You are a coding agent.",
        "tools": [{**ADD, "strict": False}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "client_metadata": {"a": "b"},
        "service_tier": "auto",
        "background": False,
        "truncation": "disabled",
    }
    response = send(
        server, [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}], **usual
    )
    assert response.status_code == 200, response.text
    assert "x-ignored-fields" not in response.headers and "x-warning" not in response.headers
    odd = send(server, [{**HI, "mood": 1}], banana=1, tools=[{**ADD, "defer_loading": False}], reasoning={"odd": 1})
    assert odd.headers["x-ignored-fields"] == "banana, reasoning.odd, input.mood, tools.defer_loading"


# ------------------------------------------------------------------------------------------------------------ kept


def test_a_response_is_kept_and_can_be_forgotten(keeping):
    keeping.says("Hello")
    response = send(keeping).json()
    assert response["store"] is True
    where = f"{PATH}/{response['id']}"
    assert keeping.get(where).json() == response
    assert keeping.request("DELETE", where).json() == {"id": response["id"], "object": "response", "deleted": True}
    for method in ("GET", "DELETE"):
        assert_error(keeping.request(method, where), 404, code="response_not_found")
    assert_error(keeping.get(where + "/input_items"), 404, code="response_not_found")


def test_a_streamed_response_is_kept_as_it_was_told(keeping):
    keeping.says("Hello")
    final = named_events(send(keeping, stream=True))[-1]["response"]
    assert final["store"] is True and keeping.get(f"{PATH}/{final['id']}").json() == final


def test_store_false_keeps_nothing(keeping):
    keeping.says("Hello")
    response = send(keeping, store=False).json()
    assert response["store"] is False
    assert_error(keeping.get(f"{PATH}/{response['id']}"), 404, code="response_not_found")


def test_a_server_without_a_store_says_so(server):
    server.says("Hello")
    assert send(server).json()["store"] is False
    assert_error(send(server, store=True), 400, param="store", code="unsupported_parameter")
    assert_error(send(server, previous_response_id="resp_1"), 404, param="previous_response_id")
    assert_error(server.get(PATH + "/resp_1"), 404, code="response_not_found")


def test_responses_survive_a_restart(make_server, tmp_path):
    path = str(tmp_path / "responses.sqlite3")
    first = make_server(responses_store=path)
    first.says("Hello")
    response = send(first).json()
    assert make_server(responses_store=path).get(f"{PATH}/{response['id']}").json() == response


def test_going_on_from_a_response(keeping):
    """The prompt holds all that was asked and answered before, but not the earlier instructions."""
    keeping.says(THINK, "hm", END_THINK, "Ho", CALLS, "add", ARGS, '{"a": 1}')
    first = send(keeping, instructions="Be kind.", tools=[ADD]).json()
    call_id = first["output"][-1]["call_id"]
    keeping.says("Well")
    result = {**RESULT, "call_id": call_id}
    second = send(keeping, [result], previous_response_id=first["id"], tools=[ADD]).json()
    assert second["previous_response_id"] == first["id"]
    third = send(keeping, "And?", previous_response_id=second["id"], instructions="Be brief.", tools=[ADD])
    assert third.status_code == 200
    call = {**CHAT_CALL, "id": call_id}
    keeping.chat(
        [
            said("system", "Be brief."),
            HI,
            {**said("assistant", "Ho"), "reasoning": "hm", "tool_calls": [call]},
            {**CHAT_RESULT, "tool_call_id": call_id},
            said("assistant", "Well"),
            said("user", "And?"),
        ],
        tools=[TOOL],
    )
    *_, going_on, chat = keeping.engine.requests
    assert going_on.prompt_token_ids == chat.prompt_token_ids
    # A link that is gone breaks the chain: half a conversation would be another one.
    keeping.request("DELETE", f"{PATH}/{first['id']}")
    refused = send(keeping, "And?", previous_response_id=second["id"])
    assert_error(refused, 404, param="previous_response_id", code="response_not_found")


def test_input_items_are_listed_page_by_page(keeping):
    keeping.says("Hello")
    given = [said("user", "a"), said("assistant", "b"), {**THOUGHT, "id": "rs_9"}, said("user", "c")]
    where = f"{PATH}/{send(keeping, given).json()['id']}/input_items"
    whole = keeping.get(where, params={"order": "asc"}).json()
    assert whole["object"] == "list" and whole["has_more"] is False
    assert [item["type"] for item in whole["data"]] == ["message", "message", "reasoning", "message"]
    assert whole["data"][0]["content"] == [{"type": "input_text", "text": "a"}]
    assert whole["data"][1]["content"] == [{"type": "output_text", "text": "b", "annotations": []}]
    ids = [item["id"] for item in whole["data"]]
    assert len(set(ids)) == 4 and ids[2] == "rs_9"
    last = keeping.get(where).json()
    assert [item["id"] for item in last["data"]] == ids[::-1]
    page = keeping.get(where, params={"limit": 2, "after": ids[3]}).json()
    assert [item["id"] for item in page["data"]] == [ids[2], ids[1]]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[2], ids[1], True)
    for bad in ({"order": "up"}, {"limit": 0}, {"limit": 101}, {"limit": "x"}, {"after": "nothing"}):
        assert_error(keeping.get(where, params=bad), 400, param=next(iter(bad)), code="invalid_value")


def test_only_background_responses_could_be_cancelled_or_streamed_later(keeping):
    keeping.says("Hello")
    where = f"{PATH}/{send(keeping).json()['id']}"
    assert_error(keeping.request("POST", where + "/cancel"), 400, code="invalid_request")
    assert_error(keeping.request("POST", PATH + "/resp_nothing/cancel"), 404, code="response_not_found")
    assert_error(keeping.get(where, params={"stream": "true"}), 400, param="stream")


def test_a_full_disk_takes_no_answer_away(keeping, caplog):
    """The answer is given, says that it is not kept, and the log says why."""
    keeping.says("Hello")
    store = keeping.app.state.service.responses

    async def fill() -> None:
        # SQLite's own error for a full disk, at the size that the file has now.
        await store._database.run(lambda connection: connection.execute("PRAGMA max_page_count=1"))

    asyncio.run(fill())
    big = "word " * 30
    response = send(keeping, [said("user", big)] * 1, metadata={str(i): "x" * 500 for i in range(16)})
    assert response.status_code == 200 and response.json()["store"] is False
    assert response.headers["x-warning"] == "the response could not be stored"
    assert "could not be stored" in caplog.text and "disk is full" in caplog.text
    fields = {"stream": True, "metadata": {str(i): "x" * 500 for i in range(16)}}
    assert named_events(send(keeping, **fields))[-1]["response"]["store"] is False


# ------------------------------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["Hi"]}, "input"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"role": ["user"], "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": ["message"]}]}, "input[0].type"),
        ({"input": [{"type": "poem"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{**HI, "id": 5}]}, "input[0].id"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "system", "content": [image()]}]}, "input[0].content[0].type"),
        # Translation adds and merges messages: errors must still name what was sent.
        (
            {"instructions": "s", "input": [HI, {"role": "user", "content": [{**image(), "image_url": "data:x"}]}]},
            "input[1].content[0].image_url",
        ),
        ({"input": [HI, {**CALL, "call_id": None}, RESULT], "tools": [ADD]}, "input[1].id"),
        ({"input": [HI, {**CALL, "name": "a b"}, RESULT], "tools": [ADD]}, None),
        ({"input": [HI, CALL, {**RESULT, "call_id": 5}], "tools": [ADD]}, "input[2].call_id"),
        ({"input": [HI, CALL, {**RESULT, "output": None}], "tools": [ADD]}, "input[2].output"),
        ({"input": [RESULT]}, None),
        ({"input": "a\0"}, None),
        ({"input": "word " * 500}, "input"),
        ({"instructions": 5}, "instructions"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"include": ["banana"]}, "include"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"reasoning": {"effort": "banana"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "banana"}}, "reasoning.summary"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "string", "pattern": "(("}}}},
            "text.format.schema",
        ),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"tools": [{"type": 7}]}, "tools[0].type"),
        ({"tools": [{**ADD, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [ADD, ADD]}, "tools[1].name"),
        ({"tools": [{**ADD, "parameters": {"type": "nothing"}}]}, "tools[0].parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "sub"}, "tools": [ADD]}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}, "tools": [ADD]}, "tool_choice"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        # Known but not honoured.
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"messages": [HI]}, "messages"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"response_format": {"type": "text"}}, "response_format"),
        ({"seed": 1}, "seed"),
        ({"stop": "x"}, "stop"),
        ({"n": 2}, "n"),
    ],
)
def test_bad_requests(server, fields, param):
    """Refused before a stream opens, naming what was sent, and the engine never hears of it."""
    for stream in (False, True):
        response = server.post(PATH, {"input": "Hi", "stream": stream, **fields})
        assert_error(response, 400, param=param)
        assert response.json()["error"]["type"] == "invalid_request_error"
        assert "messages" not in (response.json()["error"]["param"] or "") or "messages" in fields
    assert server.engine.requests == []


def test_unknown_models_and_responses(keeping):
    assert_error(send(keeping, model="gpt-4"), 404, param="model", code="model_not_found")
    refused = send(keeping, previous_response_id="resp_nothing")
    assert_error(refused, 404, param="previous_response_id", code="response_not_found")
    assert_error(keeping.get(PATH), 405)
    assert_error(keeping.post(PATH, {}), 400, param="input", code="missing_required_parameter")


# ------------------------------------------------------------------------------------------------- the real client


def client(http: httpx2.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://test/v1", api_key="EMPTY", http_client=http, max_retries=0)


def test_the_client_runs_a_round_of_tools_and_goes_on(keeping):
    encode = keeping.tokenizer.encode_text
    answers = [[CALLS, *encode("add"), ARGS, *encode('{"a": 3}')], encode("It is 3."), encode("Yes.")]
    keeping.engine.script = lambda request: [answers[len(keeping.engine.requests) - 1]]

    async def talk(http):
        create = client(http).responses.create
        first = await create(model=MODEL, input="What is 1 + 2?", tools=[ADD])
        [call] = first.output
        assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "add", {"a": 3})
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
        second = await create(model=MODEL, input=[result], previous_response_id=first.id, tools=[ADD])
        # By hand, without the store: the items of an answer can be sent back as they came.
        third = await create(
            model=MODEL,
            input=[{"role": "user", "content": "What is 1 + 2?"}, *first.output, result, *second.output, HI],
            tools=[ADD],
            store=False,
        )
        items = [item async for item in await client(http).responses.input_items.list(second.id)]
        assert [item.type for item in items] == ["function_call_output"]
        await client(http).responses.delete(second.id)
        with pytest.raises(openai.NotFoundError):
            await client(http).responses.retrieve(second.id)
        return second.output_text, third.output_text, (await client(http).responses.retrieve(first.id)).id == first.id

    assert keeping.ask(talk) == ("It is 3.", "Yes.", True)


def test_the_client_streams(server):
    server.says(THINK, "one two", END_THINK, "three four", CALLS, "add", ARGS, '{"a": 1}')

    async def talk(http):
        async with client(http).responses.stream(model=MODEL, input="Hi", tools=[ADD]) as stream:
            seen = [event async for event in stream]
            return seen, await stream.get_final_response()

    seen, final = server.ask(talk)
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == "three four"
    assert "".join(event.delta for event in seen if event.type == "response.reasoning_text.delta") == "one two"
    assert final.output_text == "three four" and final.output[0].content[0].text == "one two"
    assert final.output[2].arguments == '{"a": 1}'


def test_the_client_parses(server):
    class Point(BaseModel):
        x: int
        name: str

    server.says('{"x": 3, "name": "é"}')

    async def talk(http):
        return await client(http).responses.parse(model=MODEL, input="Hi", text_format=Point)

    assert server.ask(talk).output_parsed == Point(x=3, name="é")
    assert '"integer"' in server.engine.requests[0].params.grammar


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError),
        ({"temperature": 9}, openai.BadRequestError),
        ({"background": True}, openai.BadRequestError),
        ({"previous_response_id": "resp_nothing"}, openai.NotFoundError),
    ],
)
def test_the_client_raises_its_own_errors(server, options, error):
    async def talk(http):
        with pytest.raises(error) as caught:
            await client(http).responses.create(**{"model": MODEL, "input": "Hi", **options})
        return caught.value

    assert server.ask(talk).body["message"]
