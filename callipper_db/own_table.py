"""Embeddings into a table of the user's own, in chunks that are committed one by one. Others read and write it meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from callipper_db import db
from callipper_db.binary_copy import read_rows, write_rows
from callipper_db.errors import BadTable, EmbeddingsOfAnother
from callipper_db.place_encoder import USABLE, PlaceEncoder, open_encoder
from callipper_db.progress import Reporter
from callipper_db.tables import DIMENSIONS

CHUNK = 20_000  # rows a transaction
MARK = "embeddings by callipper-db, model version {}"  # the comment of a column; what it replaces follows
REPLACING = ", still replacing others"

COLUMNS = """
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), t.typname::text
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = %s::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
# The primary key, else the first unique one whose columns are never NULL.
KEY = """
SELECT ARRAY(SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY AS k(number, place)
             JOIN pg_attribute a ON (a.attrelid, a.attnum) = (i.indrelid, k.number) ORDER BY k.place)
FROM pg_index i WHERE i.indrelid = %s::oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
    AND NOT EXISTS (SELECT FROM unnest(i.indkey) AS k(number)
                    JOIN pg_attribute a ON (a.attrelid, a.attnum) = (i.indrelid, k.number) WHERE NOT a.attnotnull)
ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1
"""

# A row's place in degrees and in the metres that the encoder reads, numbered apart for those that can be embedded and the rest.
PLACES = f"""
CREATE TEMPORARY TABLE todo AS
SELECT row_number() OVER (PARTITION BY usable) - 1 AS number, u.*, ST_X(metres) AS easting, ST_Y(metres) AS northing
FROM (
    SELECT d.*, ({USABLE}) IS TRUE AS usable FROM (
        SELECT r.*, m.extent, ST_X(lonlat) AS lon, ST_Y(lonlat) AS lat
        FROM pg_temp.row_to_do r JOIN callipper.model m ON m.version = {{version}},
            LATERAL (SELECT CASE
                WHEN ST_SRID(shape) = 0 OR ST_IsEmpty(shape) THEN NULL
                WHEN ST_Dimension(shape) = 0 AND ST_NumGeometries(shape) = 1 THEN ST_GeometryN(shape, 1)
                ELSE ST_Centroid(shape) END AS spot OFFSET 0) AS s,
            LATERAL (SELECT CASE WHEN abs(ST_X(spot)) < 'infinity' AND abs(ST_Y(spot)) < 'infinity'
                THEN ST_Transform(spot, 4326) END AS lonlat OFFSET 0) AS l
        OFFSET 0
    ) d OFFSET 0
) u, LATERAL (SELECT CASE WHEN usable THEN ST_Transform(ST_SetSRID(ST_MakePoint(lon, lat), 4326), {{srid}}) END
    AS metres OFFSET 0) AS p
"""


@dataclass(frozen=True)
class TableOptions:
    """Which rows of a table are embedded, and by what."""

    geometry: str | None = None  # a column of type geometry or geography; None: the only one, else lon and lat
    where: str | None = None  # a condition in SQL
    areas: str = "centroid"  # of polygons; or "mean", of their cells (area_embed)
    everything: bool = False  # also rows that have an embedding


@dataclass(frozen=True)
class TableSummary:
    """What was written."""

    table: str
    column: str
    version: int
    rows: int  # embedded now
    skipped: int  # without a place that can be embedded
    seconds: float


@dataclass(frozen=True)
class _Target:
    oid: int
    name: sql.Composed
    column: sql.Identifier
    key: list[sql.Identifier]
    place: sql.Composable  # the geometry of a row, of any type


def embed_table(
    dsn: str,
    table: str,
    column: str,
    reporter: Reporter,
    options: TableOptions | None = None,
    *,
    torch: bool | None = None,
) -> TableSummary:
    """Fill a column of type vector, which is made where it is missing, with the embeddings of the rows' places.

    Only rows in which it is NULL are filled, so a run that was interrupted goes on where it was; with options.everything all
    rows are. The table needs a primary key, or a unique one without NULL. torch: see open_encoder. Raises BadTable,
    EmbeddingsOfAnother, NoActiveModel.
    """
    options = options or TableOptions()
    began = time.monotonic()
    with db.session(dsn, autocommit=True) as connection:
        encoder = open_encoder(connection, torch=torch)
        with _bad_sql(table):
            target = _find_target(connection, table, column, options.geometry, DIMENSIONS)
        everything = _mark(connection, target, table, column, encoder, options.everything)
        reporter.stage("reading places")
        with _bad_sql(table):
            _list_rows(connection, target, encoder, options.where, everything)
        total, skipped = connection.one(
            "SELECT count(*) FILTER (WHERE usable), count(*) FILTER (WHERE NOT usable) FROM pg_temp.todo"
        )
        reporter.stage("embedding", total)
        connection.execute(connection.named("CREATE TEMPORARY TABLE embedded (number int8, emb @vector)"))
        for first in range(0, total, CHUNK):
            with connection.transaction():
                reporter.advance(_embed_chunk(connection, target, encoder, first, options.areas))
        if everything:
            _comment(connection, target, MARK.format(encoder.version))
    return TableSummary(table, column, encoder.version, total, skipped, round(time.monotonic() - began, 2))


def _find_target(connection: db.Connection, table: str, column: str, geometry: str | None, dimensions: int) -> _Target:
    with connection.transaction(), connection.users_names():
        oid, schema, name = connection.execute(
            "SELECT c.oid, n.nspname::text, c.relname::text FROM pg_catalog.pg_class c"
            " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s::pg_catalog.regclass",
            [table],
        ).fetchone() or (0, "", "")
    found = {row[0]: row[1:] for row in connection.execute(COLUMNS, [oid]).fetchall()}
    key = connection.execute(KEY, [oid]).fetchone()
    if key is None:
        raise BadTable(table=table, reason="it has no primary key. Add one: ALTER TABLE ... ADD PRIMARY KEY (...)")
    target = _Target(
        oid,
        sql.SQL("{}").format(sql.Identifier(schema, name)),
        sql.Identifier(column),
        [sql.Identifier(part) for part in key[0]],
        _place(connection, table, geometry, {name: kind for name, (_, kind) in found.items()}),
    )
    if column not in found:
        connection.execute(
            connection.named("ALTER TABLE {} ADD COLUMN {} @vector({})").format(
                target.name, target.column, sql.Literal(dimensions)
            )
        )
    elif found[column][1] != "vector" or found[column][0].rpartition(".")[2] not in ("vector", f"vector({dimensions})"):
        reason = f"its column {column} is of type {found[column][0]}, and vector({dimensions}) is needed"
        raise BadTable(table=table, reason=reason)
    return target


def _place(connection: db.Connection, table: str, geometry: str | None, kinds: dict[str, str]) -> sql.Composable:
    shapes = [name for name, kind in kinds.items() if kind in ("geometry", "geography")]
    if geometry is not None and geometry not in shapes:
        raise BadTable(table=table, reason=f"it has no column {geometry} of type geometry or geography")
    if geometry is None and len(shapes) > 1:
        raise BadTable(table=table, reason=f"it has several geometries; choose with --geometry: {', '.join(shapes)}")
    if geometry is None and not shapes:
        if not {"lon", "lat"} <= kinds.keys():
            raise BadTable(table=table, reason="it has neither a geometry nor columns lon and lat")
        return connection.named("ST_SetSRID(ST_MakePoint(t.lon::float8, t.lat::float8), 4326)")
    return connection.named("t.{}::@geometry").format(sql.Identifier(geometry or shapes[0]))


def _mark(
    connection: db.Connection, target: _Target, table: str, column: str, encoder: PlaceEncoder, everything: bool
) -> bool:
    """Note in the column's comment whose embeddings it holds; returns whether all rows are to be written."""
    mark = MARK.format(encoder.version)
    (comment,) = connection.execute(
        "SELECT coalesce(col_description(a.attrelid, a.attnum), '') FROM pg_attribute a"
        " WHERE a.attrelid = %s::oid AND a.attname = %s",
        [target.oid, column],
    ).fetchone() or ("",)
    if comment == mark + REPLACING:
        return True
    filled = connection.execute(
        sql.SQL("SELECT 1 FROM {} AS t WHERE t.{} IS NOT NULL LIMIT 1").format(target.name, target.column)
    ).fetchone()
    if filled and comment != mark and not everything:
        raise EmbeddingsOfAnother(table=table, column=column, version=encoder.version)
    _comment(connection, target, mark + REPLACING if filled and everything else mark)
    return bool(filled and everything)


def _comment(connection: db.Connection, target: _Target, text: str) -> None:
    connection.execute(sql.SQL("COMMENT ON COLUMN {}.{} IS {}").format(target.name, target.column, sql.Literal(text)))


def _list_rows(
    connection: db.Connection, target: _Target, encoder: PlaceEncoder, where: str | None, everything: bool
) -> None:
    """The rows to fill, in pg_temp.todo: number, k0, k1, ... (the key), shape, lon, lat, easting, northing, usable."""
    keys = sql.SQL(", ").join(
        sql.SQL("t.{} AS {}").format(part, sql.Identifier(f"k{number}")) for number, part in enumerate(target.key)
    )
    with connection.transaction(), connection.users_names():
        connection.execute(
            connection.named(
                "CREATE TEMPORARY TABLE row_to_do AS SELECT {keys}, {place} AS shape FROM {table} AS t"
                " WHERE ({everything} OR t.{column} IS NULL) AND ({where})"
            ).format(
                keys=keys,
                place=target.place,
                table=target.name,
                everything=sql.Literal(everything),
                column=target.column,
                where=sql.SQL(where or "true"),  # the user's own SQL, run with their own rights
            )
        )
    connection.execute(
        connection.named(PLACES).format(version=sql.Literal(encoder.version), srid=sql.Literal(encoder.srid))
    )
    connection.execute("DROP TABLE pg_temp.row_to_do")
    connection.execute("CREATE INDEX ON pg_temp.todo (number) WHERE usable")
    # Without its geometries, whose statistics take nearly as long as embedding the places.
    connection.execute("ANALYZE pg_temp.todo (number, usable)")


def _embed_chunk(connection: db.Connection, target: _Target, encoder: PlaceEncoder, first: int, areas: str) -> int:
    here = sql.SQL("usable AND number >= {} AND number < {}").format(sql.Literal(first), sql.Literal(first + CHUNK))
    by_mean = connection.named("ST_Dimension(shape) = 2") if areas == "mean" else sql.SQL("false")
    query = sql.SQL("SELECT number, lon, lat, easting, northing FROM pg_temp.todo WHERE {} AND NOT {}").format(
        here, by_mean
    )
    number, lon, lat, easting, northing = read_rows(connection, query, ["int8", *["float8"] * 4])
    if encoder.loaded is None:
        emb = encoder.embed_lonlat(connection, np.column_stack([lon, lat]))
    else:
        emb = encoder.embed_metres(np.column_stack([easting, northing]))
    columns: dict[str, tuple[str, Any]] = {"number": ("int8", number), "emb": ("vector", emb)}
    write_rows(connection, sql.Identifier("pg_temp", "embedded"), columns)
    if areas == "mean":
        connection.execute(
            sql.SQL(
                "INSERT INTO pg_temp.embedded SELECT number, callipper.area_embed(shape) FROM pg_temp.todo WHERE {} AND {}"
            ).format(here, by_mean)
        )
    same = sql.SQL(" AND ").join(
        sql.SQL("t.{} = d.{}").format(part, sql.Identifier(f"k{number}")) for number, part in enumerate(target.key)
    )
    connection.execute("ANALYZE pg_temp.embedded")
    written = connection.execute(
        sql.SQL(
            "UPDATE {table} AS t SET {column} = e.emb FROM pg_temp.embedded e JOIN pg_temp.todo d"
            " ON d.usable AND d.number = e.number WHERE {same}"
        ).format(table=target.name, column=target.column, same=same)
    ).rowcount
    connection.execute("TRUNCATE pg_temp.embedded")
    return written


@contextmanager
def _bad_sql(table: str) -> Iterator[None]:
    """What the user has written in SQL and PostgreSQL does not take."""
    try:
        yield
    except (psycopg.ProgrammingError, psycopg.DataError) as error:
        raise BadTable(table=table, reason=str(error).splitlines()[0]) from error
