"""The columns of callipper_map.cell for each cell of a version: group, colour, kinds of places and support.

Groups and colours are fitted once, when a version is published. Like the weights, they do not change afterwards. A refresh only
assigns cells to them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from psycopg import sql
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from callipper_db import partitions
from callipper_db.arrays import Array
from callipper_db.binary_copy import Columns, read_parts, read_rows, write_rows
from callipper_db.db import Connection
from callipper_db.grid import read_grid
from callipper_trainer.standing_out import PoiKinds, kinds_around, read_poi_kinds, standing_out
from callipper_trainer.weight_rows import WeightRows

CLUSTERS = 12  # a legend with more colours is hard to read
FITTED_ON = 20_000  # cells
TOP = 3  # kinds that describe a cell or a group, at most
RANGE = (2.0, 98.0)  # percentiles of a component that become the darkest and the brightest
PART = 50_000  # cells at once
NEIGHBOURS = 8  # as loc_support() counts
SMALLEST_DEGREES = 1e-5  # as loc_support()
MIXED = "a usual mix"  # label of a group in which nothing stands out


@dataclass(frozen=True)
class Palette:
    """Groups and colours of a version. G groups, D dimensions of the embedding."""

    centre: Array  # (G, D) float32
    weight: Array  # (3, D) float32
    bias: Array  # (3,) float32

    def clusters(self, emb: Array) -> Array:
        """(B, D) -> (B,) the nearest group."""
        nearest: Array = ((self.centre**2).sum(axis=1) / 2 - emb @ self.centre.T).argmin(axis=1)
        return nearest

    def colors(self, emb: Array) -> Array:
        """(B, D) -> (B,) red, green and blue of 8 bits each, in one number."""
        shares = np.clip(emb @ self.weight.T + self.bias, 0, 1)
        colors: Array = np.rint(shares * 255).astype(np.int64) @ np.array([65536, 256, 1])
        return colors


def summarise_cells(connection: Connection, version: int, seed: int) -> None:
    """Write cell_summary for all cells of a version, as its rows in the database are now."""
    dim = _dimensions(connection, version)
    grid, _, _ = read_grid(connection, version)
    palette = _read_palette(connection, version, dim)
    fresh = palette is None
    if palette is None:
        palette = fit_palette(_sample(connection, version, grid.cell_id, dim, seed), seed)
    cluster, color = np.empty((2, len(grid.cell_id)), np.int64)
    row = 0
    for emb in _embeddings(connection, version, dim):
        rows = slice(row, row + len(emb))
        cluster[rows], color[rows] = palette.clusters(emb), palette.colors(emb)
        row += len(emb)
    pois = read_poi_kinds(connection, version)
    if fresh:
        palette, cluster = _largest_first(palette, cluster)
        labels = _labels(pois, grid.centre, cluster, len(palette.centre))
        _write_palette(connection, version, palette, labels)
    texts: list[str | None] = [None] * len(cluster)
    counts = None
    if pois is not None:
        texts, counts = kinds_around(pois, grid.centre, TOP)
    _write_summary(connection, version, grid.cell_id, cluster, color, texts, _support(connection, version), counts)


def fit_palette(emb: Array, seed: int) -> Palette:
    """Groups by k-means, colours by the first three principal components of (S, D) embeddings.

    A component's sign is arbitrary. It is turned so that its distribution has the longer tail at the bright end, which holds
    when a model of the same city is trained anew, in another basis.
    """
    with threadpool_limits(1):  # several threads would add in a different order each time
        distinct = np.unique(emb, axis=0)
        means = KMeans(min(CLUSTERS, len(distinct)), n_init=4, random_state=seed, algorithm="lloyd").fit(emb)
        mean = emb.mean(axis=0, dtype=np.float64)
        centred = emb - mean
        _, components = np.linalg.eigh(centred.T @ centred / len(emb))
    components = components[:, ::-1][:, :3].T
    scores = centred @ components.T
    components = components * np.where((scores**3).sum(axis=0) < 0, -1, 1)[:, None]
    scores = centred @ components.T
    low, high = np.percentile(scores, RANGE, axis=0)
    scale = 1 / np.maximum(high - low, 1e-9)
    weight = components * scale[:, None]
    bias = -low * scale - weight @ mean
    return Palette(*(array.astype(np.float32) for array in (means.cluster_centers_, weight, bias)))


def _largest_first(palette: Palette, cluster: Array) -> tuple[Palette, Array]:
    order = np.argsort(-np.bincount(cluster, minlength=len(palette.centre)), kind="stable")
    return Palette(palette.centre[order], palette.weight, palette.bias), np.argsort(order)[cluster]


def _labels(pois: PoiKinds | None, centre: Array, cluster: Array, groups: int) -> list[str]:
    """(G,) the kinds that stand out among the POIs whose nearest cell is of a group."""
    if pois is None:
        return [MIXED] * groups
    _, nearest = cKDTree(centre).query(pois.metres)
    labels, _ = standing_out(pois, cluster[nearest], np.arange(len(pois.metres)), groups, TOP)
    return [label or MIXED for label in labels]


def _support(connection: Connection, version: int) -> Array:
    """(C,) what loc_support() says of the middle of each cell, in the order of cell_id."""
    queries = {
        "cell_embedding": "SELECT ST_X(m), ST_Y(m) FROM (SELECT e.cell_id, ST_Centroid(c.geom) AS m FROM {} e"
        " JOIN callipper.cell c ON c.cell_id = e.cell_id) AS q ORDER BY cell_id",
        "point_embedding": "SELECT ST_X(geom), ST_Y(geom) FROM {}",
    }
    cells, points = (
        np.column_stack(
            read_rows(connection, connection.named(query).format(partitions.partition(table, version)), ["float8"] * 2)
        )
        for table, query in queries.items()
    )
    (usual,) = connection.one("SELECT callipper._measure_usual_reach(%s)", [version])
    if usual is None:
        return np.zeros(len(cells))
    reach, _ = cKDTree(points).query(cells, k=[min(NEIGHBOURS, len(points))])
    support: Array = (max(usual, SMALLEST_DEGREES) / np.maximum(reach[:, 0], SMALLEST_DEGREES)) ** 2
    return np.minimum(support, 1)


def _dimensions(connection: Connection, version: int) -> int:
    query = connection.named("SELECT @extschema:vector@.vector_dims(emb) FROM {} LIMIT 1")
    row = connection.execute(query.format(partitions.partition("cell_embedding", version))).fetchone()
    return int(row[0]) if row else 0


def _embeddings(connection: Connection, version: int, dim: int) -> Iterator[Array]:
    """(B, D) of all cells in parts, in the order of cell_id."""
    query = sql.SQL("SELECT emb FROM {} ORDER BY cell_id").format(partitions.partition("cell_embedding", version))
    for (emb,) in read_parts(connection, query, ["vector"], PART, dim):
        yield emb


def _sample(connection: Connection, version: int, cell_id: Array, dim: int, seed: int) -> Array:
    drawn = np.random.default_rng(seed).choice(cell_id, min(FITTED_ON, len(cell_id)), replace=False)
    query = sql.SQL("SELECT emb FROM {} WHERE cell_id = ANY({}) ORDER BY cell_id").format(
        partitions.partition("cell_embedding", version), sql.Literal(np.sort(drawn).tolist())
    )
    (emb,) = read_rows(connection, query, ["vector"], dim)
    return emb


def _read_palette(connection: Connection, version: int, dim: int) -> Palette | None:
    where = sql.SQL(" WHERE version = {} ORDER BY 1").format(sql.Literal(version))
    query = sql.SQL("SELECT cluster, centre FROM callipper.cell_cluster") + where
    number, centre = read_rows(connection, query, ["int4", "vector"], dim)
    query = sql.SQL("SELECT axis, weight, bias FROM callipper.color_axis") + where
    _, weight, bias = read_rows(connection, query, ["int4", "vector", "float4"], dim)
    return Palette(centre, weight, bias) if len(number) else None


def _write_palette(connection: Connection, version: int, palette: Palette, labels: list[str]) -> None:
    rows = WeightRows(connection, version)
    clusters: Columns = {
        "cluster": ("int4", np.arange(len(labels))),
        "label": ("text", [label.encode() for label in labels]),
        "centre": ("vector", palette.centre),
    }
    rows.write("cell_cluster", clusters)
    axes: Columns = {
        "axis": ("int4", np.arange(len(palette.bias))),
        "weight": ("vector", palette.weight),
        "bias": ("float4", palette.bias),
    }
    rows.write("color_axis", axes)


def _write_summary(
    connection: Connection,
    version: int,
    cell_id: Array,
    cluster: Array,
    color: Array,
    texts: list[str | None],
    support: Array,
    counts: Array | None,
) -> None:
    """By way of a temporary table, so that a refresh writes only the rows that differ."""
    types = "cell_id int8, cluster int4, color int4, top_texts text, support float4, poi_count int4"
    table, name = sql.Identifier("pg_temp", "summary"), partitions.partition("cell_summary", version)
    connection.execute(sql.SQL("CREATE TEMPORARY TABLE {} ({})").format(table, sql.SQL(types)))
    columns: Columns = {
        "cell_id": ("int8", cell_id),
        "cluster": ("int4", cluster),
        "color": ("int4", color),
        "top_texts": ("text", [(text or "").encode() for text in texts]),
        "support": ("float4", support),
        "poi_count": ("int4", -1 if counts is None else counts),
    }
    write_rows(connection, table, columns)
    if not partitions.has_partition(connection, "cell_summary", version):
        partitions.create_partition(connection, "cell_summary", version)
        partitions.attach_partition(connection, "cell_summary", version)
    connection.execute(
        sql.SQL(
            "INSERT INTO {name} AS s (version, cell_id, cluster, color, top_texts, support, poi_count)"
            " SELECT {version}, cell_id, cluster, '#' || lpad(to_hex(color), 6, '0'), nullif(top_texts, ''), support,"
            " nullif(poi_count, -1) FROM {table}"
            " ON CONFLICT (cell_id, version) DO UPDATE SET cluster = excluded.cluster, color = excluded.color,"
            " top_texts = excluded.top_texts, support = excluded.support, poi_count = excluded.poi_count"
            " WHERE (s.cluster, s.color, s.top_texts, s.support, s.poi_count) IS DISTINCT FROM"
            " (excluded.cluster, excluded.color, excluded.top_texts, excluded.support, excluded.poi_count)"
        ).format(name=name, version=sql.Literal(version), table=table)
    )
    connection.execute(sql.SQL("DROP TABLE {}").format(table))
    connection.execute(sql.SQL("ANALYZE {}").format(name))
