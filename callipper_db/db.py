"""Connections: the only place that opens them, and where the driver's errors become ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq, sql
from psycopg.abc import Params
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from callipper_db.errors import ConnectionFailed, ConnectionLost, DatabaseFailed, DiskFull, PoolerFound

if TYPE_CHECKING:
    from psycopg_pool import ConnectionPool

# Only schemas in which nobody else may create: pg_catalog belongs to the server, callipper to its owner. PostGIS and pgvector
# may be in a schema where others may create functions, so their names are written with their schema. pg_temp is not listed,
# so PostgreSQL searches it first: a temporary table of ours hides a user's table of the same name.
SEARCH_PATH = "pg_catalog, callipper"


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that knows where the extensions are."""

    users_path: str  # the search_path of the role and the database, under which a user's own SQL is read
    _extensions: dict[str, str] | None = None

    def named(self, statement: str) -> sql.SQL:
        """A statement of ours, with their schema added to the names of PostGIS and pgvector.

        These are functions that begin with ST_, the table spatial_ref_sys, the types @geometry, @geography, @box3d and @vector,
        and any name after @extschema:NAME@. Pass a function exactly the types that it is declared with: in the same schema
        there may be another function of that name whose types fit better.
        """
        found = self._extensions or extension_schemas(self)
        self._extensions = found if len(found) == 2 else None
        return sql.SQL(name_extensions(OF_POSTGIS.sub(_with_schema, statement), found))

    def one(self, query: str | bytes | sql.SQL | sql.Composed, parameters: Params | None = None) -> tuple[Any, ...]:
        """The only row of a query that always yields one."""
        row = self.execute(query, parameters).fetchone()
        assert row is not None
        return row

    def may_read(self, table: str) -> bool:
        """Whether this role may read a table of the schema callipper; False where it is not there."""
        return self.one("SELECT has_table_privilege(to_regclass(%s), 'SELECT')", [f"callipper.{table}"]) == (True,)

    @contextmanager
    def users_names(self) -> Iterator[None]:
        """Within a transaction: run SQL with the search_path of the user who wrote it."""
        self.execute("SELECT pg_catalog.set_config('search_path', %s::text, true)", [self.users_path])
        yield
        self.execute(f"SET LOCAL search_path = {SEARCH_PATH}")


OF_POSTGIS = re.compile(r"(?<![\w.])(ST_\w+(?=\()|spatial_ref_sys\b|@geometry\b|@geography\b|@box3d\b|@vector\b)")


def _with_schema(name: re.Match[str]) -> str:
    extension = "vector" if name[0] == "@vector" else "postgis"
    return f"@extschema:{extension}@.{name[0].removeprefix('@')}"


def name_extensions(statement: str, extensions: dict[str, str]) -> str:
    """A statement with `@extschema:NAME@` replaced by the schema that holds the extension."""
    for name, schema in extensions.items():
        statement = statement.replace(f"@extschema:{name}@", sql.Identifier(schema).as_string())
    return statement


def connect(dsn: str, *, autocommit: bool = False) -> Connection:
    """Open a connection whose search_path is SEARCH_PATH.

    Behind a pooler that shares the server's connections among its clients, a session that commits once still works: its
    search_path goes with its transaction, so that the pool's next client does not inherit it. A session that needs more
    (autocommit) is refused. Raises PoolerFound, and ConnectionFailed, whose message holds no secret.
    """
    _check_readable(dsn)
    try:
        connection = Connection.connect(
            dsn, autocommit=autocommit, application_name="callipper-db", keepalives_idle=30, client_encoding="UTF8"
        )
    except psycopg.Error as error:
        raise ConnectionFailed(dsn=without_secrets(dsn), reason=_one_line(error)) from error
    pooled = _server_process(connection) != connection.info.backend_pid  # the second is what the pooler said
    if pooled and autocommit and _is_shared(connection, dsn):
        connection.close()
        raise PoolerFound
    (connection.users_path,) = connection.one("SHOW search_path")
    local = pooled and not autocommit
    connection.execute(f"SET {'LOCAL' if local else 'SESSION'} search_path = {SEARCH_PATH}")
    if not autocommit and not local:
        connection.commit()
    return connection


def open_pool(dsn: str, size: int, waiting: int, wait_s: float) -> ConnectionPool[Connection]:
    """A pool of up to `size` connections whose transactions are read-only; more than `waiting` requests for one are refused.

    It connects when it is asked, also to a server that comes up later. Statements are not prepared, so a pooler may stand in
    between. Raises ConnectionFailed for a DSN that cannot be read.
    """
    from psycopg_pool import ConnectionPool

    _check_readable(dsn)

    def read_only(connection: Connection) -> None:
        connection.read_only = True

    return ConnectionPool(
        dsn,
        connection_class=Connection,
        kwargs={
            "application_name": "callipper-db map",
            "keepalives_idle": 30,
            "client_encoding": "UTF8",
            "prepare_threshold": None,
        },
        configure=read_only,
        check=ConnectionPool.check_connection,
        min_size=1,
        max_size=size,
        max_waiting=waiting,
        timeout=wait_s,
        open=True,
    )


def _server_process(connection: psycopg.Connection[Any]) -> int:
    (pid,) = connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone() or (0,)
    return int(pid)


def _is_shared(connection: Connection, dsn: str) -> bool:
    """Whether a second client gets the server process that this idle one had just before."""
    with suppress(psycopg.Error), psycopg.connect(dsn, autocommit=True) as other:
        return _server_process(other) == _server_process(connection)
    return False


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
def snapshot(dsn: str) -> Iterator[Connection]:
    """A session of one read-only transaction, which sees one model version, whatever is activated meanwhile."""
    with session(dsn, autocommit=True) as connection, connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield connection


@contextmanager
def driver_errors() -> Iterator[None]:
    """Turn an error of the driver into one of ours; the cause is kept."""
    try:
        yield
    except psycopg.errors.DiskFull as error:
        raise DiskFull(reason=_one_line(error)) from error
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        if "No space left on device" in str(error):  # of a server that went down with it
            raise DiskFull(reason=_one_line(error)) from error
        if error.sqlstate is None or error.sqlstate.startswith(("08", "57P")):
            raise ConnectionLost(reason=_one_line(error)) from error
        raise DatabaseFailed(reason=_with_hint(error)) from error
    except psycopg.Error as error:
        raise DatabaseFailed(reason=_with_hint(error)) from error


def version_tuple(version: str) -> tuple[int, ...]:
    """'0.8.3' as (0, 8, 3). Everything from the first part that is no number is dropped."""
    digits = (part for part in version.replace("-", ".").split("."))
    return tuple(int(part) for part in digits if part.isdecimal())


def without_secrets(dsn: str) -> str:
    """A readable DSN as key=value pairs, without passwords and keys: for messages, logs and file names."""
    secret = {option.keyword.decode() for option in pq.Conninfo.get_defaults() if option.dispchar == b"*"}
    return make_conninfo("", **{key: value for key, value in conninfo_to_dict(dsn).items() if key not in secret})


def _check_readable(dsn: str) -> None:
    """Raise ConnectionFailed for a DSN that libpq cannot read, or would misread.

    libpq's own message would quote the DSN with its password. And if a password holds a plain @ or /, libpq takes a part of
    it for the host or the database, whose names are printed.
    """
    scheme, is_uri, rest = dsn.partition("://")
    try:
        parts = conninfo_to_dict(dsn)
    except (psycopg.Error, ValueError):
        parts = None
    if is_uri and scheme not in ("postgresql", "postgres"):
        reason = "it does not begin with postgresql://"
        if re.fullmatch(r"postgres(ql)?\+\w+", scheme):
            reason = f"{scheme} is a scheme of SQLAlchemy's; write postgresql://"
    elif parts is None and is_uri:
        reason = "it does not parse; in a name or password, write % as %25, @ as %40, / as %2F and : as %3A"
    elif parts is None:
        reason = "it does not parse"
    elif is_uri and _is_misread(rest, str(parts.get("port", ""))):
        reason = "it does not parse; a password with @ or / in it is written with %40 and %2F"
    else:
        return
    raise ConnectionFailed(dsn="the DSN given, which is not shown here as it may hold a password", reason=reason)


def _is_misread(rest: str, port: str) -> bool:
    """Whether a URI after :// has an @ that does not end the password, or a port that is not a number."""
    path = rest.partition("?")[0]
    authority = path.partition("/")[0]
    return path.count("@") > 1 or ("@" in path and "@" not in authority) or not re.fullmatch(r"[\d,]*", port)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _with_hint(error: psycopg.Error) -> str:
    hint = error.diag.message_hint
    message = error.diag.message_primary or _one_line(error)
    return f"{message}. {hint}" if hint else message
