"""How good ten places are as the answer to a question, from arrays alone.

- lift: the share of relevant POIs among the distinct POIs within 250 m of the ten places, over their share in the city;
- hits: relevant POIs within 250 m of a place, mean of the ten, over the mean of all cells that have POIs within 250 m;
- G: the geometric mean over the questions of sqrt((lift + 0.1) (hits + 0.1)).

Lift alone rewards lonely places, and hits alone the city centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial import KDTree

from callipper_db.arrays import Array

AROUND_M = 250.0
PLACES = 10
FLOOR = 0.1  # added to lift and hits, so that a question without any does not decide G alone


@dataclass(frozen=True)
class Score:
    """Of one question."""

    lift: float
    hits: float
    found: float  # share of the ten places with a relevant POI within 250 m
    pois: float  # within 250 m of a place, mean of the ten

    @property
    def quality(self) -> float:
        """What G is the geometric mean of."""
        return float(np.sqrt((self.lift + FLOOR) * (self.hits + FLOOR)))


@dataclass(frozen=True)
class Summary:
    """Of several questions."""

    questions: int
    lift: float  # median
    hits: float  # median
    g: float
    below_1: int  # questions with a lift below 1
    found: float  # mean
    pois: float  # median


@dataclass(frozen=True)
class Judge:
    """Scores places in a city. pois (N, 2) and cells (C, 2): metres in one CRS; hits are compared with those of all cells."""

    pois: Array
    cells: Array

    def score(self, places: Array, relevant: Array) -> Score:
        """places (K, 2) metres, best first, of which ten count; relevant (N,) bool.

        A place that is missing among the ten counts as one without POIs.
        """
        rows = self._near(places[:PLACES])
        near = np.unique(np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64))
        share = relevant[near].mean() if len(near) else 0.0
        hits = np.array([relevant[row].sum() for row in rows])
        return Score(
            lift=float(share / relevant.mean()),
            hits=float(hits.sum() / PLACES / self.usual_hits(relevant)),
            found=float((hits > 0).sum() / PLACES),
            pois=float(sum(len(row) for row in rows) / PLACES),
        )

    def usual_hits(self, relevant: Array) -> float:
        """Relevant POIs within 250 m of a cell, mean of the cells that have POIs there."""
        return float(self._cells_around[relevant].sum() / self._cells_with_pois)

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(self.pois)

    @cached_property
    def _cells_around(self) -> Array:
        """(N,) cells within 250 m of each POI: each relevant POI is a hit of that many cells."""
        counts: Array = KDTree(self.cells).query_ball_point(self.pois, AROUND_M, return_length=True)
        return counts

    @cached_property
    def _cells_with_pois(self) -> int:
        distance, _ = self._tree.query(self.cells, distance_upper_bound=np.nextafter(AROUND_M, np.inf))
        return int(np.isfinite(distance).sum())

    def _near(self, places: Array) -> list[Array]:
        """POIs within 250 m of each place."""
        found = self._tree.query_ball_point(places, AROUND_M) if len(places) else []
        return [np.array(row, np.int64) for row in found]


def summarise(scores: Sequence[Score]) -> Summary:
    """Medians, G, and the number of questions below chance. Of at least one question."""
    return Summary(
        questions=len(scores),
        lift=float(np.median([score.lift for score in scores])),
        hits=float(np.median([score.hits for score in scores])),
        g=float(np.exp(np.mean([np.log(score.quality) for score in scores]))),
        below_1=sum(score.lift < 1 for score in scores),
        found=float(np.mean([score.found for score in scores])),
        pois=float(np.median([score.pois for score in scores])),
    )
