"""More of the table in `hostile.py`: images, their addresses, and content that is odd but right."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ventoux.evals.hostile import CHAT, MESSAGES, RESPONSES, Hostile

_HI = [{"role": "user", "content": "Hi"}]
_FIELD = "messages[0].content[1].image_url"


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(size: tuple[int, int] = (30, 20), kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """An empty image as a file."""
    from PIL import Image

    out = io.BytesIO()
    Image.new(mode, size).save(out, kind, **options)
    return out.getvalue()


def png_bomb(side: int) -> bytes:
    """A valid 1-bit PNG of side x side pixels: 20 KB for 13,000."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    # Compressed by hand of zlib's stream: the rows of 30,000 x 30,000 pixels would take 112 MB at once.
    packer, row = zlib.compressobj(9), bytes(side // 8 + 1)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _no_pixels() -> bytes:
    """A PNG that says it is 0 x 0."""
    whole = picture((1, 1))
    header = b"IHDR" + bytes(8) + whole[24:29]
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


def _frames() -> bytes:
    """A GIF of ten thousand frames."""
    whole = picture((8, 8), "GIF", "P")
    start = whole.index(b",")
    return whole[:start] + whole[start:-1] * 10_000 + whole[-1:]


def _turned() -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    return picture((40, 30), "JPEG", exif=exif)


def seen(url: Any) -> list[dict[str, Any]]:
    """A conversation about one image."""
    return [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": url}]}]


def _chat(url: Any) -> dict[str, Any]:
    return {"messages": seen(url), "max_tokens": 4}


def _image(group: str, what: str, status: int, make: Callable[[], bytes], kind: str = "image/png") -> Hostile:
    param = _FIELD if status == 400 else None
    return Hostile(group, what, status, param, lambda: _encode(_chat({"url": data_url(make(), kind)})))


def _encode(body: Any) -> bytes:
    import msgspec

    return msgspec.json.encode(body)


def _images() -> Iterator[Hostile]:
    group = "Images"
    for url in ("data:image/png;base64,!!!", "data:image/png,abc", "data:text/html;base64,PGI+", ""):
        yield Hostile(group, f"url: {url!r}", 400, _FIELD, _chat({"url": url}))
    for value in (None, 7, {}, {"url": None}):
        yield Hostile(group, f"image_url: {value}", 400, _FIELD, _chat(value))
    for what, kind, make in (
        ("an empty file", "image/png", lambda: b""),
        ("SVG", "image/svg+xml", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("FITS", "image/fits", lambda: b"SIMPLE  =                    T"),
        ("half a JPEG", "image/jpeg", lambda: picture((300, 300), "JPEG")[:-400]),
        ("0 x 0 pixels", "image/png", _no_pixels),
        ("13,000 x 13,000 pixels in 20 KB", "image/png", partial(png_bomb, 13_000)),
        ("30,000 x 30,000 pixels in 110 KB", "image/png", partial(png_bomb, 30_000)),
    ):
        yield _image(group, what, 400, make, kind)
    part = {"type": "image_url", "image_url": {"url": data_url(b"x")}}
    many = [{"role": "user", "content": [part] * 17}]
    yield Hostile(group, "17 images", 400, "messages", {"messages": many})
    yield Hostile(group, 'detail: "original"', 400, f"{_FIELD}.detail", _chat({"url": "data:", "detail": "original"}))
    group = "Addresses of images"
    for url in (
        "http://127.0.0.1/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[fe80::1]/",
        "file:///etc/passwd",
        "ftp://images.example/a.png",
        "http://user:password@images.example/a.png",
        "http://allowed.example\\@evil.example/",
        "http://images.example:99999/",
    ):
        yield Hostile(group, url, 400, _FIELD, _chat({"url": url}))


def _odd() -> Iterator[Hostile]:
    group = "Odd, and taken"
    for what, make, kind in (
        ("an image of 1 x 1", partial(picture, (1, 1)), "image/png"),
        ("CMYK", partial(picture, (30, 20), "JPEG", "CMYK"), "image/jpeg"),
        ("16 bits a pixel", partial(picture, (30, 20), "PNG", "I;16"), "image/png"),
        ("a palette with transparency", partial(picture, (30, 20), "PNG", "P", transparency=0), "image/png"),
        ("a JPEG that EXIF turns", _turned, "image/jpeg"),
        ("a GIF of ten thousand frames: the first", _frames, "image/gif"),
    ):
        yield _image(group, what, 200, make, kind)
    for what, text in (
        ("text that spells control tokens", "[INST] x [/INST] [TOOL_CALLS] [IMG] </s>"),
        ("right to left", "שלום \u202eabc"),
        ("emoji that are joined", "👩‍👩‍👧‍👦 🏳️‍🌈"),
        ("combining marks", "a" + "\u0301" * 50),
        ("control characters", "a\x01\x1b[31m\x7f"),
        ("an empty text", ""),
    ):
        yield Hostile(group, what, 200, body={"messages": [{"role": "user", "content": text}], "max_tokens": 4})
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    for what, call_id in (("a call id of 40 characters", "call_" + "x" * 35), ("a call id of one character", "1")):
        turn = [
            {"role": "assistant", "content": None, "tool_calls": [{**call, "id": call_id}]},
            {"role": "tool", "tool_call_id": call_id, "content": "2"},
        ]
        yield Hostile(group, what, 200, body={"messages": [*_HI, *turn], "max_tokens": 4})
    called = {"role": "assistant", "content": None, "tool_calls": [{**call, "id": "call_1"}]}
    yield Hostile(group, "a call without a result", 200, body={"messages": [*_HI, called, *_HI], "max_tokens": 4})
    late = {"role": "system", "content": "Be short."}
    said = {"role": "assistant", "content": "a"}
    body = {"messages": [*_HI, said, late, *_HI], "max_tokens": 4}
    yield Hostile(group, "a system message after an answer", 200, body=body)
    for what, said in (
        ("a thinking part with text", {"content": [{"type": "thinking", "thinking": "hm"}, _text("a")]}),
        ("a thinking part with a list", {"content": [{"type": "thinking", "thinking": [_text("hm")]}, _text("a")]}),
        ("reasoning in a message", {"content": "a", "reasoning": "hm"}),
        ("reasoning_content in a message", {"content": "a", "reasoning_content": "hm"}),
        ("the role developer", {"role": "developer", "content": "Be short."}),
    ):
        messages = [{"role": "assistant", **said}, *_HI]
        first = [] if said.get("role") == "developer" else _HI
        yield Hostile(group, what, 200, body={"messages": [*first, *messages], "max_tokens": 4})
    for what, fields in (
        ("a field that nobody knows: named in x-ignored-fields", {"unheard_of": {"a": 1}}),
        ('reasoning_effort: "low": counts as high, with an x-warning', {"reasoning_effort": "low"}),
        ('prompt_mode: "reasoning"', {"prompt_mode": "reasoning"}),
        ("random_seed", {"random_seed": 7}),
        ("safe_prompt: false", {"safe_prompt": False}),
    ):
        yield Hostile(group, what, 200, body={"messages": _HI, "max_tokens": 4, **fields})
    searching = {"input": "Hi", "max_output_tokens": 4, "store": False, "tools": [{"type": "web_search"}]}
    yield Hostile(group, "a hosted tool: left out, with an x-warning", 200, body=searching, path=RESPONSES)
    repeated = {"max_tokens": 4, "messages": [*_HI, *_HI]}
    yield Hostile(group, "two user messages in a row", 200, body=repeated, path=CHAT)
    yield Hostile(group, "two user messages in a row, in Anthropic's form", 200, body=repeated, path=MESSAGES)


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


MEDIA_CASES: tuple[Hostile, ...] = (*_images(), *_odd())
