"""What an HNSW index over the cells costs to build and saves per question: the ground of HNSW_PAYS_FROM."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.city import City
from benchmarks.sessions import user_session
from callipper_db import binary_copy, db, partitions
from callipper_db.arrays import Array
from callipper_db.hnsw import build_hnsw
from callipper_db.partitions import partition
from callipper_db.tables import DIMENSIONS

SIZES = (20_000, 80_000)
QUESTIONS = 20


def run(city: City) -> dict[str, Any]:
    """Build time, and the time of a top-10 question with and without the index, at two sizes; nothing is kept."""
    figures = {}
    random = np.random.default_rng(0)
    for size in SIZES:
        # Cells of a city resemble their neighbours: a walk, not noise, which would be HNSW's worst case.
        walk = np.cumsum(random.normal(size=(size, DIMENSIONS)), axis=0)
        embeddings = (walk / np.linalg.norm(walk, axis=1, keepdims=True)).astype(np.float32)
        with user_session(city.dsn) as connection:
            name = partitions.create_partition(connection, "cell_embedding", 0)
            columns: dict[str, tuple[str, Any]] = {
                "version": ("int4", np.zeros(size)),
                "cell_id": ("int8", np.arange(size)),
                "emb": ("vector", embeddings),
            }
            binary_copy.write_rows(connection, name, columns)
            connection.execute(db.sql.SQL("ANALYZE {}").format(name))
            scan_ms = _question_ms(connection, embeddings)
            started = time.perf_counter()
            build_hnsw(connection, 0)
            build_s = time.perf_counter() - started
            index_ms = _question_ms(connection, embeddings)
            connection.rollback()
        figures[str(size)] = {
            "build_s": round(build_s, 1),
            "scan_ms": round(scan_ms, 2),
            "index_ms": round(index_ms, 2),
            "questions_to_pay": round(build_s * 1000 / (scan_ms - index_ms)) if scan_ms > index_ms else None,
        }
    return {"cells": figures}


def _question_ms(connection: db.Connection, embeddings: Array) -> float:
    query = db.sql.SQL("SELECT cell_id FROM {} ORDER BY emb <-> %s::real[]::vector LIMIT 10").format(
        partition("cell_embedding", 0)
    )
    spent = []
    for row in range(QUESTIONS):
        started = time.perf_counter()
        connection.execute(query, [embeddings[row * 97].tolist()]).fetchall()
        spent.append(time.perf_counter() - started)
    return float(np.median(spent)) * 1000
