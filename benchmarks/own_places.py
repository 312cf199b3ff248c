"""What users do with all cells and with places of their own: a table of 100,000 points filled, and the cells read.

The weights are random, since training changes no time. The baseline of `embed` is an UPDATE with loc_embed.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.city import City
from benchmarks.loc_embed import publish_untrained
from benchmarks.sessions import user_session
from callipper_db.city import City as Client
from callipper_db.own_table import embed_table
from callipper_db.progress import Silent

ROWS = 100_000
FEW = 300  # rows of the baseline
BARS = {"embed_rows_per_s": 10_000, "read_cells_per_s": 100_000}


def run(city: City) -> dict[str, Any]:
    """Rows a second of `embed` and of City.cells()."""
    version = publish_untrained(city, "contextual", grid_size_m=100.0).version
    with user_session(city.dsn) as connection:
        connection.execute("DROP TABLE IF EXISTS public.shop")
        connection.execute(
            "CREATE TABLE public.shop AS SELECT n AS id, ST_SetSRID("
            " ST_Point(-0.5 + 0.8 * random(), 51.3 + 0.4 * random()), 4326) AS geom FROM generate_series(1, %s) AS n",
            [ROWS],
        )
        connection.execute("ALTER TABLE public.shop ADD PRIMARY KEY (id)")
    started = time.perf_counter()
    embed_table(city.dsn, "public.shop", "emb", Silent())
    embedded = ROWS / (time.perf_counter() - started)
    with user_session(city.dsn) as connection:
        started = time.perf_counter()
        connection.execute("UPDATE public.shop SET emb = callipper.loc_embed(geom) WHERE id <= %s", [FEW])
        updated = FEW / (time.perf_counter() - started)
        connection.rollback()
    client = Client(city.dsn, torch=False)
    started = time.perf_counter()
    frame, _ = client.cells()
    read = len(frame) / (time.perf_counter() - started)
    with user_session(city.dsn) as connection:
        connection.execute("SELECT callipper.drop_model(%s, true)", [version])
        connection.execute("DROP TABLE public.shop")
    return {
        "embed_rows_per_s": round(embedded),
        "times_faster_than_update": round(embedded / updated, 1),
        "read_cells_per_s": round(read),
        "cells": len(frame),
        "bars": BARS,
        "holds": embedded >= BARS["embed_rows_per_s"] and read >= BARS["read_cells_per_s"],
    }
