"""What tools call: functions with declared geometry, tiles, and saved layers."""

from __future__ import annotations

import math
from collections.abc import Callable

import psycopg
import pytest
from click.testing import Result
from psycopg import sql
from test_map import fetch
from test_schema import user_of, visitor

from callipper_db import db, models
from callipper_db.errors import LayerUnusable
from callipper_db.layers import add_layer, list_layers, remove_layer
from handmade import write_model
from mvt import features
from sessions import user_session
from town import GRID_M, MIDDLE

QUERY = "'somewhere to drink coffee'"


def column_types(connection: db.Connection, query: str) -> dict[str, str]:
    connection.execute(f"CREATE TEMPORARY TABLE result AS {query}".encode())
    return dict(
        connection.execute(
            "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = 'pg_temp.result'::regclass AND attnum > 0"
        ).fetchall()
    )


def test_cells_by_text_is_the_cosine_of_every_cell(reading: db.Connection) -> None:
    wrong = reading.execute(
        "SELECT count(*) FROM callipper_map.cells_by_text('cafe') t FULL JOIN cells c USING (cell_id)"
        " WHERE t.cell_id IS NULL OR c.cell_id IS NULL OR abs(t.similarity - (1 - (c.emb <=> text_embed('cafe')))) > 1e-6"
    ).fetchone()
    assert wrong == (0,)
    best = reading.execute(
        "SELECT cell_id FROM callipper_map.cells_by_text('cafe') ORDER BY similarity DESC, cell_id LIMIT 5"
    ).fetchall()
    assert (
        best
        == reading.execute("SELECT cell_id FROM cells ORDER BY emb <#> text_embed('cafe'), cell_id LIMIT 5").fetchall()
    )
    low, high = reading.execute(
        "SELECT min(percentile), max(percentile) FROM callipper_map.cells_by_text('cafe')"
    ).fetchone() or (None, None)
    assert 0 <= low < 5 and 95 < high <= 100


def test_a_parameter_is_embedded_once(reading: db.Connection) -> None:
    """The plan computes the question in a subquery of one row, not once a cell."""
    reading.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    reading.execute("PREPARE ask (text) AS SELECT * FROM callipper_map.cells_by_text($1)")
    plan = "\n".join(row for (row,) in reading.execute("EXPLAIN (VERBOSE) EXECUTE ask ('cafe')"))
    assert plan.count("text_embed(") <= 2, plan
    assert len(reading.execute("EXECUTE ask ('cafe')").fetchall()) > 100
    assert reading.execute("EXECUTE ask (NULL)").fetchall() == []


def test_results_keep_their_geometry_type(reading: db.Connection) -> None:
    for query, kind in (
        ("callipper_map.cells_by_text('park')", "Polygon"),
        ("callipper_map.cells_by_examples(ARRAY['park'], ARRAY['cafe'])", "Polygon"),
        ("callipper_map.places_by_text('park')", "Point"),
        ("callipper_map.find_cells('park')", "Polygon"),
    ):
        types = column_types(reading, f"SELECT * FROM {query}")
        assert types["geom"] == f"geometry({kind},4326)"
        assert types["lon"] == types["lat"] == "double precision"
        reading.execute("DROP TABLE result")


def test_places_and_answers_are_those_of_the_functions(reading: db.Connection) -> None:
    places = reading.execute(
        "SELECT place_id, similarity FROM callipper_map.places_by_text('school') ORDER BY similarity DESC, place_id LIMIT 5"
    ).fetchall()
    expected = reading.execute(
        "SELECT point_id, 1 - (emb <=> text_embed('school')) FROM points"
        " ORDER BY emb <#> text_embed('school'), point_id LIMIT 5"
    ).fetchall()
    assert [key for key, _ in places] == [key for key, _ in expected]
    assert [value for _, value in places] == pytest.approx([value for _, value in expected], abs=1e-6)
    found = reading.execute(
        "SELECT rank, cell_id, relevant, because FROM callipper_map.find_cells('school', 4)"
    ).fetchall()
    searched = reading.execute("SELECT cell_id, relevant, because FROM search('school', 4)").fetchall()
    assert sorted(found) == [(rank, *row) for rank, row in enumerate(searched, start=1)]
    lon, lat = MIDDLE
    described = reading.execute("SELECT * FROM callipper_map.describe_place(%s, %s, 2)", [lon, lat]).fetchall()
    at = "ST_SetSRID(ST_Point(%s, %s), 4326)"
    assert (
        described
        == reading.execute(f"SELECT text, pois, lift, because FROM describe({at}, 2)".encode(), [lon, lat]).fetchall()
    )
    assert described


# Tiles


def tile_of(connection: db.Connection, z: int) -> tuple[int, int]:
    """The tile that the middle of the town is in."""
    row = connection.execute(
        "SELECT floor((lon + 180) / 360 * 2 ^ z)::int,"
        " floor((1 - ln(tan(radians(lat)) + 1 / cos(radians(lat))) / pi()) / 2 * 2 ^ z)::int"
        " FROM (SELECT %s::float8 AS lon, %s::float8 AS lat, %s AS z) AS q",
        [*MIDDLE, z],
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def side_of_blocks(z: int) -> int:
    """The side of blocks in cells: the power of two that makes them about 4 of a tile's 512 pixels wide."""
    pixel_m = 40_075_017 * math.cos(math.radians(MIDDLE[1])) / 2**z / 512
    return 2 ** max(0, round(math.log2(4 * pixel_m / GRID_M)))


@pytest.mark.parametrize("z", [7, 9, 10, 14])
def test_similarity_tiles(reading: db.Connection, z: int) -> None:
    x, y = tile_of(reading, z)
    call = "SELECT callipper_map.similarity_tile(%s, %s, %s, 'cafe')"
    (tile,) = reading.execute(call, [z, x, y]).fetchone() or (None,)
    assert (tile,) == reading.execute(call, [z, x, y]).fetchone(), "the same bytes, for an ETag"
    twin = 'SELECT callipper_map.similarity_tile_json(%s, %s, %s, \'{"query": "cafe"}\')'
    assert (tile,) == reading.execute(twin, [z, x, y]).fetchone()
    found = features(tile, "cells")
    assert found and all(isinstance(feature["properties"]["percentile"], int) for feature in found)
    assert set(found[0]["properties"]) == {"similarity", "percentile", "support"}
    (cells,) = reading.execute(
        "SELECT count(*) FROM callipper_map.cell WHERE geom && ST_Transform(ST_TileEnvelope(%s, %s, %s), 4326)",
        [z, x, y],
    ).fetchone() or (0,)
    side = side_of_blocks(z)
    if side == 1:
        # One feature a cell, with the percentile of the function; the tile has a buffer.
        expected = dict(
            reading.execute(
                "SELECT cell_id, round(percentile)::int FROM callipper_map.cells_by_text('cafe')"
            ).fetchall()
        )
        assert len(found) == cells
        assert all(feature["properties"]["percentile"] == expected[feature["id"]] for feature in found)
    else:
        assert cells / side**2 * 0.8 < len(found) < cells / side**2 * 3 + 20
    assert len({feature["id"] for feature in found}) == len(found)


def test_a_block_is_the_same_in_both_tiles_that_it_is_in(reading: db.Connection) -> None:
    z = 9
    assert side_of_blocks(z) > 1
    x, y = tile_of(reading, z)
    values: dict[int, set[int]] = {}
    for east in (-1, 0, 1):
        for south in (-1, 0, 1):
            (tile,) = reading.execute(
                "SELECT callipper_map.similarity_tile(%s, %s, %s, 'cafe')", [z, x + east, y + south]
            ).fetchone() or (b"",)
            for feature in features(tile, "cells"):
                values.setdefault(feature["id"], set()).add(feature["properties"]["percentile"])
    assert values and all(len(found) == 1 for found in values.values())


def test_tile_servers_publish_the_functions_for_tools_alone(reading: db.Connection) -> None:
    """pg_tileserv publishes what returns bytea for z, x and y, in any schema."""
    found = reading.execute(
        "SELECT pronamespace::regnamespace::text, proname FROM pg_proc WHERE prorettype = 'bytea'::regtype"
        " AND proargnames[1:3] = ARRAY['z', 'x', 'y'] AND pronamespace::regnamespace::text LIKE 'callipper%' ORDER BY 2"
    ).fetchall()
    tools = ("cell_tile", "place_tile", "similarity_tile", "similarity_tile_json")
    assert found == [("callipper_map", name) for name in tools]


def test_cell_and_place_tiles(reading: db.Connection) -> None:
    x, y = tile_of(reading, 13)
    (tile,) = reading.execute("SELECT callipper_map.cell_tile(13, %s, %s)", [x, y]).fetchone() or (b"",)
    cells = features(tile, "cells")
    rows = {
        row[0]: row[1:] for row in reading.execute("SELECT cell_id, cluster, color, top_texts FROM callipper_map.cell")
    }
    assert cells
    for cell in cells:
        said = cell["properties"]
        assert (said["cluster"], said["color"], said.get("top_texts")) == rows[cell["id"]]
    x, y = tile_of(reading, 9)
    (tile,) = reading.execute("SELECT callipper_map.place_tile(9, %s, %s)", [x, y]).fetchone() or (b"",)
    places = features(tile, "places")
    (count,) = reading.execute("SELECT count(*) FROM callipper_map.place").fetchone() or (0,)
    assert sum(place["properties"]["places"] for place in places) == count
    assert len(places) < count / 2, "those close by are one"
    for query in ("similarity_tile(5, 0, 0)", "cell_tile(5, 0, 0)", "place_tile(5, 0, 0)"):
        (tile,) = reading.execute(f"SELECT callipper_map.{query}".encode()).fetchone() or (None,)
        assert bytes(tile) == b"", "an empty tile, far away"


# Layers


def test_a_layer_is_a_view_of_the_question_and_follows_the_active_model(town: str, cluster_dsn: str) -> None:
    add_layer(town, "coffee", "cafe")
    add_layer(town, "green", "park", likes=["school"], dislikes=["factory"])
    columns = fetch(
        town,
        "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = 'callipper_map.layer_coffee'::regclass ORDER BY attnum",
    )
    assert columns == [
        ("cell_id", "bigint"),
        ("geom", "geometry(Polygon,4326)"),
        ("lon", "double precision"),
        ("lat", "double precision"),
        ("similarity", "double precision"),
        ("percentile", "double precision"),
    ]
    question = "SELECT cell_id, similarity FROM callipper_map.layer_coffee ORDER BY 2 DESC, 1 LIMIT 5"
    expected = "SELECT cell_id, similarity FROM callipper_map.cells_by_text('cafe') ORDER BY 2 DESC, 1 LIMIT 5"
    assert fetch(town, question) == fetch(town, expected)
    best = fetch(town, "SELECT cell_id FROM callipper_map.layer_green ORDER BY similarity DESC, cell_id LIMIT 10")
    searched = "SELECT cell_id FROM search_by_examples(ARRAY['park', 'school'], ARRAY['factory'])"
    assert best == fetch(town, searched)
    with visitor(cluster_dsn, town, "callipper_layers") as reader:
        with user_session(town) as connection:
            connection.execute(sql.SQL("GRANT callipper_reader TO {}").format(sql.Identifier(user_of(reader))))
        with psycopg.connect(reader) as connection:
            assert len(connection.execute("SELECT * FROM callipper_map.layer_green").fetchall()) > 100
        with psycopg.connect(reader) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT callipper.save_layer('mine', 'park')")
    with user_session(town) as connection:
        other = write_model(connection, seed=3, texts=("cafe",))
    assert len(fetch(town, question)) == min(5, len(other.cells))
    assert fetch(town, question) == fetch(town, expected)
    said = fetch(town, "SELECT col_description('callipper_map.layer_green'::regclass, 6)")
    assert said == [("share of the city's cells that fit less well, percent",)]
    models.activate_model(town, 1)
    assert [layer["name"] for layer in list_layers(town)] == ["coffee", "green"]
    remove_layer(town, "coffee")
    assert [(layer["name"], layer["question"]) for layer in list_layers(town)] == [
        ("green", "How well cells fit: park, school; not: factory")
    ]


def test_bad_layers(town: str) -> None:
    for name, query, message in (
        ("Bad Name", "park", "cannot name a layer"),
        ("x'; DROP SCHEMA callipper; --", "park", "cannot name a layer"),
        ("quiet", "a text that nobody has encoded", "encoder"),
    ):
        with pytest.raises(LayerUnusable, match=message):
            add_layer(town, name, query)
    add_layer(town, "park", "park")
    with pytest.raises(LayerUnusable, match="already"):
        add_layer(town, "park", "park")
    with pytest.raises(LayerUnusable, match="The layers are: park"):
        remove_layer(town, "coffee")


def test_the_commands(town: str, run: Callable[..., Result]) -> None:
    assert "There is no layer" in run("layer", "list", "--dsn", town).output
    added = run("layer", "add", "coffee", "cafe", "--unlike", "factory", "--dsn", town).output
    assert "callipper_map.layer_coffee" in added
    assert "not: factory" in run("layer", "list", "--dsn", town).output
    assert "already" in run("layer", "add", "coffee", "cafe", "--dsn", town, exit_code=1).output
    run("layer", "remove", "coffee", "--dsn", town)
    assert run("layer", "list", "--json", "--dsn", town).output.strip() == "[]"
