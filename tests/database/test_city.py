"""callipper_db.connect: what a program gets is what SQL says."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import shapely
from psycopg import sql
from test_own_places import check, make_table, places
from test_schema import user_of, visitor

import callipper_db
from callipper_db import models
from callipper_db.city import City
from callipper_db.errors import AreasUnusable, NoActiveModel, NotInitialised, PlacesUnusable, TextUnknown
from callipper_db.place_embedder import PlaceEmbedder
from handmade import write_model
from published import read_vectors
from sessions import user_session
from town import MIDDLE

TOLERANCE = 1e-5


@pytest.fixture(params=[True, False], ids=["torch", "sql"])
def city(request: pytest.FixtureRequest, shared_town: str) -> City:
    return City(shared_town, torch=request.param)


def test_places_and_texts(city: City) -> None:
    lonlat = places(12)
    found = city.embed(lonlat[:, 0], lonlat[:, 1])
    with user_session(city.dsn) as connection:
        expected = read_vectors(
            connection,
            "SELECT loc_embed(ST_SetSRID(ST_Point(x, y), 4326))::text FROM unnest("
            f"ARRAY{lonlat[:, 0].tolist()}, ARRAY{lonlat[:, 1].tolist()}) WITH ORDINALITY AS p(x, y, n) ORDER BY n",
        )
        text = read_vectors(connection, "SELECT text_embed('park')::text")
    assert found.dtype == np.float32 and found.shape == (12, city.dimensions)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    np.testing.assert_allclose(city.embed(*MIDDLE), city.embed([MIDDLE[0]], [MIDDLE[1]]), atol=1e-7)
    np.testing.assert_allclose(city.embed_text(["park", "cafe"])[:1], text, atol=1e-6)
    assert city.embed_text([]).shape == (0, city.dimensions)
    assert city.embed([], []).shape == (0, city.dimensions)


def test_bad_questions(city: City) -> None:
    with pytest.raises(PlacesUnusable, match=r"number 0, longitude 52\.0"):
        city.embed([52.0], [95.0])
    with pytest.raises(TextUnknown):
        city.embed_text(["a text that nobody has encoded"])
    with pytest.raises(TypeError, match="write"):
        city.embed_text("park")


def test_cells_are_those_of_the_database(shared_town: str) -> None:
    frame, emb = callipper_db.connect(shared_town).cells()
    with user_session(shared_town) as connection:
        rows = connection.execute(
            "SELECT cell_id, lon, lat, cluster, cluster_label, color, top_texts, support, poi_count, ST_AsText(geom)"
            " FROM callipper_map.cell ORDER BY cell_id"
        ).fetchall()
        expected = read_vectors(connection, "SELECT emb::text FROM cells ORDER BY cell_id")
    assert len(frame) == len(rows) > 100
    assert str(frame.crs) == "EPSG:4326"
    for row, shape, found in zip(rows, frame.geometry, frame.itertuples(index=False), strict=True):
        assert row[0] == found.cell_id and (row[5], row[8]) == (found.color, found.poi_count)
        assert shape.equals_exact(shapely.from_wkt(row[9]), tolerance=1e-12)
        assert (found.top_texts if isinstance(found.top_texts, str) else None) == row[6]
    np.testing.assert_allclose(emb, expected, atol=1e-6)


def test_areas(shared_town: str) -> None:
    city = callipper_db.connect(shared_town)
    frame, _ = city.cells()
    areas = frame.iloc[:40].dissolve("cluster").to_crs(32631)
    found = city.embed_areas(areas)
    with user_session(shared_town) as connection:
        expected = [
            read_vectors(connection, f"SELECT area_embed(ST_GeomFromText('{shape.wkt}', 4326))::text")[0]
            for shape in areas.to_crs(4326).geometry
        ]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    with pytest.raises(AreasUnusable, match="no CRS"):
        city.embed_areas(areas.set_crs(None, allow_override=True))


def test_an_own_table(town: str) -> None:
    make_table(town, 10)
    assert callipper_db.connect(town).embed_table("shop").rows == 10
    assert check(town) == 10


def test_another_version_is_met_at_the_next_call(town: str) -> None:
    city = City(town, torch=False)
    before = city.embed_text(["park"])
    with user_session(town) as connection:
        other = write_model(connection, seed=3, texts=("park",))
        connection.execute(
            "UPDATE model SET arch = (SELECT arch FROM model WHERE version = 1) WHERE version = %s", [other.version]
        )
    np.testing.assert_allclose(city.embed_text(["park"])[0], other.texts["park"], atol=1e-6)
    assert city.version == other.version
    models.activate_model(town, 1)
    np.testing.assert_array_equal(city.embed_text(["park"]), before)
    assert city.version == 1


def test_a_reader_is_answered_by_sql(cluster_dsn: str, town: str) -> None:
    with visitor(cluster_dsn, town, "callipper_python") as dsn:
        with user_session(town) as connection:
            connection.execute(sql.SQL("GRANT callipper_reader TO {}").format(sql.Identifier(user_of(dsn))))
        found = callipper_db.connect(dsn).embed(*MIDDLE)
        np.testing.assert_allclose(found, callipper_db.connect(town).embed(*MIDDLE), atol=TOLERANCE)


def test_databases_without_a_model(database: str, empty_database: str) -> None:
    with pytest.raises(NoActiveModel):
        callipper_db.connect(database)
    with pytest.raises(NotInitialised):
        callipper_db.connect(empty_database)


def test_the_transformer(shared_town: str) -> None:
    embedder = PlaceEmbedder(shared_town)
    lonlat = places(8)
    found = embedder.fit_transform(lonlat)
    np.testing.assert_allclose(found, callipper_db.connect(shared_town).embed(lonlat[:, 0], lonlat[:, 1]), atol=1e-7)
    np.testing.assert_allclose(pickle.loads(pickle.dumps(embedder)).transform(lonlat), found, atol=1e-7)
    assert len(embedder.get_feature_names_out()) == found.shape[1]
    with pytest.raises(ValueError, match="two columns, longitude and latitude; these are 3"):
        embedder.fit(np.zeros((2, 3)))
