"""The four cities, each in a database of its own and as arrays: POIs, and the cells that a published model has."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from psycopg import sql

from benchmarks.city import LONDON, OPTIONS
from benchmarks.other_city import CITIES as AMENITY_CITIES
from benchmarks.other_city import cut
from benchmarks.sessions import user_session
from callipper_db import schema
from callipper_db.arrays import Array
from callipper_db.grid import ensure_grid
from callipper_db.load import LoadOptions, load
from callipper_db.server import EmbeddedServer

MONACO = Path(__file__).resolve().parents[2] / "demo" / "monaco.osm.pbf"
SRID = {
    "london": 27700,
    "monaco": 32632,
    "berlin": 32633,
    "tokyo": 32654,
}  # metres; but for London, what `train` chooses
CELL_M = 100.0


@dataclass(frozen=True)
class AnswerCity:
    """N POIs and C cells of a city."""

    name: str
    dsn: str  # of a database that holds the POIs and the grid
    poi_id: Array  # (N,) int64
    names: list[str]  # (N,), "" for a POI without a name
    categories: list[str]  # (N,)
    lonlat: Array  # (N, 2) degrees
    metres: Array  # (N, 2) in EPSG:SRID
    cell_id: Array  # (C,) int64
    cells: Array  # (C, 2) centres in metres

    def __len__(self) -> int:
        return len(self.poi_id)

    @cached_property
    def whole_texts(self) -> list[str]:
        """(N,) 'name, category', or the category of a POI without a name."""
        pairs = zip(self.names, self.categories, strict=True)
        return [f"{name}, {category}" if name else category for name, category in pairs]

    @cached_property
    def texts(self) -> list[str]:
        """(V,) the distinct whole texts, sorted."""
        return sorted(set(self.whole_texts))

    @cached_property
    def text_id(self) -> Array:
        """(N,) int32, row of each POI in `texts`."""
        number = {text: row for row, text in enumerate(self.texts)}
        return np.array([number[text] for text in self.whole_texts], np.int32)


def read_city(server: EmbeddedServer, name: str) -> AnswerCity:
    """Load a city into a new database, unless it is there, and read it."""
    dsn = _database(server, name)
    with user_session(dsn) as connection:
        rows = connection.execute(
            "SELECT p.poi_id, coalesce(p.name, ''), coalesce(p.category, ''), ST_X(p.geom), ST_Y(p.geom), ST_X(m), ST_Y(m)"
            " FROM callipper.poi p, LATERAL (SELECT ST_Transform(p.geom, %s) AS m OFFSET 0) t ORDER BY p.poi_id",
            [SRID[name]],
        ).fetchall()
        poi_id, names, categories, *numbers = zip(*rows, strict=True)
        lon, lat, easting, northing = (np.array(column, np.float64) for column in numbers)
        metres = np.column_stack([easting, northing])
        grid = ensure_grid(connection, metres, SRID[name], CELL_M)
        connection.commit()
    return AnswerCity(
        name,
        dsn,
        np.array(poi_id, np.int64),
        list(names),
        list(categories),
        np.column_stack([lon, lat]),
        metres,
        grid.cell_id,
        grid.centre,
    )


def read_names(name: str) -> tuple[list[str], list[str]]:
    """(N,) names and (N,) categories of a city's POIs, by a server that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="callipper-answers-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        server = EmbeddedServer(home)
        server.start()
        try:
            city = read_city(server, name)
        finally:
            server.stop()
    return city.names, city.categories


def _database(server: EmbeddedServer, name: str) -> str:
    """The DSN of a database `answers_<name>` with the city's POIs."""
    database = f"answers_{name}"
    with user_session(server.administrator_dsn(), autocommit=True) as admin:
        if admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database]).fetchone() is None:
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
    dsn = server.administrator_dsn(database)
    schema.init(dsn)
    with user_session(dsn, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM callipper.poi LIMIT 1").fetchone() is None:
            LOADERS.get(name, _load_amenities)(dsn, name)
            connection.execute("ANALYZE callipper.poi")
    return dsn


def _load_london(dsn: str, name: str) -> None:
    load(dsn, [LONDON], OPTIONS)


def _load_monaco(dsn: str, name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="callipper-city-") as folder:
        load(dsn, [MONACO], LoadOptions(rejects=Path(folder) / "rejects.csv"))


def _load_amenities(dsn: str, name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="callipper-city-") as folder:
        pois = cut(AMENITY_CITIES[name], Path(folder) / f"{name}.csv")
        load(dsn, [pois], LoadOptions(source="osm", rejects=Path(folder) / "rejects.csv"))


LOADERS: dict[str, Callable[[str, str], None]] = {"london": _load_london, "monaco": _load_monaco}
