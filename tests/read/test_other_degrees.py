"""Files that count degrees in another way, and collections inside of others: read where nothing else can be meant."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callipper_db.errors import BadInput, TooManyRejects
from callipper_db.load import COUNTS, FileSummary, LoadOptions, load
from callipper_db.other_degrees import may_be_degrees
from sessions import user_session

pytestmark = pytest.mark.usefixtures("folder")

LONDON = [(-0.1276, 51.5072), (-0.1, 51.5), (0.05, 51.49), (-0.2, 51.51)]
OUT_OF_RANGE = "longitude or latitude out of range"


def load_one(dsn: str, path: Path, **options: Any) -> FileSummary:
    file = load(dsn, [path], LoadOptions(**options)).files[0]
    assert file.rows == sum(getattr(file, count) for count in COUNTS if count != "rows")
    return file


def places(dsn: str) -> list[tuple[float, float]]:
    """(longitude, latitude) of all POIs, in the order of their ids."""
    with user_session(dsn) as connection:
        query = "SELECT ST_X(geom), ST_Y(geom) FROM callipper.poi ORDER BY source_id"
        return connection.execute(query).fetchall()


def table(path: Path, coordinates: list[tuple[Any, Any]], lon: str = "lon", lat: str = "lat") -> Path:
    lines = [f"{number},Cafe,{x},{y}" for number, (x, y) in enumerate(coordinates, 1)]
    path.write_text("\n".join([f"id,category,{lon},{lat}", *lines]) + "\n")
    return path


def feature(number: int, x: float, y: float) -> dict[str, Any]:
    geometry = {"type": "Point", "coordinates": [x, y]}
    return {"type": "Feature", "id": number, "geometry": geometry, "properties": {"category": "Cafe"}}


def collection(*features: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", **members, "features": list(features)}


def turned(coordinates: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x % 360, y) for x, y in coordinates]


def in_e7(coordinates: list[tuple[float, float]]) -> list[tuple[int, int]]:
    return [(round(x * 1e7), round(y * 1e7)) for x, y in coordinates]


def wkt(path: Path, coordinates: list[tuple[float, float]]) -> Path:
    lines = [f'{number},Cafe,"POINT({x} {y})"' for number, (x, y) in enumerate(coordinates, 1)]
    path.write_text("\n".join(["id,category,wkt", *lines]))
    return path


def parquet(path: Path, coordinates: list[tuple[float, float]]) -> Path:
    lon, lat = (list(map(float, axis)) for axis in zip(*coordinates, strict=True))
    ids = [str(number) for number in range(1, len(lon) + 1)]
    pq.write_table(pa.table({"id": ids, "category": ["Cafe"] * len(lon), "lon": lon, "lat": lat}), path)
    return path


def geojson(path: Path, coordinates: list[tuple[float, float]]) -> Path:
    path.write_text(json.dumps(collection(*(feature(number, *place) for number, place in enumerate(coordinates, 1)))))
    return path


WRITERS = [(table, "a.csv"), (geojson, "a.geojson"), (parquet, "a.parquet"), (wkt, "b.csv")]


@pytest.mark.parametrize(("write", "name"), WRITERS)
@pytest.mark.parametrize(
    "where", [LONDON, [(-74.0, 40.7), (-73.9, 40.8)], [(178.4, -18.1), (-179.9, -16.8)], [(0.0, 10.0), (-180.0, 20.0)]]
)
def test_longitudes_from_0_to_360(
    database: str, folder: Path, write: Any, name: str, where: list[tuple[float, float]]
) -> None:
    file = load_one(database, write(folder / name, turned(where)))
    found = [((x + 180) % 360 - 180, y) for x, y in places(database)]
    assert found == [pytest.approx(place) for place in where]
    above = sum(x % 360 > 180 for x, _ in where)
    assert [note for note in file.notes if "0 to 360" in note] == (
        [f"The longitudes go from 0 to 360: those of {above:,} rows are above 180 and were read as west (359 is -1)"]
        if above
        else []
    )


@pytest.mark.parametrize(
    "coordinates",
    [
        [(-0.1, 51.5), (0.1, 51.5), (200.0, 51.5)],  # the others count to the west
        [(13.4 + number / 1000, 52.5) for number in range(100)] + [(250.0, 52.5)],  # a mistake among many
        [(13.4, 52.5), (361.0, 52.5)],
    ],
)
def test_a_longitude_out_of_range_is_still_refused(
    database: str, folder: Path, coordinates: list[tuple[float, float]]
) -> None:
    file = load_one(database, table(folder / "a.csv", coordinates))
    assert (file.inserted, file.reasons) == (len(coordinates) - 1, {OUT_OF_RANGE: 1})
    assert not any("360" in note for note in file.notes)
    with open("a.csv.rejects.csv", newline="") as rejects:
        (row,) = csv.DictReader(rejects)
    last = len(coordinates)
    assert (row["row"], row["content"]) == (str(last + 1), f"{last},Cafe,{coordinates[-1][0]},{coordinates[-1][1]}")


SINGAPORE, NAIROBI, GULF = [(103.85, 1.29), (103.9, 1.35)], [(36.82, -1.29), (36.8, -1.3)], [(-0.19, 5.55), (0.1, 5.6)]


@pytest.mark.parametrize("where", [LONDON, SINGAPORE, NAIROBI, [*LONDON * 20, (0.0, 0.0)]])
@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_whole_numbers_of_e7(
    database: str, folder: Path, write: Any, name: str, where: list[tuple[float, float]]
) -> None:
    file = load_one(database, write(folder / name, in_e7(where)))
    assert sorted(places(database)) == [pytest.approx(place) for place in sorted(where)]
    assert any("whole numbers of 1e-7 degrees" in note for note in file.notes)


@pytest.mark.parametrize("names", [("longitudeE7", "latitudeE7"), ("lon_e7", "lat_e7")])
def test_columns_that_say_e7(database: str, folder: Path, names: tuple[str, str]) -> None:
    """South of Ghana the numbers alone may be metres."""
    load_one(database, table(folder / "a.csv", in_e7(GULF), *names))
    assert places(database) == [pytest.approx(place) for place in GULF]


def test_e7_inside_nested_columns(database: str, folder: Path) -> None:
    rows = [
        {"id": number, "category": "Cafe", "location": {"latitudeE7": y, "longitudeE7": x}}
        for number, (x, y) in enumerate(in_e7(LONDON), 1)
    ]
    (folder / "a.json").write_text(json.dumps({"places": rows}))
    load_one(database, folder / "a.json")
    assert places(database) == [pytest.approx(place) for place in LONDON]


@pytest.mark.parametrize(
    "coordinates",
    [
        [(652000, 6862000), (653000, 6863000)],  # Lambert 93
        [(32500000, 5900000), (32500100, 5900100)],  # UTM with the zone before the easting
        [(530034, 180381), (530035, 180382)],
        [(-1276000.5, 515072000.5), (-1276001.5, 515072001.5)],
    ],
)
def test_metres_and_fractions_are_no_e7(database: str, folder: Path, coordinates: list[tuple[float, float]]) -> None:
    with pytest.raises(TooManyRejects, match=r"out of range|metres, name their CRS"):
        load_one(database, table(folder / "a.csv", coordinates))
    assert places(database) == []


def test_some_rows_of_e7_are_refused(database: str, folder: Path) -> None:
    file = load_one(database, table(folder / "a.csv", [*LONDON, *in_e7(LONDON[:2])]))
    assert (file.inserted, file.reasons) == (4, {OUT_OF_RANGE: 2})


@given(st.floats(-180, 180), st.floats(-90, 90))
def test_places_on_the_globe_may_be_turned_or_whole(x: float, y: float) -> None:
    lon = x % 360
    assert lon <= 180 or may_be_degrees(lon, y)
    e7 = float(round(x * 1e7)), float(round(y * 1e7))
    assert max(map(abs, e7)) <= 360 or may_be_degrees(*e7)
    assert not may_be_degrees(x, 91 + abs(y)) and not may_be_degrees(360.5, y) and not may_be_degrees(1e30, 1e30)


NESTED = {
    "collections in a collection": lambda a, b: collection(collection(*a), collection(*b)),
    "a collection among features": lambda a, b: collection(*a, collection(*b)),
    "an array of collections": lambda a, b: [collection(*a), collection(*b)],
    "a member": lambda a, b: {"status": "ok", "data": collection(*a, *b)},
    "members": lambda a, b: {"cafes": collection(*a), "pubs": collection(*b)},
    "a member with an array of them": lambda a, b: {"layers": [collection(*a), collection(*b)]},
    "three deep": lambda a, b: {"data": collection(collection(collection(*a), *b))},
    "its type at the end": lambda a, b: {"data": {"features": [*a, *b], "type": "FeatureCollection"}},
    "of such in an array": lambda a, b: [{"features": [*a], "type": "FeatureCollection"}, collection(*b)],
}
SOME = [feature(number, *place) for number, place in enumerate(LONDON, 1)]


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("indent", [None, 2])
def test_nested_collections(database: str, folder: Path, kind: str, indent: int | None) -> None:
    text = json.dumps(NESTED[kind](SOME[:2], SOME[2:]), indent=indent)
    (folder / "a.geojson").write_text(text)
    assert load_one(database, folder / "a.geojson").inserted == 4
    assert places(database) == LONDON


@pytest.mark.parametrize("name", ["a.json", "a.geojson", "a.geojsonl"])
def test_a_collection_a_line(database: str, folder: Path, name: str) -> None:
    """The same place twice in a line is a duplicate, as anywhere."""
    lines = [collection(*SOME[:2], SOME[0]), collection(*SOME[2:])]
    (folder / name).write_text("\n".join(map(json.dumps, lines)) + "\n")
    file = load_one(database, folder / name)
    assert (file.rows, file.inserted, file.duplicates) == (5, 4, 1)
    assert places(database) == LONDON


def test_a_nested_collection_longer_than_a_feature_may_be(database: str, folder: Path) -> None:
    many = [feature(number, number / 1000, 51.5) for number in range(1, 12_001)]
    text = json.dumps({"data": collection(collection(*many), collection(*SOME[:1]))})
    assert len(text) > 1_000_000
    (folder / "a.geojson").write_text(text)
    assert load_one(database, folder / "a.geojson").rows == 12_001


def test_a_bad_feature_of_a_nested_collection_is_shown(database: str, folder: Path) -> None:
    (folder / "a.geojson").write_text(json.dumps([collection(*SOME[:2]), collection(feature(9, 1.0, 95.0), SOME[2])]))
    file = load_one(database, folder / "a.geojson")
    assert (file.inserted, file.rejected) == (3, 1)
    with open("a.geojson.rejects.csv", newline="") as rejects:
        (row,) = csv.DictReader(rejects)
    assert (row["row"], json.loads(row["content"])["id"]) == ("3", 9)


def test_the_crs_of_nested_collections(database: str, folder: Path) -> None:
    """All must have the same."""
    crs = [{"type": "name", "properties": {"name": f"EPSG:{srid}"}} for srid in (27700, 32631)]
    caister = feature(1, 651409.903, 313177.270)
    (folder / "a.geojson").write_text(json.dumps([collection(caister, crs=crs[0]), collection(caister, crs=crs[0])]))
    load_one(database, folder / "a.geojson")
    assert places(database) == [pytest.approx((1.716038, 52.657977), abs=1e-4)]
    (folder / "b.geojson").write_text(json.dumps([collection(caister, crs=crs[0]), collection(caister, crs=crs[1])]))
    with pytest.raises(BadInput, match="different crs"):
        load_one(database, folder / "b.geojson")


def test_collections_far_too_deep(database: str, folder: Path) -> None:
    deep = '{"type": "FeatureCollection", "features": [' * 20_000
    (folder / "a.geojson").write_text(f"[{json.dumps(SOME[0])}, {deep}{']}' * 20_000}]")
    file = load_one(database, folder / "a.geojson")
    assert (file.inserted, file.rejected) == (1, 1)
