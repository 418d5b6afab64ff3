"""API keys: from flags and from a file that is read again when it changes; plain or as hashes; each with its limits.

Keys are compared by their SHA-256, which all have one length, each with all: the time taken tells nothing of them. A
plain hash is enough, since keys are long and random; it is passwords that need slow ones.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from ventoux.config import ServerConfig
from ventoux.errors import ConfigError
from ventoux.server.limits import Account, Clock, Limits

logger = logging.getLogger(__name__)

# A changed file is noticed so soon. Asking the file system for each request would cost as much as the comparison.
CHECK_SECONDS = 1.0
MAX_FILE_BYTES = 2**20
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")
# A key may hold the sign itself.
_COMMENT = re.compile(r"(?:^|\s)#")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_LIMITS = tuple(f.name for f in fields(Limits))


@dataclass(frozen=True)
class Key:
    """`name` stands in logs and metrics in place of the key. `is_admin` opens the operator's routes too."""

    name: str
    digest: bytes
    is_admin: bool = False
    limits: Limits = field(default_factory=Limits)


class KeyRing:
    """The keys of a server, and what each has used."""

    def __init__(self, config: ServerConfig, clock: Clock = time.monotonic):
        """Raises ConfigError if the key file cannot be used."""
        self._fixed = [_plain(key, f"key-{i}") for i, key in enumerate(config.api_key, 1)]
        self._fixed += [_plain(key, f"admin-{i}", is_admin=True) for i, key in enumerate(config.admin_api_key, 1)]
        self._path = Path(config.api_key_file).expanduser() if config.api_key_file else None
        self._clock = clock
        self._accounts: dict[bytes, tuple[Key, Account]] = {}
        self._stamp: object = None
        self._checked = clock()
        if self._path is not None:
            self._stamp = _stamp(self._path)
        self._set(read_keys(self._path) if self._path is not None else [])

    @property
    def is_needed(self) -> bool:
        return self._path is not None or bool(self._fixed)

    @property
    def has_admin(self) -> bool:
        """Whether the operator's routes have keys of their own; otherwise any key opens them."""
        return any(key.is_admin for key, _ in self._accounts.values())

    def find(self, given: Iterable[str]) -> tuple[Key, Account] | None:
        """The key that one of the texts is, and its account. Compares each with every key."""
        self._reload()
        found = None
        for text in given:
            digest = _digest(text)
            for known, entry in self._accounts.items():
                if hmac.compare_digest(digest, known):
                    found = entry
        return found

    def _reload(self) -> None:
        """Reads a file that has changed. What cannot be read leaves the keys as they were, and the log says why."""
        if self._path is None or self._clock() - self._checked < CHECK_SECONDS:
            return
        self._checked = self._clock()
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            keys = read_keys(self._path)
        except ConfigError as e:
            logger.error("%s The keys stay as they were.", e)
            return
        self._set(keys)
        logger.info("read %d key(s) from %s", len(keys), self._path)

    def _set(self, keys: Sequence[Key]) -> None:
        """Keys that were there before keep what they have used, unless their limits have changed."""
        before = self._accounts
        self._accounts = {}
        for key in (*keys, *self._fixed):
            _, account = before.get(key.digest, (key, None))
            if account is None or account.limits != key.limits:
                account = Account(key.limits, self._clock)
            self._accounts[key.digest] = key, account


def read_keys(path: Path) -> list[Key]:
    """Reads a key file: per line a key, or sha256: and its hash, then `name=`, `admin` and limits; # begins a comment.

    Raises:
        ConfigError: the file cannot be read, holds no key, or has a bad line, which is named by its number alone.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        lines = data.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"--api-key-file {path}: {reason}.") from e
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"--api-key-file {path}: the file is larger than {MAX_FILE_BYTES} bytes.")
    keys: dict[bytes, Key] = {}
    for number, line in enumerate(lines, 1):
        words = _COMMENT.split(line, 1)[0].split()
        if not words:
            continue
        try:
            key = _parse(words, f"line-{number}")
        except ValueError as e:
            raise ConfigError(f"--api-key-file {path}, line {number}: {e}.") from e
        if key.digest in keys:
            raise ConfigError(f"--api-key-file {path}, line {number}: this key stands in the file twice.")
        keys[key.digest] = key
    if not keys:
        raise ConfigError(f"--api-key-file {path}: the file holds no key.")
    return list(keys.values())


def _parse(words: Sequence[str], name: str) -> Key:
    """Raises ValueError, in words that hold nothing of the key."""
    secret, *options = words
    hashed = _HASHED.fullmatch(secret.lower())
    if secret.lower().startswith("sha256:") and hashed is None:
        raise ValueError("sha256: needs 64 hexadecimal digits after it")
    if not is_key(secret):
        raise ValueError("a key holds printable ASCII characters")
    is_admin, limits = False, {}
    for option in options:
        option_name, equals, value = option.partition("=")
        if option == "admin":
            is_admin = True
        elif option_name == "name" and _NAME.fullmatch(value):
            name = value
        elif option_name in _LIMITS and re.fullmatch(r"[1-9][0-9]{0,11}", value):
            limits[option_name] = int(value)
        else:
            if equals and option_name in ("name", *_LIMITS):
                raise ValueError(f"{option_name} has no such value")
            raise ValueError("after the key: admin, " + ", ".join(f"{known}=" for known in ("name", *_LIMITS)))
    digest = bytes.fromhex(hashed.group(1)) if hashed else _digest(secret)
    return Key(name, digest, is_admin, Limits(**limits))


def is_key(text: str) -> bool:
    """Whether it can be sent in a header."""
    return bool(text) and all("!" <= c <= "~" for c in text)


def _plain(key: str, name: str, *, is_admin: bool = False) -> Key:
    return Key(name, _digest(key), is_admin)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _stamp(path: Path) -> object:
    """Changes whenever the file does; a mounted secret is replaced as a whole, under another inode."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
