"""From the staging table poi_load into callipper.poi."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psycopg

from callipper_db import db
from callipper_db.disk import check_room

# Of rows with the same id the last one counts.
DROP_DUPLICATES = """
DELETE FROM poi_load AS l
USING (SELECT source, source_id, max("row") AS last FROM poi_load GROUP BY 1, 2 HAVING count(*) > 1) AS d
WHERE l.source = d.source AND l.source_id = d.source_id AND l."row" < d.last"""

# Until the transaction ends nobody else writes, so no row appears between the statements; readers go on.
LOCK = "LOCK TABLE callipper.poi IN SHARE ROW EXCLUSIVE MODE"

# Of a table that was analysed when it was empty the planner thinks that reading it once a row costs nothing; meanwhile the
# insertion fills it, and each row takes longer than the one before.
HASH_JOINS = "SET LOCAL enable_nestloop = off"

# A row that would stay as it is is left alone.
UPDATE = """
UPDATE callipper.poi AS p
SET name = l.name, category = l.category, category_group = l.category_group, description = l.description,
    geom = ST_SetSRID(ST_MakePoint(l.x, l.y), 4326), attributes = l.attributes
FROM poi_load AS l
WHERE p.source = l.source AND p.source_id = l.source_id
    AND (p.name, p.category, p.category_group, p.description, p.attributes, ST_X(p.geom), ST_Y(p.geom))
        IS DISTINCT FROM (l.name, l.category, l.category_group, l.description, l.attributes, l.x, l.y)"""

INSERT = """
INSERT INTO callipper.poi (source, source_id, name, category, category_group, description, geom, attributes)
SELECT source, source_id, name, category, category_group, description, ST_SetSRID(ST_MakePoint(x, y), 4326), attributes
FROM poi_load AS l"""

INSERT_NEW = f"""{INSERT}
WHERE NOT EXISTS (SELECT FROM callipper.poi AS p WHERE p.source = l.source AND p.source_id = l.source_id)"""

# The index takes half of the time of an insertion, and a tenth of it when it is made afterwards.
MANY = 10_000  # rows; for fewer it is not worth to keep readers out
LOCK_OUT = "LOCK TABLE callipper.poi IN ACCESS EXCLUSIVE MODE NOWAIT"
SPATIAL_INDEX = """
SELECT pg_catalog.pg_get_indexdef(i.indexrelid)
FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid
WHERE i.indexrelid = pg_catalog.to_regclass('callipper.poi_geom_idx') AND pg_catalog.pg_has_role(c.relowner, 'USAGE')"""


class Upserted(NamedTuple):
    """Where the staged rows went; the others were there already."""

    duplicates: int  # the file has the same id again further down
    updated: int
    inserted: int


def upsert(connection: db.Connection, staged: int, name: str) -> Upserted:
    """Bring the `staged` rows of poi_load into callipper.poi. `name` is the file's, for a disk that has too little room."""
    row = connection.execute("SELECT pg_catalog.pg_relation_size('pg_temp.poi_load')").fetchone()
    check_room(connection, 2 * (row[0] if row else 0), f"Loading {name}")  # the rows and their indexes
    duplicates = connection.execute(DROP_DUPLICATES).rowcount
    connection.execute(LOCK)
    if connection.execute("SELECT 1 FROM callipper.poi LIMIT 1").fetchone() is None:
        with _without_spatial_index(connection, staged):
            return Upserted(duplicates, 0, connection.execute(connection.named(INSERT)).rowcount)
    connection.execute("ANALYZE poi_load (source, source_id)")
    connection.execute(HASH_JOINS)
    updated = connection.execute(connection.named(UPDATE)).rowcount
    return Upserted(duplicates, updated, connection.execute(connection.named(INSERT_NEW)).rowcount)


@contextmanager
def _without_spatial_index(connection: db.Connection, rows: int) -> Iterator[None]:
    """Make the spatial index of the empty table after the block rather than row by row in it.

    Not where the session does not own the table, or where somebody is reading it: nobody waits for the other.
    """
    found = connection.execute(SPATIAL_INDEX).fetchone() if rows >= MANY else None
    if found is None or not _locked_out(connection):
        yield
        return
    connection.execute("DROP INDEX callipper.poi_geom_idx")
    yield
    connection.execute(found[0])


def _locked_out(connection: db.Connection) -> bool:
    try:
        with connection.transaction():
            connection.execute(LOCK_OUT)
    except psycopg.errors.LockNotAvailable:
        return False
    return True
