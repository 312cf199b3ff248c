"""Samples that are kept on disk."""

from __future__ import annotations

import numpy as np

from callipper_db.arrays import Array
from callipper_trainer.data.samples import Samples
from fits import TEXTS


def samples_of(metres: Array, text_id: Array, texts: int = TEXTS) -> Samples:
    """Samples with ids in order; longitude and latitude are what they may."""
    names = [f"kind {number}" for number in range(texts)]
    return Samples(np.arange(len(metres)) * 3, metres / 1e5, metres, text_id, names, 32631, np.full(len(metres), -1))
