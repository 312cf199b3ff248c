"""Write a refresh into the database: only the rows that differ, in one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from psycopg import sql

from callipper_db import binary_copy, partitions
from callipper_db.db import Connection
from callipper_db.errors import UnknownModel
from callipper_db.tables import PARTITIONED
from callipper_trainer.cell_summary import summarise_cells
from callipper_trainer.features import lattice_columns
from callipper_trainer.kinds import plain_names, write_kinds, write_point_kinds, write_point_names
from callipper_trainer.publish import begin_writing, draw_sample, insert_texts
from callipper_trainer.refresh.keep import keep_replaced
from callipper_trainer.refresh.plan import RefreshPlan

ANALYSE_FROM = 0.1  # share of a table's rows that a refresh writes, from which it runs ANALYZE


@contextmanager
def version_locked(connection: Connection, version: int) -> Iterator[None]:
    """One transaction in which neither drop_model nor activate can run; readers can. Raises UnknownModel."""
    with connection.transaction():
        begin_writing(connection)
        if not connection.execute("SELECT 1 FROM callipper.model WHERE version = %s", [version]).fetchone():
            raise UnknownModel(version=version)
        yield


def write_plan(connection: Connection, plan: RefreshPlan) -> int:
    """Write the plan in the caller's transaction; returns how many texts are new."""
    keep_replaced(connection, plan)
    _write_lattices(connection, plan)
    _write_cells(connection, plan)
    _write_points(connection, plan)
    _write_evidence(connection, plan)
    _write_sample(connection, plan)
    texts = _write_texts(connection, plan)
    _widen_extent(connection, plan)
    _analyse(connection, plan)
    summarise_cells(connection, plan.version, plan.seed)
    connection.execute("SELECT callipper._announce_change()")
    connection.execute("SELECT callipper._write_map()")
    return texts


def _write_lattices(connection: Connection, plan: RefreshPlan) -> None:
    with _temporary(connection, "lattice_change", "level int4, i int4, j int4, n float4, code_sum @vector") as table:
        for lattice in plan.lattices:
            binary_copy.write_rows(connection, table, lattice_columns(lattice.number, lattice.now))
        _execute(
            connection,
            plan,
            "DELETE FROM callipper.context_cell c USING pg_temp.lattice_change l WHERE c.version = {version}"
            " AND c.level = l.level AND c.i = l.i AND c.j = l.j AND l.n = 0",
        )
        _execute(
            connection,
            plan,
            "INSERT INTO callipper.context_cell (version, level, i, j, n, code_sum)"
            " SELECT {version}, level, i, j, n, code_sum FROM pg_temp.lattice_change WHERE n > 0"
            " ON CONFLICT (version, level, i, j) DO UPDATE SET n = excluded.n, code_sum = excluded.code_sum",
        )


def _write_cells(connection: Connection, plan: RefreshPlan) -> None:
    columns: binary_copy.Columns = {
        "cell_id": ("int8", plan.grid.cell_id[plan.cells]),
        "emb": ("vector", plan.cell_vectors),
    }
    with _temporary(connection, "cell_change", "cell_id int8, emb @vector") as table:
        binary_copy.write_rows(connection, table, columns)
        _execute(
            connection,
            plan,
            "INSERT INTO {cell_embedding} AS e (version, cell_id, emb) SELECT {version}, cell_id, emb FROM pg_temp.cell_change"
            " ON CONFLICT (cell_id, version) DO UPDATE SET emb = excluded.emb"
            " WHERE e.emb OPERATOR(@extschema:vector@.<>) excluded.emb",
        )


def _write_points(connection: Connection, plan: RefreshPlan) -> None:
    samples, found, chosen = plan.samples, plan.found, plan.points
    texts = np.array([text.encode() for text in samples.texts], dtype=object)
    columns: binary_copy.Columns = {
        "point_id": ("int8", samples.point_id[chosen]),
        "text": ("text", texts[samples.text_id[chosen]]),
        "geom": ("point", samples.lonlat[chosen]),
        "emb": ("vector", plan.point_vectors),
        "name": ("text", [name.encode() for name in plain_names(samples.take(chosen))]),
        "as_before": ("int4", ~np.isin(chosen, np.concatenate([found.added, found.changed]))),
    }
    types = "point_id int8, text text, geom @geometry, emb @vector, name text, as_before int4"
    with _temporary(connection, "point_change", types) as table:
        binary_copy.write_rows(connection, table, columns)
        _execute(
            connection,
            plan,
            "INSERT INTO {point_embedding} AS e (version, point_id, text, geom, emb, name, trained)"
            " SELECT {version}, point_id, text, geom, emb, name, as_before::boolean FROM pg_temp.point_change"
            " ON CONFLICT (point_id, version) DO UPDATE SET text = excluded.text, geom = excluded.geom, emb = excluded.emb,"
            " name = excluded.name,"
            " trained = e.trained AND excluded.trained"
            " WHERE NOT excluded.trained OR e.emb OPERATOR(@extschema:vector@.<>) excluded.emb",
        )
    _execute(connection, plan, "DELETE FROM {point_embedding} WHERE point_id = ANY(%s)", [found.removed.tolist()])


def _write_evidence(connection: Connection, plan: RefreshPlan) -> None:
    """Write kinds and names of the POIs that differ."""
    if plan.evidence is None:
        return
    write_kinds(connection, plan.version, plan.evidence.new_kinds)
    gone = np.concatenate([plan.found.removed, plan.evidence.samples.point_id])
    if len(gone):
        names = plan.evidence.text_vectors
        _execute(connection, plan, "DELETE FROM {point_kind} WHERE point_id = ANY(%s)", [gone.tolist()])
        write_point_kinds(connection, plan.version, plan.evidence.kinds, plan.evidence.samples)
        if names is not None:
            _execute(connection, plan, "DELETE FROM {point_name} WHERE point_id = ANY(%s)", [gone.tolist()])
            write_point_names(connection, plan.version, plan.evidence.samples, names)
        connection.execute("SELECT callipper._count_evidence(%s)", [plan.version])


def _write_sample(connection: Connection, plan: RefreshPlan) -> None:
    """Write the sample of cells that a new version would draw, and the distances of the vocabulary from it."""
    cell_id = np.sort(plan.grid.cell_id)
    drawn = cell_id[draw_sample(len(cell_id), plan.seed)]
    statement = (
        "INSERT INTO callipper.cell_sample AS s (version, number, emb)"
        " SELECT e.version, d.number - 1, e.emb FROM unnest(%s::int8[]) WITH ORDINALITY AS d(cell_id, number)"
        " JOIN {cell_embedding} e USING (cell_id)"
        " ON CONFLICT (version, number) DO UPDATE SET emb = excluded.emb"
        " WHERE s.emb OPERATOR(@extschema:vector@.<>) excluded.emb"
    )
    if _execute(connection, plan, statement, [drawn.tolist()]):
        update = "UPDATE {text_embedding} SET city_distances = callipper._city_distances(version, emb) WHERE vocabulary"
        _execute(connection, plan, update)


def _write_texts(connection: Connection, plan: RefreshPlan) -> int:
    if not plan.texts:
        return 0
    # A new word may be remembered already, as the text of a POI.
    statement = (
        "UPDATE {text_embedding} SET vocabulary = true, city_distances = callipper._city_distances(version, emb)"
        " WHERE NOT vocabulary AND text IN (SELECT callipper._text_key(w) FROM unnest(%s::text[]) AS w)"
    )
    _execute(connection, plan, statement, [plan.words])
    table = partitions.partition("text_embedding", plan.version)
    return insert_texts(connection, table, plan.version, plan.texts, plan.text_vectors, len(plan.words))


def _widen_extent(connection: Connection, plan: RefreshPlan) -> None:
    """Widen the version's extent if POIs are outside. It never shrinks."""
    connection.execute(
        connection.named(
            "UPDATE callipper.model SET extent = ST_Envelope(ST_Collect(extent, ST_Expand(box, float8 '1e-6')))"
            " FROM ST_MakeEnvelope(%s::float8, %s::float8, %s::float8, %s::float8, 4326) AS box,"
            " LATERAL (SELECT box::@box3d AS b) AS seen WHERE version = %s"
            " AND NOT (ST_XMin(extent::@box3d) <= ST_XMin(b) AND ST_YMin(extent::@box3d) <= ST_YMin(b)"
            " AND ST_XMax(extent::@box3d) >= ST_XMax(b) AND ST_YMax(extent::@box3d) >= ST_YMax(b))"
        ),
        [*plan.samples.extent, plan.version],
    )


def _analyse(connection: Connection, plan: RefreshPlan) -> None:
    """Analyse the tables in which many rows were written."""
    pyramid = plan.trained.pyramid
    written = {
        "callipper.context_cell": (
            plan.lattice_cells,
            sum(len(level.key) for level in pyramid.levels) if pyramid else 0,
        ),
        "{cell_embedding}": (len(plan.cells), len(plan.grid.cell_id)),
        "{point_embedding}": (len(plan.points) + len(plan.found.removed), len(plan.samples)),
    }
    for table, (rows, total) in written.items():
        if rows > ANALYSE_FROM * total:
            _execute(connection, plan, f"ANALYZE {table}")


@contextmanager
def _temporary(connection: Connection, name: str, columns: str) -> Iterator[sql.Identifier]:
    """A temporary table. Statements name it with pg_temp, because the user may have a table of that name."""
    table = sql.Identifier("pg_temp", name)
    connection.execute(sql.SQL("CREATE TEMPORARY TABLE {} ({})").format(table, connection.named(columns)))
    yield table
    connection.execute(sql.SQL("DROP TABLE {}").format(table))


def _execute(connection: Connection, plan: RefreshPlan, statement: str, values: list[Any] | None = None) -> int:
    """Execute a statement that names {version} and the partitions; returns how many rows it has written."""
    named = {name: partitions.partition(name, plan.version) for name in PARTITIONED}
    query = connection.named(statement).format(version=sql.Literal(plan.version), **named)
    return connection.execute(query, values).rowcount
