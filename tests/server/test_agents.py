"""What coding agents and chat frontends send, replayed: every field is taken, every stream has its form.

`agents/*.json` holds the requests, with texts of our own: what matters are the fields, headers and shapes of items, as
each client's public sources have them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.server.conftest import Server, events, named_events

THINK, END_THINK, CALLS, ARGS = 34, 35, 9, 32
FILES = sorted((Path(__file__).parent / "agents").glob("*.json"))
SENT = {
    f"{told['client']}: {request['what']}": request
    for told in (json.loads(file.read_text(encoding="utf-8")) for file in FILES)
    for request in told["requests"]
}


def replay(server: Server, request: dict[str, Any]) -> httpx2.Response:
    body = {"json": request["body"]} if "body" in request else {}
    return server.request(request.get("method", "POST"), request["path"], headers=request["headers"], **body)


@pytest.fixture
def server(make_server) -> Server:
    return make_server(max_model_len=4096)


@pytest.mark.parametrize("name", SENT)
def test_every_request_of_every_client_is_answered(server, name):
    """A field that is refused, or dropped without being one of those that mean nothing here."""
    request = SENT[name]
    body = request.get("body", {})
    server.says("fine")
    response = replay(server, request)
    assert response.status_code == 200, response.text
    ignored = response.headers.get("x-ignored-fields", "").split(", ")
    assert set(ignored) <= MEANINGLESS, ignored
    if not body.get("stream"):
        assert response.json()
        return
    kind = request["path"].partition("?")[0]
    if kind == "/v1/chat/completions":
        assert_chat(events(response), usage="include_usage" in body.get("stream_options", {}))
    elif kind == "/v1/completions":
        assert "".join(choice["text"] for chunk in events(response) for choice in chunk["choices"]) == "fine"
    elif kind == "/v1/responses":
        assert_responses(named_events(response))
    else:
        assert_messages(named_events(response))


# Marks that clients put on their own things, which a server may leave unread.
MEANINGLESS = {
    "",
    "messages.content.signature",
    "messages.name",
    # Who called a tool: always the model.
    "messages.content.caller",
    # Of tools and items that are left out with a warning.
    *(f"tools.{name}" for name in ("format", "external_web_access", "tools")),
    *(f"input.{name}" for name in ("action", "execution", "tools", "input")),
}


def assert_chat(chunks: list[dict[str, Any]], *, usage: bool) -> None:
    """Role first, then text, one finish reason, then usage if it was asked for."""
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content") or "" for delta in deltas) == "fine"
    finished = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]]
    assert finished[-1] == "stop" and not any(finished[:-1])
    assert [bool(chunk.get("usage")) for chunk in chunks] == [False] * (len(chunks) - usage) + [True] * usage


def assert_responses(found: list[dict[str, Any]]) -> None:
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds[:2] == ["created", "in_progress"] and kinds[-1] == "completed"
    opened = [event["output_index"] for event in found if event["type"] == "response.output_item.added"]
    closed = [event["output_index"] for event in found if event["type"] == "response.output_item.done"]
    assert opened == closed == list(range(len(opened)))
    assert found[-1]["response"]["usage"]["output_tokens"] > 0
    assert found[-1]["response"]["output"][-1]["content"][0]["text"] == "fine"


def assert_messages(found: list[dict[str, Any]]) -> None:
    kinds = [event["type"] for event in found]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    starts = [event["index"] for event in found if event["type"] == "content_block_start"]
    stops = [event["index"] for event in found if event["type"] == "content_block_stop"]
    assert starts == stops == list(range(len(starts)))
    text = "".join(event["delta"].get("text", "") for event in found if event["type"] == "content_block_delta")
    assert text == "fine" and found[-2]["usage"]["output_tokens"] > 0


@pytest.mark.parametrize("name", [name for name in SENT if "after" in name])
def test_what_tools_said_and_what_was_thought_is_in_the_prompt(server, name):
    """A history that is taken but not read: the model would ask for the same again."""
    server.says("fine")
    assert replay(server, SENT[name]).status_code == 200
    prompt = "".join(map(server.tokenizer.token_text, server.engine.requests[-1].prompt_token_ids))
    assert "a.py" in prompt
    if "Continue" not in name:
        assert "I should list them." in prompt


def test_a_call_to_each_agent_has_its_form(server):
    """Arguments without a name, in pieces that do not add up, or under an id that the client will not take."""
    calls = {
        "Codex CLI: a turn": "shell",
        "Claude Code: a turn": "Bash",
        "mistral-vibe: a turn, openai adapter": "bash",
    }
    for name, tool in calls.items():
        server.says(THINK, "hm", END_THINK, CALLS, tool, ARGS, '{"command": "ls"}')
        response = replay(server, SENT[name])
        path = SENT[name]["path"]
        if path == "/v1/responses":
            done = [e["item"] for e in named_events(response) if e["type"] == "response.output_item.done"]
            assert [item["type"] for item in done] == ["reasoning", "function_call"]
            assert (done[1]["name"], done[1]["arguments"]) == ("shell", '{"command": "ls"}')
        elif path.startswith("/v1/messages"):
            found = named_events(response)
            blocks = [e["content_block"]["type"] for e in found if e["type"] == "content_block_start"]
            assert blocks == ["thinking", "tool_use"] and found[-2]["delta"]["stop_reason"] == "tool_use"
        else:
            deltas = [c["choices"][0]["delta"] for c in events(response) if c["choices"]]
            pieces = [call for delta in deltas for call in delta.get("tool_calls", ())]
            assert pieces[0]["function"]["name"] == "bash" and len(pieces[0]["id"]) == 9
            assert "".join(piece["function"].get("arguments", "") for piece in pieces) == '{"command": "ls"}'


def test_tools_among_the_input_can_be_called(server):
    """Codex since 0.150 offers tools as items of the input."""
    server.says(CALLS, "view_image", ARGS, '{"path": "a.png"}')
    response = replay(server, SENT["Codex CLI: a turn with tools among the input, as since 0.150"])
    prompt = "".join(map(server.tokenizer.token_text, server.engine.requests[-1].prompt_token_ids))
    assert "view_image" in prompt
    assert named_events(response)[-1]["response"]["output"][0]["name"] == "view_image"
