"""For everybody: keyboards, screen readers, phones, dark and light."""

from __future__ import annotations

from typing import Any

import pytest

from tests.page.conftest import Script, answered, ask
from tests.page.test_content import MARKDOWN

pytestmark = pytest.mark.browser
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="the page's tests need: pip install '.[page]'"
)


def assert_accessible(page: Any) -> None:
    found = axe.Axe().run(page).response["violations"]
    serious = [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in ("serious", "critical")]
    assert not serious, "\n".join(serious)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_axe_finds_nothing_serious(open_page, scheme, width):
    """Contrast, names, roles, and what a keyboard cannot reach, in every state of the page."""
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 740})
    page.locator(".suggestion").first.wait_for()
    assert_accessible(page)
    page.get_by_role("button", name="Tools", exact=True).click()
    page.get_by_role("button", name="Reasoning", exact=True).click()
    ask(page, "What is 128 * 46?")
    page.locator("details.reasoning summary").first.click()
    assert_accessible(page)
    page.get_by_role("button", name="Settings").click()
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_text("Tools of your own").click()
    page.get_by_role("button", name="Add a tool").click()
    assert_accessible(page)
    page.get_by_label("Colour tokens by").select_option("probability")
    page.get_by_role("button", name="Done").click()
    ask(page, "Hello!")
    page.get_by_role("option").first.click()
    assert_accessible(page)
    page.goto("/status")
    page.get_by_text("The engine runs.").wait_for()
    assert_accessible(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_rich_text(open_page, scheme):
    page = open_page(color_scheme=scheme)
    Script(page).says(MARKDOWN)
    ask(page, "Show me")
    page.locator(".hljs-keyword").first.wait_for()
    page.locator(".katex").first.wait_for()
    assert_accessible(page)


def test_a_phone_has_room(open_page):
    """Things that stick out to the side make a page that slides under the thumb."""
    page = open_page(viewport={"width": 340, "height": 640}, has_touch=True, is_mobile=True)
    page.locator(".suggestion").first.wait_for()
    Script(page).says("y" * 200 + "\n\n```\n" + "z" * 200 + "\n```")
    ask(page, "x" * 200)
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    for control in ("#input", "#send", "#attach", "#effort", "#tools", "#settings", "#menu"):
        box = page.locator(control).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 340, control
        assert box["y"] + box["height"] <= 640, control
    assert page.locator("#sidebar").is_hidden()
    page.get_by_role("button", name="Chats").tap()
    assert page.locator("#conversations button").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#sidebar").is_hidden()
    assert page.evaluate("document.activeElement.id") == "menu"


def test_everything_can_be_reached_by_keyboard(page):
    page.locator("body").evaluate("() => document.activeElement.blur()")
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    for control in (
        "skip",
        "new",
        "import",
        "export-all",
        "menu",
        "settings",
        "suggestion",
        "input",
        "attach",
        "effort",
        "send",
    ):
        assert control in reached, control
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("Hello!")
    page.keyboard.press("Enter")
    answered(page)
    assert page.evaluate("document.activeElement.id") == "input"


def test_shift_enter_is_a_new_line_and_input_methods_keep_their_enter(page):
    box = page.get_by_label("Message", exact=True)
    box.fill("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    composing = "new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true, cancelable: true })"
    box.evaluate(f"field => field.dispatchEvent({composing})")
    assert box.input_value() == "one\ntwo"
    assert page.locator(".message").count() == 0


def test_the_end_of_an_answer_is_said(page):
    """A screen reader would stay silent, or read every word as it comes."""
    ask(page, "Hello!")
    page.locator("#announcer").get_by_text("The answer is complete.").wait_for(state="attached")
    assert page.locator("#log").get_attribute("role") == "log"


def test_dark_and_light_can_be_chosen(open_page):
    page = open_page(color_scheme="light")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Colours of the page").select_option("dark")
    dark = page.evaluate(ground)
    assert dark != light
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_function(f"light => ({ground})() == light", arg=light)  # set when the dialog has closed
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Colours of the page").select_option("dark")
    page.get_by_role("button", name="Done").click()
    page.reload()
    assert page.evaluate(ground) == dark
