"""The map under load: 50 people pan and ask on 202,500 cells for a minute; and its tiles beside a bare ST_AsMVT.

The vectors are made up, as in the benchmark `search`.
"""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
import time
from collections import Counter
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
BARE = """
SELECT ST_AsMVT(t, 'cells', 4096, 'geom', 'id') FROM (
    SELECT c.cell_id AS id,
        ST_AsMVTGeom(ST_Transform(c.geom, 3857), ST_TileEnvelope(%(z)s, %(x)s, %(y)s), 4096, 64, true) AS geom
    FROM callipper.cell c WHERE c.grid_id = %(grid)s AND c.geom && ST_Transform(ST_TileEnvelope(%(z)s, %(x)s, %(y)s), 4326)
) t
"""
OURS = "SELECT callipper._match_tile(%(z)s, %(x)s, %(y)s, %(version)s, %(vector)s::vector)"
BARS = {"errors": 0, "memory_growth": 1.2}

Tile = tuple[int, int, int]


def run(city: City) -> dict[str, Any]:
    """Serve, load, measure, in a database of its own."""
    dsn = _make_city(city.server)
    with user_session(dsn) as connection:
        version, cells, west, south, east, north = (
            connection.execute(
                "SELECT min(model_version), count(*), min(lon), min(lat), max(lon), max(lat) FROM callipper_map.cell"
            ).fetchone()
            or ()
        )
        texts = connection.execute(
            "SELECT text FROM callipper.text_embedding WHERE version = %s ORDER BY text LIMIT %s", [version, QUESTIONS]
        ).fetchall()
    bounds = (west, south, east, north)
    beside = _beside_bare(dsn, version, bounds, texts[0][0])
    loaded = _load(dsn, bounds, [text for (text,) in texts])
    holds = loaded["errors"] <= BARS["errors"] and loaded["memory_growth"] <= BARS["memory_growth"]
    return {"cells": cells, **loaded, "one_tile_ms": beside, "bars": BARS, "holds": holds}


def _make_city(server: EmbeddedServer) -> str:
    """The DSN of a city with made-up vectors."""
    server.start()
    with user_session(server.administrator_dsn(), autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS bench_map WITH (FORCE)")
        admin.execute("CREATE DATABASE bench_map TEMPLATE template0 ENCODING 'UTF8'")
    dsn = make_conninfo(server.administrator_dsn(), dbname="bench_map")
    with user_session(dsn, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION postgis")
        connection.execute("CREATE EXTENSION vector")
    schema.init(dsn)
    with user_session(dsn) as connection:
        make_model(connection, SIDE)
    return dsn


def _beside_bare(dsn: str, version: int, bounds: tuple[float, ...], text: str) -> dict[str, Any]:
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


def _load(dsn: str, bounds: tuple[float, ...], texts: list[str]) -> dict[str, Any]:
    server = subprocess.Popen(
        [sys.executable, "-m", "callipper_db", "map", "--dsn", dsn, "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        address = re.search(r"http://\S+", server.stdout.readline())
        assert address is not None
        return asyncio.run(_clients(address[0].rstrip("/"), server.pid, bounds, texts))
    finally:
        server.terminate()
        server.wait()


async def _clients(address: str, pid: int, bounds: tuple[float, ...], texts: list[str]) -> dict[str, Any]:
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
            statuses[599] += 1
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
        "tile_ms": _percentiles(times["tile"]),
        "search_ms": _percentiles(times["search"]),
        "memory_mib": [round(memory[half]), round(memory[-1])],
        "memory_growth": round(memory[-1] / memory[half], 2),
    }


def _tiles(bounds: tuple[float, ...], chance: random.Random) -> list[Tile]:
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
