"""Every request of the table in `ventoux.evals.hostile`, asked of an application; the page that lists the answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import httpx2

from tests.fakes import FakeEngine, FakeResolver, FakeWeb
from ventoux.config import ServerConfig
from ventoux.evals.hostile import CASES, CHAT, MESSAGES, RESPONSES, Hostile
from ventoux.evals.hostile_media import MEDIA_CASES
from ventoux.evals.hostile_wire import RAW_CASES
from ventoux.server.app import create_app
from ventoux.server.media import MediaFetcher
from ventoux.text.tokenizer import Tokenizer

ALL_CASES = (*CASES, *MEDIA_CASES)
# What takes a clock, a network or a full server: shown by tests of their own.
ELSEWHERE = (
    ("headers that never end", "408 `timeout`", "test_run.py::test_headers_that_never_end_are_given_up"),
    ("a body without an end", "413 `request_too_large`", "test_bad_input.py::test_body_over_the_limit"),
    (
        "a connection without a request",
        "closed",
        "test_run.py::test_connections_without_a_request_are_closed_in_the_end",
    ),
    ("any key but the right ones", "401 `invalid_api_key`", "test_app.py::test_any_of_the_keys_opens"),
    (
        "names and redirects that lead to private addresses",
        "400 `url_not_allowed`",
        "test_media.py::test_redirects_are_judged_like_the_first_url",
    ),
    (
        "an image that comes byte by byte, or never ends",
        "400 `image_fetch_failed`",
        "test_media.py::test_slow_and_endless_bodies_end_in_time",
    ),
    (
        "an address with no image behind it",
        "400 `image_fetch_failed`",
        "test_media.py::test_servers_that_send_no_image",
    ),
    (
        "images that are too large together",
        "400 `invalid_image`",
        "test_bad_input.py::test_images_that_are_too_large_together",
    ),
    (
        "more requests than the queue holds",
        "503 `overloaded`",
        "test_app.py::test_a_full_server_says_when_to_come_back",
    ),
)
HEAD = """\
# Bad inputs, and what the server says

This page is written by `docs/generate.py`: it sends every request below to the application and notes the answer. They
are also the hostile share of `ventoux bench serve --chaos`. Whatever a request says, it ends alone: nothing of it
reaches the engine unless the answer is 200, and with `"stream": true` it gets the same answer before a stream begins.
[What errors look like](reference/http.md#errors).
"""


class Answer(NamedTuple):
    case: Hostile
    status: int
    code: str | None
    param: str | None
    text: str
    # Whether the engine heard of it.
    reached_engine: bool


class Asked:
    """Applications on a scripted engine, one for each configuration that the cases take."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._apps: dict[str, tuple[httpx2.AsyncClient, FakeEngine]] = {}

    async def ask(self, case: Hostile, content: bytes | None = None) -> Answer:
        client, engine = self._app(case)
        before = len(engine.requests)
        response = await client.request(
            case.method, case.path, content=case.content() if content is None else content, headers=dict(case.headers)
        )
        error = response.json().get("error") or {} if response.status_code != 200 else {}
        # Anthropic's form keeps them in an object of their own.
        details = error.get("details") or {}
        code = error.get("code") or details.get("error_code")
        param = error.get("param") or details.get("param")
        return Answer(case, response.status_code, code, param, response.text, len(engine.requests) > before)

    def _app(self, case: Hostile) -> tuple[httpx2.AsyncClient, FakeEngine]:
        key = repr(case.config)
        if key not in self._apps:
            config = replace(ServerConfig(), image_workers=0, responses_store="none", **(case.config or {}))
            engine = FakeEngine(self._tokenizer.encode_text("fine"))
            media = MediaFetcher(config, transport=FakeWeb(), resolver=FakeResolver())
            app = create_app(engine, self._tokenizer, ("m",), 256, config, media=media)
            transport = httpx2.ASGITransport(app=app)
            self._apps[key] = httpx2.AsyncClient(transport=transport, base_url="http://test"), engine
        return self._apps[key]

    async def close(self) -> None:
        for client, _ in self._apps.values():
            await client.aclose()


async def ask_all(tokenizer: Tokenizer) -> list[Answer]:
    asked = Asked(tokenizer)
    try:
        return [await asked.ask(case) for case in ALL_CASES]
    finally:
        await asked.close()


def streamed(case: Hostile) -> bytes | None:
    """The same request with `stream: true`; None for those that are no generation or no JSON."""
    if case.path not in (CHAT, MESSAGES, RESPONSES) or case.method != "POST" or case.status != 400:
        return None
    try:
        body = json.loads(case.content())
    except (ValueError, RecursionError):
        return None
    return json.dumps({**body, "stream": True}).encode() if isinstance(body, dict) else None


def page(answers: Iterable[Answer]) -> str:
    """docs/bad-inputs.md."""
    return "\n".join([HEAD, *_tables(answers)])


def _tables(answers: Iterable[Answer]) -> Iterator[str]:
    for group, members in groupby(answers, key=lambda answer: answer.case.group):
        yield f"## {group}\n\n| request | status | code | field |\n|---|---|---|---|"
        for answer in members:
            code, param = (f"`{name}`" if name else "" for name in (answer.code, answer.param))
            yield f"| {_cell(answer.case.what)} | {answer.status} | {code} | {param} |"
        yield ""
    yield "## Below JSON\n\n| bytes | status |\n|---|---|"
    yield from (f"| {case.what} | {case.status} |" for case in RAW_CASES)
    yield "\n## What takes a clock, a network or a full server\n\n| what | answer | shown by |\n|---|---|---|"
    yield from (f"| {what} | {answer} | `{test}` |" for what, answer, test in ELSEWHERE)
    yield ""


def _cell(text: str) -> str:
    """Text that Markdown leaves alone."""
    return re.sub(r"([|<>\[\]*_\\])", r"\\\1", text)
