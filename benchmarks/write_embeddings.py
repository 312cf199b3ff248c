"""Writing embeddings into a fresh partition, against psycopg's own copy.write_row."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from psycopg import sql

from benchmarks.city import City, median_ratio
from benchmarks.sessions import user_session
from callipper_db import binary_copy, db, partitions
from callipper_db.arrays import Array
from callipper_db.tables import DIMENSIONS

BAR = 150_000  # rows/s
ROWS = 160_000
ROUNDS = 5
BASELINE_ROWS = 20_000


def run(city: City) -> dict[str, Any]:
    """Both in turn, each into a table without indexes made in the same transaction, as publishing does."""
    embeddings = np.random.default_rng(0).normal(size=(ROWS, DIMENSIONS)).astype(np.float32)
    ours_s, baseline_s = [], []
    with user_session(city.dsn) as connection:
        for _ in range(ROUNDS):
            ours_s.append(_time(connection, embeddings, _ours) / ROWS)
            baseline_s.append(_time(connection, embeddings[:BASELINE_ROWS], _write_row) / BASELINE_ROWS)
    speed = 1 / float(np.median(ours_s))
    return {
        "rows_per_s": round(speed),
        "times_faster_than_write_row": round(median_ratio(baseline_s, ours_s), 2),
        "bar": BAR,
        "holds": speed >= BAR,
    }


def _time(connection: db.Connection, embeddings: Array, write: Any) -> float:
    table = partitions.create_partition(connection, "cell_embedding", 0)
    started = time.perf_counter()
    write(connection, table, embeddings)
    spent = time.perf_counter() - started
    connection.rollback()
    return spent


def _ours(connection: db.Connection, table: sql.Identifier, embeddings: Array) -> None:
    count = len(embeddings)
    columns: dict[str, tuple[str, Any]] = {
        "version": ("int4", np.zeros(count)),
        "cell_id": ("int8", np.arange(count)),
        "emb": ("vector", embeddings),
    }
    binary_copy.write_rows(connection, table, columns)


def _write_row(connection: db.Connection, table: sql.Identifier, embeddings: Array) -> None:
    from pgvector.psycopg import register_vector

    register_vector(connection)
    with (
        connection.cursor() as cursor,
        cursor.copy(sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(table)) as copy,
    ):
        copy.set_types(["int4", "int8", "vector"])
        for number, embedding in enumerate(embeddings):
            copy.write_row([0, number, embedding])
