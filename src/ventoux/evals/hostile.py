"""Requests that no server should trip over: mistaken, malformed and hostile ones, with the answer that is right.

One table for all who need them: tests send each of them to the application, the documentation lists the answers, and
`ventoux bench serve --chaos` mixes them into its load.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

CHAT, COMPLETIONS, MESSAGES, RESPONSES = (
    f"/v1/{name}" for name in ("chat/completions", "completions", "messages", "responses")
)
_JSON = {"content-type": "application/json"}
_HI = [{"role": "user", "content": "Hi"}]
_ASKED = {"role": "user", "content": "q"}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
_CALLED = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
# A prompt beyond every context, and text that takes long to tokenize.
_LONG = "word " * 2_000_000
_SHORT_ANSWER = 4


class Hostile(NamedTuple):
    """One request.

    Attributes:
        group: What it is about; cases of a group stand together.
        what: The request in a few words, or the part of it that matters.
        status: Of the right answer.
        param: How the name of the field that is at fault begins; None where an answer names none.
        body: JSON, bytes that are sent as they are, or a function that makes either.
        config: Settings of the server that it takes; a server with other settings answers otherwise.
    """

    group: str
    what: str
    status: int
    param: str | None = None
    body: Any = None
    path: str = CHAT
    method: str = "POST"
    headers: Mapping[str, str] = _JSON
    config: Mapping[str, Any] | None = None

    def content(self) -> bytes:
        made = self.body() if callable(self.body) else self.body
        return made if isinstance(made, bytes) else json.dumps(made).encode() if made is not None else b""


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 90 else f"{text[:60]} ... ({len(text)} characters)"


def _chat(group: str, param: str | None, *, status: int = 400, what: str | None = None, **fields: Any) -> Hostile:
    body = {"messages": _HI, "max_tokens": _SHORT_ANSWER, **fields}
    shown = what or ", ".join(f"{name}: {_short(value)}" for name, value in fields.items())
    return Hostile(group, shown, status, param, body)


def _bodies() -> Iterator[Hostile]:
    group = "Bodies that are no JSON object"
    texts: list[tuple[str, Any]] = [
        ("no body", b""),
        ("truncated", b"{"),
        ("a list", b"[]"),
        ("a string", b'"text"'),
        ("a brace too few", b'{"messages": [}'),
        ("invalid UTF-8", b'{"messages": "\xff"}'),
        ("NaN", b'{"temperature": NaN}'),
        ("Infinity", b'{"temperature": Infinity}'),
        ("1e999", b'{"temperature": 1e999}'),
        ("half of a surrogate pair", b'{"messages": "\\ud800"}'),
        ("10,000 lists in each other, never closed", b"[" * 10_000),
        ("10,000 objects in each other, never closed", b'{"a":' * 10_000),
        ("10,000 lists in each other", b'{"messages": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
        ("a million keys", lambda: ("{" + ",".join(f'"k{i}":1' for i in range(1_000_000)) + "}").encode()),
    ]
    for what, body in texts:
        yield Hostile(group, what, 400, body=body)
    group = "Bodies of another kind"
    for kind in ("", "text/plain", "application/x-www-form-urlencoded", "application/jsonp"):
        what = f"Content-Type: {kind}" if kind else "no Content-Type"
        yield Hostile(group, what, 415, body=b"{}", headers={"content-type": kind} if kind else {})
    for encoding in ("gzip", "deflate", "br", "zstd"):
        packed = {**_JSON, "content-encoding": encoding}
        yield Hostile(group, f"Content-Encoding: {encoding}", 415, body=zlib.compress(b" " * 1_000_000), headers=packed)
    small = {"max_request_bytes": 1000}
    yield Hostile(group, "longer than --max-request-bytes", 413, body=b" " * 2000, config=small)


def _routes() -> Iterator[Hostile]:
    group = "Paths, methods and keys"
    yield Hostile(group, "GET /v1/nothing", 404, path="/v1/nothing", method="GET")
    yield Hostile(group, "GET /v1/chat/completions/", 404, path="/v1/chat/completions/", method="GET")
    yield Hostile(group, "GET /v1/chat/completions", 405, method="GET")
    yield Hostile(group, "DELETE /v1/models", 405, method="DELETE", path="/v1/models")
    for path in ("/v1/responses/resp_nothing", "/v1/models/nothing"):
        param = "model" if "models" in path else None
        yield Hostile(group, f"GET {path}", 404, param, path=path, method="GET")
    body = {"input": "Hi", "previous_response_id": "resp_nothing"}
    yield Hostile(group, "previous_response_id of nothing", 404, "previous_response_id", body, path=RESPONSES)
    keyed = {"api_key": ("secret",)}
    for what, headers in (
        ("no key", {}),
        ("a wrong key", {"authorization": "Bearer wrong"}),
        ("Bearer without a key", {"authorization": "Bearer"}),
        ("Basic instead of Bearer", {"authorization": "Basic secret"}),
        ("a Host header with another path", {"host": "evil/health?x="}),
    ):
        yield Hostile(group, what, 401, body={"messages": _HI}, headers={**_JSON, **headers}, config=keyed)
    key_in_query = f"{CHAT}?api_key=secret"
    yield Hostile(group, "the key in the query", 401, body={"messages": _HI}, path=key_in_query, config=keyed)
    for path in ("/metrics", "/docs", "/openapi.json", "/v1/models"):
        yield Hostile(group, f"GET {path} without a key", 401, path=path, method="GET", config=keyed)
    for path in (CHAT, COMPLETIONS, "/tokenize", "/detokenize"):
        body = {"model": "gpt-4", "tokens": [1], **({"messages": _HI} if path == CHAT else {"prompt": "a"})}
        yield Hostile(group, f'model: "gpt-4" at {path}', 404, "model", body, path=path)


def _messages() -> Iterator[Hostile]:
    group = "Messages"
    yield Hostile(group, "no messages", 400, "messages", {})
    for value in (None, [], "hello", {"role": "user"}, [1], [[]]):
        yield _chat(group, "messages", messages=value)
    said = {"role": "assistant", "content": "a"}
    result = {"role": "tool", "content": "1", "tool_call_id": "call_1"}
    deep: Any = "x"
    for _ in range(300):
        deep = {"a": deep}
    for what, messages, param in (
        ("an unknown role", [{"role": "king", "content": "x"}], "messages[0].role"),
        ("no role", [{"content": "x"}], "messages[0].role"),
        ("a result without a call", [_ASKED, result], "messages[1].role"),
        ("an answer at the end", [_ASKED, said], "messages[1].role"),
        ("a result without an id", [_ASKED, _CALLED, {**result, "tool_call_id": ...}], "messages[2].tool_call_id"),
        ("a result whose id is null", [_ASKED, _CALLED, {**result, "tool_call_id": None}], "messages[2].tool_call_id"),
        ("a result of another call", [_ASKED, _CALLED, {**result, "tool_call_id": "b"}], "messages[2].tool_call_id"),
        ("two results of one call", [_ASKED, _CALLED, result, result], "messages[3]"),
        ("content null", [{"role": "user", "content": None}], "messages[0].content"),
        ("no content", [{"role": "user"}], "messages[0].content"),
        ("a part of an unknown type", _said({"type": "poem", "text": "x"}), "messages[0].content[0].type"),
        ("an input_text part", _said({"type": "input_text", "text": "x"}), "messages[0].content[0].type"),
        ("a part nested 300 deep", _said(deep), "messages[0]"),
        ("NUL in text", [{"role": "user", "content": "a\0b"}], "messages[0].content"),
    ):
        cleaned = [{name: value for name, value in message.items() if value is not ...} for message in messages]
        yield _chat(group, param, what=what, messages=cleaned)
    group = "Prompts longer than the context"
    messages = [{"role": "user", "content": _LONG}]
    yield _chat(group, "messages", what="ten megabytes of words", messages=messages)
    yield _chat(group, "messages", what="one word of ten megabytes", messages=_user("x" * 10_000_000))
    for path, body, param in (
        (COMPLETIONS, {"prompt": _LONG}, "prompt"),
        (RESPONSES, {"input": _LONG}, "input"),
        (MESSAGES, {"max_tokens": 4, "messages": messages}, "messages"),
    ):
        yield Hostile(group, f"ten megabytes of words at {path}", 400, param, body, path=path)


def _user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def _said(part: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [part]}]


# Values that are out of range or of the wrong type, by field.
_VALUES: dict[str, tuple[Any, ...]] = {
    "temperature": (-0.1, 2.1, "hot", True, [1]),
    "top_p": (0, 1.1),
    "top_k": (-5, 1.5),
    "min_p": (2,),
    "presence_penalty": (3,),
    "frequency_penalty": (-3,),
    "repetition_penalty": (0,),
    "n": (0, -1, 10**9, "2", True),
    "max_tokens": (0, -1, 10**12),
    "max_completion_tokens": (0,),
    "min_tokens": (-1,),
    "seed": (2**70, "7"),
    "stop": (["a"] * 17, "", ["a", ""], "x" * 1_000_000, 7),
    "stop_token_ids": ([-1], [10**9], ["a"]),
    "logit_bias": ({"x": 1}, {"-1": 1}, {"9999999": 1}, {"5": 1e9}, {str(i): 1 for i in range(1025)}, [1]),
    "top_logprobs": (5,),
    "reasoning_effort": ("banana", 3),
    "prompt_mode": ("thinking",),
    "stream_options": ("yes",),
    "cache_salt": ("", "x" * 300),
    "tools": ({}, "add"),
    "continue_final_message": ("yes",),
    "add_generation_prompt": (False,),
    "echo": (True,),
    # Known from other interfaces, and not honoured.
    "functions": ([],),
    "function_call": ("auto",),
    "safe_prompt": (True,),
    "best_of": (2,),
    "audio": ({"voice": "x"},),
    "use_beam_search": (True,),
}
# Fields that contradict each other; the first is at fault.
_CONTRADICTIONS: tuple[dict[str, Any], ...] = (
    {"top_logprobs": 21, "logprobs": True},
    {"logprobs": 3},
    {"max_completion_tokens": 5, "max_tokens": 4},
    {"min_tokens": 9, "max_tokens": 5},
    {"random_seed": 2, "seed": 1},
    {"prompt_mode": "reasoning", "reasoning_effort": "none"},
    {"continue_final_message": True, "add_generation_prompt": True},
)


def _fields() -> Iterator[Hostile]:
    group = "Fields of chats"
    for name, values in _VALUES.items():
        for value in values:
            yield _chat(group, name, **{name: value})
    for fields in _CONTRADICTIONS:
        yield _chat(group, next(iter(fields)), **fields)
    group = "Fields of other routes"
    for param, fields in (
        ("prompt", {}),
        ("prompt", {"prompt": []}),
        ("prompt[0]", {"prompt": [[]]}),
        ("prompt[1]", {"prompt": ["a", 1]}),
        ("prompt", {"prompt": [99999999]}),
        ("prompt", {"prompt": [-1]}),
        ("prompt", {"prompt": ["a"] * 1025}),
        ("n", {"prompt": ["a"] * 20, "n": 100}),
        ("logprobs", {"prompt": "a", "logprobs": 21}),
        ("suffix", {"prompt": "a", "suffix": "b"}),
    ):
        yield Hostile(group, f"{COMPLETIONS} {_short(fields)}", 400, param, fields, path=COMPLETIONS)
    for param, fields in (
        ("input", {}),
        ("input", {"input": 7}),
        ("input[0].type", {"input": [{"type": "poem"}]}),
        ("input[0].role", {"input": [{"role": "king", "content": "x"}]}),
        ("include", {"input": "Hi", "include": ["secrets"]}),
        ("background", {"input": "Hi", "background": True}),
        ("max_output_tokens", {"input": "Hi", "max_output_tokens": 0}),
    ):
        yield Hostile(group, f"{RESPONSES} {_short(fields)}", 400, param, fields, path=RESPONSES)
    for param, fields in (
        ("max_tokens", {"messages": _HI}),
        ("messages", {"max_tokens": 4}),
        ("messages[0].role", {"max_tokens": 4, "messages": [{"role": "king", "content": "x"}]}),
        (None, {"max_tokens": 0, "messages": _HI}),
        ("thread", {"max_tokens": 4, "messages": _HI, "thread": {"type": "create"}}),
        ("mcp_servers", {"max_tokens": 4, "messages": _HI, "mcp_servers": [{"name": "x"}]}),
    ):
        yield Hostile(group, f"{MESSAGES} {_short(fields)}", 400, param, fields, path=MESSAGES)


def _tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, **function}}


def _schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}


def _tools() -> Iterator[Hostile]:
    group = "Tools"
    yield _chat(group, "tools[0].function.name", what="a name with blanks", tools=[_tool(name="with spaces")])
    yield _chat(group, "tools[0].function.name", what="a name of 65 characters", tools=[_tool(name="x" * 65)])
    yield _chat(group, "tools[0].function.name", what="no name", tools=[_tool(name=None)])
    yield _chat(group, "tools[1].function.name", what="two of one name", tools=[_tool(), _tool()])
    yield _chat(group, "tools[0].type", what="web_search in a chat", tools=[{"type": "web_search"}])
    yield _chat(group, "tools[0].function", tools=[{"type": "function"}])
    yield _chat(
        group, "tools[0].function", what="parameters that are no schema", tools=[_tool(parameters={"type": "nonsense"})]
    )
    yield _chat(group, "tools", what="10,000 tools", tools=[_tool(name=f"f{i}") for i in range(10_000)])
    yield _chat(group, "tool_choice", tool_choice="required")
    yield _chat(group, "tool_choice", tool_choice="required", tools=[])
    yield _chat(group, "tool_choice", what='tool_choice: "sometimes"', tool_choice="sometimes", tools=[_tool()])
    missing = {"type": "function", "function": {"name": "missing"}}
    yield _chat(group, "tool_choice", what="a tool_choice that is not in tools", tool_choice=missing, tools=[_tool()])
    group = "Response formats"
    for what, value in (
        ("an unknown type", {"type": "xml"}),
        ("json_schema without a schema", {"type": "json_schema"}),
        ("a string", "json"),
        ("a schema that is text", _schema("text")),
        ("a schema of an unknown type", _schema({"type": "nonsense"})),
        ("a pattern that is no regular expression", _schema({"type": "string", "pattern": "(("})),
        ("a $ref to another host", _schema({"$ref": "http://169.254.169.254/schema"})),
        ("a schema of five megabytes", _schema({"enum": ["x" * 5_000_000]})),
        ("a billion items", _schema({"type": "array", "minItems": 10**9, "items": {"type": "integer"}})),
    ):
        yield _chat(group, "response_format", what=what, response_format=value)


CASES: tuple[Hostile, ...] = tuple(case for part in (_bodies, _routes, _messages, _fields, _tools) for case in part())
