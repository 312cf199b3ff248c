"""Exports equal the database to float32, read by libraries that are not ours."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
import shapely
from click.testing import Result
from safetensors.numpy import load_file

from callipper_db import db
from callipper_db.arrays import Array
from callipper_trainer.model_rows import load_model
from published import read_vectors
from sessions import user_session


def vectors(dsn: str, query: str) -> Array:
    with user_session(dsn) as connection:
        return read_vectors(connection, query).astype(np.float32)


@pytest.mark.parametrize(
    ("what", "table", "query"),
    [
        ("cells", "cell", "SELECT emb::text FROM cells ORDER BY cell_id"),
        ("places", "place", "SELECT emb::text FROM points ORDER BY point_id"),
    ],
)
def test_geoparquet(
    shared_town: str, tmp_path: Path, run: Callable[..., Result], what: str, table: str, query: str
) -> None:
    path = tmp_path / "out.parquet"
    said = run("export", what, "-o", str(path), "--dsn", shared_town).output
    frame = geopandas.read_parquet(path)
    assert f"{len(frame):,} rows of model version 1" in said
    np.testing.assert_array_equal(np.stack(frame["emb"]), vectors(shared_town, query))
    expected = geopandas.read_postgis(
        f"SELECT * FROM callipper_map.{table} ORDER BY 1", _engine(shared_town), geom_col="geom"
    )
    assert shapely.equals(frame.geometry.to_numpy(), expected.geometry.to_numpy()).all()
    for name in expected.columns.difference(["geom", "model_version"]):
        if expected[name].dtype.kind == "f":
            np.testing.assert_array_equal(frame[name].astype("float32"), expected[name].astype("float32"))
        else:
            assert frame[name].fillna("").tolist() == expected[name].fillna("").tolist()
    emb = pq.read_schema(path).field("emb").type
    assert (str(emb.value_type), emb.list_size) == ("float", len(frame["emb"][0]))
    # The covering lets a reader skip what lies outside of a box.
    west, south, east, north = frame.iloc[:5].total_bounds
    inside = geopandas.read_parquet(path, bbox=(west, south, east, north))
    assert 5 <= len(inside) < len(frame)
    geo = json.loads(pq.read_schema(path).metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    np.testing.assert_allclose(geo["columns"]["geometry"]["bbox"], frame.total_bounds, atol=1e-9)


def test_geopackage(shared_town: str, tmp_path: Path, run: Callable[..., Result]) -> None:
    path = tmp_path / "out.gpkg"
    for what, layer in (("cells", "cell"), ("places", "place")):
        run("export", what, "-o", str(path), "--dsn", shared_town)
        info = pyogrio.read_info(path, layer=layer)
        assert info["crs"] == "EPSG:4326"
        assert "emb" not in info["fields"]
        with user_session(shared_town) as connection:
            assert connection.execute(f"SELECT count(*) FROM callipper_map.{layer}".encode()).fetchone() == (
                info["features"],
            )


def test_csv(shared_town: str, tmp_path: Path, run: Callable[..., Result]) -> None:
    path = tmp_path / "out.csv"
    run("export", "cells", "-o", str(path), "--dsn", shared_town)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = vectors(shared_town, "SELECT emb::text FROM cells ORDER BY cell_id")
    found = np.array([[row[f"emb{number}"] for number in range(expected.shape[1])] for row in rows], np.float32)
    np.testing.assert_array_equal(found, expected)


def test_geotiff(shared_town: str, tmp_path: Path, run: Callable[..., Result]) -> None:
    path = tmp_path / "out.tif"
    run("export", "cells", "-o", str(path), "--dsn", shared_town)
    expected = vectors(shared_town, "SELECT emb::text FROM cells ORDER BY cell_id")
    with user_session(shared_town) as connection:
        rows = connection.execute(
            "SELECT ST_X(p), ST_Y(p) FROM cells, ST_Centroid(ST_Transform(geom, 32631)) AS p ORDER BY cell_id"
        ).fetchall()
    with rasterio.open(path) as raster:
        assert raster.crs.to_string() == "EPSG:32631"
        assert raster.count == expected.shape[1]
        assert np.isnan(raster.nodata)
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        pixels = raster.read()
        shape = [raster.height, raster.width]
        east, north = np.array(rows).T
        column = np.floor((east - raster.bounds.left) / raster.res[0]).astype(int)
        row = np.floor((raster.bounds.top - north) / raster.res[1]).astype(int)
    np.testing.assert_array_equal(pixels[:, row, column].T, expected)
    assert np.isfinite(pixels[0]).sum() == len(expected), "no pixel without a cell"
    item = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    properties = item["properties"]
    assert (properties["proj:code"], properties["proj:shape"]) == ("EPSG:32631", shape)
    assert properties["emb:dimensions"] == expected.shape[1]
    assert item["assets"]["embeddings"]["href"] == "out.tif"
    assert {path.name for path in tmp_path.glob("*.tif")} == {"out.tif"}, "nothing is left of the strips"


def test_weights(shared_town: str, tmp_path: Path, run: Callable[..., Result]) -> None:
    path = tmp_path / "out.safetensors"
    run("export", "model", "-o", str(path), "--dsn", shared_town)
    tensors, said = load_file(path), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    with db.session(shared_town, autocommit=True) as connection:
        loaded = load_model(connection)
    model = loaded.trained.model
    for name, layer in model.location.linear_layers().items():
        own = slice(-layer.out_features, None)  # in front of the last layer's stands what the peaks read
        np.testing.assert_array_equal(tensors[f"location.{name}.weight"][own], layer.weight.detach().numpy())
        np.testing.assert_array_equal(tensors[f"location.{name}.bias"][own], layer.bias.detach().numpy())
    np.testing.assert_array_equal(tensors["text_projection.weight"], model.text_projection.weight.detach().numpy())
    assert loaded.trained.pyramid is not None
    for number, level in enumerate(loaded.trained.pyramid.levels):
        np.testing.assert_array_equal(tensors[f"context.{number}.ij"], level.ij)
        np.testing.assert_array_equal(tensors[f"context.{number}.code_sum"], level.code_sum)
    assert said["version"] == 1
    assert said["origin_m"] == loaded.trained.origin.tolist()
    assert said["text_encoder"]["name"] == loaded.text_encoder[0]


def test_what_cannot_be_exported(shared_town: str, database: str, tmp_path: Path, run: Callable[..., Result]) -> None:
    wrong = run("export", "places", "-o", str(tmp_path / "out.tif"), "--dsn", shared_town, exit_code=2).output
    assert "places can be written as geoparquet, gpkg, csv" in wrong
    assert (
        "No model is active"
        in run("export", "cells", "-o", str(tmp_path / "x.csv"), "--dsn", database, exit_code=1).output
    )


def _engine(dsn: str):  # type: ignore[no-untyped-def]
    import psycopg
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    return create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=NullPool)
