"""embed: the vectors in a table or a file of the user's own are those of loc_embed, however the run was cut short."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from psycopg import sql
from test_map import fetch

from callipper_db import db, models, own_table
from callipper_db.arrays import Array
from callipper_db.errors import BadTable, EmbeddingsOfAnother, PlacesUnusable
from callipper_db.own_table import TableOptions, TableSummary
from callipper_db.place_encoder import open_encoder
from callipper_db.progress import Silent
from callipper_db.tables import DIMENSIONS
from handmade import write_model
from published import read_vectors
from sessions import user_session
from town import MIDDLE, SRID

TOLERANCE = 1e-5  # between torch and SQL


def embed_table(
    dsn: str, table: str, column: str, reporter: Silent, *, torch: bool | None = None, **options: Any
) -> TableSummary:
    return own_table.embed_table(dsn, table, column, reporter, TableOptions(**options), torch=torch)


def places(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(MIDDLE, 0.02, (count, 2))


def make_table(dsn: str, count: int = 200, extra: str = "") -> None:
    """public.shop, with a key of two columns."""
    lonlat = places(count)
    with user_session(dsn) as connection:
        connection.execute(
            f"CREATE TABLE public.shop (country text, number int, {extra} geom geometry(Point, {SRID}),"
            " PRIMARY KEY (country, number))".encode()
        )
        connection.execute(
            "INSERT INTO public.shop (country, number, geom) SELECT 'nl', n, ST_Transform(ST_SetSRID(ST_Point(x, y), 4326), %s)"
            " FROM unnest(%s::float8[], %s::float8[]) WITH ORDINALITY AS p(x, y, n)",
            [SRID, lonlat[:, 0].tolist(), lonlat[:, 1].tolist()],
        )


def check(dsn: str, column: str = "emb") -> int:
    """All filled rows hold what loc_embed says; returns how many there are."""
    with user_session(dsn) as connection:
        where = sql.SQL(" FROM public.shop WHERE {} IS NOT NULL ORDER BY country, number").format(
            sql.Identifier(column)
        )
        found = read_vectors(
            connection, (sql.SQL("SELECT {}::text").format(sql.Identifier(column)) + where).as_string()
        )
        expected = read_vectors(connection, (sql.SQL("SELECT loc_embed(geom)::text") + where).as_string())
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    return len(found)


def test_torch_and_sql_embed_alike(town: str) -> None:
    lonlat = places(40)
    with db.session(town, autocommit=True) as connection:
        by_torch = open_encoder(connection, torch=True).embed_lonlat(connection, lonlat)
        by_sql = open_encoder(connection, torch=False).embed_lonlat(connection, lonlat)
    assert by_torch.shape == by_sql.shape
    assert by_torch.dtype == by_sql.dtype == np.float32
    np.testing.assert_allclose(by_torch, by_sql, atol=TOLERANCE)


@pytest.mark.parametrize("bad", [(np.nan, 52.0), (5.0, 91.0), (-175.0, -40.0)])
def test_a_place_that_is_none_is_named(town: str, bad: tuple[float, float]) -> None:
    with db.session(town, autocommit=True) as connection:
        encoder = open_encoder(connection)
        with pytest.raises(PlacesUnusable, match="1 of 3 places cannot be embedded; the first is number 1"):
            encoder.embed_lonlat(connection, np.array([MIDDLE, bad, MIDDLE]))
        assert encoder.embed_lonlat(connection, np.empty((0, 2))).shape == (0, DIMENSIONS)


@pytest.mark.parametrize("torch", [True, False])
def test_a_table_is_filled_in_chunks(town: str, monkeypatch: pytest.MonkeyPatch, torch: bool) -> None:
    monkeypatch.setattr(own_table, "CHUNK", 64)
    make_table(town, 90)
    summary = embed_table(town, "shop", "emb", Silent(), torch=torch, where="number <= 80")
    assert (summary.rows, summary.skipped, summary.version) == (80, 0, 1)
    assert check(town) == 80
    assert embed_table(town, "public.shop", "emb", Silent(), torch=torch).rows == 10
    assert check(town) == 90
    assert embed_table(town, "shop", "emb", Silent()).rows == 0


def test_rows_without_a_place_are_left_alone(town: str) -> None:
    make_table(town, 5)
    with user_session(town) as connection:
        connection.execute("ALTER TABLE shop ALTER geom TYPE geometry")
        connection.execute(
            "INSERT INTO shop (country, number, geom) VALUES ('x', 1, NULL), ('x', 2, 'SRID=4326;POINT EMPTY'),"
            " ('x', 3, 'SRID=4326;POINT(-175 -40)'), ('x', 4, 'POINT(5 52)'), ('x', 5, 'SRID=4326;POINT(NaN NaN)'),"
            " ('y', 1, 'SRID=4326;POLYGON((5.1 52, 5.2 52, 5.2 52.1, 5.1 52))')"
        )
    summary = embed_table(town, "shop", "emb", Silent())
    assert (summary.rows, summary.skipped) == (6, 5)
    assert check(town) == 6


def test_areas_are_the_mean_of_their_cells(town: str) -> None:
    make_table(town, 0)
    with user_session(town) as connection:
        connection.execute("ALTER TABLE shop ALTER geom TYPE geometry")
        connection.execute(
            "INSERT INTO shop (country, number, geom) VALUES ('large', 1, ST_Buffer(ST_SetSRID(ST_Point(%s, %s), 4326), 0.01)),"
            " ('tiny', 1, ST_Buffer(ST_SetSRID(ST_Point(%s, %s), 4326), 1e-6))",
            [*MIDDLE, *MIDDLE],
        )
    embed_table(town, "shop", "emb", Silent(), areas="mean")
    with user_session(town) as connection:
        large, tiny = read_vectors(connection, "SELECT emb::text FROM shop ORDER BY country")
        (at,) = read_vectors(connection, "SELECT loc_embed(geom)::text FROM shop WHERE country = 'tiny'")
        cells = read_vectors(
            connection,
            "SELECT v.vector::text FROM callipper_map.cell_vector v, shop WHERE country = 'large'"
            " AND ST_Intersects(geom, ST_SetSRID(ST_Point(lon, lat), 4326)) ORDER BY cell_id",
        )
        support = connection.execute(
            "SELECT array_agg(support ORDER BY cell_id) FROM callipper_map.cell, shop WHERE country = 'large'"
            " AND ST_Intersects(shop.geom, ST_SetSRID(ST_Point(lon, lat), 4326))"
        ).fetchone()
    assert len(cells) > 20
    assert support is not None
    mean = (cells * np.array(support[0])[:, None]).sum(axis=0)
    np.testing.assert_allclose(large, mean / np.linalg.norm(mean), atol=TOLERANCE)
    np.testing.assert_allclose(tiny, at, atol=TOLERANCE)


def test_vectors_of_another_version_are_not_mixed_in(town: str) -> None:
    make_table(town, 30)
    embed_table(town, "shop", "emb", Silent())
    with user_session(town) as connection:
        connection.execute("UPDATE shop SET emb = NULL WHERE number > 20")
        handmade = write_model(connection, seed=1)
        connection.execute(
            "UPDATE callipper.model SET arch = (SELECT arch FROM model WHERE version = 1) WHERE version = %s",
            [handmade.version],
        )
    with pytest.raises(EmbeddingsOfAnother, match=f"model version {handmade.version}, which is active"):
        embed_table(town, "shop", "emb", Silent(), torch=False)
    models.activate_model(town, 1)
    with user_session(town) as connection:
        connection.execute("COMMENT ON COLUMN shop.emb IS 'mine'")
    with pytest.raises(EmbeddingsOfAnother):
        embed_table(town, "shop", "emb", Silent())
    assert embed_table(town, "shop", "emb", Silent(), everything=True).rows == 30
    assert check(town) == 30


DIES_IN_THE_THIRD_CHUNK = """
import os, signal, sys
from callipper_db import own_table
from callipper_db.progress import Silent

class Fatal(Silent):
    done = 0
    def advance(self, units, **figures):
        self.done += 1
        if self.done == 3:
            os.kill(os.getpid(), signal.SIGKILL)

own_table.CHUNK = 50
options = own_table.TableOptions(everything=sys.argv[2] == "True")
own_table.embed_table(sys.argv[1], "shop", "emb", Fatal(), options, torch=False)
"""


@pytest.mark.parametrize("everything", [False, True])
def test_a_run_that_is_killed_goes_on_where_it_was(
    town: str, monkeypatch: pytest.MonkeyPatch, everything: bool
) -> None:
    """Each chunk is committed. A run that replaces vectors knows that it has not ended."""
    monkeypatch.setattr(own_table, "CHUNK", 50)
    make_table(town, 200, extra="emb vector, ")
    if everything:
        with user_session(town) as connection:
            connection.execute(
                "UPDATE shop SET emb = array_fill(1, ARRAY[(SELECT vector_dims(emb) FROM cells LIMIT 1)])::vector"
            )
    command = [sys.executable, "-c", DIES_IN_THE_THIRD_CHUNK, town, str(everything)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (done,) = fetch(town, "SELECT count(*) FROM shop WHERE vector_norm(emb) < 2")[0]
    assert done == 100
    summary = embed_table(town, "shop", "emb", Silent(), torch=False)
    assert summary.rows == (200 if everything else 100)
    assert check(town) == 200
    assert embed_table(town, "shop", "emb", Silent()).rows == 0


def test_others_read_and_write_meanwhile(town: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_table, "CHUNK", 20)
    make_table(town, 60)
    seen = []

    class Watching(Silent):
        def advance(self, units: int, **figures: float) -> None:
            with psycopg.connect(town, autocommit=True) as other:
                other.execute("SET lock_timeout = '1s'")
                other.execute("INSERT INTO shop (country, number) VALUES ('new', %s)", [len(seen)])
                seen.append(other.execute("SELECT count(emb) FROM shop").fetchone())

    embed_table(town, "shop", "emb", Watching())
    assert seen == [(0,), (20,), (40,)], "a chunk is seen when it is committed"
    assert check(town) == 60


@pytest.mark.parametrize(
    ("definition", "options", "message"),
    [
        ("id int, geom geometry", {}, "it has no primary key"),
        ("id int PRIMARY KEY", {}, "neither a geometry nor columns lon and lat"),
        ("id int PRIMARY KEY, a geometry, b geometry", {}, "several geometries; choose with --geometry: a, b"),
        ("id int PRIMARY KEY, a geometry", {"geometry": "c"}, "it has no column c"),
        ("id int PRIMARY KEY, a geometry, emb text", {}, "its column emb is of type text"),
        ("id int PRIMARY KEY, a geometry, emb vector(3)", {}, r"of type .*vector\(3\), and vector\("),
        ("id int PRIMARY KEY, a geometry", {"where": "nonsense = 1"}, 'column "nonsense" does not exist'),
    ],
)
def test_tables_that_cannot_be_embedded(town: str, definition: str, options: dict[str, str], message: str) -> None:
    with user_session(town) as connection:
        connection.execute(f"CREATE TABLE bad ({definition})".encode())
    with pytest.raises(BadTable, match=message):
        embed_table(town, "bad", "emb", Silent(), **options)


def test_a_table_that_is_not_there(town: str) -> None:
    with pytest.raises(BadTable, match='relation "nowhere" does not exist'):
        embed_table(town, "nowhere", "emb", Silent())


# Files


def expected(dsn: str, lonlat: Array) -> Array:
    with db.session(dsn, autocommit=True) as connection:
        return open_encoder(connection).embed_lonlat(connection, lonlat)


def test_files_of_several_kinds(town: str, tmp_path: Path, run: Callable[..., Result]) -> None:
    lonlat = places(20)
    csv = tmp_path / "shops.csv"
    lines = [f"{number},{lon!r},{lat!r}" for number, (lon, lat) in enumerate(lonlat.tolist())]
    csv.write_text("\n".join(["id,lon,lat", *lines, "99,,"]), encoding="utf-8")
    geojson = tmp_path / "shops.geojson"
    shapes = [
        {"type": "Feature", "properties": {"id": number}, "geometry": {"type": "Point", "coordinates": place}}
        for number, place in enumerate(lonlat.tolist())
    ]
    geojson.write_text(json.dumps({"type": "FeatureCollection", "features": shapes}), encoding="utf-8")
    for path in (csv, geojson):
        output = tmp_path / "out.parquet"
        said = run("embed", str(path), "-o", str(output), "--column", "vec", "--dsn", town).output
        table = pq.read_table(output)
        assert "vec" in table.column_names and "id" in table.column_names
        assert ("1 rows have no place" in said) == (path is csv)
        found = np.array(table.column("vec").to_pylist()[:20], np.float32)
        np.testing.assert_allclose(found, expected(town, lonlat), atol=1e-7)
        assert table.column("vec").to_pylist()[20:] == [None] * (len(table) - 20)
        again = run(
            "embed", str(output), "-o", str(tmp_path / "x.parquet"), "--column", "vec", "--dsn", town, exit_code=1
        )
        assert "it has a column vec already" in again.output


def test_the_command_fills_a_table(town: str, run: Callable[..., Result]) -> None:
    make_table(town, 10)
    assert "Filled emb of shop: 10 rows" in run("embed", "shop", "--dsn", town).output
    assert check(town) == 10
    assert "say where to write" in run("embed", "shops.csv", "--dsn", town, exit_code=2).output
    assert "there is no such file" in run("embed", "shops.csv", "-o", "x.parquet", "--dsn", town, exit_code=1).output
    assert "cannot be embedded" in run("embed", "nowhere", "--dsn", town, exit_code=1).output
