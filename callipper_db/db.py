"""Connections: the only place that opens them, and where the driver's errors become ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from callipper_db.errors import ConnectionFailed, ConnectionLost, DatabaseFailed, DiskFull

Connection = psycopg.Connection[tuple[Any, ...]]


def connect(dsn: str, *, autocommit: bool = False) -> Connection:
    """Open a connection. Its search_path holds only `callipper` and the schemas of the two extensions.

    Raises ConnectionFailed with the password left out of the message.
    """
    try:
        connection = psycopg.connect(
            dsn, autocommit=autocommit, application_name="callipper-db", keepalives_idle=30, client_encoding="UTF8"
        )
    except psycopg.Error as error:
        raise ConnectionFailed(dsn=hide_password(dsn), reason=_one_line(error)) from error
    extensions = extension_schemas(connection)
    # pg_temp is left out: so it comes first, and a temporary table of ours never gives way to a user's table of that name.
    names = dict.fromkeys(["callipper", *extensions.values(), "public"])
    connection.execute(sql.SQL("SET search_path = {}").format(sql.SQL(", ").join(map(sql.Identifier, names))))
    if not autocommit:
        connection.commit()
    return connection


def extension_schemas(connection: Connection) -> dict[str, str]:
    """The schemas that hold `postgis` and `vector`, for those of the two that are installed."""
    return dict(
        connection.execute(
            "SELECT extname::text, nspname::text FROM pg_catalog.pg_extension JOIN pg_catalog.pg_namespace n"
            " ON n.oid = extnamespace WHERE extname IN ('postgis', 'vector')"
        ).fetchall()
    )


@contextmanager
def session(dsn: str, *, autocommit: bool = False) -> Iterator[Connection]:
    """A connection for one job: committed at the end, rolled back on an error, closed either way."""
    with driver_errors(), connect(dsn, autocommit=autocommit) as connection:
        yield connection


@contextmanager
def driver_errors() -> Iterator[None]:
    """Turn an error of the driver into one of ours; the cause is kept."""
    try:
        yield
    except psycopg.errors.DiskFull as error:
        raise DiskFull(reason=_one_line(error)) from error
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        if error.sqlstate is None or error.sqlstate.startswith(("08", "57P")):
            raise ConnectionLost(reason=_one_line(error)) from error
        raise DatabaseFailed(reason=_with_hint(error)) from error
    except psycopg.Error as error:
        raise DatabaseFailed(reason=_with_hint(error)) from error


def version_tuple(version: str) -> tuple[int, ...]:
    """'0.8.3' as (0, 8, 3); what follows a digit group that is no number is dropped."""
    digits = (part for part in version.replace("-", ".").split("."))
    return tuple(int(part) for part in digits if part.isdecimal())


def hide_password(dsn: str) -> str:
    """The DSN as key=value pairs, without its password, for messages and logs."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        return "(a DSN that does not parse)"
    return make_conninfo("", **{key: value for key, value in parts.items() if key != "password"})


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _with_hint(error: psycopg.Error) -> str:
    hint = error.diag.message_hint
    message = error.diag.message_primary or _one_line(error)
    return f"{message}. {hint}" if hint else message
