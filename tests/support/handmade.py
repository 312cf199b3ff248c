"""Model versions made by hand, without training: known vectors in, so that tests know what must come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from psycopg import sql
from psycopg.types.json import Jsonb

from callipper_db import binary_copy, partitions
from callipper_db.arrays import Array
from callipper_db.db import Connection
from callipper_db.grid import Grid, ensure_grid
from callipper_db.hnsw import build_hnsw
from callipper_db.tables import DIMENSIONS

SRID = 32631  # UTM 31 N; its axis lies at 3 degrees east
ORIGIN = np.array([500_000.0, 5_500_000.0])
SIZE_M = 100.0
TEXTS = ("pub", "park", "fresh fish")


@dataclass(frozen=True)
class Model:
    """What was written."""

    version: int
    grid: Grid
    cells: Array  # (C, 256) float32, unit length, in the order of grid.cell_id
    points: Array  # (N, 256)
    texts: dict[str, Array]

    def ranking(self, text: str) -> Array:
        """(C,) the cells from best to worst, computed in float64."""
        similarity = self.cells.astype(np.float64) @ self.texts[text].astype(np.float64)
        return self.grid.cell_id[np.argsort(-similarity)]


def unit_vectors(count: int, seed: int, dim: int = DIMENSIONS) -> Array:
    """(count, dim) float32."""
    vectors = np.random.default_rng(seed).standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_pois(connection: Connection, metres: Array) -> Array:
    """POIs at (N, 2) metres; returns their (N,) poi_id."""
    found = connection.execute(
        "INSERT INTO callipper.poi (source, source_id, name, category, geom)"
        " SELECT 'handmade', number::text, 'place ' || number, 'pub',"
        " ST_Transform(ST_SetSRID(ST_Point(x, y), %s), 4326)"
        " FROM unnest(%s::float8[], %s::float8[]) WITH ORDINALITY AS p(x, y, number) ORDER BY p.number RETURNING poi_id",
        [SRID, metres[:, 0].tolist(), metres[:, 1].tolist()],
    ).fetchall()
    return np.array([poi_id for (poi_id,) in found])


def write_model(
    connection: Connection,
    metres: Array | None = None,
    *,
    seed: int = 0,
    size_m: float = SIZE_M,
    activate: bool = True,
    hnsw: bool = False,
    texts: tuple[str, ...] = TEXTS,
    source: str = "callipper.poi",
    embed: Callable[[Array], Array] | None = None,
) -> Model:
    """A version over the grid that (N, 2) POIs span, one POI by default.

    Its vectors are random and of unit length, but that `embed` makes those of the cells of their (C, 2) centres.
    """
    metres = ORIGIN[None] if metres is None else metres
    point_id = write_pois(connection, metres) if seed == 0 else np.arange(1, len(metres) + 1)
    grid = ensure_grid(connection, metres, SRID, size_m)
    encoder = _insert(
        connection,
        "INSERT INTO callipper.text_encoder (name, revision, dim) VALUES ('handmade', 'r1', 4)"
        " ON CONFLICT (name, revision) DO UPDATE SET dim = 4 RETURNING text_encoder_id",
    )
    version = _insert(
        connection,
        "INSERT INTO callipper.model (status, srid, origin_easting, origin_northing, extent, grid_id, text_encoder_id, arch,"
        " metrics, provenance) VALUES ('ready', %s, %s, %s, ST_MakeEnvelope(2, 49, 4, 51, 4326), %s, %s, '{}', %s, %s)"
        " RETURNING version",
        SRID,
        *ORIGIN.tolist(),
        grid.grid_id,
        encoder,
        Jsonb({"validation_loss": 1.5}),
        Jsonb({"source": source, "rows": len(metres)}),
    )
    cells = embed(grid.centre) if embed else unit_vectors(len(grid.cell_id), seed)
    points = unit_vectors(len(metres), seed + 1000)
    words = unit_vectors(len(texts), seed + 2000)
    write_partition(
        connection,
        "text_embedding",
        version,
        {"text": ("text", [text.encode() for text in texts]), "emb": ("vector", words)},
    )
    write_partition(
        connection, "cell_embedding", version, {"cell_id": ("int8", grid.cell_id), "emb": ("vector", cells)}
    )
    lonlat = connection.one(
        "SELECT array_agg(ST_X(g)), array_agg(ST_Y(g)) FROM unnest(%s::float8[], %s::float8[]) WITH ORDINALITY AS p(x, y, n),"
        " ST_Transform(ST_SetSRID(ST_Point(x, y), %s), 4326) AS g",
        [metres[:, 0].tolist(), metres[:, 1].tolist(), SRID],
    )
    described = ("text", [b"a pub"] * len(metres))
    place = ("point", np.column_stack(lonlat))
    write_partition(
        connection,
        "point_embedding",
        version,
        {"point_id": ("int8", point_id), "text": described, "geom": place, "emb": ("vector", points)},
    )
    if hnsw:
        build_hnsw(connection, version)
    if activate:
        connection.execute("SELECT callipper.activate(%s)", [version])
    return Model(version, grid, cells, points, dict(zip(texts, words, strict=True)))


def write_sample(connection: Connection, model: Model, count: int = 1000) -> Array:
    """A sample of the model's cells for percentiles; returns its (S, 256) vectors."""
    drawn = model.cells[np.random.default_rng(model.version).permutation(len(model.cells))[:count]]
    columns = {
        "version": ("int4", model.version),
        "number": ("int4", np.arange(len(drawn))),
        "emb": ("vector", drawn),
    }
    binary_copy.write_rows(connection, sql.Identifier("callipper", "cell_sample"), columns)  # type: ignore[arg-type]
    return drawn


def write_partition(connection: Connection, table: str, version: int, columns: binary_copy.Columns) -> None:
    name = partitions.create_partition(connection, table, version)
    binary_copy.write_rows(connection, name, {"version": ("int4", version), **columns})
    partitions.attach_partition(connection, table, version)


def _insert(connection: Connection, statement: str, *values: object) -> int:
    return int(connection.one(sql.SQL(statement), values)[0])
