"""What training reads, as arrays: from a database (stream.py) or from anywhere else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from callipper_db.arrays import Array

CHUNK = 65_536  # rows that are worked on at once where all would be too many


@dataclass(frozen=True)
class Samples:
    """N places and the texts they carry, in a fixed order."""

    point_id: Array  # (N,) int64
    lonlat: Array  # (N, 2) float64 degrees
    metres: Array  # (N, 2) float64 easting and northing in `srid`
    text_id: Array  # (N,) int32, into texts
    texts: list[str]  # and names
    srid: int
    name_id: Array  # (N,) int32, into texts; -1 where a POI has no name that is read

    def __len__(self) -> int:
        return len(self.point_id)

    @property
    def origin(self) -> Array:
        """(2,) the middle of the extent, whole metres: the location encoder counts from here."""
        return middle(self.metres.min(axis=0), self.metres.max(axis=0))

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees."""
        west, south = self.lonlat.min(axis=0).tolist()
        east, north = self.lonlat.max(axis=0).tolist()
        return west, south, east, north

    def chunks(self, rows: int = CHUNK) -> Iterator[Samples]:
        """The same in parts of so many rows."""
        for start in range(0, len(self), rows):
            yield self.take(slice(start, start + rows))

    def take(self, rows: Array | slice) -> Samples:
        """Some of the rows, with all texts."""
        columns = (self.point_id[rows], self.lonlat[rows], self.metres[rows], self.text_id[rows])
        return Samples(*columns, self.texts, self.srid, self.name_id[rows])

    def content_hash(self) -> str:
        """sha256 over places and texts: the same data gives the same hash."""
        content = ContentHash()
        content.add(self)
        return content.result(self.srid, self.texts)


class ContentHash:
    """The hash of samples that come in parts; how they are cut makes no difference."""

    def __init__(self) -> None:
        self.columns = {name: hashlib.sha256() for name in ("point_id", "metres", "text_id", "name_id")}

    def add(self, samples: Samples) -> None:
        """The next rows."""
        for name, digest in self.columns.items():
            digest.update(np.ascontiguousarray(getattr(samples, name)).tobytes())

    def result(self, srid: int, texts: list[str]) -> str:
        """In hexadecimal."""
        parts = [str(srid), *(digest.hexdigest() for digest in self.columns.values()), *texts]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def middle(low: Array, high: Array) -> Array:
    """(2,) corners in metres -> (2,) between them, whole metres."""
    between: Array = np.round((low + high) / 2)
    return between
