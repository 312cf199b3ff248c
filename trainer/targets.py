"""What an embedding must tell beside its text: what lies around the place, at every scale.

A contrast with texts keeps of a place what tells one category from another, and lets go of the rest, on which land use and
income hang. So a linear layer, dropped after training, has to read off the embedding how many POIs of each kind lie around,
and the mean text code there. It has to do so at places without POIs too, since most of a city is such.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from callipper_db.store import Array
from trainer.context import ROWS, Level, Pyramid, around, level_sizes

KINDS = 32
# What lies nearer is for the contrast alone: it changes from house to house, and would take all the room.
TOLD_FROM_M = 100.0
# Places are drawn in lattice cells of this size that hold a POI: in the city and its parks, not in the sea.
BACKGROUND_M = 800.0
BACKGROUND_LEAST, BACKGROUND_MOST = 4096, 65_536


@dataclass(frozen=True)
class KindCode:
    """Groups of like texts: each text belongs to the nearest centre."""

    centres: Array  # (K, T)

    def __call__(self, vectors: Array) -> Array:
        """(V, T) -> (V, K) float32, one 1 a row."""
        distance = (self.centres**2).sum(axis=1) - 2 * vectors @ self.centres.T  # but for what all centres share
        own: Array = np.eye(len(self.centres), dtype=np.float32)[distance.argmin(axis=1)]
        return own


def fit_kinds(text_vectors: Array, text_count: Array) -> KindCode:
    """k-means over (V, T) texts, of which frequent ones count more: as the root of the (V,) POIs that carry them."""
    distinct, inverse = np.unique(text_vectors, axis=0, return_inverse=True)
    weight = np.bincount(inverse.reshape(-1), weights=np.sqrt(text_count), minlength=len(distinct))
    carried = weight > 0
    distinct, weight = distinct[carried], weight[carried]
    if len(distinct) <= KINDS:
        return KindCode(distinct)
    with threadpool_limits(1):  # threads would add up in another order each time
        means = KMeans(KINDS, n_init=1, max_iter=50, tol=0, random_state=0, algorithm="lloyd")
        return KindCode(means.fit(distinct, sample_weight=weight).cluster_centers_.astype(np.float32))


@dataclass(frozen=True)
class Kinds:
    """How many POIs of each kind lie around a place, from TOLD_FROM_M up."""

    levels: list[Level]
    own: Array  # (V, K) the kind of each text

    @property
    def width(self) -> int:
        """How many numbers a place has."""
        return len(self.levels) * int(self.own.shape[1])

    def log_counts(self, metres: Array, text_id: Array | None = None) -> Array:
        """(N, 2) metres from the origin -> (N, width) float32: log(1 + number). POIs, with (N,) texts, leave themselves out."""
        result = np.empty((len(metres), self.width), np.float32)
        for start in range(0, len(metres), ROWS):
            rows = slice(start, start + ROWS)
            own = None if text_id is None else self.own[text_id[rows]]
            counts = [around(level, metres[rows], own)[1] for level in self.levels]
            result[rows] = np.log1p(np.maximum(np.concatenate(counts, axis=1), 0))
        return result


def told_sizes() -> list[float]:
    """The sides in metres of the lattices whose POIs are told by kind."""
    return [size_m for size_m in level_sizes() if size_m >= TOLD_FROM_M]


def told_columns(pyramid: Pyramid) -> int:
    """How many of the context's features, the last ones, are told."""
    return sum(level.code_sum.shape[1] + 1 for level in pyramid.levels if level.size_m >= TOLD_FROM_M)


def draw_background(pyramid: Pyramid, pois: int, seed: int) -> Array:
    """(N, 2) metres from the origin: places anywhere in the city, half as many as POIs within bounds."""
    count = min(BACKGROUND_MOST, max(BACKGROUND_LEAST, pois // 2))
    random = np.random.default_rng([seed, 800])
    level = min(pyramid.levels, key=lambda level: abs(level.size_m - BACKGROUND_M))
    cells = level.ij[random.integers(len(level.ij), size=count)]
    places: Array = (cells + random.random((count, 2))) * level.size_m
    return places
