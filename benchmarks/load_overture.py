"""Loading a million rows like Overture's places, and a new release of them, against London's CSV in the same run."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from benchmarks.city import LONDON, OPTIONS, City
from benchmarks.sessions import user_session
from callipper_db.load import LoadOptions, load

ROWS = 1_000_000
BAR = 60_000  # rows/s
CHANGED = 0.01
KINDS = ["restaurant", "cafe", "hair_salon", "clothing_store", "bank", "pharmacy", "park", "hotel", "bar", "gym"]
PART = 100_000  # rows that are made at once


def write_release(path: Path, rows: int, changed: float = 0.0) -> None:
    """A GeoParquet file with Overture's schema; in a later release some confidences and categories are others."""
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB"}}}
    writer = None
    for start in range(0, rows, PART):
        part = _part(start, min(PART, rows - start), changed).replace_schema_metadata({"geo": json.dumps(geo)})
        writer = writer or pq.ParquetWriter(path, part.schema, compression="zstd")
        writer.write_table(part)
    assert writer is not None
    writer.close()


def _part(start: int, rows: int, changed: float) -> pa.Table:
    random = np.random.default_rng(start)
    numbers = range(start, start + rows)
    kinds = random.integers(len(KINDS), size=rows)
    kinds = np.where(random.random(rows) < changed, (kinds + 1) % len(KINDS), kinds)
    categories = [KINDS[kind] for kind in kinds]
    lon, lat = random.normal(4.9, 0.5, rows), random.normal(52.3, 0.5, rows)
    wkb = np.zeros(rows, dtype=[("order", "u1"), ("type", "<u4"), ("x", "<f8"), ("y", "<f8")])
    wkb["order"], wkb["type"], wkb["x"], wkb["y"] = 1, 1, lon, lat
    blob = wkb.tobytes()
    nothing = [None] * rows
    return pa.table(
        {
            "id": [f"08f{number:029x}" for number in numbers],
            "geometry": [blob[at : at + 21] for at in range(0, len(blob), 21)],
            "bbox": [{"xmin": x, "xmax": x, "ymin": y, "ymax": y} for x, y in zip(lon, lat, strict=True)],
            "version": [1] * rows,
            "sources": [[{"property": "", "dataset": "meta", "record_id": str(number)}] for number in numbers],
            "names": [{"primary": f"Place {number}", "common": None} for number in numbers],
            "categories": [{"primary": kind, "alternate": ["shopping", kind]} for kind in categories],
            "basic_category": categories,
            "confidence": random.random(rows).round(3),
            "websites": [[f"https://example.org/{number}"] if number % 2 else None for number in numbers],
            "phones": [[f"+31{number}"] for number in numbers],
            "socials": pa.array(nothing, pa.list_(pa.string())),
            "brand": pa.array(nothing, pa.struct([("wikidata", pa.string())])),
            "addresses": [
                [{"freeform": f"Street {number}", "locality": "Town", "postcode": "1", "country": "NL"}]
                for number in numbers
            ],
            "operating_status": ["open"] * rows,
        }
    )


def run(city: City) -> dict[str, Any]:
    """Rows a second of the first load and of the next release, and megabytes of memory that the loads added."""
    options = LoadOptions(source="overture", replace_source=True)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "first.parquet"), Path(folder, "second.parquet")
        write_release(first, ROWS)
        write_release(second, ROWS, CHANGED)
        csv_rows_per_s = _rate(city.dsn, LONDON, OPTIONS)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rows_per_s = _rate(city.dsn, first, options)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        started = time.perf_counter()
        summary = load(city.dsn, [second], options)
        delta_s = time.perf_counter() - started
    assert summary.total("updated") + summary.total("unchanged") == ROWS
    return {
        "rows_per_s": round(rows_per_s),
        "next_release_rows_per_s": round(ROWS / delta_s),
        "updated": summary.total("updated"),
        "times_slower_than_csv": round(csv_rows_per_s / rows_per_s, 2),
        "memory_grown_mb": round(grown / 1024),
        "bar": BAR,
        "holds": rows_per_s >= BAR,
    }


def _rate(dsn: str, path: Path, options: LoadOptions) -> float:
    with user_session(dsn) as connection:
        connection.execute("TRUNCATE callipper.poi")
    started = time.perf_counter()
    rows = load(dsn, [path], options).total("inserted")
    return rows / (time.perf_counter() - started)
