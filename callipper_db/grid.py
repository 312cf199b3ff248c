"""Grids over the area that has POIs: squares or hexagons in the model's projected CRS, made by PostGIS, or H3 cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from psycopg import sql

from callipper_db import h3_cells
from callipper_db.arrays import Array
from callipper_db.binary_copy import read_rows
from callipper_db.db import Connection
from callipper_db.errors import BadExtent
from callipper_db.holes import fill_holes

H3 = "h3"
BLOCK = 5  # the covered area is made of blocks of this many cells a side; of H3 cells, see h3_cells.COARSER
MAX_CELLS = 20_000_000
SHAPES = {"square": ("ST_SquareGrid", 1.0), "hexagon": ("ST_HexagonGrid", 1.5 * 3**0.5)}  # area of a cell with side 1

# A cell on the 180th meridian ends there, on the side of its centre: its polygon would go round the globe otherwise.
ON_ONE_SIDE = """
CASE WHEN ST_XMax(place::@box3d) - ST_XMin(place::@box3d) < 180 THEN place
ELSE (
    SELECT ST_SetSRID(ST_MakePolygon(ST_MakeLine(
        ST_MakePoint(CASE WHEN ST_X(d.geom) * side < 0 THEN 180 * side ELSE ST_X(d.geom) END, ST_Y(d.geom)) ORDER BY d.path
    )), 4326)
    FROM (SELECT sign(ST_X(ST_Transform(centre, 4326)))) AS c(side), ST_DumpPoints(place) AS d
) END"""


PART = 20_000  # H3 cells in a statement


@dataclass(frozen=True)
class Grid:
    """The cells of a grid that one model covers."""

    grid_id: int
    cell_id: Array  # (C,) int64
    centre: Array  # (C, 2) float64, easting and northing in metres
    h3_index: Array | None = None  # (C,) int64 of H3 cells


def block_centres(metres: Array, lonlat: Array, size_m: float, kind: str) -> Array:
    """(N, 2) metres and degrees -> (K, 2) the centres of the blocks that hold them: metres, of H3 cells degrees.

    ensure_grid() makes the same grid of these as of all places. Raises MissingExtra for H3 cells.
    """
    if kind == H3:
        return h3_cells.centres_of(h3_cells.blocks_of(lonlat, h3_cells.resolution_of(size_m)))
    block_m = BLOCK * size_m
    centres: Array = (np.unique(np.floor(metres / block_m).astype(np.int64), axis=0) + 0.5) * block_m
    return centres


def ensure_grid(connection: Connection, places: Array, srid: int, size_m: float, kind: str = "square") -> Grid:
    """The cells in blocks of 5 x 5 cells with at least one POI, and in blocks that such blocks enclose.

    Cells are added to the grid (kind, size_m, srid) where missing, so that models with the same grid share them. For
    hexagons, `size_m` is the length of a side; for H3 cells, where a block has 49 cells, it is that of their resolution.
    places: (N, 2) float64 metres; for H3 cells degrees. Raises BadExtent, and MissingExtra for H3 cells.
    """
    block_m = BLOCK * size_m
    if kind == H3:
        blocks = h3_cells.blocks_of(places, h3_cells.resolution_of(size_m))
    else:
        blocks = np.unique(np.floor(places / block_m).astype(np.int64), axis=0)
    check_count(len(blocks), size_m, kind)
    (grid_id,) = connection.one(
        "INSERT INTO callipper.grid (kind, size_m, srid) VALUES (%s, %s, %s) ON CONFLICT (kind, size_m, srid)"
        " DO UPDATE SET kind = excluded.kind RETURNING grid_id",
        [kind, size_m, srid],
    )
    if kind == H3:
        _cover_h3(connection, blocks, srid, size_m)
    else:
        _cover(connection, blocks, block_m, srid, size_m, kind)
    connection.execute(
        connection.named(
            "INSERT INTO callipper.cell (grid_id, i, j, geom)"
            " SELECT {grid_id}, i, j, {on_one_side} FROM (SELECT v.*, ST_Transform(geom, 4326) AS place FROM covered v"
            " WHERE NOT EXISTS (SELECT FROM callipper.cell c WHERE c.grid_id = {grid_id} AND c.i = v.i AND c.j = v.j)"
            # Beyond the edge of a projection of the globe there are no degrees: such a cell has the area NaN, which is no less.
            " OFFSET 0) AS v WHERE ST_Area(place) < 'Infinity' ORDER BY i, j ON CONFLICT (grid_id, i, j) DO NOTHING"
        ).format(grid_id=sql.Literal(grid_id), on_one_side=connection.named(ON_ONE_SIDE))
    )
    query = connection.named(
        "SELECT cell_id, v.i, v.j, ST_X(v.centre), ST_Y(v.centre) FROM covered v"
        " JOIN callipper.cell c ON c.grid_id = {} AND c.i = v.i AND c.j = v.j"
    ).format(sql.Literal(grid_id))
    grid = _grid_of(grid_id, kind, read_rows(connection, query, ["int8", "int4", "int4", "float8", "float8"]))
    connection.execute("DROP TABLE covered")
    return grid


def read_grid(connection: Connection, version: int) -> tuple[Grid, str, float]:
    """The cells that a model version has embeddings of, and the grid's kind and size in metres.

    The centres are the same bits as those of ensure_grid, in the grid's CRS.
    """
    grid_id, kind, size_m, srid = connection.one(
        "SELECT g.grid_id, g.kind, g.size_m, g.srid FROM callipper.model m JOIN callipper.grid g USING (grid_id)"
        " WHERE m.version = %s",
        [version],
    )
    if kind == H3:
        return _read_h3_grid(connection, version, grid_id, srid), kind, size_m
    shape = SHAPES[kind][0].removesuffix("Grid")
    query = connection.named(
        "SELECT c.cell_id, c.i, c.j, ST_X(p.centre), ST_Y(p.centre) FROM callipper.cell_embedding e JOIN callipper.cell c"
        f" ON c.cell_id = e.cell_id, LATERAL (SELECT ST_Centroid({shape}("
        "{size}::float8, c.i, c.j, ST_SetSRID(ST_MakePoint(float8 '0', float8 '0'), {srid})))"
        " AS centre OFFSET 0) AS p WHERE e.version = {version}"
    ).format(size=sql.Literal(size_m), srid=sql.Literal(srid), version=sql.Literal(version))
    columns = read_rows(connection, query, ["int8", "int4", "int4", "float8", "float8"])
    return _grid_of(grid_id, kind, columns), kind, size_m


def covers(grid: Grid, places: Array, size_m: float) -> bool:
    """Whether ensure_grid would find cells of this grid around every one of (N, 2) places: metres, for H3 cells degrees."""
    if grid.h3_index is not None:
        blocks = h3_cells.blocks_of(places, h3_cells.resolution_of(size_m))
        return bool(np.isin(blocks, h3_cells.blocks_of_cells(grid.h3_index)).all())
    block_m = BLOCK * size_m
    wanted, there = (np.unique(np.floor(xy / block_m), axis=0) for xy in (places, grid.centre))
    return len(np.unique(np.concatenate([wanted, there]), axis=0)) == len(there)


def check_count(blocks: int, size_m: float, kind: str) -> None:
    """Raise BadExtent when a grid of this many blocks of BLOCK x BLOCK cells has too many cells."""
    cells = blocks * (7**h3_cells.COARSER if kind == H3 else BLOCK**2 / SHAPES[kind][1])
    if cells > MAX_CELLS and kind == H3:
        resolution = h3_cells.resolution_of(size_m)
        fits = resolution - math.ceil(math.log(cells / MAX_CELLS, 7))
        raise BadExtent(
            reason=f"H3 cells of resolution {resolution} over these POIs are about {cells / 1e6:,.0f} million, and"
            f" {MAX_CELLS / 1e6:,.0f} million are the most. Use --resolution {max(0, fits)} or less."
        )
    if cells > MAX_CELLS:
        fits = math.ceil(size_m * math.sqrt(cells / MAX_CELLS) / 10) * 10
        raise BadExtent(
            reason=f"a grid of {size_m:g} m over these POIs has about {cells / 1e6:,.0f} million cells, and"
            f" {MAX_CELLS / 1e6:,.0f} million are the most. Use --grid-size {fits} or more."
        )


def _cover(connection: Connection, blocks: Array, block_m: float, srid: int, size_m: float, kind: str) -> None:
    """Fill the temporary table `covered` (i, j, geom, centre) with the cells of the blocks and of the holes between them.

    Lakes and heaths inside a city are covered, though they hold no POI. Arithmetic decides which cells are in a block, because
    a comparison of polygons for each cell takes ten times as long as the rest of publishing.
    """
    covered = fill_holes(blocks)
    check_count(len(covered), size_m, kind)
    x, y = covered.squares().T
    connection.execute(
        # OFFSET 0 keeps the planner from computing the centre again at each use.
        connection.named(
            f"""
            CREATE TEMPORARY TABLE covered ON COMMIT DROP AS
            SELECT g.i, g.j, g.geom, g.centre
            FROM unnest(%s::bigint[], %s::bigint[]) AS b(i, j), LATERAL (
                SELECT i, j, geom, ST_Centroid(geom) AS centre
                FROM {SHAPES[kind][0]}(
                    {{size}}, ST_MakeEnvelope(b.i * {{m}}, b.j * {{m}}, (b.i + 1) * {{m}}, (b.j + 1) * {{m}}, {{srid}})
                )
                OFFSET 0
            ) AS g
            WHERE floor(ST_X(g.centre) / {{m}}) = b.i AND floor(ST_Y(g.centre) / {{m}}) = b.j
            """
        ).format(size=_float8(size_m), m=_float8(block_m), srid=sql.Literal(srid)),
        [x.tolist(), y.tolist()],
    )
    connection.execute("ANALYZE covered")


def _cover_h3(connection: Connection, blocks: Array, srid: int, size_m: float) -> None:
    """Fill `covered` as _cover() does, with the H3 cells of the blocks and of the holes between them."""
    resolution = h3_cells.resolution_of(size_m)
    filled = h3_cells.fill_holes(blocks)
    check_count(len(filled), size_m, H3)
    connection.execute(
        connection.named(
            "CREATE TEMPORARY TABLE covered (i integer, j integer, geom @geometry, centre @geometry) ON COMMIT DROP"
        )
    )
    index = h3_cells.cells_in(filled, resolution)
    for start in range(0, len(index), PART):
        part = index[start : start + PART]
        lon, lat = h3_cells.centres_of(part).T
        columns = [*h3_cells.halves_of(part), np.array([h3_cells.outline_of(cell) for cell in part.tolist()]), lon, lat]
        connection.execute(
            connection.named(
                "INSERT INTO covered SELECT i, j, ST_GeomFromText(outline, 4326),"
                " ST_Transform(ST_SetSRID(ST_MakePoint(lon, lat), 4326), %s::int4)"
                " FROM unnest(%s::int4[], %s::int4[], %s::text[], %s::float8[], %s::float8[]) AS c(i, j, outline, lon, lat)"
            ),
            [srid, *(column.tolist() for column in columns)],
        )
    connection.execute("ANALYZE covered")


def _read_h3_grid(connection: Connection, version: int, grid_id: int, srid: int) -> Grid:
    query = sql.SQL(
        "SELECT c.cell_id, c.i, c.j FROM callipper.cell_embedding e JOIN callipper.cell c ON c.cell_id = e.cell_id"
        " WHERE e.version = {}"
    ).format(sql.Literal(version))
    cell_id, upper, lower = read_rows(connection, query, ["int8", "int4", "int4"])
    lon, lat = h3_cells.centres_of(h3_cells.index_of(upper, lower)).T
    rows = connection.execute(
        connection.named(
            "SELECT ST_X(m), ST_Y(m) FROM unnest(%s::float8[], %s::float8[]) WITH ORDINALITY AS c(lon, lat, n), LATERAL"
            " (SELECT ST_Transform(ST_SetSRID(ST_MakePoint(lon, lat), 4326), %s::int4) AS m OFFSET 0) AS p ORDER BY n"
        ),
        [lon.tolist(), lat.tolist(), srid],
    ).fetchall()
    easting, northing = np.array(rows, np.float64).reshape(-1, 2).T
    return _grid_of(grid_id, H3, [cell_id, upper, lower, easting, northing])


def _grid_of(grid_id: int, kind: str, columns: list[Array]) -> Grid:
    """A grid of the columns cell_id, i, j, easting and northing, in the order of cell_id."""
    order = np.argsort(columns[0])
    cell_id, i, j, easting, northing = (column[order] for column in columns)
    h3_index = h3_cells.index_of(i, j) if kind == H3 else None
    return Grid(grid_id, cell_id, np.column_stack([easting, northing]), h3_index)


def _float8(number: float) -> sql.Composed:
    """A float8 literal; a bare 100.5 would be a numeric."""
    return sql.SQL("{}::float8").format(sql.Literal(number))
