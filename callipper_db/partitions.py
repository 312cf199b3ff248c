"""The partitions of one model version: tables of embeddings, of kinds and of names."""

from __future__ import annotations

from psycopg import sql

from callipper_db.db import Connection
from callipper_db.tables import SCHEMA


def partition(table: str, version: int) -> sql.Identifier:
    """The partition of one model version."""
    return sql.Identifier(SCHEMA, f"{table}_v{version}")


def has_partition(connection: Connection, table: str, version: int) -> bool:
    """Whether a version has rows of its own in a table. Versions of earlier programs lack the tables that came later."""
    return connection.one("SELECT to_regclass(%s) IS NOT NULL", [f"{SCHEMA}.{table}_v{version}"]) == (True,)


def create_partition(connection: Connection, table: str, version: int) -> sql.Identifier:
    """A new table with the parent's columns and owner. It has no indexes yet: they are made after the load."""
    name = partition(table, version)
    parent = sql.Identifier(SCHEMA, table)
    connection.execute(
        sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING STORAGE)").format(
            name, parent
        )
    )
    # A member of the owner's role, or a superuser, may be at work. The functions read the table with its owner's rights.
    query = "SELECT pg_get_userbyid(relowner)::text FROM pg_catalog.pg_class WHERE oid = %s::regclass"
    (owner,) = connection.one(query, [f"{SCHEMA}.{table}"])
    connection.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(name, sql.Identifier(owner)))
    return name


def attach_partition(connection: Connection, table: str, version: int) -> None:
    """Attach a loaded table to its parent. PostgreSQL builds the parent's indexes on it and checks its foreign keys."""
    names = {
        "name": partition(table, version),
        "parent": sql.Identifier(SCHEMA, table),
        "version": sql.Literal(version),
        "check": sql.Identifier(f"{table}_v{version}_version_check"),
    }
    for statement in (
        # The check lets ATTACH skip its scan for rows of other versions.
        "ALTER TABLE {name} ADD CONSTRAINT {check} CHECK (version = {version})",
        "ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES IN ({version})",
        "ALTER TABLE {name} DROP CONSTRAINT {check}",
        "ANALYZE {name}",
    ):
        connection.execute(sql.SQL(statement).format(**names))
