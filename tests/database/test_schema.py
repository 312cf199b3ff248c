"""init, migrations and the catalogue that they leave behind.

tests/golden/catalogue.txt is what reviewers read in a diff. After a wanted change of the schema, write it anew with
    CALLIPPER_RENEW_GOLDEN=1 python -m pytest tests/database/test_schema.py -k golden
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from callipper_db import db, schema
from callipper_db.errors import (
    DatabaseFailed,
    ExtensionMissing,
    ExtensionTooOld,
    NoRightToCreate,
    NotInitialised,
    PostgresTooOld,
    SchemaNewer,
)
from catalogue import GOLDEN, catalogue
from handmade import write_model
from sessions import user_session

PASSWORD = "test-only"


def everything(dsn: str) -> str:
    """The catalogue, the functions' bodies and the database's search_path."""
    with user_session(dsn) as connection:
        bodies = connection.execute(
            "SELECT pg_get_functiondef(oid) FROM pg_proc"
            " WHERE pronamespace IN ('callipper'::regnamespace, 'callipper_map'::regnamespace) ORDER BY 1"
        ).fetchall()
        rest = connection.execute("SELECT schema.version_num FROM callipper.alembic_version AS schema").fetchall()
        return "\n".join(
            [catalogue(connection), *(body for (body,) in bodies), str(rest), str(search_path(connection))]
        )


def search_path(connection: db.Connection) -> str | None:
    row = connection.execute(
        "SELECT substr(s, 13) FROM pg_db_role_setting, unnest(setconfig) s WHERE setrole = 0 AND s LIKE 'search_path=%'"
        " AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())"
    ).fetchone()
    return str(row[0]) if row else None


def execute(dsn: str, *statements: str) -> None:
    with user_session(dsn) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@contextmanager
def role(cluster_dsn: str, name: str) -> Iterator[str]:
    """A role that may log in and nothing else. Roles outlive databases, so it goes at the end with all it owns."""
    name = f"{name}_{os.getpid()}"
    identifier = sql.Identifier(name)
    with user_session(cluster_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(identifier, sql.Literal(PASSWORD)))
    try:
        yield name
    finally:
        with user_session(cluster_dsn, autocommit=True) as admin:
            admin.execute(sql.SQL("DROP ROLE {}").format(identifier))


@contextmanager
def visitor(cluster_dsn: str, dsn: str, name: str) -> Iterator[str]:
    """The DSN of a new role in a database; what it owns or was granted there is taken away at the end."""
    with role(cluster_dsn, name) as user:
        try:
            yield make_conninfo(dsn, user=user, password=PASSWORD)
        finally:
            execute(dsn, f'DROP OWNED BY "{user}" CASCADE')
            with user_session(dsn) as connection:
                database = sql.Identifier(connection.info.dbname)
                connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(database))


@pytest.fixture
def outsider(cluster_dsn: str, database: str) -> Iterator[str]:
    with visitor(cluster_dsn, database, "callipper_outsider") as dsn:
        yield dsn


def user_of(dsn: str) -> str:
    return str(conninfo_to_dict(dsn)["user"])


# Migrations


def test_there_is_one_head() -> None:
    scripts = ScriptDirectory.from_config(schema.alembic_config())
    assert len(scripts.get_heads()) == 1
    assert scripts.get_heads()[0] == schema.head()


def test_tables_declare_what_migrations_make(database: str) -> None:
    with user_session(database) as connection:
        # Alembic writes the default schema as None, so that must be another than ours.
        connection.execute("SET search_path = public")
        connection.commit()
        command.check(schema.alembic_config(schema.alchemy_connection(connection)))


def test_up_down_up(database: str) -> None:
    before = everything(database)
    with user_session(database) as connection:
        write_model(connection)
    with user_session(database) as connection:
        command.downgrade(schema.alembic_config(schema.alchemy_connection(connection)), "base")
        left = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'callipper'::regnamespace AND relkind IN ('r', 'p', 'v', 'S')"
        ).fetchall()
        assert left == [("alembic_version",)]
        connection.commit()
    report = schema.init(database)
    assert (report.before, report.after) == (None, schema.head())
    assert everything(database) == before


# What init leaves


def test_init_twice_changes_nothing(database: str) -> None:
    before = everything(database)
    report = schema.init(database)
    assert (report.before, report.after, report.notes) == (schema.head(), schema.head(), [])
    assert everything(database) == before


def test_init_keeps_the_active_model(database: str) -> None:
    with user_session(database) as connection:
        model = write_model(connection)
    before = everything(database)
    schema.init(database)
    assert everything(database) == before
    with user_session(database) as connection:
        assert connection.execute("SELECT count(*) FROM callipper.cells").fetchone() == (len(model.cells),)


def test_the_catalogue_is_the_golden_one(connection: db.Connection) -> None:
    found = catalogue(connection)
    if os.environ.get("CALLIPPER_RENEW_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(found, encoding="utf-8")
    assert found == GOLDEN.read_text(encoding="utf-8"), "CALLIPPER_RENEW_GOLDEN=1 writes it anew"


def test_what_tools_see_has_a_comment_on_every_column(connection: db.Connection) -> None:
    bare = connection.execute(
        "SELECT a.attrelid::regclass::text, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relnamespace = 'callipper_map'::regnamespace AND c.relkind IN ('r', 'v', 'c') AND a.attnum > 0"
        " AND NOT a.attisdropped AND col_description(c.oid, a.attnum) IS NULL"
    ).fetchall()
    assert not bare


def test_functions_keep_the_rules(connection: db.Connection) -> None:
    rows = connection.execute(
        "SELECT p.proname, l.lanname, p.prosecdef, coalesce(p.proconfig::text, ''), obj_description(p.oid, 'pg_proc'),"
        " p.proparallel = 'u' OR p.provolatile <> 'v', count(*) OVER (PARTITION BY p.proname)"
        " FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang"
        " WHERE p.pronamespace IN ('callipper'::regnamespace, 'callipper_map'::regnamespace)"
    ).fetchall()
    assert rows
    for name, language, definer, config, comment, marking_holds, signatures in rows:
        assert language in {"sql", "plpgsql"}, name
        assert comment, f"{name} has no comment"
        # No argument has a default there, so that a call never fits both.
        assert signatures == (2 if name in {"text_embed", "loc_embed"} else 1), f"{name} has {signatures} signatures"
        # A volatile function starts a command for each of its statements, which a parallel operation may not.
        assert marking_holds, f"{name} is volatile, and parallel workers may run it"
        if definer or language == "plpgsql":
            assert '"search_path=pg_catalog, pg_temp"' in config, f"{name} pins no search_path, or finds more on it"


def test_nothing_of_ours_stands_in_an_index_or_a_generated_column(connection: db.Connection) -> None:
    found = connection.execute(
        "SELECT d.classid::regclass, d.objid FROM pg_depend d JOIN pg_proc p ON d.refobjid = p.oid"
        " AND d.refclassid = 'pg_proc'::regclass AND p.pronamespace = 'callipper'::regnamespace"
        " WHERE d.classid IN ('pg_class'::regclass, 'pg_attrdef'::regclass, 'pg_constraint'::regclass)"
    ).fetchall()
    assert found == []


def test_is_current_and_ensure_current(empty_database: str) -> None:
    with pytest.raises(NotInitialised, match="Run: callipper-db init"):
        schema.ensure_current(empty_database)
    schema.init(empty_database)
    schema.ensure_current(empty_database)
    execute(
        empty_database,
        "CREATE OR REPLACE FUNCTION callipper._sql_digest() RETURNS text LANGUAGE sql AS 'SELECT ''old'''",
    )
    with pytest.raises(NotInitialised):
        schema.ensure_current(empty_database)
    schema.init(empty_database)
    schema.ensure_current(empty_database)


# Ways to get there


def test_init_creates_the_extensions(empty_database: str, database: str) -> None:
    report = schema.init(empty_database)
    assert (report.before, report.after) == (None, schema.head())
    assert everything(empty_database) == everything(database)


def test_extensions_do_not_land_in_a_schema_that_was_there(empty_database: str, database: str) -> None:
    execute(empty_database, "CREATE SCHEMA callipper")
    schema.init(empty_database)
    with user_session(empty_database) as connection:
        assert db.extension_schemas(connection) == {"postgis": "public", "vector": "public"}
    assert everything(empty_database) == everything(database)


def test_the_printed_sql_does_the_same(empty_database: str, database: str) -> None:
    text = schema.pending_sql(empty_database)
    with user_session(empty_database) as connection:
        assert schema.revision(connection) is None, "printing runs nothing"
    psql = shutil.which("psql")
    assert psql, "the server's packages bring psql"
    done = subprocess.run(
        [psql, empty_database, "-v", "ON_ERROR_STOP=1", "-q", "-X"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert everything(empty_database) == everything(database)
    assert schema.init(empty_database).notes == []
    again = schema.pending_sql(empty_database)
    assert "CREATE TABLE" not in again
    execute(empty_database, again)
    assert everything(empty_database) == everything(database)


def test_extensions_may_live_elsewhere(empty_database: str, database: str) -> None:
    execute(
        empty_database,
        'CREATE SCHEMA "Geo ext"',
        "CREATE SCHEMA ext",
        'CREATE EXTENSION postgis SCHEMA "Geo ext"',
        "CREATE EXTENSION vector SCHEMA ext",
    )
    printed = schema.pending_sql(empty_database)
    schema.init(empty_database)
    found = everything(empty_database)
    plain = found.replace('ext, "Geo ext"', "public, public").replace("pg_catalog, ext,", "pg_catalog, public,")
    assert '"Geo ext"' in found
    with user_session(database) as connection:
        assert plain.startswith(catalogue(connection))
    with user_session(empty_database) as connection:
        write_model(connection)
        assert connection.execute(
            "SELECT count(*) FROM callipper.cells WHERE emb <-> text_embed('pub') < 2"
        ).fetchone() == (25,)
    # Without the extensions on the path, as in a session whose search_path is the server's default.
    with psycopg.connect(empty_database) as connection:
        row = connection.execute("SELECT text_embed('pub') IS NOT NULL, current_setting('search_path')").fetchone()
        assert row == (True, '"$user", public, callipper')
    execute(empty_database, "DROP SCHEMA callipper CASCADE", printed)
    assert everything(empty_database) == found


# The search_path


def test_the_search_path_is_appended_to(empty_database: str) -> None:
    report = schema.init(empty_database)
    assert any("appended to the database's search_path" in note for note in report.notes)
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SHOW search_path").fetchone() == ('"$user", public, callipper',)
        assert connection.execute("SELECT to_regprocedure('text_embed(text)') IS NOT NULL").fetchone() == (True,)


@pytest.mark.parametrize(
    ("set_to", "expected"),
    [
        ("gis, public", "gis, public, callipper"),
        ('"$user", "A=b, c"', '"$user", "A=b, c", callipper'),
        ("''", "callipper"),
        ("callipper, public", "callipper, public"),
        ('public, "callipper"', "public, callipper"),
        ('"my callipper"', '"my callipper", callipper'),
    ],
)
def test_what_the_search_path_was_is_kept(database: str, set_to: str, expected: str) -> None:
    with user_session(database) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET search_path = {}").format(name, sql.SQL(set_to)))  # type: ignore[arg-type]
    schema.init(database)
    with user_session(database) as connection:
        assert search_path(connection) == expected
    assert schema.init(database).notes == []


def test_the_search_path_can_be_left_alone(empty_database: str) -> None:
    assert "ALTER DATABASE" not in schema.pending_sql(empty_database, search_path=False)
    report = schema.init(empty_database, search_path=False)
    assert report.notes == []
    with user_session(empty_database) as connection:
        assert search_path(connection) is None


# Refusals


def test_an_extension_too_old(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(schema.MINIMUM, "vector", (99, 1))
    with pytest.raises(ExtensionTooOld, match=r"vector [\d.]+ is installed, and 99\.1 or newer is needed"):
        schema.init(database)


def test_an_extension_that_the_server_lacks(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MINIMUM", {"no_such": (1,)})
    monkeypatch.setattr(schema, "PACKAGES", {"no_such": "postgresql-{}-no-such"})
    with pytest.raises(
        ExtensionMissing, match=r"does not have the extension no_such\. Install it with: apt-get install"
    ):
        schema.init(empty_database)
    with user_session(empty_database) as connection:
        assert connection.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'callipper'").fetchone() == (0,)


def test_a_server_too_old(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MINIMUM_POSTGRES", 99)
    with pytest.raises(PostgresTooOld, match="99 or newer is needed"):
        schema.init(empty_database)


def test_a_schema_from_the_future(database: str) -> None:
    execute(database, "UPDATE callipper.alembic_version SET version_num = '9999'")
    before = everything(database)
    for call in (schema.init, schema.pending_sql):
        with pytest.raises(SchemaNewer, match="revision 9999"):
            call(database)
    assert everything(database) == before


def test_a_role_that_may_create_nothing(cluster_dsn: str, empty_database: str) -> None:
    with visitor(cluster_dsn, empty_database, "callipper_poor") as dsn:
        with pytest.raises(NoRightToCreate, match=r"may not create the extension postgis .*CREATE EXTENSION postgis;"):
            schema.init(dsn)
        execute(empty_database, "CREATE EXTENSION postgis", "CREATE EXTENSION vector")
        with pytest.raises(NoRightToCreate, match=r"may not create the schema callipper .*GRANT CREATE ON DATABASE"):
            schema.init(dsn)
        execute(empty_database, "CREATE SCHEMA callipper")
        with pytest.raises(NoRightToCreate, match="may not change the schema callipper"):
            schema.init(dsn)


def test_a_refused_init_leaves_nothing_behind(empty_database: str) -> None:
    execute(empty_database, "CREATE SCHEMA callipper", "CREATE TABLE callipper.grid (mine int)")
    with pytest.raises(DatabaseFailed, match='relation "grid" already exists'):
        schema.init(empty_database)
    with user_session(empty_database) as connection:
        tables = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'callipper'::regnamespace"
        ).fetchall()
        assert tables == [("grid",)]
        assert db.extension_schemas(connection) == {}


# Rights


def test_an_init_that_fails_late_leaves_nothing_behind(empty_database: str) -> None:
    """All of it is one transaction, migrations too: they come first, and views near the end."""
    with user_session(empty_database) as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF EXISTS (SELECT FROM pg_catalog.pg_event_trigger_ddl_commands() WHERE object_identity = 'callipper.cells')"
            " THEN RAISE EXCEPTION 'no views here'; END IF; END $$;"
            " CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN TAG IN ('CREATE VIEW')"
            " EXECUTE FUNCTION public.refuse()"
        )
    with pytest.raises(DatabaseFailed, match="no views here"):
        schema.init(empty_database)
    with user_session(empty_database) as connection:
        assert connection.execute("SELECT to_regnamespace('callipper')").fetchone() == (None,)
        assert db.extension_schemas(connection) == {}
        connection.execute("DROP EVENT TRIGGER refuse")
    assert schema.init(empty_database).before is None


def test_an_owner_who_is_no_superuser_can_init(cluster_dsn: str, empty_database: str, database: str) -> None:
    execute(empty_database, "CREATE EXTENSION postgis", "CREATE EXTENSION vector")
    with visitor(cluster_dsn, empty_database, "callipper_owner") as dsn:
        with user_session(empty_database) as connection:
            name = sql.Identifier(connection.info.dbname)
            connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, sql.Identifier(user_of(dsn))))
        schema.init(dsn)
        assert everything(empty_database) == everything(database)
        with user_session(dsn) as connection:
            model = write_model(connection)
        schema.init(dsn)
        with user_session(dsn) as connection:
            assert connection.execute("SELECT count(*) FROM callipper.cells").fetchone() == (len(model.cells),)


def test_a_schema_that_an_administrator_made_for_the_role(cluster_dsn: str, empty_database: str) -> None:
    execute(empty_database, "CREATE EXTENSION postgis", "CREATE EXTENSION vector")
    with visitor(cluster_dsn, empty_database, "callipper_tenant") as dsn:
        execute(empty_database, f'CREATE SCHEMA callipper AUTHORIZATION "{user_of(dsn)}"')
        with pytest.raises(NoRightToCreate, match="or: CREATE SCHEMA callipper_map AUTHORIZATION"):
            schema.init(dsn)
        execute(empty_database, f'CREATE SCHEMA callipper_map AUTHORIZATION "{user_of(dsn)}"')
        report = schema.init(dsn)
        assert any("search_path was left alone" in note for note in report.notes)
        with user_session(dsn) as connection:
            write_model(connection)
            assert connection.execute("SELECT text_embed('pub') IS NULL").fetchone() == (False,)


def test_who_could_act_in_the_owners_name_is_named(database: str, outsider: str) -> None:
    role = user_of(outsider)
    with user_session(database) as connection:
        assert schema.open_schemas(connection) == []
        connection.execute("CREATE SCHEMA elsewhere")
        connection.execute("GRANT CREATE ON SCHEMA elsewhere TO PUBLIC")  # no extension lives there
        connection.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
        assert schema.open_schemas(connection) == []
        connection.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        connection.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(sql.Identifier(role)))
        warnings = schema.open_schemas(connection)
    assert [warning.split(" may create functions in schema public")[0] for warning in warnings] == ["PUBLIC", role]
    assert set(warnings) <= set(schema.init(database).notes)
    for warning in warnings:  # what it says to do helps
        execute(database, warning.partition("Unless you trust them all: ")[2])
    with user_session(database) as connection:
        assert schema.open_schemas(connection) == []


def test_a_reader_reads_and_changes_nothing(database: str, outsider: str) -> None:
    with user_session(database) as connection:
        model = write_model(connection)
    with pytest.raises(DatabaseFailed, match="permission denied for schema callipper"):
        schema.ensure_current(outsider)
    execute(database, f'GRANT callipper_reader TO "{user_of(outsider)}"')
    schema.ensure_current(outsider)
    readable = ["cells", "points", "poi", "cell", "grid", "model", "text_encoder", "text_embedding"]
    with user_session(outsider) as connection:
        for name in readable:
            row = connection.execute(
                sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("callipper", name))
            ).fetchone()
            assert row is not None and row[0] > 0, name
        query = "SELECT cell_id FROM callipper.cells ORDER BY emb <-> text_embed('pub') LIMIT 3"
        assert connection.execute(query).fetchall() == [(cell_id,) for cell_id in model.ranking("pub")[:3].tolist()]
    forbidden = [
        "SELECT callipper.activate(1)",
        "SELECT callipper.drop_model(1, true)",
        "SELECT callipper._announce_change()",
        "INSERT INTO callipper.grid (kind, size_m, srid) VALUES ('square', 1, 1)",
        "UPDATE callipper.model SET status = 'ready'",
        "DELETE FROM callipper.poi",
        "DELETE FROM callipper.cells",
        f"DELETE FROM callipper.cell_embedding_v{model.version}",
        "SELECT FROM callipper.location_weight",
        "TRUNCATE callipper.cell CASCADE",
        "CREATE TABLE callipper.mine (x int)",
        "CREATE FUNCTION callipper.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ]
    for statement in forbidden:
        with pytest.raises(DatabaseFailed, match=r"permission denied|cannot delete from view|must be owner"):
            execute(outsider, statement)
