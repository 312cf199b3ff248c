"""The map: how soon it answers the first question, and how it bears 50 people who pan and ask for a minute.

The first answers are those of Monaco with about 15,000 cells of 10 m, from a server and a database that have just started.
The load is on 202,500 cells with made-up vectors, as in the benchmark `search`. Single tiles are timed next to a bare ST_AsMVT.
"""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from psycopg.conninfo import make_conninfo

from benchmarks.city import City
from benchmarks.search import make_model
from benchmarks.sessions import user_session
from callipper_db import schema
from callipper_db.server import EmbeddedServer

SIDE = 90  # blocks: 202,500 cells
CLIENTS = 50
SECONDS = 60.0
PAUSE_S = 1.0  # that a person looks at a view, on average
QUESTIONS = 12
ZOOMS = range(10, 16)
TILES = 60  # compared with the bare statement
MONACO = Path(__file__).resolve().parents[1] / "demo" / "monaco.osm.pbf"
MONACO_CELL_M = 10
ASKED = (
    "buy fresh bread",
    "somewhere to eat",
    "luxury shopping",
    "a playground for the children",
    "see some art",
    "go for a swim",
    "a quiet park",
    "go out at night",
    "a doctor",
    "catch a bus",
)
BARE = """
SELECT ST_AsMVT(t, 'cells', 4096, 'geom', 'id') FROM (
    SELECT c.cell_id AS id,
        ST_AsMVTGeom(ST_Transform(c.geom, 3857), ST_TileEnvelope(%(z)s, %(x)s, %(y)s), 4096, 64, true) AS geom
    FROM callipper.cell c WHERE c.grid_id = %(grid)s AND c.geom && ST_Transform(ST_TileEnvelope(%(z)s, %(x)s, %(y)s), 4326)
) t
"""
OURS = "SELECT callipper._match_tile(%(version)s, %(vector)s::vector, %(z)s, %(x)s, %(y)s)"
BARS = {"errors": 0, "memory_growth": 1.2, "first_answer_ms": 1000}

Tile = tuple[int, int, int]


def run(city: City) -> dict[str, Any]:
    """Serve, ask, load, measure, in databases of its own."""
    first = _first_answers(city.server)
    dsn = _make_city(city.server)
    with user_session(dsn) as connection:
        version, cells, *bounds = connection.one(
            "SELECT min(model_version), count(*), min(lon), min(lat), max(lon), max(lat) FROM callipper_map.cell"
        )
        texts = connection.execute(
            "SELECT text FROM callipper.text_embedding WHERE version = %s ORDER BY text LIMIT %s", [version, QUESTIONS]
        ).fetchall()
    beside = _beside_bare(dsn, version, bounds, texts[0][0])
    with _serving(dsn) as (address, pid):
        loaded = asyncio.run(_clients(address, pid, bounds, [text for (text,) in texts]))
    holds = (
        loaded["errors"] <= BARS["errors"]
        and loaded["memory_growth"] <= BARS["memory_growth"]
        and first["first_ms"] <= BARS["first_answer_ms"]
    )
    return {"first_answers": first, "cells": cells, **loaded, "one_tile_ms": beside, "bars": BARS, "holds": holds}


def _first_answers(server: EmbeddedServer) -> dict[str, Any]:
    """Milliseconds of answers in Monaco: the very first one, others that nobody has asked before, and the same again."""
    dsn = _make_database(server, "bench_first")
    command = [sys.executable, "-m", "callipper_db"]
    for arguments in (["load", str(MONACO)], ["train", "--epochs", "1", "--grid-size", str(MONACO_CELL_M)]):
        subprocess.run([*command, *arguments, "--dsn", dsn], check=True, capture_output=True)
    with user_session(dsn) as connection:
        (cells,) = connection.execute("SELECT count(*) FROM callipper_map.cell").fetchone() or (0,)
    server.stop()
    server.start()
    with _serving(dsn) as (address, _), httpx2.Client(base_url=address, timeout=60) as client:

        def ask(text: str) -> float:
            started = time.perf_counter()
            client.get("/api/search", params={"q": text, "apart": 250}).raise_for_status()
            return 1000 * (time.perf_counter() - started)

        first, *others = map(ask, ASKED)
        again = [ask(text) for text in ASKED]
    return {
        "cells": cells,
        "first_ms": round(first, 1),
        "new_question_ms": _percentiles(others),
        "same_question_ms": _percentiles(again),
    }


def _make_database(server: EmbeddedServer, name: str) -> str:
    """The DSN of a new database with our schema."""
    server.start()
    with user_session(server.administrator_dsn(), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'".encode())
    dsn = make_conninfo(server.administrator_dsn(), dbname=name)
    with user_session(dsn, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION postgis")
        connection.execute("CREATE EXTENSION vector")
    schema.init(dsn)
    return dsn


def _make_city(server: EmbeddedServer) -> str:
    """The DSN of a city with made-up vectors."""
    dsn = _make_database(server, "bench_map")
    with user_session(dsn) as connection:
        make_model(connection, SIDE)
    return dsn


def _beside_bare(dsn: str, version: int, bounds: Sequence[float], text: str) -> dict[str, Any]:
    """Milliseconds of a tile that nobody has asked for yet, ours and the bare one, in turn in one session."""
    chance = random.Random(0)
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    with user_session(dsn, autocommit=True) as connection:
        grid, vector = connection.execute(
            "SELECT grid_id, text_embed(%s)::text FROM callipper.model WHERE version = %s", [text, version]
        ).fetchone() or (None, None)
        for _ in range(TILES):
            z, x, y = _tiles(bounds, chance)[0]
            values = {"z": z, "x": x, "y": y, "grid": grid, "version": version, "vector": vector}
            for name, statement in (("ours", OURS), ("bare", BARE)):
                started = time.perf_counter()
                connection.execute(statement.encode(), values).fetchone()
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: _percentiles(found) for name, found in times.items()}


@contextmanager
def _serving(dsn: str) -> Iterator[tuple[str, int]]:
    """The address and the process id of a map's server."""
    server = subprocess.Popen(
        [sys.executable, "-m", "callipper_db", "map", "--dsn", dsn, "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        address = re.search(r"http://\S+", server.stdout.readline())
        assert address is not None
        yield address[0].rstrip("/"), server.pid
    finally:
        server.terminate()
        server.wait()


async def _clients(address: str, pid: int, bounds: Sequence[float], texts: list[str]) -> dict[str, Any]:
    times: dict[str, list[float]] = {"tile": [], "search": []}
    statuses: Counter[int] = Counter()
    memory: list[float] = []
    ends = time.perf_counter() + SECONDS

    async def get(client: httpx2.AsyncClient, kind: str, path: str, text: str) -> None:
        started = time.perf_counter()
        try:
            answer = await client.get(path, params={} if path.startswith("/tiles/cells") else {"q": text})
            statuses[answer.status_code] += 1
        except httpx2.HTTPError:
            statuses[599] += 1  # no answer
        times[kind].append(1000 * (time.perf_counter() - started))

    async def person(number: int) -> None:
        chance = random.Random(number)
        text = chance.choice(texts)
        limits = httpx2.Limits(max_connections=6)  # as browsers have it
        async with httpx2.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
            await asyncio.sleep(chance.random() * 3)
            while time.perf_counter() < ends:
                if chance.random() < 0.2:
                    text = chance.choice(texts)
                    await get(client, "search", "/api/search", text)
                tiles = _tiles(bounds, chance)
                paths = [f"/tiles/{kind}/{z}/{x}/{y}.mvt" for z, x, y in tiles for kind in ("match", "cells")]
                await asyncio.gather(*(get(client, "tile", path, text) for path in paths))
                await asyncio.sleep(chance.expovariate(1 / PAUSE_S))

    async def watch() -> None:
        while time.perf_counter() < ends:
            await asyncio.sleep(SECONDS / 20)
            memory.append(_resident_mib(pid))

    await asyncio.gather(watch(), *(person(number) for number in range(CLIENTS)))
    half = len(memory) // 2
    return {
        "clients": CLIENTS,
        "requests": sum(statuses.values()),
        "errors": sum(count for status, count in statuses.items() if status >= 400),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "tile_ms": _percentiles(times["tile"]),
        "search_ms": _percentiles(times["search"]),
        "memory_mib": [round(memory[half]), round(memory[-1])],
        "memory_growth": round(memory[-1] / memory[half], 2),
    }


def _tiles(bounds: Sequence[float], chance: random.Random) -> list[Tile]:
    """The 2 x 3 tiles of a view somewhere in the city."""
    west, south, east, north = bounds
    z = chance.choice(ZOOMS)
    lon, lat = chance.uniform(west, east), np.radians(chance.uniform(south, north))
    x = int((lon + 180) / 360 * 2**z)
    y = int((1 - np.arcsinh(np.tan(lat)) / np.pi) / 2 * 2**z)
    return [(z, x + right, y + down) for right in range(3) for down in range(2)]


def _resident_mib(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def _percentiles(found: list[float]) -> dict[str, float]:
    return {name: round(float(np.percentile(found, at)), 1) for name, at in (("p50", 50), ("p95", 95))} if found else {}
