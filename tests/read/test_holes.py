"""Filled holes against SciPy's, part by part."""

from __future__ import annotations

import numpy as np
import pytest

from callipper_db.holes import fill_holes
from filled import filled


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.6, 0.7, 0.9])
def test_filled_as_scipy_fills(share: float) -> None:
    rng = np.random.default_rng(round(100 * share))
    with_holes = 0
    for _ in range(200):
        squares = np.argwhere(rng.random(rng.integers(1, 16, 2)) < share) + rng.integers(-1000, 1000, 2)
        if len(squares):
            runs = fill_holes(rng.permutation(squares))
            assert runs.squares().tolist() == filled(squares)
            assert len(runs) == len(runs.squares())
            with_holes += len(runs) > len(squares)
    assert with_holes > 10 or share in (0.05, 0.3, 0.9)


def test_neither_time_nor_memory_go_by_the_extent() -> None:
    far = 10**7
    rim = [(x, y) for x in (0, far) for y in range(3)]
    assert fill_holes(np.array(rim)).squares().tolist() == [list(square) for square in rim]
    line = np.arange(far // 100)
    frame = np.concatenate([np.column_stack(pair) for end in (0, len(line) - 1) for pair in ((line, line * 0 + end),)])
    frame = np.concatenate([frame, frame[:, ::-1]])
    assert len(fill_holes(frame)) == len(line) ** 2, "10,000 million squares"


def test_far_apart_at_the_size_of_the_earth_in_metres() -> None:
    squares = np.unique(np.random.default_rng(0).integers(-4 * 10**6, 4 * 10**6, (200_000, 2)), axis=0)
    assert fill_holes(squares).squares().tolist() == squares.tolist()
    ring = np.array([(x, y) for x in range(3) for y in range(3) if (x, y) != (1, 1)]) + 3 * 10**6
    assert (
        len(fill_holes(np.concatenate([squares, ring]))) == len(np.unique(np.concatenate([squares, ring]), axis=0)) + 1
    )
