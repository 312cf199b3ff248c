"""Keep what a refresh replaces, so that `changed()` can compare two states of the POIs.

The smallest state that answers: the POIs that differ, as they were, and the embeddings of the cells near them. The rest of the
state is what is there today. So a later refresh adds to the newest state what it replaces, also if it is not asked to keep one.
"""

from __future__ import annotations

import numpy as np
from psycopg import sql
from scipy.spatial import KDTree

from callipper_db import binary_copy, partitions
from callipper_db.arrays import Array
from callipper_db.db import Connection
from callipper_trainer.embed import embed_places
from callipper_trainer.refresh.plan import RefreshPlan
from callipper_trainer.standing_out import REACH_M


def begin_state(connection: Connection, version: int, keep: int) -> int:
    """Begin a state of a version, and forget all but the `keep` newest; returns its number."""
    (state,) = connection.one("SELECT callipper._begin_state(%s::int4, %s::int4)", [version, keep])
    return int(state)


def forget_states(connection: Connection, version: int, keep: int) -> None:
    """Forget the states of a version but the `keep` newest."""
    connection.execute("SELECT callipper._forget_states(%s::int4, %s::int4)", [version, keep])


def keep_replaced(connection: Connection, plan: RefreshPlan) -> None:
    """Add to the newest state of the version, if it has one, what the plan is about to replace. Call it first."""
    (state,) = connection.one("SELECT max(state) FROM callipper.kept_state WHERE version = %s", [plan.version])
    found = plan.found
    differing = np.concatenate([found.added, found.changed])
    ids = np.concatenate([found.removed, plan.samples.point_id[differing]])
    if state is None or not len(ids):
        return
    connection.execute("SELECT callipper._keep_points(%s::int4, %s::int8[])", [plan.version, ids.tolist()])
    were = _places_kept(connection, plan.version, state, ids)
    near = _rows_near(plan.grid.centre, np.concatenate([were, plan.samples.metres[differing]]))
    _keep_cells(connection, plan, state, near)


def _places_kept(connection: Connection, version: int, state: int, ids: Array) -> Array:
    """(N, 2) easting and northing of the kept POIs among some, as they were."""
    rows = connection.execute(
        connection.named(
            "SELECT ST_X(p), ST_Y(p) FROM callipper.kept_point k JOIN callipper.model m USING (version),"
            " LATERAL (SELECT ST_Transform(k.geom, m.srid) AS p OFFSET 0) AS l"
            " WHERE k.version = %s AND k.state = %s AND k.point_id = ANY(%s) AND k.geom IS NOT NULL"
        ),
        [version, state, ids.tolist()],
    ).fetchall()
    return np.array(rows, np.float64).reshape(-1, 2)


def _rows_near(centres: Array, places: Array) -> Array:
    """Rows of the centres (C, 2) within REACH_M of one of the places (N, 2), metres."""
    distance, _ = KDTree(places).query(centres, distance_upper_bound=REACH_M + 1)
    return np.flatnonzero(distance <= REACH_M)


def _keep_cells(connection: Connection, plan: RefreshPlan, state: int, near: Array) -> None:
    """Keep the embeddings of some rows of the grid. A cell that is new to the grid gets the one that it would have had."""
    old = near[near < len(plan.grid.cell_id) - plan.new_cells]
    new = near[len(old) :]
    connection.execute(
        sql.SQL(
            "INSERT INTO callipper.kept_cell (version, state, cell_id, easting, northing, emb)"
            " SELECT %s, %s, c.cell_id, c.easting, c.northing, e.emb"
            " FROM unnest(%s::int8[], %s::float8[], %s::float8[]) AS c(cell_id, easting, northing)"
            " JOIN {} e ON e.cell_id = c.cell_id ON CONFLICT DO NOTHING"
        ).format(partitions.partition("cell_embedding", plan.version)),
        [plan.version, state, plan.grid.cell_id[old].tolist(), *plan.grid.centre[old].T.tolist()],
    )
    columns: binary_copy.Columns = {
        "version": ("int4", plan.version),
        "state": ("int4", state),
        "cell_id": ("int8", plan.grid.cell_id[new]),
        "easting": ("float8", plan.grid.centre[new, 0]),
        "northing": ("float8", plan.grid.centre[new, 1]),
        "emb": ("vector", embed_places(plan.before, plan.grid.centre[new])),
    }
    binary_copy.write_rows(connection, sql.Identifier("callipper", "kept_cell"), columns)
