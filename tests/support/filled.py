"""Holes filled by SciPy, the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage


def filled(squares: Any) -> list[list[int]]:
    """What each part of squares joined along their sides is when its holes are filled, all together, in order."""
    low = squares.min(axis=0) - 1
    covered = np.zeros(squares.max(axis=0) - low + 2, bool)
    covered[tuple((squares - low).T)] = True
    labels, count = ndimage.label(covered)
    inside = np.any([ndimage.binary_fill_holes(labels == label) for label in range(1, count + 1)], axis=0)
    found: list[list[int]] = (np.argwhere(inside) + low).tolist()
    return found
