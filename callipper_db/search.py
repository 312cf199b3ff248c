"""Questions to the active model: a thin Python face of SQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row

from callipper_db import db
from callipper_db.errors import BadArea, BadPlace, TextUnknown
from callipper_db.models import active_version

CELLS = """
SELECT a.cell_id, round(a.similarity::numeric, 4)::float8 AS similarity, round(a.percentile::numeric, 1)::float8 AS percentile,
       round(ST_X(ST_Centroid(a.geom))::numeric, 6)::float8 AS lon, round(ST_Y(ST_Centroid(a.geom))::numeric, 6)::float8 AS lat,
       ARRAY(SELECT coalesce(p.name, p.category, p.text) FROM callipper.points p
             ORDER BY p.geom OPERATOR(@extschema:postgis@.<->) ST_Centroid(a.geom) LIMIT 3) AS places
FROM {answer} WITH ORDINALITY AS a(cell_id, geom, similarity, percentile, rank) ORDER BY a.rank
"""
SEARCH = CELLS.format(answer="callipper.search(%(text)s, %(k)s, ST_GeomFromEWKT(%(area)s::text))")
SIMILAR = CELLS.format(
    answer="callipper.similar_to(ST_GeomFromEWKT(%(place)s::text), %(k)s, ST_GeomFromEWKT(%(area)s::text), %(min_distance_m)s)"
)
DESCRIBE = """
SELECT a.text, round(a.similarity::numeric, 4)::float8 AS similarity, round(a.percentile::numeric, 1)::float8 AS percentile
FROM callipper.describe(ST_GeomFromEWKT(%(place)s::text), %(k)s) WITH ORDINALITY AS a(text, similarity, percentile, rank)
ORDER BY a.rank
"""


def nearest_cells(dsn: str, text: str, k: int = 10, within: str | None = None) -> list[dict[str, Any]]:
    """The k cells that fit a text best, best first: cell_id, similarity (cosine), percentile, lon, lat, places (nearest POIs).

    `percentile`: how many percent of the city's cells fit less well, None for a model without a sample. `within`: a bounding
    box 'west,south,east,north' in degrees, or WKT (SRID 4326 unless it says another); cells that touch it count. Raises
    NoActiveModel, TextUnknown, BadArea.
    """
    with _asking(dsn) as connection:
        area = None if within is None else _area(connection, within)
        try:
            return _rows(connection, SEARCH, text=text, k=k, area=area)
        except (psycopg.errors.NoDataFound, psycopg.errors.InvalidParameterValue) as error:
            raise TextUnknown(reason=_with_hint(error)) from error
        except UnicodeEncodeError as error:
            raise TextUnknown(reason="The text is not valid UTF-8.") from error


def similar_cells(
    dsn: str, place: str, k: int = 10, within: str | None = None, min_distance_m: float = 0.0
) -> list[dict[str, Any]]:
    """The k cells that are most like a place, best first, with the keys of nearest_cells.

    `place`: 'LON,LAT' in degrees, or WKT. `min_distance_m`: cells nearer to it do not count; metres in the model's projection.
    Raises NoActiveModel, BadPlace, BadArea.
    """
    with _asking(dsn) as connection:
        area = None if within is None else _area(connection, within)
        return _about(connection, SIMILAR, place, k=k, area=area, min_distance_m=min_distance_m)


def describe_place(dsn: str, place: str, k: int = 10) -> list[dict[str, Any]]:
    """The k texts that say best what a place, 'LON,LAT' or WKT, is like: text, similarity (cosine), percentile.

    Raises NoActiveModel, BadPlace.
    """
    with _asking(dsn) as connection:
        return _about(connection, DESCRIBE, place, k=k)


@contextmanager
def _asking(dsn: str) -> Iterator[db.Connection]:
    """A session with an active model."""
    with db.session(dsn) as connection:
        active_version(connection)
        yield connection


def _rows(connection: db.Connection, query: str, **values: object) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(connection.named(query), values).fetchall()


def _about(connection: db.Connection, query: str, place: str, **values: object) -> list[dict[str, Any]]:
    try:
        return _rows(connection, query, place=_spot(connection, place), **values)
    except psycopg.errors.InvalidParameterValue as error:
        raise BadPlace(value=place, reason=_with_hint(error)) from error


def _with_hint(error: psycopg.Error) -> str:
    return f"{error.diag.message_primary}. {error.diag.message_hint or ''}".strip()


def _spot(connection: db.Connection, place: str) -> str:
    """EWKT in SRID 4326 of a longitude and latitude or a WKT geometry."""
    if (numbers := _numbers(place, 2)) is not None:
        lon, lat = numbers
        if not (-180 <= lon <= 180 and -90 <= lat <= 90):
            raise BadPlace(value=place, reason="longitude comes first, from -180 to 180, then latitude, from -90 to 90")
        return f"SRID=4326;POINT({lon} {lat})"
    try:
        return _ewkt(connection, place)
    except (UnicodeEncodeError, psycopg.Error) as error:
        raise BadPlace(value=place, reason=str(error).splitlines()[0]) from error


def _area(connection: db.Connection, within: str) -> str:
    """EWKT in SRID 4326 of a bounding box or a WKT geometry."""
    if (box := _numbers(within, 4)) is not None:
        west, south, east, north = box
        if not (-180 <= west <= 180 and -180 <= east <= 180 and west != east and -90 <= south < north <= 90):
            raise BadArea(
                value=within, reason="longitudes lie from -180 to 180, latitudes from -90 to 90, south of north"
            )
        sides = [(west, east)] if west < east else [(west, 180.0), (-180.0, east)]  # across the 180th meridian
        boxes = [f"(({x} {south},{z} {south},{z} {north},{x} {north},{x} {south}))" for x, z in sides if x < z]
        return f"SRID=4326;POLYGON{boxes[0]}" if len(boxes) == 1 else f"SRID=4326;MULTIPOLYGON({','.join(boxes)})"
    try:
        return _ewkt(connection, within)
    except (UnicodeEncodeError, psycopg.Error) as error:
        raise BadArea(value=within, reason=str(error).splitlines()[0]) from error


def _ewkt(connection: db.Connection, wkt: str) -> str:
    """A WKT geometry in SRID 4326, which it has if it says no other."""
    with connection.transaction():
        row = connection.execute(
            connection.named(
                "SELECT ST_AsEWKT(ST_Transform(CASE WHEN ST_SRID(g) = 0 THEN ST_SetSRID(g, 4326) ELSE g END, 4326))"
                " FROM ST_GeomFromEWKT(%s::text) g"
            ),
            [wkt],
        ).fetchone()
    assert row is not None
    return str(row[0])


def _numbers(text: str, count: int) -> list[float] | None:
    """So many numbers with commas between; None for anything else (a triangle in WKT has three commas too)."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    return numbers if len(numbers) == count else None
