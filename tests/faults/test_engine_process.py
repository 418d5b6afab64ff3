"""The engine process is killed, stopped, killed again: who is told what, who is answered all the same."""

from __future__ import annotations

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx2

from tests.faults.conftest import PROMPTS, Live, choice_of, completion, until

USER = [{"role": "user", "content": "Hello"}]
# Answers that would go on for minutes, where there is no ignore_eos.
ENDLESS = {
    "type": "object",
    "properties": {"a": {"type": "array", "minItems": 2000, "items": {"type": "integer"}}},
    "required": ["a"],
    "additionalProperties": False,
}
STREAMS: dict[str, dict[str, Any]] = {
    "/v1/completions": completion("Hello", max_tokens=8000),
    "/v1/chat/completions": {"messages": USER, "max_tokens": 8000, "ignore_eos": True},
    "/v1/messages": {
        "messages": USER,
        "max_tokens": 8000,
        "output_config": {"format": {"type": "json_schema", "schema": ENDLESS}},
    },
    "/v1/responses": {"input": "Hello", "text": {"format": {"type": "json_schema", "name": "x", "schema": ENDLESS}}},
}
# What only comes once there are tokens.
DELTAS = ('"text"', '"content"', "content_block_delta", "output_text.delta")


class Stream(threading.Thread):
    """Reads a stream to its end."""

    def __init__(self, live: Live, path: str, body: dict[str, Any]):
        super().__init__(daemon=True)
        self.url, self.body = live.url + path, {**body, "stream": True}
        self.lines: list[str] = []
        self.failure: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with httpx2.stream("POST", self.url, json=self.body, timeout=60) as response:
                for line in response.iter_lines():
                    self.lines.append(line)
        except Exception as e:
            self.failure = e

    @property
    def has_tokens(self) -> bool:
        # The first chunk of a chat holds an empty content.
        return any(mark in line for line in list(self.lines)[2:] for mark in DELTAS)

    def data(self) -> list[Any]:
        return [json.loads(line[6:]) for line in self.lines if line.startswith("data: {")]


def error_of(stream: Stream) -> Any:
    """The error in the last event, as its protocol writes it."""
    stream.join(20)
    assert not stream.is_alive() and stream.failure is None, stream.failure
    last = stream.data()[-1]
    return last["response"]["error"] if "response" in last else last["error"]


def test_a_kill_ends_every_kind_of_stream_and_no_request_that_waits(live):
    """Streams used to end, and the server answered 503 until somebody restarted it."""
    restarts = live.metric("engine_restarts_total")
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        streams = {path: Stream(live, path, body) for path, body in STREAMS.items()}
        until(lambda: all(stream.has_tokens for stream in streams.values()))
        waiting = [pool.submit(live.complete, prompt, logprobs=3) for prompt in PROMPTS]
        until(lambda: live.metric("num_requests_waiting") == len(PROMPTS))

        died = live.hurt(signal.SIGKILL)
        at = time.monotonic()
        until(lambda: live.status("/ready") == 503)
        assert time.monotonic() - at < 1
        refused = live.complete("Hello")
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_dead"
        assert int(refused.headers["retry-after"]) > 0
        assert live.status("/health") == 200

        errors = {path: error_of(stream) for path, stream in streams.items()}
        assert errors["/v1/completions"]["code"] == errors["/v1/chat/completions"]["code"] == "engine_dead"
        assert errors["/v1/messages"]["details"]["error_code"] == "engine_dead"
        assert errors["/v1/responses"]["code"] == "server_error"
        assert streams["/v1/completions"].lines[-2:] == ["data: [DONE]", ""]

        # The same answers, to the last bit, as if nothing had happened.
        assert [choice_of(answer.result()) for answer in waiting] == live.quiet
    live.wait_ready()
    assert live.engine != died
    assert live.metric("engine_restarts_total") == restarts + 1
    assert live.metric("kv_cache_usage_perc") == 0
    assert live.lines(f"engine process {died} has ended, exit status -9")


def test_a_stopped_engine_is_noticed_in_a_second_and_replaced(live):
    """A process that does not run ignores all but a kill, and its socket stays open: nothing but its silence tells."""
    stream = Stream(live, "/v1/completions", STREAMS["/v1/completions"])
    until(lambda: stream.has_tokens)
    stopped = live.hurt(signal.SIGSTOP)
    at = time.monotonic()
    until(lambda: live.status("/ready") == 503)
    assert time.monotonic() - at < 1.5  # it is noticed within 1 s where the machine is not busy
    assert live.metric("engine_up") == 0 and live.status("/health") == 200
    # It may be a matter of a moment, so nobody is sent away.
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(live.complete, PROMPTS[0], logprobs=3)
        assert error_of(stream)["code"] == "engine_dead"
        assert choice_of(patient.result()) == live.quiet[0]
    live.wait_ready()
    assert live.lines(f"engine process {stopped} gave no sign of life for 2 s")
    # Where it was, by faulthandler.
    assert live.lines("(most recent call first)") and live.lines("in _beat")


def test_an_engine_that_goes_on_after_a_pause_goes_on(live):
    """A machine that swaps, or a debugger: half a second of silence must cost nothing."""
    engine = live.engine
    stream = Stream(live, "/v1/completions", completion("Hello", max_tokens=60))
    until(lambda: stream.has_tokens)
    live.hurt(signal.SIGSTOP)
    time.sleep(1.2)
    assert live.status("/ready") == 503
    live.hurt(signal.SIGCONT)
    until(lambda: live.status("/ready") == 200, 2)
    stream.join(20)
    assert stream.data()[-1]["choices"][0]["finish_reason"] == "length"
    assert live.engine == engine


def test_who_is_computed_at_two_deaths_is_not_tried_a_third_time(live):
    """A request that brings the engine down would do so for ever; those behind it must outlive that."""
    long_prompt = [1500 + i % 2000 for i in range(12000)]
    with ThreadPoolExecutor(2) as pool:
        suspect = pool.submit(live.complete, long_prompt)
        for death in range(2):
            # Its prompt takes many steps, and it has all of each: what comes behind it has no part in them.
            until(lambda: live.metric("prompt_tokens_total") > 0)
            if death == 0:
                bystander = pool.submit(live.complete, PROMPTS[1], logprobs=3)
                until(lambda: live.metric("num_requests_waiting") == 1)
            ended = f"engine process {live.hurt(signal.SIGKILL)} has ended"
            until(partial(live.lines, ended))
        refused = suspect.result()
        assert refused.status_code == 500 and refused.json()["error"]["code"] == "engine_crashed"
        # OpenAI's and Anthropic's clients would send it again otherwise.
        assert refused.headers["x-should-retry"] == "false"
        assert choice_of(bystander.result()) == live.quiet[1]
