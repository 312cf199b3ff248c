"""Model versions in SQL and through Python: activate, drop, the views, text_embed, and the index on cells."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql

from callipper_db import binary_copy, db, models, schema
from callipper_db.errors import ModelActive, UnknownModel
from callipper_db.grid import BLOCK
from handmade import ORIGIN, SIZE_M, Model, unit_vectors, write_model
from sessions import user_session

NEAREST = "SELECT cell_id FROM callipper.cells ORDER BY emb <-> text_embed('pub') LIMIT 5"
COLUMNS = (
    "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
)


@pytest.fixture
def two_models(database: str) -> tuple[Model, Model]:
    """Two versions over the same place, the first active, in a database of the test's own."""
    with user_session(database) as connection:
        return write_model(connection), write_model(connection, seed=1, activate=False)


@pytest.fixture
def other(database: str) -> Iterator[db.Connection]:
    """Another session, each statement in a transaction of its own."""
    with user_session(database, autocommit=True) as connection:
        yield connection


def column(connection: db.Connection, query: str, *values: Any) -> list[Any]:
    return [row[0] for row in connection.execute(query.encode(), values)]


def best(model: Model, text: str = "pub") -> list[int]:
    return [int(cell_id) for cell_id in model.ranking(text)[:5]]


# The views


def test_the_views_are_empty_without_a_model(connection: db.Connection) -> None:
    for view in ("cells", "points"):
        assert column(connection, f"SELECT count(*) FROM callipper.{view}") == [0]


def test_the_views_show_the_active_model(connection: db.Connection) -> None:
    model = write_model(connection, ORIGIN + np.array([[5, 5], [15, 5], [SIZE_M * 9 + 5, 5]]))
    cell_id, cells = binary_copy.read_rows(
        connection, sql.SQL("SELECT cell_id, emb FROM callipper.cells ORDER BY 1"), ["int8", "vector"], 256
    )
    assert (cell_id == model.grid.cell_id).all() and (cells == model.cells).all()
    (points,) = binary_copy.read_rows(
        connection, sql.SQL("SELECT emb FROM callipper.points ORDER BY point_id"), ["vector"], 256
    )
    assert (points == model.points).all()
    assert column(connection, "SELECT name FROM callipper.points ORDER BY point_id") == [
        "place 1",
        "place 2",
        "place 3",
    ]
    inside = "SELECT count(*) FROM callipper.points p JOIN callipper.cells c ON ST_Intersects(p.geom, c.geom)"
    assert column(connection, inside) == [3]


def test_names_of_pois_stand_beside_points_of_pois_only(connection: db.Connection) -> None:
    write_model(connection)
    write_model(connection, seed=1, source="public.shops")
    assert column(connection, "SELECT name FROM callipper.points") == [None], "ids of another table name other places"


def test_the_columns_of_the_views_never_change(connection: db.Connection) -> None:
    expected = {view: connection.execute(COLUMNS, [f"callipper.{view}"]).fetchall() for view in ("cells", "points")}
    assert expected["cells"] == [("cell_id", "bigint"), ("geom", "geometry(Polygon,4326)"), ("emb", "vector(256)")]
    connection.execute("CREATE VIEW public.mine AS SELECT c.cell_id, p.name FROM callipper.cells c, callipper.points p")
    counts = []
    first = write_model(connection)
    counts += column(connection, "SELECT count(*) FROM mine")
    second = write_model(connection, ORIGIN + np.array([[SIZE_M * BLOCK, 0], [0, 0]]), seed=1)
    counts += column(connection, "SELECT count(*) FROM mine")
    connection.execute("SELECT callipper.drop_model(%s, true)", [second.version])
    counts += column(connection, "SELECT count(*) FROM mine")
    assert counts == [len(first.cells), 2 * len(second.cells), 0]
    for view, columns in expected.items():
        assert connection.execute(COLUMNS, [f"callipper.{view}"]).fetchall() == columns


# Activation


def test_activate_swaps_what_answers(database: str, two_models: tuple[Model, Model], other: db.Connection) -> None:
    first, second = two_models
    assert column(other, NEAREST) == best(first)
    for model in (second, first, first):
        models.activate_model(database, model.version)
        assert column(other, NEAREST) == best(model)
        assert column(other, "SELECT version FROM callipper.model WHERE status = 'active'") == [model.version]
        assert models.show_model(database, None)["version"] == model.version
    assert column(other, "SELECT count(*) FROM callipper.model WHERE activated_at IS NULL") == [0]


def test_a_prepared_statement_asks_the_new_model_at_its_next_execution(
    database: str, two_models: tuple[Model, Model], other: db.Connection
) -> None:
    first, second = two_models
    other.execute("SET plan_cache_mode = force_generic_plan")
    other.execute(f"PREPARE nearest AS {NEAREST}".encode())
    other.execute("PREPARE one_text AS SELECT text_embed('pub')::text")
    other.execute("PREPARE any_text (text) AS SELECT text_embed($1)::text")
    other.execute("PREPARE cosine AS SELECT max(1 - (emb <-> text_embed('pub')) ^ 2 / 2) FROM callipper.cells")
    for model in (first, second, first):
        models.activate_model(database, model.version)
        for _ in range(2):
            assert column(other, "EXECUTE nearest") == best(model)
            for statement in ("EXECUTE one_text", "EXECUTE any_text ('pub')"):
                (answer,) = column(other, statement)
                np.testing.assert_array_equal(np.array(answer.strip("[]").split(","), np.float32), model.texts["pub"])
            (cosine,) = column(other, "EXECUTE cosine")
            assert cosine == pytest.approx((model.cells @ model.texts["pub"]).max(), abs=1e-5)


def test_a_function_of_the_users_asks_the_new_model(
    database: str, two_models: tuple[Model, Model], other: db.Connection
) -> None:
    other.execute(
        "CREATE FUNCTION best_cell() RETURNS bigint LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN (SELECT cell_id FROM"
        " callipper.cells ORDER BY emb <-> text_embed('pub') LIMIT 1); END $$"
    )
    for model in (*two_models, two_models[0]):
        models.activate_model(database, model.version)
        assert column(other, "SELECT best_cell()") == best(model)[:1]


def test_an_init_that_waits_for_the_swap_keeps_it(
    database: str, two_models: tuple[Model, Model], other: db.Connection
) -> None:
    _, second = two_models
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = %s)"
    with user_session(database) as swapper:
        swapper.execute("SELECT callipper.activate(%s)", [second.version])
        init = threading.Thread(target=schema.init, args=(database,))
        init.start()
        while column(other, waiting, other.info.dbname) == [0]:
            assert init.is_alive()
        swapper.commit()
        init.join()
    assert column(other, NEAREST) == best(second)


def test_two_swaps_at_once_come_one_after_the_other(database: str, two_models: tuple[Model, Model]) -> None:
    versions = [model.version for model in two_models] * 4
    threads = [threading.Thread(target=models.activate_model, args=(database, version)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with user_session(database) as connection:
        (active,) = column(connection, "SELECT version FROM callipper.model WHERE status = 'active'")
        (shown,) = [model for model in two_models if model.version == active]
        assert column(connection, NEAREST) == best(shown)


def test_an_unknown_version_is_refused(database: str, two_models: tuple[Model, Model], other: db.Connection) -> None:
    for version in (0, -1, 99, 2**31 - 1, 2**40):
        for call in (models.activate_model, models.drop_model, models.show_model):
            with pytest.raises(
                UnknownModel, match=f"There is no model version {version}. See: callipper-db models list"
            ):
                call(database, version)
    with pytest.raises(psycopg.errors.UndefinedObject, match="there is no model version 99") as caught:
        other.execute("SELECT callipper.activate(99)")
    assert caught.value.diag.message_hint == "SELECT version, status FROM callipper.model lists them."
    assert column(other, NEAREST) == best(two_models[0])


def test_a_swap_that_is_rolled_back_is_none(
    database: str, two_models: tuple[Model, Model], other: db.Connection
) -> None:
    first, second = two_models
    with user_session(database) as connection:
        connection.execute("SELECT callipper.activate(%s)", [second.version])
        assert column(connection, NEAREST) == best(second)
        connection.rollback()
    assert column(other, NEAREST) == best(first)


# Listing and dropping


def test_models_are_listed_newest_first(database: str, two_models: tuple[Model, Model]) -> None:
    first, second = two_models
    listed = models.list_models(database)
    assert [(model["version"], model["status"]) for model in listed] == [
        (second.version, "ready"),
        (first.version, "active"),
    ]
    assert listed[0]["text_encoder"] == "handmade"
    assert listed[0]["metrics"] == {"validation_loss": 1.5}


def test_show_counts_what_belongs_to_a_version(database: str, two_models: tuple[Model, Model]) -> None:
    shown = models.show_model(database, two_models[1].version)
    counted = {name: shown[name] for name in ("cells", "points", "texts", "grid_kind", "grid_size_m", "srid")}
    assert counted == {
        "cells": len(two_models[1].cells),
        "points": 1,
        "texts": 3,
        "grid_kind": "square",
        "grid_size_m": SIZE_M,
        "srid": 32631,
    }


def test_show_without_an_active_model(database: str) -> None:
    with pytest.raises(UnknownModel):
        models.show_model(database, None)


def test_the_active_model_is_dropped_by_force_only(
    database: str, two_models: tuple[Model, Model], other: db.Connection
) -> None:
    first, second = two_models
    with pytest.raises(ModelActive, match=f"Model version {first.version} is the active one"):
        models.drop_model(database, first.version)
    assert column(other, NEAREST) == best(first)
    models.drop_model(database, first.version, force=True)
    assert column(other, "SELECT count(*) FROM callipper.cells") == [0]
    assert column(other, "SELECT count(*) FROM callipper.points") == [0]
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="no model is active"):
        other.execute("SELECT text_embed('pub')")
    models.activate_model(database, second.version)
    assert column(other, NEAREST) == best(second)


def test_dropping_leaves_nothing_of_the_version(
    database: str, two_models: tuple[Model, Model], other: db.Connection
) -> None:
    first, second = two_models
    with user_session(database) as connection:
        connection.execute(
            "INSERT INTO callipper.location_weight VALUES (%s, 'input', 0, '[1,2]', 0)", [second.version]
        )
        connection.execute("INSERT INTO callipper.text_projection VALUES (%s, 0, '[1,2]', 0)", [second.version])
    models.drop_model(database, second.version)
    assert column(other, "SELECT version FROM callipper.model") == [first.version]
    leftover = "SELECT relname FROM pg_class WHERE relnamespace = 'callipper'::regnamespace AND relname LIKE %s"
    assert column(other, leftover, f"%\\_v{second.version}%") == []
    for table in ("location_weight", "text_projection"):
        assert column(other, f"SELECT count(*) FROM callipper.{table}") == [0]
    assert column(other, "SELECT count(*) FROM callipper.cell") == [len(first.cells)], "the first still uses the grid"
    assert column(other, NEAREST) == best(first)


def test_a_grid_that_no_model_uses_goes(connection: db.Connection) -> None:
    first = write_model(connection)
    second = write_model(connection, seed=1, size_m=50)
    third = write_model(connection, seed=2, size_m=50, activate=False)
    assert len(column(connection, "SELECT grid_id FROM callipper.grid")) == 2
    connection.execute("SELECT callipper.drop_model(%s)", [third.version])
    assert len(column(connection, "SELECT grid_id FROM callipper.grid")) == 2
    connection.execute("SELECT callipper.drop_model(%s, true)", [second.version])
    assert column(connection, "SELECT grid_id FROM callipper.grid") == [first.grid.grid_id]
    assert column(connection, "SELECT DISTINCT grid_id FROM callipper.cell") == [first.grid.grid_id]


# text_embed


@pytest.mark.parametrize(
    "text", ["fresh fish", "  FRESH\t fish\n", "Fresh  Fish ", "\vfresh\ffish\r\n", "fresh\u2003fish"]
)
def test_a_text_is_found_however_it_is_spaced_and_cased(connection: db.Connection, text: str) -> None:
    model = write_model(connection)
    (answer,) = column(connection, "SELECT text_embed(%s)::text", text)
    np.testing.assert_array_equal(np.array(answer.strip("[]").split(","), np.float32), model.texts["fresh fish"])
    assert column(connection, "SELECT callipper._text_key(%s)", text) == ["fresh fish"]


def test_accents_are_kept_and_lowered(connection: db.Connection) -> None:
    assert column(connection, "SELECT callipper._text_key('  CAFÉ  ÎLE ')") == ["café île"]


def test_answers_have_128_dimensions_and_unit_length(connection: db.Connection) -> None:
    write_model(connection)
    query = "SELECT vector_dims(text_embed(t)), abs(vector_norm(text_embed(t)) - 1) < 1e-6 FROM unnest(ARRAY['pub', 'park']) t"
    assert connection.execute(query).fetchall() == [(256, True)] * 2


def refused(connection: db.Connection, query: str, *values: Any) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught, connection.transaction():
        connection.execute(query.encode(), values)
    return caught.value


def test_no_model_is_an_error_that_says_what_to_do(connection: db.Connection) -> None:
    error = refused(connection, "SELECT text_embed('pub')")
    assert (error.sqlstate, error.diag.message_primary) == ("55000", "no model is active")
    assert error.diag.message_hint == "Train one with: callipper-db train"


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_text_is_an_error(connection: db.Connection, text: str) -> None:
    write_model(connection)
    error = refused(connection, "SELECT text_embed(%s)", text)
    assert (error.sqlstate, error.diag.message_primary) == ("22023", "the text is empty")


def test_null_is_null(connection: db.Connection) -> None:
    assert column(connection, "SELECT text_embed(NULL)") == [None], "even without a model"


def test_an_unknown_text_is_an_error_that_says_what_to_do(connection: db.Connection) -> None:
    model = write_model(connection)
    error = refused(connection, "SELECT text_embed('It''s a  Zoo')")
    assert error.sqlstate == "P0002"
    assert error.diag.message_primary == (
        f"""model version {model.version} has not met the text "It's a  Zoo","""
        " and its text encoder handmade is not in the database"
    )
    assert error.diag.message_hint is not None
    assert "callipper-db text-encoder install handmade" in error.diag.message_hint
    assert "callipper-db remember 'It''s a  Zoo'" in error.diag.message_hint
    long = refused(connection, "SELECT text_embed(repeat('long ', 10000))")
    assert len(long.diag.message_primary or "") < 160


def test_text_is_data(connection: db.Connection) -> None:
    write_model(connection)
    for text in ("'; DROP TABLE callipper.poi; --", "%s %I $1", "\\", '"'):
        assert refused(connection, "SELECT text_embed(%s)", text).sqlstate == "P0002"


# One evaluation a query, and the index


def plan(connection: db.Connection, query: str) -> str:
    return "\n".join(column(connection, f"EXPLAIN (VERBOSE, COSTS OFF) {query}"))


def calls(connection: db.Connection) -> int:
    """How often text_embed has run in this transaction; needs track_functions."""
    found = column(connection, "SELECT calls::int FROM pg_stat_xact_user_functions WHERE funcname = 'text_embed'")
    return found[0] if found else 0


@pytest.mark.parametrize(
    "query",
    [
        NEAREST,
        "SELECT cell_id, emb <-> text_embed('pub') FROM callipper.cells",
        "SELECT count(*) FROM callipper.cells WHERE emb <-> text_embed('pub') < 1",
        "SELECT avg(emb <-> text_embed('pub')) FROM callipper.points",
    ],
)
def test_a_constant_text_is_embedded_once_when_the_query_is_planned(connection: db.Connection, query: str) -> None:
    write_model(connection)
    connection.execute("SET LOCAL track_functions = 'all'")
    shown = plan(connection, query)
    assert "text_embed" not in shown
    assert "'[" in shown, "the vector stands in the plan"
    before = calls(connection)
    connection.execute(query.encode())
    # The ORDER BY and the SELECT list are two places; none is asked a second time for another row.
    assert calls(connection) - before == 1


def test_a_parameter_is_embedded_once_too(connection: db.Connection) -> None:
    """psycopg's parameters are known when an unprepared query is planned."""
    write_model(connection)
    connection.execute("SET LOCAL track_functions = 'all'")
    connection.execute("SELECT cell_id FROM callipper.cells ORDER BY emb <-> text_embed(%s) LIMIT 5", ["pub"])
    assert calls(connection) == 1


def test_workers_of_a_parallel_query_may_embed(connection: db.Connection) -> None:
    model = write_model(connection)
    for setting in ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size"):
        connection.execute(f"SET LOCAL {setting} = 0".encode())
    query = f"SELECT max(emb <-> text_embed(text)) FROM callipper.text_embedding_v{model.version}"
    assert "Workers Planned" in plan(connection, query)
    assert column(connection, query) == [0]


@pytest.fixture(scope="module")
def indexed(cluster_dsn: str, template_database: str) -> Iterator[tuple[str, Model]]:
    """A database with 3,600 cells and an HNSW index on them."""
    from conftest import _database

    side = 12
    blocks = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    metres = ORIGIN + (blocks + 0.5) * BLOCK * SIZE_M
    with _database(cluster_dsn, template_database) as dsn:
        with user_session(dsn) as connection:
            texts = tuple(f"text {number}" for number in range(20))
            model = write_model(connection, metres, hnsw=True, texts=("pub", *texts))
        yield dsn, model


def test_the_index_is_used_and_finds_the_nearest(indexed: tuple[str, Model]) -> None:
    dsn, model = indexed
    with user_session(dsn) as connection:
        query = "SELECT cell_id FROM cells ORDER BY emb <-> text_embed('pub') LIMIT 10"
        shown = plan(connection, query)
        assert f"Index Scan using cell_embedding_v{model.version}_emb_idx" in shown
        assert "Join" not in shown and "Sort" not in shown
        found = 0
        for text in model.texts:
            nearest = column(connection, query.replace("pub", text))
            assert len(nearest) == 10
            found += len(set(nearest) & set(model.ranking(text)[:10].tolist()))
        # Random vectors are the hardest there are: in 256 dimensions all are about as far from one another.
        assert found / (10 * len(model.texts)) >= 0.65, "with the default of 40 candidates"
        connection.execute("SET LOCAL hnsw.ef_search = 1000")
        exact = sum(
            column(connection, query.replace("pub", text)) == model.ranking(text)[:10].tolist() for text in model.texts
        )
        assert exact >= len(model.texts) - 1


def test_the_index_serves_geometry_too(indexed: tuple[str, Model]) -> None:
    dsn, _ = indexed
    with user_session(dsn) as connection:
        shown = plan(connection, "SELECT cell_id, geom FROM cells ORDER BY emb <-> text_embed('pub') LIMIT 10")
        assert "emb_idx" in shown
        rows = "SELECT count(geom) FROM (SELECT geom FROM cells ORDER BY emb <-> text_embed('pub') LIMIT 10) AS nearest"
        assert column(connection, rows) == [10]


def test_the_index_goes_with_its_version(database: str) -> None:
    with user_session(database) as connection:
        model = write_model(connection, hnsw=True)
        write_model(connection, seed=1)
    models.drop_model(database, model.version)
    with user_session(database) as connection:
        assert column(
            connection, "SELECT count(*) FROM pg_class JOIN pg_am a ON a.oid = relam WHERE amname = 'hnsw'"
        ) == [0]


def test_vectors_of_other_dimensions_are_refused(connection: db.Connection) -> None:
    write_model(connection)
    vector = str(unit_vectors(1, 0, 5)[0].tolist())
    assert "different vector dimensions" in str(refused(connection, "SELECT emb <-> %s::vector FROM cells", vector))
