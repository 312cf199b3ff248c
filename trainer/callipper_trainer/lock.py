"""One training run at a time in a database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg

from callipper_db import db
from callipper_db.errors import TrainerBusy
from callipper_db.progress import Reporter

LOCK = "LOCK TABLE callipper.training_lock IN SHARE UPDATE EXCLUSIVE MODE"
# The lock is held while the server hears nothing on this connection. transaction_timeout came with PostgreSQL 17.
NO_TIMEOUTS = """
    SELECT set_config(name, '0', true) FROM pg_catalog.pg_settings WHERE name = ANY (ARRAY[
        'idle_in_transaction_session_timeout', 'transaction_timeout', 'statement_timeout', 'lock_timeout'])
"""
HOLDER = """
    SELECT l.pid, coalesce(to_char(a.xact_start, 'YYYY-MM-DD HH24:MI'), 'a time that this role may not see')
    FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a USING (pid)
    WHERE l.granted AND l.mode = 'ShareUpdateExclusiveLock' AND l.relation = 'callipper.training_lock'::regclass
        AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
"""


@contextmanager
def only_trainer(dsn: str, *, wait: bool, reporter: Reporter) -> Iterator[Callable[[], None]]:
    """Hold the database's training lock; yields a check that it is still held, which raises ConnectionLost.

    It is a relation's lock in an open transaction on a connection of its own. So it goes with the connection, however that
    ends, no pooler hands it on, and only a role that may change the view can take it. The transaction has no snapshot and
    writes nothing, so it keeps VACUUM from nothing. Raises TrainerBusy.
    """
    with db.session(dsn) as connection:
        _take(connection, wait=wait, reporter=reporter)

        def check() -> None:
            with db.driver_errors():
                connection.execute("SELECT")

        try:
            yield check
        finally:
            # After close() alone, the lock stays until the server notices, and the next run could find it taken. If the
            # connection is lost, there is nothing to roll back.
            with suppress(psycopg.Error):
                connection.rollback()
            connection.close()


def _take(connection: db.Connection, *, wait: bool, reporter: Reporter) -> None:
    while True:
        connection.execute(NO_TIMEOUTS)
        try:
            connection.execute(f"{LOCK} NOWAIT")
            return
        except psycopg.errors.LockNotAvailable:
            connection.rollback()
        if wait:
            reporter.note("Another training run is at work in this database; waiting for it.")
            connection.execute(NO_TIMEOUTS)
            connection.execute(LOCK)
            return
        if holder := connection.execute(HOLDER).fetchone():
            raise TrainerBusy(pid=holder[0], since=holder[1])
        connection.rollback()  # it has just ended
