"""The loaded POIs by source: list them, remove them. A refresh brings the model up to date."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row

from callipper_db import db
from callipper_db.errors import UnknownSource

PARTS = {"source_id", "name", "category", "category_group", "description"}  # other names are those of attributes

SOURCES = """
SELECT source, count(*) AS pois, count(category) AS with_category, count(DISTINCT category) AS categories
FROM callipper.poi GROUP BY source ORDER BY source"""


def list_sources(dsn: str) -> list[dict[str, Any]]:
    """Each source with its number of POIs, of POIs with a category, and of categories."""
    with db.session(dsn) as connection, connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(SOURCES).fetchall()


def remove_pois(dsn: str, source: str, where: Mapping[str, str] | None = None, *, dry_run: bool = False) -> int:
    """Delete the POIs of a source, or those with these values; returns how many. With `dry_run` only count them.

    `where`: a column of callipper.poi, or a key of attributes -> the value as text. Raises UnknownSource.
    """
    conditions = [sql.SQL("source = {}").format(sql.Literal(source))]
    for name, value in (where or {}).items():
        if name in PARTS:
            conditions.append(sql.SQL("coalesce({}, '') = {}").format(sql.Identifier(name), sql.Literal(value)))
        else:
            column = sql.SQL("coalesce(attributes ->> {}, '')").format(sql.Literal(name))
            conditions.append(sql.SQL("{} = {}").format(column, sql.Literal(value)))
    condition = sql.SQL(" AND ").join(conditions)
    with db.session(dsn) as connection:
        there = connection.execute("SELECT source FROM callipper.poi GROUP BY source ORDER BY source").fetchall()
        if (source,) not in there:
            raise UnknownSource(source=source, sources=", ".join(name for (name,) in there) or "none")
        if dry_run:
            return int(connection.one(sql.SQL("SELECT count(*) FROM callipper.poi WHERE {}").format(condition))[0])
        return connection.execute(sql.SQL("DELETE FROM callipper.poi WHERE {}").format(condition)).rowcount
