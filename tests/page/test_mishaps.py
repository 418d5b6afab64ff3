"""What must not make the page unusable: odd answers, odd files, chats that go away, answers that break off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.page.conftest import ask

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("text", ["$\\frac{1$", "> " * 3000, "- " * 3000 + "x", "$" + "{" * 1900 + "}" * 1900 + "$"])
def test_what_cannot_be_rendered_is_shown_as_text(page, script, text):
    """Wrong TeX, and nesting deeper than the stack, of a model in a loop: the answer was lost, and the chat could not
    be opened again, nor the page."""
    script.says("Look:\n\n" + text)
    ask(page, "Go on")
    assert page.get_by_role("alert").is_hidden()
    assert "Look:" in page.locator("#log .content").inner_text()
    page.reload()
    page.locator("#log .content").wait_for()
    assert "Look:" in page.locator("#log .content").inner_text()


def test_openings_of_formulas_without_an_end_take_no_time(page, script):
    r"""Each \( was followed to the end of the text: six seconds for 50000 characters, at every drawing."""
    script.says("\\( " * 17000)
    ask(page, "Go on")
    took = page.evaluate(
        """async () => {
          const { MarkdownBox } = await import("./page/js/markdown.js");
          const start = performance.now();
          new MarkdownBox("").set("\\\\( ".repeat(17000));
          return performance.now() - start;
        }"""
    )
    assert took < 4000


def a_chat(leaf: Any = 2, experts: Any = ((), ())) -> dict[str, Any]:
    tokens = [{"text": "a", "logprob": -1, "drafted": False, "experts": list(one), "top": []} for one in experts]
    question = {"id": 1, "parent": None, "role": "user", "content": "Hello", "images": []}
    answer = {
        "id": 2,
        "parent": 1,
        "role": "assistant",
        "content": "Hi",
        "reasoning": "",
        "calls": [],
        "tokens": tokens,
    }
    return {"title": "Mine", "nodes": {"1": question, "2": answer}, "leaf": leaf}


def bring(page: Any, path: Path, *chats: dict[str, Any]) -> None:
    path.write_text(json.dumps({"format": "ventoux-conversations", "version": 1, "conversations": chats}))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import").click()
    chooser.value.set_files(str(path))


def test_files_that_would_break_the_page_are_refused(page, tmp_path):
    """An end that is no message but a property of all objects; tokens with different numbers of layers."""
    bring(page, tmp_path / "good.json", a_chat())
    page.get_by_text("Hi", exact=True).wait_for()
    for bad in (a_chat(leaf="constructor"), a_chat(leaf="__proto__"), a_chat(experts=([[1]], [[1], [2]]))):
        bring(page, tmp_path / "bad.json", bad)
        page.get_by_role("alert").get_by_text("bad.json: The file is damaged").wait_for()
    page.reload()
    page.get_by_text("Hi", exact=True).wait_for()


def test_a_chat_that_is_deleted_while_it_is_answered_stays_deleted(page):
    """What had come of the answer was kept, and the chat with it."""
    ask(page, "Hello!")
    page.route("**/v1/chat/completions", lambda route: None)  # never answered
    page.get_by_label("Message", exact=True).fill("And now?")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("summary[aria-label='This chat']").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("heading", name="New chat").wait_for()
    page.wait_for_timeout(300)
    page.reload()
    page.locator(".suggestion").first.wait_for()
    assert page.locator("#conversations button").count() == 0


def test_an_error_in_the_middle_keeps_what_came(page):
    """The engine started again: the words before it are the reader's, and the next question finds them."""
    chunk = {"choices": [{"index": 0, "delta": {"content": "Half an"}, "logprobs": None, "finish_reason": None}]}
    events = f"data: {json.dumps(chunk)}\n\ndata: {json.dumps({'error': {'message': 'The engine restarts.'}})}\n\n"
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=200, content_type="text/event-stream", body=events),
    )
    ask(page, "Hello!")
    page.get_by_role("alert").get_by_text("The engine restarts.").wait_for()
    page.reload()
    page.locator("#log .content").get_by_text("Half an").wait_for()
    page.locator("#log .note").get_by_text("The engine restarts.").wait_for()
    ask(page, "Hello!")
    page.locator(".message").nth(3).wait_for()
    assert page.locator(".message").count() == 4


def test_an_answer_that_a_reload_interrupted_says_so(page):
    """Nothing but a button below the question, as if the model had nothing to say."""
    page.route("**/v1/chat/completions", lambda route: None)  # never answered
    page.get_by_label("Message", exact=True).fill("Hello!")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    page.locator("#conversations button").wait_for()
    page.reload()
    page.locator("#log .note").get_by_text("This answer was interrupted.").wait_for()


def test_a_server_that_comes_up_later_is_named(open_page):
    """The words "not connected" above an answer, and no suggestions until a reload."""
    page = open_page("/status", quiet=False)
    starting = json.dumps({"error": {"message": "starting"}})
    page.route("**/v1/models", lambda route: route.fulfill(status=503, content_type="application/json", body=starting))
    page.goto("/")
    page.get_by_role("alert").get_by_text("starting").wait_for()
    page.unroute("**/v1/models")
    ask(page, "Hello!")
    assert "tokens" in page.locator("#model").inner_text()
    assert page.locator(".suggestion").count() > 0


def test_the_keyboard_stays_at_the_versions(page, script):
    """Each step to another version put the focus back to the top of the page."""
    for text in ("one", "two", "three"):
        script.says(text)
    ask(page, "Count")
    for count in (2, 3):
        page.get_by_role("button", name="Retry").click()
        page.locator(".versions").get_by_text(f"{count} / {count}").wait_for()
    page.get_by_role("button", name="Earlier version").focus()
    for at, label in ((2, "Earlier version"), (1, "Later version")):
        page.keyboard.press("Enter")
        page.locator(".versions").get_by_text(f"{at} / 3").wait_for()
        assert page.evaluate("document.activeElement.ariaLabel") == label
