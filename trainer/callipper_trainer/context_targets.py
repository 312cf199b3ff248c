"""What an embedding must predict in addition to its text: the context of the place, in lattices of 100 m and more.

The contrast with texts keeps only what separates categories. Land use and income depend on more than that. So during training
a linear layer predicts the features of the coarser lattices from the embedding: the mean text code, and the number of POIs of
each kind. It also does so at random places without a POI, because most of a city has none. The layer is dropped afterwards.
"""

from __future__ import annotations

import numpy as np

from callipper_db.arrays import Array
from callipper_trainer.config import TrainConfig
from callipper_trainer.context import Pyramid


def target_columns(pyramid: Pyramid, from_m: float) -> int:
    """W, how many context features are targets. They are the last ones."""
    return sum(level.code_sum.shape[1] + 1 for level in pyramid.levels if level.size_m >= from_m)


def target_weights(pyramid: Pyramid, config: TrainConfig) -> Array:
    """(W,) factors on the targets. A factor's square is the weight of the target's squared error; the weights' mean is 1."""
    columns = target_columns(pyramid, config.targets_from_m)
    counts = np.where(pyramid.counts_kinds[-columns:], config.kind_weight, 1.0)
    weights: Array = np.sqrt(counts / counts.mean()).astype(np.float32)
    return weights


def draw_background(pyramid: Pyramid, pois: int, config: TrainConfig) -> Array:
    """(N, 2) metres from the origin: random places in the city. N follows from the number of POIs, see TrainConfig."""
    count, random = config.background_for(pois), config.background_places_random()
    level = min(pyramid.levels, key=lambda level: abs(level.size_m - config.background_m))
    cells = level.ij[random.integers(len(level.ij), size=count)]
    places: Array = (cells + random.random((count, 2))) * level.size_m
    return places
