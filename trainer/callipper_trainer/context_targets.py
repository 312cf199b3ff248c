"""What an embedding must tell beside its text: what lies around the place, at every scale.

A contrast with texts keeps of a place what tells one category from another, and lets go of the rest, on which land use and
income hang. So a linear layer, dropped after training, has to read off the embedding the features of the coarser lattices: the
mean text code around, and how many POIs of each kind there are. It has to do so at places without POIs too, since most of a
city is such.
"""

from __future__ import annotations

import numpy as np

from callipper_db.arrays import Array
from callipper_trainer.config import TrainConfig
from callipper_trainer.context import Pyramid


def target_columns(pyramid: Pyramid, from_m: float) -> int:
    """How many of the context's features, the last ones, are targets."""
    return sum(level.code_sum.shape[1] + 1 for level in pyramid.levels if level.size_m >= from_m)


def target_weights(pyramid: Pyramid, config: TrainConfig) -> Array:
    """(W,) factors of the numbers that are targets: their squares, of mean 1, are what each error counts."""
    columns = target_columns(pyramid, config.targets_from_m)
    counts = np.where(pyramid.counts_kinds[-columns:], config.kind_weight, 1.0)
    weights: Array = np.sqrt(counts / counts.mean()).astype(np.float32)
    return weights


def draw_background(pyramid: Pyramid, pois: int, config: TrainConfig) -> Array:
    """(N, 2) metres from the origin: places anywhere in the city, half as many as there are POIs, within bounds."""
    count, random = config.background_for(pois), config.background_places_random()
    level = min(pyramid.levels, key=lambda level: abs(level.size_m - config.background_m))
    cells = level.ij[random.integers(len(level.ij), size=count)]
    places: Array = (cells + random.random((count, 2))) * level.size_m
    return places
