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
