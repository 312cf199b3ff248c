"""Places on the 180th meridian, and areas that one UTM zone does not hold: load, train, publish, ask, draw."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from callipper_db import db
from callipper_db.errors import BadArea, BadExtent
from callipper_db.grid import check_count, ensure_grid
from callipper_db.load import load
from callipper_db.plot import _together, plot_similarity
from callipper_db.search import nearest_cells
from callipper_trainer.config import TrainConfig
from sessions import user_session
from town import train_town

KINDS = ["cafe", "pub", "school", "bank", "park"]


def write_places(path: Path, places: list[tuple[float, float]]) -> Path:
    lines = [f"{n},{KINDS[n % 5]},{x:.6f},{y:.6f}" for n, (x, y) in enumerate(places)]
    path.write_text("\n".join(["id,category,lon,lat", *lines]))
    return path


def around(lon: float, lat: float, count: int, spread: float = 0.05) -> list[tuple[float, float]]:
    """Places around one, from -180 to 180."""
    numbers = random.Random(int(lon))
    found = [(lon + numbers.gauss(0, spread), lat + numbers.gauss(0, spread)) for _ in range(count)]
    return [((x + 180) % 360 - 180, y) for x, y in found]


@pytest.fixture(scope="module")
def island(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A trained island across the meridian."""
    folder = tmp_path_factory.mktemp("island")
    load(module_database, [write_places(folder / "taveuni.csv", around(180, -16.8, 300))])
    train_town(module_database, folder, TrainConfig(epochs=2), grid_m=500.0)
    yield module_database


def test_no_cell_goes_round_the_globe(island: str) -> None:
    with user_session(island) as connection:
        widest = "SELECT max(ST_XMax(geom) - ST_XMin(geom)), bool_and(ST_IsValid(geom)), count(*) FROM cells"
        found = connection.execute(widest).fetchone()
        assert found is not None
        assert found[0] < 0.01 and found[1] and found[2] > 500
        sides = connection.execute("SELECT DISTINCT sign(ST_X(ST_Centroid(geom))) FROM cells").fetchall()
        assert len(sides) == 2


def test_every_poi_lies_in_a_cell_or_on_the_meridian(island: str) -> None:
    query = (
        "SELECT count(*) FROM points p WHERE NOT EXISTS (SELECT FROM cells c WHERE ST_DWithin(c.geom, p.geom, 0.005))"
    )
    with user_session(island) as connection:
        assert connection.execute(query).fetchone() == (0,)


@pytest.mark.parametrize(
    "within",
    [
        "179.97,-17,-179.97,-16",
        "POLYGON((179.97 -17, 180.03 -17, 180.03 -16, 179.97 -16, 179.97 -17))",
        "POLYGON((-180.03 -17, -179.97 -17, -179.97 -16, -180.03 -16, -180.03 -17))",
    ],
)
def test_within_across_the_meridian(island: str, within: str) -> None:
    cells = nearest_cells(island, "pub", 1000, within)
    lons = [cell["lon"] for cell in cells]
    assert min(map(abs, lons)) > 179.95
    assert {lon > 0 for lon in lons} == {True, False}
    assert len(cells) < len(nearest_cells(island, "pub", 1000))


@pytest.mark.parametrize("within", ["190,-17,-179,-16", "179,-16,-179,-17", "179,-17,179,-16"])
def test_boxes_that_are_none(island: str, within: str) -> None:
    with pytest.raises(BadArea, match="longitudes lie from -180 to 180"):
        nearest_cells(island, "pub", 10, within)


def test_the_map_is_as_narrow_as_the_island(island: str, tmp_path: Path) -> None:
    plot_similarity(island, "pub", tmp_path / "pub.png")
    assert (tmp_path / "pub.png").stat().st_size > 10_000
    corners = np.array([[[179.9, 0], [180, 0], [180, 1]], [[-180, 0], [-179.9, 0], [-179.9, 1]]], float)
    together, points = _together(corners, np.array([[179.95, 0], [-179.95, 0]], float))
    assert np.ptp(together[..., 0]) == pytest.approx(0.2)
    assert np.ptp(points[:, 0]) == pytest.approx(0.1)
    world = np.array([[[-170, 0], [-90, 0]], [[-90, 0], [0, 0]], [[0, 0], [90, 0]], [[90, 0], [170, 0]]], float)
    assert (_together(world, points)[0] == world).all()


@pytest.mark.parametrize("kind", ["square", "hexagon"])
def test_polygons_on_the_meridian_end_there(connection: db.Connection, kind: str) -> None:
    """Cells of the UTM zone 60 south, a few hundred metres around the meridian."""
    row = connection.execute(
        "SELECT ST_X(p), ST_Y(p) FROM ST_Transform(ST_SetSRID(ST_Point(180, -17), 4326), 32760) AS p"
    ).fetchone()
    grid = ensure_grid(connection, np.array([row], float), 32760, 100.0, kind)
    ids = grid.cell_id.tolist()
    found = connection.execute(
        "SELECT max(ST_XMax(geom) - ST_XMin(geom)), bool_and(ST_IsValid(geom)),"
        " bool_or(ST_XMax(geom) = 180 OR ST_XMin(geom) = -180),"
        " count(DISTINCT ST_NPoints(geom)) FROM callipper.cell WHERE cell_id = ANY(%s)",
        [ids],
    ).fetchone()
    assert found is not None
    assert found[0] < 0.01
    assert found[1:] == (True, True, 1)


def test_a_country_of_four_zones(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 60 to 86 degrees east: an equal-area CRS is found."""
    monkeypatch.chdir(tmp_path)
    towns = [(61, 55), (68, 52), (76, 50), (86, 47)]
    places = [place for lon, lat in towns for place in around(lon, lat, 60)]
    load(database, [write_places(tmp_path / "country.csv", places)])
    summary = train_town(database, tmp_path, TrainConfig(epochs=1), grid_m=1000.0)
    assert summary.srid == 102025
    cells = nearest_cells(database, "pub", 5, "67,51,69,53")
    assert len(cells) == 5
    assert all(67 <= cell["lon"] <= 69 for cell in cells)
    plot_similarity(database, "pub", tmp_path / "pub.png")


def test_a_grid_that_is_too_fine_is_refused_before_the_fit(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callipper_db.grid.MAX_CELLS", 5_000)
    load(database, [write_places(tmp_path / "town.csv", around(5, 52, 300, 0.5))])
    with pytest.raises(BadExtent, match=r"Use --grid-size \d+ or more"):
        train_town(database, tmp_path, TrainConfig(epochs=1), grid_m=0.1)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_the_size_that_fits_does_fit() -> None:
    with pytest.raises(BadExtent) as caught:
        check_count(4_000_000, 100.0, "square")
    assert "a grid of 100 m over these POIs has about 100 million cells" in str(caught.value)
    assert "--grid-size 230" in str(caught.value)
