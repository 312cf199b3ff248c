"""The location tower in SQL: the same vectors as torch's, for any geometry, or an error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.types.json import Jsonb

from callipper_db import db, schema
from callipper_db.arrays import Array
from callipper_db.binary_copy import read_rows
from callipper_trainer.embed import embed_places
from handmade import write_model
from sessions import rolled_back, user_connection, user_session
from untrained import MIDDLE, POIS, SIZES, Published, embed, places, publish_untrained, samples_at

ENCODERS = ("contextual", "coordinate")
ALL = [(size, encoder) for size in SIZES for encoder in ENCODERS]
PLACE = "SRID=4326;POINT(5.12 52.09)"


@pytest.fixture(scope="module")
def models(module_database: str) -> dict[tuple[str, str], Published]:
    """Both encoders in both sizes; the last is active."""
    return {(size, encoder): publish_untrained(module_database, places(), encoder, size) for size, encoder in ALL}


@pytest.fixture
def asking(module_database: str, models: dict[tuple[str, str], Published]) -> Iterator[db.Connection]:
    """A session of the test's own, rolled back after it, with the models in its database."""
    with rolled_back(module_database) as connection:
        yield connection


@pytest.fixture(scope="module")
def long_asking(module_database: str, models: dict[tuple[str, str], Published]) -> Iterator[db.Connection]:
    """One session for all examples of the property tests."""
    connection = user_connection(module_database, autocommit=True)
    yield connection
    connection.close()


def activate(connection: db.Connection, version: int) -> None:
    connection.execute("SELECT callipper.activate(%s)", [version])


def one(connection: db.Connection, expression: str, *values: object) -> Any:
    """The value of an SQL expression; a vector as an array."""
    row = connection.execute(sql.SQL("SELECT {}").format(sql.SQL(expression)), values).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return np.fromstring(row[0].strip("[]"), sep=",") if isinstance(row[0], str) and row[0][0] == "[" else row[0]


def around_town(count: int) -> Array:
    """(count, 2) metres: in the extent, around it, on corners of the lattices, on POIs, and far away."""
    random = np.random.default_rng(5)
    origin = np.round((places().min(axis=0) + places().max(axis=0)) / 2)
    corners = origin + random.integers(-60, 60, (count // 10, 2)) * 50.0
    far = MIDDLE + random.uniform(-1e6, 1e6, (count // 10, 2))
    near = MIDDLE + random.uniform(-9000, 9000, (count - 2 * (count // 10) - POIS, 2))
    return np.concatenate([near, corners, far, places()])


# The same numbers as torch's.


@pytest.mark.parametrize(("size", "encoder"), ALL)
def test_ten_thousand_points_are_as_torch_has_them(
    asking: db.Connection, models: dict[tuple[str, str], Published], size: str, encoder: str
) -> None:
    model = models[size, encoder]
    activate(asking, model.version)
    metres = around_town(10_000)
    found = embed(asking, metres)
    assert len(found) == 10_000
    assert np.abs(found - embed_places(model.trained, metres)).max() < 1e-6
    assert np.abs(found - found.mean(axis=0)).max() > 1e-3, "places differ"
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("size", "encoder"), ALL)
def test_a_named_version_is_as_torch_has_it_active_or_not(
    asking: db.Connection, models: dict[tuple[str, str], Published], size: str, encoder: str
) -> None:
    model, metres = models[size, encoder], around_town(1000)[::3]
    expected = embed_places(model.trained, metres)
    for active in (models["small", "coordinate"], model):
        activate(asking, active.version)
        assert np.abs(embed(asking, metres, model.version) - expected).max() < 1e-6


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(easting=st.floats(-2e7, 2e7), northing=st.floats(-2e7, 2e7), encoder=st.sampled_from(ENCODERS))
@example(easting=0.0, northing=0.0, encoder="contextual")
@example(easting=5e-324, northing=-5e-324, encoder="contextual")  # nearest to 0 that a float can be
def test_any_coordinates_of_the_models_own_system_are_as_torch_has_them(
    long_asking: db.Connection,
    models: dict[tuple[str, str], Published],
    easting: float,
    northing: float,
    encoder: str,
) -> None:
    model, metres = models["small", encoder], np.array([[easting, northing]])
    found = embed(long_asking, metres, model.version)
    np.testing.assert_allclose(found, embed_places(model.trained, metres), atol=2e-6)


@pytest.mark.parametrize("far", [1e12, -1e300])
def test_coordinates_beyond_all_lattices_have_nothing_around(
    asking: db.Connection, models: dict[tuple[str, str], Published], far: float
) -> None:
    found = embed(asking, np.array([[far, far]]), models["default", "contextual"].version)
    np.testing.assert_allclose(np.linalg.norm(found), 1, atol=1e-6)


def test_a_trained_towns_cells_and_points_are_found_again(shared_town: str) -> None:
    for view, key, place in (
        ("cells", "cell_id", "ST_Centroid(ST_Transform(geom, 32631))"),
        ("points", "point_id", "geom"),
    ):
        query = sql.SQL("SELECT loc_embed({}), emb FROM {} ORDER BY {}").format(
            sql.SQL(place), sql.Identifier(view), sql.Identifier(key)
        )
        with user_session(shared_town) as connection:
            found = read_rows(connection, query, ["vector", "vector"], dim=256)
        assert len(found[0]) > 100
        assert np.abs(found[0] - found[1]).max() < 1e-5


def test_a_cell_itself_is_asked_at_its_centre(shared_town: str) -> None:
    with user_session(shared_town) as connection:
        (found,) = read_rows(connection, sql.SQL("SELECT (emb <-> loc_embed(geom))::float8 FROM cells"), ["float8"])
    assert found.max() < 1e-3  # the centre of its degrees, a millimetre from the centre of its metres


# Geometries.

GEOMETRIES = (
    "POINT Z (645000 5773000 17)",
    "POINT M (645000 5773000 17)",
    "POINT ZM (645000 5773000 1 2)",
    "MULTIPOINT ((645000 5772990), (645000 5773010))",
    "LINESTRING (644990 5773000, 645010 5773000)",
    "MULTILINESTRING ((644990 5773000, 645010 5773000))",
    "POLYGON ((644990 5772990, 645010 5772990, 645010 5773010, 644990 5773010, 644990 5772990))",
    "MULTIPOLYGON (((644990 5772990, 645010 5772990, 645010 5773010, 644990 5773010, 644990 5772990)))",
    "GEOMETRYCOLLECTION (POINT (645000 5773000), POINT EMPTY)",
    "GEOMETRYCOLLECTION (GEOMETRYCOLLECTION (POINT (645000 5773000)))",
    "CIRCULARSTRING (644990 5773000, 645010 5773000, 644990 5773000)",
    "COMPOUNDCURVE ((644990 5773000, 645010 5773000))",
    "MULTICURVE ((644990 5773000, 645010 5773000))",
    "CURVEPOLYGON (CIRCULARSTRING (644990 5773000, 645010 5773000, 644990 5773000))",
    "MULTISURFACE (CURVEPOLYGON (CIRCULARSTRING (644990 5773000, 645010 5773000, 644990 5773000)))",
    "TRIANGLE ((644990 5772990, 645010 5772990, 645000 5773020, 644990 5772990))",
    "TIN (((644990 5772990, 645010 5772990, 645000 5773020, 644990 5772990)))",
    "POLYHEDRALSURFACE Z (((644990 5772990 0, 645010 5772990 0, 645010 5773010 0, 644990 5773010 0, 644990 5772990 0)))",
)


@pytest.mark.parametrize("text", GEOMETRIES)
def test_every_kind_of_geometry_is_asked_at_its_centroid(
    asking: db.Connection, models: dict[tuple[str, str], Published], text: str
) -> None:
    activate(asking, models["default", "contextual"].version)
    found = one(asking, "loc_embed(ST_SetSRID(%s::geometry, 32631))", text)
    [expected] = embed_places(models["default", "contextual"].trained, MIDDLE[None])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("srid", [4326, 3857, 27700, 28992, 4258, 4269, 32631])
def test_the_same_place_in_another_system_is_the_same(
    asking: db.Connection, models: dict[tuple[str, str], Published], srid: int
) -> None:
    activate(asking, models["default", "contextual"].version)
    [expected] = embed_places(models["default", "contextual"].trained, MIDDLE[None])
    place = "ST_Transform(ST_SetSRID(ST_Point(645000, 5773000), 32631), %s)"
    moved_m = one(
        asking, f"ST_Distance(ST_Transform({place}, 32631), ST_SetSRID(ST_Point(645000, 5773000), 32631))", srid
    )
    assert moved_m < 1, "the systems agree"
    found = one(asking, f"loc_embed({place})", srid)
    assert np.abs(found - expected).max() < 1e-5 + 1e-3 * moved_m


def test_null_gives_null(asking: db.Connection, models: dict[tuple[str, str], Published]) -> None:
    assert one(asking, "loc_embed(NULL)") is None
    assert one(asking, "loc_embed(NULL, 1)") is None
    assert one(asking, "loc_embed(%s::geometry, NULL)", PLACE) is None
    assert one(asking, "loc_support(NULL)") is None


def test_another_continent_still_has_a_vector(asking: db.Connection) -> None:
    for longitude, latitude in ((-74.0, 40.7), (18.4, -10.0), (77.2, 28.6), (5.0, 90.0)):
        assert len(one(asking, "loc_embed(ST_SetSRID(ST_Point(%s, %s), 4326))", longitude, latitude)) == 256


# Errors.

REFUSED = {
    "no SRID": ("ST_Point(5.12, 52.09)", "the geometry has no SRID", "ST_SetSRID"),
    "empty point": ("'SRID=4326;POINT EMPTY'::geometry", "the geometry is empty", "ST_IsEmpty"),
    "empty polygon": ("'SRID=4326;POLYGON EMPTY'::geometry", "the geometry is empty", "ST_IsEmpty"),
    "nothing but empty": (
        "'SRID=4326;GEOMETRYCOLLECTION(POINT EMPTY)'::geometry",
        "the geometry is empty",
        "ST_IsEmpty",
    ),
    "NaN": ("ST_SetSRID(ST_Point('nan', 52.09), 4326)", "not finite", "ST_AsText"),
    "NaN of the model's system": ("ST_SetSRID(ST_Point(645000, 'nan'), 32631)", "not finite", "ST_AsText"),
    "infinite": ("ST_SetSRID(ST_Point('-infinity', 52.09), 4326)", "not finite", "ST_AsText"),
    "NaN in a line": (
        "ST_SetSRID(ST_MakeLine(ST_Point(5, 52), ST_Point(5, 'nan')), 4326)",
        "not finite",
        "ST_AsText",
    ),
    "infinite in a collection": (
        "ST_SetSRID(ST_Collect(ST_Point(5, 52), ST_Point('infinity', 52)), 32631)",
        "not finite",
        "ST_AsText",
    ),
    "latitude": ("ST_SetSRID(ST_Point(52.09, 105.12), 4326)", "latitude 105.12 is not", "Longitude comes first"),
    "latitude of another datum": (
        "ST_SetSRID(ST_Point(52, -100), 4258)",
        "latitude -100 is not",
        "Longitude comes first",
    ),
    "unknown SRID": ("ST_SetSRID(ST_Point(5, 52), 123456)", "PostGIS does not know SRID 123456", "spatial_ref_sys"),
}
TOO_FAR = {
    "beyond the projection": ("ST_SetSRID(ST_Point(100, 0), 4326)", "too far for its coordinate system", "SRID"),
    "antipode": ("ST_SetSRID(ST_Point(-175, -52), 4326)", r"lies 20009 km .*32631", "order of its coordinates"),
}


@pytest.mark.parametrize("function", ["loc_embed", "loc_support"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_is_refused(asking: db.Connection, function: str, case: str) -> None:
    place, message, hint = REFUSED[case]
    check_refused(asking, f"{function}({place})", message, hint)


@pytest.mark.parametrize("case", TOO_FAR)
def test_what_the_projection_cannot_reach_is_refused(asking: db.Connection, case: str) -> None:
    place, message, hint = TOO_FAR[case]
    check_refused(asking, f"loc_embed({place})", message, hint)
    assert one(asking, f"loc_support({place})") < 1e-6


def check_refused(connection: db.Connection, expression: str, message: str, hint: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=message) as caught, connection.transaction():
        one(connection, expression)
    assert hint in str(caught.value.diag.message_hint)


@pytest.mark.parametrize("function", ["loc_embed", "loc_support", "text_embed"])
def test_without_an_active_model_it_is_the_error_of_text_embed(connection: db.Connection, function: str) -> None:
    argument = "'park'" if function == "text_embed" else f"'{PLACE}'::geometry"
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=r"^no model is active") as caught:
        one(connection, f"{function}({argument})")
    assert caught.value.diag.message_hint == "Train one with: callipper-db train"


def test_an_unknown_version_is_named(asking: db.Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedObject, match="there is no model version 77") as caught:
        one(asking, "loc_embed(%s::geometry, 77)", PLACE)
    assert "callipper.model" in str(caught.value.diag.message_hint)


def test_a_named_version_answers_when_none_is_active(
    asking: db.Connection, models: dict[tuple[str, str], Published]
) -> None:
    asking.execute("UPDATE callipper.model SET status = 'ready'")
    asking.execute("SELECT callipper._announce_change()")
    model = models["small", "contextual"]
    assert np.abs(embed(asking, MIDDLE[None], model.version) - embed_places(model.trained, MIDDLE[None])).max() < 1e-6


UNKNOWN = {
    'feature "altitude"': '{"features": [{"kind": "altitude"}]}',
    'feature ""': '{"features": [{}]}',
    'activation "gelu"': '{"layers": [{"layer": "input", "activation": "gelu"}]}',
    'residual "concatenate"': '{"layers": [{"layer": "input", "activation": "relu", "residual": "concatenate"}]}',
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("part", UNKNOWN)
def test_a_part_that_is_not_known_is_named(
    asking: db.Connection, models: dict[tuple[str, str], Published], part: str, named: bool
) -> None:
    version = models["small", "coordinate"].version
    asking.execute("UPDATE callipper.model SET arch = arch || %s::jsonb WHERE version = %s", [UNKNOWN[part], version])
    activate(asking, models["small", "contextual"].version if named else version)
    with pytest.raises(psycopg.errors.FeatureNotSupported, match=f"version {version} cannot run here: unknown {part}"):
        one(asking, "loc_embed(%s::geometry, %s)" if named else "loc_embed(%s::geometry)", PLACE, *[version] * named)


def test_another_version_answers_beside_a_broken_active_one(
    asking: db.Connection, models: dict[tuple[str, str], Published]
) -> None:
    broken, sound = models["small", "coordinate"], models["small", "contextual"]
    asking.execute("UPDATE callipper.model SET arch = '{}' WHERE version = %s", [broken.version])
    activate(asking, broken.version)
    assert np.abs(embed(asking, MIDDLE[None], sound.version) - embed_places(sound.trained, MIDDLE[None])).max() < 1e-6
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="it is empty"):
        one(asking, "loc_embed(%s::geometry)", PLACE)


def test_more_features_of_the_same_kinds_are_read_in_their_order(
    asking: db.Connection, models: dict[tuple[str, str], Published]
) -> None:
    """What model.arch says is what runs: here two grids in place of one, and a network of one layer without activation."""
    version = models["small", "coordinate"].version
    arch = {
        "features": [{"kind": "grid", "divisors_m": [100.0, 300.0]}, {"kind": "grid", "divisors_m": [50.0]}],
        "layers": [{"layer": "only", "activation": None}],
    }
    asking.execute("UPDATE callipper.model SET arch = %s WHERE version = %s", [Jsonb(arch), version])
    weight = np.random.default_rng(0).normal(size=(256, 12))
    for neuron, row in enumerate(weight):
        asking.execute(
            "INSERT INTO callipper.location_weight (version, layer, neuron, weight, bias) VALUES (%s, 'only', %s, %s, 0.5)",
            [version, neuron, str(row.tolist())],
        )
    activate(asking, version)
    east, north = MIDDLE + np.array([70.0, 30.0]) - models["small", "coordinate"].trained.origin
    angles = [
        np.array([east, east, north, north])[:, None] / np.array(divisors) for divisors in ([100.0, 300.0], [50.0])
    ]
    features = np.concatenate(
        [np.concatenate([np.sin(a[0]), np.cos(a[1]), np.sin(a[2]), np.cos(a[3])]) for a in angles]
    )
    expected = weight @ features + 0.5
    [found] = embed(asking, MIDDLE[None] + np.array([70.0, 30.0]))
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)


# How it runs.


def count_calls(connection: db.Connection, query: str, function: str) -> int:
    """How often a query calls one of our functions."""
    connection.execute("SET LOCAL track_functions = 'all'")
    calls = f"coalesce(sum(pg_stat_get_xact_function_calls(oid)), 0)::int FROM pg_proc WHERE proname = '{function}'"
    before = one(connection, calls)
    connection.execute(sql.SQL(query))  # type: ignore[arg-type]
    return int(one(connection, calls) - before)


def test_a_constant_is_folded_at_plan_time(asking: db.Connection) -> None:
    query = f"SELECT cell_id FROM cells ORDER BY emb <-> loc_embed('{PLACE}'::geometry) LIMIT 5"
    plan = "\n".join(line for (line,) in asking.execute(sql.SQL(f"EXPLAIN (VERBOSE) {query}")))  # type: ignore[arg-type]
    assert "loc" not in plan.replace("Local", "")
    assert count_calls(asking, query, "_locate") == 1


def test_a_set_reads_the_encoder_once(asking: db.Connection, models: dict[tuple[str, str], Published]) -> None:
    activate(asking, models["small", "contextual"].version)
    asking.execute("SET LOCAL max_parallel_workers_per_gather = 0")  # a worker reads it too
    query = "SELECT count(loc_embed(geom)) FROM points"
    assert count_calls(asking, query, "_embed_place") == POIS
    asking.execute("SELECT callipper.activate(%s)", [models["small", "coordinate"].version])
    assert count_calls(asking, query, "_read_location_encoder") == 1


def test_it_runs_in_parallel_workers(asking: db.Connection) -> None:
    names = asking.execute(
        "SELECT name FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query')"
    ).fetchall()
    query = "SELECT loc_embed(geom), loc_support(geom) FROM points LIMIT 20"
    expected = asking.execute(query).fetchall()
    asking.execute(sql.SQL("SET LOCAL {} = on").format(sql.Identifier(names[0][0])))
    plan = "\n".join(line for (line,) in asking.execute(f"EXPLAIN {query}"))  # type: ignore[arg-type]
    assert "Gather" in plan
    assert asking.execute(query).fetchall() == expected


def test_a_read_only_transaction_may_ask(asking: db.Connection) -> None:
    asking.execute("SET TRANSACTION READ ONLY")
    assert len(one(asking, "loc_embed(%s::geometry)", PLACE)) == 256
    assert one(asking, "loc_support(%s::geometry)", PLACE) == 1


def test_it_does_not_depend_on_the_callers_search_path(
    asking: db.Connection, models: dict[tuple[str, str], Published]
) -> None:
    expected = one(asking, "loc_embed(%s::geometry)", PLACE)
    version = models["default", "coordinate"].version
    asking.execute("SET LOCAL search_path = pg_catalog")
    query = "callipper.loc_embed(('SRID=4326;POINT(5.12 52.09)')::public.geometry"
    np.testing.assert_array_equal(one(asking, f"{query})"), expected)
    np.testing.assert_allclose(one(asking, f"{query}, {version})"), expected, atol=1e-6)
    assert one(asking, "callipper.loc_support('SRID=4326;POINT(5.12 52.09)'::public.geometry)") == 1


def test_the_extensions_may_live_elsewhere(empty_database: str) -> None:
    with user_session(empty_database) as connection:
        connection.execute('CREATE SCHEMA "Geo ext"')
        connection.execute("CREATE SCHEMA ext")
        connection.execute('CREATE EXTENSION postgis SCHEMA "Geo ext"')
        connection.execute("CREATE EXTENSION vector SCHEMA ext")
    schema.init(empty_database)
    model = publish_untrained(empty_database, places(), "contextual", "small")
    with psycopg.connect(empty_database) as connection:
        asked = "('SRID=32631;POINT(645000 5773000)')::\"Geo ext\".geometry"
        for call in (f"loc_embed({asked})", f"loc_embed({asked}, {model.version})"):
            found = one(connection, f"{call}::text")
            np.testing.assert_allclose(found, embed_places(model.trained, MIDDLE[None])[0], atol=1e-6)
        assert one(connection, f"loc_support({asked})") == 1


def test_a_reader_needs_no_right_on_the_weights(
    asking: db.Connection, models: dict[tuple[str, str], Published]
) -> None:
    activate(asking, models["small", "contextual"].version)
    expected = one(asking, "loc_embed(%s::geometry)", PLACE)
    role = sql.Identifier(f"reader_{asking.info.backend_pid}")
    asking.execute(sql.SQL("CREATE ROLE {}").format(role))
    asking.execute(sql.SQL("GRANT callipper_reader TO {}").format(role))
    asking.execute(sql.SQL("SET LOCAL ROLE {}").format(role))
    np.testing.assert_array_equal(one(asking, "loc_embed(%s::geometry)", PLACE), expected)
    other = models["small", "coordinate"].version
    assert len(one(asking, "loc_embed(%s::geometry, %s)", PLACE, other)) == 256
    assert one(asking, "loc_support(%s::geometry)", PLACE) == 1
    for table in ("location_weight", "context_cell", "_location_encoder"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), asking.transaction():
            asking.execute(sql.SQL("SELECT FROM callipper.{}").format(sql.Identifier(table)))


def test_an_activation_elsewhere_shows_in_the_next_execution(database: str) -> None:
    first, second = (publish_untrained(database, places(), encoder, "small") for encoder in ENCODERS)
    expected = {model.version: embed_places(model.trained, MIDDLE[None])[0] for model in (first, second)}
    with user_connection(database, autocommit=True) as session, user_connection(database, autocommit=True) as other:
        session.execute("PREPARE asked (float8) AS SELECT loc_embed(ST_SetSRID(ST_Point($1, 5773000), 32631))::text")
        session.execute("PREPARE told AS SELECT loc_embed('SRID=32631;POINT(645000 5773000)'::geometry)::text")
        for version in (second.version, first.version, second.version):
            activate(other, version)
            for statement in ("EXECUTE asked (645000)", "EXECUTE told"):
                for _ in range(7):  # long enough for a plan that is kept
                    row = session.execute(statement).fetchone()  # type: ignore[arg-type]
                    assert row is not None
                    found = np.array([float(number) for number in row[0].strip("[]").split(",")])
                    np.testing.assert_allclose(found, expected[version], atol=1e-6)


def test_a_rolled_back_activation_leaves_nothing_behind(
    asking: db.Connection, models: dict[tuple[str, str], Published]
) -> None:
    before = one(asking, "loc_embed(%s::geometry)", PLACE)
    with asking.transaction(force_rollback=True):
        activate(asking, models["small", "contextual"].version)
        assert np.abs(one(asking, "loc_embed(%s::geometry)", PLACE) - before).max() > 1e-3
    np.testing.assert_array_equal(one(asking, "loc_embed(%s::geometry)", PLACE), before)


def test_a_query_that_began_before_an_activation_keeps_its_model(database: str) -> None:
    model = publish_untrained(database, places(), "coordinate", "small")
    with user_connection(database) as session:
        session.execute(
            "DECLARE waiting CURSOR FOR"
            " SELECT loc_embed(ST_SetSRID(ST_Point(x, 5773000), 32631))::text FROM generate_series(645000, 645000) AS x"
        )
        publish_untrained(database, places(), "contextual", "small")
        row = session.execute("FETCH waiting").fetchone()
    assert row is not None
    found = np.array([float(number) for number in row[0].strip("[]").split(",")])
    np.testing.assert_allclose(found, embed_places(model.trained, MIDDLE[None])[0], atol=1e-6)


def test_a_snapshot_from_before_the_model_does_not_spoil_the_session(database: str) -> None:
    with user_connection(database, autocommit=True) as session:
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        session.execute("SELECT count(*) FROM callipper.model")
        model = publish_untrained(database, places(), "coordinate", "small")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="no model is active"):
            one(session, "loc_embed(%s::geometry)", PLACE)
        session.execute("ROLLBACK")
        found = embed(session, MIDDLE[None])
        assert np.abs(found - embed_places(model.trained, MIDDLE[None])).max() < 1e-6


# Support.


def support_by_numpy(lonlat: Array, asked: Array) -> Array:
    """(N, 2) training POIs in the order of their ids 1 to N, (M, 2) places -> (M,) support."""

    def reach(places: Array, neighbours: int) -> Array:
        distance = np.linalg.norm(places[:, None] - lonlat[None], axis=2)
        return np.sort(distance, axis=1)[:, min(neighbours, len(lonlat)) - 1]

    numbers = [round(float(1 + (len(lonlat) - 1) * step / 64)) - 1 for step in range(64)]
    usual = max(np.quantile(reach(lonlat[numbers], 9), 0.9), 1e-5)
    return np.minimum(1, (usual / np.maximum(reach(asked, 8), 1e-5)) ** 2)


def support(connection: db.Connection, lonlat: Array) -> Array:
    rows = connection.execute(
        "SELECT loc_support(ST_SetSRID(ST_Point(x, y), 4326)) FROM unnest(%s::float8[], %s::float8[])"
        " WITH ORDINALITY AS p(x, y, n) ORDER BY n",
        lonlat.T.tolist(),
    ).fetchall()
    return np.array([value for (value,) in rows])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_support_is_the_density_of_pois_as_a_share_of_what_is_usual(
    asking: db.Connection, models: dict[tuple[str, str], Published], encoder: str
) -> None:
    activate(asking, models["small", encoder].version)
    pois = samples_at(asking, places()).lonlat
    asked = np.concatenate([pois[::7], np.random.default_rng(0).uniform([5.0, 52.0], [5.3, 52.2], (300, 2))])
    found = support(asking, asked)
    np.testing.assert_allclose(found, support_by_numpy(pois, asked), rtol=1e-9)
    assert 0.1 < (found == 1).mean() < 0.9


def test_support_is_full_among_pois_and_gone_in_the_sea(asking: db.Connection) -> None:
    pois = samples_at(asking, places()).lonlat
    among = support(asking, pois)
    assert (among == 1).mean() > 0.8
    assert among[-1] < 0.1, "a POI that stands alone supports nothing"
    out = support(asking, np.array([[5.12, 52.09]]) - np.linspace(0, 30, 50)[:, None] * [1, 0.2])
    assert (np.diff(out) <= 0).all(), "it falls on the way out"
    assert out[0] == 1
    assert 0 < out[-1] < 1e-5


@pytest.mark.parametrize("count", [1, 5, 100])
def test_support_where_all_pois_share_a_spot_or_are_few(connection: db.Connection, count: int) -> None:
    write_model(connection, np.repeat([[500_000.0, 5_500_000.0]], count, axis=0))
    spot = samples_at(connection, np.array([[500_000.0, 5_500_000.0], [500_000.0, 5_501_000.0]])).lonlat
    found = support(connection, spot)
    assert found[0] == 1
    assert found[1] < 0.001


def test_a_model_without_points_supports_nothing(asking: db.Connection) -> None:
    asking.execute("DELETE FROM callipper.point_embedding")
    assert one(asking, "loc_support(%s::geometry)", PLACE) == 0
