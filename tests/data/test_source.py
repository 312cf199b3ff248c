"""Tables that people have: keys of every type, geography, arrays, OpenStreetMap's tables; and rows in wrong places."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from callipper_db import db
from callipper_db.errors import BadSource
from callipper_db.load import load
from callipper_trainer.data.source import Source, open_source, read_samples
from sessions import user_session

CASES = Path(__file__).parents[3] / "shared" / "cases"


def texts_of(connection: db.Connection, source: Source) -> list[str]:
    """The text of each row, in the order of the points' ids."""
    samples = read_samples(connection, source).samples
    return [samples.texts[number] for number in samples.text_id]


@pytest.fixture
def other(database: str) -> Iterator[db.Connection]:
    """A connection outside a transaction."""
    with user_session(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def tables(other: db.Connection) -> db.Connection:
    """A table shop(a, b, category, geom) of three rows."""
    other.execute(
        "CREATE TABLE public.shop AS SELECT n AS a, 'k' || n AS b, (ARRAY['Pub', 'Bank', 'Cafe'])[n] AS category,"
        " 'Name ' || n AS name, ST_SetSRID(ST_Point(5 + n / 100.0, 52), 4326) AS geom FROM generate_series(1, 3) n"
    )
    return other


KEYS = {
    "uuid": "md5(b)::uuid",
    "text": "'node/' || a",
    "numeric": "1e20 + a",
    "bigint": "a::bigint",
    "smallint": "a::smallint",
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_primary_key_of_any_type_joins_back(tables: db.Connection, kind: str) -> None:
    tables.execute(f"ALTER TABLE public.shop ADD COLUMN the_key {kind}")
    tables.execute(f"UPDATE public.shop SET the_key = {KEYS[kind]}")  # type: ignore[call-overload]
    tables.execute("ALTER TABLE public.shop ADD PRIMARY KEY (the_key)")
    samples = read_samples(tables, Source("public.shop", template="{category}")).samples
    key = "the_key" if kind.endswith("int") else "callipper.point_id(the_key::text)"
    expected = dict(tables.execute(f"SELECT {key}, category FROM public.shop").fetchall())  # type: ignore[call-overload]
    found = {int(key): samples.texts[text] for key, text in zip(samples.point_id, samples.text_id, strict=True)}
    assert found == expected


def test_a_composite_key(tables: db.Connection) -> None:
    tables.execute("ALTER TABLE public.shop ADD PRIMARY KEY (b, a)")
    expected = {key for (key,) in tables.execute("SELECT callipper.point_id((b, a)::text) FROM public.shop")}
    assert set(read_samples(tables, Source("public.shop")).samples.point_id) == expected
    named = Source("SELECT * FROM public.shop", identifier="s.b, s.a")
    assert set(read_samples(tables, named).samples.point_id) == expected


def test_keys_are_the_same_whatever_else_is_there(tables: db.Connection) -> None:
    tables.execute("ALTER TABLE public.shop ADD PRIMARY KEY (b)")
    before = set(read_samples(tables, Source("public.shop")).samples.point_id)
    tables.execute("INSERT INTO public.shop SELECT 0, 'k0', category, name, geom FROM public.shop WHERE a = 1")
    assert before < set(read_samples(tables, Source("public.shop")).samples.point_id)


def test_geography_columns(tables: db.Connection) -> None:
    tables.execute("ALTER TABLE public.shop ALTER geom TYPE geography USING geom::geography")
    assert len(read_samples(tables, Source("public.shop")).samples) == 3
    assert len(read_samples(tables, Source("public.shop", geometry="geom")).samples) == 3


def test_columns_of_longitude_and_latitude(tables: db.Connection) -> None:
    query = "SELECT a AS id, category, ST_X(geom) AS longitude, ST_Y(geom)::numeric AS latitude FROM public.shop"
    assert len(read_samples(tables, Source(query)).samples) == 3


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ("ARRAY['restaurant', 'bar']", "bar and restaurant"),
        ("'restaurant; bar'", "bar and restaurant"),
        ("'bar;restaurant;bar;cafe'", "bar, cafe and restaurant"),
        ("'Fish &amp; chips'", "Fish &amp; chips"),
        ("ARRAY['bar', NULL]", "bar"),
        ("'bar'::varchar(10)", "bar"),
    ],
)
def test_several_categories_are_words_in_one_order(tables: db.Connection, categories: str, expected: str) -> None:
    query = f"SELECT 1 AS id, {categories} AS category, geom FROM public.shop LIMIT 1"
    assert texts_of(tables, Source(query)) == [expected]
    assert texts_of(tables, Source(query, template="{category}"))[0].replace("{", "") != ""


def test_arrays_in_templates(tables: db.Connection) -> None:
    query = "SELECT 1 AS id, ARRAY['b', 'a'] AS kinds, geom FROM public.shop LIMIT 1"
    assert texts_of(tables, Source(query, template="It is {kinds}")) == ["It is a and b"]


def test_a_file_is_no_source(tables: db.Connection, tmp_path: Path) -> None:
    for name in ("shops.csv", str(tmp_path / "shops.gpkg")):
        with pytest.raises(BadSource, match=r"that is a file\. Load it first: callipper-db load"):
            read_samples(tables, Source(name))


# OpenStreetMap's tables

OSM_ROWS = [
    (1, "cafe", None, None, ""),
    (2, None, "bakery", None, '"cuisine"=>"cake"'),
    (3, "place_of_worship", None, None, '"religion"=>"muslim"'),
    (4, "bench", None, None, ""),
    (5, None, None, "residential", ""),
    (-6, None, None, None, '"leisure"=>"park", "name"=>"Green"'),
]
OSM_TEXTS = [(-6, "Park"), (1, "Cafe"), (2, "Bakery"), (3, "Mosque")]


@pytest.mark.parametrize("schema", ["public", "ext"])
def test_osm2pgsql_with_hstore(other: db.Connection, schema: str) -> None:
    other.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}; CREATE EXTENSION hstore SCHEMA {schema}")
    other.execute(
        f"CREATE TABLE public.planet_osm_point (osm_id int8, amenity text, shop text, highway text, tags {schema}.hstore,"
        " way geometry(Point, 3857))"
    )
    with other.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO public.planet_osm_point VALUES (%s, %s, %s, %s, %s::{schema}.hstore,"  # type: ignore[arg-type]
            " ST_Transform(ST_SetSRID(ST_Point(7.42, 43.73), 4326), 3857))",
            OSM_ROWS,
        )
    source = Source("public.planet_osm_point")
    with open_source(other, source) as opened:
        assert (opened.usable, opened.without_text) == (4, 2)
        samples = opened.read()
    assert [(key, samples.texts[n]) for key, n in zip(samples.point_id, samples.text_id, strict=True)] == OSM_TEXTS
    # A refresh reads by the text that the model keeps.
    again = Source("public.planet_osm_point", text=opened.text_sql)
    assert texts_of(other, again) == [text for _, text in OSM_TEXTS]


def test_osm2pgsql_with_jsonb(other: db.Connection) -> None:
    other.execute(
        "CREATE TABLE public.pois AS SELECT n AS osm_id, t AS tags, ST_SetSRID(ST_Point(7.42, 43.73), 4326) AS geom"
        """ FROM (VALUES (1, '{"amenity": "cafe"}'::jsonb), (2, '{"shop": "bakery"}')) v(n, t)"""
    )
    assert texts_of(other, Source("public.pois")) == ["Cafe", "Bakery"]


@pytest.mark.skipif(not CASES.is_dir(), reason="there is no ../shared/cases")
def test_tables_of_the_cases(other: db.Connection) -> None:
    """Each table of pg.sql can be read, or one sentence says what to add."""
    usual = other.execute("SHOW search_path").fetchone()
    other.execute("SET search_path = public; " + (CASES / "pg.sql").read_text())  # type: ignore[call-overload]
    other.execute("SELECT set_config('search_path', %s, false)", usual)
    trained = {
        "planet_osm_point": 540,
        "t_geog": 400,
        "t_multi": 400,
        "t_uuid": 400,
        "t_text": 400,
        "t_nopk": 400,
        "t_zm": 400,
        "t_arr": 400,
        "t_enum": 400,
        "t_big": 400,
    }
    for table, rows in trained.items():
        with open_source(other, Source(f"public.{table}")) as opened:
            assert opened.usable == len(opened.read()) >= rows * 0.9, table
    refused = {
        "tCamel": "no text: say with --text or --template how to make it from poiId, poiCategory",
        "t_json": "no text: say with --text or --template how to make it from id, data, lon, lat",
        "t_srid0": "have no SRID; set it with ST_SetSRID",
        "t_nullgeom": "400 of them without a usable geometry",
        "t_empty": "has 0 rows",
    }
    for table, reason in refused.items():
        with pytest.raises(Exception, match=reason):
            read_samples(other, Source(f"public.{table}"))
    camel = Source("tCamel", template="A place of {poiCategory}")
    assert len(read_samples(other, camel).samples) == 400
    json = Source("t_json", text="s.data ->> 'category'")
    assert len(read_samples(other, json).samples) == 400


# Rows in wrong places

CITY = (
    "SELECT n AS id, 'Pub' AS category, ST_SetSRID(ST_Point(2.3 + n / 200.0, 48.8 + n / 200.0), 4326) AS geom"
    " FROM generate_series(1, 30) n"
)


def with_row(x: float, y: float) -> str:
    return f"{CITY} UNION ALL SELECT 99, 'Pub', ST_SetSRID(ST_Point({x}, {y}), 4326)"


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (-74, 40.7, "Left out: 1 row is far from all others: 99 (-74, 40.7). --keep-outliers takes them."),
        (0, 0, "Left out: 1 row is at 0, 0: 99 (0, 0). --keep-outliers takes them."),
        (48.85, 2.35, "Left out: 1 row is with longitude and latitude swapped: 99 (48.85, 2.35). --keep-out"),
    ],
)
def test_a_row_in_a_wrong_place_is_left_out_and_named(other: db.Connection, x: float, y: float, why: str) -> None:
    with open_source(other, Source(with_row(x, y))) as opened:
        assert (opened.usable, opened.srid) == (30, 32631)
        assert opened.notes[0].startswith(why)
        assert len(opened.read()) == 30
    with open_source(other, Source(with_row(x, y), keep_outliers=True)) as opened:
        assert (opened.usable, opened.outliers.rows) == (31, [])


def test_a_loaded_outlier_is_left_out_of_training(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "".join(f"{i},Pub,{2.3 + i / 200},{48.8 + i / 200}\n" for i in range(30))
    (tmp_path / "a.csv").write_text(f"id,category,lon,lat\n{lines}99,Pub,-74,40.7\n")
    assert load(database, [tmp_path / "a.csv"]).files[0].inserted == 31
    with user_session(database, autocommit=True) as connection, open_source(connection, Source()) as opened:
        assert (opened.rows, opened.usable) == (31, 30)


def test_no_outliers_among_few_rows(other: db.Connection) -> None:
    query = f"SELECT * FROM ({with_row(-74, 40.7)}) AS r WHERE id > 24 AND id <> 30"
    with open_source(other, Source(query)) as opened:
        assert not opened.outliers


def test_point_id_is_stable(other: db.Connection) -> None:
    """The first 64 bits of the MD5, as everybody can compute them."""
    for key in ("", "a", "node/17", "naïve"):
        expected = int.from_bytes(hashlib.md5(key.encode()).digest()[:8], "big", signed=True)
        assert other.execute("SELECT callipper.point_id(%s)", [key]).fetchone() == (expected,)
