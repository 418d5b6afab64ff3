"""Responses that are kept: an SQLite file, bounded, in which those that were unused for longest make room."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from ventoux.server.database import Database
from ventoux.server.errors import ApiError

logger = logging.getLogger(__name__)
T = TypeVar("T")

_VERSION = 1
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
        self._database = Database(path, (_TABLE, _INDEX), _VERSION, "--responses-store")
        self._max_responses = max_responses
        self._max_bytes = max_bytes

    async def open(self) -> None:
        """Raises ConfigError if the file cannot be used."""
        await self._database.open()

    async def close(self) -> None:
        """Nothing can be asked of the store afterwards."""
        await self._database.close()

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
            await self._database.run(lambda connection: self._insert(connection, row))
        except (OSError, sqlite3.Error) as e:
            # The answer is there; that it cannot be kept must not take it away from the client.
            logger.error("%s could not be stored in %s: %s", response_id, self._database.path, e)
            return False
        return True

    async def get(self, response_id: str) -> StoredResponse | None:
        """Raises ApiError 503 if the file cannot be read now."""
        return await self._ask(lambda connection: _select(connection, response_id)[0])

    async def chain(self, response_id: str) -> list[StoredResponse] | None:
        """A response after all those that it goes on from, the first one first; None if any of them is gone.

        All of them count as used now. Raises ApiError 503 if the file cannot be read now.
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
            try:
                with connection:
                    connection.executemany(f"UPDATE responses SET used = {_NEXT_USE} WHERE id = ?", ids[::-1])
            except sqlite3.Error as e:
                # A full disk: they can be read all the same.
                logger.warning("the use of %s could not be noted in %s: %s", response_id, self._database.path, e)
            return found[::-1]

        return await self._ask(walk)

    async def delete(self, response_id: str) -> bool:
        """Returns whether there was one. Raises ApiError 503 if the file cannot be written now."""

        def remove(connection: sqlite3.Connection) -> bool:
            with connection:
                return connection.execute("DELETE FROM responses WHERE id = ?", (response_id,)).rowcount > 0

        return await self._ask(remove)

    async def _ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._database.run(work)
        except (OSError, sqlite3.Error) as e:
            logger.error("%s cannot be used: %s", self._database.path, e)
            raise ApiError(503, "The store of responses cannot be used now.", code="store_unavailable") from None

    def _insert(self, connection: sqlite3.Connection, row: tuple[Any, ...]) -> None:
        with connection:
            connection.execute(
                "INSERT OR REPLACE INTO responses (id, previous, size, response, input, used)"
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
