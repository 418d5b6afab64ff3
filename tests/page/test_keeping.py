"""What the browser keeps, files of conversations, keys, and the status page."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from tests.e2e.conftest import serving
from tests.page.conftest import answered, ask
from tests.page.pieces import attach_by

pytestmark = pytest.mark.browser
SUMS = files("ventoux.server").joinpath("page", "examples", "sums.png")


def test_a_reload_changes_nothing(page):
    attach_by(page, "file", SUMS)
    page.locator(".thumb").wait_for()
    page.get_by_role("button", name="Tools", exact=True).click()
    ask(page, "Use your calculator for the expressions in the image.")
    page.get_by_role("button", name="Retry").last.click()
    answered(page)
    page.locator(".versions").get_by_text("2 / 2").wait_for()
    before = page.locator("#log").inner_text()
    page.reload()
    page.locator(".message.user img").wait_for()
    assert page.locator("#log").inner_text() == before
    assert page.get_by_role("button", name="Tools", exact=True).get_attribute("aria-pressed") == "true"


def test_chats_are_listed_renamed_and_deleted(page):
    ask(page, "Hello!")
    page.get_by_role("button", name="New chat").click()
    ask(page, "Who are you?")
    chats = page.locator("#conversations button")
    assert chats.all_inner_texts() == ["Who are you?", "Hello!"]
    chats.nth(1).click()
    page.locator("summary[aria-label='This chat']").click()
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Name of this chat").fill("Greeting")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Greeting").wait_for()
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("summary[aria-label='This chat']").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("heading", name="New chat").wait_for()
    page.reload()
    page.locator(".suggestion").first.wait_for()
    assert chats.all_inner_texts() == ["Who are you?"]


def test_an_exported_chat_opens_in_another_browser(page, open_page, tmp_path):
    ask(page, "Hello!")
    text = page.locator("#log .content").inner_text()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert len(json.loads(path.read_text())["conversations"]) == 1
    other = open_page()
    with other.expect_file_chooser() as chooser:
        other.get_by_role("button", name="Import").click()
    chooser.value.set_files(str(path))
    other.locator("#log .content").wait_for()
    assert other.locator("#log .content").inner_text() == text
    ask(other, "Who are you?")
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with other.expect_file_chooser() as chooser:
        other.get_by_role("button", name="Import").click()
    chooser.value.set_files(str(broken))
    other.get_by_role("alert").get_by_text("broken.json: ").wait_for()


def test_a_chat_that_was_left_while_it_was_written_keeps_to_itself(page):
    """Words of one conversation in another."""
    page.get_by_label("Message", exact=True).fill("Write an alphabet sentence.")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="New chat").click()
    page.wait_for_timeout(500)
    assert page.locator(".message").count() == 0
    ask(page, "Hello!")
    assert page.locator(".message").count() == 2


def test_a_browser_without_room_still_answers(page):
    """A full disk that ends every conversation at its first word."""
    full = "() => { throw new DOMException('full', 'QuotaExceededError'); }"
    page.evaluate(f"() => {{ IDBObjectStore.prototype.put = {full}; }}")
    ask(page, "Hello!")
    assert "Hello" in page.locator("#log .content").inner_text()
    page.get_by_role("alert").get_by_text("could not keep this chat").wait_for()


def test_a_window_that_keeps_nothing_says_so(open_page):
    page = open_page("/status")
    page.context.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined })")
    page.goto("/")
    page.get_by_text("This window keeps nothing").wait_for()
    ask(page, "Hello!")
    page.get_by_role("button", name="New chat").click()
    page.get_by_role("button", name="Hello!", exact=True).click()
    assert "Hello" in page.locator("#log .content").inner_text()


def test_a_server_with_keys_asks_for_one(open_page, tmp_path):
    with serving("--api-key", "secret", "--num-threads", "1", "--responses-store", "none", log=tmp_path / "log") as (
        url,
        _,
    ):
        page = open_page(address=url, quiet=False)
        page.get_by_label("API key").wait_for()
        assert page.get_by_label("API key").evaluate("field => field === document.activeElement")
        page.get_by_label("API key").fill("secret")
        page.keyboard.press("Enter")
        ask(page, "Hello!")
        assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
        page.goto("/status")
        page.get_by_text("The engine runs.").wait_for()
        stranger = open_page("/status", address=url, quiet=False)
        stranger.get_by_label("API key").fill("secret")
        stranger.keyboard.press("Enter")
        stranger.get_by_text("The engine runs.").wait_for()


def test_the_status_page_follows_the_server(page, open_page):
    status = open_page("/status")
    status.get_by_text("The engine runs.").wait_for()
    tile = status.locator(".tile", has_text="Answered").locator(".value")
    before = int(tile.inner_text())
    ask(page, "Hello!")
    status.wait_for_function(
        "before => document.getElementById('tiles').innerText.includes(before)", arg=str(before + 1)
    )
    assert int(tile.inner_text()) == before + 1
    assert status.locator("polyline").count() >= 4
