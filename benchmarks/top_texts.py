"""The kinds of places that stand out at each of London's cells: `top_texts` of callipper_map.cell, for all cells at once.

London is trained as a user trains it, with the kinds that names suggest, but for one epoch: more epochs change neither kinds
nor time. The baseline is one `describe` a cell, which also says whether the texts are right. CPU seconds are next to the wall
clock, because other programs of the machine slow down only the clock. They include the server's.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from psycopg import sql

from benchmarks.city import City
from benchmarks.london import train_london
from benchmarks.sessions import process_cpu_s, user_session
from callipper_db import db
from callipper_db.grid import read_grid
from callipper_trainer.cell_summary import TOP, summarise_cells
from callipper_trainer.standing_out import kinds_around, read_poi_kinds

BARS = {"s_for_200000_cells": 120, "equal_to_describe": 0.98}
FEW = 100  # cells of the baseline
DESCRIBED = (
    "SELECT string_agg(d.text, ', ' ORDER BY d.number) FROM callipper.cells c, LATERAL callipper.describe("
    "public.ST_Centroid(c.geom), %s) WITH ORDINALITY AS d(text, similarity, percentile, pois, lift, because, number)"
    " WHERE c.cell_id = %s"
)


class Stopwatch:
    """Seconds of a step, by the clock and of the processor: this process and its session of the server."""

    def __init__(self, connection: db.Connection) -> None:
        self._backend = connection.info.backend_pid
        self._started, self._cpu = time.perf_counter(), self._spent()

    def _spent(self) -> float:
        return time.process_time() + process_cpu_s(self._backend)

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._started, self._spent() - self._cpu


def run(city: City) -> dict[str, Any]:
    """The texts alone, and the whole step of training that writes them with groups, colours and support."""
    train_london(city, "--epochs", "1")
    with user_session(city.dsn) as connection:
        (version,) = connection.one("SELECT callipper._active_version()")
        cells = read_grid(connection, version)[0]
        watch = Stopwatch(connection)
        pois = read_poi_kinds(connection, version)
        assert pois is not None
        texts, _ = kinds_around(pois, cells.centre, TOP)
        texts_s, texts_cpu_s = watch.read()
        for table in ("cell_summary", "cell_cluster", "color_axis"):  # as before the model is published
            connection.execute(
                sql.SQL("DELETE FROM {} WHERE version = {}").format(sql.Identifier("callipper", table), version)
            )
        watch = Stopwatch(connection)
        summarise_cells(connection, version, seed=0)
        step_s, step_cpu_s = watch.read()
        few = np.linspace(0, len(texts) - 1, FEW).astype(int).tolist()
        described_s, described = _describe(connection, cells.cell_id[few].tolist())
        connection.rollback()
    scaled = step_s * 200_000 / len(texts)
    equal = sum(texts[row] == said for row, said in zip(few, described, strict=True)) / FEW
    return {
        "cells": len(texts),
        "with_texts": sum(text is not None for text in texts),
        "texts_s": round(texts_s, 1),
        "texts_cpu_s": round(texts_cpu_s, 1),
        "cells_per_s": round(len(texts) / texts_s),
        "cells_per_cpu_s": round(len(texts) / texts_cpu_s),
        "times_faster_than_describe": round(described_s / (texts_s / len(texts))),
        "equal_to_describe": equal,
        "step_s": round(step_s, 1),
        "step_cpu_s": round(step_cpu_s, 1),
        "s_for_200000_cells": round(scaled, 1),
        "bars": BARS,
        "holds": scaled <= BARS["s_for_200000_cells"] and equal >= BARS["equal_to_describe"],
    }


def _describe(connection: db.Connection, cells: list[int]) -> tuple[float, list[str | None]]:
    """Median seconds of one describe at the middle of a cell, and what each says."""
    spent, said = [], []
    for cell in cells:
        started = time.perf_counter()
        said += connection.one(DESCRIBED, [TOP, cell])
        spent.append(time.perf_counter() - started)
    return float(np.median(spent)), said
