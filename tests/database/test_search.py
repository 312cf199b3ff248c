"""nearest_cells against numpy, over all cells and inside areas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from callipper_db.errors import BadArea, NoActiveModel, TextUnknown
from callipper_db.grid import BLOCK
from callipper_db.search import nearest_cells
from conftest import _database
from handmade import ORIGIN, SIZE_M, SRID, Model, write_model, write_sample
from sessions import user_session

SIDE = 8  # blocks; 1,600 cells around 3 degrees east, 49.65 north


@pytest.fixture(scope="module")
def town(cluster_dsn: str, template_database: str) -> Iterator[tuple[str, Model, Any]]:
    """A database, its model, and the (C, 4) west, south, east, north of the cells in degrees."""
    blocks = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)
    metres = ORIGIN + (blocks + 0.5) * BLOCK * SIZE_M + 7
    with _database(cluster_dsn, template_database) as dsn:
        with user_session(dsn) as connection:
            model = write_model(connection, metres)
            boxes = connection.execute(
                "SELECT ST_XMin(geom), ST_YMin(geom), ST_XMax(geom), ST_YMax(geom) FROM callipper.cell ORDER BY cell_id"
            ).fetchall()
        yield dsn, model, np.array(boxes)


def expected(model: Model, text: str, k: int, inside: Any = None) -> list[tuple[int, float]]:
    """(cell_id, cosine) of the best cells among those that are inside."""
    similarity = model.cells.astype(np.float64) @ model.texts[text].astype(np.float64)
    chosen = np.arange(len(similarity)) if inside is None else np.flatnonzero(inside)
    order = chosen[np.argsort(-similarity[chosen])][:k]
    return [(int(model.grid.cell_id[row]), float(similarity[row])) for row in order]


def check(found: list[dict[str, Any]], wanted: list[tuple[int, float]]) -> None:
    """In the order of float64, but that neighbours whose cosines are one number in float32 may stand in either order."""
    exact = dict(wanted)
    assert len(found) == len(wanted)
    ids = [cell["cell_id"] for cell in found]
    assert len(set(ids)) == len(ids) and set(ids) == set(exact)
    np.testing.assert_allclose([exact[cell_id] for cell_id in ids], [cosine for _, cosine in wanted], rtol=0, atol=1e-7)
    np.testing.assert_allclose([cell["similarity"] for cell in found], [cosine for _, cosine in wanted], atol=6e-5)


@pytest.mark.parametrize("k", [1, 10, 100, 1001, 100_000])
def test_the_nearest_of_all_cells(town: tuple[str, Model, Any], k: int) -> None:
    dsn, model, _ = town
    for text in model.texts:
        found = nearest_cells(dsn, text, k)
        assert len(found) == min(k, len(model.cells))
        check(found, expected(model, text, k))


def test_where_the_cells_are_and_what_is_near(town: tuple[str, Model, Any]) -> None:
    dsn, model, boxes = town
    row_of = {cell_id: row for row, cell_id in enumerate(model.grid.cell_id.tolist())}
    for cell in nearest_cells(dsn, "park", 50):
        row = row_of[cell["cell_id"]]
        west, south, east, north = boxes[row]
        assert west < cell["lon"] < east and south < cell["lat"] < north
        centre = model.grid.centre[row]
        block = np.floor((centre - ORIGIN) / (BLOCK * SIZE_M))
        poi = ORIGIN + (block + 0.5) * BLOCK * SIZE_M + 7
        name = f"place {int(block[1] * SIDE + block[0]) + 1}"
        assert len(cell["places"]) == 3
        if np.linalg.norm(poi - centre) < 100:
            assert cell["places"][0] == name


def test_inside_a_box(town: tuple[str, Model, Any]) -> None:
    dsn, model, boxes = town
    for west, south, east, north in [(3.001, 49.652, 3.02, 49.66), (3.03, 49.66, 3.031, 49.6605), (-180, -90, 180, 90)]:
        touches = (boxes[:, 0] <= east) & (boxes[:, 2] >= west) & (boxes[:, 1] <= north) & (boxes[:, 3] >= south)
        # Cells are a little askew in degrees: one whose box touches may miss the area by a hair; here none does.
        for k in (5, 2000):
            found = nearest_cells(dsn, "pub", k, f"{west},{south},{east},{north}")
            wanted = expected(model, "pub", k, touches)
            assert len(found) == len(wanted) > 0
            check(found, wanted)


def centres_inside(model: Model, corners: Any) -> Any:
    """Which centres lie in a triangle given in metres."""
    signs = []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        to = model.grid.centre - start
        signs.append((end - start)[0] * to[:, 1] - (end - start)[1] * to[:, 0] > 0)
    return np.all(signs, axis=0) | ~np.any(signs, axis=0)


def test_inside_a_triangle_whatever_its_srid(town: tuple[str, Model, Any]) -> None:
    dsn, model, _ = town
    metres = ORIGIN + np.array([[800, 700], [3300, 900], [1500, 3100]]) + 3
    ring = [*metres.tolist(), metres[0].tolist()]
    in_metres = f"SRID={SRID};POLYGON(({', '.join(f'{x} {y}' for x, y in ring)}))"
    with user_session(dsn) as connection:
        row = connection.execute(
            "SELECT ST_AsText(ST_Transform(ST_GeomFromEWKT(%s), 4326), 15)", [in_metres]
        ).fetchone()
    assert row is not None
    in_degrees = str(row[0])
    answers = [
        nearest_cells(dsn, "fresh fish", 10_000, area) for area in (in_metres, in_degrees, f"SRID=4326;{in_degrees}")
    ]
    assert answers[0] == answers[1] == answers[2]
    ids = {cell["cell_id"] for cell in answers[0]}
    inside = set(model.grid.cell_id[centres_inside(model, metres)].tolist())
    assert inside <= ids, "cells that the area touches count too"
    rim = set(model.grid.cell_id[centres_inside(model, metres + (metres - metres.mean(axis=0)) * 0.25)].tolist())
    assert ids <= rim
    ranked = [cell_id for cell_id, _ in expected(model, "fresh fish", 10_000) if cell_id in ids]
    assert [cell["cell_id"] for cell in answers[0]] == ranked


@pytest.mark.parametrize(
    "area", ["POINT(3.0101 49.6601)", "LINESTRING(3.01 49.66, 3.012 49.66)", "POINT EMPTY", "POINT(0 0)"]
)
def test_other_geometries_are_areas_too(town: tuple[str, Model, Any], area: str) -> None:
    dsn, _, _ = town
    found = nearest_cells(dsn, "pub", 10, area)
    assert (len(found) > 0) == area.startswith(("POINT(3", "LINE"))


@pytest.mark.parametrize(
    ("area", "reason"),
    [
        ("3.1,50,3,49", "longitudes lie from -180 to 180, latitudes from -90 to 90, south of north"),
        ("3,50,3.1,49", "south of north"),
        ("3,49,3,50", "longitudes lie from -180 to 180"),
        ("-181,0,0,1", "longitudes lie"),
        ("nan,0,1,1", "longitudes lie"),
        ("1,2,3", "parse error"),
        ("1,2,3,4,5", "parse error"),
        ("", "parse error"),
        ("here", "parse error"),
        ("POLYGON((0 0,1 1))", "geometry requires more points"),
        ("POLYGON((0 0,1 0,1 1,0 1))", "geometry contains non-closed rings"),
        ("SRID=99;POINT(0 0)", "(?i)srid|transform"),
        ("a,b,c,d", "parse error"),
        ("\udcff", "surrogates"),
        ("a\0b", "NUL"),
    ],
)
def test_what_is_no_area_is_refused(town: tuple[str, Model, Any], area: str, reason: str) -> None:
    with pytest.raises(BadArea, match=reason) as caught:
        nearest_cells(town[0], "pub", 10, area)
    assert str(caught.value).startswith(f"--within {area!r} is neither a bounding box")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zoo", 'has not met the text "zoo", and its text encoder handmade is not in the database'),
        ("{zoo}", 'has not met the text "{zoo}"'),
        ("", "the text is empty"),
        (" ", "the text is empty"),
        ("\udcff", "not valid UTF-8"),
    ],
)
def test_what_is_no_known_text_is_refused(town: tuple[str, Model, Any], text: str, message: str) -> None:
    for within in (None, "3,49,4,50"):
        with pytest.raises(TextUnknown) as caught:
            nearest_cells(town[0], text, 10, within)
        assert message in str(caught.value)


def test_without_a_model(database: str) -> None:
    for within in (None, "3,49,4,50"):
        with pytest.raises(NoActiveModel, match="Train one with: callipper-db train"):
            nearest_cells(database, "pub", 10, within)


def test_an_index_does_not_cut_the_answer_short(town: tuple[str, Model, Any], database: str) -> None:
    """HNSW looks at 40 candidates by default, and would give no more rows; in an area it would give fewer still."""
    _, _, boxes = town
    blocks = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)
    with user_session(database) as connection:
        model = write_model(connection, ORIGIN + (blocks + 0.5) * BLOCK * SIZE_M, hnsw=True)
        write_sample(connection, model)
    for k in (10, 41, 100):
        found = nearest_cells(database, "pub", k)
        assert len(found) == k
        wanted = {cell_id for cell_id, _ in expected(model, "pub", k)}
        assert len(wanted & {cell["cell_id"] for cell in found}) >= 0.9 * k
    for k in (101, 500, 5000):
        check(nearest_cells(database, "pub", k), expected(model, "pub", k))
    west, south, east, north = (
        boxes[:, 0].min(),
        boxes[:, 1].min(),
        boxes[:, 0].min() + 0.003,
        boxes[:, 1].min() + 0.002,
    )
    touches = (boxes[:, 0] <= east) & (boxes[:, 2] >= west) & (boxes[:, 1] <= north) & (boxes[:, 3] >= south)
    check(nearest_cells(database, "pub", 10, f"{west},{south},{east},{north}"), expected(model, "pub", 10, touches))


def test_the_percentile_is_of_the_sample(town: tuple[str, Model, Any], database: str) -> None:
    dsn, _, _ = town
    assert {cell["percentile"] for cell in nearest_cells(dsn, "pub", 5)} == {None}, "there is no sample"
    with user_session(database) as connection:
        model = write_model(connection, ORIGIN + np.arange(40)[:, None] * BLOCK * SIZE_M)
        write_sample(connection, model, 250)
    found = nearest_cells(database, "park", 1000)
    percentiles = [cell["percentile"] for cell in found]
    assert percentiles == sorted(percentiles, reverse=True)
    assert percentiles[0] >= 99 and percentiles[-1] == 0 and 40 < percentiles[500] < 60
    assert all(percentile == round(percentile, 1) for percentile in percentiles)
