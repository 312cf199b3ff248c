"""One training run at a time in a database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from callipper_db import db
from callipper_db.errors import TrainerBusy
from callipper_db.progress import Reporter

TRAIN_LOCK = 0x0CA1_0002  # advisory lock: one training run at a time in a database


@contextmanager
def only_trainer(dsn: str, *, wait: bool, reporter: Reporter) -> Iterator[None]:
    """Hold the database's training lock on a connection of its own; it goes with the process, however that ends."""
    with db.session(dsn, autocommit=True) as connection:
        connection.execute("SET idle_session_timeout = 0")
        while connection.execute("SELECT pg_try_advisory_lock(%s)", [TRAIN_LOCK]).fetchone() == (False,):
            holder = connection.execute(
                "SELECT l.pid, to_char(a.backend_start, 'YYYY-MM-DD HH24:MI') FROM pg_catalog.pg_locks l"
                " LEFT JOIN pg_catalog.pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted"
                " AND l.objid = %s"
                " AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())",
                [TRAIN_LOCK],
            ).fetchone()
            if holder is not None and not wait:
                raise TrainerBusy(pid=holder[0], since=holder[1])
            if wait:
                reporter.note("Another training run is at work in this database; waiting for it.")
                connection.execute("SELECT pg_advisory_lock(%s)", [TRAIN_LOCK])
                break
        yield
