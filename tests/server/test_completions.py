"""Plain completions: four forms of a prompt, echo, the older logprobs, streams."""

from __future__ import annotations

import pytest

from tests.server.conftest import MODEL, assert_error, events
from ventoux.server import schemas

PATH = "/v1/completions"


def test_text_prompt(server):
    server.says("and so", 34, " on")
    answer = server.post(PATH, {"prompt": "Once", "model": "alias"}).json()
    assert answer["object"] == "text_completion" and answer["model"] == "alias"
    [choice] = answer["choices"]
    # Nothing is parsed: a think token gives no reasoning field, only its text is missing.
    assert choice["text"] == "and so on"
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    request = server.engine.requests[0]
    assert request.prompt_token_ids == [1, *server.tokenizer.encode_text("Once")]
    assert request.params.max_tokens == 16
    assert answer["usage"]["prompt_tokens"] == len(request.prompt_token_ids)


def test_prompts_of_all_forms(server):
    server.says("x")
    ids = server.tokenizer.encode_text("two words")
    for prompt in ("two words", ids, ["two words"], [ids]):
        assert server.post(PATH, {"prompt": prompt, "add_special_tokens": False}).status_code == 200
    assert [request.prompt_token_ids for request in server.engine.requests] == [ids] * 4


def test_many_prompts_and_answers_are_numbered_in_order(server):
    encode = server.tokenizer.encode_text
    server.engine.script = lambda request: [
        encode(f"{server.tokenizer.decode(request.prompt_token_ids)}{i}") for i in range(request.params.n)
    ]
    answer = server.post(PATH, {"prompt": ["a", "b"], "n": 2, "model": MODEL}).json()
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "a0"), (1, "a1"), (2, "b0"), (3, "b1")]
    assert answer["usage"]["prompt_tokens"] == 4
    streamed = events(server.post(PATH, {"prompt": ["a", "b"], "n": 2, "stream": True}))
    texts = {i: "".join(c["text"] for e in streamed for c in e["choices"] if c["index"] == i) for i in range(4)}
    assert texts == {0: "a0", 1: "a1", 2: "b0", 3: "b1"}


def test_stop_and_length(server):
    server.says("a b STOP c")
    stopped = server.post(PATH, {"prompt": "x", "stop": "STOP"}).json()["choices"][0]
    assert (stopped["text"], stopped["finish_reason"], stopped["stop_reason"]) == ("a b ", "stop", "STOP")
    cut = server.post(PATH, {"prompt": "x", "max_tokens": 1}).json()["choices"][0]
    assert cut["finish_reason"] == "length"


def test_a_stop_token_is_named(server):
    token = server.tokenizer.encode_text("q")[0]
    server.engine.script = lambda request: [[token, 1500, token]]
    choice = server.post(PATH, {"prompt": "x", "stop_token_ids": [1500]}).json()["choices"][0]
    assert (choice["text"], choice["stop_reason"]) == ("q", 1500)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs(server, stream):
    """lm-eval reads the prompt's scores from this form: aligned lists, null for the first token."""
    server.says("yes")
    body = {"prompt": "is it", "echo": True, "logprobs": 2, "max_tokens": 50, "stream": stream}
    response = server.post(PATH, body)
    if stream:
        choices = [choice for event in events(response) for choice in event["choices"]]
        text = "".join(choice["text"] for choice in choices)
        lists = [choice["logprobs"] for choice in choices]
        logprobs = {key: [v for part in lists for v in part[key]] for key in lists[0]}
    else:
        [choice] = response.json()["choices"]
        text, logprobs = choice["text"], choice["logprobs"]
    ids = server.engine.requests[0].prompt_token_ids
    answer = server.tokenizer.encode_text("yes")
    assert text == "is ityes"
    assert server.engine.requests[0].params.prompt_logprobs == 2
    assert logprobs["tokens"] == [server.tokenizer.token_text(i) for i in ids + answer]
    assert logprobs["token_logprobs"] == [None] + [-0.25] * (len(ids + answer) - 1)
    assert logprobs["top_logprobs"][0] is None and len(logprobs["top_logprobs"][1]) == 2
    starts = [0]
    for token in logprobs["tokens"]:
        starts.append(starts[-1] + len(token))
    assert logprobs["text_offset"] == starts[:-1]


def test_scores_of_prompts_are_bounded(server, monkeypatch):
    """All are written at once, while nobody else's events are: those of 250,000 tokens took minutes and gigabytes."""
    monkeypatch.setattr(schemas, "MAX_PROMPT_SCORES", 1000)
    server.says("x")
    body = {"prompt": [1100] * 10, "prompt_logprobs": 20, "max_tokens": 1}
    assert server.post(PATH, {**body, "n": 2}).is_success
    for asked in ({"prompt_logprobs": 20}, {"prompt_logprobs": None, "echo": True, "logprobs": 20}):
        assert_error(server.post(PATH, {**body, "n": 5, **asked}), 400, param="prompt_logprobs")


def test_stream_usage(server):
    server.says("a b c")
    complete = server.post(PATH, {"prompt": "x"}).json()["usage"]
    chunks = events(server.post(PATH, {"prompt": "x", "stream": True, "stream_options": {"include_usage": True}}))
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == complete
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"]][-1] == "stop"


def test_image_tokens_are_refused_before_a_stream_begins(server):
    """The engine would refuse them too, but a stream would have begun by then, with status 200."""
    for stream in (False, True):
        response = server.post(PATH, {"prompt": [1, 10, 1500], "stream": stream})
        assert_error(response, 400, param="prompt")
    assert server.engine.requests == []
