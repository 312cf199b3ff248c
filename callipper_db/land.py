"""Where there is land: a cell of an eighth of a degree counts as land if any part of it is.

Of the GLOBE elevation model (NOAA, public domain), by way of global-land-mask. Without Antarctica, where nobody lives.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

import numpy as np

from callipper_db.arrays import Array

CELLS = 8  # a degree
MASK = Path(__file__).with_name("land.gz")  # a bit per cell, row by row from the north, each from the west


def on_land(lon: Array, lat: Array) -> Array:
    """Whether each place (N,) is in a cell with land. Places that are not on the globe are not."""
    mask = _mask()
    row = np.floor((90 - np.clip(lat, -90, 90)) * CELLS).astype(int).clip(0, len(mask) - 1)
    column = np.floor((np.clip(lon, -180, 180) + 180) * CELLS).astype(int) % mask.shape[1]
    found: Array = mask[row, column] & (np.abs(lat) <= 90) & (np.abs(lon) <= 180)
    return found


@cache
def _mask() -> Array:
    bits = np.frombuffer(gzip.decompress(MASK.read_bytes()), np.uint8)
    return np.unpackbits(bits).reshape(180 * CELLS, 360 * CELLS).astype(bool)
