"""Batches with their lines, in the database of the files: what a server that is started again goes on from."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import msgspec

from ventoux.server.errors import ApiError
from ventoux.server.file_store import FileStore
from ventoux.server.generate import new_request_id

ENDED = ("completed", "failed", "expired", "cancelled")
# Batches that are kept to be looked at, and those that may wait.
MAX_BATCHES = 1000
MAX_UNFINISHED = 100
# Seconds after which a batch may be taken over from a server that gives no sign of life.
LEASE = 30.0
_COLUMNS = "id, status, total, completed, failed, record"


class Line(NamedTuple):
    """One request of a batch."""

    number: int
    custom_id: str
    body: bytes


class BatchStore:
    """All methods raise ApiError 503 if the database fails."""

    def __init__(self, files: FileStore):
        self._files = files

    async def add(self, record: dict[str, Any], served: str) -> None:
        """Keeps a new batch, for a server of this model. Raises ApiError 429 if too many wait already."""

        def insert(connection: sqlite3.Connection) -> bool:
            marks = ", ".join("?" * len(ENDED))
            query = f"SELECT COUNT(*) FROM batches WHERE status NOT IN ({marks})"
            if connection.execute(query, ENDED).fetchone()[0] >= MAX_UNFINISHED:
                return False
            connection.execute(
                f"DELETE FROM batches WHERE status IN ({marks}) AND number <= (SELECT MAX(number) FROM batches) - ?",
                (*ENDED, MAX_BATCHES),
            )
            connection.execute(
                f"INSERT INTO batches ({_COLUMNS}, served, owner, lease, input_file, size)"
                " VALUES (?, 'validating', 0, 0, 0, ?, ?, '', 0, ?, 0)",
                (record["id"], msgspec.json.encode(record), served, record["input_file_id"]),
            )
            return True

        if not await self._files.ask(insert):
            raise ApiError(429, f"{MAX_UNFINISHED} batches wait already; try again later.", code="too_many_batches")

    async def get(self, batch_id: str) -> dict[str, Any] | None:
        return await self._files.ask(lambda connection: _select(connection, batch_id))

    async def list(self) -> list[dict[str, Any]]:
        """All batches, the newest first."""
        query = f"SELECT {_COLUMNS} FROM batches ORDER BY number DESC"
        return await self._files.ask(lambda c: [_batch_object(row) for row in c.execute(query)])

    async def move(
        self, batch_id: str, before: Collection[str], status: str, **fields: Any
    ) -> tuple[dict[str, Any] | None, bool]:
        """Gives a batch that is in one of the states `before` another one; (the batch, whether it was)."""

        def update(connection: sqlite3.Connection) -> tuple[dict[str, Any] | None, bool]:
            batch = _select(connection, batch_id)
            if batch is None or batch["status"] not in before:
                return batch, False
            _set_status(connection, batch, status, fields)
            return _select(connection, batch_id), True

        return await self._files.ask(update)

    async def claim(self, owner: str, served: str) -> dict[str, Any] | None:
        """The oldest unfinished batch that no other server works on: for this model, or to be ended without one."""

        def take(connection: sqlite3.Connection) -> dict[str, Any] | None:
            marks = ", ".join("?" * len(ENDED))
            now = time.time()
            # One statement: two servers that share the file cannot both take it.
            row = connection.execute(
                "UPDATE batches SET owner = ?, lease = ? WHERE number = (SELECT number FROM batches"
                f" WHERE status NOT IN ({marks}) AND (owner = ? OR lease < ?)"
                " AND (served = ? OR status = 'cancelling' OR json_extract(CAST(record AS TEXT), '$.expires_at') < ?)"
                " ORDER BY number LIMIT 1) RETURNING id",
                (owner, now + LEASE, *ENDED, owner, now, served, now),
            ).fetchone()
            return None if row is None else _select(connection, row[0])

        return await self._files.ask(take)

    async def renew(self, batch_id: str, owner: str) -> str:
        """Says that the owner works on; returns the batch's status."""

        def renew(connection: sqlite3.Connection) -> str:
            _renew(connection, batch_id, owner)
            return connection.execute("SELECT status FROM batches WHERE id = ?", (batch_id,)).fetchone()[0]

        return await self._files.ask(renew)

    async def release(self, owner: str) -> None:
        """The owner works on nothing any more."""
        await self._files.ask(lambda c: c.execute("UPDATE batches SET lease = 0 WHERE owner = ?", (owner,)))

    async def begin(self, batch_id: str, lines: Sequence[Line]) -> None:
        """Keeps the lines of a batch that has been found good. Raises StoreFullError."""
        size = sum(len(line.body) for line in lines)

        def insert(connection: sqlite3.Connection) -> None:
            batch = _select(connection, batch_id)
            if batch is None or batch["status"] != "validating":
                return
            self._files.make_room(connection, size)
            connection.executemany(
                "INSERT INTO lines (batch, number, custom_id, body) VALUES (?, ?, ?, ?)",
                ((batch_id, *line) for line in lines),
            )
            connection.execute("UPDATE batches SET total = ?, size = ? WHERE id = ?", (len(lines), size, batch_id))
            _set_status(connection, batch, "in_progress", {"in_progress_at": int(time.time())})

        await self._files.ask(insert)

    async def unanswered(self, batch_id: str) -> list[int]:
        """The numbers of the lines that have no result."""
        query = "SELECT number FROM lines WHERE batch = ? AND result IS NULL ORDER BY number"
        return await self._files.ask(lambda c: [number for (number,) in c.execute(query, (batch_id,))])

    async def line(self, batch_id: str, number: int) -> Line:
        query = "SELECT number, custom_id, body FROM lines WHERE batch = ? AND number = ?"
        return await self._files.ask(lambda c: Line(*c.execute(query, (batch_id, number)).fetchone()))

    async def answer(self, batch_id: str, number: int, result: bytes, *, failed: bool) -> None:
        """Keeps the result of a line, unless it has one: work that was given up may have got that far. Raises
        StoreFullError."""

        def update(connection: sqlite3.Connection) -> None:
            self._files.make_room(connection, len(result))
            kept = connection.execute(
                "UPDATE lines SET result = ?, failed = ? WHERE batch = ? AND number = ? AND result IS NULL",
                (result, failed, batch_id, number),
            )
            if kept.rowcount == 0:
                return
            connection.execute(
                "UPDATE batches SET completed = completed + ?, failed = failed + ?, size = size + ? WHERE id = ?",
                (not failed, failed, len(result), batch_id),
            )

        await self._files.ask(update)

    async def finish(self, batch_id: str, status: str, error: dict[str, Any] | None, **fields: Any) -> None:
        """Ends a batch: its results become an output file and a file of errors, each only if it holds anything.

        Args:
            error: What happened to the lines without a result.
            fields: More of the batch's fields, such as the time.
        """

        def end(connection: sqlite3.Connection) -> None:
            batch = _select(connection, batch_id)
            if batch is None or batch["status"] in ENDED:
                # Another server has ended it. Its lines are gone, and with them what files could be made of.
                return
            if error is not None:
                _fill(connection, batch_id, error)
            names = {}
            for failed, field in ((0, "output_file_id"), (1, "error_file_id")):
                names[field] = _collect(connection, batch_id, failed, f"{batch_id}_{field[:-8]}.jsonl")
            connection.execute("DELETE FROM lines WHERE batch = ?", (batch_id,))
            connection.execute("UPDATE batches SET size = 0 WHERE id = ?", (batch_id,))
            _set_status(connection, batch, status, {**names, **fields})

        await self._files.ask(end)


def _select(connection: sqlite3.Connection, batch_id: str) -> dict[str, Any] | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM batches WHERE id = ?", (batch_id,)).fetchone()
    return None if row is None else _batch_object(row)


def _batch_object(row: tuple[Any, ...]) -> dict[str, Any]:
    _, status, total, completed, failed, record = row
    counts = {"total": total, "completed": completed, "failed": failed}
    return {**msgspec.json.decode(record), "status": status, "request_counts": counts}


def _set_status(connection: sqlite3.Connection, batch: dict[str, Any], status: str, fields: dict[str, Any]) -> None:
    record = msgspec.json.encode({**batch, **fields})
    connection.execute("UPDATE batches SET status = ?, record = ? WHERE id = ?", (status, record, batch["id"]))


def _renew(connection: sqlite3.Connection, batch_id: str, owner: str) -> None:
    row = (owner, time.time() + LEASE, batch_id)
    connection.execute("UPDATE batches SET owner = ?, lease = ? WHERE id = ?", row)


def _fill(connection: sqlite3.Connection, batch_id: str, error: dict[str, Any]) -> None:
    """Gives all lines without a result this one."""
    query = "SELECT number, custom_id FROM lines WHERE batch = ? AND result IS NULL"
    rows = [
        (result_line(custom_id, None, error), batch_id, number)
        for number, custom_id in connection.execute(query, (batch_id,)).fetchall()
    ]
    connection.executemany("UPDATE lines SET result = ?, failed = 1 WHERE batch = ? AND number = ?", rows)


def result_line(custom_id: str, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    """A line of an output file, or of a file of errors."""
    fields = {"id": new_request_id("batch_req_"), "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(fields)


def _collect(connection: sqlite3.Connection, batch_id: str, failed: int, filename: str) -> str | None:
    """Joins results to a file, without holding them in memory; None if there are none."""
    where = "FROM lines WHERE batch = ? AND result IS NOT NULL AND failed = ?"
    size = connection.execute(f"SELECT SUM(LENGTH(result) + 1) {where}", (batch_id, failed)).fetchone()[0]
    if size is None:
        return None
    file_id = new_request_id("file-")
    number = connection.execute(
        "INSERT INTO files (id, created, purpose, filename, size, content)"
        " VALUES (?, ?, 'batch_output', ?, ?, zeroblob(?))",
        (file_id, int(time.time()), filename, size, size),
    ).lastrowid
    assert number is not None
    with connection.blobopen("files", "content", number) as blob:
        for (result,) in connection.execute(f"SELECT result {where} ORDER BY number", (batch_id, failed)):
            blob.write(result + b"\n")
    return file_id
