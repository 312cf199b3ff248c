"""Does changed() find what has changed? 200 openings and closures are put into London, and the list is read from its top.

    make bench ARGS=changes
    python -m benchmarks changes --home FOLDER

With --home, London and its model stay: it is the folder of `benchmarks answers --home`.

An opening is a POI as there are others in the city (name and category are another POI's), 30 m from one that is there. A
closure takes one that is there away. No two are drawn within 600 m of each other, so that it is clear which one a cell has
found. The changes are made twice, each time from the same state:

- alone. Then precision asks whether embeddings move near a change and nowhere else. It is that of all cells of the city, those
  that moved most first, whether or not changed() would list them. A cell is right if a change is within 250 m of its middle.
- among edits of 2,000 other POIs, as a new release of a source has them: names written otherwise, places corrected by up to
  10 m. Then precision asks whether changed() lists first what matters. A cell is right if an opening or a closure, no mere
  edit, is within 250 m. Each cell of the list has a change of its own, so `found` says how many of the 200 changes it shows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from psycopg import sql
from psycopg.conninfo import make_conninfo
from scipy.spatial import KDTree

from benchmarks.answers.cities import AnswerCity, read_city
from benchmarks.answers.product import ask
from benchmarks.city import SRID, City
from benchmarks.sessions import user_session
from callipper_db import changes, schema
from callipper_db.arrays import Array
from callipper_db.binary_copy import read_rows
from callipper_db.cli.console import make_reporter
from callipper_db.grid import read_grid
from callipper_db.progress import Reporter
from callipper_db.server import EmbeddedServer
from callipper_trainer.refresh.refresh import refresh

EACH = 100  # openings, and closures
EDITS = 2_000
APART_M = 600.0
OFFSET_M = 30.0  # of an opening from a POI that is there
REACH_M = 250.0
FIRST = 200
BAR = 0.9
SEED = 0


def run(city: City, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Precision of the first 200 cells, of all cells without edits and of changed() among edits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks changes", description=str(__doc__).splitlines()[0])
    parser.add_argument("--home", type=Path, metavar="FOLDER", help="keep London and its model there")
    options = parser.parse_args(arguments)
    with make_reporter(as_json=False) as reporter, _london(city, options.home, reporter) as london:
        places, figures = Places.draw(london), {}
        for name, edits in (("alone", 0), ("among_edits", EDITS)):
            with _copy(london.dsn) as dsn:
                figures[name] = _measure(dsn, places, edits, reporter)
    alone, among = figures["alone"], figures["among_edits"]
    precision = {"all cells, alone": alone["cells"], "changed(), among edits": among["listed"]}
    return {
        "openings_and_closures": 2 * EACH,
        "edits": EDITS,
        "precision_at_200": precision,
        **figures,
        "bar": BAR,
        "holds": min(precision.values()) >= BAR,
    }


class Places:
    """Where POIs open and close, in a city: rows of its POIs."""

    def __init__(self, london: AnswerCity, chosen: Array, others: Array, models: Array) -> None:
        self.city, self.others = london, others
        self.opened, self.closed = chosen[:EACH], chosen[EACH:]
        self.models = models  # of the openings: POIs that they are like
        turn = np.random.default_rng(SEED + 1).uniform(0, 2 * np.pi, EACH)
        opened = london.metres[self.opened] + OFFSET_M * np.column_stack([np.cos(turn), np.sin(turn)])
        self.metres = np.concatenate([opened, london.metres[self.closed]])  # (2 * EACH, 2), where something has changed

    @classmethod
    def draw(cls, london: AnswerCity) -> Places:
        """Draw POIs at random that are APART_M from each other, and others for edits and as models of openings."""
        chance = np.random.default_rng(SEED)
        order = chance.permutation(len(london))
        chosen: list[int] = []
        for row in order:
            if all(np.hypot(*(london.metres[row] - london.metres[other])) >= APART_M for other in chosen):
                chosen.append(int(row))
            if len(chosen) == 2 * EACH:
                break
        rest = order[~np.isin(order, chosen)]
        return cls(london, np.array(chosen), rest[:EDITS], rest[EDITS : EDITS + EACH])

    def change(self, dsn: str, edits: int) -> None:
        """Open, close and edit."""
        ids, chance = self.city.poi_id, np.random.default_rng(SEED + 2)
        with user_session(dsn) as connection:
            for model, (easting, northing) in zip(self.models, self.metres[:EACH].tolist(), strict=True):
                connection.execute(
                    "INSERT INTO callipper.poi (source, source_id, name, category, category_group, geom)"
                    " SELECT 'opened', m.poi_id, m.name, m.category, m.category_group,"
                    " public.ST_Transform(public.ST_SetSRID(public.ST_MakePoint(%s, %s), %s), 4326)"
                    " FROM callipper.poi m WHERE m.poi_id = %s",
                    [easting, northing, SRID, int(ids[model])],
                )
            connection.execute("DELETE FROM callipper.poi WHERE poi_id = ANY(%s)", [ids[self.closed].tolist()])
            for number, poi in enumerate(ids[self.others[:edits]].tolist()):
                if number % 2:
                    connection.execute(
                        "UPDATE callipper.poi SET name = coalesce(name || ' Ltd', category) WHERE poi_id = %s", [poi]
                    )
                else:
                    connection.execute(
                        "UPDATE callipper.poi SET geom = public.ST_Project(geom::public.geography, %s, %s)::public.geometry"
                        " WHERE poi_id = %s",
                        [float(chance.uniform(1, 10)), float(chance.uniform(0, 2 * np.pi)), poi],
                    )


def _measure(dsn: str, places: Places, edits: int, reporter: Reporter) -> dict[str, Any]:
    """Change, refresh, and read both lists."""
    before, centres = _embeddings(dsn)
    places.change(dsn, edits)
    began = time.perf_counter()
    summary = refresh(dsn, reporter, keep=1)
    refreshed = time.perf_counter()
    listed = changes.changed_cells(dsn, k=FIRST)
    asked = time.perf_counter()
    after, _ = _embeddings(dsn)
    moved = np.linalg.norm(after - before, axis=1)
    first = np.argsort(-moved, kind="stable")[:FIRST]
    number = dict(zip(_cell_ids(dsn), range(len(centres)), strict=True))
    rows = np.array([number[cell["cell_id"]] for cell in listed])
    truth = KDTree(places.metres)
    with user_session(dsn) as connection:
        (kept,) = connection.execute(
            "SELECT (pg_total_relation_size('callipper.kept_cell') + pg_total_relation_size('callipper.kept_point'))::int8"
        ).fetchall()[0]
    return {
        "cells": _precision(truth, centres[first]),
        "listed": _precision(truth, centres[rows]),
        "found": len({near for found in truth.query_ball_point(centres[rows], REACH_M) for near in found}),
        "moved_at_200": round(float(moved[rows[-1]]), 4),
        "pois_changed": summary.added + summary.changed + summary.removed,
        "cells_embedded": summary.cells,
        "kept_mb": round(kept / 2**20, 1),
        "seconds": {"refresh": round(refreshed - began, 1), "changed": round(asked - refreshed, 2)},
    }


def _precision(truth: KDTree, centres: Array) -> float:
    """The share of cells (N, 2) with a change within REACH_M."""
    distance, _ = truth.query(centres)
    return round(float(np.mean(distance <= REACH_M)), 3)


def _cell_ids(dsn: str) -> list[int]:
    with user_session(dsn) as connection:
        return [
            int(cell) for (cell,) in connection.execute("SELECT cell_id FROM callipper.cells ORDER BY 1").fetchall()
        ]


def _embeddings(dsn: str) -> tuple[Array, Array]:
    """(C, D) of the active model's cells, by cell_id, and (C, 2) their centres in metres."""
    with user_session(dsn) as connection:
        version = connection.execute("SELECT callipper._active_version()").fetchall()[0][0]
        grid, _, _ = read_grid(connection, version)
        query = sql.SQL("SELECT emb FROM callipper.cell_embedding WHERE version = {} ORDER BY cell_id").format(version)
        (vectors,) = read_rows(connection, query, ["vector"], 256)
    return vectors, grid.centre


@contextmanager
def _london(city: City, home: Path | None, reporter: Reporter) -> Iterator[AnswerCity]:
    """London with a model of the default recipe."""
    with tempfile.TemporaryDirectory(prefix="callipper-changes-") as folder:
        where = (home or Path(folder)).absolute()
        where.mkdir(parents=True, exist_ok=True)
        where.chmod(0o755)
        server = EmbeddedServer(where)
        server.start()
        try:
            reporter.stage("loading London")
            london = read_city(server, "london")
            reporter.stage("training")
            with ask(london):
                pass
            schema.init(london.dsn)
            yield london
        finally:
            server.stop()


@contextmanager
def _copy(dsn: str) -> Iterator[str]:
    """A copy of a database, for as long as the block lasts."""
    with user_session(dsn) as connection:
        name = connection.info.dbname
    copy, admin = f"{name}_changed", make_conninfo(dsn, dbname="postgres")
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(copy))
    with user_session(admin, autocommit=True) as connection:
        connection.execute(drop)
        make = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(copy), sql.Identifier(name))
        connection.execute(make)
    try:
        yield make_conninfo(dsn, dbname=copy)
    finally:
        with user_session(admin, autocommit=True) as connection:
            connection.execute(drop)
