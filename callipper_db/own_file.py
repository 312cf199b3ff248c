"""Embeddings of the places of a file, as GeoParquet or Parquet with all of its columns."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
from psycopg import sql

from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.binary_copy import read_rows, write_rows
from callipper_db.errors import BadInput
from callipper_db.place_encoder import USABLE, open_encoder
from callipper_db.progress import Reporter
from callipper_db.tables import DIMENSIONS

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

CHUNK = 20_000  # places embedded at once
LON, LAT = ("lon", "lng", "longitude", "x"), ("lat", "latitude", "y")


@dataclass(frozen=True)
class FileSummary:
    """What was written."""

    path: str
    version: int
    rows: int
    skipped: int  # rows without a place that can be embedded: their emb is null
    seconds: float


def embed_file(dsn: str, path: Path, output: Path, column: str, reporter: Reporter) -> FileSummary:
    """Embed the rows of a file by their geometry, at its centroid, or by columns lon and lat in degrees.

    The output has the columns of the file and `column`, a list of D float32. Raises BadInput, NoActiveModel, and
    ModuleNotFoundError without pyarrow, and for formats other than CSV and Parquet without pyogrio.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    began = time.monotonic()
    reporter.stage(f"reading {path.name}")
    table, geometry, srid = _read(path)
    if column in table.column_names:
        raise BadInput(path=path, reason=f"it has a column {column} already; choose another with --column")
    with db.session(dsn, autocommit=True) as connection:
        encoder = open_encoder(connection)
        lonlat = _lonlat(connection, table, geometry, srid, path)
        usable = _usable(connection, lonlat, encoder.version)
        emb = np.full((len(lonlat), DIMENSIONS), np.nan, np.float32)
        reporter.stage("embedding", int(usable.sum()))
        rows = np.flatnonzero(usable)
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            emb[part] = encoder.embed_lonlat(connection, lonlat[part], reporter.advance)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(emb.reshape(-1)), DIMENSIONS, mask=pa.array(~usable))
    table = table.append_column(pa.field(column, lists.type), lists)
    pq.write_table(table, output, compression="zstd")
    seconds = round(time.monotonic() - began, 2)
    return FileSummary(str(output), encoder.version, len(lonlat), int((~usable).sum()), seconds)


def _read(path: Path) -> tuple[pa.Table, str | None, int]:
    """The table, the column of its geometries as WKB, and their SRID."""
    import pyarrow as pa
    import pyarrow.csv  # type: ignore[import-untyped]
    import pyarrow.parquet as pq

    if not path.is_file():
        raise BadInput(path=path, reason="there is no such file")
    try:
        if path.suffix in (".parquet", ".geoparquet"):
            table = pq.read_table(path)
            return table, *_geoparquet(table)
        if {".csv", ".tsv"} & set(path.suffixes):
            options = pyarrow.csv.ParseOptions(delimiter="\t" if ".tsv" in path.suffixes else ",")
            return pyarrow.csv.read_csv(path, parse_options=options), None, 4326
        import pyogrio  # type: ignore[import-untyped]

        meta, table = pyogrio.read_arrow(path)
    except (pa.ArrowException, OSError, ValueError, RuntimeError) as error:
        raise BadInput(path=path, reason=f"it cannot be read ({str(error).splitlines()[0]})") from error
    return table, meta["geometry_name"] or "wkb_geometry", _srid(path, str(meta["crs"] or "EPSG:4326"))


def _geoparquet(table: pa.Table) -> tuple[str | None, int]:
    import json

    geo = json.loads((table.schema.metadata or {}).get(b"geo", b"{}"))
    if not geo:
        return None, 4326
    name = geo["primary_column"]
    identifier = (geo["columns"][name].get("crs") or {}).get("id") or {}
    code = identifier.get("code", 4326)
    return name, 4326 if code == "CRS84" else int(code)


def _srid(path: Path, crs: str) -> int:
    authority, _, code = crs.partition(":")
    if authority != "EPSG" or not code.isdecimal():
        raise BadInput(
            path=path, reason=f"its coordinates have no EPSG code ({crs[:40]}); convert it: ogr2ogr -t_srs EPSG:4326"
        )
    return int(code)


def _lonlat(connection: db.Connection, table: pa.Table, geometry: str | None, srid: int, path: Path) -> Array:
    """(N, 2) degrees, NaN where there is no place."""
    if geometry is None:
        names = {name.lower(): name for name in table.column_names}
        found = [next((names[name] for name in usual if name in names), None) for usual in (LON, LAT)]
        if None in found:
            raise BadInput(path=path, reason="it has neither a geometry nor columns lon and lat")
        try:
            columns = [table.column(name).cast("float64").to_numpy() for name in found]
        except ValueError as error:
            raise BadInput(path=path, reason=f"lon and lat are not numbers ({error})") from error
        return np.column_stack(columns)
    shapes = [shape or b"" for shape in table.column(geometry).to_pylist()]
    with connection.transaction():
        connection.execute("CREATE TEMPORARY TABLE shape (number int8, wkb bytea) ON COMMIT DROP")
        columns_in: dict[str, tuple[str, Any]] = {"number": ("int8", np.arange(len(shapes))), "wkb": ("text", shapes)}
        write_rows(connection, sql.Identifier("pg_temp", "shape"), columns_in)
        query = connection.named(
            "SELECT coalesce(ST_X(p), 'nan'), coalesce(ST_Y(p), 'nan') FROM (SELECT number, ST_Transform(ST_Centroid("
            "ST_SetSRID(ST_GeomFromWKB(nullif(wkb, '')), {srid})), 4326) AS p FROM pg_temp.shape OFFSET 0) AS q ORDER BY number"
        ).format(srid=sql.Literal(srid))
        try:
            return np.column_stack(read_rows(connection, query, ["float8", "float8"]))
        except psycopg.errors.InternalError as error:
            raise BadInput(path=path, reason=f"PostGIS cannot read its geometries ({error})") from error


def _usable(connection: db.Connection, lonlat: Array, version: int) -> Array:
    """(N,) whether a row has a place that can be embedded."""
    with connection.transaction():
        connection.execute("CREATE TEMPORARY TABLE spot (number int8, lon float8, lat float8) ON COMMIT DROP")
        columns: dict[str, tuple[str, Any]] = {
            "number": ("int8", np.arange(len(lonlat))),
            "lon": ("float8", lonlat[:, 0]),
            "lat": ("float8", lonlat[:, 1]),
        }
        write_rows(connection, sql.Identifier("pg_temp", "spot"), columns)
        query = connection.named(
            f"SELECT ({USABLE}) IS TRUE FROM pg_temp.spot, callipper.model m WHERE m.version = {{}} ORDER BY number"
        ).format(sql.Literal(version))
        (usable,) = read_rows(connection, query, ["bool"])
    return usable.astype(bool)
