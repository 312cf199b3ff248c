"""From the staging table poi_load into callipper.poi."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString, NamedTuple

import psycopg
from psycopg import sql

from callipper_db import db
from callipper_db.disk import check_room

# Nearly no file has duplicates. So an index, which is made in half the time, is tried before they are looked for.
NO_DUPLICATES = "CREATE UNIQUE INDEX poi_load_id ON poi_load (source_id, source)"

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

# What is to be done, by one join: rows to change, to insert (no `stored`) and to remove (no `staged`). Rows that would stay as
# they are are left alone.
DIFF: LiteralString = """
CREATE TEMPORARY TABLE poi_diff ON COMMIT DROP AS
SELECT l.ctid AS staged, p.ctid AS stored
FROM poi_load AS l
FULL JOIN (SELECT q.*, q.ctid FROM callipper.poi AS q WHERE q.source IN (SELECT source FROM poi_load)) AS p
    ON p.source = l.source AND p.source_id = l.source_id
WHERE ({replace} OR l.source IS NOT NULL)
    AND (p.name, p.category, p.category_group, p.description, p.attributes, ST_X(p.geom), ST_Y(p.geom))
        IS DISTINCT FROM (l.name, l.category, l.category_group, l.description, l.attributes, l.x, l.y)"""

# Nobody else writes, so rows stay where they are: the others are found by their places in the files.
BY_PLACE = "SET LOCAL enable_nestloop = on; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"

UPDATE = """
UPDATE callipper.poi AS p
SET name = l.name, category = l.category, category_group = l.category_group, description = l.description,
    geom = ST_SetSRID(ST_MakePoint(l.x, l.y), 4326), attributes = l.attributes
FROM poi_diff AS d JOIN poi_load AS l ON l.ctid = d.staged
WHERE p.ctid = d.stored"""

INSERT = """
INSERT INTO callipper.poi (source, source_id, name, category, category_group, description, geom, attributes)
SELECT source, source_id, name, category, category_group, description, ST_SetSRID(ST_MakePoint(x, y), 4326), attributes
FROM poi_load AS l"""

INSERT_NEW = f"{INSERT} JOIN poi_diff AS d ON l.ctid = d.staged WHERE d.stored IS NULL"

REMOVE = "DELETE FROM callipper.poi AS p USING poi_diff AS d WHERE p.ctid = d.stored AND d.staged IS NULL"

# What the files of this run hold, for --replace-source.
SEEN = """
CREATE TEMPORARY TABLE IF NOT EXISTS poi_seen (source text COLLATE "C", source_id text COLLATE "C") ON COMMIT PRESERVE ROWS"""

ADD_SEEN = "INSERT INTO poi_seen SELECT source, source_id FROM poi_load"

REMOVE_UNSEEN = """
DELETE FROM callipper.poi AS p
WHERE p.source IN (SELECT source FROM poi_seen)
    AND NOT EXISTS (SELECT FROM poi_seen AS s WHERE s.source = p.source AND s.source_id = p.source_id)"""

# What makes inserting many rows into the empty table faster, each with what undoes it. TRUNCATE gives the table a new file,
# which PostgreSQL fills without WAL where wal_level is minimal. It also notes for `refresh` that all POIs are new, so the
# trigger need not keep a second copy of the rows. Three indexes take two thirds of the time of an insertion, and made
# afterwards a quarter of that. One that a foreign key or a replication needs stays.
MANY = 10_000  # rows; for fewer it is not worth to keep readers out
LOCK_OUT = "LOCK TABLE callipper.poi IN ACCESS EXCLUSIVE MODE NOWAIT"
FASTER = """
SELECT step.before, step.after
FROM pg_catalog.pg_class AS c, (VALUES
    ('TRUNCATE ONLY callipper.poi', NULL),
    ('ALTER TABLE callipper.poi DISABLE TRIGGER note_insert', 'ALTER TABLE callipper.poi ENABLE TRIGGER note_insert')
) AS step (before, after)
WHERE c.oid = 'callipper.poi'::pg_catalog.regclass AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
    AND pg_catalog.current_setting('wal_level') <> 'logical'
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS f WHERE f.confrelid = c.oid AND f.contype = 'f')
    AND (SELECT count(*) FROM pg_catalog.pg_trigger AS t
        WHERE t.tgrelid = c.oid AND t.tgname IN ('note_insert', 'note_truncate') AND t.tgenabled = 'O') = 2
UNION ALL
SELECT CASE WHEN k.conname IS NULL THEN 'DROP INDEX callipper.' || x.relname
        ELSE 'ALTER TABLE callipper.poi DROP CONSTRAINT poi_source_source_id_key' END,
    CASE WHEN k.conname IS NULL THEN pg_catalog.pg_get_indexdef(i.indexrelid)
        ELSE 'ALTER TABLE callipper.poi ADD CONSTRAINT poi_source_source_id_key '
            || pg_catalog.pg_get_constraintdef(k.oid) END
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid
JOIN pg_catalog.pg_class AS x ON x.oid = i.indexrelid
LEFT JOIN pg_catalog.pg_constraint AS k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype = 'u'
WHERE i.indexrelid IN (
        pg_catalog.to_regclass('callipper.poi_geom_idx'), pg_catalog.to_regclass('callipper.poi_other_names_idx'),
        pg_catalog.to_regclass('callipper.poi_source_source_id_key')
    )
    AND pg_catalog.pg_has_role(c.relowner, 'USAGE') AND NOT i.indisreplident
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS f WHERE f.conindid = i.indexrelid AND f.contype = 'f')"""


class Upserted(NamedTuple):
    """Where the staged rows went; the others were there already."""

    duplicates: int  # the file has the same id again further down
    updated: int
    inserted: int
    removed: int  # rows of the same sources that were not staged


def upsert(connection: db.Connection, staged: int, name: str, replace_source: bool) -> Upserted:
    """Bring the `staged` rows of poi_load into callipper.poi. `name` is the file's, for a disk that has too little room.

    replace_source: remove the other rows of the same sources.
    """
    (size,) = connection.one("SELECT pg_catalog.pg_relation_size('pg_temp.poi_load')")
    check_room(connection, 2 * size, f"Loading {name}")  # the rows and their indexes
    connection.execute(HASH_JOINS)
    duplicates = _drop_duplicates(connection)
    connection.execute(LOCK)
    if connection.execute("SELECT 1 FROM callipper.poi LIMIT 1").fetchone() is None:
        with _faster(connection, staged):
            return Upserted(duplicates, 0, connection.execute(connection.named(INSERT)).rowcount, 0)
    connection.execute("ANALYZE poi_load (source, source_id)")
    connection.execute(connection.named(DIFF).format(replace=sql.Literal(replace_source)))
    connection.execute(BY_PLACE)
    updated, inserted, removed = (
        connection.execute(connection.named(statement)).rowcount for statement in (UPDATE, INSERT_NEW, REMOVE)
    )
    connection.execute("DROP TABLE poi_diff")
    return Upserted(duplicates, updated, inserted, removed)


def remove_unseen(connection: db.Connection) -> int:
    """Remove the rows whose source is in poi_seen and which are not; how many they were."""
    connection.execute("ANALYZE poi_seen")
    connection.execute(HASH_JOINS)
    connection.execute(LOCK)
    return connection.execute(REMOVE_UNSEEN).rowcount


def _drop_duplicates(connection: db.Connection) -> int:
    try:
        with connection.transaction():
            connection.execute(NO_DUPLICATES)
    except psycopg.errors.UniqueViolation:
        return connection.execute(DROP_DUPLICATES).rowcount
    connection.execute("DROP INDEX pg_temp.poi_load_id")
    return 0


@contextmanager
def _faster(connection: db.Connection, rows: int) -> Iterator[None]:
    """Insert many rows into the empty table in the block, and make the costly indexes after it.

    Not where the session does not own the table, or where somebody is reading it: nobody waits for the other.
    """
    found = connection.execute(FASTER).fetchall() if rows >= MANY else []
    if not found or not _locked_out(connection):
        yield
        return
    for before, _ in found:
        connection.execute(before)
    yield
    for _, after in found:
        if after is not None:
            connection.execute(after)


def _locked_out(connection: db.Connection) -> bool:
    try:
        with connection.transaction():
            connection.execute(LOCK_OUT)
    except psycopg.errors.LockNotAvailable:
        return False
    return True
