"""Chat answers: the wire forms, streamed and not, and that both tell the same."""

from __future__ import annotations

import base64
import io
import json

import pytest
from PIL import Image

from tests.fakes import FakeEngine
from tests.server.conftest import HELLO, MODEL, TOOL, assert_error, events

THINK, END_THINK, CALLS, ARGS = 34, 35, 9, 32


def test_plain_answer(server):
    server.says("Hello there")
    answer = server.chat(model=MODEL).json()
    assert answer["object"] == "chat.completion" and answer["model"] == MODEL and answer["id"].startswith("chatcmpl-")
    [choice] = answer["choices"]
    assert choice["message"]["content"] == "Hello there"
    assert choice["message"]["role"] == "assistant"
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"
    request = server.engine.requests[0]
    tokens = len(server.tokenizer.encode_text("Hello there"))
    assert answer["usage"] == {
        "prompt_tokens": len(request.prompt_token_ids),
        # The end-of-sequence token was generated too.
        "completion_tokens": tokens + 1,
        "total_tokens": len(request.prompt_token_ids) + tokens + 1,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "drafted_tokens": 0, "accepted_tokens": 0},
    }


def test_max_tokens_defaults_to_the_room_left_and_is_clamped_to_it(server):
    server.says("a")
    server.chat()
    server.chat(max_tokens=100000)
    server.chat(max_completion_tokens=3)
    room = 256 - len(server.engine.requests[0].prompt_token_ids)
    assert [r.params.max_tokens for r in server.engine.requests] == [room, room, 3]


def test_length_is_reported(server):
    server.says("one two three four")
    choice = server.chat(max_tokens=2).json()["choices"][0]
    assert choice["finish_reason"] == "length"


def test_reasoning_goes_out_under_both_names_and_is_counted(make_server):
    server = make_server(engine=FakeEngine(num_cached_tokens=5))
    server.says(THINK, "hm, 1", END_THINK, "yes")
    answer = server.chat(reasoning_effort="high").json()
    message = answer["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == "hm, 1"
    assert message["content"] == "yes"
    thought = len(server.tokenizer.encode_text("hm, 1"))
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == thought
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 5


def test_include_reasoning_false_leaves_reasoning_out_of_both_forms(server):
    server.says(THINK, "secret", END_THINK, "yes")
    assert "secret" not in server.chat(include_reasoning=False).text
    assert "secret" not in server.chat(include_reasoning=False, stream=True).text


def _effort(server) -> str:
    prompt = "".join(map(server.tokenizer.token_text, server.engine.requests[-1].prompt_token_ids))
    return json.loads(prompt.split("[MODEL_SETTINGS]")[1].split("[/MODEL_SETTINGS]")[0])["reasoning_effort"]


@pytest.mark.parametrize(
    ("fields", "effort", "warned"),
    [
        ({}, "none", False),
        ({"reasoning_effort": "none"}, "none", False),
        ({"reasoning_effort": None}, "none", False),
        ({"reasoning_effort": "minimal"}, "none", True),
        ({"reasoning_effort": "low"}, "high", True),
        ({"reasoning_effort": "xhigh"}, "high", True),
        ({"reasoning_effort": "high"}, "high", False),
        ({"prompt_mode": "reasoning"}, "high", False),
    ],
)
def test_reasoning_effort_reaches_the_prompt(server, fields, effort, warned):
    server.says("a")
    response = server.chat(**fields)
    assert _effort(server) == effort
    assert ("x-warning" in response.headers) == warned


def test_tool_calls(server):
    server.says("Let me see.", CALLS, "add", ARGS, '{"a": 1}', CALLS, "add", ARGS, '{"a": 2}')
    choice = server.chat(tools=[TOOL]).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    calls = choice["message"]["tool_calls"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"a": 1}, {"a": 2}]
    assert {call["function"]["name"] for call in calls} == {"add"}
    assert all(len(call["id"]) == 9 and call["type"] == "function" for call in calls)
    assert calls[0]["id"] != calls[1]["id"]


def test_only_calls_have_null_content_and_a_named_choice_ends_with_stop(server):
    server.says(CALLS, "add", ARGS, '{"a": 1}')
    named = {"type": "function", "function": {"name": "add"}}
    for choice, reason in (("auto", "tool_calls"), ("required", "tool_calls"), ("any", "tool_calls"), (named, "stop")):
        answer = server.chat(tools=[TOOL], tool_choice=choice).json()["choices"][0]
        assert answer["finish_reason"] == reason, choice
        assert answer["message"]["content"] is None
        assert len(answer["message"]["tool_calls"]) == 1
    # What a free answer may be begins with text; a forced one with a call.
    forced = ["answer: (" in request.params.grammar for request in server.engine.requests]
    assert forced == [False, True, True, True]


def test_tool_choice_none_renders_tools_but_makes_no_calls(server):
    server.says(CALLS, "add", ARGS, '{"a": 1}')
    message = server.chat(tools=[TOOL], tool_choice="none").json()["choices"][0]["message"]
    assert "tool_calls" not in message
    # What the model wrote is not lost.
    assert '{"a": 1}' in message["content"]
    assert 5 in server.engine.requests[0].prompt_token_ids  # [AVAILABLE_TOOLS]


def test_parallel_tool_calls_false_cuts_after_the_first_call(server):
    server.says(CALLS, "add", ARGS, '{"a": 1}', CALLS, "add", ARGS, '{"a": 2}')
    for stream in (False, True):
        response = server.chat(tools=[TOOL], parallel_tool_calls=False, stream=stream)
        assert response.text.count('"name":"add"') == 1
        assert '"finish_reason":"tool_calls"' in response.text
    # The engine was told to stop, not left writing the second call.
    assert [index for _, index in server.engine.aborted] == [0, 0]


def test_stop_strings_end_the_answer_and_the_sequence(server):
    server.says("one two STOP three", 34)
    choice = server.chat(stop=["STOP", "never"]).json()["choices"][0]
    assert choice["message"]["content"] == "one two "
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "STOP")
    assert server.engine.aborted == [(server.engine.requests[0].request_id, 0)]
    assert server.engine.closed == [server.engine.requests[0].request_id]
    kept = server.chat(stop="STOP", include_stop_str_in_output=True).json()["choices"][0]
    assert kept["message"]["content"] == "one two STOP"


def test_stop_strings_do_not_look_into_reasoning_or_arguments(server):
    server.says(THINK, "a STOP b", END_THINK, "c", CALLS, "add", ARGS, '{"a": "STOP"}')
    message = server.chat(stop="STOP", tools=[TOOL]).json()["choices"][0]["message"]
    assert message["reasoning"] == "a STOP b"
    assert message["tool_calls"][0]["function"]["arguments"] == '{"a": "STOP"}'


def test_what_a_step_brought_after_a_stop_string_is_not_counted(make_server):
    server = make_server(engine=FakeEngine(step=50))
    server.says("x STOP", " many more words than before")
    usage = server.chat(stop="STOP").json()["usage"]
    assert usage["completion_tokens"] == len(server.tokenizer.encode_text("x STOP"))


def test_entries_of_logprobs_tell_of_drafts_and_experts_only_if_asked(server):
    """Keys of our own that strict clients trip over, or a question that is taken and not answered."""
    server.says("ab")
    entries = server.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert all(set(entry) == {"token", "logprob", "bytes", "top_logprobs"} for entry in entries)
    asked = {"logprobs": True, "return_drafted": True, "return_routed_experts": True}
    entries = server.chat(**asked).json()["choices"][0]["logprobs"]["content"]
    assert [(entry["drafted"], entry["experts"]) for entry in entries] == [(False, [])] * len(entries)
    assert server.engine.requests[-1].params.routed_experts and not server.engine.requests[-2].params.routed_experts
    chunks = events(server.chat(**asked, stream=True))
    streamed = [e for chunk in chunks for e in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == entries
    for name in ("return_drafted", "return_routed_experts"):
        assert_error(server.chat(**{name: True}), 400, param=name)


def test_logprobs(server):
    server.says("Hé!")
    choice = server.chat(logprobs=True, top_logprobs=2).json()["choices"][0]
    ids = server.tokenizer.encode_text("Hé!")
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == "Hé!"
    assert len(content) == len(ids)
    assert content[0]["logprob"] == -0.25
    assert [len(entry["top_logprobs"]) for entry in content] == [2] * len(ids)
    streamed = events(server.chat(logprobs=True, top_logprobs=2, stream=True))
    joined = [e for chunk in streamed for e in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert joined == content
    assert server.chat().json()["choices"][0]["logprobs"] is None


def test_stream_form(server):
    server.says(THINK, "hm", END_THINK, "Hi you", CALLS, "add", ARGS, '{"a": 1}')
    chunks = events(server.chat(tools=[TOOL], stream=True, stream_options={"stream_tool_calls": True}))
    assert all(chunk["object"] == "chat.completion.chunk" and len(chunk["choices"]) == 1 for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all("role" not in delta for delta in deltas[1:])
    starts = [d["tool_calls"][0] for d in deltas if "tool_calls" in d and "id" in d["tool_calls"][0]]
    [start] = starts
    assert start["index"] == 0 and start["type"] == "function" and len(start["id"]) == 9
    assert start["function"] == {"name": "add", "arguments": ""}
    rest = [d["tool_calls"][0] for d in deltas if "tool_calls" in d and "id" not in d["tool_calls"][0]]
    assert rest and all(set(call) == {"index", "function"} for call in rest)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons[-1] == "tool_calls" and set(reasons[:-1]) == {None}


def test_usage_in_streams(server):
    server.says("one two three")
    complete = server.chat().json()["usage"]
    chunks = events(server.chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == complete
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [c["usage"]["completion_tokens"] for c in events(server.chat(stream=True, stream_options=options))]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == complete["completion_tokens"]


def fold_chunks(chunks: list[dict], n: int) -> list[dict]:
    """What a client makes of a stream."""
    choices = [{"content": "", "reasoning": "", "calls": [], "finish_reason": None} for _ in range(n)]
    for chunk in chunks:
        for choice in chunk["choices"]:
            built, delta = choices[choice["index"]], choice["delta"]
            assert built["finish_reason"] is None, "nothing may follow the finish reason"
            built["content"] += delta.get("content") or ""
            built["reasoning"] += delta.get("reasoning") or ""
            for call in delta.get("tool_calls", []):
                if "id" in call:
                    assert call["index"] == len(built["calls"])
                    built["calls"].append([call["function"]["name"], ""])
                built["calls"][call["index"]][1] += call["function"]["arguments"]
            built["finish_reason"] = choice["finish_reason"]
    return choices


@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize(
    "parts",
    [
        ("plain",),
        (),
        (THINK, " a\n", END_THINK, "\n b "),
        (THINK, "no end"),
        ("é 🎉 ok ENd", "ENDE"),
        (THINK, "x", CALLS, "add", ARGS, "{}", CALLS, "add", ARGS, '{"a": [1, "é"]}'),
        ("  ", CALLS, "add", ARGS, '{"a": 1}', "after"),
        (CALLS, "no such thing"),
    ],
)
def test_streaming_equals_not_streaming(make_server, step, parts):
    """Catches text lost or doubled at any split, and rules applied in one form only."""
    server = make_server(engine=FakeEngine(step=step))
    server.says(*parts)
    fields = {"tools": [TOOL], "stop": ["END"], "n": 2}
    complete = server.chat(**fields).json()["choices"]
    streamed = fold_chunks(events(server.chat(stream=True, **fields)), 2)
    for choice, built in zip(complete, streamed, strict=True):
        message = choice["message"]
        calls = [[c["function"]["name"], c["function"]["arguments"]] for c in message.get("tool_calls", [])]
        assert built == {
            "content": message["content"] or "",
            "reasoning": message["reasoning"] or "",
            "calls": calls,
            "finish_reason": choice["finish_reason"],
        }


def test_n_choices_are_interleaved_and_kept_apart(server):
    texts = ["aa bb cc", "dd ee ff", "gg hh ii"]
    server.engine.script = lambda request: [server.tokenizer.encode_text(text) for text in texts]
    chunks = events(server.chat(n=3, stream=True))
    assert [choice["content"] for choice in fold_chunks(chunks, 3)] == texts
    order = [chunk["choices"][0]["index"] for chunk in chunks[3:]]
    assert order != sorted(order)
    answer = server.chat(n=3).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == texts
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == sum(len(server.tokenizer.encode_text(t)) + 1 for t in texts)


def test_continue_final_message_leaves_the_last_message_open(server):
    server.says(" more")
    prefix = [*HELLO, {"role": "assistant", "content": "I say"}]
    server.chat(prefix, continue_final_message=True)
    server.chat([*HELLO, {"role": "assistant", "content": "I say", "prefix": True}])
    first, second = (request.prompt_token_ids for request in server.engine.requests)
    assert first == second and first[-1] != 2


def test_json_schema_becomes_a_grammar(server):
    server.says('{"a": 1}')
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    json_schema = {"name": "x", "schema": schema, "strict": True}
    server.chat(response_format={"type": "json_schema", "json_schema": json_schema})
    server.chat(response_format={"type": "json_object"})
    server.chat(response_format={"type": "text"})
    grammars = [request.params.grammar for request in server.engine.requests]
    assert '"integer"' in grammars[0] and "%json" in grammars[1] and grammars[2] is None


def test_unknown_fields_are_named_and_harmless_ones_are_not(server):
    server.says("a")
    response = server.chat(user="me", metadata={}, store=False, banana=1, **{"x\r\ny": 2}, stream_options=None)
    assert response.status_code == 200
    assert response.headers["x-ignored-fields"] == "banana, x??y"
    assert "x-ignored-fields" not in server.chat(service_tier="auto").headers
    nested = server.chat(stream=True, stream_options={"odd": 1})
    assert nested.headers["x-ignored-fields"] == "stream_options.odd"


def test_unknown_fields_inside_of_others_are_named_once(server):
    server.says("{}")
    part = {"type": "text", "text": "a", "cache_control": {}}
    response = server.chat(
        [{"role": "user", "content": [part, part], "refusal": None}, {"role": "user", "content": "b", "mood": "good"}],
        tools=[{"type": "function", "function": {**TOOL["function"], "version": 2}}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"title": "mine"}, "draft": 7},
            "odd": 1,
        },
    )
    assert response.status_code == 200
    assert response.headers["x-ignored-fields"].split(", ") == [
        *("response_format.odd", "response_format.json_schema.draft"),
        *("messages.mood", "messages.content.cache_control", "tools.function.version"),
    ]
    tokenized = server.post("/tokenize", {"messages": [{"role": "user", "content": "b", "mood": "good"}]})
    assert tokenized.headers["x-ignored-fields"] == "messages.mood"


def test_cache_salt_and_seed_reach_the_engine(server):
    server.says("a")
    server.chat(cache_salt="s", random_seed=7)
    request = server.engine.requests[0]
    assert request.cache_salt == "s" and request.params.seed == 7


@pytest.mark.parametrize(
    "sent",
    [
        # Frontends of llama.cpp send every sampler they know, turned off.
        {"typical_p": 1, "tfs": 1.0, "top_a": 0, "mirostat_mode": 0, "mirostat_tau": 5, "mirostat_eta": 0.1},
        {"mirostat": 0, "tfs_z": 1, "repeat_penalty": 1.0, "repeat_last_n": 64, "dry_multiplier": 0.0, "n_probs": 0},
        # Agents turn reasoning off in the dialect of another model.
        {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": False}},
        {"thinking": {"type": "disabled"}, "reasoning": None},
        # SGLang's clients.
        {"min_new_tokens": 0, "regex": None, "ebnf": None, "stop_regex": [], "separate_reasoning": True},
        # mistralai, LangChain, LiteLLM, Open WebUI, Continue.
        {"safe_prompt": False, "prompt_mode": None, "random_seed": 1, "guardrails": None},
        {"n": 1, "stream": False, "logit_bias": None, "user": "u", "metadata": {"a": "b"}, "parallel_tool_calls": True},
        {"length_penalty": 1, "best_of": 1, "store": False, "verbosity": "medium", "modalities": ["text"]},
    ],
)
def test_values_that_ask_for_nothing_are_taken(server, sent):
    """A client that always sends all of its fields must not be locked out."""
    server.says("a")
    response = server.chat(**sent)
    assert response.status_code == 200, response.text
    assert "x-ignored-fields" not in response.headers


@pytest.mark.parametrize(
    ("detail", "size"), [(None, (1540, 1176)), ("auto", (1540, 1176)), ("high", (1540, 1176)), ("low", (532, 392))]
)
def test_image_details(make_server, detail, size):
    """`low` was ignored: four to nine times the tokens that were asked for."""
    data = io.BytesIO()
    Image.new("RGB", (1600, 1200)).save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    part = {"type": "image_url", "image_url": {"url": url, "detail": detail}}
    server = make_server(max_model_len=4096)
    server.says("a")
    response = server.chat([{"role": "user", "content": [part]}])
    assert response.status_code == 200 and "x-ignored-fields" not in response.headers
    [image] = server.engine.requests[0].images
    assert (image.width, image.height) == size
