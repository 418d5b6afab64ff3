"""More of the table in `hostile.py`: what is hostile below JSON, as the bytes of one connection."""

from __future__ import annotations

from typing import NamedTuple

_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
_BODY = b'{"messages": [{"role": "user", "content": "Hi"}]}'


class Raw(NamedTuple):
    """Bytes that a client sends before it waits, and the status of the right answer."""

    what: str
    data: bytes
    status: int = 400


RAW_CASES: tuple[Raw, ...] = (
    Raw("a line that is no HTTP", b"hello\r\n\r\n"),
    Raw("HTTP/0.9", b"GET /\r\n\r\n"),
    Raw("the beginning of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    Raw("a header of 1 MB", b"GET /health HTTP/1.1\r\nHost: a\r\nx: " + b"x" * 2**20 + b"\r\n\r\n"),
    Raw("10,000 headers", b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"x: y\r\n" * 10_000 + b"\r\n", 431),
    Raw("a path of 1 MB", b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    Raw(
        "Content-Length beside Transfer-Encoding",
        _HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    ),
    Raw("two Content-Lengths", _HEAD + b"Content-Length: 49\r\nContent-Length: 5\r\n\r\n" + _BODY),
    Raw("a negative Content-Length", _HEAD + b"Content-Length: -1\r\n\r\n" + _BODY),
    Raw("a Content-Length in letters", _HEAD + b"Content-Length: many\r\n\r\n" + _BODY),
    Raw("a Content-Length of 10^30", _HEAD + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n" + _BODY),
    Raw("a Content-Length of a terabyte", _HEAD + b"Content-Length: 1099511627776\r\n\r\n" + _BODY, 413),
    Raw("chunks of no length", _HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    Raw("NUL in a header", b"GET /health HTTP/1.1\r\nHost: a\r\nx: \x00\r\n\r\n"),
    Raw("a blank before the colon", b"GET /health HTTP/1.1\r\nHost : a\r\n\r\n"),
)
