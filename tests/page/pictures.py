"""The pictures of the chat page in the docs: `make page-images`. They are taken of the bundled model's own answers."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.e2e.conftest import serving
from tests.page.conftest import Script, answered, ask, find_chromium, launch
from tests.page.test_content import MARKDOWN

FOLDER = Path(__file__).parents[2] / "docs" / "images"
DESKTOP = {"width": 1100, "height": 720}
PHONE = {"width": 390, "height": 760}
# Few flat colours: a palette keeps the files small.
NUM_COLORS = 128


def save(page: Any, name: str) -> None:
    page.wait_for_timeout(300)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(NUM_COLORS).save(FOLDER / f"{name}.png", optimize=True)


def follow(page: Any, suggestion: int) -> None:
    page.get_by_role("button", name="New chat").click()
    page.locator(".suggestion").nth(suggestion).click()
    answered(page)


def desktop(browser: Any, url: str) -> None:
    page = browser.new_page(base_url=url, viewport=DESKTOP, color_scheme="light")
    page.goto("/")
    page.locator(".suggestion").first.wait_for()
    save(page, "chat-first")
    follow(page, 3)
    follow(page, 2)
    page.locator("details.reasoning summary").click()
    follow(page, 0)
    save(page, "chat-tools")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Colour tokens by").select_option("probability")
    page.get_by_role("button", name="Done").click()
    follow(page, 1)
    page.get_by_role("option").nth(12).click()
    save(page, "chat-tokens")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Colour tokens by").select_option("experts")
    page.get_by_role("button", name="Done").click()
    follow(page, 2)
    page.get_by_role("option").nth(9).click()
    save(page, "chat-experts")
    page.goto("/status")
    page.get_by_text("The engine runs.").wait_for()
    page.wait_for_timeout(2500)
    save(page, "chat-status")


def dark(browser: Any, url: str) -> None:
    page = browser.new_page(base_url=url, viewport=DESKTOP, color_scheme="dark")
    page.goto("/")
    page.locator(".suggestion").first.wait_for()
    Script(page).says({"reasoning": "The user wants to see everything that text can hold."}, MARKDOWN)
    ask(page, "Show me what you can write.")
    page.locator(".hljs-keyword").first.wait_for()
    save(page, "chat-dark")


def phone(browser: Any, url: str) -> None:
    page = browser.new_page(base_url=url, viewport=PHONE, color_scheme="dark", has_touch=True, is_mobile=True)
    page.goto("/")
    page.locator(".suggestion").nth(3).click()
    answered(page)
    save(page, "chat-phone")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        path = find_chromium(driver)
        if path is None:
            raise SystemExit("There is no Chromium here.")
        flags = ("--responses-store", "none")
        with serving(*flags, log=Path(folder) / "log") as (url, _), launch(driver, path) as browser:
            for take in (desktop, dark, phone):
                take(browser, url)


if __name__ == "__main__":
    main()
