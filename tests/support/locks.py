"""Locks that a test holds, and sessions that it waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg import sql

from processes import wait_for


@contextmanager
def locked(dsn: str, relation: str) -> Iterator[Callable[[], None]]:
    """Nobody gets through this relation of the schema. Yields what waits until someone tries."""
    with psycopg.connect(dsn) as connection:
        statement = "LOCK TABLE callipper.{} IN {} MODE"
        mode = sql.SQL("ACCESS EXCLUSIVE" if relation in ("poi", "text_vector") else "SHARE")
        connection.execute(sql.SQL(statement).format(sql.Identifier(relation), mode))
        query = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
        yield lambda: wait_for(lambda: connection.execute(query, [f"callipper.{relation}"]).fetchone())
        with suppress(psycopg.OperationalError):  # the server may be gone
            connection.rollback()


@contextmanager
def locked_row(dsn: str, table: str, row: int) -> Iterator[Callable[[], None]]:
    """Nobody changes this row, by its id, of a table. Yields what waits until someone tries."""
    with psycopg.connect(dsn) as connection:
        statement = sql.SQL("SELECT FROM {} WHERE id = %s FOR UPDATE").format(sql.Identifier(*table.split(".")))
        connection.execute(statement, [row])
        query = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
        yield lambda: wait_for(lambda: connection.execute(query).fetchone())
        with suppress(psycopg.OperationalError):  # the server may be gone
            connection.rollback()


def wait_until_alone(dsn: str, others: int = 0) -> None:
    """The server notices that a client is gone when it next speaks to it."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with psycopg.connect(dsn, autocommit=True) as connection:
        wait_for(lambda: connection.execute(query).fetchone() == (others,))
