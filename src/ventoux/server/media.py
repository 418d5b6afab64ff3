"""Images by URL: fetched without letting a request reach what only this machine can reach.

A host name is resolved once, every address found is judged, and the connection goes to a judged address: a name that
resolves differently a moment later (DNS rebinding) gains nothing. Redirects are judged like the first URL. One parser
(httpx2's) decides what the host is, for the check and for the connection alike.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

import httpx2

from ventoux.config import ServerConfig
from ventoux.errors import InvalidImageError
from ventoux.server.decoder import ImageDecoder

MAX_REDIRECTS = 3
MAX_URL_LENGTH = 8192
# Fetches at a time, over all requests: each may hold up to `max_image_bytes`.
MAX_CONCURRENT_FETCHES = 16
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Global by the registry, and yet not of the public Internet: the address from which Azure serves its machines' secrets;
# protocol assignments (Oracle's metadata among them); the relays of 6to4; IPv6's abandoned site-local addresses.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network) for network in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "fec0::/10")
)
# What servers call images; anything else named explicitly (HTML, JSON) is an error page, whatever its status.
_IMAGE_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")

# (host, port) -> addresses as text.
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolve(host: str, port: int, threads: Executor | None = None) -> list[str]:
    """All addresses of a host, as the system knows them. Raises OSError if there are none."""
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(threads, look_up)
    return [str(entry[4][0]) for entry in found]


def is_public(address: str) -> bool:
    """Whether an address belongs to the public Internet, also when it wraps an IPv4 address that does not."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
    return (
        ip.is_global
        and not ip.is_multicast
        and not ip.is_reserved
        and not any(ip.version == network.version and ip in network for network in _NOT_PUBLIC)
    )


class MediaFetcher:
    """Fetches images for all requests of a server. `transport` and `resolver` are replaced in tests."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        transport: httpx2.AsyncBaseTransport | None = None,
        resolver: Resolver | None = None,
    ):
        self._allowed = frozenset(_host_key(domain) for domain in config.allowed_media_domains)
        self._timeout = config.media_timeout
        self._max_bytes = config.max_image_bytes
        self._transport = transport
        # A look-up that hangs goes on after its fetch was given up. In threads of their own such look-ups keep nobody
        # but later look-ups waiting; in the event loop's few threads prompts are encoded.
        self._threads = ThreadPoolExecutor(MAX_CONCURRENT_FETCHES, "ventoux-dns")
        self._resolver = resolver or partial(resolve, threads=self._threads)
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_FETCHES)
        self.decoder = ImageDecoder(config.image_workers)
        self._client: httpx2.AsyncClient | None = None

    async def fetch(self, url: str, param: str) -> bytes:
        """Returns the bytes behind an http(s) URL.

        Raises:
            InvalidImageError: code `url_not_allowed` (no connection was made to that address) or `image_fetch_failed`.
        """
        async with self._slots:
            try:
                async with asyncio.timeout(self._timeout):
                    return await self._follow(url, param)
            except TimeoutError:
                raise _failed(f"the image did not arrive within {self._timeout:g} seconds", param) from None
            except (httpx2.HTTPError, httpx2.InvalidURL) as e:
                # The type says enough; the text may hold addresses that the client has no business to know.
                raise _failed(f"the image could not be fetched ({type(e).__name__})", param) from e

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.decoder.close()
        if self._client is not None:
            await self._client.aclose()

    async def _follow(self, url: str, param: str) -> bytes:
        target = parse_url(url, param)
        for _ in range(MAX_REDIRECTS + 1):
            address = await self._judge(target, param)
            request = self._http().build_request(
                "GET",
                target.copy_with(host=address),
                headers={"host": target.netloc.decode("ascii"), "accept": "image/*", "accept-encoding": "identity"},
                # TLS is with the name, though the connection is to the address.
                extensions={"sni_hostname": target.raw_host.decode("ascii")},
            )
            response = await self._http().send(request, stream=True)
            try:
                if not response.has_redirect_location:
                    return await self._read(response, param)
                target = parse_url(str(target.join(response.headers["location"])), param)
            finally:
                await response.aclose()
        raise _failed(f"more than {MAX_REDIRECTS} redirects", param)

    def _http(self) -> httpx2.AsyncClient:
        """The client is made at the first use: loading certificates takes 20 ms that start-up need not pay."""
        if self._client is None:
            # No kept connections: a later request to the same address may be for another name. No proxies or
            # credentials from the environment, no cookies.
            self._client = httpx2.AsyncClient(
                transport=self._transport,
                trust_env=False,
                follow_redirects=False,
                timeout=self._timeout,
                limits=httpx2.Limits(max_keepalive_connections=0),
            )
        self._client.cookies.clear()
        return self._client

    async def _judge(self, url: httpx2.URL, param: str) -> str:
        """Returns the address to connect to."""
        host = _host_key(url.host)
        if self._allowed and host not in self._allowed:
            raise _not_allowed(f"{url.host} is not among the allowed media domains", param)
        try:
            addresses = await self._resolver(host, url.port or _PORTS[url.scheme])
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise _failed(f"the host {url.host} was not found", param)
        # All must be public: a name with one private address among public ones is an attempt.
        if host not in self._allowed and not all(is_public(address) for address in addresses):
            raise _not_allowed(f"{url.host} is not a public address", param)
        return addresses[0]

    async def _read(self, response: httpx2.Response, param: str) -> bytes:
        if response.status_code != 200:
            raise _failed(f"the image's server answered {response.status_code}", param)
        kind = response.headers.get("content-type", "image/*").strip().lower()
        if not kind.startswith(_IMAGE_TYPES):
            raise _failed("the image's server sent something else than an image", param)
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise _failed("the image's server sent compressed data", param)
        received = bytearray()
        async for chunk in response.aiter_raw():
            received += chunk
            if len(received) > self._max_bytes:
                raise _failed(f"the image is larger than {self._max_bytes} bytes", param)
        return bytes(received)


def parse_url(url: str, param: str) -> httpx2.URL:
    """Raises InvalidImageError unless it is an absolute http(s) URL without credentials or odd characters."""
    # Other parsers read a backslash as a slash, or skip blanks: such a URL means different hosts to different readers.
    if len(url) > MAX_URL_LENGTH or not url.isascii() or any(c <= " " or c in "\\\x7f" for c in url):
        raise _not_allowed("the URL is too long or holds characters that no URL may hold", param)
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError) as e:
        raise _not_allowed("this is no valid URL", param) from e
    if parsed.scheme not in _PORTS:
        raise _not_allowed("only http, https and data URLs are fetched", param)
    if not parsed.host or parsed.userinfo or not 0 < (parsed.port or _PORTS[parsed.scheme]) < 65536:
        raise _not_allowed("the URL must name a host and a port that exist, and carry no credentials", param)
    return parsed


def _host_key(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


def _not_allowed(reason: str, param: str) -> InvalidImageError:
    return InvalidImageError(f"Image URL refused: {reason}.", param=param, code="url_not_allowed")


def _failed(reason: str, param: str) -> InvalidImageError:
    return InvalidImageError(f"Image not fetched: {reason}.", param=param, code="image_fetch_failed")
