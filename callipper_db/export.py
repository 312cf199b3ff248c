"""The cells, places and weights of the active model as files that other programs read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from psycopg import sql

from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.binary_copy import read_parts, read_rows
from callipper_db.errors import GridNotSquare, NoActiveModel
from callipper_db.progress import Reporter
from callipper_db.tables import DIMENSIONS

PART = 20_000  # rows in memory at once
STRIP_BYTES = 2**27  # of a raster in memory at once
CLOUD_OPTIMISED = {
    "driver": "COG",
    "compress": "DEFLATE",
    "predictor": "YES",
    "overview_resampling": "average",
    "bigtiff": "IF_SAFER",
}
CELL_TEXTS = ("cluster_label", "color", "top_texts")
CELL_NUMBERS = {
    "cell_id": "int8",
    "lon": "float8",
    "lat": "float8",
    "cluster": "int4",
    "support": "float4",
    "poi_count": "int4",
}
PLACE_TEXTS = ("name", "category", "kind", "text")
PLACE_NUMBERS = {"place_id": "int8", "lon": "float8", "lat": "float8"}
BOX = ["xmin", "ymin", "xmax", "ymax"]
ARROW = {"int8": "int64", "int4": "int32", "float8": "float64", "float4": "float32"}


@dataclass(frozen=True)
class ActiveModel:
    """What every export says of the model."""

    version: int
    srid: int
    text_encoder: str
    trained_at: str
    grid_kind: str | None
    grid_size_m: float | None
    dimensions: int = DIMENSIONS


@dataclass(frozen=True)
class ExportSummary:
    """What was written."""

    path: str
    version: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class Layer:
    """A table of callipper_map, and where its embeddings are."""

    name: str
    key: str
    texts: tuple[str, ...]
    numbers: dict[str, str]
    geometry: str
    vectors: str  # a query of its embeddings by key
    rows: str  # where its columns are


LAYERS = {
    "cells": Layer(
        "cell",
        "cell_id",
        CELL_TEXTS,
        CELL_NUMBERS,
        "Polygon",
        "SELECT cell_id AS key, emb FROM callipper.cells",
        "callipper_map.cell",
    ),
    "places": Layer(
        "place",
        "place_id",
        PLACE_TEXTS,
        PLACE_NUMBERS,
        "Point",
        "SELECT point_id AS key, emb FROM callipper.points",
        "callipper_map.place",
    ),
}
# Cells of a grid of H3 cells also have their index.
H3_CELLS = replace(
    LAYERS["cells"],
    texts=("h3index", *CELL_TEXTS),
    rows="(SELECT m.*, h.h3index FROM callipper_map.cell m JOIN callipper_map.cell_h3 h USING (cell_id)) AS q",
)


def export_layer(dsn: str, what: str, form: str, path: Path, reporter: Reporter) -> ExportSummary:
    """Write 'cells' or 'places' as 'geoparquet' or 'csv', with embeddings, or as 'gpkg', without.

    Rows are in the order of their key. Raises NoActiveModel; ModuleNotFoundError without pyarrow, of a GeoPackage pyogrio.
    """
    writers: dict[str, Callable[..., int]] = {"geoparquet": _geoparquet, "csv": _csv, "gpkg": _gpkg}
    began = time.monotonic()
    with db.snapshot(dsn) as connection:
        model = _active(connection)
        layer = H3_CELLS if what == "cells" and model.grid_kind == "h3" else LAYERS[what]
        (count,) = connection.one(sql.SQL("SELECT count(*) FROM callipper_map.{}").format(sql.Identifier(layer.name)))
        reporter.stage(f"writing {what}", count)
        rows = writers[form](connection, model, layer, path, reporter)
    return ExportSummary(str(path), model.version, rows, round(time.monotonic() - began, 2))


def export_raster(dsn: str, path: Path, reporter: Reporter) -> ExportSummary:
    """Write the embeddings of a square grid as a cloud-optimised GeoTIFF, a band a dimension, and a STAC item next to it.

    The CRS is the model's, a pixel is a cell, and NaN stands where there is no cell. Raises GridNotSquare, NoActiveModel;
    ModuleNotFoundError without rasterio.
    """
    from rasterio.shutil import copy

    began = time.monotonic()
    with db.snapshot(dsn) as connection:
        model = _active(connection)
        if model.grid_kind != "square" or model.grid_size_m is None:
            raise GridNotSquare(kind=model.grid_kind)
        cells = _cell_range(connection)
        profile = _raster_profile(connection, model.srid, model.grid_size_m, cells)
        strips = path.with_name(f".{path.name}.strips.tif")
        try:
            reporter.stage("writing cells", cells.count)
            _write_strips(connection, model, strips, profile, cells, reporter)
            reporter.stage("arranging the file for the cloud")
            copy(strips, path, **CLOUD_OPTIMISED)
        finally:
            strips.unlink(missing_ok=True)
        _write_stac(connection, model, path, profile)
    return ExportSummary(str(path), model.version, cells.count, round(time.monotonic() - began, 2))


def export_model(dsn: str, path: Path, reporter: Reporter) -> ExportSummary:
    """Write the weights of both towers and the lattices as safetensors, and what they mean as JSON next to it.

    Raises NoActiveModel; ModuleNotFoundError without safetensors.
    """
    from safetensors.numpy import save_file

    began = time.monotonic()
    with db.snapshot(dsn) as connection:
        model = _active(connection)
        reporter.stage("reading weights")
        tensors = dict(_weights(connection, model.version))
        arch, standardisation, easting, northing, srid, provenance, encoder, revision = connection.one(
            "SELECT m.arch, m.standardisation, m.origin_easting, m.origin_northing, m.srid, m.provenance, e.name, e.revision"
            " FROM callipper.model m JOIN callipper.text_encoder e USING (text_encoder_id) WHERE m.version = %s",
            [model.version],
        )
    for name in ("mean", "scale"):
        tensors[f"standardisation.{name}"] = np.array(standardisation.get(name, []), np.float32)
    said = {
        "version": model.version,
        "arch": arch,
        "origin_m": [easting, northing],
        "srid": srid,
        "text_encoder": {"name": encoder, "revision": revision},
        "provenance": provenance,
    }
    save_file(tensors, path, metadata={"format": "callipper-db", "version": str(model.version)})
    path.with_suffix(".json").write_text(json.dumps(said, indent=2, default=str) + "\n", encoding="utf-8")
    return ExportSummary(str(path), model.version, len(tensors), round(time.monotonic() - began, 2))


# Tables


def _geoparquet(connection: db.Connection, model: ActiveModel, layer: Layer, path: Path, reporter: Reporter) -> int:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    geo = geo_metadata(layer.geometry, _bounds(connection, layer))
    metadata = {"geo": json.dumps(geo), "callipper_db": json.dumps(asdict(model))}

    def open_writer(schema: Any) -> Any:
        return pq.ParquetWriter(path, schema.with_metadata(metadata), compression="zstd")

    return _write_tables(_tables(connection, model, layer, with_vectors=True, with_box=True), open_writer, reporter)


def _csv(connection: db.Connection, model: ActiveModel, layer: Layer, path: Path, reporter: Reporter) -> int:
    """Geometry as lon and lat, and a column a dimension: emb0, emb1, ..."""
    import pyarrow as pa
    import pyarrow.csv  # type: ignore[import-untyped]

    def flat(table: Any) -> Any:
        emb = table.column("emb").combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        table = table.drop_columns(["geometry", "emb"])
        for number in range(emb.shape[1]):
            table = table.append_column(f"emb{number}", pa.array(np.ascontiguousarray(emb[:, number])))
        return table

    tables = map(flat, _tables(connection, model, layer, with_vectors=True, with_box=False))
    return _write_tables(tables, partial(pyarrow.csv.CSVWriter, path), reporter)


def _write_tables(tables: Iterator[Any], open_writer: Callable[[Any], Any], reporter: Reporter) -> int:
    """Write Arrow tables, one after the other, with a writer that is opened for their schema; returns the number of rows."""
    writer, rows = None, 0
    try:
        for table in tables:
            writer = writer or open_writer(table.schema)
            writer.write_table(table)
            rows += len(table)
            reporter.advance(len(table))
    finally:
        if writer is not None:
            writer.close()
    return rows


def _gpkg(connection: db.Connection, model: ActiveModel, layer: Layer, path: Path, reporter: Reporter) -> int:
    import pyarrow as pa
    import pyogrio  # type: ignore[import-untyped]

    tables = list(_tables(connection, model, layer, with_vectors=False, with_box=False))
    path.unlink(missing_ok=True)
    table = pa.concat_tables(tables)
    kind = {"geometry_name": "geometry", "geometry_type": layer.geometry, "crs": "EPSG:4326"}
    pyogrio.write_arrow(table, path, layer=layer.name, driver="GPKG", **kind)
    reporter.advance(len(table))
    return len(table)


def _tables(
    connection: db.Connection, model: ActiveModel, layer: Layer, *, with_vectors: bool, with_box: bool
) -> Iterator[Any]:
    """The rows as Arrow tables of PART rows at most, in the order of the key."""
    import pyarrow as pa

    names = [*layer.numbers, *layer.texts]
    query = connection.named(
        "SELECT {}, ST_AsBinary(geom), ST_XMin(geom::@box3d), ST_YMin(geom::@box3d), ST_XMax(geom::@box3d),"
        " ST_YMax(geom::@box3d) FROM {} ORDER BY {}"
    ).format(sql.SQL(", ").join(map(sql.Identifier, names)), sql.SQL(layer.rows), sql.Identifier(layer.key))
    types = [pa.type_for_alias(ARROW[kind]) for kind in layer.numbers.values()] + [pa.string()] * len(layer.texts)
    with connection.cursor("exported", binary=True) as cursor:
        cursor.execute(query)
        while rows := cursor.fetchmany(PART):
            *columns, shapes, west, south, east, north = zip(*rows, strict=True)
            arrays = [pa.array(values, kind) for values, kind in zip(columns, types, strict=True)]
            found = dict(zip(names, arrays, strict=True))
            if with_box:
                sides = [pa.array(side, pa.float64()) for side in (west, south, east, north)]
                found["bbox"] = pa.StructArray.from_arrays(sides, BOX)
            found["geometry"] = pa.array(shapes, pa.binary())
            if with_vectors:
                # By key ranges, so that a part is read at a time and an index finds it.
                part = sql.SQL("SELECT emb FROM ({}) AS v WHERE v.key >= {} AND v.key <= {} ORDER BY v.key").format(
                    sql.SQL(layer.vectors), sql.Literal(rows[0][0]), sql.Literal(rows[-1][0])
                )
                (emb,) = read_rows(connection, part, ["vector"], DIMENSIONS)
                assert len(emb) == len(rows), "both are of one snapshot"
                found["emb"] = pa.FixedSizeListArray.from_arrays(pa.array(emb.reshape(-1)), DIMENSIONS)
            yield pa.table(found)


def geo_metadata(geometry: str, bounds: list[float] | None = None) -> dict[str, Any]:
    """What GeoParquet 1.1 says of a file with columns geometry and bbox. bounds: west, south, east, north, if known."""
    about: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": [geometry],
        "covering": {"bbox": {side: ["bbox", side] for side in BOX}},
    }
    if bounds is not None:
        about["bbox"] = bounds
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": about}}


def _bounds(connection: db.Connection, layer: Layer) -> list[float]:
    query = connection.named(
        "SELECT ST_XMin(b), ST_YMin(b), ST_XMax(b), ST_YMax(b) FROM (SELECT @extschema:postgis@.ST_3DExtent(geom) AS b"
        " FROM callipper_map.{}) AS q"
    )
    return list(connection.one(query.format(sql.Identifier(layer.name))))


# Raster


@dataclass(frozen=True)
class CellRange:
    """The rows and columns of the grid that have cells; the upper bounds are exclusive."""

    west: int
    east: int
    south: int
    north: int
    count: int  # cells


def _cell_range(connection: db.Connection) -> CellRange:
    columns = "min(i), max(i) + 1, min(j), max(j) + 1, count(*)"
    return CellRange(*connection.one(f"SELECT {columns} FROM callipper.cell JOIN callipper_map.cell USING (cell_id)"))


def crs_text(connection: db.Connection, srid: int) -> str:
    """A CRS as other programs read it: its code of EPSG, or its definition."""
    query = connection.named(
        "SELECT CASE WHEN auth_name = 'EPSG' THEN 'EPSG:' || auth_srid ELSE srtext END FROM spatial_ref_sys WHERE srid = %s"
    )
    return str(connection.one(query, [srid])[0])


def _raster_profile(connection: db.Connection, srid: int, size_m: float, cells: CellRange) -> dict[str, Any]:
    """What rasterio writes: the size, the type, the CRS and the place of the pixels."""
    import rasterio

    return {
        "driver": "GTiff",
        "width": cells.east - cells.west,
        "height": cells.north - cells.south,
        "count": DIMENSIONS,
        "dtype": "float32",
        "nodata": float("nan"),
        "crs": crs_text(connection, srid),
        "transform": rasterio.Affine(size_m, 0, cells.west * size_m, 0, -size_m, cells.north * size_m),
        "tiled": True,
        "interleave": "band",
        "BIGTIFF": "IF_SAFER",
    }


def _write_strips(
    connection: db.Connection,
    model: ActiveModel,
    path: Path,
    profile: dict[str, Any],
    cells: CellRange,
    reporter: Reporter,
) -> None:
    """Write the raster from north to south, in strips that fit in memory."""
    import rasterio

    height = max(16, STRIP_BYTES // (4 * DIMENSIONS * profile["width"]))
    with rasterio.open(path, "w", **profile) as raster:
        for band in range(DIMENSIONS):
            raster.set_band_description(band + 1, f"emb{band}")
        raster.update_tags(model_version=model.version, software="callipper-db")
        for top in range(cells.north, cells.south, -height):
            bottom = max(cells.south, top - height)
            pixels, done = _strip(connection, cells.west, cells.east, bottom, top)
            window = rasterio.windows.Window(0, cells.north - top, profile["width"], top - bottom)
            raster.write(pixels, window=window)
            reporter.advance(done)


def _strip(connection: db.Connection, west: int, east: int, bottom: int, top: int) -> tuple[Array, int]:
    """(D, rows, columns) of the cells with bottom <= j < top, the northernmost row first; and how many cells there are."""
    query = sql.SQL(
        "SELECT c.i, c.j, e.emb FROM callipper.cells e JOIN callipper.cell c ON c.cell_id = e.cell_id"
        " WHERE c.j >= {} AND c.j < {}"
    ).format(sql.Literal(bottom), sql.Literal(top))
    pixels = np.full((DIMENSIONS, top - bottom, east - west), np.nan, np.float32)
    done = 0
    for i, j, emb in read_parts(connection, query, ["int4", "int4", "vector"], PART, DIMENSIONS):
        pixels[:, top - 1 - j, i - west] = emb.T
        done += len(i)
    return pixels, done


def _write_stac(connection: db.Connection, model: ActiveModel, path: Path, profile: dict[str, Any]) -> None:
    """A STAC item. The fields emb: are a proposal of the community; there is no schema of them yet."""
    west, south, east, north = _bounds(connection, LAYERS["cells"])
    crs = str(profile["crs"])
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": ["https://stac-extensions.github.io/projection/v2.0.0/schema.json"],
        "id": path.stem,
        "bbox": [west, south, east, north],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "datetime": model.trained_at,
            "proj:code": crs if crs.startswith("EPSG:") else None,
            "proj:shape": [profile["height"], profile["width"]],
            "proj:transform": list(profile["transform"])[:6],
            "gsd": model.grid_size_m,
            "emb:model": f"callipper-db, model version {model.version}",
            "emb:dimensions": DIMENSIONS,
            "emb:text_encoder": model.text_encoder,
            "emb:normalized": True,
        },
        "assets": {
            "embeddings": {
                "href": path.name,
                "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                "roles": ["data"],
            }
        },
        "links": [],
    }
    path.with_suffix(".json").write_text(json.dumps(item, indent=2) + "\n", encoding="utf-8")


# Weights


def _weights(connection: db.Connection, version: int) -> Iterator[tuple[str, Array]]:
    """Names and tensors: location.LAYER.weight and .bias, text_projection, peaks, context.LEVEL.ij, .count and .code_sum."""
    layers = connection.execute(
        "SELECT DISTINCT layer FROM callipper.location_weight WHERE version = %s ORDER BY 1", [version]
    ).fetchall()
    for (layer,) in layers:
        where = sql.SQL("version = {} AND layer = {}").format(sql.Literal(version), sql.Literal(layer))
        yield from _read_vectors(
            connection, f"location.{layer}", "location_weight", ["weight", "bias"], where, "neuron"
        )
    where = sql.SQL("version = {}").format(sql.Literal(version))
    yield from _read_vectors(connection, "text_projection", "text_projection", ["weight", "bias"], where, "neuron")
    if connection.one("SELECT count(*) FROM callipper.kind_peak WHERE version = %s", [version]) != (0,):
        columns = ["direction", "kind_id", "threshold", "gain"]
        yield from _read_vectors(connection, "peaks", "kind_peak", columns, where, "kind_id")
    levels = connection.execute(
        "SELECT DISTINCT level FROM callipper.context_cell WHERE version = %s ORDER BY 1", [version]
    ).fetchall()
    for (level,) in levels:
        where = sql.SQL("version = {} AND level = {}").format(sql.Literal(version), sql.Literal(level))
        columns = ["code_sum", "i", "j", "n"]
        (_, code_sum), (_, i), (_, j), (_, count) = _read_vectors(
            connection, "context", "context_cell", columns, where, "i, j"
        )
        yield f"context.{level}.ij", np.column_stack([i, j])
        yield f"context.{level}.count", count
        yield f"context.{level}.code_sum", code_sum


def _read_vectors(
    connection: db.Connection, name: str, table: str, columns: list[str], where: sql.Composable, order: str
) -> Iterator[tuple[str, Array]]:
    """The columns of a table, of which the first one has vectors, as NAME.COLUMN."""
    (width,) = connection.execute(
        connection.named("SELECT @extschema:vector@.vector_dims({}) FROM callipper.{} WHERE {} LIMIT 1").format(
            sql.Identifier(columns[0]), sql.Identifier(table), where
        )
    ).fetchone() or (0,)
    query = sql.SQL("SELECT {} FROM callipper.{} WHERE {} ORDER BY {}").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(table), where, sql.SQL(order)
    )
    kinds = dict.fromkeys(("bias", "n", "threshold", "gain"), "float4") | dict.fromkeys(("i", "j", "kind_id"), "int4")
    found = read_rows(connection, query, ["vector", *(kinds[column] for column in columns[1:])], width)
    return ((f"{name}.{column}", np.ascontiguousarray(values)) for column, values in zip(columns, found, strict=True))


def _active(connection: db.Connection) -> ActiveModel:
    row = connection.execute(
        "SELECT m.version, m.srid, e.name,"
        " to_char(m.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), g.kind, g.size_m"
        " FROM callipper.model m JOIN callipper.text_encoder e USING (text_encoder_id)"
        " LEFT JOIN callipper.grid g USING (grid_id) WHERE m.status = 'active'"
    ).fetchone()
    if row is None:
        raise NoActiveModel
    return ActiveModel(*row)
