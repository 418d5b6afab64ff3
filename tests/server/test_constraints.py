"""What an answer must be: every name that clients know for it, what it becomes, and what is refused."""

from __future__ import annotations

import pytest

from tests.server.conftest import HELLO, TOOL, assert_error
from ventoux.server import constraints

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
CALLED = [
    *HELLO,
    {
        "role": "assistant",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "1"},
]


def grammar(server):
    return server.engine.requests[-1].params.grammar


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"response_format": {"type": "json_object"}}, '"type": "object"'),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, '"integer"'),
        ({"structured_outputs": {"json": SCHEMA}}, '"integer"'),
        ({"structured_outputs": {"json": '{"type": "integer"}'}}, '"integer"'),
        ({"structured_outputs": {"json_object": True}}, '"type": "object"'),
        ({"structured_outputs": {"regex": "[a-z]+"}}, "/([a-z]+)/"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "/yes/ | /no/"),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, '%lark {\nstart: "a"\n}'),
        ({"guided_json": SCHEMA}, '"integer"'),
        ({"guided_json_object": True}, '"type": "object"'),
        ({"guided_regex": "[a-z]+"}, "/([a-z]+)/"),
        ({"guided_choice": ["yes", "no"]}, "/yes/ | /no/"),
        ({"guided_grammar": 'root ::= "a"'}, 'start: "a"'),
        ({"json_schema": SCHEMA}, '"integer"'),
        ({"regex": "[a-z]+"}, "/([a-z]+)/"),
        ({"ebnf": 'root ::= "a"'}, 'start: "a"'),
        ({"grammar": 'root ::= "a"'}, 'start: "a"'),
    ],
)
def test_names_of_one_wish(server, fields, part):
    """Each of these is the only name that some client knows; both kinds of completions understand all."""
    assert server.chat(**fields).is_success
    assert part in grammar(server)
    response = server.post("/v1/completions", {"prompt": "Hi", **fields})
    assert response.is_success and "x-ignored-fields" not in response.headers
    assert part in grammar(server)


@pytest.mark.parametrize(
    "fields",
    [{"grammar": ""}, {"regex": ""}, {"ebnf": ""}, {"structured_outputs": {}}, {"response_format": {"type": "text"}}],
)
def test_empty_wishes(server, fields):
    """Frontends send every field they know."""
    assert server.chat(**fields).is_success
    assert grammar(server) is None


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"guided_regex": "(("}, "guided_regex", "invalid_grammar"),
        ({"structured_outputs": {"regex": "(?<=a)b"}}, "structured_outputs.regex", "invalid_grammar"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "invalid_value"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]", "invalid_value"),
        ({"structured_outputs": {"grammar": "what?"}}, "structured_outputs.grammar", "invalid_grammar"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "invalid_value"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice", None),
        ({"guided_json": "{"}, "guided_json", "invalid_json_schema"),
        ({"guided_json": "[]"}, "guided_json", "invalid_json_schema"),
        ({"guided_json": {"type": "banana"}}, "guided_json", "invalid_json_schema"),
        ({"guided_json": SCHEMA, "regex": "a"}, "regex", None),
        ({"regex": "a", "tools": [TOOL], "tool_choice": "required"}, "regex", None),
        ({"thinking_token_budget": -1}, "thinking_token_budget", "invalid_value"),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "invalid_value"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", None),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
            "tool_choice",
            None,
        ),
    ],
)
def test_bad_wishes(server, fields, param, code):
    response = server.chat(**fields)
    assert_error(response, 400, param=param)
    assert response.json()["error"]["code"] == code
    assert server.engine.requests == []


def test_a_tool_whose_strict_schema_cannot_be_followed_is_refused_before_the_answer(server):
    """Also where no call is forced: the engine would find out in the middle of a stream."""
    function = {
        "name": "f",
        "strict": True,
        "parameters": {"type": "object", "properties": {"a": {"pattern": "(?=x)"}}},
    }
    response = server.chat(tools=[{"type": "function", "function": function}], stream=True)
    assert_error(response, 400, code="invalid_json_schema")
    assert response.json()["error"]["param"].startswith("tools")


def test_what_takes_too_long_to_compile_is_refused(server, monkeypatch):
    monkeypatch.setattr(constraints, "MAX_COMPILE_SECONDS", 1e-9)
    assert_error(server.chat(guided_json=SCHEMA), 400, param="guided_json", code="invalid_json_schema")


def test_where_no_tool_may_be_called_none_can_be(server):
    """A model that has called before goes on calling, and its call would be shown as text."""
    for fields in ({"tools": [TOOL], "tool_choice": "none"}, {}):
        assert server.chat(CALLED, **fields).is_success
        assert "%json" not in grammar(server) and "answer:" in grammar(server)
    assert server.chat().is_success
    assert grammar(server) is None


def test_allowed_tools_leave_the_prompt_as_it_is(server):
    """The prefix cache finds the tools of a conversation whichever of them are allowed now."""
    other = {"type": "function", "function": {"name": "subtract"}}
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "add"}}]}
    for choice in ("auto", {"type": "allowed_tools", "allowed_tools": allowed}):
        assert server.chat(tools=[TOOL, other], tool_choice=choice).is_success
    free, limited = server.engine.requests
    assert free.prompt_token_ids == limited.prompt_token_ids
    assert '"subtract"' in free.params.grammar and '"subtract"' not in limited.params.grammar


def test_a_thinking_budget_is_part_of_the_grammar(server):
    assert server.chat(reasoning_effort="high", thinking_token_budget=7).is_success
    assert "[max_tokens=7]" in grammar(server)
    # Nothing to limit.
    assert server.chat(thinking_token_budget=7).is_success
    assert grammar(server) is None


def test_an_open_thought_is_gone_on_with(server):
    """The grammar begins where the prompt ends: in the middle of the thought."""
    part = {"type": "thinking", "thinking": "Hm", "closed": False}
    begun = [*HELLO, {"role": "assistant", "content": [part], "prefix": True}]
    assert server.chat(begun, tools=[TOOL], reasoning_effort="high").is_success
    assert grammar(server).startswith("start: thought? <[35]> answer")


def test_prompt_logprobs(server):
    server.says("a")
    answer = server.chat(prompt_logprobs=1).json()
    ids = server.engine.requests[0].prompt_token_ids
    assert len(answer["prompt_logprobs"]) == len(ids) and answer["prompt_logprobs"][0] is None
    score = answer["prompt_logprobs"][1][str(ids[1])]
    assert score == {"logprob": -0.25, "rank": 1, "decoded_token": server.tokenizer.token_text(ids[1])}
    choices = server.post("/v1/completions", {"prompt": ["ab", "c"], "prompt_logprobs": 0}).json()["choices"]
    lengths = sorted(len(request.prompt_token_ids) for request in server.engine.requests[1:])
    assert sorted(len(choice["prompt_logprobs"]) for choice in choices) == lengths
    assert "prompt_logprobs" not in server.chat().json()


@pytest.mark.parametrize("before", [["assistant"], ["assistant", "system"]])
def test_system_messages_in_the_middle_become_the_users(server, before):
    """The format has no place for them behind an answer; agents put reminders there."""
    said = [*HELLO, *({"role": role, "content": "x"} for role in before)]
    messages = [*said, {"role": "developer", "content": "Be short."}, *HELLO]
    response = server.chat(messages)
    assert response.is_success
    assert f"messages[{len(said)}]" in response.headers["x-warning"]
    users = [m if m["role"] != "system" else {**m, "role": "user"} for m in said]
    assert server.chat([*users, {"role": "user", "content": "Be short."}, *HELLO]).is_success
    first, second = server.engine.requests
    assert first.prompt_token_ids == second.prompt_token_ids
    counted = server.post("/tokenize", {"messages": messages})
    assert counted.json()["tokens"] == first.prompt_token_ids and "x-warning" in counted.headers


def test_system_messages_elsewhere_stay(server):
    messages = [{"role": "system", "content": "s"}, *HELLO, {"role": "system", "content": "s"}, *HELLO]
    response = server.chat(messages)
    assert response.is_success and "x-warning" not in response.headers
