"""Files whose coordinates are wrong as a whole are noticed; honest files are not."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from callipper_db.errors import TooManyRejects
from callipper_db.land import on_land
from callipper_db.load import FileSummary, LoadOptions, load

pytestmark = pytest.mark.usefixtures("folder")
CITIES = {  # longitude, latitude
    "Paris": (2.35, 48.85),
    "London": (-0.12, 51.51),
    "Berlin": (13.4, 52.5),
    "Rome": (12.5, 41.9),
    "Madrid": (-3.7, 40.4),
    "New York": (-74.0, 40.7),
    "Tokyo": (139.7, 35.7),
    "Sydney": (151.2, -33.87),
    "Nairobi": (36.8, -1.29),
    "Suva": (178.44, -18.14),
    "Malé": (73.51, 4.175),
    "Honolulu": (-157.86, 21.31),
    "Longyearbyen": (15.63, 78.22),
    "Stanley": (-57.86, -51.7),
    "Ushuaia": (-68.3, -54.8),
}


def places(city: str, spread: float = 0.03) -> list[tuple[float, float]]:
    random = np.random.default_rng(7)
    x, y = CITIES[city]
    return [(x + a, y + b) for a, b in random.uniform(-spread, spread, (40, 2)).tolist()]


def write(path: Path, places: list[tuple[float, float]]) -> Path:
    with path.open("w", newline="") as file:
        rows = [(number, "cafe", x, y) for number, (x, y) in enumerate(places)]
        csv.writer(file).writerows([("id", "category", "lon", "lat"), *rows])
    return path


def turned(places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(y, x) for x, y in places]


def load_one(dsn: str, path: Path, srid: int | None = None) -> FileSummary:
    return load(dsn, [path], LoadOptions(srid=srid)).files[0]


@pytest.mark.parametrize("city", CITIES)
def test_an_honest_city_is_not_doubted(poi: str, folder: Path, city: str) -> None:
    assert load_one(poi, write(folder / "a.csv", places(city))).notes == []


def test_a_second_city_is_not_doubted(poi: str, folder: Path) -> None:
    for city in ("Rome", "Nairobi", "Suva"):
        assert load_one(poi, write(folder / f"{city}.csv", places(city))).notes == []


@pytest.mark.parametrize("city", ["Paris", "London", "New York", "Ushuaia"])
def test_swapped_axes_that_lead_into_the_sea(poi: str, folder: Path, city: str) -> None:
    (note,) = load_one(poi, write(folder / "a.csv", turned(places(city)))).notes
    assert note.startswith("all rows lie in the sea, and would lie on land with longitude and latitude swapped.")
    assert "--lon-column lat --lat-column lon --replace-source. Loaded all the same" in note
    options = LoadOptions(lon_column="lat", lat_column="lon", replace_source=True)
    assert load(poi, [folder / "a.csv"], options).files[0].notes == []


def test_swapped_axes_of_geometries(poi: str, folder: Path) -> None:
    features = [
        {
            "type": "Feature",
            "properties": {"category": "cafe"},
            "geometry": {"type": "Point", "coordinates": [y, x]},
        }
        for x, y in places("Paris")
    ]
    path = folder / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    (note,) = load_one(poi, path).notes
    assert "If they are, swap the numbers of its geometries" in note


def test_swapped_axes_that_lead_to_another_country(poi: str, folder: Path) -> None:
    """Rome's, swapped, lie in Djibouti: only Rome's own POIs tell."""
    load_one(poi, write(folder / "rome.csv", places("Rome", 0.1)))
    (note,) = load_one(poi, write(folder / "a.csv", turned(places("Rome")))).notes
    assert note.startswith("all rows lie far from the POIs of the database, and would lie among them with longitude")


def test_swapped_axes_out_of_range(poi: str, folder: Path) -> None:
    with pytest.raises(
        TooManyRejects, match=r"may be swapped\. If they are, load the file again with --lon-column lat"
    ):
        load_one(poi, write(folder / "a.csv", turned(places("Tokyo"))))
    half = [*turned(places("Tokyo")), *turned(places("New York"))]
    (note, *_) = load_one(poi, write(folder / "b.csv", half)).notes
    assert note.startswith("40 rows are refused because their latitude out of range")


def test_a_crs_of_another_country(poi: str, folder: Path) -> None:
    """British coordinates, declared to be French."""
    places = [(530_000.0 + 50 * number, 180_000.0 + 30 * number) for number in range(40)]
    (note,) = load_one(poi, write(folder / "a.csv", places), srid=2154).notes
    assert note.startswith("all rows lie outside of the area that EPSG:2154 is made for. Check the CRS (--srid)")
    assert load_one(poi, write(folder / "b.csv", places), srid=27700).notes == []
    places = [(-x, y) for x, y in places]
    (note,) = load_one(poi, write(folder / "c.csv", places), srid=32630).notes
    assert note.startswith("all rows lie in the sea, by their coordinates in EPSG:32630. Check the CRS")


def test_land() -> None:
    cities = [place for city, place in CITIES.items() if city != "Malé"]  # an atoll is too small
    lon, lat = np.array([*cities, (-30, 30), (0, 0), (40.7, -74), (200, 10)]).T
    assert on_land(lon, lat).tolist() == [True] * len(cities) + [False] * 4
