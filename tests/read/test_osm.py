"""From OpenStreetMap tags to categories: the table, its documentation, and the Monaco extract."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callipper_db.errors import BadInput
from callipper_db.load import LoadOptions, load
from callipper_db.read import open_reader, osm
from callipper_db.read.record import Record
from sessions import user_session

REPOSITORY = Path(__file__).parents[2]
TOURISM = "Tourism and accommodation"
MONACO = REPOSITORY / "demo" / "monaco.osm.pbf"


@pytest.mark.parametrize(
    ("tags", "category", "group"),
    [
        ({"amenity": "fast_food"}, "Fast food restaurant", "Food and drink"),
        ({"shop": "convenience"}, "Convenience store", "Food shops"),
        ({"shop": "yes"}, "Shop", "Shopping"),
        ({"shop": "tea_and_cake_shop"}, "Tea and cake shop", "Shopping"),
        ({"amenity": "cafe;bakery"}, "Cafe", "Food and drink"),
        ({"amenity": "cafe", "tourism": "museum"}, "Cafe", "Food and drink"),
        ({"tourism": "museum"}, "Museum", "Tourism and accommodation"),
        ({"railway": "station"}, "Railway station", "Transport"),
        ({"natural": "peak"}, "Peak", "Nature"),
        ({"amenity": "place_of_worship"}, "Place of worship", "Public services"),
        ({"amenity": "place_of_worship", "religion": "muslim"}, "Mosque", "Public services"),
        ({"leisure": "pitch", "sport": "soccer;tennis"}, "Football pitch", "Sport and leisure"),
        ({"leisure": "pitch", "sport": "quidditch"}, "Sports pitch", "Sport and leisure"),
        ({"amenity": "bench"}, "Bench", osm.STREET_FURNITURE),
        ({"amenity": "bench", "historic": "memorial"}, "Memorial", "Historic places"),
        ({"amenity": "recycling", "recycling_type": "centre"}, "Recycling centre", "Other amenities"),
        ({"tourism": "information", "information": "board"}, "Tourist information", osm.STREET_FURNITURE),
        (
            {"tourism": "information", "information": "office"},
            "Tourist information office",
            "Tourism and accommodation",
        ),
    ],
)
def test_category_of_tags(tags: dict[str, str], category: str, group: str) -> None:
    assert osm.categorise(tags) == (category, group)


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"highway": "residential"},
        {"natural": "tree"},
        {"shop": "vacant"},
        {"amenity": "no"},
        {"amenity": ""},
        {"amenity": "yes"},
        {"building": "yes", "name": "Somewhere"},
    ],
)
def test_no_place(tags: dict[str, str]) -> None:
    assert osm.categorise(tags) is None


def test_a_value_that_means_nothing_leaves_the_decision_to_the_next_key() -> None:
    assert osm.categorise({"shop": "no", "tourism": "hotel"}) == ("Hotel", "Tourism and accommodation")


@given(st.dictionaries(st.sampled_from([*osm.keys(), "religion", "sport"]), st.text(max_size=20), max_size=5))
def test_any_tags_are_categorised(tags: dict[str, str]) -> None:
    found = osm.categorise(tags)
    assert found is None or (found.group and found.category == found.category.strip())


def test_table_is_sound() -> None:
    table = osm.load_table()
    assert {key for key, _ in table.listed} <= set(table.fallback_group)
    assert set(table.refined) <= set(table.listed)
    for (key, value), (category, group) in table.listed.items():
        assert category[0].isupper() and category == category.strip() and "_" not in category, (key, value)
        assert group, (key, value)
        assert value not in table.ignored, (key, value)


def test_documentation_is_in_step() -> None:
    assert (REPOSITORY / "docs" / "osm-categories.md").read_text(encoding="utf-8") == osm.markdown()


def test_monaco_has_the_expected_places(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    summary = load(database, [MONACO])
    assert (summary.total("inserted"), summary.total("filtered"), summary.total("rejected")) == (1153, 674, 0)
    with user_session(database) as connection:
        kinds = dict(
            connection.execute("SELECT split_part(source_id, '/', 1), count(*) FROM poi GROUP BY 1").fetchall()
        )
        assert set(kinds) == {"node", "way", "relation"}
        assert connection.execute("SELECT DISTINCT source FROM poi").fetchall() == [("osm",)]
        assert connection.execute(
            "SELECT count(*) FROM poi WHERE category_group = %s", [osm.STREET_FURNITURE]
        ).fetchone() == (0,)
        casino = connection.execute(
            "SELECT category, category_group, attributes ->> 'tourism', ST_Y(geom) BETWEEN 43.738 AND 43.741 FROM poi"
            " WHERE name = 'Casino de Monte Carlo'"
        ).fetchone()
        assert casino == ("Casino", "Culture and entertainment", "attraction", True)
        outside = "SELECT count(*) FROM poi WHERE NOT geom && ST_MakeEnvelope(7.2, 43.6, 7.7, 43.9, 4326)"
        assert connection.execute(outside).fetchone() == (0,)
    again = load(database, [MONACO])
    assert (again.total("unchanged"), again.total("inserted"), again.total("updated")) == (1153, 0, 0)
    with_furniture = load(database, [MONACO], LoadOptions(street_furniture=True))
    assert (with_furniture.total("inserted"), with_furniture.total("unchanged")) == (674, 1153)


def test_representative_point_lies_within_the_area(database: str) -> None:
    """Against the areas themselves: PostGIS says whether each point lies in the polygon that libosmium made."""
    with open_reader(MONACO) as reader:
        records = [record for block in reader.blocks for record in block]  # type: ignore[union-attr]
    shapes = {
        record.values["@id"]: record.shape
        for record in records
        if isinstance(record, Record) and isinstance(record.shape, str)
    }
    assert len(shapes) > 200
    load(database, [MONACO])
    with user_session(database) as connection:
        for osm_id, shape in shapes.items():
            found = connection.execute(
                "SELECT ST_DWithin(ST_SetSRID(%s::geometry, 4326), geom, 1e-9) FROM poi WHERE source_id = %s",
                [shape, osm_id],
            ).fetchone()
            assert found == (True,), osm_id


def test_where_filters_by_tags(database: str) -> None:
    summary = load(database, [MONACO], LoadOptions(where={"amenity": "pharmacy"}))
    assert summary.total("inserted") == 12


@pytest.mark.parametrize("size", [300, 200_000, 537_000])
def test_truncated_pbf(database: str, tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.osm.pbf"
    path.write_bytes(MONACO.read_bytes()[:size])
    with pytest.raises(BadInput, match="not a sound PBF file"):
        load(database, [path])
    with user_session(database) as connection:
        assert connection.execute("SELECT count(*) FROM poi").fetchone() == (0,)


def test_corrupt_pbf(database: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.osm.pbf"
    data = bytearray(MONACO.read_bytes())
    data[100_000:100_200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(BadInput, match="not a sound PBF file"):
        load(database, [path])
