"""What users do with all cells and with places of their own: a table of 100,000 points filled, the cells read, and cells found
that are like five places and unlike five others.

The weights are random, since training changes no time. The baseline of `embed` is an UPDATE with loc_embed. CPU seconds
are next to the wall clock, because other programs of the machine slow down only the clock. They include the server's.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.city import City
from benchmarks.loc_embed import publish_untrained
from benchmarks.sessions import process_cpu_s, server_cpu_s, user_session
from callipper_db import db
from callipper_db.city import City as Client
from callipper_db.own_table import embed_table
from callipper_db.progress import Silent

ROWS = 100_000
FEW = 300  # rows of the baseline
ROUNDS = 15
BARS = {"embed_rows_per_s": 10_000, "read_cells_per_s": 100_000, "more_like_these_ms": 200}
EXAMPLES = (
    "SELECT count(*) FROM callipper.search_by_examples(like_places => (SELECT array_agg(geom) FROM public.shop WHERE id BETWEEN"
    " %(first)s AND %(first)s + 4), dislike_places => (SELECT array_agg(geom) FROM public.shop WHERE id BETWEEN %(first)s + 5"
    " AND %(first)s + 9), k => 10)"
)


def run(city: City) -> dict[str, Any]:
    """Rows a second of `embed` and of City.cells(), and the time of search_by_examples()."""
    version = publish_untrained(city, "contextual", grid_size_m=100.0).version
    with user_session(city.dsn) as connection:
        connection.execute("DROP TABLE IF EXISTS public.shop")
        connection.execute(
            "CREATE TABLE public.shop AS SELECT n AS id, ST_SetSRID("
            " ST_Point(-0.5 + 0.8 * random(), 51.3 + 0.4 * random()), 4326) AS geom FROM generate_series(1, %s) AS n",
            [ROWS],
        )
        connection.execute("ALTER TABLE public.shop ADD PRIMARY KEY (id)")
    started, cpu = time.perf_counter(), server_cpu_s(city.server)
    embed_table(city.dsn, "public.shop", "emb", Silent())
    embedded, embed_cpu_s = ROWS / (time.perf_counter() - started), server_cpu_s(city.server) - cpu
    with user_session(city.dsn) as connection:
        started = time.perf_counter()
        connection.execute("UPDATE public.shop SET emb = callipper.loc_embed(geom) WHERE id <= %s", [FEW])
        updated = FEW / (time.perf_counter() - started)
        connection.rollback()
        like_s, like_cpu_s = _time_examples(connection)
    client = Client(city.dsn, torch=False)
    started, cpu = time.perf_counter(), server_cpu_s(city.server)
    frame, _ = client.cells()
    read, read_cpu_s = len(frame) / (time.perf_counter() - started), server_cpu_s(city.server) - cpu
    with user_session(city.dsn) as connection:
        connection.execute("SELECT callipper.drop_model(%s, true)", [version])
        connection.execute("DROP TABLE public.shop")
    return {
        "embed_rows_per_s": round(embedded),
        "embed_rows_per_cpu_s": round(ROWS / embed_cpu_s),
        "times_faster_than_update": round(embedded / updated, 1),
        "read_cells_per_s": round(read),
        "read_cells_per_cpu_s": round(len(frame) / read_cpu_s),
        "more_like_these_ms": round(1000 * like_s),
        "more_like_these_cpu_ms": round(1000 * like_cpu_s),
        "cells": len(frame),
        "bars": BARS,
        "holds": embedded >= BARS["embed_rows_per_s"]
        and read >= BARS["read_cells_per_s"]
        and 1000 * like_s <= BARS["more_like_these_ms"],
    }


def _time_examples(connection: db.Connection) -> tuple[float, float]:
    """Median seconds by the clock, and CPU seconds of the backend, of ten cells like five places and unlike five others."""
    (backend,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
    connection.execute(EXAMPLES.encode(), {"first": 1})  # the first reads the pages
    clock, cpu = [], []
    for number in range(1, ROUNDS + 1):
        started, before = time.perf_counter(), process_cpu_s(backend)
        connection.execute(EXAMPLES.encode(), {"first": 10 * number})
        clock.append(time.perf_counter() - started)
        cpu.append(process_cpu_s(backend) - before)
    return float(np.median(clock)), float(np.mean(cpu))
