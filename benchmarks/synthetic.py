"""POIs made by chance, for what must be measured where no city is at hand: quarters of one kind each, and texts like names."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from callipper_db.arrays import Array
from callipper_trainer.data.samples import CHUNK, Samples

ORIGIN = np.array([500_000.0, 5_700_000.0])
REACH_M = 20_000.0
QUARTERS = 2000
KINDS = 50
TEXT_DIM = 384
SRID = 32631


def texts(count: int) -> Array:
    """(V, T) float32 vectors of unit length: each text is of a kind, and texts of a kind are alike."""
    random = np.random.default_rng(0)
    kinds = random.normal(0, 1, (KINDS, TEXT_DIM))
    vectors = kinds[np.arange(count) % KINDS] + random.normal(0, 0.5, (count, TEXT_DIM))
    unit: Array = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def places(count: int, text_count: int, seed: int) -> tuple[Array, Array]:
    """(N, 2) metres in quarters, most of them of the quarter's kind, and the text of each, (N,)."""
    random = np.random.default_rng([1, seed])
    quarter = random.integers(QUARTERS, size=count)
    centre = np.random.default_rng(2).uniform(-REACH_M, REACH_M, (QUARTERS, 2))
    metres = ORIGIN + centre[quarter] + random.normal(0, 250, (count, 2))
    kind = np.where(random.random(count) < 0.7, quarter % KINDS, random.integers(KINDS, size=count))
    text_id = (random.integers(max(text_count // KINDS, 1), size=count) * KINDS + kind) % text_count
    return metres, text_id.astype(np.int32)


def parts(count: int, text_count: int) -> Iterator[Samples]:
    """Samples chunk by chunk, never all at once."""
    names = [f"text {number}" for number in range(text_count)]
    for number, start in enumerate(range(0, count, CHUNK)):
        metres, text_id = places(min(CHUNK, count - start), text_count, number)
        without = np.full(len(metres), -1, np.int32)  # names
        yield Samples(np.arange(start, start + len(metres)), metres / 1e5, metres, text_id, names, SRID, without)
