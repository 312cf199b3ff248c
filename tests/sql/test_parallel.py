"""What asks the model may stand in any statement that a parallel plan serves, those that write included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tiny_encoder import write_encoder
from town import CONFIG, fill_town, train_town

WORD = "(ARRAY['park', 'cafe', 'an old river bank'])[1 + n % 3]"
CALLS = {
    "text_embed": f"text_embed({WORD})",
    "text_embed by a version": f"text_embed({WORD}, 1)",
    "text_embed of a constant": "text_embed('a quiet corner')",
    "loc_embed": "loc_embed(geom)",
    "loc_embed by a version": "loc_embed(geom, 1)",
    "loc_support": "loc_support(geom)",
    "text_similarity": f"text_similarity({WORD}, geom)",
    "search": f"(SELECT array_agg(cell_id) FROM search({WORD}, 3))",
    "search_points": f"(SELECT array_agg(point_id) FROM search_points({WORD}, 3))",
    "search_by_examples": f"(SELECT array_agg(cell_id) FROM search_by_examples(ARRAY[{WORD}], ARRAY['school'], 3))",
    "similar_to": "(SELECT array_agg(cell_id) FROM similar_to(geom, 3))",
    "similar_points_to": "(SELECT array_agg(point_id) FROM similar_points_to(geom, 3))",
    "describe": "(SELECT array_agg(text) FROM describe(geom, 3))",
    "cells": "(SELECT min(c.emb <-> loc_embed(asked.geom)) FROM cells c)",
}
# Each leaves its rows in the table `found`.
STATEMENTS = {
    "SELECT": "{query}",
    "CREATE TABLE AS": "CREATE TABLE found AS {query}",
    "CREATE MATERIALIZED VIEW": "CREATE MATERIALIZED VIEW found AS {query}",
    "INSERT ... SELECT": "CREATE TABLE found (n int, answer text); INSERT INTO found {query}",
    "PL/pgSQL": "CREATE TABLE found (n int, answer text); DO $do$ DECLARE r record; BEGIN FOR r IN {query} LOOP"
    " INSERT INTO found VALUES (r.n, r.answer); END LOOP; END $do$",
    "a function": "CREATE FUNCTION answers() RETURNS TABLE (n int, answer text) LANGUAGE plpgsql PARALLEL RESTRICTED STABLE"
    " AS $f$\n#variable_conflict use_column\nBEGIN RETURN QUERY {query}; END $f$;"
    " CREATE TABLE found AS SELECT * FROM answers()",
}
PARALLEL = (
    "parallel_setup_cost",
    "parallel_tuple_cost",
    "min_parallel_table_scan_size",
    "min_parallel_index_scan_size",
)
FORCED = "SELECT name FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query')"


@pytest.fixture(scope="module")
def asked(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A town whose model has both towers, and a table of places."""
    folder = tmp_path_factory.mktemp("parallel")
    fill_town(module_database)
    encoder = write_encoder(folder / "tiny", num_hidden_layers=1).name
    train_town(module_database, folder, replace(CONFIG, epochs=2), text_tower=True, encoder=encoder)
    with psycopg.connect(module_database) as connection:
        connection.execute(
            "CREATE TABLE asked AS SELECT row_number() OVER (ORDER BY poi_id)::int AS n, geom, repeat('x', 2000) AS wide"
            " FROM callipper.poi ORDER BY poi_id LIMIT 15"
        )
        connection.execute("ANALYZE asked")
    return module_database


@pytest.fixture
def forced(asked: str) -> Iterator[psycopg.Connection[Any]]:
    """A session that plans everything in parallel if it may; what it writes is rolled back."""
    with psycopg.connect(asked) as connection:
        ((name,),) = connection.execute(FORCED).fetchall()
        for setting in PARALLEL:
            connection.execute(f"SET LOCAL {setting} = 0".encode())
        connection.execute(f"SET LOCAL {name} = on".encode())
        yield connection
        connection.rollback()


@pytest.fixture(scope="module")
def serial(asked: str) -> dict[str, list[tuple[Any, ...]]]:
    """What a plan without workers answers."""
    with psycopg.connect(asked) as connection:
        connection.execute("SET max_parallel_workers_per_gather = 0")
        return {name: connection.execute(query(call).encode()).fetchall() for name, call in CALLS.items()}


def query(call: str) -> str:
    return f"SELECT n, ({call})::text AS answer FROM asked WHERE wide <> '' ORDER BY n"


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
@pytest.mark.parametrize("name", CALLS)
def test_in_any_statement(
    forced: psycopg.Connection[Any], serial: dict[str, list[tuple[Any, ...]]], name: str, statement: str
) -> None:
    cursor = forced.execute(statement.format(query=query(CALLS[name])).encode())
    found = (
        cursor.fetchall()
        if statement == "{query}"
        else forced.execute("SELECT n, answer FROM found ORDER BY n").fetchall()
    )
    assert found == serial[name]


@pytest.mark.parametrize("name", ["text_embed", "loc_embed", "loc_support", "text_similarity"])
def test_workers_take_their_share(forced: psycopg.Connection[Any], name: str) -> None:
    """Of what is asked for each row, in a plain query and in one that writes."""
    for prefix in ("", "CREATE TABLE found AS "):
        plan = [line for (line,) in forced.execute(f"EXPLAIN (VERBOSE) {prefix}{query(CALLS[name])}".encode())]
        gather = next(number for number, line in enumerate(plan) if "Gather" in line)
        assert any(
            "_find_text" in line or "_locate" in line or "_rate_support" in line for line in plan[gather + 1 :]
        ), plan
