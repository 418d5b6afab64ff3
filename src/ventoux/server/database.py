"""One SQLite file, and the thread in which all its work is done, so that a slow disk holds up nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ventoux.errors import ConfigError

T = TypeVar("T")
# secure_delete: what a client deletes is overwritten. With a write-ahead log a commit costs no wait for the disk; what
# a power cut takes is the last answers, never the file.
_SETTINGS = ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000", "secure_delete=ON")


class Database:
    """The file is opened at the first use, or by `open`.

    Args:
        path: Made if missing, readable by its owner alone. A leading ~ is the user's home.
        tables: Statements that make what the file does not have yet.
        version: Of these tables; a file with others is refused.
        flag: The flag that names the file, for errors.
    """

    def __init__(self, path: Path, tables: Sequence[str], version: int, flag: str):
        self.path = path
        self._tables = tables
        self._version = version
        self._flag = flag
        self._thread = ThreadPoolExecutor(1, f"ventoux{flag[1:]}")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    @property
    def exists(self) -> bool:
        """Whether somebody has used it already."""
        try:
            return self.path.expanduser().exists()
        except (OSError, RuntimeError):
            return False

    async def open(self) -> None:
        """Raises ConfigError if the file cannot be used."""
        try:
            await self.run(lambda _: None)
        except (OSError, sqlite3.Error) as e:
            raise ConfigError(f"{self._flag} {self.path}: this file cannot be used ({e}).") from e

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` in the thread of this file. Raises what it raises, and OSError, sqlite3.Error."""

        def run() -> T:
            if self._connection is None:
                self._connection = self._connect()
            return work(self._connection)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    async def close(self) -> None:
        """Nothing can be asked of the file afterwards."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
            self._thread.shutdown(wait=False)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> sqlite3.Connection:
        try:
            path = self.path.expanduser()
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
            if version not in (0, self._version):
                message = f"it was made by another version of Ventoux: {version}, not {self._version}"
                raise sqlite3.DatabaseError(message)
            with connection:
                for statement in self._tables:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={self._version}")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
            raise
        return connection
