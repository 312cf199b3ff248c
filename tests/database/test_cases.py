"""Files and tables like those that people bring, from ../shared/cases: each loads with the outcome of its README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from callipper_db.load import FileSummary, LoadOptions, load
from sessions import user_session

CASES = Path(__file__).parents[2].parent / "shared" / "cases"
pytestmark = [
    pytest.mark.skipif(not CASES.is_dir(), reason="there is no ../shared/cases"),
    pytest.mark.usefixtures("folder"),
]


def load_case(dsn: str, name: str, **options: Any) -> FileSummary:
    return load(dsn, [CASES / name], LoadOptions(**options)).files[0]


def one(dsn: str, query: str) -> Any:
    with user_session(dsn) as connection:
        row = connection.execute(query).fetchone()  # type: ignore[call-overload]
        return row[0] if row and len(row) == 1 else row


@pytest.mark.parametrize(
    ("name", "inserted", "left_out", "refused"),
    [
        ("allCountries.txt", 300, {}, {}),
        ("comma_latin1_some.csv", 300, {}, {}),
        ("fsq_os_places.parquet", 347, {"closed (date_closed)": 40, "no category": 13}, {}),
        ("gpd_geoarrow.parquet", 300, {}, {}),
        ("late_key.geojson.gz", 1500, {}, {"neither category nor description": 1500}),
        ("osmnx_collide.parquet", 300, {}, {}),
        ("outlier.csv", 301, {}, {}),
        ("overpass.json", 300, {}, {}),
        ("overpass_turbo_keys.geojson.gz", 3000, {}, {}),
        ("overture_places.parquet", 392, {"permanently closed": 8}, {}),
        ("overture_places_2024.parquet", 392, {"permanently closed": 8}, {}),
        ("semicats.csv", 500, {}, {}),
        ("semicolon_std_utf8.csv", 300, {}, {}),
        ("srai.parquet", 300, {}, {}),
        ("taveuni.csv", 400, {}, {}),
        ("turbo.geojson", 300, {}, {}),
        ("type_node.csv", 300, {}, {}),
    ],
)
def test_every_row_is_a_poi_with_a_category_or_counted(
    database: str, name: str, inserted: int, left_out: dict[str, int], refused: dict[str, int]
) -> None:
    file = load_case(database, name)
    assert (file.inserted, file.duplicates, file.left_out, file.reasons) == (inserted, 0, left_out, refused)
    assert file.without_category == 0
    blobs = "SELECT count(*) FROM poi WHERE category ~ '[{}\\[\\]_]' OR name ~ '[{}\\[\\]]' OR category IN ('node', 'place')"
    assert one(database, blobs) == 0


@pytest.mark.parametrize(
    ("name", "name_of_poi", "category", "group"),
    [
        ("overture_places.parquet", "Place 1", "supermarket", None),
        ("overture_places_2024.parquet", "Place 1", "supermarket", None),
        ("fsq_os_places.parquet", "Place 1", "Café", "Dining and Drinking"),
        ("type_node.csv", "P0", "Cafe", "Food and drink"),
        ("allCountries.txt", "Place 1", "hotel", "Buildings and spots"),
    ],
)
def test_name_category_and_group(database: str, name: str, name_of_poi: str, category: str, group: str | None) -> None:
    load_case(database, name)
    found = one(database, f"SELECT category, category_group FROM poi WHERE name = '{name_of_poi}'")
    assert found == (category, group)


@pytest.mark.parametrize("name", ["turbo.geojson", "osmnx_collide.parquet", "overpass.json", "srai.parquet"])
def test_elements_keep_their_ids_apart(database: str, name: str) -> None:
    file = load_case(database, name)
    assert one(database, "SELECT count(*) FROM poi WHERE source_id ~ '^(node|way|relation)/[0-9]+$'") == file.rows


def test_accents_of_latin_1(database: str) -> None:
    file = load_case(database, "comma_latin1_some.csv")
    assert one(database, "SELECT count(*) FROM poi WHERE name LIKE 'Café %'") == 75
    assert file.notes == ["read as Windows-1252; --encoding names another"]


def test_words_in_one_order(database: str) -> None:
    load_case(database, "semicats.csv")
    assert one(database, "SELECT count(*) FROM poi WHERE category = 'bar and restaurant'") == 86 + 77
    assert one(database, "SELECT count(*) FROM poi WHERE category LIKE '%;%'") == 0


def test_the_outlier_is_named(database: str) -> None:
    (note,) = load_case(database, "outlier.csv").notes
    assert note.startswith("1 row is far from all others: outlier 300 (-74, 40.7)")
