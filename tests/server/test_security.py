"""Who is let in by name and by header, and what hostile bodies, images and heads may cost."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import time

import pytest
from PIL import Image

from tests.server.conftest import HELLO, assert_error
from tests.server.test_run import assert_refused, exchange, running
from ventoux.errors import InvalidImageError
from ventoux.server import body as body_module
from ventoux.server.media import is_public
from ventoux.text.images import MAX_JPEG_SCANS, decode_image

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


# --------------------------------------------------------------------------------------------------------- Host headers


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "10.0.0.5", "box", ""])
@pytest.mark.parametrize("suffix", ["", "."])
def test_local_names_are_answered(server, host, suffix):
    if suffix and host.replace("box", "localhost") != "localhost":
        pytest.skip("names only")
    assert server.get("/v1/models", headers={"host": host + suffix}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[evil.example]", "a.b."]
)
def test_a_page_that_took_over_our_address_is_refused(server, host):
    """DNS rebinding: a web page's own name points at 127.0.0.1, and its scripts read every answer."""
    for method, path in (("GET", "/v1/models"), ("GET", "/"), ("POST", CHAT), ("GET", "/health")):
        assert_error(server.request(method, path, headers={"host": host}), 403, code="host_not_allowed")


def test_names_behind_a_proxy_can_be_allowed(make_server):
    server = make_server(allowed_hosts=("Models.Example",))
    assert server.get("/v1/models", headers={"host": "models.example:443"}).status_code == 200
    assert_error(server.get("/v1/models", headers={"host": "other.example"}), 403)


@pytest.mark.parametrize("config", [{"host": "0.0.0.0"}, {"host": "::"}, {"api_key": ("k",)}])
def test_public_addresses_and_keys_need_no_such_check(make_server, config):
    server = make_server(**config)
    headers = {"host": "models.example", "authorization": "Bearer k"}
    assert server.get("/v1/models", headers=headers).status_code == 200


# ----------------------------------------------------------------------------------------------------------- the socket


@pytest.fixture(scope="module")
def closed(tokenizer):
    """A server with a key."""
    with running(tokenizer, api_key=("k",), responses_store="none") as server:
        server.wait_ready()
        yield server


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/models HTTP/1.1\r\nHost: evil/health?x=\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost/health\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Forwarded-Prefix: /health\r\nX-Original-URL: /health\r\n",
        b"GET http://localhost/health/../v1/models HTTP/1.1\r\nHost: a\r\n",
        b"GET /health/../v1/models HTTP/1.1\r\nHost: a\r\n",
        b"GET /health%2f..%2fv1/models HTTP/1.1\r\nHost: a\r\n",
        b"GET /page/../v1/models HTTP/1.1\r\nHost: a\r\n",
        b"GET /page/%2e%2e/v1/models HTTP/1.1\r\nHost: a\r\n",
        b"GET /v1/models?key=k HTTP/1.1\r\nHost: a\r\n",
        b"GET /v1/models#/health HTTP/1.1\r\nHost: a\r\n",
        b"GET //v1/models HTTP/1.1\r\nHost: a\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-HTTP-Method-Override: OPTIONS\r\n",
        b"OPTIONS /v1/models HTTP/1.1\r\nHost: a\r\nOrigin: http://evil\r\nAccess-Control-Request-Method: GET\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n",
    ],
)
def test_no_spelling_of_a_request_opens_a_closed_path(closed, head):
    answer = exchange(closed, head + b"Connection: close\r\n\r\n")
    status = int(answer.split(b" ")[1])
    assert status in (400, 401, 404) and b'"data"' not in answer
    assert b"access-control-allow-origin" not in answer.lower()


@pytest.mark.parametrize("version", [b"0.9", b"2.7"])
def test_other_versions_of_http(closed, version):
    received = exchange(closed, b"GET /health HTTP/" + version + b"\r\nHost: a\r\n\r\n")
    assert_refused(received, 400, "invalid_request")


def test_too_many_headers(closed):
    head = b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: a\r\n" % i for i in range(1000)) + b"\r\n"
    assert_refused(exchange(closed, head), 431, "headers_too_large")


@pytest.mark.parametrize("size", [70_000, 1_000_000])
def test_headers_that_are_too_long(closed, size):
    # What is left unread when a connection is closed resets it, and the answer may be lost with it.
    received = b""
    with contextlib.suppress(ConnectionResetError):
        received = exchange(closed, b"GET /health HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * size + b"\r\n\r\n")
    assert received == b"" or received.split(b" ")[1] in (b"400", b"431")
    assert b"HTTP/1.1 200" in exchange(closed, b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize(
    "head", [b"GET /health\r\n\r\n", b"GET /health HTTP/x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\r\n\r\n"]
)
def test_what_is_no_http_is_one_line_of_the_log(closed, head, caplog):
    caplog.set_level("INFO", "ventoux")
    assert_refused(exchange(closed, head), 400, "invalid_request")
    (record,) = [r for r in caplog.records if r.name.startswith("ventoux")]
    assert record.msg.fields["status"] == 400 and record.msg.fields["request_id"].startswith("req-")


# --------------------------------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    "text",
    [
        '{"messages": [' + "1," * 1_000_000 + "1]}",
        '{"messages": [], "stop": [' + "1," * 1_000_000 + "1]}",
        '{"messages": [' + "{}," * 600_000 + "{}]}",
        '{"messages": [' + "[]," * 1_000_001 + "[]]}",
        '{"messages": [], "logit_bias": {' + ",".join(f'"{i}":"x"' for i in range(100_000)) + "}}",
        '{"messages": [], "metadata": {' + ",".join(f'"{i}":"x"' for i in range(100_000)) + "}}",
    ],
    ids=["numbers", "stop", "objects", "lists", "bias", "metadata"],
)
def test_many_small_values_cost_little(server, text):
    """A body of 64 MB made 34 million values, and an error message for each: 30 GB, and minutes of everybody's time."""
    start = time.process_time()
    assert_error(server.request("POST", CHAT, content=text.encode(), headers=JSON), 400)
    assert time.process_time() - start < 3
    assert server.engine.requests == []


def test_one_wrong_item_is_named(server):
    response = server.post("/detokenize", {"tokens": [1, 2, "x", "y"]})
    assert_error(response, 400, param="tokens[2]")


def test_a_prompt_with_many_commas_is_no_attack(make_server):
    server = make_server(max_model_len=200_000)
    server.says("ok")
    assert server.chat([{"role": "user", "content": "1, " * 60_000}]).status_code == 200


def test_gzip_is_refused_before_it_is_read(server):
    for encoding in ("gzip", "deflate", "br", "zstd", "identity, gzip"):
        response = server.request("POST", CHAT, content=b"x", headers={**JSON, "content-encoding": encoding})
        assert_error(response, 415, code="unsupported_media_type")


def test_the_limit_on_values_is_documented_as_it_is(server):
    """The number in the error is the constant's."""
    text = json.dumps({"messages": HELLO, "x": [0] * body_module.MAX_VALUES})
    response = server.request("POST", CHAT, content=text.encode(), headers=JSON)
    assert str(body_module.MAX_VALUES) in response.json()["error"]["message"]


# --------------------------------------------------------------------------------------------------------------- images


def scans(count: int) -> bytes:
    """A progressive JPEG with `count` more scans than it needs, 40 megapixels in half a megabyte."""
    out = io.BytesIO()
    Image.new("L", (640, 640), 128).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + b"\xff\xd9"


def test_jpegs_of_a_thousand_scans_are_not_decoded(server):
    """Each took 32 ms at 40 megapixels and 64 bytes of the file: 20 MB were hours."""
    assert decode_image(scans(10), max_bytes=10**6, max_pixels=10**6).size == (640, 640)
    with pytest.raises(InvalidImageError, match=f"{MAX_JPEG_SCANS} scans"):
        decode_image(scans(1000), max_bytes=10**6, max_pixels=10**6)
    url = "data:image/jpeg;base64," + base64.b64encode(scans(1000)).decode()
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    assert_error(server.chat([message]), 400, param="messages[0].content[0].image_url", code="invalid_image")


@pytest.mark.parametrize(
    "address",
    [
        "168.63.129.16",
        "::ffff:168.63.129.16",
        "64:ff9b::a83f:8110",
        "192.0.0.192",
        "192.88.99.1",
        "100.100.100.200",
        "198.18.0.1",
        "fec0::1",
        "fd00:ec2::254",
        "::127.0.0.1",
        "2001:0:7f00:1::",
        "64:ff9b:1::7f00:1",
        "fe80::1%eth0",
    ],
)
def test_addresses_that_only_look_public(address):
    """Clouds keep their machines' credentials at some of them; Azure's is registered as any other."""
    assert not is_public(address)
