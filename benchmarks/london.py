"""London from POIs in the database to an active model, as a user runs it: `callipper-db train` in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.city import SRID, City
from benchmarks.sessions import user_session
from callipper_db import search

BAR_S = {"first": 300, "again": 150}  # with no text encoded yet, and with all of them
BAR_GIB = 3.0
BAR_DENSITY = 3.0

# Pubs a cell, among the ten best cells for 'pub' and among all cells that have POIs.
DENSITY = """
WITH cell_pubs AS (
    SELECT c.cell_id, count(*) FILTER (WHERE p.category = 'Pub') AS pubs
    FROM callipper.cells c JOIN callipper.poi p ON ST_Intersects(p.geom, c.geom) GROUP BY c.cell_id
)
SELECT (SELECT coalesce(sum(pubs), 0) FROM cell_pubs WHERE cell_id = ANY(%s))::float8 / %s
    / (SELECT avg(pubs) FROM cell_pubs)::float8
"""


def run(city: City) -> dict[str, Any]:
    """Seconds by stage, the trainer's peak memory, and whether the answer to 'pub' has pubs in it."""
    with user_session(city.dsn) as connection:
        connection.execute("DELETE FROM callipper.text_vector")
    figures = {name: train_london(city) for name in BAR_S}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    cells = [cell["cell_id"] for cell in search.nearest_cells(city.dsn, "pub", 10)]
    with user_session(city.dsn) as connection:
        row = connection.execute(DENSITY, [cells, len(cells)]).fetchone()
    density = float(row[0]) if row else 0.0
    in_time = all(figures[name]["train_to_active_s"] < bar for name, bar in BAR_S.items())
    return figures | {
        "peak_gib": round(peak, 2),
        "pub_density_of_top_cells": round(density, 1),
        "bars": {"s": BAR_S, "gib": BAR_GIB, "density": BAR_DENSITY},
        "holds": in_time and peak < BAR_GIB and density >= BAR_DENSITY,
    }


def train_london(city: City, *options: str) -> dict[str, Any]:
    """Train with the command, in a process of its own. Its version becomes the active one."""
    command = [
        sys.executable,
        "-m",
        "callipper_db",
        "train",
        "--dsn",
        city.dsn,
        "--srid",
        str(SRID),
        "--json",
        *options,
    ]
    with tempfile.TemporaryDirectory() as home:
        started = time.perf_counter()
        finished = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"CALLIPPER_HOME": home}
        )
        spent = time.perf_counter() - started
    summary = json.loads(finished.stdout.splitlines()[-1])
    return {
        "train_to_active_s": round(spent, 1),
        "stages_s": summary["seconds"],
        "texts": summary["texts"],
        "cells": summary["cells"],
    }
