"""What an embedding must tell beside its text: what lies around the place, at every scale.

A contrast with texts keeps of a place what tells one category from another, and lets go of the rest, on which land use and
income hang. So a linear layer, dropped after training, has to read off the embedding the features of the coarser lattices: the
mean text code around, and how many POIs of each kind there are. It has to do so at places without POIs too, since most of a
city is such.
"""

from __future__ import annotations

import numpy as np

from callipper_db.arrays import Array
from callipper_trainer.context import Pyramid

# What lies nearer is for the contrast alone: it changes from house to house, and would take all the room.
TARGETS_FROM_M = 100.0
# Of a kind that a code of 32 numbers has no room for, its number alone tells.
KIND_WEIGHT = 4.0  # times as much as the mean codes
# Places are drawn in lattice cells of this size that hold a POI: in the city and its parks, not in the sea.
BACKGROUND_M = 800.0
MIN_BACKGROUND, MAX_BACKGROUND = 4096, 65_536


def target_columns(pyramid: Pyramid) -> int:
    """How many of the context's features, the last ones, are targets."""
    return sum(level.code_sum.shape[1] + 1 for level in pyramid.levels if level.size_m >= TARGETS_FROM_M)


def target_weights(pyramid: Pyramid) -> Array:
    """(W,) factors of the numbers that are targets: their squares, of mean 1, are what each error counts."""
    counts = np.where(pyramid.counts_kinds[-target_columns(pyramid) :], KIND_WEIGHT, 1.0)
    weights: Array = np.sqrt(counts / counts.mean()).astype(np.float32)
    return weights


def draw_background(pyramid: Pyramid, pois: int, seed: int) -> Array:
    """(N, 2) metres from the origin: places anywhere in the city, half as many as there are POIs, within bounds."""
    count = min(MAX_BACKGROUND, max(MIN_BACKGROUND, pois // 2))
    random = np.random.default_rng([seed, 800])
    level = min(pyramid.levels, key=lambda level: abs(level.size_m - BACKGROUND_M))
    cells = level.ij[random.integers(len(level.ij), size=count)]
    places: Array = (cells + random.random((count, 2))) * level.size_m
    return places
