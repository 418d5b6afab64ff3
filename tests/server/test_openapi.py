"""The OpenAPI document says what the routes answer: real answers and refusals are held against it."""

from __future__ import annotations

import jsonschema
import pytest

from tests.server.bad_inputs import ALL_CASES
from tests.server.conftest import HELLO, TOOL, Server

CALLS, ARGS, THINK, END_THINK = 9, 32, 34, 35


@pytest.fixture
def server(make_server, tmp_path) -> Server:
    return make_server(responses_store=str(tmp_path / "responses.sqlite3"))


@pytest.fixture
def spec(server) -> dict:
    return server.get("/openapi.json").json()


def check(spec: dict, method: str, path: str, response) -> None:
    described = spec["paths"][path][method]["responses"]
    status = str(response.status_code)
    content = described.get(status) or described[f"{status[0]}XX"]
    kind = response.headers["content-type"].partition(";")[0]
    schema = {**content["content"][kind]["schema"], "components": spec["components"]}
    body = response.json() if kind == "application/json" else response.text
    jsonschema.Draft202012Validator(schema).validate(body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "logprobs": True, "n": 2}),
        ("/v1/chat/completions", {"messages": HELLO, "tools": [TOOL], "reasoning_effort": "high"}),
        ("/v1/chat/completions", {"messages": HELLO, "stream": True}),
        ("/v1/completions", {"prompt": "a", "logprobs": 1}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 20}),
        ("/v1/messages/count_tokens", {"messages": HELLO}),
        ("/v1/responses", {"input": "Hi", "metadata": {"a": "b"}}),
        ("/tokenize", {"prompt": "a", "return_token_strs": True}),
        ("/detokenize", {"tokens": [1100]}),
    ],
)
def test_answers_are_as_described(server, spec, path, body):
    server.says(THINK, "hm", END_THINK, "Hi", CALLS, "add", ARGS, "{}")
    response = server.post(path, body)
    assert response.status_code == 200, response.text
    check(spec, "post", path, response)


def test_kept_things_and_operations_are_as_described(server, spec):
    server.says("Hi")
    kept = server.post("/v1/responses", {"input": "Hi"}).json()["id"]
    for method, path in (
        ("get", "/v1/responses/{response_id}"),
        ("get", "/v1/responses/{response_id}/input_items"),
        ("delete", "/v1/responses/{response_id}"),
        ("get", "/v1/responses/{response_id}"),
        ("get", "/v1/models"),
        ("get", "/v1/models/{model}"),
        ("get", "/health"),
        ("get", "/ready"),
        ("get", "/metrics"),
    ):
        check(spec, method, path, server.request(method, path.format(response_id=kept, model="alias")))


def test_every_bad_input_is_refused_as_described(server, spec):
    """One form of errors that the document does not know would be enough to break a generated client."""
    for case in ALL_CASES:
        method = case.method.lower()
        known = method in spec["paths"].get(case.path, ())
        if case.config is None and known and case.status != 200 and len(case.content()) < 100_000:
            response = server.request(case.method, case.path, content=case.content(), headers=dict(case.headers))
            check(spec, method, case.path, response)
