"""Where a city has changed between two states of its POIs: thin Python functions over SQL."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import dict_row

from callipper_db import db
from callipper_db.errors import StatesUnusable
from callipper_db.models import active_version
from callipper_db.search import CENTRE, read_area

CHANGED = f"""
SELECT a.cell_id, {CENTRE.format(geom="ST_Centroid(a.geom)")}, round(a.moved::numeric, 4)::float8 AS moved,
    a.towards, a.away, a.added, a.removed, a.changed
FROM callipper.changed(%(old)s::int4, %(new)s::int4, %(k)s, ST_GeomFromEWKT(%(area)s::text))
    WITH ORDINALITY AS a(cell_id, geom, moved, towards, away, added, removed, changed, rank)
ORDER BY a.rank
"""


def changed_cells(
    dsn: str, old: int | None = None, new: int | None = None, k: int = 10, within: str | None = None
) -> list[dict[str, Any]]:
    """The k cells of the active model that have moved most between two kept states, the one that moved most first.

    Keys: cell_id, lon, lat (of the middle), moved (distance of the two embeddings, 0 to 2), towards, away (kinds of places of
    which there are more or fewer within 250 m), added, removed, changed (the POIs that made it); the last five are None where
    there is nothing to say. old: None for the last state kept. new: None for today. within: as in search.nearest_cells.
    Raises NoActiveModel, StatesUnusable, BadArea.
    """
    with db.session(dsn) as connection, connection.cursor(row_factory=dict_row) as cursor:
        active_version(connection)
        area = None if within is None else read_area(connection, within)
        try:
            query = connection.named(CHANGED)
            return cursor.execute(query, {"old": old, "new": new, "k": k, "area": area}).fetchall()
        except (
            psycopg.errors.ObjectNotInPrerequisiteState,
            psycopg.errors.UndefinedObject,
            psycopg.errors.InvalidParameterValue,
        ) as error:
            reason = f"{error.diag.message_primary}. {error.diag.message_hint or ''}"
            raise StatesUnusable(reason=reason) from error


def kept_states(dsn: str) -> list[dict[str, Any]]:
    """The kept states of the active model, the earliest first: state, replaced_at, pois.

    pois: how many POIs are otherwise in the next state, or today. Raises NoActiveModel.
    """
    with db.session(dsn) as connection, connection.cursor(row_factory=dict_row) as cursor:
        active_version(connection)
        return cursor.execute("SELECT state, replaced_at, pois FROM callipper.list_states()").fetchall()
