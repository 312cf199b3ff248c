"""Free space on the disk of a server on this machine. For a server elsewhere nothing is known, so nothing is refused."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from callipper_db.db import Connection
from callipper_db.errors import DiskTooSmall

FULL = "No space left on device"  # as the system says it, in the server's log too
RESERVE_BYTES = 64 * 2**20  # four segments of the write-ahead log: without room for the next one the whole server stops


def check_room(connection: Connection, rows_bytes: int, what: str, *, fresh: bool = False) -> None:
    """Raise DiskTooSmall when rows of that many bytes do not fit, in the table and in the write-ahead log.

    fresh: they go into a table of the same transaction, whose rows the log leaves out where wal_level is minimal.
    """
    found = _free(connection)
    if found is None:
        return
    path, free = found
    logged = not fresh or connection.one("SHOW wal_level") != ("minimal",)
    needed = rows_bytes * (2 if logged else 1) + RESERVE_BYTES
    if needed > free:
        raise DiskTooSmall(what=what, needed=f"{needed / 2**20:.0f}", free=f"{free / 2**20:.0f}", path=path)


def _free(connection: Connection) -> tuple[Path, int] | None:
    """The folder with less free space, of data and write-ahead log, and its free bytes."""
    folder = _data_directory(connection)
    found = []
    for path in [folder, folder / "pg_wal"] if folder else []:
        with suppress(OSError):  # of another user
            found.append((path, shutil.disk_usage(path).free))
    return min(found, key=lambda pair: pair[1], default=None)


def _data_directory(connection: Connection) -> Path | None:
    """The server's data folder; None if it is on another machine, or this role may not know it."""
    socket = connection.info.host
    if not socket.startswith("/"):
        return None
    # A role that may not see a setting gets no row.
    row = connection.execute("SELECT setting FROM pg_catalog.pg_settings WHERE name = 'data_directory'").fetchone()
    if row is not None:
        return Path(row[0])
    with suppress(OSError):
        if (Path(socket) / "PG_VERSION").exists():  # the embedded server has its socket among the data
            return Path(socket)
    return None
