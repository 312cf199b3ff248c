"""A million places of London embedded by Spark, against torch: points a second and core, and the largest difference.

Spark runs in local-cluster mode: a process for the driver and one for each executor, which get the model and the rows over the
network. The weights are random, since training changes neither the time nor the sum. `hours_for_a_billion` is the arithmetic: a
billion points by the measured rate, on one core.

    make bench ARGS="spark --points 100000 --executors 4"

It needs the extra `spark` and Java 17 (Debian's openjdk-17-jre-headless).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from psycopg import sql

from benchmarks.city import City
from benchmarks.loc_embed import publish_untrained
from benchmarks.sessions import user_session
from callipper_db.arrays import Array
from callipper_db.binary_copy import read_rows
from callipper_db.progress import Silent
from callipper_db.read.record import require
from callipper_db.spark import SparkSummary, write_embeddings
from callipper_db.tables import DIMENSIONS
from callipper_trainer.embed import embed_places
from callipper_trainer.model import TrainedModel
from callipper_trainer.onnx_towers import export_onnx

POINTS = 1_000_000
PARTITIONS = 16
EXECUTOR_MIB = 1024
BAR_DIFFERENCE = 1e-5
BILLION = 1e9


def run(city: City, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Rates of Spark and of torch, and how far apart they are at any number of any point."""
    options = _parse(arguments)
    model = publish_untrained(city, "contextual")
    try:
        with tempfile.TemporaryDirectory(prefix="callipper-spark-") as folder:
            home = Path(folder)
            export_onnx(city.dsn, home / "model.onnx", Silent())
            lonlat = _draw(city, options.points)
            _write_points(home / "points.parquet", lonlat)
            summary, seconds = _embed(home, options.executors)
            difference, torch_s = _compare(home / "out", model.trained, _project(city, lonlat))
            written = sum(path.stat().st_size for path in (home / "out").glob("*.parquet"))
            model_bytes = (home / "model.places.onnx").stat().st_size
    finally:
        with user_session(city.dsn) as connection:
            connection.execute("SELECT callipper.drop_model(%s, true)", [model.version])
    rate = summary.rows / summary.core_seconds
    return {
        "points": summary.rows,
        "unusable": summary.unusable,
        "executors": options.executors,
        "points_per_s_a_core": round(rate),
        "torch_points_per_s": round(summary.rows / torch_s),  # on as many threads as it takes
        "job_s": round(seconds, 1),
        "bytes_a_point": round(written / summary.rows),
        "model_mib": round(model_bytes / 2**20),
        "core_hours_for_a_billion": round(BILLION / rate / 3600, 1),
        "difference_to_torch": difference,
        "bar_difference": BAR_DIFFERENCE,
        "holds": difference <= BAR_DIFFERENCE and summary.rows == options.points and not summary.unusable,
    }


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks spark", description=str(__doc__).splitlines()[0])
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--executors", type=int, default=os.cpu_count(), help="each has one core")
    return parser.parse_args(arguments)


def _draw(city: City, points: int) -> Array:
    """(N, 2) degrees: half anywhere in the rectangle around the POIs, half near one of them, where most lattice cells are."""
    random = np.random.default_rng(0)
    known = city.samples.lonlat
    near = known[random.integers(0, len(known), points // 2)] + random.normal(0, 0.002, (points // 2, 2))
    anywhere = random.uniform(known.min(axis=0), known.max(axis=0), (points - len(near), 2))
    drawn: Array = random.permutation(np.concatenate([near, anywhere]))
    return drawn


def _write_points(path: Path, lonlat: Array) -> None:
    arrow, parquet = require("pyarrow", "Writing Parquet"), require("pyarrow.parquet", "Writing Parquet")
    columns = {"id": np.arange(len(lonlat)), "lon": lonlat[:, 0], "lat": lonlat[:, 1]}
    parquet.write_table(arrow.table(columns), path, row_group_size=len(lonlat) // PARTITIONS + 1)


def _embed(home: Path, executors: int) -> tuple[SparkSummary, float]:
    """The job's summary, and its seconds without Spark's start."""
    from pyspark.sql import SparkSession

    os.environ |= {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    memory = f"{EXECUTOR_MIB}m"
    settings = {"spark.ui.enabled": "false", "spark.driver.memory": memory, "spark.executor.memory": memory}
    master = f"local-cluster[{executors},1,{EXECUTOR_MIB}]"
    spark = SparkSession.builder.master(master).config(map=settings).getOrCreate()
    try:
        frame = spark.read.parquet(str(home / "points.parquet")).repartition(PARTITIONS)
        frame.count()  # the executors are up
        began = time.perf_counter()
        summary = write_embeddings(frame, home / "model.places.onnx", str(home / "out"))
        return summary, time.perf_counter() - began
    finally:
        spark.stop()


def _project(city: City, lonlat: Array) -> Array:
    """(N, 2) metres, as PostGIS has them."""
    with user_session(city.dsn) as connection:
        connection.execute("CREATE TEMPORARY TABLE asked (number int8, lon float8, lat float8) ON COMMIT DROP")
        with connection.cursor().copy("COPY asked FROM STDIN") as copy:
            for number, place in enumerate(lonlat.tolist()):
                copy.write_row([number, *place])
        query = sql.SQL(
            "SELECT ST_X(m), ST_Y(m) FROM (SELECT number, ST_Transform(ST_SetSRID(ST_MakePoint(lon, lat), 4326), {}) AS m"
            " FROM asked) AS q ORDER BY number"
        ).format(city.samples.srid)
        return np.column_stack(read_rows(connection, query, ["float8", "float8"]))


def _compare(folder: Path, trained: TrainedModel, metres: Array) -> tuple[float, float]:
    """The largest difference of any number in the files to torch's, and the seconds that torch took.

    File by file, as memory is short.
    """
    parquet = require("pyarrow.parquet", "Reading Parquet")
    difference, torch_s, seen = 0.0, 0.0, np.zeros(len(metres), bool)
    for path in sorted(folder.glob("*.parquet")):
        table = parquet.read_table(path, columns=["id", "emb"])
        rows = table.column("id").to_numpy()
        found = table.column("emb").combine_chunks().flatten().to_numpy().reshape(-1, DIMENSIONS)
        began = time.perf_counter()
        wanted = embed_places(trained, metres[rows])
        torch_s += time.perf_counter() - began
        difference = max(difference, float(np.abs(found - wanted).max()))
        seen[rows] = True
    assert seen.all(), "a point is missing"
    return difference, torch_s
