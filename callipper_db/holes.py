"""Squares of a raster that others enclose, found from their runs, so that neither time nor memory go by the raster's extent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from callipper_db.arrays import Array


@dataclass(frozen=True)
class Runs:
    """Squares side by side in a column of a raster, from `first` up to but not including `end`."""

    x: Array  # (R,) int64, ascending
    first: Array  # (R,) int64, ascending within an x
    end: Array  # (R,) int64

    def __len__(self) -> int:
        """The number of squares."""
        return int((self.end - self.first).sum())

    def squares(self) -> Array:
        """(K, 2) int64, in the order of x and y."""
        length = self.end - self.first
        y = np.arange(length.sum()) + np.repeat(self.first - (np.cumsum(length) - length), length)
        return np.column_stack([np.repeat(self.x, length), y])


def fill_holes(squares: Array) -> Runs:
    """(K, 2) int64 -> the runs of the same squares and of those that they enclose.

    Squares join along their sides. Each joined part is filled by itself: what several parts only together go around stays out.
    """
    runs = _runs(squares)
    part = _joined(runs, *_overlaps(runs))
    # One part beside the other, a column apart, so that gaps of different parts do not meet.
    order = np.lexsort([runs.first, runs.x, part])
    part, runs = part[order], Runs(runs.x[order], runs.first[order], runs.end[order])
    begin = np.flatnonzero(np.diff(part, prepend=-1))
    left, right = runs.x[begin], runs.x[np.append(begin[1:], len(part)) - 1]
    aside = runs.x + (np.cumsum(right - left + 2) - right)[part]
    same = np.flatnonzero(aside[1:] == aside[:-1])
    gaps = Runs(aside[same], runs.end[same], runs.first[same + 1])
    inside = ~_reaches_outside(gaps, Runs(aside, runs.first, runs.end))
    holes = Runs(runs.x[same][inside], gaps.first[inside], gaps.end[inside])
    return _merged(*(np.concatenate([getattr(of, name) for of in (runs, holes)]) for name in ("x", "first", "end")))


def _runs(squares: Array) -> Runs:
    squares = np.unique(squares, axis=0)
    step = np.diff(squares, axis=0)
    begins = np.concatenate([[True], (step[:, 0] != 0) | (step[:, 1] != 1)])
    ends = np.concatenate([begins[1:], [True]])
    return Runs(squares[begins, 0], squares[begins, 1], squares[ends, 1] + 1)


def _overlaps(runs: Runs) -> tuple[Array, Array]:
    """The pairs of runs that lie side by side, as two arrays of their numbers."""
    low, high = runs.first.min(initial=0), runs.end.max(initial=0)
    width = high - low + 1
    first, end = (runs.x * width + y - low for y in (runs.first, runs.end))
    # Of the runs in the next column, those that end after this one begins and begin before it ends: neighbours in order.
    since = np.searchsorted(end, first + width, "right")
    until = np.searchsorted(first, end + width, "left")
    count = np.maximum(until - since, 0)
    left = np.repeat(np.arange(len(runs.x)), count)
    right = np.arange(count.sum()) + np.repeat(since - (np.cumsum(count) - count), count)
    return left, right


def _joined(runs: Runs, left: Array, right: Array) -> Array:
    """(R,) the number of the part that each run belongs to."""
    from scipy.sparse import coo_array  # of the extra train, which who cuts a grid has
    from scipy.sparse.csgraph import connected_components

    count = len(runs.x)
    pairs = coo_array((np.ones(len(left), bool), (left, right)), shape=(count, count))
    part: Array = connected_components(pairs, directed=False)[1]
    return part.astype(np.int64)


def _reaches_outside(gaps: Runs, runs: Runs) -> Array:
    """(G,) bool: of the gaps between runs of a column, those from which a way along sides leads out."""
    column, begin = np.unique(runs.x, return_index=True)
    lowest = runs.first[begin]
    highest = runs.end[np.append(begin[1:], len(runs.x)) - 1]
    open_side = np.zeros(len(gaps.x), bool)
    for beside in (gaps.x - 1, gaps.x + 1):
        at = np.minimum(np.searchsorted(column, beside), len(column) - 1)
        open_side |= (column[at] != beside) | (gaps.first < lowest[at]) | (gaps.end > highest[at])
    connected = _joined(gaps, *_overlaps(gaps))
    reaches: Array = np.isin(connected, connected[open_side])
    return reaches


def _merged(x: Array, first: Array, end: Array) -> Runs:
    """Runs that may overlap -> the same squares, each once."""
    order = np.lexsort([first, x])
    x, first, end = x[order], first[order], end[order]
    low = first.min(initial=0)
    width = end.max(initial=0) - low + 1
    start, stop = (x * width + y - low for y in (first, end))
    start[1:] = np.maximum(start[1:], np.maximum.accumulate(stop)[:-1])
    new = stop > start
    return Runs(x[new], (start - x * width + low)[new], end[new])
