"""Responses that are kept: an SQLite file, bounded, in which those that were unused for longest make room.

One thread of its own does all the work, so that a slow disk holds up nobody but those who wait for this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from ventoux.errors import ConfigError

logger = logging.getLogger(__name__)
T = TypeVar("T")

_VERSION = 1
# secure_delete: what a client deletes is overwritten. With a write-ahead log a commit costs no wait for the disk; what
# a power cut takes is the last responses, never the file.
_SETTINGS = ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000", "secure_delete=ON")
_TABLE = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, previous TEXT, used INTEGER NOT NULL, size INTEGER NOT NULL,
    response BLOB NOT NULL, input BLOB NOT NULL
)
"""
# Holds both columns, so that adding up sizes reads no response.
_INDEX = "CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used, size)"
_NEXT_USE = "(SELECT COALESCE(MAX(used), 0) + 1 FROM responses)"


class StoredResponse(NamedTuple):
    """A response object as clients get it, and the items that its own request brought."""

    response: dict[str, Any]
    input: list[dict[str, Any]]


class ResponseStore:
    """The file is opened at the first use, or by `open`.

    Args:
        path: Made if missing, readable by its owner alone. A leading ~ is the user's home.
        max_responses: More are dropped, and also those beyond `max_bytes` of content together.
    """

    def __init__(self, path: Path, max_responses: int, max_bytes: int):
        self._path = path
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._thread = ThreadPoolExecutor(1, "ventoux-responses")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    async def open(self) -> None:
        """Raises ConfigError if the file cannot be used."""
        try:
            await self._run(lambda _: None)
        except (OSError, sqlite3.Error) as e:
            raise ConfigError(f"--responses-store {self._path}: this file cannot be used ({e}).") from e

    async def close(self) -> None:
        """Nothing can be asked of the store afterwards."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
            self._thread.shutdown(wait=False)

    async def put(self, stored: StoredResponse) -> bool:
        """Keeps a response. Returns False, after a line in the log, if that was not possible."""
        response_id = stored.response["id"]
        response, items = msgspec.json.encode(stored.response), msgspec.json.encode(stored.input)
        size = len(response) + len(items)
        if size > self._max_bytes:
            logger.warning("%s is not stored: it has %d bytes, more than all may have", response_id, size)
            return False
        row = (response_id, stored.response["previous_response_id"], size, response, items)
        try:
            await self._run(lambda connection: self._insert(connection, row))
        except (OSError, sqlite3.Error) as e:
            # The answer is there; that it cannot be kept must not take it away from the client.
            logger.error("%s could not be stored in %s: %s", response_id, self._path, e)
            return False
        return True

    async def get(self, response_id: str) -> StoredResponse | None:
        return await self._run(lambda connection: _select(connection, response_id)[0])

    async def chain(self, response_id: str) -> list[StoredResponse] | None:
        """A response after all those that it goes on from, the first one first; None if any of them is gone.

        All of them count as used now.
        """

        def walk(connection: sqlite3.Connection) -> list[StoredResponse] | None:
            found, ids, at = [], [], response_id
            while at is not None:
                stored, previous = _select(connection, at)
                if stored is None:
                    return None
                found.append(stored)
                ids.append((at,))
                at = previous
            with connection:
                connection.executemany(f"UPDATE responses SET used = {_NEXT_USE} WHERE id = ?", ids[::-1])
            return found[::-1]

        return await self._run(walk)

    async def delete(self, response_id: str) -> bool:
        """Returns whether there was one."""

        def remove(connection: sqlite3.Connection) -> bool:
            with connection:
                return connection.execute("DELETE FROM responses WHERE id = ?", (response_id,)).rowcount > 0

        return await self._run(remove)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            if self._connection is None:
                self._connection = _connect(self._path)
            return work(self._connection)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _insert(self, connection: sqlite3.Connection, row: tuple[Any, ...]) -> None:
        with connection:
            connection.execute(
                "INSERT INTO responses (id, previous, size, response, input, used)"
                f" VALUES (?, ?, ?, ?, ?, {_NEXT_USE})",
                row,
            )
            count, size = connection.execute("SELECT COUNT(*), SUM(size) FROM responses").fetchone()
            while count > self._max_responses or size > self._max_bytes:
                oldest, freed = connection.execute("SELECT id, size FROM responses ORDER BY used LIMIT 1").fetchone()
                connection.execute("DELETE FROM responses WHERE id = ?", (oldest,))
                count, size = count - 1, size - freed


def _select(connection: sqlite3.Connection, response_id: str) -> tuple[StoredResponse | None, str | None]:
    """A response, and the id of the one that it goes on from."""
    query = "SELECT response, input, previous FROM responses WHERE id = ?"
    row = connection.execute(query, (response_id,)).fetchone()
    if row is None:
        return None, None
    return StoredResponse(msgspec.json.decode(row[0]), msgspec.json.decode(row[1])), row[2]


def _connect(path: Path) -> sqlite3.Connection:
    """Raises OSError, sqlite3.Error."""
    try:
        path = path.expanduser()
    except RuntimeError as e:
        raise OSError("this user has no home folder") from e
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives its other files the rights of this one.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path)
    try:
        for setting in _SETTINGS:
            connection.execute(f"PRAGMA {setting}")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError(f"it was made by another version of Ventoux: {version}, not {_VERSION}")
        with connection:
            connection.execute(_TABLE)
            connection.execute(_INDEX)
            connection.execute(f"PRAGMA user_version={_VERSION}")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.close()
        raise
    return connection
