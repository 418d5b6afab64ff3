"""What becomes of a model's text: Markdown, code, formulas, tokens in colour; and of text that means harm."""

from __future__ import annotations

import re

import pytest

from tests.page.conftest import ask

pytestmark = pytest.mark.browser

MARKDOWN = """# Title

A **bold** word, `code`, a [link](https://example.org/a) and \\(a^2\\) inline; it costs $5 and $6.

$$\\int_0^1 x\\,dx = \\frac12$$

| a | b |
|---|---|
| 1 | 2 |

- one
- two

```python
def f(x):
    return "y"  # why
```
"""


def test_markdown_code_and_formulas(page, script):
    # In pieces, as it streams: what was rendered of half a formula must not stay.
    script.says(*(MARKDOWN[i : i + 7] for i in range(0, len(MARKDOWN), 7)))
    ask(page, "Show me")
    content = page.locator(".message.model .content")
    content.locator(".katex-display").wait_for()
    assert content.locator(".katex").count() == 2
    assert content.locator("math annotation").all_text_contents() == ["a^2", "\\int_0^1 x\\,dx = \\frac12"]
    assert "it costs $5 and $6." in content.inner_text()
    assert content.locator("h3").inner_text() == "Title"
    assert content.locator("th, td").all_inner_texts() == ["a", "b", "1", "2"]
    assert content.locator("li").all_inner_texts() == ["one", "two"]
    link = content.get_by_role("link", name="link")
    assert (link.get_attribute("href"), link.get_attribute("rel")) == ("https://example.org/a", "noopener noreferrer")
    content.locator(".hljs-keyword").first.wait_for()
    assert content.locator("pre").inner_text().strip() == 'def f(x):\n    return "y"  # why'
    assert content.locator(".hljs-comment").inner_text() == "# why"
    assert content.locator("pre").count() == 1


HOSTILE = """<script>window.harmed = 1</script><img src=x onerror="window.harmed = 1"><b onclick="harm()">b</b>

![picture](https://example.org/leak.png?secret) ![p](javascript:harm()) [bad](javascript:window.harmed=1) <https://ok.example>

<style>body { display: none }</style><form action="https://example.org"><input name="id"></form>

$\\href{javascript:window.harmed=1}{x}$ $\\includegraphics{https://example.org/x.png}$ $\\htmlStyle{position:fixed}{y}$

```"><img src=x onerror=window.harmed=1>
x
```

[ref]: https://example.org "t"
"""


def test_hostile_text_does_nothing(page, script):
    """Raw HTML, pictures that tell somebody that they were seen, script in links, formulas and language names."""
    script.says(HOSTILE)
    ask(page, "<img src=x onerror='window.harmed = 1'>")
    page.wait_for_timeout(300)
    log = page.locator("#log")
    assert page.evaluate("window.harmed") is None
    assert (
        log.locator("img, script, style, form, input, iframe, b, [onclick], [onerror], [style*=position]").count() == 0
    )
    links = log.locator("a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert all(link is None or link.startswith("https://") for link in links)
    assert "<script>" in log.inner_text()


def test_tokens_are_coloured_and_can_be_walked_through(page):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Colour tokens by").select_option("probability")
    page.get_by_role("button", name="Done").click()
    ask(page, "Hello!")
    tokens = page.get_by_role("option")
    assert "Hello" in "".join(page.locator(".tokens").all_inner_texts())
    assert tokens.first.get_attribute("class").startswith("token p")
    tokens.first.click()
    page.keyboard.press("ArrowRight")
    assert page.locator(".alternatives p").inner_text().startswith("Token 2:")
    assert page.locator(".alternatives li").count() == 5
    page.keyboard.press("End")
    assert page.locator("[aria-selected=true]").count() == 1
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Colour tokens by").select_option("drafted")
    page.get_by_role("button", name="Done").click()
    page.locator(".legend").get_by_text("tokens were guessed").wait_for()
    said = re.search(r"(\d+) of (\d+) tokens were guessed", page.locator(".legend").inner_text())
    guessed = page.locator(".tokens .drafted").count()
    # The bundled draft guesses most of a greeting; without the server's word there would be none.
    assert 0 < guessed == int(said[1]) < int(said[2])
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Colour tokens by").select_option("experts")
    page.get_by_role("button", name="Done").click()
    page.get_by_text("No token details were recorded").wait_for()
    page.get_by_role("button", name="Retry").click()
    page.get_by_role("img", name="The expert used most").wait_for()
    tokens.first.click()
    # The bundled model has four layers, and two experts for each token.
    own = page.get_by_role("img", name="Experts of the chosen token").get_attribute("aria-label")
    assert len(re.findall(r"\d+: \d+ and \d+", own)) == 4
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Colour tokens by").select_option("none")
    page.get_by_role("button", name="Done").click()
    assert "Hello" in page.locator(".content").inner_text()
    assert page.get_by_role("option").count() == 0
