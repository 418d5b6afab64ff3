"""Talking: text, pictures, reasoning, tools, stopping, branches; what the server is sent and what a reader sees."""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files

import pytest

from tests.page.conftest import answered, ask
from tests.page.pieces import add_tool, attach_by

pytestmark = pytest.mark.browser
SUMS = files("ventoux.server").joinpath("page", "examples", "sums.png")


def test_a_first_visit_offers_what_the_bundled_model_can_do(page):
    """Suggestions that the bundled model fails at are worse than none."""
    titles = page.locator(".suggestion strong").all_inner_texts()
    assert len(titles) >= 5
    page.get_by_role("button", name=re.compile("picture")).click()
    answered(page)
    assert page.locator(".card .result code").all_inner_texts() == ["46", "392"]
    assert "12 + 34 = 46" in page.locator(".message.model").last.inner_text()
    page.get_by_role("button", name="New chat").click()
    page.get_by_role("button", name=re.compile("28 \\+ 26")).click()
    answered(page)
    assert "= 54." in page.locator(".message.model .content").inner_text()


def test_an_answer_streams_in_and_says_how_fast(page):
    ask(page, "Hello!")
    assert "Hello" in page.locator(".message.model .content").inner_text()
    stats = page.locator(".message.model .stats").inner_text()
    assert re.search(r"\d+ tokens, [\d.]+ per second · first after [\d.]+ s · prompt \d+", stats)
    ask(page, "Who are you?")
    assert re.search(r"prompt \d+, \d+ cached", page.locator(".message.model .stats").last.inner_text())
    assert page.locator("#conversations li").count() == 1
    assert page.locator("h1").inner_text() == "Hello!"


@pytest.mark.parametrize("way", ["file", "paste", "drop"])
def test_pictures_come_by_file_paste_and_drop(page, way):
    attach_by(page, way, SUMS)
    page.locator(".thumb img").wait_for()
    page.get_by_role("button", name="Tools", exact=True).click()
    ask(page, "Use your calculator for the expressions in the image.")
    assert page.locator(".message.user .images img").count() == 1
    assert page.locator(".card .call code").all_inner_texts() == ["12 + 34", "56 * 7"]
    assert page.locator(".thumb").count() == 0


def test_large_and_odd_pictures_are_made_fit(page, script):
    """A photo of 12 megapixels would not fit into a request, and the server reads no BMP."""
    script.says("I see.")
    page.evaluate(
        """async () => {
          const canvas = new OffscreenCanvas(3000, 1500);
          canvas.getContext("2d").fillRect(0, 0, 3000, 1500);
          const picture = await canvas.convertToBlob({ type: "image/png" });
          const photo = new File([picture], "photo.png", { type: "image/png" });
          const data = new DataTransfer();
          data.items.add(photo);
          data.items.add(new File(["no picture"], "notes.txt", { type: "text/plain" }));
          document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }"""
    )
    page.locator(".thumb img").wait_for()
    assert "notes.txt is no image" in page.locator("#alert").inner_text()
    ask(page, "")
    (part,) = script.requests[0]["messages"][0]["content"]
    assert part["image_url"]["url"].startswith("data:image/jpeg;base64,")
    size = page.locator(".message.user img").evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert size == [1540, 770]


def test_reasoning_is_folded_with_its_time(page):
    page.get_by_role("button", name="Reasoning", exact=True).click()
    ask(page, "What is 28 + 26?")
    fold = page.locator("details.reasoning")
    assert fold.get_attribute("open") is None
    assert re.fullmatch(r"Reasoned for \d+\.\d s", fold.locator("summary").inner_text())
    fold.locator("summary").click()
    assert "28 + 26." in fold.inner_text()
    page.get_by_role("button", name="Reasoning", exact=True).click()
    ask(page, "Hello!")
    assert page.locator("details.reasoning").count() == 1


def test_calls_are_cards_and_their_results_go_back(page):
    page.get_by_role("button", name="Tools", exact=True).click()
    with page.expect_request(
        lambda r: r.url.endswith("completions") and "tool_call_id" in (r.post_data or "")
    ) as second:
        ask(page, "What is 128 * 46 and 972 / 12?")
    cards = page.get_by_role("group", name="Tool call: my_calculator")
    assert [card.locator("code").all_inner_texts() for card in cards.all()] == [
        ["128 * 46", "5888"],
        ["972 / 12", "81.0"],
    ]
    messages = second.value.post_data_json["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "tool"]
    assert "5888" in page.locator(".message.model .content").last.inner_text()


def test_a_tool_of_ones_own_runs_in_the_page_without_network(open_page):
    """Code that a person pasted from somewhere could send the conversation away."""
    page = open_page(quiet=False)
    code = "const net = await fetch('/health').then(() => 'open', () => 'closed');"
    code += "return [args.expression, net, typeof indexedDB].join(' ')"
    add_tool(page, "my_calculator", code)
    page.get_by_role("button", name="Tools", exact=True).click()
    ask(page, "What is 2 * 3?")
    assert page.locator(".card .result code").first.inner_text() == "2 * 3 closed undefined"


def test_a_tool_without_code_is_answered_by_the_person(page, script):
    add_tool(page, "weather", "")
    page.get_by_role("button", name="Tools", exact=True).click()
    call = {"index": 0, "id": "abcdefghi", "function": {"name": "weather", "arguments": ""}}
    script.says({"tool_calls": [call]}, {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "Nice"}'}}]})
    script.says("It rains.")
    page.get_by_label("Message", exact=True).fill("Weather?")
    page.keyboard.press("Enter")
    page.get_by_label("Result of weather").fill("rain")
    page.get_by_role("button", name="Send result").click()
    page.get_by_text("It rains.").wait_for()
    assert script.requests[1]["messages"][-1] == {
        "role": "tool",
        "tool_call_id": "abcdefghi",
        "name": "weather",
        "content": "rain",
    }
    assert [tool["function"]["name"] for tool in script.requests[0]["tools"]] == ["my_calculator", "weather"]


class SlowServer:
    """Streams a word every 50 ms, without end, and notes that its client left."""

    def __init__(self):
        self.left = left = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                try:
                    while True:
                        event = {"choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}
                        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                        time.sleep(0.05)
                except OSError:
                    left.set()

            def log_message(self, *_):
                pass

        self.web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.web.serve_forever, daemon=True).start()

    def close(self):
        self.web.shutdown()
        self.web.server_close()


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stopping_keeps_what_was_written_and_tells_the_server(page, way):
    """A stop that only hides the text leaves the model working for nobody."""
    slow = SlowServer()
    target = f"http://127.0.0.1:{slow.web.server_port}/v1/chat/completions"
    page.route("**/v1/chat/completions", lambda route: route.continue_(url=target))
    page.get_by_label("Message", exact=True).fill("Go on")
    page.keyboard.press("Enter")
    page.get_by_text("word word").wait_for()
    assert page.locator("#send").is_hidden()
    if way == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    answered(page)
    assert slow.left.wait(5)
    slow.close()
    assert "Stopped." in page.locator(".message.model .note").inner_text()
    assert page.locator(".message.model .content").inner_text().startswith("word word")
    assert page.locator("#send").is_visible()


def test_retries_and_edits_are_branches(page, script):
    for answer in ("first", "second", "third"):
        script.says(answer)
    ask(page, "one")
    page.get_by_role("button", name="Retry").click()
    page.get_by_text("second").wait_for()
    assert page.locator(".message.model .versions").inner_text() == "‹2 / 2›"
    page.get_by_role("button", name="Earlier version").click()
    page.get_by_text("first").wait_for()
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edited message").fill("other")
    page.keyboard.press("Enter")
    page.get_by_text("third").wait_for()
    assert [m["content"] for m in script.requests[2]["messages"]] == ["other"]
    page.get_by_role("button", name="Earlier version").click()
    assert page.locator(".message").all_inner_texts()[0].startswith("one")
    # The answer that the branch was left with is shown, whichever it was; both are a click away.
    assert page.locator(".message.model .versions").inner_text() in ("‹1 / 2›", "‹2 / 2›")


def test_a_question_that_is_refused_goes_back_into_the_box(open_page):
    """Left in the conversation it would fail all later ones; thrown away it would have to be typed again."""
    page = open_page(quiet=False)
    page.locator(".suggestion").first.wait_for()
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=400, json={"error": {"message": "Too long by far."}}),
    )
    page.get_by_label("Message", exact=True).fill("A long question")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("Too long by far.").wait_for()
    assert page.get_by_label("Message", exact=True).input_value() == "A long question"
    assert page.locator(".message").count() == page.locator("#conversations li").count() == 0
    page.reload()
    page.locator(".suggestion").first.wait_for()
    assert page.locator("#conversations li").count() == 0
    page.unroute("**/v1/chat/completions")
    ask(page, "Hello!")
    assert page.locator("#alert").is_hidden()


def test_settings_reach_the_server(page, script):
    script.says("Yes.")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_label("Top p").fill("0.5")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Stop texts").fill("END\nSTOP")
    page.get_by_role("button", name="Done").click()
    ask(page, "Hi")
    (sent,) = script.requests
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["top_p"], sent["seed"], sent["stop"]) == (0.5, 7, ["END", "STOP"])
    assert "tools" not in sent and "logprobs" not in sent and sent["reasoning_effort"] == "none"
