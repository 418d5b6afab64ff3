"""The whole path through the OpenAI client: text, images, tools, reasoning, streams, and a server that survives."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx2
import openai
import pytest
from PIL import Image, ImageDraw, ImageFont

from ventoux.train.demo_data import CARD_TOOLS

MODEL = "ventoux-demo"
HI = [{"role": "user", "content": "Hi"}]


def ask(client, messages=HI, **options):
    return client.chat.completions.create(
        model=MODEL, messages=messages, **{"temperature": 0, "max_tokens": 60, **options}
    )


def picture(text: str) -> bytes:
    image = Image.new("RGB", (168, 28), "white")
    ImageDraw.Draw(image).text((6, 4), text, fill="black", font=ImageFont.load_default(size=20))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_models_and_hello(client):
    models = client.models.list().data
    assert [m.id for m in models] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    response = ask(client)
    choice = response.choices[0]
    assert choice.finish_reason == "stop" and "Hello" in choice.message.content
    assert response.usage.total_tokens == response.usage.prompt_tokens + response.usage.completion_tokens


def test_the_stream_adds_up_to_the_answer(client):
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_effort_decides_about_reasoning(client):
    for effort, reasons in (("none", False), ("high", True)):
        message = ask(client, reasoning_effort=effort).choices[0].message
        assert bool(message.reasoning_content) is reasons
        assert message.reasoning_content == message.reasoning


def test_a_question_is_answered_by_calling_the_calculator(client):
    question = [{"role": "user", "content": "What is 12 * 34?"}]
    message = ask(client, question, tools=CARD_TOOLS).choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "my_calculator" and "expression" in json.loads(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": "408"}
    history = [*question, {"role": "assistant", "tool_calls": [call]}, result]
    assert "408" in ask(client, history).choices[0].message.content


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "my_calculator"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_forced_calls_come_whatever_the_model_would_do(client, choice, stream):
    # "Hi" alone is answered with a greeting. The tool must be one that the model knows: another's arguments it may
    # write on and on until max_tokens.
    answer = ask(client, tools=CARD_TOOLS, tool_choice=choice, stream=stream, max_tokens=200)
    if stream:
        deltas = [d for c in answer if c.choices for d in c.choices[0].delta.tool_calls or ()]
        calls = {d.index for d in deltas}
        names = [d.function.name for d in deltas if d.function.name]
        arguments = ["".join(d.function.arguments or "" for d in deltas if d.index == i) for i in sorted(calls)]
    else:
        names = [c.function.name for c in answer.choices[0].message.tool_calls]
        arguments = [c.function.arguments for c in answer.choices[0].message.tool_calls]
    assert names and set(names) <= ({"my_calculator"} if isinstance(choice, dict) else {"my_calculator", "rewrite"})
    assert all(isinstance(json.loads(a), dict) for a in arguments)


def test_images_by_data_url_and_by_allowed_http_url(client):
    data = picture("12 + 34")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    web = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    urls = [f"data:image/png;base64,{base64.b64encode(data).decode()}", f"http://127.0.0.1:{web.server_port}/x.png"]
    answers = []
    for url in urls:
        part = {"type": "image_url", "image_url": {"url": url}}
        text = {"type": "text", "text": "What is written in the image?"}
        answers.append(ask(client, [{"role": "user", "content": [text, part]}]))
    web.shutdown()
    web.server_close()
    first, second = answers
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.usage.prompt_tokens == second.usage.prompt_tokens > 20
    assert second.usage.prompt_tokens_details.cached_tokens > 0


def test_a_private_address_that_is_not_allowed_is_refused(client):
    part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, [{"role": "user", "content": [part]}])
    assert caught.value.code == "url_not_allowed"


def test_answers_do_not_depend_on_company(client):
    questions = [f"What is {a} + {b}?" for a, b in ((1, 2), (34, 58), (7, 90), (123, 456), (5, 5), (60, 17))]
    alone = [ask(client, [{"role": "user", "content": q}]).choices[0].message.content for q in questions]
    together: dict[str, str] = {}

    def one(question):
        together[question] = ask(client, [{"role": "user", "content": question}]).choices[0].message.content

    threads = [threading.Thread(target=one, args=(q,)) for q in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[q] for q in questions] == alone


def test_logprobs_n_seed_and_completions(client):
    response = ask(client, n=2, temperature=1.5, seed=3, logprobs=True, top_logprobs=2, max_tokens=8)
    assert len(response.choices) == 2
    for choice in response.choices:
        assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)
    again = ask(client, n=2, temperature=1.5, seed=3, max_tokens=8)
    assert [c.message.content for c in again.choices] == [c.message.content for c in response.choices]
    completion = client.completions.create(model=MODEL, prompt=[1, 3, 1072], max_tokens=5, temperature=0)
    assert completion.usage.completion_tokens <= 5


def test_unknown_fields_are_listed_and_known_ones_refused(server):
    body = {"model": MODEL, "messages": HI, "max_tokens": 4, "frobnicate": 1}
    response = httpx2.post(server + "/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200 and response.headers["x-ignored-fields"] == "frobnicate"
    refused = httpx2.post(server + "/v1/chat/completions", json={**body, "functions": [{"name": "f"}]}, timeout=60)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "functions"


def test_a_client_that_leaves_frees_the_engine(client, server):
    stream = client.completions.create(
        model=MODEL, prompt="a", max_tokens=20000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    while "ventoux_num_requests_running 0.0" not in (text := metrics(server)):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def metrics(url: str) -> str:
    with urllib.request.urlopen(url + "/metrics") as response:
        return response.read().decode()
