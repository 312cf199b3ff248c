"""callipper_map: what tools see is what the functions of the active version say, whenever it changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from alembic import command
from psycopg import sql
from test_schema import user_of, visitor

from callipper_db import db, models, schema
from callipper_db.progress import Silent
from callipper_trainer.cell_summary import MIXED, fit_palette, summarise_cells
from callipper_trainer.refresh.refresh import RefreshCache, refresh
from callipper_trainer.text_encoder import TextEncoder
from evidence import write_town
from handmade import unit_vectors, write_model
from sessions import user_session
from town import MIDDLE, QUARTERS

MIDDLE_OF_CELL = "ST_SetSRID(ST_Point(lon, lat), 4326)"


def fetch(dsn: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    with user_session(dsn) as connection:
        return connection.execute(query.encode(), values).fetchall()


def check_cells(connection: db.Connection) -> int:
    """Every cell says what the functions say of its middle; returns how many say kinds of places."""
    rows = connection.execute(
        f"""
        SELECT m.top_texts, m.support, m.poi_count, d.texts, loc_support({MIDDLE_OF_CELL}), n.pois,
            ST_Equals(m.geom, c.geom) AND m.geom && {MIDDLE_OF_CELL}
        FROM callipper_map.cell m FULL JOIN cells c USING (cell_id),
            LATERAL (SELECT string_agg(text, ', ' ORDER BY place) AS texts
                     FROM describe({MIDDLE_OF_CELL}, 3) WITH ORDINALITY AS d(text, s, p, pois, l, b, place)) AS d,
            LATERAL (SELECT count(*) AS pois FROM points p, model v WHERE v.status = 'active' AND
                ST_Distance(ST_Transform(p.geom, v.srid), ST_Transform({MIDDLE_OF_CELL}, v.srid)) <= 250) AS n
        """
    ).fetchall()
    assert len(rows) > 100
    for top_texts, support, poi_count, texts, expected_support, pois, same in rows:
        assert top_texts == texts
        assert support == pytest.approx(expected_support, rel=1e-5)
        assert (poi_count, same) == (pois, True)
    return sum(row[0] is not None for row in rows)


def test_cells_say_what_describe_and_loc_support_say(reading: db.Connection) -> None:
    assert check_cells(reading) > 50
    labels = reading.execute("SELECT DISTINCT cluster, cluster_label FROM callipper_map.cell ORDER BY 1").fetchall()
    assert [number for number, _ in labels] == list(range(len(labels)))
    said = {word for _, label in labels for word in label.split(", ")}
    assert said <= {*QUARTERS, "garden", MIXED} | {name for (name,) in reading.execute("SELECT name FROM kind")}
    assert len(said & set(QUARTERS)) >= 4
    sizes = reading.execute("SELECT count(*) FROM callipper_map.cell GROUP BY cluster ORDER BY cluster").fetchall()
    assert sizes == sorted(sizes, reverse=True)
    # The colours of neighbours in the embedding are alike.
    (bad,) = reading.execute("SELECT count(*) FROM callipper_map.cell WHERE color !~ '^#[0-9a-f]{6}$'").fetchone() or ()
    assert bad == 0


def test_kinds_that_names_suggest_count_as_describe_counts_them(connection: db.Connection) -> None:
    model, _ = write_town(connection)
    summarise_cells(connection, model.version, seed=0)
    connection.execute("SELECT callipper._write_map()")
    assert check_cells(connection) > 200
    said = connection.execute("SELECT count(*) FROM callipper_map.cell WHERE top_texts LIKE '%mill%'").fetchone()
    assert said is not None and said[0] > 0


def test_places_are_the_training_pois(reading: db.Connection) -> None:
    wrong = reading.execute(
        "SELECT count(*) FROM callipper_map.place m FULL JOIN points p ON p.point_id = m.place_id WHERE"
        " (m.geom, m.name, m.category, m.text, m.lon, m.lat) IS DISTINCT FROM"
        " (p.geom, p.name, p.category, p.text, ST_X(p.geom), ST_Y(p.geom)) OR m.kind IS DISTINCT FROM p.category"
    ).fetchone()
    assert wrong == (0,)


def test_vectors_are_those_of_the_cells(reading: db.Connection) -> None:
    wrong = reading.execute(
        "SELECT count(*) FILTER (WHERE v.vector IS DISTINCT FROM c.emb OR v.emb IS DISTINCT FROM c.emb::real[]), count(*)"
        " FROM callipper_map.cell_vector v FULL JOIN cells c USING (cell_id)"
    ).fetchone()
    assert wrong is not None and wrong[0] == 0 and wrong[1] > 100


def test_the_tables_follow_the_active_version(town: str) -> None:
    with user_session(town) as connection:
        handmade = write_model(connection, seed=1, activate=False)
    before = fetch(town, "SELECT * FROM callipper_map.cell ORDER BY 1")
    places = fetch(town, "SELECT * FROM callipper_map.place ORDER BY 1")
    with psycopg.connect(town) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        assert reader.execute("SELECT count(*) FROM callipper_map.cell").fetchone() == (len(before),)
        models.activate_model(town, handmade.version)
        # Its cells are said by a version that has no summary: the keys and the geometry are there all the same.
        assert fetch(town, "SELECT cell_id, model_version, color FROM callipper_map.cell ORDER BY 1") == [
            (cell, handmade.version, None) for cell in handmade.grid.cell_id.tolist()
        ]
        assert reader.execute("SELECT count(*) FROM callipper_map.cell").fetchone() == (len(before),)
    models.activate_model(town, 1)
    assert fetch(town, "SELECT * FROM callipper_map.cell ORDER BY 1") == before
    assert fetch(town, "SELECT * FROM callipper_map.place ORDER BY 1") == places
    models.drop_model(town, 1, force=True)
    assert fetch(town, "SELECT (SELECT count(*) FROM callipper_map.cell), count(*) FROM callipper_map.place") == [
        (0, 0)
    ]


def test_a_refresh_renews_them(town: str, encoder: TextEncoder) -> None:
    at = "ST_SetSRID(ST_Point(%s, %s), 4326)"
    with user_session(town) as connection:
        connection.execute(
            "INSERT INTO callipper.poi (source, source_id, name, category, geom)"
            f" SELECT 'new', n::text, 'New ' || n, 'museum', {at} FROM generate_series(1, 8) n".encode(),
            [MIDDLE[0] + 0.01, MIDDLE[1]],
        )
        connection.execute("DELETE FROM callipper.poi WHERE source = 'town' AND source_id LIKE 'park/%%5'")
    clusters = fetch(town, "SELECT cluster, label, centre::text FROM callipper.cell_cluster ORDER BY 1")
    refresh(town, Silent(), cache=RefreshCache(encoder=encoder))
    with user_session(town) as connection:
        assert check_cells(connection) > 50
        assert connection.execute("SELECT count(*) FROM callipper_map.place WHERE kind = 'museum'").fetchone() == (8,)
        assert connection.execute(
            "SELECT count(*) FROM callipper_map.cell WHERE top_texts LIKE 'museum%'"
        ).fetchone() != (0,)
        count = connection.execute("SELECT (SELECT count(*) FROM callipper_map.place) = count(*) FROM poi").fetchone()
        assert count == (True,)
    assert fetch(town, "SELECT cluster, label, centre::text FROM callipper.cell_cluster ORDER BY 1") == clusters


@pytest.fixture
def reader(cluster_dsn: str, town: str) -> Iterator[str]:
    with visitor(cluster_dsn, town, "callipper_mapreader") as dsn:
        with user_session(town) as connection:
            connection.execute(sql.SQL("GRANT callipper_reader TO {}").format(sql.Identifier(user_of(dsn))))
        yield dsn


def test_a_reader_sees_all_of_it_and_changes_nothing(reader: str) -> None:
    with psycopg.connect(reader, autocommit=True) as connection:
        names = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'callipper_map'::regnamespace AND relkind IN ('r', 'v')"
        ).fetchall()
        for (name,) in names:
            connection.execute(sql.SQL("SELECT * FROM callipper_map.{} LIMIT 1").format(sql.Identifier(name)))
        for statement in ("DELETE FROM callipper_map.cell", "CREATE TABLE callipper_map.mine (x int)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_colours_do_not_depend_on_the_basis_of_the_embedding() -> None:
    """Trained anew, a model has learned the same in another basis."""
    random = np.random.default_rng(3)
    skewed = random.exponential(1, (4000, 8)) * np.array([8, 5, 3, 1, 0.5, 0.5, 0.5, 0.5])
    turn = np.linalg.qr(random.standard_normal((8, 8)))[0]
    one, other = fit_palette(skewed, 0).colors(skewed), fit_palette(skewed @ turn, 0).colors(skewed @ turn)
    for shift in (0, 8, 16):
        np.testing.assert_allclose(one >> shift & 255, other >> shift & 255, atol=2)


def test_groups_of_few_cells() -> None:
    assert len(fit_palette(unit_vectors(3, 0), 0).centre) == 3
    assert len(fit_palette(np.repeat(unit_vectors(1, 0), 5, axis=0), 0).centre) == 1


def test_init_makes_anew_what_a_dump_has_left_out(town: str) -> None:
    before = fetch(town, "SELECT * FROM callipper_map.cell ORDER BY 1")
    with user_session(town) as connection:
        connection.execute("DROP SCHEMA callipper_map CASCADE")
    schema.init(town)
    assert fetch(town, "SELECT * FROM callipper_map.cell ORDER BY 1") == before
    with user_session(town) as connection:
        connection.execute("SET search_path = public")
        connection.commit()
        command.check(schema.alembic_config(schema.alchemy_connection(connection)))
