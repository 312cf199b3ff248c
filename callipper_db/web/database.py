"""The map's way to the database: a bounded pool, and read-only transactions with a time limit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import psycopg_pool
from psycopg.rows import dict_row

from callipper_db import db
from callipper_db.errors import AnswerTooSlow, AnswerUnusable, MapBusy, NoActiveModel, NotInitialised, UnknownModel
from callipper_db.web.cache import Cache
from callipper_db.web.settings import MapSettings

READER = "callipper_reader"
BEGIN = (
    "SELECT pg_catalog.set_config('search_path', %s::text, true),"
    " pg_catalog.set_config('statement_timeout', %s::text, true)"
)
AS_READER = f"SELECT pg_catalog.set_config('role', '{READER}', true)"
STAMP_HOLDS_S = 1.0  # how long the name of the active model is trusted; a tile asks for it too


class MapDatabase:
    """Read-only access for many requests at once."""

    def __init__(self, settings: MapSettings) -> None:
        self.settings = settings
        self.pool = db.open_pool(settings.dsn, settings.connections, settings.waiting, settings.wait_s)
        self._as_reader: bool | None = None
        self._stamp: tuple[str, float] | None = None
        self._reached: Cache[None] = Cache(room=0)  # keeps nothing: those who wait at once share one attempt

    def close(self) -> None:
        """Close all connections."""
        self.pool.close()

    @contextmanager
    def reading(self) -> Iterator[db.Connection]:
        """A read-only transaction with a time limit, as callipper_reader where the role may be taken.

        Raises MapBusy, AnswerTooSlow, AnswerUnusable (the database refuses what was asked), NoActiveModel, UnknownModel, and
        the errors of db.driver_errors.
        """
        with self._saying_why(), self._connection() as connection:
            connection.execute(BEGIN, [db.SEARCH_PATH, f"{int(1000 * self.settings.timeout_s)}ms"])
            if self._as_reader is None:
                self._as_reader = _may_be_reader(connection)
            if self._as_reader:
                connection.execute(AS_READER)
            yield connection

    def rows(self, connection: db.Connection, statement: str, **values: object) -> list[dict[str, Any]]:
        """The rows of one of our statements, in which PostGIS and pgvector get their schemas."""
        with connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(connection.named(statement), values).fetchall()

    def bytes_of(self, connection: db.Connection, statement: str, *values: object) -> bytes:
        """What a function returns that makes a file, such as a tile; nothing for NULL."""
        row = connection.execute(connection.named(statement), values).fetchone()
        return bytes(row[0]) if row and row[0] is not None else b""

    def version_of(self, asked: int | None) -> int:
        """The model version that is asked: the active one for None. Raises NoActiveModel."""
        return asked or int(self.stamp().partition(".")[0])

    def stamp(self) -> str:
        """The name of what is answered now: the active version and its last change. Raises NoActiveModel."""
        kept = self._stamp
        if kept and time.monotonic() - kept[1] < STAMP_HOLDS_S:
            return kept[0]
        with self.reading() as connection:
            return self.stamp_of(connection)

    def stamp_of(self, connection: db.Connection) -> str:
        """The same within a transaction. To ask for a second connection there would block where all are taken."""
        row = connection.execute("SELECT callipper._stamp()").fetchone()
        assert row is not None
        self._stamp = str(row[0]), time.monotonic()
        return self._stamp[0]

    def forget(self) -> None:
        """Look at once for another active model."""
        self._stamp = None

    @contextmanager
    def _connection(self) -> Iterator[db.Connection]:
        try:
            connection = self.pool.getconn()
        except psycopg_pool.TooManyRequests as error:
            raise MapBusy(waiting=self.settings.waiting) from error
        except psycopg_pool.PoolTimeout as error:
            # ConnectionFailed says why there is none. One attempt for all: hundreds would take what others need.
            self._reached.of("database", lambda: db.connect(self.settings.dsn).close())
            raise MapBusy(waiting=self.settings.waiting) from error
        try:
            with connection.transaction():
                yield connection
        finally:
            self.pool.putconn(connection)

    @contextmanager
    def _saying_why(self) -> Iterator[None]:
        try:
            with db.driver_errors():
                try:
                    yield
                except psycopg.errors.QueryCanceled as error:
                    raise AnswerTooSlow(seconds=f"{self.settings.timeout_s:g}") from error
                except psycopg.errors.ObjectNotInPrerequisiteState as error:
                    if "no model is active" in str(error):
                        raise NoActiveModel from error
                    raise AnswerUnusable(reason=_sentence(error)) from error
                except psycopg.errors.UndefinedObject as error:
                    if "model version" in str(error):
                        raise UnknownModel(version=str(error.diag.message_primary).rpartition(" ")[2]) from error
                    raise AnswerUnusable(reason=_sentence(error)) from error
                except (
                    psycopg.errors.UndefinedTable,
                    psycopg.errors.UndefinedFunction,
                    psycopg.errors.InvalidSchemaName,
                ) as error:
                    raise NotInitialised from error
                except (psycopg.DataError, psycopg.errors.NoDataFound, psycopg.errors.FeatureNotSupported) as error:
                    raise AnswerUnusable(reason=_sentence(error)) from error
        except UnicodeEncodeError as error:
            raise AnswerUnusable(reason="A text is not valid UTF-8.") from error


def _may_be_reader(connection: db.Connection) -> bool:
    """Whether this session may act as callipper_reader, and that role may ask. A role that may not asks in its own name."""
    row = connection.execute(
        "SELECT bool_or(pg_catalog.pg_has_role(oid, 'MEMBER') AND pg_catalog.has_schema_privilege(oid, 'callipper', 'USAGE'))"
        f" FROM pg_catalog.pg_roles WHERE rolname = '{READER}'"
    ).fetchone()
    if row is None or not row[0]:
        return False
    try:
        with connection.transaction():
            connection.execute(AS_READER)
            raise psycopg.Rollback
    except psycopg.errors.InsufficientPrivilege:  # a member since PostgreSQL 16 may be one without SET
        return False
    return True


def _sentence(error: psycopg.Error) -> str:
    message = error.diag.message_primary or " ".join(str(error).split())
    hint = error.diag.message_hint
    return f"{message[:1].upper()}{message[1:].rstrip('.')}.{f' {hint}' if hint else ''}"
