"""A PNG map: how well each cell fits a text, with the POIs on top."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from psycopg import sql

from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.binary_copy import read_rows
from callipper_db.models import active_version

matplotlib.use("Agg")

MAX_POINTS = 20_000  # more would hide the cells
BEST = 10  # cells that are outlined


def plot_similarity(dsn: str, text: str, path: Path) -> None:
    """Draw the active model's cells by the percentile of their similarity to a text, POIs on top, into a PNG file.

    Raises NoActiveModel, and DatabaseFailed with a hint where the text is unknown.
    """
    with db.session(dsn) as connection:
        corners, similarity = _cells(connection, text)
        points = _points(connection)
    corners, points = _together(corners, points)
    rank = similarity.argsort().argsort() / max(len(similarity) - 1, 1) * 100
    size = corners.shape[1]
    middle = np.deg2rad(corners[..., 1].mean())
    extent = np.ptp(corners.reshape(-1, 2), axis=0) * [np.cos(middle), 1]
    figure = Figure(figsize=(10, float(np.clip(9 * extent[1] / extent[0], 4, 12))), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    # Squares and hexagons share one collection: (C, corners, 2).
    cells = PolyCollection(list(corners[:, : size - 1]), array=rank, cmap="magma", edgecolors="face", linewidths=0.2)
    axes.add_collection(cells)
    best = np.argsort(similarity)[-BEST:]
    axes.add_collection(
        PolyCollection(list(corners[best, : size - 1]), facecolors="none", edgecolors="#00c8ff", linewidths=1.6)
    )
    dot = float(np.clip(2e4 / max(len(points), 1), 2, 12))
    axes.scatter(points[:, 0], points[:, 1], s=dot, c="white", alpha=0.7, linewidths=0, label=f"{len(points):,} POIs")
    axes.plot([], [], color="#00c8ff", linewidth=1.6, label=f"the {BEST} best cells")
    axes.autoscale_view()
    axes.set_aspect(1 / np.cos(middle))
    axes.ticklabel_format(useOffset=False)
    axes.xaxis.set_major_formatter(lambda lon, _: f"{lon - 360 if lon > 180 else lon:.6g}")
    axes.set(title=f"Where is it like \u201c{text}\u201d?", xlabel="longitude", ylabel="latitude")
    axes.set_facecolor("#f2f2f2")
    legend = axes.legend(loc="lower right", facecolor="#444444", labelcolor="white", markerscale=2)
    legend.get_frame().set_alpha(0.9)
    bar = figure.colorbar(cells, ax=axes, shrink=0.8)
    bar.set_label("similarity to the text, percentile of all cells")
    figure.savefig(path)


def _together(corners: Array, points: Array) -> tuple[Array, Array]:
    """Longitudes for a map across the 180th meridian: from 0 to 360 if that makes the map narrower."""
    x = corners[..., 0]
    shifted = np.where(x < 0, x + 360, x)
    if np.ptp(x) <= 180 or np.ptp(shifted) >= 180:
        return corners, points
    corners, points = corners.copy(), points.copy()
    # The whole cell goes to one side, also where its edge is the meridian itself.
    corners[..., 0] += np.where(x.mean(axis=1) < 0, 360, 0)[:, None]
    points[:, 0] = np.where(points[:, 0] < 0, points[:, 0] + 360, points[:, 0])
    return corners, points


def _cells(connection: db.Connection, text: str) -> tuple[Array, Array]:
    """(C, corners, 2) degrees and (C,) cosine similarity."""
    active_version(connection)
    (corners,) = connection.one(connection.named("SELECT ST_NPoints(geom) FROM callipper.cells LIMIT 1"))
    coordinates = sql.SQL(", ").join(
        connection.named(f"{axis}(ST_PointN(ring, {number}))")
        for number in range(1, corners + 1)
        for axis in ("ST_X", "ST_Y")
    )
    query = connection.named(
        "SELECT {coordinates}, similarity FROM (SELECT ST_ExteriorRing(geom) AS ring,"
        " -(emb OPERATOR(@extschema:vector@.<#>) callipper.text_embed({text}::text)) AS similarity"
        " FROM callipper.cells OFFSET 0) AS c"
    ).format(coordinates=coordinates, text=sql.Literal(text))
    columns = read_rows(connection, query, ["float8"] * (2 * corners + 1))
    return np.stack(columns[:-1], axis=1).reshape(-1, corners, 2), columns[-1]


def _points(connection: db.Connection) -> Array:
    """(N, 2) degrees; a random part of them if there are many."""
    query = connection.named("SELECT ST_X(geom), ST_Y(geom) FROM callipper.points ORDER BY hashint8(point_id) LIMIT {}")
    return np.column_stack(read_rows(connection, query.format(sql.Literal(MAX_POINTS)), ["float8", "float8"]))
