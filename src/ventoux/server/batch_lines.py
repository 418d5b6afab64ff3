"""The input of a batch: lines of JSON, checked as a whole before the first of them is answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ventoux.server.batch_store import Line

# OpenAI's limit.
MAX_LINES = 50_000
MAX_CUSTOM_ID_LENGTH = 512
# Of what is wrong with a file, as much is told.
MAX_ERRORS = 20


class _Sent(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


def read_lines(content: bytes, endpoint: str) -> tuple[list[Line], list[dict[str, Any]]]:
    """(The lines of an input file, what is wrong with it in OpenAI's form). Lines that are empty are left out."""
    lines: list[Line] = []
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, text in enumerate(_split(content), 1):
        if not text.strip():
            continue
        line, problem = _read(text, number, endpoint, seen)
        if line is not None:
            lines.append(line)
        else:
            errors.append({"code": "invalid_line", "line": number, "message": problem, "param": None})
        if len(errors) == MAX_ERRORS:
            break
        if len(lines) > MAX_LINES:
            errors.append(_whole("too_many_lines", f"A batch may have {MAX_LINES} requests."))
            break
    if not lines and not errors:
        errors.append(_whole("empty_file", "The input file holds no requests."))
    return lines, errors


def _whole(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "line": None, "message": message, "param": "input_file_id"}


def _split(content: bytes) -> Iterator[bytes]:
    """Lines one by one: a list of those of 64 MiB would take several times as much."""
    start = 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        yield content[start:end]
        start = end + 1


def _read(text: bytes, number: int, endpoint: str, seen: set[str]) -> tuple[Line | None, str]:
    """(The line, "") or (None, what is wrong with it)."""
    try:
        sent = msgspec.json.decode(text, type=_Sent)
    except (ValueError, RecursionError) as e:
        return None, f"This is no request: {str(e)[:200]}."
    if not 0 < len(sent.custom_id) <= MAX_CUSTOM_ID_LENGTH:
        return None, f"custom_id must have 1 to {MAX_CUSTOM_ID_LENGTH} characters."
    if sent.custom_id in seen:
        return None, f"custom_id {sent.custom_id!r} is used twice."
    if sent.method != "POST":
        return None, "method must be POST."
    if sent.url != endpoint:
        return None, f"url must be the batch's endpoint, {endpoint}."
    if not bytes(sent.body).lstrip().startswith(b"{"):
        return None, "body must be a JSON object."
    seen.add(sent.custom_id)
    return Line(number, sent.custom_id, bytes(sent.body)), ""
