"""Reading the training stream from SQL, against the same query through a cursor."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.city import SRID, TEMPLATE, City, median_ratio
from benchmarks.sessions import user_session
from callipper_db.binary_copy import read_rows
from callipper_trainer.data.source import Source, read_samples, stream_query

BAR = 200_000  # rows/s
ROUNDS = 5
KINDS = ["int8", "float8", "float8", "float8", "float8", "int4"]
PREPARE = """
CREATE TEMPORARY TABLE sample AS
    SELECT poi_id AS id, category AS text, geom FROM callipper.poi;
CREATE TEMPORARY TABLE distinct_text AS
    SELECT text, row_number() OVER ()::int4 AS text_id FROM sample GROUP BY text;
ANALYZE sample;
ANALYZE distinct_text"""


def run(city: City) -> dict[str, Any]:
    """Rows a second of the stream by itself, and of the whole snapshot with its preparation."""
    stream_s, cursor_s, whole_s = [], [], []
    with user_session(city.dsn, autocommit=True) as connection:
        connection.execute(PREPARE)
        for _ in range(ROUNDS):
            started = time.perf_counter()
            rows = len(read_rows(connection, stream_query(connection, SRID), KINDS)[0])
            after_stream = time.perf_counter()
            np.array(connection.execute(stream_query(connection, SRID)).fetchall())
            after_cursor = time.perf_counter()
            with user_session(city.dsn, autocommit=True) as fresh:
                read_samples(fresh, Source(template=TEMPLATE, srid=SRID))
            stream_s.append(after_stream - started)
            cursor_s.append(after_cursor - after_stream)
            whole_s.append(time.perf_counter() - after_cursor)
    speed = rows / float(np.median(stream_s))
    return {
        "rows_per_s": round(speed),
        "times_faster_than_cursor": round(median_ratio(cursor_s, stream_s), 2),
        "whole_snapshot_rows_per_s": round(rows / float(np.median(whole_s))),
        "bar": BAR,
        "holds": speed >= BAR,
    }
