"""From SQL to arrays: one snapshot of the source, streamed by binary COPY."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psycopg
from psycopg import sql

from callipper_db.db import Connection
from callipper_db.errors import BadExtent, BadSource, NotEnoughData
from callipper_db.store import read_rows
from trainer.config import POI_TEMPLATE
from trainer.samples import Samples

POI_TABLE = "callipper.poi"
ID_COLUMNS = ("id", "poi_id", "gid", "fid", "ogc_fid", "osm_id")
TEXT_COLUMNS = ("text", "description")
UTM_REACH_DEGREES = 12.0  # from the central meridian; further out UTM's metres are off by more than 1 %


@dataclass(frozen=True)
class Source:
    """Where the POIs are and how their text is made."""

    relation: str = POI_TABLE  # a table or view, or a query
    text: str | None = None  # SQL expression over the relation's columns
    template: str | None = None  # or a template: '[{name}, ]A place of {category}'
    identifier: str | None = None  # column or SQL expression that yields a bigint
    geometry: str | None = None  # column; None: the first geometry
    srid: int | None = None  # projected CRS in metres; None: the UTM zone


@dataclass(frozen=True)
class Snapshot:
    """What was read, and what was left out on the way."""

    samples: Samples
    taken_at: str
    rows: int
    without_geometry: int
    without_text: int
    text_sql: str


def read_samples(
    connection: Connection, source: Source, advance: Callable[[int], None] = lambda rows: None
) -> Snapshot:
    """Read the whole source in one REPEATABLE READ transaction.

    The connection must be outside a transaction. Raises BadSource, BadExtent, NotEnoughData.
    """
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    try:
        with connection.transaction():
            return _read(connection, source, advance)
    finally:
        connection.isolation_level = None


def _read(connection: Connection, source: Source, advance: Callable[[int], None]) -> Snapshot:
    taken_at = str(_scalar(connection, "SELECT now()"))
    relation = _relation(source.relation)
    columns = _columns(connection, source, relation)
    text_sql = _text_expression(source, columns)
    geometry = _geometry_column(source, columns)
    identifier = _identifier_expression(source, columns)
    # Read once, into a table of the session's own: a query is not run twice, and a volatile one cannot differ.
    query = sql.SQL(
        "CREATE TEMPORARY TABLE sample ON COMMIT DROP AS"
        " SELECT id, text, CASE WHEN ST_GeometryType(geom) = 'ST_Point' THEN geom ELSE ST_Centroid(geom) END AS geom FROM ("
        " SELECT ({id})::bigint AS id, nullif(btrim(({text})::text), '') AS text, s.{geom} AS geom FROM {relation} AS s"
        ") AS raw"
    ).format(
        id=sql.SQL(identifier),  # type: ignore[arg-type]
        text=sql.SQL(text_sql),  # type: ignore[arg-type]
        geom=sql.Identifier(geometry),
        relation=relation,
    )
    try:
        connection.execute(query)
        _to_lon_lat(connection)
    except psycopg.Error as error:
        if isinstance(error, psycopg.OperationalError):
            raise
        raise BadSource(source=source.relation, reason=_reason(error)) from error
    rows, without_geometry, without_text = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE geom IS NULL), count(*) FILTER (WHERE geom IS NOT NULL AND text IS NULL)"
        " FROM sample"
    ).fetchone() or (0, 0, 0)
    connection.execute("DELETE FROM sample WHERE geom IS NULL OR text IS NULL")
    if rows == without_geometry + without_text:
        raise NotEnoughData(
            f"{source.relation} has {rows} rows, {without_geometry} of them without a usable geometry and"
            f" {without_text} without a text. Load POIs with: callipper-db load FILE"
        )
    srid = _check_srid(connection, source.srid) if source.srid else _choose_utm(connection)
    samples = _stream(connection, srid, advance)
    return Snapshot(samples, taken_at, rows, without_geometry, without_text, text_sql)


def _to_lon_lat(connection: Connection) -> None:
    row = connection.execute("SELECT count(*) FROM sample WHERE ST_SRID(geom) = 0 AND NOT ST_IsEmpty(geom)").fetchone()
    if row and row[0]:
        raise psycopg.errors.InvalidParameterValue(
            f"{row[0]} geometries have no SRID; set it with ST_SetSRID(geom, 4326), or whichever it is"
        )
    # Out of range, empty or not finite: no place on earth, counted as without geometry.
    connection.execute(
        "UPDATE sample SET geom = CASE WHEN ST_IsEmpty(geom) THEN NULL ELSE ST_Transform(geom, 4326) END"
        " WHERE ST_SRID(geom) <> 4326 OR ST_IsEmpty(geom)"
    )
    connection.execute(
        "UPDATE sample SET geom = NULL WHERE NOT (ST_X(geom) BETWEEN -180 AND 180 AND ST_Y(geom) BETWEEN -90 AND 90)"
    )


def _stream(connection: Connection, srid: int, advance: Callable[[int], None]) -> Samples:
    connection.execute(
        "CREATE TEMPORARY TABLE distinct_text ON COMMIT DROP AS SELECT text,"
        " (row_number() OVER (ORDER BY text COLLATE \"C\") - 1)::int4 AS text_id FROM sample GROUP BY text"
    )
    connection.execute("ANALYZE distinct_text")
    texts = [str(text) for (text,) in connection.execute("SELECT text FROM distinct_text ORDER BY text_id")]
    columns = read_rows(connection, stream_query(srid), ["int8", "float8", "float8", "float8", "float8", "int4"], advance=advance)
    point_id, lon, lat, easting, northing, text_id = columns
    # The server's order may vary with parallel plans; the training order must not.
    order = np.lexsort((text_id, northing, easting, point_id))
    samples = Samples(
        point_id=point_id[order],
        lonlat=np.column_stack([lon, lat])[order],
        metres=np.column_stack([easting, northing])[order],
        text_id=text_id[order],
        texts=texts,
        srid=srid,
    )
    _check_samples(samples)
    return samples


def stream_query(srid: int) -> sql.Composed:
    """The query whose rows are streamed: id, lon, lat, easting, northing, text_id, each of fixed width."""
    return sql.SQL(
        "SELECT s.id, ST_X(s.geom), ST_Y(s.geom), ST_X(p.geom), ST_Y(p.geom), t.text_id"
        " FROM sample s JOIN distinct_text t USING (text), LATERAL (SELECT ST_Transform(s.geom, {}) AS geom OFFSET 0) AS p"
    ).format(sql.Literal(srid))


def _check_samples(samples: Samples) -> None:
    if not np.isfinite(samples.metres).all():
        raise BadExtent(
            reason=f"some POIs have no coordinates in EPSG:{samples.srid}. Choose a CRS that covers them with --srid."
        )
    values, counts = np.unique(samples.point_id, return_counts=True)
    if (counts > 1).any():
        raise BadSource(
            source="", reason=f"id {values[counts > 1][0]} appears {counts.max()} times. Name a unique column with --id."
        )


def _relation(relation: str) -> sql.Composable:
    """A table's name, quoted as it must be, or a query in parentheses."""
    stripped = relation.strip().rstrip(";")
    if re.match(r"(?is)^(select|with|table|values)\b", stripped):
        return sql.SQL("({})").format(sql.SQL(stripped))  # type: ignore[arg-type]
    return sql.Identifier(*stripped.replace('"', "").split("."))


def _columns(connection: Connection, source: Source, relation: sql.Composable) -> dict[str, str]:
    """Column names and their types."""
    try:
        cursor = connection.execute(sql.SQL("SELECT * FROM {} AS s LIMIT 0").format(relation))
    except psycopg.Error as error:
        raise BadSource(source=source.relation, reason=_reason(error)) from error
    names = dict(
        connection.execute(
            "SELECT oid::int8, typname::text FROM pg_catalog.pg_type WHERE oid = ANY(%s)",
            [[column.type_code for column in cursor.description or []]],
        ).fetchall()
    )
    return {column.name: names.get(column.type_code, "unknown") for column in cursor.description or []}


def _geometry_column(source: Source, columns: dict[str, str]) -> str:
    if source.geometry:
        return source.geometry
    found = [name for name, kind in columns.items() if kind == "geometry"]
    if not found:
        raise BadSource(
            source=source.relation,
            reason=f"no column of type geometry among {', '.join(columns)}. Use a query that makes one, such as"
            " SELECT *, ST_SetSRID(ST_Point(lon, lat), 4326) AS geom FROM ...",
        )
    return found[0]


def _identifier_expression(source: Source, columns: dict[str, str]) -> str:
    if source.identifier:
        return source.identifier
    if source.relation == POI_TABLE:
        return "s.poi_id"
    found = [name for name in ID_COLUMNS if columns.get(name) in {"int2", "int4", "int8"}]
    return f's."{found[0]}"' if found else "row_number() OVER ()"


def _text_expression(source: Source, columns: dict[str, str]) -> str:
    """The SQL expression that makes a row's text. Raises BadSource when there is nothing to make it of."""
    if source.text:
        return source.text
    if source.template:
        return template_expression(source.template, columns, source.relation)
    if "category" in columns:
        template = POI_TEMPLATE
        for name in ("name", "category_group"):
            if name not in columns:
                template = re.sub(rf"\[[^\]]*{{{name}}}[^\]]*\]", "", template)
        expression = template_expression(template, columns, source.relation)
        return f"coalesce(s.description::text, {expression})" if "description" in columns else expression
    found = [name for name in TEXT_COLUMNS if name in columns]
    if not found:
        raise BadSource(
            source=source.relation,
            reason=f"no text: say with --text or --template how to make it from {', '.join(columns)}",
        )
    return f"s.{found[0]}"


def template_expression(template: str, columns: dict[str, str], relation: str) -> str:
    """'[{name}, ]A place of {category}' as SQL; what stands in brackets goes where a column in it is NULL or empty."""
    pieces = []
    for optional, plain in re.findall(r"\[([^\]]*)\]|([^\[]+)", template):
        expression = _concatenation(optional or plain, columns, relation)
        pieces.append(f"coalesce({expression}, '')" if optional else expression)
    if not pieces:
        raise BadSource(source=relation, reason="the template is empty")
    return " || ".join(pieces)


def _concatenation(text: str, columns: dict[str, str], relation: str) -> str:
    parts = []
    for name, literal in re.findall(r"\{([^}]*)\}|([^{]+)", text):
        if literal:
            parts.append(sql.Literal(literal).as_string())
        elif name in columns:
            parts.append(sql.SQL("nullif(btrim(s.{}::text), '')").format(sql.Identifier(name)).as_string())
        else:
            raise BadSource(source=relation, reason=f"the template names {{{name}}}; the columns are {', '.join(columns)}")
    return " || ".join(parts)


def _choose_utm(connection: Connection) -> int:
    """The UTM zone of the middle of the POIs. Raises BadExtent where they reach too far out of it."""
    row = connection.execute(
        # A circular mean, so that a country on both sides of the 180th meridian is no trouble.
        "SELECT degrees(atan2(avg(sind(ST_X(geom))), avg(cosd(ST_X(geom))))), avg(ST_Y(geom)) FROM sample"
    ).fetchone()
    assert row is not None
    zone = min(60, math.floor((float(row[0]) + 180) / 6) + 1)
    central = zone * 6 - 183
    reach = connection.execute(
        "SELECT max(least(abs(ST_X(geom) - %(c)s), 360 - abs(ST_X(geom) - %(c)s))) FROM sample", {"c": central}
    ).fetchone()
    assert reach is not None
    if reach[0] > UTM_REACH_DEGREES:
        raise BadExtent(
            reason=f"the POIs reach {reach[0]:.0f} degrees from the middle of UTM zone {zone}, too far for one metric CRS."
            " Name a projected CRS with --srid, or take a part of them with --source 'SELECT ... WHERE ...'."
        )
    return (32600 if row[1] >= 0 else 32700) + zone


def _check_srid(connection: Connection, srid: int) -> int:
    """The SRID, if PostGIS knows it as projected in metres. Raises BadExtent."""
    row = connection.execute("SELECT proj4text, srtext FROM spatial_ref_sys WHERE srid = %s", [srid]).fetchone()
    if row is None:
        raise BadExtent(reason=f"PostGIS does not know EPSG:{srid}. Leave --srid away to use the UTM zone.")
    if not str(row[1]).startswith("PROJCS") or "units=m" not in str(row[0]):
        raise BadExtent(reason=f"EPSG:{srid} is not projected in metres. Leave --srid away to use the UTM zone.")
    return srid


def _scalar(connection: Connection, query: str) -> object:
    row = connection.execute(query).fetchone()  # type: ignore[call-overload]
    assert row is not None
    return row[0]


def _reason(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error)).rstrip(".")
