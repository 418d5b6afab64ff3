"""HTTPS on a real socket: certificates that are renewed while the server runs."""

from __future__ import annotations

import os
import socket
import ssl

import httpx2
import pytest
import trustme

from tests.server.test_run import running
from ventoux.config import ServerConfig
from ventoux.errors import ConfigError
from ventoux.server import tls
from ventoux.server.tls import tls_context


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def files(tmp_path):
    return {"ssl_certfile": str(tmp_path / "cert.pem"), "ssl_keyfile": str(tmp_path / "key.pem")}


def issue(authority, files, name, *, key=True):
    pair = authority.issue_cert(name, "127.0.0.1")
    with open(files["ssl_certfile"], "wb") as out:
        out.write(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
    if key:
        pair.private_key_pem.write_to_path(files["ssl_keyfile"])
    # Two writes within one tick of the file system's clock look like one.
    for number, path in enumerate(files.values()):
        if key or number == 0:
            status = os.stat(path)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))


def names(server, authority) -> list[str]:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with (
        socket.create_connection(server.sock.getsockname(), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as connection,
    ):
        return [value for kind, value in connection.getpeercert()["subjectAltName"] if kind == "DNS"]


def test_https_and_renewed_certificates(tokenizer, authority, files, monkeypatch, caplog):
    """Certificates live for weeks, servers for months. The two files change one after the other."""
    monkeypatch.setattr(tls, "CHECK_SECONDS", 0.0)
    issue(authority, files, "first.example")
    with running(tokenizer, **files) as server:
        server.wait_ready()
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        url = f"https://127.0.0.1:{server.sock.getsockname()[1]}"
        assert server.lifetime._url == url
        assert httpx2.get(f"{url}/health", verify=trust).status_code == 200
        assert names(server, authority) == ["first.example"]
        issue(authority, files, "second.example", key=False)
        assert names(server, authority) == ["first.example"], "a certificate whose key has not come yet"
        assert "the certificate stays as it was" in caplog.text
        issue(authority, files, "third.example")
        assert names(server, authority) == ["third.example"]
        os.unlink(files["ssl_keyfile"])
        assert names(server, authority) == ["third.example"]
        with pytest.raises(httpx2.HTTPError):
            httpx2.get(url.replace("https", "http") + "/health")


def test_old_protocols_are_refused(tokenizer, authority, files):
    issue(authority, files, "a.example")
    context = tls_context(ServerConfig(**files))
    assert context is not None and context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("spoil", ["missing", "nonsense", "other key", "key alone"])
def test_what_cannot_work_is_said_at_start(authority, files, spoil):
    issue(authority, files, "a.example")
    if spoil == "missing":
        os.unlink(files["ssl_keyfile"])
    elif spoil == "nonsense":
        with open(files["ssl_certfile"], "w") as out:
            out.write("nothing")
    elif spoil == "other key":
        issue(authority, files, "b.example", key=False)
    else:
        files["ssl_certfile"] = ""
    with pytest.raises(ConfigError, match="--ssl-"):
        tls_context(ServerConfig(**files))


def test_without_certificates_there_is_no_tls():
    assert tls_context(ServerConfig()) is None
