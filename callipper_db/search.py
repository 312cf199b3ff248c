"""Questions to the active model: thin Python functions over SQL."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row

from callipper_db import db
from callipper_db.errors import BadArea, BadPlace, LanguageUnknown, TextUnknown, UnknownModel
from callipper_db.languages import ENGLISH
from callipper_db.models import active_version

Note = Callable[[str], None]


def silent(_: str) -> None:
    """Warn nobody."""


SHARED_M = (
    300.0  # two versions give the same place where their cells are at most this far apart: of one crossing, on any grid
)
FIT = """round(a.similarity::numeric, 4)::float8 AS similarity, round(a.percentile::numeric, 1)::float8 AS percentile"""
CENTRE = """round(ST_X({geom})::numeric, 6)::float8 AS lon, round(ST_Y({geom})::numeric, 6)::float8 AS lat"""
CELLS = f"""
SELECT a.cell_id, {FIT}, {CENTRE.format(geom="ST_Centroid(a.geom)")}, {{reasons}}
       ARRAY(SELECT coalesce(p.name, p.category, p.text) FROM callipper.points p
             ORDER BY p.geom OPERATOR(@extschema:postgis@.<->) ST_Centroid(a.geom) LIMIT 3) AS places
FROM {{answer}} ORDER BY a.rank
"""
SEARCH = CELLS.format(
    reasons="a.relevant, round(a.lift::numeric, 2)::float8 AS lift, a.because,",
    answer="callipper.search(%(text)s, %(k)s, ST_GeomFromEWKT(%(area)s::text))"
    " WITH ORDINALITY AS a(cell_id, geom, similarity, percentile, relevant, lift, because, rank)",
)
COMPARED = f"""
WITH first AS (SELECT * FROM callipper.search(%(text)s, %(k)s, NULL, %(first)s) WITH ORDINALITY AS a({{columns}})),
     second AS (SELECT * FROM callipper.search(%(text)s, %(k)s, NULL, %(second)s) WITH ORDINALITY AS a({{columns}}))
SELECT is_first, {FIT}, {CENTRE.format(geom="ST_Centroid(a.geom)")}, a.relevant, round(a.lift::numeric, 2)::float8 AS lift,
    a.because, EXISTS (SELECT FROM second s WHERE a.is_first AND ST_DWithin(
        ST_Centroid(a.geom)::@geography, ST_Centroid(s.geom)::@geography, float8 '{SHARED_M:g}', true)) AS shared
FROM (SELECT true AS is_first, * FROM first UNION ALL SELECT false, * FROM second) AS a ORDER BY is_first DESC, a.rank
""".format(columns="cell_id, geom, similarity, percentile, relevant, lift, because, rank")
SIMILAR = CELLS.format(
    reasons="",
    answer="callipper.similar_to(ST_GeomFromEWKT(%(place)s::text), %(k)s, ST_GeomFromEWKT(%(area)s::text), %(min_distance_m)s)"
    " WITH ORDINALITY AS a(cell_id, geom, similarity, percentile, rank)",
)
POINTS = f"""
SELECT a.point_id, a.name, a.category, a.text, {FIT}, {CENTRE.format(geom="a.geom")}, a.because
FROM callipper.search_points(%(text)s, %(k)s, ST_GeomFromEWKT(%(area)s::text))
    WITH ORDINALITY AS a(point_id, name, category, text, geom, similarity, percentile, because, rank)
ORDER BY a.rank
"""
DESCRIBE = f"""
SELECT a.text, {FIT}, a.pois, round(a.lift::numeric, 2)::float8 AS lift, a.because
FROM callipper.describe(ST_GeomFromEWKT(%(place)s::text), %(k)s, language => %(language)s)
    WITH ORDINALITY AS a(text, similarity, percentile, pois, lift, because, rank)
ORDER BY a.rank
"""
# A place may be any geometry; its POIs are those that describe() looks at. The box lets an index find them.
SURROUNDINGS = """
SELECT ST_Dimension(g) = 2 AS is_area, ST_Intersects(m.extent, g) AS inside,
       ST_Intersects(m.extent, ST_FlipCoordinates(g)) AS inside_if_swapped, ST_AsText(ST_FlipCoordinates(g), 6) AS swapped,
       (SELECT count(*) FROM callipper.points p WHERE ST_Intersects(p.geom, g)) AS pois_inside,
       ARRAY(SELECT (
                SELECT count(*) FROM callipper.points p
                WHERE p.geom OPERATOR(@extschema:postgis@.&&) ST_Buffer(ST_Centroid(g)::@geography, r.m + 1)::@geometry
                    AND ST_DWithin(p.geom::@geography, ST_Centroid(g)::@geography, r.m, true)
            ) FROM unnest('{250,500,1000}'::float8[]) WITH ORDINALITY AS r(m, place) ORDER BY r.place) AS pois_within
FROM callipper.model m, ST_GeomFromEWKT(%(place)s::text) g WHERE m.status = 'active'
"""


def nearest_cells(
    dsn: str, text: str, k: int = 10, within: str | None = None, warn: Note = silent
) -> list[dict[str, Any]]:
    """The k cells that fit a text best, best first.

    Keys: cell_id, similarity (cosine), percentile, lon, lat, relevant, lift, because, places.
    `percentile`: how many percent of the city's cells fit less well, None for a model without a sample. `relevant`: how many
    POIs that the text asks for stand within 250 m; `lift`: their share there over their share in the city; `because`: up to
    three of them. All three are None for a cell that comes by its embedding alone. `places`: the three nearest POIs.
    `within`: a bounding box 'west,south,east,north' in degrees, or WKT (SRID 4326 unless it says another); cells that touch
    it count. `warn` gets warnings about the text, such as that the encoder knows none of its words. Raises NoActiveModel,
    TextUnknown, BadArea.
    """
    with _asking(dsn) as connection:
        return _for_text(connection, SEARCH, text, k, within, warn)


def nearest_points(
    dsn: str, text: str, k: int = 10, within: str | None = None, warn: Note = silent
) -> list[dict[str, Any]]:
    """The k training POIs that fit a text best: point_id, name, category, text, similarity, percentile, lon, lat, because.

    `because`: 'name' where the POI's name holds the words of the text, 'kind' where the text asks for its kind, 'words' where
    the POI's own words are near to the text, or its name holds the words but it is of another kind, None where the embedding
    of its place fits. `within` and the errors are those of nearest_cells.
    """
    with _asking(dsn) as connection:
        return _for_text(connection, POINTS, text, k, within, warn)


def compare_answers(
    dsn: str, text: str, first: int, second: int, k: int = 5, warn: Note = silent
) -> dict[str, list[dict[str, Any]]]:
    """What two versions answer to a text, active or not: `first` and `second`, up to k cells each, best first.

    Keys of a cell: similarity, percentile, lon, lat, relevant, lift, because, as nearest_cells has them, and `shared`: whether
    the second version has a cell within 300 m of this one of the first. Raises UnknownModel, TextUnknown.
    """
    for version in (first, second):
        if not 0 < version < 2**31:
            raise UnknownModel(version=version)
    with db.session(dsn) as connection:  # neither needs to be active
        try:
            rows = _for_text(connection, COMPARED, text, k, None, warn, first=first, second=second)
        except psycopg.errors.UndefinedObject as error:
            raise UnknownModel(version=str(error.diag.message_primary).rpartition(" ")[2]) from error
    sides: dict[str, list[dict[str, Any]]] = {"first": [], "second": []}
    for row in rows:
        sides["first" if row.pop("is_first") else "second"].append(row)
    return sides


def similar_cells(
    dsn: str, place: str, k: int = 10, within: str | None = None, min_distance_m: float = 0.0
) -> list[dict[str, Any]]:
    """The k cells that are most like a place, best first: cell_id, similarity, percentile, lon, lat, places.

    `place`: 'LON,LAT' in degrees, or WKT. `min_distance_m`: cells nearer to it do not count; metres in the model's projection.
    Raises NoActiveModel, BadPlace, BadArea.
    """
    with _asking(dsn) as connection:
        area = None if within is None else read_area(connection, within)
        return _about(connection, SIMILAR, place, k=k, area=area, min_distance_m=min_distance_m)


def describe_place(dsn: str, place: str, k: int = 10, language: str = ENGLISH) -> list[dict[str, Any]]:
    """Up to k kinds of places that a place, 'LON,LAT' or WKT, has more of than usual. `text` is in the language.

    Keys: text, similarity (cosine), percentile, pois, lift, because; similarity is None for a kind that the model has not met.
    `pois`: POIs of the kind within 250 m, or farther where few are so near (of a polygon: in it); `lift`: their share there
    over their share in the city; `because`: up to three of them. The three are None for a model of an earlier program. Raises
    NoActiveModel, BadPlace, LanguageUnknown.
    """
    with _asking(dsn) as connection:
        try:
            return _about(connection, DESCRIBE, place, k=k, language=language)
        except psycopg.errors.UndefinedObject as error:
            raise LanguageUnknown(language=language, reason=_with_hint(error)) from error


def why_no_description(dsn: str, place: str) -> str:
    """One sentence on why describe_place returns nothing for a place. Raises NoActiveModel, BadPlace."""
    with _asking(dsn) as connection:
        (found,) = _about(connection, SURROUNDINGS, place)
    where, pois = "in the area", found["pois_inside"]
    if not found["is_area"]:  # as callipper._describe_reach_m()
        reach = next((n for n, count in enumerate(found["pois_within"][:2]) if count >= 5), 2)
        where, pois = f"within {('250 m', '500 m', '1 km')[reach]} of the place", found["pois_within"][reach]
    if pois:
        return f"Nothing stands out: the {pois:,} POIs {where} are a mix that is usual in the city."
    if found["inside"]:
        return f"There are no POIs {where}."
    if not found["inside_if_swapped"]:
        return "The place is outside of the area that the model was trained on, and there are no POIs around it."
    return (
        "The place is outside of the area that the model was trained on. Did you swap longitude and latitude? Try:"
        f" callipper-db describe {_swap(place, found['swapped'])}"
    )


def _swap(place: str, swapped_wkt: str) -> str:
    """A place with its axes swapped, in the form in which it was given."""
    if _numbers(place, 2) is None:
        return shlex.quote(swapped_wkt)
    return ",".join(reversed([part.strip() for part in place.split(",")]))


@contextmanager
def _asking(dsn: str) -> Iterator[db.Connection]:
    """A session with an active model."""
    with db.session(dsn) as connection:
        active_version(connection)
        yield connection


def _for_text(
    connection: db.Connection, query: str, text: str, k: int, within: str | None, warn: Note, **values: object
) -> list[dict[str, Any]]:
    connection.add_notice_handler(lambda notice: _pass_on(notice, warn))
    area = None if within is None else read_area(connection, within)
    try:
        return _rows(connection, query, text=text, k=k, area=area, **values)
    except (psycopg.errors.NoDataFound, psycopg.errors.InvalidParameterValue) as error:
        raise TextUnknown(reason=_with_hint(error)) from error
    except UnicodeEncodeError as error:
        raise TextUnknown(reason="The text is not valid UTF-8.") from error


def _pass_on(notice: psycopg.errors.Diagnostic, warn: Note) -> None:
    if notice.severity_nonlocalized == "WARNING":
        warn(f"Warning: {notice.message_primary}. {notice.message_hint or ''}")


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


def read_area(connection: db.Connection, within: str) -> str:
    """EWKT in SRID 4326 of a bounding box or a WKT geometry. Raises BadArea."""
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
    """`count` numbers separated by commas; None for anything else (a triangle in WKT has three commas too)."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    return numbers if len(numbers) == count else None
