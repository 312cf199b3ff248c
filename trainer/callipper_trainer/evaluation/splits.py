"""Which places a probe is trained on, and which it is tested on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from callipper_db.arrays import Array
from callipper_db.errors import NotEnoughData

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1  # of the training part
BLOCKS = 10  # per side of the extent


@dataclass(frozen=True)
class Split:
    """Row numbers of three disjoint parts."""

    seed: int
    train: Array
    validation: Array  # for early stopping
    test: Array


def random_split(count: int, seed: int) -> Split:
    """A random fifth of the rows is the test."""
    return _with_validation(count, _fold(np.arange(count), seed), seed)


def block_split(places: Array, seed: int) -> Split:
    """A fifth of the blocks that hold places (N, 2) is the test: no training place is in a block with test places.

    Raises NotEnoughData if all places are in one block.
    """
    block = block_of(places)
    occupied = np.unique(block)
    if len(occupied) < 2:
        raise NotEnoughData(reason="all labels lie in one spot, so none can be held out by area. Use --split random.")
    return _with_validation(len(places), np.flatnonzero(np.isin(block, _fold(occupied, seed))), seed)


def block_of(places: Array) -> Array:
    """(N, 2) coordinates -> (N,) number of the block, of BLOCKS x BLOCKS over their extent."""
    low, high = places.min(axis=0), places.max(axis=0)
    side = (high - low) / BLOCKS
    side = np.where(side > 0, side, 1)
    column_row = np.minimum((places - low) // side, BLOCKS - 1).astype(np.int64)
    block: Array = column_row[:, 0] * BLOCKS + column_row[:, 1]
    return block


def make_splits(name: str, places: Array, seeds: int) -> list[Split]:
    """`seeds` splits of one kind, with the seeds 0, 1, ..."""
    if name == "random":
        return [random_split(len(places), seed) for seed in range(seeds)]
    return [block_split(places, seed) for seed in range(seeds)]


def _fold(items: Array, seed: int) -> Array:
    """A fifth of the items. Seeds 0 to 4 take disjoint fifths of one shuffle, seeds 5 to 9 of another, and so on.

    So five seeds test each item once, and their mean depends less on chance.
    """
    folds = min(round(1 / TEST_SHARE), len(items))
    shuffled = np.random.default_rng(seed // folds).permutation(items)
    return np.array_split(shuffled, folds)[seed % folds]


def _with_validation(count: int, test: Array, seed: int) -> Split:
    training = np.random.default_rng([seed, 0]).permutation(np.setdiff1d(np.arange(count), test))
    held_out = max(1, round(len(training) * VALIDATION_SHARE))
    return Split(seed, np.sort(training[held_out:]), np.sort(training[:held_out]), np.sort(test))
