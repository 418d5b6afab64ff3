"""Images by URL: what must never be connected to, and what a bad server behind a good URL can do to us."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
import time

import httpx2
import pytest
from PIL import Image

from tests.fakes import FakeResolver, FakeWeb
from tests.server.conftest import assert_error
from ventoux.config import ServerConfig
from ventoux.errors import InvalidImageError
from ventoux.server.media import MediaFetcher, is_public, resolve

PUBLIC = "93.184.216.34"


def png(size=(30, 20)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size).save(out, "PNG")
    return out.getvalue()


def ask(server, url, stream=False):
    part = {"type": "image_url", "image_url": {"url": url}}
    return server.chat([{"role": "user", "content": [{"type": "text", "text": "?"}, part]}], stream=stream)


def picture(content_type="image/png", **headers):
    return httpx2.Response(200, content=png(), headers={"content-type": content_type, **headers})


PARAM = "messages[0].content[1].image_url"


def test_a_public_image_is_fetched_from_the_address_that_was_judged(make_server):
    """The connection must go to the judged address, with the name only in the Host header and in TLS."""
    web = FakeWeb({"images.example/a.png": picture()})
    server = make_server(web=web, resolver=FakeResolver({"images.example": [PUBLIC, "1.1.1.1"]}))
    server.says("ok")
    assert ask(server, "https://images.example/a.png").status_code == 200
    assert web.connections == [(PUBLIC, "images.example")]
    # Resolved once: a second answer could be another one.
    assert server.resolver.asked == ["images.example"]
    request = server.engine.requests[0]
    assert len(request.images) == 1 and (request.images[0].width, request.images[0].height) == (56, 28)
    assert request.prompt_token_ids.count(10) == 2


def test_tls_is_with_the_name(make_server):
    names = []

    def page(request):
        names.append(request.extensions["sni_hostname"])
        return picture()

    server = make_server(
        web=FakeWeb({"images.example:8443/a": page}), resolver=FakeResolver({"images.example": [PUBLIC]})
    )
    server.says("ok")
    assert ask(server, "https://images.example:8443/a").status_code == 200
    assert names == ["images.example"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.0.0.1:8000/metrics",
        "http://10.0.0.1/a.png",
        "http://192.168.1.1/",
        "http://172.16.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.64.0.1/",
        "http://0.0.0.0/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[fe80::1]/",
        "http://[fc00::1]/",
        "http://[ff02::1]/",
        "http://localhost/",
        "http://metadata.internal/",
        "http://rebinding.example/",
        "http://0x7f.1/",
        "http://2130706433/",
        "file:///etc/passwd",
        "ftp://images.example/a.png",
        "gopher://images.example/",
        "//images.example/a.png",
        "images.example/a.png",
        "http://",
        "http:///a.png",
        "http://user:password@images.example/a.png",
        "http://allowed.example\\@evil.example/",
        "http://images.example /a.png",
        "http://images.example\r\nHost: x/",
        "http://images.example:99999/",
        "http://[::1/",
        "http://" + "a" * 9000 + ".example/",
    ],
)
def test_urls_that_are_refused_without_a_connection(make_server, url):
    private = {
        "localhost": ["127.0.0.1"],
        "metadata.internal": ["169.254.169.254"],
        # One bad address among good ones is enough.
        "rebinding.example": [PUBLIC, "127.0.0.1"],
        "0x7f.1": ["127.0.0.1"],
        "2130706433": ["127.0.0.1"],
    }
    server = make_server(resolver=FakeResolver(private))
    for stream in (False, True):
        assert_error(ask(server, url, stream), 400, param=PARAM, code="url_not_allowed")
    assert server.web.connections == []
    assert server.engine.requests == []


def test_the_system_resolver_reads_odd_spellings_of_loopback_as_what_they_are():
    for host in ("127.1", "0x7f.1", "2130706433"):
        assert asyncio.run(resolve(host, 80)) == ["127.0.0.1"]
    assert not is_public("127.0.0.1") and is_public(PUBLIC) and is_public("2606:4700::1111")


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/secret",
        "//169.254.169.254/",
        "http://inside.example/",
        "file:///etc/passwd",
        "http://[::ffff:10.0.0.1]/",
    ],
)
def test_redirects_are_judged_like_the_first_url(make_server, location):
    web = FakeWeb({"images.example/a": httpx2.Response(302, headers={"location": location})})
    resolver = FakeResolver({"images.example": [PUBLIC], "inside.example": ["10.1.2.3"]})
    server = make_server(web=web, resolver=resolver)
    assert_error(ask(server, "http://images.example/a"), 400, param=PARAM, code="url_not_allowed")
    assert web.connections == [(PUBLIC, "images.example")]


def test_redirects_to_public_places_are_followed_three_times(make_server):
    def hop(to):
        return httpx2.Response(302, headers={"location": to})

    pages = {f"images.example/{i}": hop(f"/{i + 1}") for i in range(5)}
    web = FakeWeb({**pages, "images.example/3": picture(), "images.example/b0": hop("0")})
    server = make_server(web=web, resolver=FakeResolver({"images.example": [PUBLIC]}))
    server.says("ok")
    assert ask(server, "http://images.example/0").status_code == 200
    assert_error(ask(server, "http://images.example/b0"), 400, code="image_fetch_failed")


def test_an_allow_list_opens_private_hosts_and_closes_all_others(make_server):
    pages = {"127.0.0.1:9000/a": picture(), "images.example/a": picture(), "LAN.example/a": picture()}
    resolver = FakeResolver({"images.example": [PUBLIC], "lan.example": ["10.0.0.9"]})
    server = make_server(web=FakeWeb(pages), resolver=resolver, allowed_media_domains=("127.0.0.1", "lan.example"))
    server.says("ok")
    assert ask(server, "http://127.0.0.1:9000/a").status_code == 200
    assert_error(ask(server, "http://images.example/a"), 400, code="url_not_allowed")
    assert_error(ask(server, "http://127.0.0.2/a"), 400, code="url_not_allowed")
    assert_error(ask(server, "http://lan.example.evil.example/a"), 400, code="url_not_allowed")
    assert_error(ask(server, "http://evil.example#@lan.example/a"), 400, code="url_not_allowed")
    assert [host for _, host in server.web.connections] == ["127.0.0.1:9000"]


class Endless(httpx2.AsyncByteStream):
    def __init__(self, chunk: bytes, pause: float):
        self.chunk, self.pause, self.closed = chunk, pause, False

    async def __aiter__(self):
        while True:
            await asyncio.sleep(self.pause)
            yield self.chunk

    async def aclose(self):
        self.closed = True


@pytest.mark.parametrize(("chunk", "pause"), [(b"x", 0.05), (b"x" * 65536, 0.0)])
def test_slow_and_endless_bodies_end_in_time(make_server, chunk, pause):
    body = Endless(chunk, pause)
    web = FakeWeb({"images.example/a": lambda request: httpx2.Response(200, stream=body)})
    server = make_server(
        web=web, resolver=FakeResolver({"images.example": [PUBLIC]}), media_timeout=0.3, max_image_bytes=300_000
    )
    start = time.monotonic()
    assert_error(ask(server, "http://images.example/a"), 400, param=PARAM, code="image_fetch_failed")
    assert time.monotonic() - start < 3
    assert body.closed


def test_a_resolver_that_hangs_ends_in_time(make_server):
    async def hang(host, port):
        await asyncio.sleep(60)
        return [PUBLIC]

    server = make_server(resolver=hang, media_timeout=0.2)
    assert_error(ask(server, "http://images.example/a"), 400, code="image_fetch_failed")


def _raise(error):
    def page(request):
        raise error

    return page


@pytest.mark.parametrize(
    "page",
    [
        httpx2.Response(404),
        httpx2.Response(500),
        httpx2.Response(206, content=b"x"),
        httpx2.Response(304),
        picture("text/html; charset=utf-8"),
        picture("application/json"),
        httpx2.Response(200, headers={"content-encoding": "zstd"}),
        _raise(httpx2.ConnectError("10.2.3.4 refused")),
        _raise(httpx2.RemoteProtocolError("bad")),
    ],
)
def test_servers_that_send_no_image(make_server, page):
    server = make_server(web=FakeWeb({"images.example/a": page}), resolver=FakeResolver({"images.example": [PUBLIC]}))
    response = ask(server, "http://images.example/a")
    assert_error(response, 400, param=PARAM, code="image_fetch_failed")
    assert "10.2.3.4" not in response.text


def test_a_name_that_does_not_exist(make_server):
    server = make_server()
    assert_error(ask(server, "http://nowhere.example/a"), 400, code="image_fetch_failed")


def test_an_image_that_is_none_is_told_from_one_that_did_not_come(make_server):
    pages = {"images.example/a": httpx2.Response(200, content=b"GIF87a nonsense")}
    server = make_server(web=FakeWeb(pages), resolver=FakeResolver({"images.example": [PUBLIC]}))
    assert_error(ask(server, "http://images.example/a"), 400, param=PARAM, code="invalid_image")


def test_a_bare_url_as_mistrals_api_takes_it(make_server):
    server = make_server(
        web=FakeWeb({"images.example/a": picture()}), resolver=FakeResolver({"images.example": [PUBLIC]})
    )
    server.says("ok")
    part = {"type": "image_url", "image_url": "http://images.example/a"}
    assert server.chat([{"role": "user", "content": [part]}]).status_code == 200


def test_no_credentials_or_cookies_leave_and_the_body_is_asked_for_plain(make_server):
    seen = []

    def page(request):
        seen.append(request.headers)
        return picture(**{"set-cookie": "a=b"})

    server = make_server(web=FakeWeb({"images.example/a": page}), resolver=FakeResolver({"images.example": [PUBLIC]}))
    server.says("ok")
    for _ in range(2):
        ask(server, "http://images.example/a")
    for headers in seen:
        assert headers["accept-encoding"] == "identity"
        assert not {"cookie", "authorization", "referer"} & set(headers)


def test_look_ups_that_hang_leave_threads_for_everything_else(monkeypatch):
    """The event loop has few threads, in which prompts are encoded: names that never resolve must not hold them all."""
    release = threading.Event()

    def hang(*args, **kwargs):
        release.wait(30)
        raise OSError

    async def fetch_many_and_work():
        fetcher = MediaFetcher(ServerConfig(media_timeout=0.02))
        fetches = (fetcher.fetch(f"http://{i}.example/", PARAM) for i in range(64))
        assert all(isinstance(e, InvalidImageError) for e in await asyncio.gather(*fetches, return_exceptions=True))
        try:
            async with asyncio.timeout(10):
                assert await asyncio.to_thread(lambda: "done") == "done"
        finally:
            release.set()
            await fetcher.aclose()

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    asyncio.run(fetch_many_and_work())
