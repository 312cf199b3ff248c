"""CREATE EXTENSION callipper makes what init makes, can be updated, and a dump of it loses nothing.

The server reads extensions from a folder of its installation. Where the tests may not write there, they are skipped.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from callipper_db import db, schema
from callipper_db.errors import DatabaseFailed, ManagedByExtension
from callipper_db.extension import REGISTER, tables, write_extension
from callipper_db.versions import RELEASES
from catalogue import GOLDEN, catalogue
from deployments import binaries, call, extension_folder, succeed
from handmade import ORIGIN, write_model
from sessions import user_session

CREATE = "CREATE EXTENSION callipper"


@contextmanager
def installed(dsn: str, folder: Path, **options: Any) -> Iterator[None]:
    """The files of the extension on the server, for as long as the block lasts."""
    with extension_folder(dsn) as there:
        write_extension(folder, **options)
        for path in folder.glob("callipper*"):
            if ".pgtle" not in path.name:
                shutil.copy(path, there)
        yield


def golden(dsn: str) -> None:
    with user_session(dsn) as connection:
        connection.execute("SET search_path = public, callipper")
        assert catalogue(connection) == GOLDEN.read_text(encoding="utf-8")


def rows(dsn: str) -> dict[str, list[str]]:
    """All that a user has: the rows of the tables and partitions."""
    with user_session(dsn) as connection:
        tables = connection.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relname NOT IN ('signing_key', 'change')"
            " AND relnamespace IN ('callipper'::regnamespace, 'callipper_map'::regnamespace) ORDER BY 1"
        ).fetchall()
        return {
            name: sorted(row for (row,) in connection.execute(f"SELECT t::text FROM {name} t".encode()))
            for (name,) in tables
        }


def keep_a_state(connection: db.Connection) -> None:
    """As a refresh does, of all POIs and cells."""
    connection.execute("SELECT callipper._begin_state(1, 1)")
    connection.execute("SELECT callipper._keep_points(1, array_agg(point_id)) FROM callipper.point_embedding")
    kept = "INSERT INTO callipper.kept_cell SELECT 1, 1, cell_id, 0, 0, emb FROM callipper.cell_embedding"
    assert connection.execute(kept).rowcount > 0


def test_the_extension_is_what_init_makes(bare_database: str, empty_database: str, open_folder: Path) -> None:
    with installed(bare_database, open_folder):
        with user_session(bare_database) as connection:
            connection.execute(CREATE)
        golden(bare_database)
        schema.ensure_current(bare_database)
        with pytest.raises(ManagedByExtension, match="ALTER EXTENSION callipper UPDATE"):
            schema.init(bare_database)

        # A dump holds the extension's name and the user's rows.
        with user_session(bare_database) as connection:
            cells = write_model(connection, ORIGIN[None] + 5).cells
            keep_a_state(connection)
        dump = open_folder / "dump.sql"
        succeed(binaries(bare_database) / "pg_dump", "--no-comments", "-f", dump, bare_database)
        said = call(binaries(bare_database) / "psql", "-Xq", "-d", empty_database, "-f", dump).stderr
        # ATTACH PARTITION has made the keys and indexes that the dump makes once more.
        errors = re.findall(r"ERROR: +(.*)", said)
        assert all(re.fullmatch(r"multiple primary keys .*|relation .* already exists", error) for error in errors)
        assert rows(empty_database) == rows(bare_database)
        with user_session(empty_database) as connection:
            connection.execute("SELECT callipper.activate(1)")
        with user_session(empty_database) as connection:
            assert connection.execute("SELECT count(*) FROM callipper.cells").fetchone() == (len(cells),)
            connection.execute("DROP EXTENSION callipper")


def test_an_update_gives_the_same_catalogue(bare_database: str, open_folder: Path) -> None:
    """From an earlier extension, which had its tables alone."""
    earlier = tables(None, "0012", {"postgis": "public", "vector": "public"}) + REGISTER
    (open_folder / "callipper--0.0.9.sql").write_text(earlier)
    with installed(bare_database, open_folder, releases={"0.0.9": "0012"}):
        with user_session(bare_database) as connection:
            connection.execute(f"{CREATE} VERSION '0.0.9'".encode())
        with pytest.raises(ManagedByExtension):
            schema.ensure_current(bare_database)
        with user_session(bare_database) as connection:
            connection.execute("ALTER EXTENSION callipper UPDATE")
        schema.ensure_current(bare_database)
        golden(bare_database)
        there_is_no_way_back = f'no update path from version "{schema.version()}" to version "0.0.9"'
        with pytest.raises(DatabaseFailed, match=there_is_no_way_back), user_session(bare_database) as connection:
            connection.execute("ALTER EXTENSION callipper UPDATE TO '0.0.9'")


@pytest.mark.parametrize("route", ["init", "extension"])
def test_a_drop_takes_nothing_of_the_users(
    bare_database: str, empty_database: str, open_folder: Path, route: str
) -> None:
    """Their own table and embeddings stay; what they made of ours is named, and is kept by a dump from before."""
    drop = "DROP EXTENSION callipper" if route == "extension" else "DROP SCHEMA callipper, callipper_map"
    with ExitStack() as stack:
        if route == "extension":
            stack.enter_context(installed(bare_database, open_folder))
            with user_session(bare_database) as connection:
                connection.execute(CREATE)
        else:
            schema.init(bare_database)
        with user_session(bare_database) as connection:
            write_model(connection, ORIGIN[None] + 5)
            connection.execute(
                "CREATE SCHEMA ours; CREATE TABLE ours.shop AS SELECT cell_id, geom, emb FROM callipper.cells"
            )
            connection.execute("CREATE VIEW ours.best AS SELECT cell_id, emb FROM callipper.cells")
            kept = connection.execute("SELECT * FROM ours.shop ORDER BY cell_id").fetchall()
        before = rows(bare_database)
        dump = open_folder / "before.dump"
        succeed(binaries(bare_database) / "pg_dump", "-Fc", "--no-comments", "-f", dump, bare_database)
        with pytest.raises(DatabaseFailed, match="cannot drop"), user_session(bare_database) as connection:
            connection.execute(drop.encode())
        with user_session(bare_database) as connection:
            connection.execute("DROP VIEW ours.best")
            connection.execute(f"{drop} CASCADE".encode())
            assert connection.execute("SELECT * FROM ours.shop ORDER BY cell_id").fetchall() == kept
        schema.init(bare_database)  # and it can be had again
        golden(bare_database)
        call(binaries(bare_database) / "pg_restore", "-d", empty_database, dump)
        assert rows(empty_database) == before
        with user_session(empty_database) as connection:
            assert connection.execute("SELECT count(*) FROM ours.best").fetchone() == (len(kept),)


def test_every_release_gets_an_update_script() -> None:
    """A version that has been released is no longer this program's, or its newest revision is still the newest."""
    changelog = (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
    released = set(re.findall(r"(?m)^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", changelog))
    assert released and released - {schema.version()} <= set(RELEASES)
    assert RELEASES.get(schema.version(), schema.head()) == schema.head()


# pg_tle is not in Debian. This stands in for it: the same functions, which keep what they are given.
STAND_IN = """
CREATE SCHEMA pgtle;
CREATE TABLE pgtle.given (file text, content text, description text, requires text[]);
CREATE FUNCTION pgtle.install_extension(name text, version text, description text, ext text, requires text[] DEFAULT NULL)
RETURNS boolean LANGUAGE sql AS $$
    INSERT INTO pgtle.given VALUES (name || '--' || version || '.sql', ext, description, requires) RETURNING true $$;
CREATE FUNCTION pgtle.install_update_path(name text, fromvers text, tovers text, ext text) RETURNS boolean LANGUAGE sql AS $$
    INSERT INTO pgtle.given VALUES (name || '--' || fromvers || '--' || tovers || '.sql', ext) RETURNING true $$;
"""


def test_what_pg_tle_is_given_is_the_extension(bare_database: str, open_folder: Path) -> None:
    """PostgreSQL runs the texts, as pg_tle hands them over, with a control file that says what pg_tle's does."""
    (tle,) = [
        path
        for path in write_extension(open_folder / "written", releases={"0.0.9": "0012"})
        if path.name.endswith(".pgtle.sql")
    ]
    with user_session(bare_database) as connection:
        connection.execute(STAND_IN.encode())
    succeed(binaries(bare_database) / "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", bare_database, "-f", tle)
    with user_session(bare_database) as connection:
        given = connection.execute("SELECT * FROM pgtle.given").fetchall()
        connection.execute("DROP SCHEMA pgtle CASCADE")
    version = schema.version()
    assert [file for file, *_ in given] == [f"callipper--{version}.sql", f"callipper--0.0.9--{version}.sql"]
    _, _, description, requires = given[0]
    control = f"comment = '{description}'\ndefault_version = '{version}'\nrelocatable = false\nsuperuser = false\n"
    earlier = tables(None, "0012", {"postgis": "public", "vector": "public"}) + REGISTER
    with extension_folder(bare_database) as there:
        (there / "callipper.control").write_text(f"{control}requires = '{','.join(requires)}'\n")
        (there / "callipper--0.0.9.sql").write_text(earlier)
        for file, content, *_ in given:
            (there / file).write_text(content)
        for steps in (
            [f"{CREATE} SCHEMA callipper"],
            [f"{CREATE} SCHEMA callipper VERSION '0.0.9'", "ALTER EXTENSION callipper UPDATE"],
        ):
            with user_session(bare_database) as connection:
                for step in steps:
                    connection.execute(step.encode())
            schema.ensure_current(bare_database)
            golden(bare_database)
            with user_session(bare_database) as connection:
                connection.execute("DROP EXTENSION callipper")
