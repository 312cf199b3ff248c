"""Grids against arithmetic of our own, PostGIS asked directly, and the h3 package."""

from __future__ import annotations

from typing import Any

import h3.api.basic_int as h3
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from callipper_db import db, h3_cells
from callipper_db.errors import BadExtent
from callipper_db.grid import BLOCK, MAX_CELLS, covers, ensure_grid
from filled import filled
from handmade import ORIGIN, SRID

SQRT3 = 3**0.5


def filled_blocks(metres: Any, size_m: float) -> set[tuple[int, int]]:
    """The blocks that hold a point, and those enclosed by blocks that join along their sides."""
    return {(x, y) for x, y in filled(np.floor(metres / (BLOCK * size_m)).astype(int))}


def square_cells(metres: Any, size_m: float) -> set[tuple[int, int]]:
    """The (i, j) of the cells of those blocks."""
    return {
        (x * BLOCK + i, y * BLOCK + j)
        for x, y in filled_blocks(metres, size_m)
        for i in range(BLOCK)
        for j in range(BLOCK)
    }


def cells_of(connection: db.Connection) -> list[tuple[int, int, int]]:
    rows = connection.execute("SELECT cell_id, i, j FROM callipper.cell ORDER BY cell_id").fetchall()
    return [(int(cell_id), int(i), int(j)) for cell_id, i, j in rows]


def scattered(count: int, spread_m: float, seed: int = 0) -> Any:
    return ORIGIN + np.random.default_rng(seed).uniform(-spread_m, spread_m, (count, 2))


@pytest.mark.parametrize("size_m", [100.0, 37.5, 250.0])
def test_square_cells_follow_from_floor(connection: db.Connection, size_m: float) -> None:
    metres = scattered(60, 30 * size_m)
    grid = ensure_grid(connection, metres, SRID, size_m)
    rows = cells_of(connection)
    assert {(i, j) for _, i, j in rows} == square_cells(metres, size_m)
    assert len(rows) == len(grid.cell_id) == len(set(grid.cell_id.tolist()))
    assert [cell_id for cell_id, _, _ in rows] == grid.cell_id.tolist()
    centre = (np.array([(i, j) for _, i, j in rows]) + 0.5) * size_m
    np.testing.assert_allclose(grid.centre, centre, rtol=0, atol=1e-6)


def test_every_point_lies_in_a_cell(connection: db.Connection) -> None:
    metres = scattered(200, 3000, seed=1)
    for kind in ("square", "hexagon"):
        grid = ensure_grid(connection, metres, SRID, 100, kind)
        # In a hexagonal lattice a block's rim can lie in a cell whose centre is outside: no farther than a side.
        distance = np.min(np.linalg.norm(metres[:, None] - grid.centre[None], axis=2), axis=1)
        assert distance.max() <= (100 / SQRT3 * 2 * SQRT3 if kind == "hexagon" else 100 / 2**0.5 + 1e-6)


def test_hexagons_are_those_of_postgis(connection: db.Connection) -> None:
    metres = scattered(20, 1500, seed=2)
    grid = ensure_grid(connection, metres, SRID, 80, "hexagon")
    rows = cells_of(connection)
    assert rows
    unequal = connection.execute(
        "SELECT count(*) FROM callipper.cell c WHERE NOT ST_OrderingEquals(geom,"
        " ST_Transform(ST_SetSRID(ST_Hexagon(80, c.i, c.j), %s), 4326))",
        [SRID],
    ).fetchone()
    assert unequal == (0,)
    # A lattice of flat-topped hexagons with side s: columns 1.5 s apart, odd ones half a hexagon higher.
    i, j = np.array([(i, j) for _, i, j in rows]).T
    centre = np.column_stack([1.5 * 80 * i, SQRT3 * 80 * (j + (i % 2) / 2)])
    np.testing.assert_allclose(grid.centre, centre, rtol=0, atol=1e-6)
    # And they are all whose centre lies in the area.
    blocks = filled_blocks(metres, 80)
    around = np.array([(a, b) for a in range(i.min() - 3, i.max() + 4) for b in range(j.min() - 3, j.max() + 4)])
    centres = np.column_stack([1.5 * 80 * around[:, 0], SQRT3 * 80 * (around[:, 1] + (around[:, 0] % 2) / 2)])
    # One on the very edge of a block may be counted to either side.
    near = [
        np.floor((centres + np.array([dx, dy])) / (BLOCK * 80)).astype(int).tolist()
        for dx in (-1e-6, 1e-6)
        for dy in (-1e-6, 1e-6)
    ]
    sides = [[tuple(block) in blocks for block in blocks_here] for blocks_here in zip(*near, strict=True)]
    surely = {tuple(cell) for cell in around[[all(side) for side in sides]].tolist()}
    perhaps = {tuple(cell) for cell in around[[any(side) for side in sides]].tolist()}
    assert len(surely) > 100
    assert surely <= {(a, b) for _, a, b in rows} <= perhaps


def ring_of_blocks(side: int, size_m: float) -> Any:
    """The centres of the blocks on the rim of a square of side x side blocks."""
    rim = [(x, y) for x in range(side) for y in range(side) if {x, y} & {0, side - 1}]
    return ORIGIN + (np.array(rim) + 0.5) * BLOCK * size_m


def test_holes_are_filled(connection: db.Connection) -> None:
    metres = ring_of_blocks(5, 100)
    grid = ensure_grid(connection, metres, SRID, 100)
    assert len(grid.cell_id) == (5 * BLOCK) ** 2
    assert {(i, j) for _, i, j in cells_of(connection)} == square_cells(metres, 100)


def test_an_island_in_a_hole_is_not_covered_twice(connection: db.Connection) -> None:
    metres = np.concatenate([ring_of_blocks(7, 100), ORIGIN[None] + 3.5 * BLOCK * 100])
    grid = ensure_grid(connection, metres, SRID, 100)
    assert len(grid.cell_id) == (7 * BLOCK) ** 2


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(blocks={(0, 0), (1, 0), (2, 0), (2, 1), (0, 1), (0, 2), (1, 2)})  # a ring closed by a corner
@example(blocks={(1, 0), (0, 1), (2, 1), (1, 2)})  # four blocks that touch at corners alone
@given(blocks=st.sets(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=30))
def test_any_pattern_of_blocks(connection: db.Connection, blocks: set[tuple[int, int]]) -> None:
    metres = (np.array(sorted(blocks)) + 0.5) * BLOCK * 100.0
    with connection.transaction(force_rollback=True):
        ensure_grid(connection, metres, SRID, 100)
        assert {(i, j) for _, i, j in cells_of(connection)} == square_cells(metres, 100)


def test_a_second_call_adds_nothing(connection: db.Connection) -> None:
    metres = scattered(50, 2000, seed=3)
    first = ensure_grid(connection, metres, SRID, 100)
    before = cells_of(connection)
    second = ensure_grid(connection, metres[::-1], SRID, 100)
    assert cells_of(connection) == before
    assert second.grid_id == first.grid_id
    assert (second.cell_id == first.cell_id).all()
    assert (second.centre == first.centre).all()


def test_two_extents_share_the_cells_that_both_cover(connection: db.Connection) -> None:
    west, east = ORIGIN[None], ORIGIN[None] + [[BLOCK * 100.0, 0]]
    first = ensure_grid(connection, west, SRID, 100)
    both = ensure_grid(connection, np.concatenate([west, east]), SRID, 100)
    second = ensure_grid(connection, east, SRID, 100)
    assert first.grid_id == both.grid_id == second.grid_id
    assert not set(first.cell_id.tolist()) & set(second.cell_id.tolist())
    assert set(both.cell_id.tolist()) == set(first.cell_id.tolist()) | set(second.cell_id.tolist())
    assert len(cells_of(connection)) == 2 * BLOCK**2
    other = ensure_grid(connection, west, SRID, 50)
    assert other.grid_id != first.grid_id
    assert not set(other.cell_id.tolist()) & set(both.cell_id.tolist())


def test_centres_are_in_the_order_of_the_ids(connection: db.Connection) -> None:
    grid = ensure_grid(connection, scattered(30, 4000, seed=4), SRID, 200)
    assert (np.diff(grid.cell_id) > 0).all()
    for cell_id, (easting, northing) in zip(grid.cell_id[::37].tolist(), grid.centre[::37].tolist(), strict=True):
        inside = connection.execute(
            "SELECT ST_Contains(ST_Transform(geom, %s), ST_SetSRID(ST_Point(%s, %s), %s))"
            " FROM callipper.cell WHERE cell_id = %s",
            [SRID, easting, northing, SRID, cell_id],
        ).fetchone()
        assert inside == (True,)


def test_too_many_cells_are_refused_before_anything_is_made(connection: db.Connection) -> None:
    count = MAX_CELLS // BLOCK**2 + 1
    metres = np.column_stack([np.arange(count) * BLOCK * 100.0, np.zeros(count)])
    with pytest.raises(BadExtent, match=r"20 million are the most\. Use --grid-size 110 or more"):
        ensure_grid(connection, metres, SRID, 100)
    assert connection.execute("SELECT count(*) FROM callipper.grid").fetchone() == (0,)


def test_a_huge_hole_is_refused_too(connection: db.Connection) -> None:
    metres = ring_of_blocks(900, 100)  # 3,596 blocks around 20 million cells
    with pytest.raises(BadExtent, match=r"20 million are the most\. Use --grid-size 110 or more"):
        ensure_grid(connection, metres, SRID, 100)


def test_a_users_table_named_like_ours_is_left_alone(connection: db.Connection) -> None:
    connection.execute("CREATE TABLE public.covered (i int, j int, geom geometry)")
    grid = ensure_grid(connection, ORIGIN[None], SRID, 100)
    assert len(grid.cell_id) == BLOCK**2
    assert connection.execute("SELECT count(*) FROM public.covered").fetchone() == (0,)


# H3 cells


def ring_of_h3(resolution: int, radius: int) -> tuple[Any, set[int]]:
    """Degrees in a ring of blocks around Monaco, and the cells that the ring and what it encloses have."""
    middle = h3.latlng_to_cell(43.73, 7.42, resolution - h3_cells.COARSER)
    lonlat = np.array([h3.cell_to_latlng(block)[::-1] for block in h3.grid_ring(middle, radius)])
    inside = {cell for block in h3.grid_disk(middle, radius) for cell in h3.cell_to_children(block, resolution)}
    return lonlat, inside


@pytest.mark.parametrize("kind", ["square", "hexagon"])
@pytest.mark.parametrize("side", [1, -1])
def test_no_cell_lies_beyond_the_pole(connection: db.Connection, kind: str, side: int) -> None:
    """A POI near the pole, in the equal-area CRS of the globe: beyond 7,342 km to the north there are no degrees."""
    grid = ensure_grid(connection, np.array([[0.0, side * 7_340_500.0]]), 6933, 500.0, kind)
    assert len(grid.cell_id) > 3
    assert (np.abs(grid.centre[:, 1]) < 7_342_300).all()
    rows = connection.execute("SELECT ST_AsText(geom), ST_AsText(ST_Centroid(geom)) FROM callipper.cell").fetchall()
    assert len(rows) == len(grid.cell_id) and not any("nan" in text.lower() for row in rows for text in row)


def test_h3_cells_are_those_of_the_library(connection: db.Connection) -> None:
    lonlat, inside = ring_of_h3(9, 2)
    grid = ensure_grid(connection, lonlat, 32632, h3_cells.edge_m(9), "h3")
    assert grid.h3_index is not None
    assert set(grid.h3_index.tolist()) == inside, "with the hole in the middle"
    rows = connection.execute(
        "SELECT callipper._h3_index(i, j), ST_AsText(ST_ExteriorRing(geom), 15) FROM callipper.cell ORDER BY cell_id"
    ).fetchall()
    assert [index for index, _ in rows] == grid.h3_index.tolist()
    for index, outline in rows[::20]:
        corners = [tuple(map(float, pair.split())) for pair in outline[len("LINESTRING(") : -1].split(",")]
        np.testing.assert_allclose(corners[:-1], np.array(h3.cell_to_boundary(index))[:, ::-1], atol=1e-12)
    transformer = "SELECT ST_X(p), ST_Y(p) FROM ST_Transform(ST_SetSRID(ST_Point(%s, %s), 4326), 32632) p"
    for row in range(0, len(rows), 50):
        lat, lon = h3.cell_to_latlng(int(grid.h3_index[row]))
        assert tuple(grid.centre[row]) == connection.execute(transformer, [lon, lat]).fetchone()


def test_h3_cells_are_shared_and_added(connection: db.Connection) -> None:
    lonlat, _ = ring_of_h3(8, 1)
    size_m = h3_cells.edge_m(8)
    first = ensure_grid(connection, lonlat, 32632, size_m, "h3")
    assert covers(first, lonlat, size_m)
    assert not covers(first, lonlat + 1, size_m)
    same = ensure_grid(connection, lonlat[::-1], 32632, size_m, "h3")
    assert same.grid_id == first.grid_id
    np.testing.assert_array_equal(same.cell_id, first.cell_id)
    more = ensure_grid(connection, np.vstack([lonlat, lonlat + 1]), 32632, size_m, "h3")
    assert set(first.cell_id.tolist()) < set(more.cell_id.tolist())


@pytest.mark.parametrize("resolution", range(16))
def test_the_resolution_follows_from_the_edge(resolution: int) -> None:
    assert h3_cells.resolution_of(h3_cells.edge_m(resolution)) == resolution


def test_h3_cells_on_the_180th_meridian_end_there(connection: db.Connection) -> None:
    lonlat = np.array([[179.999, -16.8], [-179.999, -16.8]])  # Taveuni
    ensure_grid(connection, lonlat, 32701, h3_cells.edge_m(7), "h3")
    row = connection.execute(
        "SELECT max(ST_XMax(geom) - ST_XMin(geom)), bool_and(ST_IsValid(geom)), count(*) FROM callipper.cell"
    ).fetchone()
    assert row is not None
    assert row[0] < 0.1 and row[1] and row[2] >= 49


def test_too_many_h3_cells_are_refused(connection: db.Connection) -> None:
    lon, lat = np.meshgrid(np.linspace(-10, 10, 700), np.linspace(40, 50, 700))
    with pytest.raises(BadExtent, match=r"20 million are the most\. Use --resolution 10 or less"):
        ensure_grid(connection, np.column_stack([lon.ravel(), lat.ravel()]), 3035, h3_cells.edge_m(11), "h3")


@given(st.floats(-180, 180), st.floats(-85, 85), st.integers(2, 15), st.sampled_from([1, 2, 4, 8, 16, 32, 256]))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_of_h3_cells_are_coarser_cells(
    connection: db.Connection, lon: float, lat: float, resolution: int, side: int
) -> None:
    cell = h3.latlng_to_cell(lat, lon, resolution)
    upper, lower = h3_cells.halves_of(np.array([cell]))
    found = connection.execute(
        "SELECT callipper._block_of('h3', %s, %s, %s)", [int(upper[0]), int(lower[0]), side]
    ).fetchone()
    coarse = max(0, resolution - round(np.log(side**2) / np.log(7)))
    assert found == (h3.cell_to_parent(cell, coarse),)
