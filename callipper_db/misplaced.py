"""Files whose coordinates are most likely wrong as a whole: swapped axes, or a wrong CRS.

The rules, for at least MIN_ROWS rows, of which a sample is looked at:

- swapped: nearly all rows lie in the sea, and with longitude and latitude swapped on land;
- swapped: the rows lie far from all POIs of the database, and would lie among them, and on land, when swapped;
- wrong CRS: most rows lie outside of the area that the CRS is made for, or nearly all lie in the sea.

A file of a second city, of a coast or of an island breaks none of them. A file of buoys may; it is loaded all the same.
"""

from __future__ import annotations

from typing import LiteralString

import numpy as np

from callipper_db.area_of_use import area_of_use
from callipper_db.arrays import Array
from callipper_db.db import Connection
from callipper_db.land import on_land
from callipper_db.outliers import FACTOR, MIN_ROWS, SAMPLE, SLACK_KM

NEARLY_ALL = 0.95
MOST = 0.5
EARTH_KM = 12742  # diameter

# Whole pages are chosen, because it is not worth to read all of a large table.
PLACES: LiteralString = """
SELECT {x}, {y} FROM {table} TABLESAMPLE SYSTEM ({percent}) ORDER BY hashfloat8({x} + {y}) LIMIT {rows}"""
PAGES = 20  # times as many rows as are looked at stand in the pages

LOADED_ROWS = "SELECT reltuples FROM pg_class WHERE oid = 'callipper.poi'::regclass"  # -1 if nobody knows


def doubts(connection: Connection, rows: int, srid: int, swap: str) -> list[str]:
    """What the user should look at in the `rows` rows of poi_load, which have longitudes and latitudes.

    srid: of the coordinates in the file. swap: how the user swaps the axes.
    """
    staged = _places(connection, "x", "y", "poi_load", rows)
    if len(staged) < MIN_ROWS:
        return []
    turned = staged[:, ::-1]
    at_sea, turned_on_land = ~on_land(*staged.T), on_land(*turned.T)
    found = []
    if at_sea.mean() >= NEARLY_ALL and turned_on_land.mean() >= NEARLY_ALL:
        found.append(
            f"{_share(at_sea)} lie in the sea, and would lie on land with longitude and latitude swapped. If they are, {swap}"
        )
    elif turned_on_land.mean() >= NEARLY_ALL and _would_be_near(connection, staged, turned):
        found.append(
            "all rows lie far from the POIs of the database, and would lie among them with longitude and latitude swapped."
            f" If these are swapped, and not those, {swap}"
        )
    elif srid != 4326:
        found += _doubts_of_crs(staged, at_sea, srid)
    return [f"{doubt}. Loaded all the same" for doubt in found]


def _doubts_of_crs(staged: Array, at_sea: Array, srid: int) -> list[str]:
    area = area_of_use(srid)
    outside = np.zeros(len(staged), bool) if area is None else ~area.holds(*staged.T)
    look = "Check the CRS (--srid), and that easting and northing are not swapped"
    if outside.mean() > MOST:
        return [f"{_share(outside)} lie outside of the area that EPSG:{srid} is made for. {look}"]
    if at_sea.mean() >= NEARLY_ALL:
        return [f"{_share(at_sea)} lie in the sea, by their coordinates in EPSG:{srid}. {look}"]
    return []


def _would_be_near(connection: Connection, staged: Array, turned: Array) -> bool:
    (count,) = connection.one(LOADED_ROWS)
    loaded = _places(connection, "ST_X(geom)", "ST_Y(geom)", "callipper.poi", count)
    if len(loaded) < MIN_ROWS:
        return False
    middle = np.median(loaded, axis=0)
    reach = float(np.quantile(_distance(loaded, middle), 0.99))
    far = _distance(staged, middle) > FACTOR * reach + SLACK_KM
    return bool(far.all() and (_distance(turned, middle) <= reach + SLACK_KM).mean() >= NEARLY_ALL)


def _places(connection: Connection, x: LiteralString, y: LiteralString, table: LiteralString, count: float) -> Array:
    """(N, 2) longitudes and latitudes of a sample of a table of `count` rows."""
    percent = min(100, 100 * PAGES * SAMPLE / max(count, 1))
    query = PLACES.format(x=x, y=y, table=table, percent=f"{percent:.4f}", rows=SAMPLE)
    return np.array(connection.execute(connection.named(query)).fetchall(), float).reshape(-1, 2)


def _distance(places: Array, middle: Array) -> Array:
    """Kilometres (N,) on a sphere."""
    (x, y), (mx, my) = np.radians(places).T, np.radians(middle)
    half = np.sin((y - my) / 2) ** 2 + np.cos(y) * np.cos(my) * np.sin((x - mx) / 2) ** 2
    found: Array = EARTH_KM * np.arcsin(np.sqrt(np.minimum(1, half)))
    return found


def _share(which: Array) -> str:
    return "all rows" if which.all() else f"{which.mean():.0%} of the rows"
