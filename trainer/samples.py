"""What training reads, as arrays: from a database (stream.py) or from anywhere else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from callipper_db.store import Array


@dataclass(frozen=True)
class Samples:
    """N places and the texts they carry, in a fixed order."""

    point_id: Array  # (N,) int64
    lonlat: Array  # (N, 2) float64 degrees
    metres: Array  # (N, 2) float64 easting and northing in `srid`
    text_id: Array  # (N,) int32, into texts
    texts: list[str]
    srid: int

    def __len__(self) -> int:
        return len(self.point_id)

    @property
    def origin(self) -> Array:
        """(2,) the middle of the extent, whole metres: the location encoder counts from here."""
        middle: Array = np.round((self.metres.min(axis=0) + self.metres.max(axis=0)) / 2)
        return middle

    def content_hash(self) -> str:
        """sha256 over places and texts: the same data gives the same hash."""
        digest = hashlib.sha256(str(self.srid).encode())
        for array in (self.point_id, self.metres, self.text_id):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update("\0".join(self.texts).encode())
        return digest.hexdigest()
