"""The same recipe, untouched, in cities that it was not made for: OpenStreetMap's amenities of Berlin and Tokyo.

Each city is cut from the data folder's global extract, loaded into a database of its own, trained on by `callipper-db train`
as a user runs it, and asked. The lift of a question is the share of POIs that answer it around its ten best cells, over their
share in the city. Bars: the median lift of the questions is at least 3 and none is below 1, since ten cells of a hundred metres
see few POIs; and the macro AUC of held-out POIs, found by their bare category, is at least 0.65.

    make bench ARGS="other_city --cities berlin --epochs 4"

The extract has 27 kinds of amenity, and neither restaurants nor schools nor hospitals: a question is answered by the nearest
kinds that there are, so it is the meaning of its words that counts.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from psycopg import sql

from benchmarks.city import LONDON, City
from benchmarks.sessions import user_session
from callipper_db import schema, search
from callipper_db.cli.console import make_reporter
from callipper_db.load import LoadOptions, load
from callipper_db.read.record import require
from callipper_db.server import EmbeddedServer
from callipper_trainer.evaluation.retrieval import evaluate_retrieval

AMENITIES = LONDON.with_name("global_osm_amenity_2015.parquet")
CITIES = {  # west, south, east, north
    "berlin": (13.09, 52.34, 13.76, 52.68),
    "tokyo": (139.50, 35.50, 139.95, 35.85),
}
QUESTIONS = {  # what is asked -> the kinds that answer it
    "hospital": ("clinic", "doctors"),
    "school": ("college", "university"),
    "place to eat": ("bar", "marketplace"),
    "somewhere to borrow books": ("library",),
    "toothache": ("dentist",),
    "an evening at a play": ("theatre",),
    "put out a fire": ("fire station",),
}
BEST_CELLS = 10
AROUND_M = 250.0
BAR_MEDIAN_LIFT = 3.0
BAR_LEAST_LIFT = 1.0
BAR_AUC = 0.65

LIFT = """
WITH near AS (
    SELECT DISTINCT p.poi_id, p.category = ANY(%(kinds)s) AS answers
    FROM callipper.cells c JOIN callipper.poi p
        ON ST_DWithin(p.geom::geography, ST_Centroid(c.geom)::geography, %(around)s)
    WHERE c.cell_id = ANY(%(cells)s)
)
SELECT count(*), coalesce(avg(answers::int), 0)::float8,
    (SELECT avg((category = ANY(%(kinds)s))::int) FROM callipper.poi)::float8
FROM near
"""


@dataclass(frozen=True)
class Answer:
    """The POIs near the best cells for a question."""

    pois: int
    share: float  # of them that answer it
    share_in_city: float

    @property
    def lift(self) -> float:
        """How many times more often than in the city."""
        return self.share / self.share_in_city if self.share_in_city else 0.0


def run(city: City, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Lift by question and macro AUC by category, for each city; the server is the benchmarks' own."""
    options = _parse(arguments)
    if not AMENITIES.exists():
        print(f"Skipped: {AMENITIES.name} is not there.", file=sys.stderr)
        return {"skipped": AMENITIES.name}
    city.server.start()
    figures = {name: _measure(city.server, name, options.epochs) for name in options.cities}
    bars = {"median_lift": BAR_MEDIAN_LIFT, "least_lift": BAR_LEAST_LIFT, "macro_auc": BAR_AUC}
    holds = all(found[name] >= bar for found in figures.values() for name, bar in bars.items())
    return {"cities": figures, "bars": bars, "holds": holds}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks other_city", description=str(__doc__).splitlines()[0])
    parser.add_argument("--cities", default=",".join(CITIES), help=f"some of {','.join(CITIES)}")
    parser.add_argument("--epochs", help="instead of the recipe's own, for a quick look")
    options = parser.parse_args(arguments)
    options.cities = options.cities.split(",")
    if unknown := set(options.cities) - set(CITIES):
        parser.error(f"there is no city {', '.join(sorted(unknown))}; there are {', '.join(CITIES)}")
    return options


def _measure(server: EmbeddedServer, name: str, epochs: str | None) -> dict[str, Any]:
    dsn = new_database(server, name)
    with tempfile.TemporaryDirectory(prefix="callipper-city-") as folder:
        pois = cut(CITIES[name], Path(folder) / f"{name}.csv")
        load(dsn, [pois], LoadOptions(source="osm", rejects=Path(folder) / "rejects.csv"))
        started = time.perf_counter()
        summary = _train(dsn, Path(folder), epochs)
        spent = time.perf_counter() - started
    answers = {question: ask(dsn, question, kinds) for question, kinds in QUESTIONS.items()}
    with make_reporter(as_json=False) as reporter:
        retrieval = evaluate_retrieval(dsn, None, reporter)
    lifts = [answer.lift for answer in answers.values()]
    return {
        "pois": summary["rows"],
        "cells": summary["cells"],
        "srid": summary["srid"],
        "train_to_active_s": round(spent, 1),
        "lift": {question: round(answer.lift, 1) for question, answer in answers.items()},
        "median_lift": round(median(lifts), 1),
        "least_lift": round(min(lifts), 1),
        "pois_around": {question: answer.pois for question, answer in answers.items()},
        "macro_auc": round(retrieval.macro_auc["label"], 3),
        "labels": len(retrieval.auc["label"]),
    }


def new_database(server: EmbeddedServer, name: str) -> str:
    """The DSN of a new database with the schema."""
    with user_session(server.administrator_dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    dsn = server.administrator_dsn(name)
    schema.init(dsn)
    return dsn


def cut(box: tuple[float, float, float, float], path: Path) -> Path:
    """Write the amenities inside west, south, east, north to a CSV file that `callipper-db load` reads."""
    parquet = require("pyarrow.parquet", "Reading Parquet")
    west, south, east, north = box
    inside = [("lon", ">=", west), ("lon", "<=", east), ("lat", ">=", south), ("lat", "<=", north)]
    rows = parquet.read_table(AMENITIES, filters=inside).to_pylist()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "name", "category", "lon", "lat"])
        for number, row in enumerate(rows):
            writer.writerow([number, row["name"], row["category"].replace("_", " "), row["lon"], row["lat"]])
    return path


def _train(dsn: str, home: Path, epochs: str | None) -> dict[str, Any]:
    """The command as it is, without a setting."""
    command = [sys.executable, "-m", "callipper_db", "train", "--dsn", dsn, "--json"]
    command += ["--epochs", epochs] if epochs else []
    environment = os.environ | {"CALLIPPER_HOME": str(home)}
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    summary: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return summary


def ask(dsn: str, question: str, kinds: tuple[str, ...]) -> Answer:
    """The POIs near the best cells for a question."""
    cells = [cell["cell_id"] for cell in search.nearest_cells(dsn, question, BEST_CELLS)]
    with user_session(dsn) as connection:
        return Answer(*connection.one(LIFT, {"kinds": list(kinds), "cells": cells, "around": AROUND_M}))
