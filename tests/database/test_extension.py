"""CREATE EXTENSION callipper makes what init makes, can be updated, and a dump of it loses nothing.

The server reads extensions from a folder of its installation. Where the tests may not write there, they are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from callipper_db import schema
from callipper_db.errors import ManagedByExtension
from callipper_db.extension import REGISTER, tables, write_extension
from catalogue import GOLDEN, catalogue
from deployments import binaries, call, succeed
from handmade import ORIGIN, write_model
from sessions import user_session

CREATE = "CREATE EXTENSION callipper"


@contextmanager
def installed(dsn: str, folder: Path, **options: Any) -> Iterator[None]:
    """The files of the extension on the server, for as long as the block lasts."""
    config = binaries(dsn) / "pg_config"
    said = (
        subprocess.run([config, "--sharedir"], capture_output=True, text=True, check=False).stdout
        if config.exists()
        else ""
    )
    there = Path(said.strip() or "/nowhere") / "extension"
    if not (there / "vector.control").exists() or not os.access(there, os.W_OK):
        pytest.skip(f"the server reads extensions from {there}, where this user may not write")
    if (there / "callipper.control").exists():
        pytest.skip(f"there is an extension callipper in {there}")
    write_extension(folder, **options)
    files = [path for path in folder.glob("callipper*") if ".pgtle" not in path.name]
    try:
        for path in files:
            shutil.copy(path, there)
        yield
    finally:
        for path in files:
            (there / path.name).unlink(missing_ok=True)


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
