"""The POIs of a training run, as arrays. source.py reads them from a database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from callipper_db.arrays import Array

CHUNK = 65_536  # rows processed at once where memory may not hold all


@dataclass(frozen=True)
class Samples:
    """N POIs and their texts, in a fixed order."""

    point_id: Array  # (N,) int64
    lonlat: Array  # (N, 2) float64 degrees
    metres: Array  # (N, 2) float64 easting and northing in `srid`
    text_id: Array  # (N,) int32, index into texts
    texts: list[str]  # distinct texts, those of names ("name, category") included
    srid: int
    name_id: Array  # (N,) int32, index into texts; -1 for a POI without a name, or with one that is not read

    def __len__(self) -> int:
        return len(self.point_id)

    @property
    def origin(self) -> Array:
        """(2,) the middle of the extent in whole metres, the zero of the location encoder."""
        return middle(self.metres.min(axis=0), self.metres.max(axis=0))

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees."""
        west, south = self.lonlat.min(axis=0).tolist()
        east, north = self.lonlat.max(axis=0).tolist()
        return west, south, east, north

    def chunks(self, rows: int = CHUNK) -> Iterator[Samples]:
        """The same samples in parts of `rows` rows."""
        for start in range(0, len(self), rows):
            yield self.take(slice(start, start + rows))

    def take(self, rows: Array | slice) -> Samples:
        """Some of the rows, with all texts."""
        columns = (self.point_id[rows], self.lonlat[rows], self.metres[rows], self.text_id[rows])
        return Samples(*columns, self.texts, self.srid, self.name_id[rows])

    def content_hash(self) -> str:
        """sha256 over places and texts. The same data gives the same hash."""
        content = ContentHash()
        content.add(self)
        return content.result(self.srid, self.texts)


class ContentHash:
    """The hash of samples that come in parts. It does not depend on where they are cut."""

    def __init__(self) -> None:
        self.columns = {name: hashlib.sha256() for name in ("point_id", "metres", "text_id", "name_id")}

    def add(self, samples: Samples) -> None:
        """Add the next rows."""
        for name, digest in self.columns.items():
            digest.update(np.ascontiguousarray(getattr(samples, name)).tobytes())

    def result(self, srid: int, texts: list[str]) -> str:
        """The hash in hexadecimal."""
        parts = [str(srid), *(digest.hexdigest() for digest in self.columns.values()), *texts]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def middle(low: Array, high: Array) -> Array:
    """(2,) two corners in metres -> (2,) the point halfway, in whole metres."""
    between: Array = np.round((low + high) / 2)
    return between
