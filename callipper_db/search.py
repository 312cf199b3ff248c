"""Questions to the active model: a thin Python face of SQL."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import dict_row

from callipper_db import db
from callipper_db.errors import BadArea, NoActiveModel, TextUnknown

# An index on emb would answer a filtered search with too few rows, so the filter comes first and the ranking is exact:
# MATERIALIZED keeps the planner from merging the two.
NEAREST_CELLS = """
WITH inside AS MATERIALIZED (
    SELECT cell_id, geom, emb FROM callipper.cells
    WHERE %(area)s::text IS NULL OR ST_Intersects(geom, ST_GeomFromEWKT(%(area)s))
), nearest AS (
    SELECT cell_id, geom, emb <#> text_embed(%(text)s) AS minus_similarity
    FROM {cells} ORDER BY emb <-> text_embed(%(text)s) LIMIT %(k)s
)
SELECT cell_id, round((-minus_similarity)::numeric, 4)::float8 AS similarity,
       round(ST_X(ST_Centroid(geom))::numeric, 6)::float8 AS lon, round(ST_Y(ST_Centroid(geom))::numeric, 6)::float8 AS lat,
       ARRAY(SELECT coalesce(p.name, p.category, p.text) FROM callipper.points p
             ORDER BY p.geom <-> ST_Centroid(n.geom) LIMIT 3) AS places
FROM nearest n ORDER BY minus_similarity, cell_id
"""

MOST_CANDIDATES = 1000  # of an HNSW index: pgvector's largest hnsw.ef_search


def nearest_cells(dsn: str, text: str, k: int = 10, within: str | None = None) -> list[dict[str, Any]]:
    """The k cells that fit a text best, best first: cell_id, similarity (cosine), lon, lat, places (the nearest POIs).

    `within`: a bounding box 'west,south,east,north' in degrees, or WKT (SRID 4326 unless it says another); cells that
    touch it count. Raises NoActiveModel, TextUnknown, BadArea.
    """
    by_index = within is None and k <= MOST_CANDIDATES
    query = NEAREST_CELLS.replace("{cells}", "callipper.cells" if by_index else "inside")
    with db.session(dsn) as connection, connection.cursor(row_factory=dict_row) as cursor:
        area = None if within is None else _area(connection, within)
        if connection.execute("SELECT callipper._active_version()").fetchone() == (None,):
            raise NoActiveModel
        if by_index:  # an index looks at 40 candidates unless told, and so returns no more rows than that
            connection.execute("SELECT set_config('hnsw.ef_search', %s, true)", [str(max(100, k))])
        # A literal rather than a parameter would fold text_embed; psycopg sends this query unprepared with its parameters,
        # and PostgreSQL plans such a one with their values, which folds it too.
        try:
            return cursor.execute(query, {"text": text, "k": k, "area": area}).fetchall()
        except (psycopg.errors.NoDataFound, psycopg.errors.InvalidParameterValue) as error:
            hint = error.diag.message_hint or ""
            raise TextUnknown(reason=f"{error.diag.message_primary}. {hint}") from error
        except UnicodeEncodeError as error:
            raise TextUnknown(reason="The text is not valid UTF-8.") from error


def _area(connection: db.Connection, within: str) -> str:
    """EWKT in SRID 4326 of a bounding box or a WKT geometry."""
    if (box := _numbers(within)) is not None:
        west, south, east, north = box
        if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
            raise BadArea(value=within, reason="west must lie west of east, and south of north")
        return f"SRID=4326;POLYGON(({west} {south},{east} {south},{east} {north},{west} {north},{west} {south}))"
    try:
        with connection.transaction():
            row = connection.execute(
                "SELECT ST_AsEWKT(ST_Transform(CASE WHEN ST_SRID(g) = 0 THEN ST_SetSRID(g, 4326) ELSE g END, 4326))"
                " FROM ST_GeomFromEWKT(%s) g",
                [within],
            ).fetchone()
    except (UnicodeEncodeError, psycopg.Error) as error:
        raise BadArea(value=within, reason=str(error).splitlines()[0]) from error
    assert row is not None
    return str(row[0])


def _numbers(within: str) -> list[float] | None:
    """The four numbers of a bounding box; None for anything else (a triangle in WKT has three commas too)."""
    try:
        numbers = [float(part) for part in within.split(",")]
    except ValueError:
        return None
    return numbers if len(numbers) == 4 else None
