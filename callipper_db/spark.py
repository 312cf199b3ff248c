"""Embeddings of billions of places in Spark, by the exported model: no database is asked.

`callipper-db export model -o model.onnx` writes model.places.onnx, which holds the lattices and all else that embedding a
place reads. So an executor needs that file, this package and its extra `spark`. It computes what `loc_embed` does, to 1e-5.

Shapes: N places.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from callipper_db.arrays import Array
from callipper_db.errors import FolderNotEmpty, FrameUnusable, ModelFileUnusable, needs_extra
from callipper_db.export import BOX, geo_metadata
from callipper_db.place_encoder import TOO_FAR_M
from callipper_db.tables import DIMENSIONS

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

BATCH = 2048  # places at once: what a processor's cache holds of their lattice cells
EARTH_M = 6_371_008.8
TRUE_M = 0.01  # that the projection here may differ from the database's
WRITTEN = ("geometry", "bbox", "emb")
REPORT = "path string, rows long, unusable long, seconds double"


@dataclass(frozen=True)
class SparkSummary:
    """What write_embeddings() wrote."""

    folder: str
    files: int
    rows: int
    unusable: int  # rows whose `emb` is NULL, because they have no place, or one that the model cannot embed
    core_seconds: float  # of all tasks together: reading the rows, embedding and writing


class PlaceTower:
    """model.places.onnx, and the projection that makes its metres."""

    def __init__(self, path: str) -> None:
        """Raises ModelFileUnusable; ModuleNotFoundError without onnxruntime and pyproj."""
        import onnxruntime
        import pyproj

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # Spark runs a task on each core already
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        said = self._session.get_modelmeta().custom_metadata_map
        if "callipper_db.crs" not in said or [given.name for given in self._session.get_inputs()] != ["metres"]:
            raise ModelFileUnusable(path=path, reason="it is not a places tower of this program. Export it again.")
        self.version = int(said["callipper_db.version"])
        self._extent = json.loads(said["callipper_db.extent"])
        self._project = pyproj.Transformer.from_crs(4326, said["callipper_db.crs"], always_xy=True).transform
        known = np.array(json.loads(said["callipper_db.known_places"]))
        off = np.abs(np.column_stack(self._project(known[:, 0], known[:, 1])) - known[:, 2:]).max()
        if not off <= TRUE_M:
            reason = (
                f"pyproj's metres are {off:.3g} m off those of the database: PROJ has other grids. PROJ_NETWORK=OFF"
            )
            raise ModelFileUnusable(path=path, reason=reason)

    def embed(self, lon: Array, lat: Array) -> tuple[Array, Array]:
        """(N,) degrees each -> (N, D) float32, unit length, and (N,) bool, which of them are embedded; the others are zeros."""
        lon, lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
        usable = self._usable(lon, lat)
        result = np.zeros((len(lon), DIMENSIONS), np.float32)
        rows = np.flatnonzero(usable)
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            metres = np.column_stack(self._project(lon[part], lat[part]))
            (result[part],) = self._session.run(None, {"metres": metres})
        return result, usable

    def _usable(self, lon: Array, lat: Array) -> Array:
        """(N,) bool: a place on earth, and no farther from the model's POIs than loc_embed() takes."""
        west, south, east, north = self._extent
        here = (np.abs(lon) <= 360) & (np.abs(lat) <= 90)
        lon, lat = np.where(here, lon, west), np.where(here, lat, south)
        a, b = np.radians(lat), np.radians(np.clip(lat, south, north))
        across = np.sin(np.radians(lon - np.clip(lon, west, east)) / 2) ** 2
        haversine = np.sin((a - b) / 2) ** 2 + np.cos(a) * np.cos(b) * across
        near: Array = 2 * EARTH_M * np.arcsin(np.sqrt(np.minimum(haversine, 1))) <= TOO_FAR_M
        return here & near


def place_udf(spark: SparkSession, model: str | Path) -> Callable[..., Column]:
    """A pandas UDF: columns of longitudes and latitudes in degrees -> a column of arrays of 256 floats.

    NULL where there is no place, or one that the model cannot embed. model: model.places.onnx, a file that the driver reads.
    write_embeddings() takes less than half the time, because the vectors do not pass through Spark's own process.
    """
    with needs_extra("Spark", "spark"):
        import pandas
        from pyspark.sql.functions import pandas_udf

    name = _send(spark, model)

    def embed(parts: Iterator[tuple[Any, Any]]) -> Iterator[Any]:
        tower = _open(_received(name))
        for lon, lat in parts:
            embeddings, usable = tower.embed(*(part.to_numpy(np.float64, na_value=np.nan) for part in (lon, lat)))
            yield pandas.Series(
                [row if used else None for row, used in zip(embeddings, usable, strict=True)], dtype=object
            )

    # The types of the parameters are Spark's way of telling what kind of function this is.
    embed.__annotations__ = {
        "parts": Iterator[tuple[pandas.Series, pandas.Series]],
        "return": Iterator[pandas.Series],
    }
    result: Callable[..., Column] = pandas_udf(embed, "array<float>")
    return result


def write_embeddings(
    frame: DataFrame, model: str | Path, folder: str, lon: str = "lon", lat: str = "lat"
) -> SparkSummary:
    """Write all columns of a frame, points, their boxes and embeddings as GeoParquet 1.1, a file for each partition.

    Each task writes its own file, so the vectors do not pass through Spark's own process. A file appears under its name when it
    is whole; a task that is tried again writes it again. lon, lat: the columns with degrees. model: model.places.onnx, a file
    that the driver reads. folder: a path or address that pyarrow.fs knows (file, s3, gs, hdfs), the same on every executor.

    Raises FolderNotEmpty, FrameUnusable; MissingExtra without pyspark.
    """
    with needs_extra("Spark", "spark"):
        import pyarrow  # type: ignore[import-untyped]
        import pyspark  # noqa: F401
        from pyarrow import fs

    if missing := {lon, lat} - set(frame.columns):
        raise FrameUnusable(reason=f"it has no column {', '.join(sorted(missing))}")
    if taken := set(WRITTEN) & set(frame.columns):
        raise FrameUnusable(reason=f"it has a column {', '.join(sorted(taken))} already. Rename it, or leave it out")
    filesystem, root = fs.FileSystem.from_uri(folder)
    filesystem.create_dir(root, recursive=True)
    if filesystem.get_file_info(fs.FileSelector(root)):
        raise FolderNotEmpty(folder=folder)
    name = _send(frame.sparkSession, model)

    def write(batches: Iterator[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None, "Spark calls this in a task"
        part, attempt = context.partitionId(), context.taskAttemptId()
        return _write_part(batches, _received(name), folder, (part, attempt), (lon, lat))

    parts = frame.mapInArrow(write, REPORT).collect()
    return SparkSummary(
        folder,
        len(parts),
        sum(part.rows for part in parts),
        sum(part.unusable for part in parts),
        round(sum(part.seconds for part in parts), 2),
    )


def _send(spark: SparkSession, model: str | Path) -> str:
    """Have Spark bring the file to each executor; returns the name that it has there."""
    spark.sparkContext.addFile(str(model))
    return Path(model).name


def _received(name: str) -> str:
    from pyspark import SparkFiles

    return str(SparkFiles.get(name))


@cache
def _open(path: str) -> PlaceTower:
    """Once for each Python process: Spark uses one for many tasks."""
    return PlaceTower(path)


def _write_part(
    batches: Iterator[Any], model: str, folder: str, number: tuple[int, int], place: tuple[str, str]
) -> Iterator[Any]:
    """One file; yields one row that says what was written, none where a partition is empty. number: partition, attempt."""
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]
    from pyarrow import fs

    began = time.monotonic()
    tower = _open(model)
    filesystem, root = fs.FileSystem.from_uri(folder)
    path, unfinished = f"{root}/part-{number[0]:06d}.parquet", f"{root}/.part-{number[0]:06d}-{number[1]}"
    about = {"model_version": tower.version, "dimensions": DIMENSIONS}
    # Without the bounds of the file, which are not known yet; the column bbox has statistics.
    metadata = {"geo": json.dumps(geo_metadata("Point")), "callipper_db": json.dumps(about)}
    writer, rows, unusable = None, 0, 0
    for batch in batches:
        lon, lat = (batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False) for name in place)
        embeddings, usable = tower.embed(lon, lat)
        table = _add_columns(pa.Table.from_batches([batch]), lon, lat, embeddings, usable).replace_schema_metadata(
            metadata
        )
        writer = writer or pq.ParquetWriter(unfinished, table.schema, filesystem=filesystem, compression="zstd")
        writer.write_table(table)
        rows, unusable = rows + len(usable), unusable + int((~usable).sum())
    if writer is None:
        return
    writer.close()
    filesystem.move(unfinished, path)
    seconds = round(time.monotonic() - began, 3)
    yield pa.RecordBatch.from_pylist([{"path": path, "rows": rows, "unusable": unusable, "seconds": seconds}])


def _add_columns(table: Any, lon: Array, lat: Array, embeddings: Array, usable: Array) -> Any:
    """An Arrow table with geometry, bbox and emb; NULL in rows that are not usable."""
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    missing = pa.array(~usable)
    point = np.zeros(len(lon), dtype=[("order", "u1"), ("type", "<u4"), ("lon", "<f8"), ("lat", "<f8")])
    point["order"], point["type"], point["lon"], point["lat"] = 1, 1, lon, lat
    wkb = pa.FixedSizeBinaryArray.from_buffers(pa.binary(21), len(lon), [None, pa.py_buffer(point.tobytes())])
    sides = [pa.array(side) for side in (lon, lat, lon, lat)]
    found = {
        "geometry": pc.if_else(missing, None, wkb.cast(pa.binary())),
        "bbox": pa.StructArray.from_arrays(sides, BOX, mask=missing),
        "emb": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), DIMENSIONS, mask=missing),
    }
    for name, column in found.items():
        table = table.append_column(name, column)
    return table
