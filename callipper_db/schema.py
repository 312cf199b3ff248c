"""init(): alembic to the newest revision, then every file of sql/ in order, in one transaction."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import re
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import Connection as AlchemyConnection
from sqlalchemy import create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from callipper_db import db
from callipper_db.errors import (
    DatabaseFailed,
    ExtensionMissing,
    ExtensionTooOld,
    ManagedByExtension,
    NoRightToCreate,
    NotInitialised,
    PostgresTooOld,
    SchemaNewer,
)
from callipper_db.progress import Reporter, Silent
from callipper_db.tables import MAP_SCHEMA, SCHEMA
from callipper_db.versions import MINIMUM, MINIMUM_POSTGRES
from callipper_db.waiting import Waiting, describe

OWNER_FILE = "095_owner.sql"  # gives all in the schemas to their owner
PACKAGES = {"postgis": "postgresql-{}-postgis-3", "vector": "postgresql-{}-pgvector"}
PATIENCE_S = 60.0  # for the transactions of others, which are waited for in brief tries
PAUSE_S = 0.2  # between two of these
SILENT_S = 1.0  # after which it says for whom it waits
BUSY = "an open transaction reads or writes what init replaces. End it, and run the same command again. It is {who}"
MAP_REVISION = "0008"  # which makes the tables of callipper_map
ALREADY = re.compile(r"already exists|does not exist, skipping")  # notices of a script that may run again


@dataclass
class InitReport:
    """What init did: revisions before and after, and remarks for the person who ran it."""

    before: str | None
    after: str
    notes: list[str] = field(default_factory=list)


def init(dsn: str, *, search_path: bool = True, reporter: Reporter | None = None) -> InitReport:
    """Bring the schema `callipper` up to date; doing it twice changes nothing.

    With `search_path`, appends `callipper` to the database's search_path so that `text_embed` needs no prefix. The reporter
    learns whom it waits for, if it does so for longer than SILENT_S.
    Raises PostgresTooOld, ExtensionMissing, ExtensionTooOld, NoRightToCreate, SchemaNewer, ManagedByExtension.
    """
    with db.session(dsn) as connection:
        _refuse_extension(connection)
        notices: list[str] = []
        connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        alchemy = alchemy_connection(connection)
        check_server(connection)
        _create_extensions(connection)
        for name in (SCHEMA, MAP_SCHEMA):
            _create_schema(connection, name)
        waiting = Waiting(connection, reporter or Silent())
        _lock(connection, waiting)
        check_not_newer(connection)
        before = revision(connection)
        began = time.monotonic()
        while not _apply(connection, alchemy):
            waited = time.monotonic() - began
            if waited > PATIENCE_S:
                raise DatabaseFailed(reason=BUSY.format(who=describe(waiting.holders(readers=True))))
            if waited > SILENT_S:
                waiting.say(readers=True)
            time.sleep(PAUSE_S)
        connection.execute(stamp())
        connection.execute(owner_statements().encode())  # the stamp too
        report = InitReport(before, head(), open_schemas(connection))
        if search_path:
            report.notes += _append_search_path(connection)
        report.notes += dict.fromkeys(notice for notice in notices if notice and not ALREADY.search(notice))
        return report


def pending_sql(dsn: str, *, search_path: bool = True) -> str:
    """The SQL that init would run in this database, as text."""
    with db.session(dsn) as connection:
        _refuse_extension(connection)
        check_server(connection)
        check_not_newer(connection)
        found = revision(connection)
        installed = db.extension_schemas(connection)
        append = _search_path_statement(connection) if search_path else None
    extensions = {"postgis": "public", "vector": "public"} | installed
    parts = [
        *(f"CREATE EXTENSION {name} SCHEMA public;" for name in MINIMUM if name not in installed),
        "CREATE SCHEMA IF NOT EXISTS callipper;",
        "CREATE SCHEMA IF NOT EXISTS callipper_map;",
        f"SET search_path = {db.SEARCH_PATH};",
        "SET client_min_messages = warning;",  # migrations drop what may not be there
        db.name_extensions(offline_migrations(found), extensions),
        "RESET client_min_messages;",
        *sql_statements(extensions),
        stamp().as_string() + ";",
        owner_statements(),
        f"{append.as_string()};" if append else "",
    ]
    return "\n".join(part.strip() for part in parts if part.strip()) + "\n"


def ensure_current(dsn: str) -> None:
    """Raise NotInitialised or ManagedByExtension unless the schema is the one that this program makes."""
    with db.session(dsn) as connection:
        if not is_current(connection):
            check_not_newer(connection)
            _refuse_extension(connection)
            raise NotInitialised


def is_current(connection: db.Connection) -> bool:
    """Whether the schema and its functions are the ones that this program makes."""
    if connection.one("SELECT to_regprocedure('callipper._sql_digest()')") == (None,):
        return False
    return connection.one("SELECT callipper._sql_digest()") == (sql_digest(),)


def is_extension(connection: db.Connection) -> bool:
    """Whether CREATE EXTENSION callipper has made the schema, so that ALTER EXTENSION updates it."""
    return connection.execute("SELECT FROM pg_catalog.pg_extension WHERE extname = 'callipper'").fetchone() is not None


def _refuse_extension(connection: db.Connection) -> None:
    if is_extension(connection):
        raise ManagedByExtension(database=connection.info.dbname)


def check_not_newer(connection: db.Connection) -> None:
    """Raise SchemaNewer where a later program has made the schema."""
    if found := newer(connection):
        raise SchemaNewer(found=f"is newer than this program knows: it is {found}", known=version())


def newer(connection: db.Connection) -> str | None:
    """By what the schema is newer than this program: a revision that is not known, or the version of the functions."""
    found = revision(connection)
    if found is not None and found not in {script.revision for script in _scripts().walk_revisions()}:
        return f"at revision {found}, and this program knows those up to {head()}"
    if connection.one("SELECT to_regprocedure('callipper._sql_version()')") == (None,):
        return None  # made by a program from before versions were written down
    (made_by,) = connection.one("SELECT callipper._sql_version()")
    return f"of callipper-db {made_by}" if db.version_tuple(made_by) > db.version_tuple(version()) else None


def version() -> str:
    """This program's."""
    return importlib.metadata.version("callipper-db")


def revision(connection: db.Connection) -> str | None:
    """The revision of the schema in the database, None when there is none, or a reader asks, who may not see it."""
    if not connection.may_read("alembic_version"):
        return None
    row = connection.execute("SELECT version_num FROM callipper.alembic_version").fetchone()
    return str(row[0]) if row else None


def head() -> str:
    """The newest revision that this program knows."""
    found = _scripts().get_current_head()
    assert found is not None, "migrations/versions is empty"
    return found


def sql_digest() -> str:
    """Names the state that init leaves behind: the newest revision and a hash over sql/."""
    content = b"".join(path.read_bytes() for path in _sql_files())
    return f"{head()}-{hashlib.sha256(content).hexdigest()[:16]}"


def sql_statements(extensions: dict[str, str]) -> Iterator[str]:
    """The files of sql/ in order, with `@extschema:NAME@` replaced by the schema that holds the extension."""
    for path in _sql_files():
        yield db.name_extensions(path.read_text(encoding="utf-8"), extensions)


def check_server(connection: db.Connection) -> None:
    """Raise unless PostgreSQL and the two extensions are there, or can be created, and new enough."""
    major = connection.info.server_version // 10000
    if major < MINIMUM_POSTGRES:
        raise PostgresTooOld(found=major, minimum=MINIMUM_POSTGRES)
    for name, minimum in MINIMUM.items():
        found = extension_version(connection, name)
        if found is None:
            raise ExtensionMissing(
                server=connection.info.host or "the local socket", extension=name, command=install_command(name, major)
            )
        if db.version_tuple(found) < minimum:
            raise ExtensionTooOld(extension=name, found=found, minimum=".".join(map(str, minimum)))


def extension_version(connection: db.Connection, name: str) -> str | None:
    """The version that is installed in this database, else the one that CREATE EXTENSION would bring, else None."""
    row = connection.execute(
        "SELECT coalesce(installed_version, default_version) FROM pg_catalog.pg_available_extensions WHERE name = %s",
        [name],
    ).fetchone()
    return str(row[0]) if row else None


def open_schemas(connection: db.Connection) -> list[str]:
    """A warning for each schema in reach in which others than its owner and superusers may create things.

    These are our own, those of the extensions, and those on the search_path of this role and database. A function placed there,
    whose arguments fit better than those of the one that is meant, is called instead. The program names what it calls by its
    schema and types; whoever asks by SQL may not.
    """
    with connection.transaction(), connection.users_names():
        (on_path,) = connection.one("SELECT pg_catalog.current_schemas(false)::text[]")
    rows = connection.execute(
        "SELECT n.nspname::text, coalesce(r.rolname::text, 'PUBLIC') FROM pg_catalog.pg_namespace n"
        " CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) AS a LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee"
        " WHERE (n.nspname IN ('callipper', 'callipper_map', 'pg_catalog') OR n.nspname = ANY(%s::text[]) OR n.oid IN"
        " (SELECT extnamespace FROM pg_catalog.pg_extension WHERE extname IN ('postgis', 'vector')))"
        " AND a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner AND NOT coalesce(r.rolsuper, false)"
        " AND a.grantee <> (SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = 'callipper') ORDER BY 1, 2",
        [on_path],
    ).fetchall()
    return [
        f"{role} may create functions in schema {name}, and they could be called by you and others in place of those that are"
        f" meant. Unless you trust them all: REVOKE CREATE ON SCHEMA {sql.Identifier(name).as_string()} FROM"
        f" {role if role == 'PUBLIC' else sql.Identifier(role).as_string()};"
        for name, role in rows
    ]


def install_command(extension: str, major: int) -> str:
    """What to type on the server's machine to get an extension."""
    return f"apt-get install {PACKAGES[extension].format(major)} (or scripts/install-postgres.sh, which builds it if need be)"


def alembic_config(connection: AlchemyConnection | None = None) -> Config:
    """Alembic's configuration, made here so that no ini file is needed."""
    config = Config()
    config.set_main_option("script_location", str(_folder("migrations")).replace("%", "%%"))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def alchemy_connection(connection: db.Connection) -> AlchemyConnection:
    """The same connection with SQLAlchemy's face.

    To be made before any work is done on it: SQLAlchemy looks at the server first and rolls back. After that the transaction
    is ours alone: a pool that does not reset leaves it as it is, and alembic commits only what it has begun itself.
    """
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: connection, poolclass=StaticPool, pool_reset_on_return=None
    )

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def name_extensions(  # of the migrations
        alchemy: AlchemyConnection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> tuple[str, Any]:
        return connection.named(statement).as_string(), parameters

    alchemy = engine.connect()
    alchemy.begin()
    return alchemy


def _apply(connection: db.Connection, alchemy: AlchemyConnection) -> bool:
    """Run the migrations and sql/; False, and nothing is done, where somebody holds a table or view that they change.

    Readers queue behind a lock that is waited for, so none is waited for longer than a moment.
    """
    try:
        with connection.transaction():
            connection.execute("SET LOCAL lock_timeout = '50ms'")
            extensions = db.extension_schemas(connection)
            _upgrade(alchemy)
            _restore_map(connection)
            connection.execute("LOCK TABLE callipper.model IN SHARE ROW EXCLUSIVE MODE")  # so that nothing is activated
            for statement in sql_statements(extensions):
                connection.execute(statement)
            connection.execute("SET LOCAL lock_timeout TO DEFAULT")
    except psycopg.errors.LockNotAvailable:
        return False
    except (psycopg.errors.InvalidTableDefinition, psycopg.errors.InvalidFunctionDefinition) as error:
        # A view that would lose columns: migrations see to it that no earlier program's does.
        reason = f"has functions or views which this program cannot replace: {error.diag.message_primary}"
        raise SchemaNewer(found=reason, known=version()) from error
    return True


def _upgrade(connection: AlchemyConnection) -> None:
    try:
        command.upgrade(alembic_config(connection), "head")
    except DBAPIError as error:
        raise error.orig or error from error  # the driver's own error, as from every other statement


def _restore_map(connection: db.Connection) -> None:
    """Make the tables of callipper_map where they are missing: dropped, or left out of a dump. sql/ fills them."""
    if connection.one("SELECT to_regclass('callipper_map.cell')") == (None,):
        script = _scripts().get_revision(MAP_REVISION)
        assert script is not None
        for statement in script.module.MAP.split(";\n"):
            connection.execute(connection.named(statement))


def offline_migrations(found: str | None, to: str = "head") -> str:
    """The SQL of the migrations after one revision, up to another, in one transaction."""
    if found == head():
        return ""
    output = io.StringIO()
    config = alembic_config()
    config.output_buffer = output
    with redirect_stdout(output):
        command.upgrade(config, f"{found}:{to}" if found else to, sql=True)
    return output.getvalue()


def _create_extensions(connection: db.Connection) -> None:
    for name in MINIMUM:
        if name in db.extension_schemas(connection):
            continue
        try:
            with connection.transaction():
                statement = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} SCHEMA public")
                connection.execute(statement.format(sql.Identifier(name)))
        except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateObject):
            continue  # another init has just made it; we have waited until it was done
        except psycopg.errors.InsufficientPrivilege as error:
            raise _no_right(connection, f"create the extension {name}", f"CREATE EXTENSION {name};") from error


def _create_schema(connection: db.Connection, name: str) -> None:
    row = connection.execute(
        "SELECT nspowner::regrole::text, pg_has_role(nspowner, 'USAGE') FROM pg_catalog.pg_namespace WHERE nspname = %s",
        [name],
    ).fetchone()
    if row is None:
        try:
            with connection.transaction():
                connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        except (psycopg.errors.DuplicateSchema, psycopg.errors.UniqueViolation):
            _create_schema(connection, name)  # another init has just made it
        except psycopg.errors.InsufficientPrivilege as error:
            database, user = connection.info.dbname, connection.info.user
            remedy = (
                f'GRANT CREATE ON DATABASE "{database}" TO "{user}"; or: CREATE SCHEMA {name} AUTHORIZATION "{user}";'
            )
            raise _no_right(connection, f"create the schema {name}", remedy) from error
        return
    owner, is_member = row
    if not is_member:
        raise _no_right(connection, f"change the schema {name}", f"a connection as {owner}, who owns it")


def _lock(connection: db.Connection, waiting: Waiting) -> None:
    """One init at a time, by a lock that only the owner can take; in a fresh database CREATE is the lock. And no run publishes.

    No reader waits for these two, so they are waited for.
    """
    for table in ("alembic_version", "model"):
        if connection.one("SELECT to_regclass(%s)", [f"callipper.{table}"]) != (None,):
            lock = sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(sql.Identifier("callipper", table))
            try:
                with connection.transaction():
                    connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(f"{SILENT_S}s"))
                    connection.execute(lock)
                    connection.execute("SET LOCAL lock_timeout TO DEFAULT")
            except psycopg.errors.LockNotAvailable:
                waiting.say(readers=False)
                connection.execute(lock)


def _no_right(connection: db.Connection, action: str, remedy: str) -> NoRightToCreate:
    return NoRightToCreate(role=connection.info.user, action=action, database=connection.info.dbname, remedy=remedy)


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(_folder("migrations")))


def _append_search_path(connection: db.Connection) -> list[str]:
    """Append `callipper` to the database's own search_path; returns what to tell the user."""
    statement = _search_path_statement(connection)
    if statement is None:
        return []
    try:
        with connection.transaction():
            connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        return [
            "search_path was left alone (not the database's owner): write callipper.text_embed, or SET search_path."
        ]
    return ["callipper was appended to the database's search_path: new sessions can write text_embed without a prefix."]


def _search_path_statement(connection: db.Connection) -> sql.Composed | None:
    """What appends `callipper` to the database's own search_path, None where it is in there."""
    row = connection.execute(
        "SELECT substr(setting, length('search_path=') + 1) FROM pg_catalog.pg_db_role_setting s"
        " JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase, unnest(setconfig) AS setting"
        " WHERE d.datname = current_database() AND s.setrole = 0 AND setting LIKE 'search\\_path=%'"
    ).fetchone()
    present = str(row[0]) if row else '"$user", public'
    names = [name.strip() for name in present.split(",")]
    if "callipper" in names:
        return None
    path = ", ".join([*(name for name in names if name != '""'), "callipper"])  # an empty path is stored as ""
    return sql.SQL("ALTER DATABASE {} SET search_path = {}").format(
        sql.Identifier(connection.info.dbname), sql.SQL(path)
    )


def owner_statements() -> str:
    """The last file of sql/, which is run once more after the stamp."""
    return (_folder("sql") / OWNER_FILE).read_text(encoding="utf-8")


def stamp() -> sql.Composed:
    """Two functions that say which program has made the schema: of its state a digest, and its version, which has an order."""
    values = {
        "_sql_digest": (sql_digest(), "names the state of sql/ and migrations/ that init was run with"),
        "_sql_version": (version(), "version of callipper-db that init was run with"),
    }
    return sql.SQL("; ").join(
        sql.SQL(
            "CREATE OR REPLACE FUNCTION {name}() RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE"
            " AS $$ SELECT {value}::pg_catalog.text $$; COMMENT ON FUNCTION {name}() IS {comment};"
            " GRANT EXECUTE ON FUNCTION {name}() TO PUBLIC"
        ).format(name=sql.Identifier("callipper", name), value=sql.Literal(value), comment=sql.Literal(comment))
        for name, (value, comment) in values.items()
    )


def _sql_files() -> list[Path]:
    return sorted(_folder("sql").glob("*.sql"))


def _folder(name: str) -> Path:
    """sql/ and migrations/: inside the package in a wheel, next to it in a checkout."""
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).parent.parent / name
