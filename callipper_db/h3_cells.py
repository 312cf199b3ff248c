"""H3 cells as a grid: hexagons of one resolution, the same everywhere on the globe (https://h3geo.org). Needs the extra `h3`.

A cell's index has 64 bits. callipper.cell keeps its upper half as i and its lower half as j.
"""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import numpy.typing as npt

from callipper_db.arrays import Array
from callipper_db.errors import needs_extra

COARSER = 2  # levels from a cell to its block, which has up to 49 cells
LARGEST_EDGE_M = 1_281_256.0  # of a cell of resolution 0, on average; each level divides it by the root of 7


def edge_m(resolution: int) -> float:
    """Metres of a cell's edge, on average. Raises MissingExtra."""
    return float(_h3().average_hexagon_edge_length(resolution, unit="m"))


def resolution_of(size_m: float) -> int:
    """The resolution whose cells have edges of this length on average."""
    return round(math.log(LARGEST_EDGE_M / size_m, math.sqrt(7)))


def blocks_of(lonlat: Array, resolution: int) -> Array:
    """(N, 2) degrees -> (K,) int64 the cells, COARSER levels up, that hold them. Raises MissingExtra."""
    h3, coarse = _h3(), max(0, resolution - COARSER)
    found = {h3.cell_to_parent(h3.latlng_to_cell(lat, lon, resolution), coarse) for lon, lat in lonlat.tolist()}
    return np.array(sorted(found), np.int64)


def blocks_of_cells(index: Array) -> Array:
    """(C,) cells -> (K,) int64 the blocks that hold them."""
    h3 = _h3()
    found = {h3.cell_to_parent(cell, max(0, h3.get_resolution(cell) - COARSER)) for cell in index.tolist()}
    return np.array(sorted(found), np.int64)


def fill_holes(blocks: Array) -> Array:
    """(K,) blocks -> the same and those that they enclose, (L,) int64."""
    h3 = _h3()
    cells = blocks.tolist()
    shape = h3.cells_to_h3shape(cells)
    inside = set(cells)
    for part in shape if isinstance(shape, h3.LatLngMultiPoly) else [shape]:
        if part.holes:
            inside.update(h3.h3shape_to_cells(h3.LatLngPoly(part.outer), h3.get_resolution(cells[0])))
    return np.array(sorted(inside), np.int64)


def cells_in(blocks: Array, resolution: int) -> Array:
    """(K,) blocks -> (C,) int64 their cells of a resolution."""
    h3 = _h3()
    found = [cell for block in blocks.tolist() for cell in h3.cell_to_children(block, resolution)]
    return np.array(sorted(found), np.int64)


def centres_of(index: Array) -> Array:
    """(C,) cells -> (C, 2) degrees, longitude first."""
    h3 = _h3()
    latlon = np.array([h3.cell_to_latlng(cell) for cell in index.tolist()], np.float64).reshape(-1, 2)
    return latlon[:, ::-1]


def outline_of(cell: int) -> str:
    """The polygon of a cell as WKT in degrees. One that crosses the 180th meridian has longitudes of both signs."""
    ring = [f"{lon!r} {lat!r}" for lat, lon in _h3().cell_to_boundary(cell)]
    return f"POLYGON(({', '.join([*ring, ring[0]])}))"


def halves_of(index: Array) -> tuple[Array, Array]:
    """(C,) int64 -> the upper and the lower 32 bits of each, (C,) int32."""
    return (index >> 32).astype(np.int32), (index & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def index_of(upper: npt.ArrayLike, lower: npt.ArrayLike) -> Array:
    """The other way round: (C,) int64."""
    low = np.asarray(lower, np.int64) & 0xFFFFFFFF
    index: Array = (np.asarray(upper, np.int64) << 32) | low
    return index


@needs_extra("A grid of H3 cells", "h3")
def _h3() -> ModuleType:
    from h3.api import basic_int

    module: ModuleType = basic_int
    return module
