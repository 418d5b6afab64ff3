"""The chat page in Chromium, before a real server with the bundled model, or before scripted answers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import serving

playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need: pip install '.[page]'")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium(driver: Any) -> str | None:
    """A browser of the system, or the one that `playwright install chromium` has brought."""
    installed = driver.chromium.executable_path
    return next(filter(None, map(shutil.which, BROWSERS)), installed if Path(installed).exists() else None)


def launch(driver: Any, path: str) -> Any:
    # Chromium's sandbox does not start for root.
    return driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        path = find_chromium(driver)
        if path is None:
            pytest.skip("no Chromium here: install the system's package, or run: playwright install chromium")
        browser = launch(driver, path)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def url(tmp_path_factory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log"
    # Guesses at every step: otherwise a slow moment would turn them off, and with them what is tested of them.
    flags = ("--num-threads", "1", "--responses-store", "none", "--speculative-config", '{"adaptive": false}')
    with serving(*flags, log=log) as (address, _):
        yield address


@pytest.fixture
def open_page(browser, url) -> Iterator[Callable[..., Any]]:
    """Opens pages in contexts of their own. Afterwards: nothing went elsewhere, and the console has no error.

    `quiet=False`: errors in the console are what the test is about.
    """
    contexts, errors, outside = [], [], []

    def make(path: str = "/", *, address: str = url, quiet: bool = True, **context: Any) -> Any:
        made = browser.new_context(base_url=address, **{"viewport": {"width": 1200, "height": 800}, **context})
        made.set_default_timeout(15_000)
        contexts.append(made)
        page = made.new_page()
        if quiet:
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        near = (address + "/", "data:", f"blob:{address}/")
        made.on("request", lambda request: None if request.url.startswith(near) else outside.append(request.url))
        page.goto(path)
        return page

    yield make
    for context in contexts:
        context.close()
    assert not outside
    assert not errors


@pytest.fixture
def page(open_page) -> Any:
    page = open_page()
    page.locator(".suggestion").first.wait_for()
    return page


def ask(page: Any, text: str) -> None:
    """Sends a message and waits for the end of its answer."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    answered(page)


def answered(page: Any) -> None:
    page.locator("#log .message.model").first.wait_for()
    page.locator("#log[aria-busy=false]").wait_for()


class Script:
    """Takes the server's place at chat completions: one list of deltas for each request, which are kept."""

    def __init__(self, page: Any):
        self.answers: list[list[dict[str, Any]]] = []
        self.requests: list[dict[str, Any]] = []
        page.route("**/v1/chat/completions", self._answer)

    def says(self, *deltas: dict[str, Any] | str) -> None:
        self.answers.append([{"content": delta} if isinstance(delta, str) else delta for delta in deltas])

    def _answer(self, route: Any) -> None:
        self.requests.append(route.request.post_data_json)
        choices = [
            {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} for delta in self.answers.pop(0)
        ]
        choices.append({"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"})
        events = [json.dumps({"choices": [choice]}) for choice in choices] + ["[DONE]"]
        body = "".join(f"data: {event}\n\n" for event in events)
        route.fulfill(status=200, content_type="text/event-stream", body=body)


@pytest.fixture
def script(page) -> Script:
    return Script(page)
