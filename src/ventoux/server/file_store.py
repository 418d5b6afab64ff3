"""Files that clients upload and batches write: in one SQLite file with the batches, bounded, the oldest make room."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ventoux.server.database import Database
from ventoux.server.errors import ApiError
from ventoux.server.generate import new_request_id

logger = logging.getLogger(__name__)
T = TypeVar("T")

_VERSION = 1
# A batch's lines are copied from its input file, so that the file can be deleted, and a line be found at once.
# `size` of a batch: the bytes of its lines and of their results.
_TABLES = (
    """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, created INTEGER NOT NULL, expires INTEGER,
    purpose TEXT NOT NULL, filename TEXT NOT NULL, size INTEGER NOT NULL, content BLOB NOT NULL
)
""",
    """
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, status TEXT NOT NULL, served TEXT NOT NULL,
    owner TEXT NOT NULL, lease REAL NOT NULL, input_file TEXT NOT NULL, total INTEGER NOT NULL,
    completed INTEGER NOT NULL, failed INTEGER NOT NULL, size INTEGER NOT NULL, record BLOB NOT NULL
)
""",
    """
CREATE TABLE IF NOT EXISTS lines (
    batch TEXT NOT NULL, number INTEGER NOT NULL, custom_id TEXT NOT NULL, body BLOB NOT NULL,
    result BLOB, failed INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (batch, number)
)
""",
)
_FIELDS = "id, created, expires, purpose, filename, size"
# Apart from `content`, so that listing reads none.
_LISTED = f"SELECT {_FIELDS} FROM files"
# A file takes a page at least: a million of one byte are not a megabyte.
_TAKEN = "MAX(size, 4096)"
_ALIVE = "(expires IS NULL OR expires > ?)"


class StoreFullError(Exception):
    """There is no file left that could make room."""


class FileStore:
    """The database is opened at the first use, or by `database.open`. All methods raise ApiError 503 if it fails.

    Args:
        max_bytes: Of all files, and of all lines and results of batches together.
    """

    def __init__(self, path: Path, max_bytes: int):
        self.database = Database(path, _TABLES, _VERSION, "--files-store")
        self.max_bytes = max_bytes

    async def ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` in the thread of the database, within one transaction."""

        def run(connection: sqlite3.Connection) -> T:
            with connection:
                return work(connection)

        try:
            return await self.database.run(run)
        except (OSError, sqlite3.Error) as e:
            logger.error("%s cannot be used: %s", self.database.path, e)
            raise ApiError(503, "The store of files cannot be used now.", code="store_unavailable") from None

    async def add(self, filename: str, purpose: str, content: bytes, seconds: int | None) -> dict[str, Any]:
        """Keeps a file, for so many seconds. Raises ApiError 413 if there is no room that could be made for it."""
        now = int(time.time())
        file_id = new_request_id("file-")
        expires = None if seconds is None else now + seconds
        row = (file_id, now, expires, purpose, filename, len(content), content)

        def insert(connection: sqlite3.Connection) -> None:
            self.make_room(connection, len(content))
            connection.execute(f"INSERT INTO files ({_FIELDS}, content) VALUES (?, ?, ?, ?, ?, ?, ?)", row)

        try:
            await self.ask(insert)
        except StoreFullError:
            message = f"All files together may have {self.max_bytes} bytes, and there is no room for this one."
            raise ApiError(413, message, code="storage_full") from None
        return _file_object(row[:-1])

    async def get(self, file_id: str) -> dict[str, Any] | None:
        rows = await self.ask(
            lambda c: c.execute(f"{_LISTED} WHERE id = ? AND {_ALIVE}", (file_id, time.time())).fetchall()
        )
        return _file_object(rows[0]) if rows else None

    async def list(self) -> list[dict[str, Any]]:
        """All files, the oldest first."""
        rows = await self.ask(
            lambda c: c.execute(f"{_LISTED} WHERE {_ALIVE} ORDER BY number", (time.time(),)).fetchall()
        )
        return [_file_object(row) for row in rows]

    async def read(self, file_id: str, offset: int = 0, count: int = -1) -> bytes | None:
        """`count` bytes of a file, or all that follow `offset`; None if it is gone."""

        def read(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute("SELECT number FROM files WHERE id = ?", (file_id,)).fetchone()
            if row is None:
                return None
            with connection.blobopen("files", "content", row[0], readonly=True) as blob:
                blob.seek(min(offset, len(blob)))
                return blob.read(count)

        return await self.ask(read)

    async def delete(self, file_id: str) -> bool:
        """Returns whether there was one."""
        return await self.ask(lambda c: c.execute("DELETE FROM files WHERE id = ?", (file_id,)).rowcount > 0)

    def make_room(self, connection: sqlite3.Connection, num_bytes: int) -> None:
        """Deletes the oldest files until so many bytes fit; not those that a batch is still to read.

        Raises:
            StoreFullError: that does not suffice; nothing is deleted then.
        """
        connection.execute(f"DELETE FROM files WHERE NOT {_ALIVE}", (time.time(),))
        (used,) = connection.execute(
            f"SELECT (SELECT COALESCE(SUM({_TAKEN}), 0) FROM files) + (SELECT COALESCE(SUM(size), 0) FROM batches)"
        ).fetchone()
        old = connection.execute(
            f"SELECT id, {_TAKEN} FROM files"
            " WHERE id NOT IN (SELECT input_file FROM batches WHERE status = 'validating') ORDER BY number"
        )
        dropped = []
        while used + num_bytes > self.max_bytes:
            row = old.fetchone()
            if row is None:
                raise StoreFullError
            used -= row[1]
            dropped.append((row[0],))
        connection.executemany("DELETE FROM files WHERE id = ?", dropped)


def _file_object(row: tuple[Any, ...]) -> dict[str, Any]:
    file_id, created, expires, purpose, filename, size = row
    return {
        "id": file_id,
        "object": "file",
        "bytes": size,
        "created_at": created,
        "expires_at": expires,
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
        "status_details": None,
    }
