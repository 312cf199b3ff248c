"""Sessions as users have them: with the extensions on the search_path, which the product's own sessions do without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import sql

from callipper_db import db


@contextmanager
def user_session(dsn: str, *, autocommit: bool = False) -> Iterator[db.Connection]:
    """A user's connection for one job: committed at the end, rolled back on an error, closed either way."""
    with db.session(dsn, autocommit=autocommit) as connection:
        _see_extensions(connection)
        yield connection


@contextmanager
def rolled_back(dsn: str) -> Iterator[db.Connection]:
    """A user's connection for one test, whose work is rolled back: do not commit."""
    with user_session(dsn) as connection:
        yield connection
        connection.rollback()


def end_other_sessions(dsn: str) -> None:
    """End all sessions in a database, as a server that goes down does."""
    with user_session(dsn) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


def user_connection(dsn: str, *, autocommit: bool = False) -> db.Connection:
    """A user's connection, to be closed by the caller."""
    connection = db.connect(dsn, autocommit=autocommit)
    _see_extensions(connection)
    return connection


def _see_extensions(connection: db.Connection) -> None:
    names = dict.fromkeys(["callipper", *db.extension_schemas(connection).values(), "public"])
    connection.execute(sql.SQL("SET search_path = {}").format(sql.SQL(", ").join(map(sql.Identifier, names))))
    if not connection.autocommit:
        connection.commit()
