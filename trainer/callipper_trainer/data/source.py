"""Reads a source into arrays: one snapshot, streamed by binary COPY."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from callipper_db.arrays import Array
from callipper_db.binary_copy import read_parts, read_rows
from callipper_db.db import Connection
from callipper_db.errors import BadExtent, BadSource, NotEnoughData
from callipper_db.outliers import Outliers, find_outliers
from callipper_db.progress import Advance, silent
from callipper_db.read import SOURCE_SUFFIXES
from callipper_trainer.config import POI_TEMPLATE
from callipper_trainer.data.crs import METRE_IN, Crs, check_crs, choose_crs
from callipper_trainer.data.osm_source import KIND_TABLE, OsmColumns, fill_kinds
from callipper_trainer.data.samples import Samples
from callipper_trainer.data.template import TRIMMED, template_expression, words_expression

POI_TABLE = "callipper.poi"
ID_COLUMNS = ("id", "poi_id", "gid", "fid", "ogc_fid", "osm_id")
INTEGERS = {"int2", "int4", "int8"}
NUMBERS = INTEGERS | {"float4", "float8", "numeric"}
LON_LAT = (("lon", "lat"), ("lng", "lat"), ("long", "lat"), ("longitude", "latitude"), ("x", "y"))
# The first 64 bits of the MD5 of a key, as sql/055_point_id.sql has it.
POINT_ID = "('x' || pg_catalog.left(pg_catalog.md5({}), 16))::bit(64)::bigint"
TEXT_COLUMNS = ("text", "description")
STREAM_KINDS = ("int8", "float8", "float8", "float8", "float8", "int4", "int4")  # of stream_query
QUERY = re.compile(r"(?is)(\s|\(|--[^\n]*\n|/\*.*?\*/)*(select|with|table|values)\b")

# Statements name these temporary tables with pg_temp, because the user may have a table called sample. Once they exist, the
# transaction becomes read-only: whatever functions the source or --text calls, it can write only to them.
PREPARE = """
CREATE TEMPORARY TABLE sample (id bigint, text text, name text, geom @geometry) ON COMMIT DROP;
CREATE TEMPORARY TABLE distinct_text (text text, text_id int4) ON COMMIT DROP;
CREATE TEMPORARY TABLE osm_kind (key text PRIMARY KEY, category text) ON COMMIT DROP;
CREATE OR REPLACE FUNCTION pg_temp.lon_lat(place @geometry) RETURNS @geometry LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN ST_Transform(place, 4326);
EXCEPTION WHEN internal_error THEN
    RETURN NULL;  -- coordinates outside the CRS
END
$$;
-- Several categories in a fixed order, as in callipper-db load: 'restaurant;bar' becomes 'bar and restaurant'.
CREATE OR REPLACE FUNCTION pg_temp.words(parts text[]) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT CASE WHEN cardinality(w) > 1 THEN array_to_string(w[:cardinality(w) - 1], ', ') || ' and ' || w[cardinality(w)]
        ELSE w[1] END
    FROM (SELECT array_agg(DISTINCT btrim(p) COLLATE "C" ORDER BY btrim(p) COLLATE "C") FILTER (WHERE btrim(p) <> '')
        FROM unnest(parts) AS u(p)) AS a(w)
$$;
"""
READ_ONLY = "SET TRANSACTION READ ONLY"


@dataclass(frozen=True)
class Source:
    """Where the POIs are and how to make their texts."""

    relation: str = POI_TABLE  # a table or view, or a query that does not write
    text: str | None = None  # SQL expression over the relation's columns
    template: str | None = None  # or a template: '[{name}, ]A place of {category}'
    identifier: str | None = None  # column or SQL expression of any type; several, separated by commas, are one key
    geometry: str | None = None  # column; None: the first geometry or geography, else columns of longitude and latitude
    srid: int | None = None  # projected CRS in metres; None: chosen for the POIs
    name: str | None = None  # SQL expression; None: the column `name`, or no name if `text` or `template` is given
    names: int = 100_000  # read at most this many distinct "name, text", the most frequent ones
    keep_outliers: bool = False  # keep rows whose place is most likely wrong, see callipper_db.outliers
    force_srid: bool = False  # accept `srid` even if its metres are wrong


@dataclass(frozen=True)
class OpenSource:
    """A source in a transaction: counted and checked, but not read yet."""

    connection: Connection
    source: Source
    name: str  # the query, or the qualified name of the table or view
    taken_at: str
    rows: int
    without_geometry: int
    without_text: int
    text_sql: str
    name_sql: str
    crs: Crs
    outliers: Outliers

    @property
    def srid(self) -> int:
        """The SRID of the samples' metres."""
        return self.crs.srid

    @property
    def usable(self) -> int:
        """Rows with a place and a text."""
        return self.rows - self.without_geometry - self.without_text - len(self.outliers.rows)

    @property
    def notes(self) -> list[str]:
        """Sentences for the user: what was left out, and what the CRS means for distances."""
        notes = [self.crs.note] if self.crs.note else []
        if self.without_geometry or self.without_text:
            notes.append(
                f"{self.without_geometry:,} rows without a usable geometry and {self.without_text:,} without a text"
                " were left out."
            )
        if self.outliers:
            notes.append(f"Left out: {self.outliers} --keep-outliers takes them.")
        return notes

    def read(self, advance: Advance = silent) -> Samples:
        """Read all rows. Raises BadSource, BadExtent."""
        samples = _stream(self.connection, self.srid, advance)
        _check_samples(samples, self.source)
        return samples

    def parts(self, rows: int, advance: Advance = silent) -> Iterator[Samples]:
        """Read the same rows in the same order, about `rows` at a time. Raises BadSource, BadExtent."""
        return _stream_parts(self.connection, self.srid, self.source, rows, advance)


@dataclass(frozen=True)
class Snapshot(OpenSource):
    """A source that was read."""

    samples: Samples


def read_samples(connection: Connection, source: Source, advance: Advance = silent) -> Snapshot:
    """Read the whole source in one REPEATABLE READ transaction.

    The connection must be outside a transaction. Raises BadSource, BadExtent, NotEnoughData.
    """
    with open_source(connection, source) as opened:
        return Snapshot(**vars(opened), samples=opened.read(advance))


@contextmanager
def open_source(connection: Connection, source: Source) -> Iterator[OpenSource]:
    """One REPEATABLE READ transaction in which the source can be read once. Requires and raises what read_samples does."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        yield _open(connection, source)


def source_of_model(provenance: dict[str, Any], srid: int) -> Source:
    """The source that a model was trained on, from the model's provenance."""
    return Source(
        provenance["source"],
        text=provenance["text"],
        identifier=provenance.get("identifier"),
        geometry=provenance.get("geometry"),
        srid=srid,
        name=provenance.get("name"),
        names=provenance.get("names", Source.names),
        keep_outliers=provenance.get("keep_outliers", True),  # programs without this setting kept them
        force_srid=True,
    )


def _open(connection: Connection, source: Source) -> OpenSource:
    taken_at = str(connection.one("SELECT now()")[0])
    connection.execute(connection.named(PREPARE))
    connection.execute(connection.named(METRE_IN))
    connection.execute(READ_ONLY)
    name, text_sql, name_sql = _copy_source(connection, source)
    rows, without_geometry, without_text = _count(connection, source)
    connection.execute("DELETE FROM pg_temp.sample WHERE geom IS NULL OR text IS NULL")
    outliers = Outliers([]) if source.keep_outliers else _leave_out(connection)
    chosen = source.srid
    crs = choose_crs(connection) if chosen is None else check_crs(connection, chosen, source.force_srid)
    _number_texts(connection, source.names)
    return OpenSource(
        connection, source, name, taken_at, rows, without_geometry, without_text, text_sql, name_sql, crs, outliers
    )


def _copy_source(connection: Connection, source: Source) -> tuple[str, str, str]:
    """Copy ids, texts, names and points into pg_temp.sample. Returns the source's name, and the SQL of the text and the name.

    A slow query so runs once, and a volatile one cannot give two answers. Raises BadSource.
    """
    is_query = QUERY.match(source.relation) is not None
    name = source.relation.strip().rstrip(";") if is_query else _table_name(connection, source.relation)
    # The query may end with a comment; the line break ends it.
    relation = sql.SQL(f"({name}\n)" if is_query else name)
    columns = _columns(connection, source, relation)
    text_sql = _text_expression(connection, source, columns)
    name_sql = _name_expression(connection, source, columns)
    geometry = _geometry_expression(connection, source, columns)
    if KIND_TABLE in text_sql:
        with _users_sql(source):
            fill_kinds(connection, relation, OsmColumns(connection, columns))
    key = _key_expression(connection, source, name, relation, columns, geometry, text_sql)
    query = connection.named(
        "INSERT INTO pg_temp.sample"
        " SELECT id, text, name, CASE WHEN ST_GeometryType(geom) = text 'ST_Point' THEN geom ELSE ST_Centroid(geom) END"
        " FROM (SELECT {id} AS id, {text} AS text, {name} AS name, {geom} AS geom FROM {relation} AS s) AS raw"
    ).format(
        id=key,
        text=sql.SQL(TRIMMED.format(text_sql)),
        name=sql.SQL(named_text(name_sql, text_sql)),
        geom=geometry,
        relation=relation,
    )
    with _users_sql(source):
        with connection.users_names():
            connection.execute(query, binary=True)  # binary: the protocol that takes one statement only
        _to_lon_lat(connection)
    return name, text_sql, name_sql


def _count(connection: Connection, source: Source) -> tuple[int, int, int]:
    """Rows, and those without a geometry and without a text. Raises NotEnoughData, BadSource."""
    rows, without_geometry, without_text, without_id = connection.one(
        "SELECT count(*), count(*) FILTER (WHERE geom IS NULL),"
        " count(*) FILTER (WHERE geom IS NOT NULL AND text IS NULL),"
        " count(*) FILTER (WHERE geom IS NOT NULL AND text IS NOT NULL AND id IS NULL) FROM pg_temp.sample"
    )
    if rows == without_geometry + without_text:
        raise NotEnoughData(
            reason=f"{source.relation} has {rows} rows, {without_geometry} of them without a usable geometry and"
            f" {without_text} without a text. Load POIs with: callipper-db load FILE"
        )
    if without_id:
        raise BadSource(source=source.relation, reason=f"{without_id} rows have no id. Name a unique column with --id.")
    return rows, without_geometry, without_text


def _number_texts(connection: Connection, names: int) -> None:
    """Number the distinct texts, and the most frequent names, in an order that depends on nothing but themselves."""
    connection.execute(
        'INSERT INTO pg_temp.distinct_text SELECT text, row_number() OVER (ORDER BY text COLLATE "C") - 1'
        " FROM (SELECT text FROM pg_temp.sample UNION (SELECT name FROM pg_temp.sample WHERE name IS NOT NULL GROUP BY name"
        ' ORDER BY count(*) DESC, name COLLATE "C" LIMIT %s)) AS all_texts',
        [names],
    )
    connection.execute("ANALYZE pg_temp.distinct_text")


def _leave_out(connection: Connection) -> Outliers:
    """Delete the rows whose place is most likely wrong."""
    found = find_outliers(
        connection,
        connection.named("SELECT id AS name, ST_X(geom) AS x, ST_Y(geom) AS y FROM pg_temp.sample").as_string(),
    )
    ids = [name for name, _, _, _ in found.rows]
    connection.execute("DELETE FROM pg_temp.sample WHERE id = ANY(%s)", [ids])
    return found


def _to_lon_lat(connection: Connection) -> None:
    unknown = connection.execute(
        connection.named(
            "SELECT ST_SRID(geom), count(*) FROM pg_temp.sample WHERE NOT ST_IsEmpty(geom)"
            " AND ST_SRID(geom) NOT IN (SELECT srid FROM spatial_ref_sys) GROUP BY 1 ORDER BY 1 LIMIT 1"
        )
    ).fetchone()
    if unknown:
        said = f"the SRID {unknown[0]}, which PostGIS does not know" if unknown[0] else "no SRID"
        raise psycopg.errors.InvalidParameterValue(
            f"{unknown[1]} geometries have {said}; set it with ST_SetSRID(geom, 4326), or whichever it is"
        )
    # A geometry that is out of range, empty or not finite is no place on earth. It counts as missing.
    connection.execute(
        connection.named(
            "UPDATE pg_temp.sample SET geom = CASE WHEN NOT ST_IsEmpty(geom) THEN pg_temp.lon_lat(geom) END"
            " WHERE ST_SRID(geom) <> 4326 OR ST_IsEmpty(geom)"
        )
    )
    connection.execute(
        connection.named(
            "UPDATE pg_temp.sample SET geom = NULL"
            " WHERE NOT (ST_X(geom) BETWEEN -180 AND 180 AND ST_Y(geom) BETWEEN -90 AND 90)"
        )
    )


def _stream(connection: Connection, srid: int, advance: Advance) -> Samples:
    texts = _texts(connection)
    try:
        columns = read_rows(connection, stream_query(connection, srid), STREAM_KINDS, advance=advance)
    except psycopg.InternalError as error:  # from PROJ, for a point outside the CRS
        raise _out_of_reach(srid) from error
    point_id, lon, lat, easting, northing, text_id, name_id = columns
    _check_reach(columns, srid)
    # Parallel plans may return rows in any order, but the training needs the same order each time.
    order = np.lexsort((text_id, northing, easting, point_id))
    return Samples(
        point_id=point_id[order],
        lonlat=np.column_stack([lon, lat])[order],
        metres=np.column_stack([easting, northing])[order],
        text_id=text_id[order],
        texts=texts,
        srid=srid,
        name_id=name_id[order],
    )


def _stream_parts(connection: Connection, srid: int, source: Source, rows: int, advance: Advance) -> Iterator[Samples]:
    texts, last = _texts(connection), None
    query = sql.SQL("{} ORDER BY s.id").format(stream_query(connection, srid))
    try:
        for columns in read_parts(connection, query, STREAM_KINDS, rows, advance=advance):
            point_id, lon, lat, easting, northing, text_id, name_id = columns
            _check_reach(columns, srid)
            before = np.concatenate([point_id[:1] - 1 if last is None else last, point_id[:-1]])
            if (twice := before == point_id).any():
                reason = f"id {point_id[twice][0]} appears more than once. Name a unique column with --id."
                raise BadSource(source=source.relation, reason=reason)
            last = point_id[-1:]
            lonlat, metres = np.column_stack([lon, lat]), np.column_stack([easting, northing])
            yield Samples(point_id, lonlat, metres, text_id, texts, srid, name_id)
    except psycopg.InternalError as error:
        raise _out_of_reach(srid) from error


def _texts(connection: Connection) -> list[str]:
    return [str(text) for (text,) in connection.execute("SELECT text FROM pg_temp.distinct_text ORDER BY text_id")]


def _check_reach(columns: list[Array], srid: int) -> None:
    _, _, _, easting, northing, _, _ = columns
    if not (np.isfinite(easting) & np.isfinite(northing)).all():
        raise _out_of_reach(srid)


def stream_query(connection: Connection, srid: int) -> sql.Composed:
    """The query whose rows are streamed: id, lon, lat, easting, northing, text_id, name_id, each of fixed width."""
    return connection.named(
        "SELECT s.id, ST_X(s.geom), ST_Y(s.geom), ST_X(p.geom), ST_Y(p.geom), t.text_id, coalesce(n.text_id, -1)"
        " FROM pg_temp.sample s JOIN pg_temp.distinct_text t USING (text)"
        " LEFT JOIN pg_temp.distinct_text n ON n.text = s.name,"
        " LATERAL (SELECT ST_Transform(s.geom, {}) AS geom OFFSET 0) AS p"
    ).format(sql.Literal(srid))


def _out_of_reach(srid: int) -> BadExtent:
    return BadExtent(reason=f"some POIs have no coordinates in EPSG:{srid}. Choose a CRS that covers them with --srid.")


def _check_samples(samples: Samples, source: Source) -> None:
    values, counts = np.unique(samples.point_id, return_counts=True)
    if (counts > 1).any():
        twice = np.argmax(counts > 1)
        reason = f"id {values[twice]} appears {counts[twice]} times. Name a unique column with --id."
        raise BadSource(source=source.relation, reason=reason)


def _table_name(connection: Connection, relation: str) -> str:
    """schema.name of a table or view, quoted where need be. It is named by SQL's rules, or just as it is spelt."""
    spelt = sql.Identifier(*relation.strip().split(".")).as_string()
    query = (
        "SELECT format('%%I.%%I', nspname, relname) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n"
        " ON n.oid = relnamespace WHERE c.oid = %s::oid"
    )
    for name in (relation, spelt):
        try:
            with connection.transaction():
                with connection.users_names():
                    found = connection.execute("SELECT pg_catalog.to_regclass(%s::text)::oid", [name]).fetchone()
                row = connection.execute(query, found).fetchone()
        except psycopg.errors.InsufficientPrivilege as error:
            raise BadSource(source=relation, reason=_reason(error)) from error
        except (psycopg.DataError, psycopg.NotSupportedError, psycopg.ProgrammingError):
            continue  # no name at all
        if row:
            return str(row[0])
    path = Path(relation)
    if path.suffix.lower() in SOURCE_SUFFIXES or path.is_file():
        reason = f"that is a file. Load it first: callipper-db load {relation}; then train without --source"
        raise BadSource(source=relation, reason=reason)
    raise BadSource(source=relation, reason="there is no such table or view, and a query begins with SELECT or WITH")


def _columns(connection: Connection, source: Source, relation: sql.Composable) -> dict[str, str]:
    """Column names and their types."""
    with _users_sql(source), connection.users_names():
        cursor = connection.execute(sql.SQL("SELECT * FROM {} AS s LIMIT 0").format(relation), binary=True)
    codes = {column.name: column.type_code for column in cursor.description or []}
    query = "SELECT oid::int8, typname::text FROM pg_catalog.pg_type WHERE oid = ANY(%s)"
    types = dict(connection.execute(query, [list(codes.values())]).fetchall())
    return {name: types.get(code, "unknown") for name, code in codes.items()}


def _geometry_expression(connection: Connection, source: Source, columns: dict[str, str]) -> sql.Composable:
    placed = [name for name, kind in columns.items() if kind in {"geometry", "geography"}]
    if found := [source.geometry] if source.geometry else placed:
        column = sql.Identifier("s", found[0])
        return connection.named("{}::@geometry").format(column) if columns.get(found[0]) == "geography" else column
    lower = {name.lower(): name for name, kind in columns.items() if kind in NUMBERS}
    pairs = [(lower[x], lower[y]) for x, y in LON_LAT if x in lower and y in lower]
    if not pairs:
        raise BadSource(
            source=source.relation,
            reason=f"no column of type geometry among {', '.join(columns)}. Use a query that makes one, such as"
            " SELECT *, ST_SetSRID(ST_Point(lon, lat), 4326) AS geom FROM ...",
        )
    return connection.named("ST_SetSRID(ST_MakePoint({}, {}), 4326)").format(
        *(sql.SQL("{}::float8").format(sql.Identifier("s", column)) for column in pairs[0])
    )


def _key_expression(
    connection: Connection,
    source: Source,
    name: str,
    relation: sql.Composable,
    columns: dict[str, str],
    geometry: sql.Composable,
    text_sql: str,
) -> sql.Composable:
    """A bigint that is a row's key, or is made of it: callipper.point_id(key) has the same.

    By --id, the primary key, or a column that is usually one; else rows are numbered by their content, so that the same rows
    have the same numbers in the next run, whatever order the server reads them in.
    """
    if name == POI_TABLE and not source.identifier:
        return sql.Identifier("s", "poi_id")
    usual = [column for column in ID_COLUMNS if column in columns]
    whole = [column for column in usual if columns[column] in INTEGERS]
    primary = _primary_key(connection, name)
    if source.identifier:
        expression: sql.Composable = sql.SQL(source.identifier)
    elif found := primary or whole[:1] or usual[:1]:
        expression = sql.SQL(", ").join(sql.Identifier("s", column) for column in found)
    else:
        return sql.SQL('row_number() OVER (ORDER BY {}, ({})::text COLLATE "C")').format(geometry, sql.SQL(text_sql))
    key = _columns(connection, source, sql.SQL("(SELECT ({}) FROM {} AS s)").format(expression, relation))
    if set(key.values()) <= INTEGERS:
        return sql.SQL("({})::bigint").format(expression)
    return sql.SQL(POINT_ID).format(sql.SQL("({})::text").format(expression))


def _primary_key(connection: Connection, name: str) -> list[str]:
    """The columns of a table's primary key, in their order; none of a query."""
    if QUERY.match(name):
        return []
    rows = connection.execute(
        "SELECT a.attname::text FROM pg_catalog.pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(number, place)"
        " JOIN pg_catalog.pg_attribute a ON a.attnum = k.number"
        " WHERE i.indisprimary AND i.indrelid = to_regclass(%s::text) AND a.attrelid = i.indrelid ORDER BY k.place",
        [name],
    ).fetchall()
    return [str(column) for (column,) in rows]


def _text_expression(connection: Connection, source: Source, columns: dict[str, str]) -> str:
    """The SQL expression that makes a row's text. Raises BadSource when there is nothing to make it of."""
    if source.text:
        return source.text
    if source.template:
        return template_expression(source.template, columns, source.relation)
    if "category" in columns:
        # What callipper-db load has written is in order already.
        made = {} if source.relation == POI_TABLE else {"category": words_expression("category", columns["category"])}
        expression = template_expression(POI_TEMPLATE, columns, source.relation, made)
        return f"coalesce({TRIMMED.format('s.description')}, {expression})" if "description" in columns else expression
    osm_columns = OsmColumns(connection, columns)
    if osm_columns.found:
        made = {"category": osm_columns.category, "name": osm_columns.value("name")}
        return template_expression(POI_TEMPLATE, {**columns, "category": "text", "name": "text"}, source.relation, made)
    found = [name for name in TEXT_COLUMNS if name in columns]
    if not found:
        raise BadSource(
            source=source.relation,
            reason=f"no text: say with --text or --template how to make it from {', '.join(columns)}",
        )
    return f"s.{found[0]}"


def _name_expression(connection: Connection, source: Source, columns: dict[str, str]) -> str:
    """The SQL expression that makes a row's name, NULL for none."""
    if source.name:
        return source.name
    if source.text or source.template:
        return "NULL"
    if "name" in columns:
        return "s.name"
    osm_columns = OsmColumns(connection, columns)
    return osm_columns.value("name") if "category" not in columns and osm_columns.found else "NULL"


@contextmanager
def _users_sql(source: Source) -> Iterator[None]:
    """Turn an error of the user's SQL into BadSource. A lost connection keeps its own."""
    try:
        yield
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        raise BadSource(source=source.relation, reason=_reason(error)) from error


def _reason(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error)).rstrip(".")


def named_text(name_sql: str, text_sql: str) -> str:
    """SQL for a POI's name and text in one: 'Evers Cycles, bicycle shop'. NULL for a POI without a name."""
    return f"{TRIMMED.format(name_sql)} || ', ' || {TRIMMED.format(text_sql)}"
