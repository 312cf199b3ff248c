"""From SQL to samples: what is read equals plain SQL, and what cannot be read is refused or counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psycopg
import pytest
from psycopg import sql

from callipper_db import db
from callipper_db.area_of_use import AREAS_OF_USE, Region, area_of_use
from callipper_db.errors import BadExtent, BadSource, CallipperError, ConnectionLost, NotEnoughData
from callipper_trainer.data.samples import Samples
from callipper_trainer.data.source import Source, open_source, read_samples
from sessions import user_session

UTM31 = 32631
PLACES = "(VALUES {}) AS v(id, lon, lat, text)"


@pytest.fixture
def reading(shared_database: str) -> Iterator[db.Connection]:
    """A connection as train() opens it, outside a transaction; what a test makes is gone with the session."""
    with user_session(shared_database, autocommit=True) as connection:
        yield connection


def values(*rows: tuple[object, float, float, str | None]) -> str:
    """A query of (id, longitude, latitude, text) as a source."""
    lines = sql.SQL(", ").join(sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, row))) for row in rows)
    return (
        f"SELECT id::int8, text::text, ST_SetSRID(ST_Point(lon::float8, lat::float8), 4326) AS geom"
        f" FROM {PLACES.format(lines.as_string())}"
    )


def shape(geometry: str, text: str = "a place") -> str:
    """A source of one row with that geometry, which is SQL."""
    return f"SELECT 1 AS id, '{text}' AS text, {geometry} AS geom"


def texts_of(samples: Samples) -> list[str]:
    return [samples.texts[text_id] for text_id in samples.text_id]


def read_texts(
    connection: db.Connection, columns: str, template: str | None = None, text: str | None = None
) -> list[str]:
    """The texts of one row with those columns."""
    source = Source(f"SELECT 1 AS id, ST_SetSRID(ST_Point(5, 52), 4326) AS geom, {columns}", text, template)
    return texts_of(read_samples(connection, source).samples)


def refusal(connection: db.Connection, source: Source, error: type[CallipperError] = BadSource) -> str:
    with pytest.raises(error) as caught:
        read_samples(connection, source)
    return str(caught.value)


# What is read


def test_samples_equal_plain_sql(reading: db.Connection) -> None:
    query = (
        "SELECT 1000 - n AS id, 'kind ' || n % 7 AS text,"
        " ST_SetSRID(ST_Point(5 + (n * 37 % 101) / 100.0, 52 + (n * 53 % 97) / 100.0), 4326) AS geom"
        " FROM generate_series(1, 300) AS n"
    )
    snapshot = read_samples(reading, Source(query))
    samples = snapshot.samples
    expected = reading.execute(
        "SELECT id, ST_X(geom), ST_Y(geom), ST_X(ST_Transform(geom, 32631)), ST_Y(ST_Transform(geom, 32631)), text"
        f" FROM ({query}) AS q ORDER BY id"
    ).fetchall()
    assert samples.srid == UTM31
    assert samples.point_id.tolist() == [row[0] for row in expected]
    assert samples.lonlat.tolist() == [[row[1], row[2]] for row in expected]
    assert samples.metres.tolist() == [[row[3], row[4]] for row in expected]
    assert texts_of(samples) == [row[5] for row in expected]
    assert samples.texts == [f"kind {number}" for number in range(7)]
    assert (snapshot.rows, snapshot.without_geometry, snapshot.without_text) == (300, 0, 0)
    assert len(samples) == 300


def test_the_order_of_rows_in_the_server_changes_nothing(reading: db.Connection) -> None:
    rows = "SELECT n AS id, 'kind ' || n % 7 AS text, ST_SetSRID(ST_Point(5, 52 + n / 1e4), 4326) AS geom"
    upwards, downwards = (
        read_samples(reading, Source(f"{rows} FROM generate_series(1, 100) AS n ORDER BY n {order}")).samples
        for order in ("ASC", "DESC")
    )
    assert upwards.content_hash() == downwards.content_hash()


def test_without_an_id_rows_are_numbered_by_their_content(reading: db.Connection) -> None:
    rows = "SELECT 'kind ' || n % 7 AS text, ST_SetSRID(ST_Point(5, 52 + n / 1e4), 4326) AS geom"
    upwards, downwards = (
        read_samples(reading, Source(f"{rows} FROM generate_series(1, 100) AS n ORDER BY n {order}")).samples
        for order in ("ASC", "DESC")
    )
    assert sorted(upwards.point_id.tolist()) == list(range(1, 101))
    assert upwards.content_hash() == downwards.content_hash()


def test_poi_table_uses_poi_id_and_the_template(database: str) -> None:
    with user_session(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO callipper.poi (source, source_id, name, category, category_group, description, geom) VALUES"
            " ('s', '1', 'Bob''s', 'cafe', 'food', NULL, 'SRID=4326;POINT(5.1 52)'),"
            " ('s', '2', NULL, 'cafe', NULL, NULL, 'SRID=4326;POINT(5.2 52)'),"
            " ('s', '3', '  ', 'park', '', NULL, 'SRID=4326;POINT(5.3 52)'),"
            " ('s', '4', 'x', 'park', 'y', 'A quiet corner', 'SRID=4326;POINT(5.4 52)'),"
            " ('s', '5', 'x', 'pub', NULL, E' \\n', 'SRID=4326;POINT(5.5 52)'),"
            " ('s', '6', 'x', NULL, 'y', NULL, 'SRID=4326;POINT(5.6 52)')"
        )
        for relation in ("callipper.poi", "poi", ' "callipper"."poi" ', "Callipper.POI"):
            snapshot = read_samples(connection, Source(relation))
            assert texts_of(snapshot.samples) == [
                "cafe",
                "cafe",
                "park",
                "A quiet corner",
                "pub",
            ]
            names = snapshot.samples.name_id
            assert [snapshot.samples.texts[name] if name >= 0 else None for name in names] == [
                "Bob's, cafe",
                None,
                None,
                "x, A quiet corner",
                "x, pub",
            ]
            assert snapshot.name == "callipper.poi"
            assert snapshot.samples.point_id.tolist() == [1, 2, 3, 4, 5]
            assert snapshot.without_text == 1


def test_tables_quoted_names_views_and_queries(database: str) -> None:
    with user_session(database, autocommit=True) as connection:
        connection.execute(
            'CREATE SCHEMA "My Data";'
            ' CREATE TABLE "My Data"."Shops.2024" ("Id" int, "fid" int, "Kind" text, "text" text,'
            " geom geometry(Point, 4326));"
            " INSERT INTO \"My Data\".\"Shops.2024\" VALUES (7, 1, 'Bakery', 'a shop', 'SRID=4326;POINT(5 52)');"
            ' CREATE VIEW public."View" AS SELECT * FROM "My Data"."Shops.2024"'
        )
        table = '"My Data"."Shops.2024"'
        for relation, name in [
            (table, table),
            ('public."View"', 'public."View"'),
            ("public.View", 'public."View"'),  # by SQL's rules this is "view"; there is none, so as it is spelt
            ("View", 'public."View"'),
            (f"SELECT * FROM {table};", f"SELECT * FROM {table}"),
            (f"-- mine\n SELECT * FROM {table} -- all of it", f"-- mine\n SELECT * FROM {table} -- all of it"),
            (f"WITH s AS (SELECT * FROM {table}) SELECT * FROM s", None),
            (f"(SELECT * FROM {table}) UNION ALL (SELECT * FROM {table} LIMIT 0)", None),
            (f"TABLE {table}", None),
        ]:
            snapshot = read_samples(connection, Source(relation))
            assert snapshot.name == (name or relation)
            assert texts_of(snapshot.samples) == ["a shop"]
            assert snapshot.samples.point_id.tolist() == [1]
        named = Source(table, text="s.\"Kind\" || '!'", identifier='"Id"', geometry="geom")
        snapshot = read_samples(connection, named)
        assert texts_of(snapshot.samples) == ["Bakery!"]
        assert snapshot.samples.point_id.tolist() == [7]


def test_a_table_of_the_users_called_sample_is_left_alone(database: str) -> None:
    with user_session(database, autocommit=True) as connection:
        for name in ("sample", "distinct_text", "wanted", "known"):
            connection.execute(f"CREATE TABLE public.{name} AS {values((1, 5, 52, 'mine'), (2, 5, 52, None))}")
        assert texts_of(read_samples(connection, Source("public.sample")).samples) == ["mine"]
        assert connection.execute("SELECT count(*) FROM public.sample").fetchone() == (2,)


# Texts


@pytest.mark.parametrize(
    ("columns", "template", "expected"),
    [
        ("'Joe' AS name, 'pub' AS kind", "[{name}, ]A place of {kind}", "Joe, A place of pub"),
        ("NULL AS name, 'pub' AS kind", "[{name}, ]A place of {kind}", "A place of pub"),
        ("' ' AS name, 'pub' AS kind", "[{name}, ]A place of {kind}", "A place of pub"),
        ("'x' AS a, NULL AS b", "{a}[ and {b}][ or {a}]", "x or x"),
        ("'x' AS a, 'y' AS b", "[{a} {b}]", "x y"),
        ("5 AS stars", "100% {stars}% 'good' \"ok\" %s %(x)s", "100% 5% 'good' \"ok\" %s %(x)s"),
        ("'x' AS a", "back\\slash {a}", "back\\slash x"),
        ("'x' AS a", "{{a}} [[{a}]] {{{a}}}", "{a} [x] {x}"),
        ("'{a}[b]' AS a", "<{a}>", "<{a}[b]>"),
        ("'x' AS \"My Col\"", "{My Col}; DROP TABLE x; --", "x; DROP TABLE x; --"),
        ('\'x\' AS a, 3 AS "q""uote"', '{a}{q"uote}', "x3"),
        ("'x' AS a", "line\n{a}", "line\nx"),
        ("' padded ' AS a", " {a} ", "padded"),
    ],
)
def test_template(reading: db.Connection, columns: str, template: str, expected: str) -> None:
    assert read_texts(reading, columns, template) == [expected]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{nme}", "the template names {nme}; the columns are id, geom, name"),
        ("{name", "the template's { at character 1 lacks its partner"),
        ("name}", "the template's } at character 5 lacks its partner"),
        ("{}", "the template's { at character 1 lacks its partner"),
        ("[{name}", "the template's [ is not closed"),
        ("{name}]", "the template's ] at character 7 lacks its partner"),
        ("[a [{name}]]", "the template's [ at character 4 lacks its partner"),
        ("[]", "the template is empty"),
    ],
)
def test_a_template_that_makes_no_sense_is_refused(reading: db.Connection, template: str, reason: str) -> None:
    with pytest.raises(BadSource) as caught:
        read_texts(reading, "'x' AS name", template)
    assert reason in str(caught.value)


def test_text_by_expression_or_by_column(reading: db.Connection) -> None:
    assert read_texts(reading, "'x' AS a, '50%' AS text", text="s.a || ' at ' || s.text") == ["x at 50%"]
    assert read_texts(reading, "'x' AS a, 'mine' AS description") == ["mine"]
    assert read_texts(reading, "'inn' AS category") == ["inn"]
    with pytest.raises(BadSource, match="no text: say with --text or --template how to make it from id, geom, a"):
        read_texts(reading, "'x' AS a")


# Places


def test_other_srids_are_transformed(reading: db.Connection) -> None:
    query = shape("ST_Transform(ST_SetSRID(ST_Point(5.1, 52.1), 4326), 28992)")
    samples = read_samples(reading, Source(query)).samples
    np.testing.assert_allclose(samples.lonlat, [[5.1, 52.1]], atol=1e-7)
    expected = reading.execute(f"SELECT ST_X(g), ST_Y(g) FROM (SELECT ST_Transform(geom, 32631) g FROM ({query}) q) t")
    np.testing.assert_allclose(samples.metres, expected.fetchall(), atol=1e-6)


def test_a_srid_of_the_users_choice_is_used(reading: db.Connection) -> None:
    query = values((1, -0.1, 51.5, "a"), (2, -0.2, 51.6, "b"))
    samples = read_samples(reading, Source(query, srid=27700)).samples
    expected = reading.execute(f"SELECT ST_X(g), ST_Y(g) FROM (SELECT ST_Transform(geom, 27700) g FROM ({query}) q) t")
    assert samples.srid == 27700
    assert samples.metres.tolist() == [list(row) for row in expected.fetchall()]
    assert samples.origin.tolist() == np.round(samples.metres.mean(axis=0)).tolist()


def test_other_shapes_stand_for_their_centroid(reading: db.Connection) -> None:
    square = "POLYGON((5 52, 5.02 52, 5.02 52.02, 5 52.02, 5 52))"
    for text in (
        square,
        "LINESTRING(5 52.01, 5.02 52.01)",
        "MULTIPOINT(5 52, 5.02 52.02)",
        f"GEOMETRYCOLLECTION({square})",
    ):
        samples = read_samples(reading, Source(shape(f"'SRID=4326;{text}'::geometry"))).samples
        np.testing.assert_allclose(samples.lonlat, [[5.01, 52.01]], atol=1e-9)
    samples = read_samples(reading, Source(shape("'SRID=4326;POINT Z (5 52 77)'::geometry"))).samples
    assert samples.lonlat.tolist() == [[5, 52]]


def test_geometry_without_srid_is_refused(reading: db.Connection) -> None:
    said = refusal(reading, Source(shape("ST_Point(5, 52)"), srid=None))
    assert "1 geometries have no SRID; set it with ST_SetSRID(geom, 4326), or whichever it is" in said


def test_geometry_of_an_unknown_srid_is_refused(reading: db.Connection) -> None:
    said = refusal(reading, Source(shape("ST_SetSRID(ST_Point(5, 52), 987654)")))
    assert "1 geometries have the SRID 987654, which PostGIS does not know" in said


def test_rows_that_cannot_be_used_are_counted(reading: db.Connection) -> None:
    good = values(*((number, 5 + number / 100, 52, f"text {number}") for number in range(4)))
    point = "ST_SetSRID(ST_Point({}), 4326)"
    bad_places = [
        "NULL",
        "'SRID=4326;POINT EMPTY'::geometry",
        "'POINT EMPTY'::geometry",
        "'SRID=4326;POLYGON EMPTY'::geometry",
        point.format("'NaN', 52"),
        point.format("5, 'Infinity'"),
        point.format("'-Infinity', 'NaN'"),
        point.format("180.5, 52"),
        point.format("5, -91"),
        "ST_SetSRID(ST_Point('NaN', 5e5), 28992)",
        "ST_SetSRID(ST_Point('Infinity', 5e5), 32631)",
        "ST_SetSRID(ST_Point(1e30, 5e5), 32631)",
    ]
    bad_texts = ["NULL", "''", "'  '", r"E' \t\n\r'"]
    union = [good]
    union += [f"SELECT {100 + n}, 'x', {place}" for n, place in enumerate(bad_places)]
    union += [f"SELECT {200 + n}, {text}, {point.format('5, 52')}" for n, text in enumerate(bad_texts)]
    snapshot = read_samples(reading, Source(" UNION ALL ".join(union)))
    assert snapshot.rows == 4 + len(bad_places) + len(bad_texts)
    assert snapshot.without_geometry == len(bad_places)
    assert snapshot.without_text == len(bad_texts)
    assert snapshot.samples.point_id.tolist() == [0, 1, 2, 3]


def test_nothing_usable_says_what_was_found(reading: db.Connection) -> None:
    query = "SELECT 1 AS id, NULL AS text, ST_SetSRID(ST_Point(5, 52), 4326) AS geom"
    with pytest.raises(NotEnoughData, match="has 1 rows, 0 of them without a usable geometry and 1 without a text"):
        read_samples(reading, Source(query))
    with pytest.raises(NotEnoughData, match=r"callipper\.poi has 0 rows.*callipper-db load FILE"):
        read_samples(reading, Source())


# Identifiers


def test_an_id_that_appears_twice_is_refused(reading: db.Connection) -> None:
    rows = [(9, 5.0, 52.0, "a"), (4, 5.1, 52.0, "a"), (4, 5.2, 52.0, "b"), *[(8, 5.0, 52.0, "c")] * 3]
    said = refusal(reading, Source(values(*rows)))
    assert "id 4 appears 2 times. Name a unique column with --id." in said
    assert values(*rows)[:40] in said


def test_ids_must_be_there(reading: db.Connection) -> None:
    query = values((1, 5.0, 52.0, "a"), (None, 5.1, 52.0, "b"), (None, 5.1, 52.0, None))
    assert "1 rows have no id. Name a unique column with --id." in refusal(reading, Source(query))
    assert "1 rows have no id" in refusal(reading, Source(query, identifier="nullif(s.text, 'a')"))
    assert 'column "nope" does not exist' in refusal(reading, Source(query, identifier="nope"))


# The projected CRS


@pytest.mark.parametrize(
    ("places", "srid"),
    [
        ([(5.1, 52.1)], 32631),
        ([(-58.4, -34.6), (-58.3, -34.7)], 32721),  # Buenos Aires
        ([(178.4, -18.1), (-179.9, -18.0), (179.9, -18.2)], 32760),  # Fiji, on both sides of the 180th meridian
        ([(-179.9, -18.0), (-179.5, -18.0), (179.95, -18.0)], 32701),
        ([(5.9, 50.0), (5.95, 50.0), (6.1, 50.0)], 32631),  # across a zone's edge: where the middle lies
        ([(5.9, 50.0), (6.05, 50.0), (6.1, 50.0)], 32632),
        ([(0.0, 0.0)], 32631),
        ([(180.0, 10.0)], 32660),
        ([(-180.0, 10.0)], 32660),
        ([(-4.0, 40.0), (4.0, 40.0)], 32631),
    ],
)
def test_utm_zone(reading: db.Connection, places: list[tuple[float, float]], srid: int) -> None:
    samples = read_samples(reading, Source(values(*((n, *place, "x") for n, place in enumerate(places))))).samples
    assert samples.srid == srid
    span = samples.metres.max(axis=0) - samples.metres.min(axis=0)
    assert (span < 1e6).all()


@pytest.mark.parametrize(
    ("places", "srid"),
    [
        ([(-0.1, 51.5), (24.9, 60.2), (23.7, 38.0)], 3035),  # Europe
        ([(-122.4, 37.8), (-74.0, 40.7), (-80.2, 25.8)], 5070),  # the United States
        ([(115.9, -31.9), (151.2, -33.9), (130.8, -12.5)], 3577),  # Australia
        ([(-46.6, -23.5), (-74.1, 4.7), (-77.0, -12.0)], 102033),  # South America
        ([(3.4, 6.5), (36.8, -1.3), (28.0, -26.2)], 102022),  # Africa
        ([(177.0, -17.0), (-150.0, -17.5), (173.0, 1.4)], 3832),  # the Pacific
        ([(-0.1, 51.5), (139.7, 35.7), (-74.0, 40.7), (151.2, -33.9), (18.4, -33.9)], 6933),  # the world
    ],
)
def test_areas_beyond_one_utm_zone_get_an_equal_area_crs(
    reading: db.Connection, places: list[tuple[float, float]], srid: int
) -> None:
    query = values(*((n, *place, "x") for n, place in enumerate(places)))
    with open_source(reading, Source(query)) as opened:
        assert opened.srid == srid
        assert len(opened.read()) == len(places)
        assert bool(opened.crs.note) == (opened.crs.off > 0.05)


@pytest.mark.parametrize(
    ("srid", "reason"),
    [
        (
            3857,
            "EPSG:3857 has metres that are wrong by 100% here. Leave --srid away for EPSG:32635, or keep it with --force-srid",
        ),
        (3395, "EPSG:3395 has metres that are wrong by 100% here."),
        (32631, "EPSG:32631 is not made for where these POIs are. Leave --srid away for EPSG:32635"),
        (27700, "EPSG:27700 is not made for where these POIs are"),
        (2154, "EPSG:2154 is not made for where these POIs are"),
        (5070, "EPSG:5070 "),
        (2180, "EPSG:2180 is not made for where these POIs are"),  # Poland
        (
            3059,  # Latvia; its metres are true in Helsinki
            "EPSG:3059 is not made for where these POIs are",
        ),
    ],
)
def test_metres_that_are_wrong_where_the_pois_are(reading: db.Connection, srid: int, reason: str) -> None:
    """In Helsinki, at 60 degrees: Web Mercator's metres are half."""
    query = values((1, 24.9, 60.0, "x"), (2, 24.95, 60.05, "y"))
    assert reason in refusal(reading, Source(query, srid=srid), BadExtent)
    if srid != 5070:
        assert read_samples(reading, Source(query, srid=srid, force_srid=True)).samples.srid == srid


@pytest.mark.parametrize(
    ("places", "srid"),
    [
        ([(21.0, 52.2), (19.9, 50.1)], 2180),  # Poland
        ([(14.4, 50.1), (18.3, 49.8)], 5514),  # the Czech Republic
        ([(178.4, -18.1), (-179.9, -16.8)], 3460),  # Fiji, on both sides of the 180th meridian
        ([(174.8, -36.8), (168.7, -45.0)], 2193),  # New Zealand
        ([(8.7, 50.1), (13.4, 52.5)], 25832),  # Germany, two zones of UTM
        ([(-0.1, 51.5), (-3.2, 55.9)], 27700),
    ],
)
def test_a_national_crs_is_taken_in_its_country(
    reading: db.Connection, places: list[tuple[float, float]], srid: int
) -> None:
    query = values(*((n, *place, "x") for n, place in enumerate(places)))
    with open_source(reading, Source(query, srid=srid)) as opened:
        assert opened.srid == srid


def test_areas_of_use_are_of_crs_that_postgis_has_in_metres(reading: db.Connection) -> None:
    lines = AREAS_OF_USE.read_text().splitlines()[1:]
    srids = [int(line.split(",")[0]) for line in lines]
    assert (area_of_use(32631), area_of_use(3460)) == (None, Region("EPSG:3460", 176.3, -21.3, 182.3, -11.9))
    assert len(set(srids)) == len(lines)
    query = "SELECT srid FROM spatial_ref_sys WHERE srid = ANY(%s) AND srtext NOT LIKE 'PROJCS%%'"
    assert reading.execute(query, [srids]).fetchall() == []


@pytest.mark.parametrize(
    ("srid", "reason"),
    [
        (999999, "PostGIS does not know EPSG:999999"),
        (99999999999, "PostGIS does not know EPSG:99999999999"),
        (0, "PostGIS does not know EPSG:0"),
        (4326, "EPSG:4326 is not projected in metres: its coordinates are angles. Name a CRS in metres"),
        (4978, "EPSG:4978 is not projected in metres: it is not the CRS of a plane"),  # geocentric
        (
            2263,
            "EPSG:2263 is not projected in metres: its unit is US survey foot. Name a CRS in metres for these POIs (--srid",
        ),
    ],
)
def test_a_bad_srid_is_refused(reading: db.Connection, srid: int, reason: str) -> None:
    with pytest.raises(BadExtent) as caught:
        read_samples(reading, Source(values((1, 5, 52, "x")), srid=srid))
    assert reason in str(caught.value)


def test_the_srid_that_a_refusal_names_is_taken(reading: db.Connection) -> None:
    new_york = values((1, -74.0, 40.7, "x"), (2, -73.9, 40.8, "y"))
    named = re.search(r"\(--srid (\d+)\)", refusal(reading, Source(new_york, srid=2263), BadExtent))
    assert named is not None
    assert read_samples(reading, Source(new_york, srid=int(named[1]))).samples.srid == 32618


def test_a_srid_that_does_not_reach_the_places_is_refused(reading: db.Connection) -> None:
    query = values((1, 5, 52, "x"), (2, 93, 0, "a quarter round the earth"))
    with pytest.raises(BadExtent, match=r"EPSG:32631 .* Leave --srid away for EPSG:\d+, or keep it with --force-srid"):
        read_samples(reading, Source(query, srid=UTM31))
    with pytest.raises(BadExtent, match="some POIs have no coordinates in EPSG:32631"):
        read_samples(reading, Source(query, srid=UTM31, force_srid=True))


# What the user's SQL may do


def test_the_source_must_be_there(reading: db.Connection) -> None:
    assert "there is no such table or view" in refusal(reading, Source("public.nowhere"))
    assert 'relation "nowhere" does not exist' in refusal(reading, Source("SELECT * FROM nowhere"))
    assert "syntax error" in refusal(reading, Source("SELECT * FRM poi"))
    assert "no column of type geometry among a" in refusal(reading, Source("SELECT 1 AS a", text="'x'"))
    assert "does not exist" in refusal(reading, Source(values((1, 5, 52, "x")), geometry="shape"))
    assert "division by zero" in refusal(reading, Source(values((1, 5, 52, "x")), text="(1 / 0)::text"))


@pytest.mark.parametrize(
    "relation",
    [
        "",
        " ",
        ".",
        "a..b",
        "a.b.c.d",
        "callipper.poi; DROP TABLE callipper.poi",
        "callipper.poi; DROP TABLE callipper.poi; --",
        'callipper.poi"; DROP TABLE callipper.poi; --',
        "poi AS s, pg_class",
        "poi WHERE true",
        "pg_sleep(1)",
        "generate_series(1, 2)",
        "(poi)",
        "%s",
        "{}",
        "DELETE FROM callipper.poi RETURNING *",
    ],
)
def test_what_is_no_name_is_no_table(reading: db.Connection, relation: str) -> None:
    assert "there is no such table or view" in refusal(reading, Source(relation))


@pytest.fixture
def precious(database: str) -> Iterator[db.Connection]:
    """A connection to a database with a table that must not be changed."""
    with user_session(database, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE public.precious AS {values((1, 5, 52, 'x'), (2, 5, 52, 'y'))}")
        connection.execute(
            "CREATE FUNCTION public.destroy() RETURNS text LANGUAGE sql AS"
            " $$ DELETE FROM public.precious RETURNING 'gone' $$"
        )
        yield connection
        assert connection.execute("SELECT count(*) FROM public.precious").fetchone() == (2,)
        assert connection.execute("SELECT to_regclass('public.made')").fetchone() == (None,)


@pytest.mark.parametrize(
    "source",
    [
        Source("WITH gone AS (DELETE FROM public.precious RETURNING *) SELECT * FROM gone"),
        Source("SELECT *, public.destroy() AS name FROM public.precious"),
        Source("public.precious", text="public.destroy()"),
        Source("public.precious", identifier="length(public.destroy())"),
        Source("SELECT * FROM public.precious) AS s; DROP TABLE public.precious; --"),
        Source("SELECT * FROM public.precious) AS s; COMMIT; DROP TABLE public.precious; --"),
        Source(
            "public.precious", text="s.text) AS text, s.geom FROM public.precious s) r; DROP TABLE public.precious; --"
        ),
        Source("SELECT * INTO public.made FROM public.precious"),
        Source("SELECT * FROM public.precious FOR UPDATE"),
    ],
)
def test_a_source_that_writes_is_refused(precious: db.Connection, source: Source) -> None:
    with pytest.raises(BadSource):
        read_samples(precious, source)
    assert precious.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


# One snapshot


def test_rows_that_are_committed_meanwhile_are_not_seen(database: str) -> None:
    """The reader waits for the table with its snapshot taken; what is committed then comes too late."""
    later = f"INSERT INTO public.shops {values((3, 5.2, 52, 'later'))}"
    with user_session(database, autocommit=True) as connection, user_session(database) as other:
        connection.execute(f"CREATE TABLE public.shops AS {values((1, 5, 52, 'x'), (2, 5.1, 52, 'y'))}")
        other.execute("LOCK TABLE public.shops IN ACCESS EXCLUSIVE MODE")
        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(read_samples, connection, Source("public.shops"))
            while not other.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
                assert not reading.done()
            other.execute(later)
            other.commit()
            snapshot = reading.result()
        assert texts_of(snapshot.samples) == ["x", "y"]
        again = read_samples(connection, Source("public.shops"))
        assert texts_of(again.samples) == ["x", "y", "later"]
        assert snapshot.taken_at < again.taken_at


def test_what_is_committed_while_rows_stream_is_not_seen(database: str) -> None:
    with user_session(database, autocommit=True) as connection, user_session(database, autocommit=True) as other:
        connection.execute(f"CREATE TABLE public.shops AS {values((1, 5, 52, 'x'), (2, 5.1, 52, 'y'))}")
        snapshot = read_samples(
            connection, Source("public.shops"), lambda rows: other.execute("DELETE FROM public.shops") and None
        )
        assert texts_of(snapshot.samples) == ["x", "y"]


def test_a_connection_that_is_lost_is_called_so(database: str) -> None:
    source = Source(values((1, 5, 52, "x")), text="pg_terminate_backend(pg_backend_pid())::text")
    with pytest.raises(ConnectionLost), user_session(database, autocommit=True) as connection:
        read_samples(connection, source)


def test_progress_counts_every_row(reading: db.Connection) -> None:
    query = "SELECT n AS id, 'x' AS text, ST_SetSRID(ST_Point(5, 52), 4326) AS geom FROM generate_series(1, 20000) n"
    counted: list[int] = []
    read_samples(reading, Source(query), counted.append)
    assert sum(counted) == 20000
    assert len(counted) == 3
