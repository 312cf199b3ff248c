"""Loading a gzipped CSV with checks, rejects and upsert, against a bare COPY of the same file into a table without indexes."""

from __future__ import annotations

import gzip
import time
from typing import Any

import numpy as np

from benchmarks.city import LONDON, OPTIONS, City, median_ratio
from benchmarks.sessions import user_session
from callipper_db.load import load

BAR = 20_000  # rows/s
ROUNDS = 3
BARE = (
    "CREATE TEMPORARY TABLE bare (id text, name text, category text, label text, grp text, lon float8, lat float8,"
    " source text, dup int) ON COMMIT DROP"
)


def run(city: City) -> dict[str, Any]:
    """Rows of the file a second, into an empty table each time."""
    load_s, bare_s = [], []
    for _ in range(ROUNDS):
        with user_session(city.dsn) as connection:
            connection.execute("TRUNCATE callipper.poi")
        started = time.perf_counter()
        rows = load(city.dsn, [LONDON], OPTIONS).total("inserted")
        between = time.perf_counter()
        with user_session(city.dsn) as connection, gzip.open(LONDON) as file:
            connection.execute(BARE)
            with connection.cursor().copy("COPY bare FROM STDIN (FORMAT CSV, HEADER)") as copy:
                while block := file.read(1 << 16):
                    copy.write(block)
        load_s.append(between - started)
        bare_s.append(time.perf_counter() - between)
    speed = rows / float(np.median(load_s))
    return {
        "rows_per_s": round(speed),
        "times_slower_than_bare_copy": round(median_ratio(load_s, bare_s), 1),
        "bar": BAR,
        "holds": speed >= BAR,
    }
