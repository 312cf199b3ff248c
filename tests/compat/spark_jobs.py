"""Spark embeds as the database does, on a cluster of processes of its own on this machine: make compat."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyspark", reason="Spark is not installed: pip install 'callipper-db[spark]'")

import geopandas
import psycopg
import pyarrow.parquet as pq
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, SparkSession

from callipper_db.arrays import Array
from callipper_db.errors import FolderNotEmpty, FrameUnusable
from callipper_db.progress import Silent
from callipper_db.spark import place_udf, write_embeddings
from callipper_trainer.onnx_towers import export_onnx
from untrained import MIDDLE, SRID, publish_untrained
from untrained import places as pois

pytestmark = pytest.mark.filterwarnings("default")

# Outside the lattices, and 4,700 km away; then nothing, no place on earth, and too far for the model's CRS.
FAR = [(5.6, 52.3), (5.12, 10.0)]
NOWHERE = [(None, 52.0), (5.0, None), (float("nan"), 52.0), (5.0, 91.0), (-175.0, -52.0)]


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    # The workers need the modules of this process, and a file that they can read.
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    settings = {"spark.ui.enabled": "false", "spark.executor.memory": "768m", "spark.driver.memory": "768m"}
    session = SparkSession.builder.master("local-cluster[2,1,768]").config(map=settings).getOrCreate()
    yield session
    session.stop()


@pytest.fixture(scope="module")
def model(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    publish_untrained(module_database, pois(), "contextual", "small")
    folder = tmp_path_factory.mktemp("model")
    export_onnx(module_database, folder / "model.onnx", Silent())
    return folder / "model.places.onnx"


@pytest.fixture(scope="module")
def places(module_database: str) -> list[tuple[float | None, float | None]]:
    """(lon, lat), the last ones NOWHERE."""
    near = np.random.default_rng(0).normal(MIDDLE, 1500, (200, 2))
    with psycopg.connect(module_database) as connection:
        rows = connection.execute(
            "SELECT ST_X(p), ST_Y(p) FROM unnest(%s::float8[], %s::float8[]) AS m(x, y),"
            " ST_Transform(ST_SetSRID(ST_Point(x, y), %s), 4326) AS p",
            [*near.T.tolist(), SRID],
        ).fetchall()
    return [*rows, *FAR, *NOWHERE]


@pytest.fixture(scope="module")
def wanted(model: Path, module_database: str, places: list[tuple[float, float]]) -> Array:
    """What the database says of the places that it embeds."""
    with psycopg.connect(module_database) as connection:
        rows = connection.execute(
            "SELECT callipper.loc_embed(ST_SetSRID(ST_Point(lon, lat), 4326))::real[]"
            " FROM unnest(%s::float8[], %s::float8[]) WITH ORDINALITY AS p(lon, lat, n) ORDER BY n",
            [list(axis) for axis in zip(*places[: -len(NOWHERE)], strict=True)],
        ).fetchall()
    return np.array([row[0] for row in rows], np.float32)


@pytest.fixture(scope="module")
def frame(spark: SparkSession, places: list[tuple[float, float]]) -> DataFrame:
    rows = [(number, *place) for number, place in enumerate(places)]
    return spark.createDataFrame(rows, "id long, lon double, lat double").repartition(3)


def test_the_files_hold_what_the_database_says(frame: DataFrame, model: Path, wanted: Array, tmp_path: Path) -> None:
    summary = write_embeddings(frame, model, str(tmp_path / "out"))
    written = geopandas.read_parquet(tmp_path / "out").sort_values("id")
    assert (summary.rows, summary.unusable) == (len(written), len(NOWHERE)) == (len(wanted) + len(NOWHERE), 5)
    assert summary.files == len(list((tmp_path / "out").glob("*"))) == 3
    np.testing.assert_allclose(np.stack(written["emb"][: len(wanted)]), wanted, atol=1e-5)
    assert written[["emb", "geometry"]][len(wanted) :].isna().all(axis=None)
    usable = written[: len(wanted)]
    np.testing.assert_array_equal(usable.geometry.x, usable["lon"])
    np.testing.assert_array_equal(usable.geometry.y, usable["lat"])
    assert (
        str(pq.read_schema(next((tmp_path / "out").glob("*"))).field("emb").type)
        == "fixed_size_list<element: float>[256]"
    )
    # A reader may skip what lies outside of a box.
    lon, lat = usable["lon"][:200], usable["lat"][:200]
    near = geopandas.read_parquet(tmp_path / "out", bbox=(lon.min(), lat.min(), lon.max(), lat.max()))
    assert len(near) == len(wanted) - len(FAR)


def test_the_column_holds_what_the_database_says(frame: DataFrame, model: Path, wanted: Array) -> None:
    embed = place_udf(frame.sparkSession, model)
    rows = frame.withColumn("emb", embed("lon", "lat")).orderBy("id").collect()
    np.testing.assert_allclose(np.array([row.emb for row in rows[: len(wanted)]]), wanted, atol=1e-5)
    assert [row.emb for row in rows[len(wanted) :]] == [None] * len(NOWHERE)


def test_what_cannot_be_written(frame: DataFrame, model: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(FolderNotEmpty, match="full is not empty"):
        write_embeddings(frame, model, str(tmp_path / "full"))
    with pytest.raises(FrameUnusable, match="no column longitude"):
        write_embeddings(frame, model, str(tmp_path / "out"), lon="longitude")
    with pytest.raises(FrameUnusable, match="a column geometry already"):
        write_embeddings(frame.withColumn("geometry", frame["lon"]), model, str(tmp_path / "out"))
    texts = model.with_name("model.texts.onnx")
    wrong = texts.rename(texts.with_name("wrong.onnx"))
    with pytest.raises(PythonException, match="is not a places tower"):
        write_embeddings(frame, wrong, str(tmp_path / "out"))
