"""A model behind any OpenAI-compatible server: its stream of chunks as the same events that a local model gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2

from ventoux.cli.conversation import Cut
from ventoux.errors import EngineError, InvalidRequestError
from ventoux.text.stream_parser import Content, Event, Reasoning, ToolCallArguments, ToolCallStart

CONNECT_TIMEOUT = 10.0


class RemoteModel:
    """Args:
        url: Of the server, with or without the final /v1.
        name: Of the model; None takes the first one that the server lists.
        fields: Sent with every request (temperature, max_tokens, ...).

    Raises:
        EngineError: the server cannot be reached, or does not answer like one.
        InvalidRequestError: it refuses (no access, no such path).
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        api_key: str | None = None,
        fields: dict[str, Any] | None = None,
        transport: httpx2.BaseTransport | None = None,
    ):
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # An answer may take long to begin: a prompt is read first. Only connecting has a limit.
        timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT)
        try:
            self._client = httpx2.Client(headers=headers, timeout=timeout, transport=transport)
            self.name = name or self._first_model()
        except httpx2.InvalidURL as error:
            raise InvalidRequestError(f"--url {url}: {error}") from error
        self._fields = fields or {}

    def close(self) -> None:
        self._client.close()

    def stream(
        self, messages: list[dict[str, Any]], *, tools: list[dict[str, Any]] | None, reasoning_effort: str
    ) -> Iterator[Event | Cut]:
        """One answer, event by event; leaving the iterator early hangs up, which ends it on the server too."""
        body: dict[str, Any] = {"model": self.name, "messages": messages, "stream": True, **self._fields}
        if tools:
            body["tools"] = tools
        if reasoning_effort != "none":
            # Not sent without need: servers of other models may not know the field.
            body["reasoning_effort"] = reasoning_effort
        try:
            with self._client.stream("POST", self.url + "/chat/completions", json=body) as response:
                _check(response)
                num_calls = 0
                for sent in httpx2.EventSource(response):
                    if sent.data == "[DONE]":
                        return
                    for event in _events(json.loads(sent.data), num_calls):
                        num_calls += isinstance(event, ToolCallStart)
                        yield event
        except httpx2.HTTPError as error:
            raise EngineError(f"{self.url}: {error or type(error).__name__}") from error
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise EngineError(f"{self.url}: this is no stream of chat completion chunks ({error!r})") from error

    def _first_model(self) -> str:
        try:
            response = self._client.get(self.url + "/models")
            _check(response)
            return response.json()["data"][0]["id"]
        except httpx2.HTTPError as error:
            raise EngineError(f"{self.url}: {error or type(error).__name__}") from error
        except (json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
            raise EngineError(f"{self.url}/models lists no model; name one with --model.") from error


def _events(chunk: dict[str, Any], num_calls: int) -> Iterator[Event | Cut]:
    """The events of one chunk, `num_calls` tool calls having begun before it. Raises EngineError for an error chunk."""
    if "error" in chunk:
        raise EngineError(_message(chunk, "the server gave no reason"))
    for choice in chunk.get("choices") or []:
        delta = choice.get("delta") or {}
        # Servers send one name or the other, or both with the same text.
        if text := delta.get("reasoning_content") or delta.get("reasoning"):
            yield Reasoning(text)
        if text := delta.get("content"):
            yield Content(text)
        for call in delta.get("tool_calls") or []:
            function = call.get("function") or {}
            index = call.get("index", num_calls)
            if index >= num_calls:
                index, num_calls = num_calls, num_calls + 1
                yield ToolCallStart(index, function["name"])
            if function.get("arguments"):
                yield ToolCallArguments(index, function["arguments"])
        if choice.get("finish_reason") == "length":
            yield Cut()


def _check(response: httpx2.Response) -> None:
    """Raises what the server answered instead of an answer."""
    if response.is_success:
        return
    response.read()
    try:
        content = response.json()
    except ValueError:
        content = {}
    message = _message(content, response.reason_phrase or "no reason given")
    error = InvalidRequestError if response.is_client_error else EngineError
    raise error(f"{response.url}: {response.status_code}: {message}")


def _message(content: Any, default: str) -> str:
    error = content.get("error") if isinstance(content, dict) else None
    if isinstance(error, str):
        return error
    return str(error.get("message") or default) if isinstance(error, dict) else default
