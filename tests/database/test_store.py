"""Binary COPY against what INSERT and SELECT say, and the partitions of a model version."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from callipper_db import binary_copy, db, hnsw, partitions
from handmade import unit_vectors, write_model
from sessions import user_session

TARGET = sql.Identifier("target")
KINDS = {
    "int2": ("smallint", st.integers(-(2**15), 2**15 - 1), np.int16),
    "int4": ("integer", st.integers(-(2**31), 2**31 - 1), np.int32),
    "int8": ("bigint", st.integers(-(2**63), 2**63 - 1), np.int64),
    "float4": ("real", st.floats(width=32), np.float32),
    "float8": ("double precision", st.floats(), np.float64),
}
TEXTS = ["", "a", "b", "pub", "café", "日本語", "🏰", "a\tb\n\\.", "'; DROP TABLE x", "é" * 300, "", "pub"]
# The rolled-back transaction of the fixture serves all examples: each makes its own table.
IN_ONE_TRANSACTION = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def make_target(connection: db.Connection, columns: str) -> None:
    connection.execute("DROP TABLE IF EXISTS pg_temp.target")
    connection.execute(f"CREATE TEMPORARY TABLE target ({columns})".encode())


def rows_of(connection: db.Connection, query: str) -> list[tuple[Any, ...]]:
    return connection.execute(query.encode()).fetchall()


@pytest.mark.parametrize("kind", KINDS)
@IN_ONE_TRANSACTION
@given(data=st.data())
def test_numbers_go_in_and_out_unchanged(connection: db.Connection, kind: str, data: st.DataObject) -> None:
    sql_type, strategy, numpy_type = KINDS[kind]
    values = data.draw(st.lists(strategy, max_size=20))
    make_target(connection, f"number int4, value {sql_type}")
    numbers = np.arange(len(values))
    array = np.array(values, numpy_type)
    written = binary_copy.write_rows(connection, TARGET, {"number": ("int4", numbers), "value": (kind, array)})
    assert written == len(values)
    # repr tells 0.0 from -0.0, and finds one nan like another.
    expected = [repr(value) for value in array.tolist()]
    found = rows_of(connection, "SELECT value FROM target ORDER BY number")
    if kind == "float4":  # the driver gives the shortest decimal digits; as a float32 they are the number
        assert [repr(float(np.float32(value))) for (value,) in found] == expected
    else:
        assert [repr(value) for (value,) in found] == expected
    (back,) = binary_copy.read_rows(connection, sql.SQL("SELECT value FROM target ORDER BY number"), [kind])
    assert back.dtype == numpy_type
    assert [repr(value) for value in back.tolist()] == expected


def test_half_vectors_are_rounded_as_numpy_rounds_them(connection: db.Connection) -> None:
    make_target(connection, "number int4, value halfvec")
    values = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    binary_copy.write_rows(connection, TARGET, {"number": ("int4", np.arange(50)), "value": ("halfvec", values)})
    found = rows_of(connection, "SELECT value::vector::real[] FROM target ORDER BY number")
    back = np.array([row[0] for row in found], np.float32)
    assert back.tolist() == values.astype(np.float16).astype(np.float32).tolist()


@IN_ONE_TRANSACTION
@given(
    values=st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12), max_size=20
    )
)
def test_texts_arrive_whole(connection: db.Connection, values: list[str]) -> None:
    make_target(connection, "number int4, value text")
    columns: dict[str, Any] = {
        "number": ("int4", np.arange(len(values))),
        "value": ("text", [value.encode() for value in values]),
    }
    assert binary_copy.write_rows(connection, TARGET, columns) == len(values)
    assert [value for (value,) in rows_of(connection, "SELECT value FROM target ORDER BY number")] == values


def test_every_kind_beside_the_others_equals_insert(connection: db.Connection) -> None:
    count = len(TEXTS)
    lonlat = np.random.default_rng(1).uniform([-180, -90], [180, 90], (count, 2))
    vectors = unit_vectors(count, 2, 5)
    definition = "a int2, b int4, c int8, d float4, e float8, f text, g text, h vector(5), i geometry(Point, 4326)"
    make_target(connection, definition)
    numbers = np.arange(count)
    reverse = TEXTS[::-1]
    columns: dict[str, Any] = {
        "a": ("int2", numbers),
        "b": ("int4", -numbers),
        "c": ("int8", numbers * 2**40),
        "d": ("float4", numbers / 7),
        "e": ("float8", numbers / 7),
        "f": ("text", [text.encode() for text in TEXTS]),
        "g": ("text", np.array([text.encode() for text in reverse], dtype=object)),
        "h": ("vector", vectors),
        "i": ("point", lonlat),
    }
    reported: list[int] = []
    assert binary_copy.write_rows(connection, TARGET, columns, reported.append) == count == sum(reported)
    connection.execute(f"CREATE TEMPORARY TABLE inserted ({definition})".encode())
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO inserted VALUES (%s, %s, %s, %s, %s, %s, %s, %s::text::vector,"
            " ST_SetSRID(ST_Point(%s, %s), 4326))",
            [
                (n, -n, n * 2**40, n / 7, n / 7, TEXTS[n], reverse[n], str(vectors[n].tolist()), *lonlat[n].tolist())
                for n in range(count)
            ],
        )
    for one, other in (("target", "inserted"), ("inserted", "target")):
        assert rows_of(connection, f"SELECT * FROM {one} EXCEPT ALL SELECT * FROM {other}") == []


def test_points_equal_st_point_to_the_last_bit(connection: db.Connection) -> None:
    lonlat = np.array([[0.1, 0.2], [-0.0, 0.0], [180, -90], [1e-300, 51.123456789012345]])
    make_target(connection, "number int4, geom geometry(Point, 4326)")
    binary_copy.write_rows(connection, TARGET, {"number": ("int4", np.arange(4)), "geom": ("point", lonlat)})
    found = rows_of(connection, "SELECT ST_AsEWKB(geom) FROM target ORDER BY number")
    for (ewkb,), (lon, lat) in zip(found, lonlat.tolist(), strict=True):
        statement = "SELECT ST_AsEWKB(ST_SetSRID(ST_Point(%s::float8, %s::float8), 4326))"
        assert connection.execute(statement, [lon, lat]).fetchone() == (ewkb,)


def test_vectors_come_back(connection: db.Connection) -> None:
    vectors = unit_vectors(1000, 3)
    make_target(connection, "number int4, emb vector(256)")
    binary_copy.write_rows(connection, TARGET, {"number": ("int4", np.arange(1000)), "emb": ("vector", vectors)})
    number, back = binary_copy.read_rows(connection, sql.SQL("SELECT number, emb FROM target"), ["int4", "vector"], 256)
    assert (back[np.argsort(number)] == vectors).all()
    assert back.dtype == np.float32


def test_many_rows_take_several_messages(connection: db.Connection) -> None:
    count = binary_copy.ROWS_PER_MESSAGE * 2 + 5
    make_target(connection, "value int8")
    written: list[int] = []
    read: list[int] = []
    assert binary_copy.write_rows(connection, TARGET, {"value": ("int8", np.arange(count))}, written.append) == count
    (back,) = binary_copy.read_rows(connection, sql.SQL("SELECT value FROM target"), ["int8"], advance=read.append)
    assert (np.sort(back) == np.arange(count)).all()
    assert sum(written) == count == sum(read)
    assert len(written) == 3


def test_messages_stay_small_when_rows_are_large() -> None:
    texts = [b"x" * 1_000_000] * 20
    sizes = [len(message) for _, message in binary_copy.binary_rows([("text", texts), ("int4", np.arange(20))])]
    assert sum(sizes) > 20_000_000
    assert max(sizes) < 5_000_000


@pytest.mark.parametrize(
    ("kind", "values"), [("int4", []), ("text", []), ("vector", np.empty((0, 3))), ("point", np.empty((0, 2)))]
)
def test_no_rows_are_no_rows(connection: db.Connection, kind: str, values: Any) -> None:
    sql_type = {"point": "geometry(Point, 4326)", "vector": "vector(3)"}.get(kind, kind)
    make_target(connection, f"value {sql_type}")
    assert binary_copy.write_rows(connection, TARGET, {"value": (kind, values)}) == 0
    assert rows_of(connection, "SELECT count(*) FROM target") == [(0,)]


def test_reading_no_rows_gives_empty_arrays(connection: db.Connection) -> None:
    query = sql.SQL("SELECT 1, '[1,2,3]'::vector WHERE false")
    number, vectors = binary_copy.read_rows(connection, query, ["int4", "vector"], 3)
    assert (number.shape, vectors.shape) == ((0,), (0, 3))


@pytest.mark.parametrize(
    "query",
    ["SELECT 1::int4 UNION ALL SELECT NULL", "SELECT 1::int8", "SELECT 1::int2", "SELECT 1, 2", "SELECT NULL::int4"],
)
def test_what_is_not_of_the_kind_asked_for_is_refused(connection: db.Connection, query: str) -> None:
    with pytest.raises(ValueError):
        binary_copy.read_rows(connection, sql.SQL(query), ["int4"])


@pytest.mark.parametrize(
    ("kind", "values", "error"),
    [
        ("vector(3)", np.array([[1.0, np.nan, 2.0]]), psycopg.errors.DataException),
        ("vector(3)", np.array([[1.0, np.inf, 2.0]]), psycopg.errors.DataException),
        ("vector(4)", np.array([[1.0, 2.0, 3.0]]), psycopg.errors.DataException),
    ],
)
def test_the_server_refuses_bad_vectors(connection: db.Connection, kind: str, values: Any, error: type) -> None:
    make_target(connection, f"value {kind}")
    with pytest.raises(error), connection.transaction():
        binary_copy.write_rows(connection, TARGET, {"value": ("vector", values)})
    assert rows_of(connection, "SELECT count(*) FROM target") == [(0,)]


@pytest.mark.parametrize("text", [b"\xff", b"a\0b"])
def test_the_server_refuses_bytes_that_are_no_text(connection: db.Connection, text: bytes) -> None:
    make_target(connection, "value text")
    with pytest.raises(psycopg.errors.CharacterNotInRepertoire), connection.transaction():
        binary_copy.write_rows(connection, TARGET, {"value": ("text", [text])})


def test_a_partition_joins_its_parent_with_the_parents_indexes_and_keys(connection: db.Connection) -> None:
    model = write_model(connection)
    name = f"callipper.cell_embedding_v{model.version}"
    attached = "SELECT inhrelid::regclass::text, pg_get_expr(relpartbound, inhrelid) FROM pg_inherits JOIN pg_class c"
    attached += " ON c.oid = inhrelid WHERE inhparent = 'callipper.cell_embedding'::regclass"
    assert rows_of(connection, attached) == [(name.split(".")[1], f"FOR VALUES IN ({model.version})")]
    kinds = f"SELECT contype::text, count(*) FROM pg_constraint WHERE conrelid = '{name}'::regclass AND contype <> 'n'"
    assert dict(rows_of(connection, f"{kinds} GROUP BY 1")) == {"p": 1, "f": 2}, "a key, two references and no check"
    assert rows_of(connection, f"SELECT reltuples::int FROM pg_class WHERE oid = '{name}'::regclass") == [
        (len(model.cells),)
    ]
    (found,) = binary_copy.read_rows(
        connection, sql.SQL("SELECT emb FROM callipper.cell_embedding ORDER BY cell_id"), ["vector"], 256
    )
    assert (found == model.cells).all()


def test_a_partition_with_rows_of_another_version_is_refused(connection: db.Connection) -> None:
    model = write_model(connection)
    other = model.version + 1
    name = partitions.create_partition(connection, "cell_embedding", other)
    columns: dict[str, Any] = {
        "version": ("int4", [model.version]),
        "cell_id": ("int8", model.grid.cell_id[:1]),
        "emb": ("vector", model.cells[:1]),
    }
    binary_copy.write_rows(connection, name, columns)
    with pytest.raises(psycopg.errors.CheckViolation):
        partitions.attach_partition(connection, "cell_embedding", other)


def test_a_partition_with_cells_that_do_not_exist_is_refused(connection: db.Connection) -> None:
    model = write_model(connection)
    connection.execute("DELETE FROM callipper.cell_embedding")
    name = partitions.partition("cell_embedding", model.version)
    columns: dict[str, Any] = {
        "version": ("int4", [model.version]),
        "cell_id": ("int8", [-1]),
        "emb": ("vector", model.cells[:1]),
    }
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        binary_copy.write_rows(connection, name, columns)


def test_a_temporary_table_does_not_give_way_to_a_users_table(connection: db.Connection) -> None:
    connection.execute("CREATE TABLE public.target (value text)")
    make_target(connection, "value int4")
    binary_copy.write_rows(connection, TARGET, {"value": ("int4", [7])})
    assert rows_of(connection, "SELECT count(*) FROM public.target") == [(0,)]


# The progress of an index


def test_an_index_tells_how_far_it_is(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hnsw, "WATCH_S", 0.001)
    reported: list[int] = []
    metres = np.array([[500_000.0, 5_500_000.0]]) + 500 * np.arange(200)[:, None]
    with user_session(database) as connection:
        cells = len(write_model(connection, metres).cells)
        connection.commit()
        hnsw.build_hnsw(connection, 1, reported.append)
        assert rows_of(connection, "SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%hnsw%'") == [(1,)]
    assert len(reported) > 1 and min(reported) > 0
    assert cells / 4 < sum(reported) <= cells


@pytest.mark.parametrize(("before", "after"), [("1MB", "more"), ("64MB", "64MB")])
def test_an_index_has_room_in_memory(database: str, before: str, after: str) -> None:
    """At least what pgvector needs for a cell, in kB; a larger setting stays."""
    metres = np.array([[500_000.0, 5_500_000.0]]) + 500 * np.arange(200)[:, None]
    with user_session(database) as connection:
        cells = len(write_model(connection, metres).cells)
        connection.execute(f"SET LOCAL maintenance_work_mem = '{before}'".encode())
        hnsw.build_hnsw(connection, 1)
        (now,) = connection.one("SELECT current_setting('maintenance_work_mem')")
    assert now == (f"{cells * hnsw.CELL_BYTES // 1024}kB" if after == "more" else after) and cells > 1000


def test_an_index_is_built_where_no_second_connection_is_to_be_had(
    database: str, cluster_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hnsw, "WATCH_S", 0.001)
    reported: list[int] = []
    with user_session(database) as connection, user_session(cluster_dsn, autocommit=True) as admin:
        write_model(connection)
        admin.execute(
            sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(connection.info.dbname))
        )
        hnsw.build_hnsw(connection, 1, reported.append)
        assert rows_of(connection, "SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%hnsw%'") == [(1,)]
    assert reported == []


def test_an_index_that_fails_leaves_nobody_watching(database: str) -> None:
    before = threading.active_count()
    with user_session(database) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        hnsw.build_hnsw(connection, 1)
    assert threading.active_count() == before
