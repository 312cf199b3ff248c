"""The schema as a PostgreSQL extension: the same migrations and sql/ as init, in the files that CREATE EXTENSION reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from callipper_db import db, schema
from callipper_db.versions import RELEASES

COMMENT = "spatial-semantic search: text_embed, loc_embed, search and describe, on PostGIS and pgvector"
CONTROL = """\
comment = '{comment}'
default_version = '{version}'
requires = 'postgis, vector'
schema = callipper
relocatable = false
superuser = false
"""
# For psql, which would run the statements one by one. pg_tle does not accept it.
NO_PSQL = "\\echo {how} \\quit\n"
# CREATE EXTENSION makes these tables, and a dump holds their rows. Of the others, three have one row each, which the script
# writes, and restored POIs fill poi_change again. Partitions of model versions are no members: a dump holds them whole.
REGISTER = """
DO $$
DECLARE
    member regclass;
BEGIN
    FOR member IN
        SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_depend d
            ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
        JOIN pg_catalog.pg_extension e ON d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.refobjid = e.oid
        WHERE e.extname = 'callipper' AND c.relkind IN ('r', 'S')
            AND c.relname NOT IN ('alembic_version', 'change', 'signing_key', 'poi_change')
    LOOP
        PERFORM pg_catalog.pg_extension_config_dump(member, '');
    END LOOP;
END
$$;
"""
TLE_QUOTE = "$_callipper_$"
# pg_tle writes a control file of its own, which names no schema: CREATE EXTENSION callipper SCHEMA callipper does.
TLE_SCHEMA = "CREATE SCHEMA IF NOT EXISTS callipper;\n"


def write_extension(folder: Path, extensions_in: str = "public", releases: Mapping[str, str] = RELEASES) -> list[Path]:
    """Write the control file, the script, an update script for each earlier release, and a script for pg_tle.

    extensions_in: the schema that holds postgis and vector in the databases to come. releases: version -> its revision.
    """
    version = schema.version()
    install = _script(None, extensions_in)
    how = f"Use \"CREATE EXTENSION callipper VERSION '{version}'\" to load this file."
    files = {
        "callipper.control": CONTROL.format(comment=COMMENT, version=version),
        f"callipper--{version}.sql": NO_PSQL.format(how=how) + install,
    }
    tle = [_tle("install_extension", f"'callipper', '{version}', '{COMMENT}'", install, ", '{postgis,vector}'")]
    for release, revision in releases.items():
        if release != version:
            update = _script(revision, extensions_in)
            how = f"Use \"ALTER EXTENSION callipper UPDATE TO '{version}'\" to load this file."
            files[f"callipper--{release}--{version}.sql"] = NO_PSQL.format(how=how) + update
            tle.append(_tle("install_update_path", f"'callipper', '{release}', '{version}'", update, ""))
    files[f"callipper--{version}.pgtle.sql"] = "\n".join([TLE_SCHEMA, *tle])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in files]


def _script(revision: str | None, extensions_in: str) -> str:
    """What CREATE EXTENSION, or ALTER EXTENSION UPDATE from a revision, runs in its transaction."""
    extensions = dict.fromkeys(("postgis", "vector"), extensions_in)
    parts = [
        tables(revision, "head", extensions),
        *schema.sql_statements(extensions),
        schema.stamp().as_string() + ";",
        schema.owner_statements(),
        REGISTER,
    ]
    return "\n".join(part.strip() for part in parts if part.strip()) + "\n"


def tables(revision: str | None, to: str, extensions: dict[str, str]) -> str:
    """The migrations after one revision, up to another."""
    lines = [line for line in schema.offline_migrations(revision, to).splitlines() if line not in ("BEGIN;", "COMMIT;")]
    start = "" if revision else "CREATE SCHEMA callipper_map;\n"
    start += f"SET LOCAL search_path = {db.SEARCH_PATH};\nSET LOCAL client_min_messages = warning;\n"
    return start + db.name_extensions("\n".join(lines), extensions)


def _tle(function: str, arguments: str, script: str, more: str) -> str:
    assert TLE_QUOTE not in script
    return f"SELECT pgtle.{function}({arguments}, {TLE_QUOTE}\n{script}{TLE_QUOTE}{more});\n"
