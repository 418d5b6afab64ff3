"""TLS: certificate and key from files; changed files are used from the next connection on."""

from __future__ import annotations

import logging
import os
import ssl
import time

from ventoux.config import ServerConfig
from ventoux.errors import ConfigError

logger = logging.getLogger(__name__)
# Changed files are looked for so often, and only while somebody connects.
CHECK_SECONDS = 1.0


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """None without certificates. Raises ConfigError if they cannot be used."""
    if not config.ssl_certfile:
        if config.ssl_keyfile:
            raise ConfigError("--ssl-keyfile needs --ssl-certfile.")
        return None
    try:
        return Certificates(config.ssl_certfile, config.ssl_keyfile or None).context
    except (OSError, ValueError) as e:
        raise ConfigError(f"--ssl-certfile {config.ssl_certfile}: certificate and key cannot be used ({e}).") from e


class Certificates:
    """A context whose connections get the latest certificate; renewals need no restart.

    A certificate and its key are two files, which cannot change at the same moment: a pair that does not fit is left
    for a later look.
    """

    def __init__(self, certfile: str, keyfile: str | None):
        """Raises OSError or ValueError (ssl.SSLError is one) if the files cannot be used."""
        self._files = (certfile, keyfile)
        self._stamp = self._read_stamp()
        self._checked = time.monotonic()
        self._latest = self.context = self._load()
        # Called in every handshake, with or without a name.
        self.context.sni_callback = self._on_handshake

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # Without a password to be asked for: a server has nobody at its keyboard.
        context.load_cert_chain(*self._files, password=lambda: "")
        return context

    def _on_handshake(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        self._reload()
        if self._latest is not context:
            connection.context = self._latest

    def _reload(self) -> None:
        now = time.monotonic()
        if now - self._checked < CHECK_SECONDS:
            return
        self._checked = now
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        try:
            self._latest = self._load()
        except (OSError, ValueError) as e:
            logger.error("%s cannot be used (%s); the certificate stays as it was", self._files[0], e)
        else:
            logger.info("read the certificate %s again", self._files[0])
        self._stamp = stamp

    def _read_stamp(self) -> list[object]:
        stamps: list[object] = []
        for name in filter(None, self._files):
            try:
                status = os.stat(name)
            except OSError:
                stamps.append(None)
            else:
                stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return stamps
