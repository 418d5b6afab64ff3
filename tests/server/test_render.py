"""The render route: what it shows is what the engine would get, and the engine gets nothing."""

from __future__ import annotations

import base64
import io

from PIL import Image

from tests.server.conftest import HELLO, TOOL, assert_error

PATH = "/v1/chat/completions/render"


def picture(width: int, height: int) -> dict:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()},
    }


def test_the_prompt_is_the_one_that_the_engine_gets(server):
    body = {"messages": [{"role": "system", "content": "Be [INST] kind."}, *HELLO], "tools": [TOOL], "temperature": 0.5}
    rendered = server.post(PATH, body).json()
    assert server.engine.requests == []
    assert server.post("/v1/chat/completions", body).is_success
    sent = server.engine.requests[0]
    assert rendered["token_ids"] == sent.prompt_token_ids and rendered["count"] == len(sent.prompt_token_ids)
    assert rendered["sampling"]["temperature"] == 0.5 and rendered["sampling"]["grammar"] == sent.params.grammar
    pieces = rendered["pieces"]
    assert sum(piece["count"] for piece in pieces) == rendered["count"]
    assert pieces[0] == {"type": "control", "count": 1, "text": "<s>"}
    # Text that spells a control token is text.
    assert {
        "type": "text",
        "count": len(server.tokenizer.encode_text("Be [INST] kind.")),
        "text": "Be [INST] kind.",
    } in pieces
    assert [p["text"] for p in pieces].count("[INST]") == 1


def test_images_are_counted_one_by_one(server):
    content = [picture(60, 30), picture(28, 28), {"type": "text", "text": "What?"}]
    rendered = server.post(PATH, {"messages": [{"role": "user", "content": content}]}).json()
    counts = [piece["count"] for piece in rendered["pieces"] if piece["type"] == "image"]
    # Rows of 28 x 28 patches, each with a break or end.
    assert counts == [2 * 4, 1 * 2]
    assert rendered["images"] == [{"width": 84, "height": 56}, {"width": 28, "height": 28}]
    assert sum(piece["count"] for piece in rendered["pieces"]) == rendered["count"] == len(rendered["token_ids"])
    assert server.app.state.service.num_in_flight == 0 and server.app.state.service.pixel_bytes == 0


def test_what_a_chat_refuses_is_refused(server):
    assert_error(server.post(PATH, {"messages": []}), 400, param="messages")
    assert_error(server.post(PATH, {"messages": HELLO, "regex": "(("}), 400, param="regex")
    assert_error(server.post(PATH, {"messages": HELLO, "model": "x"}), 404, code="model_not_found")
    response = server.post(PATH, {"messages": HELLO, "reasoning_effort": "low", "wings": 2})
    assert response.headers["x-ignored-fields"] == "wings" and response.headers["x-warning"]
