"""Answers without a model: what an afternoon's work gives. Each baseline rates all cells, or all POIs, for each question."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import KDTree

from benchmarks.answers.score import AROUND_M, PLACES
from callipper_db.arrays import Array

SIGMA_M = 125.0
SHARPNESS = 20.0  # of exp(20 cos)
COMPONENTS = 128
K1, B = 1.2, 0.75  # of BM25, as Lucene has them
CELLS_AT_ONCE = 20_000  # bounds the memory: 384 numbers each
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Baselines:
    """N POIs with V distinct texts, C cells, Q questions; metres in one CRS, vectors of unit length."""

    pois: Array  # (N, 2)
    cells: Array  # (C, 2)
    texts: list[str]  # (V,) 'name, category'
    text_id: Array  # (N,) into texts
    vectors: Array  # (V, T) of the texts
    questions: list[str]  # (Q,)
    asked: Array  # (Q, T)

    def rows(self) -> Iterator[tuple[str, Array]]:
        """Name of each baseline, and its (Q, 10, 2) places in metres, best first."""
        smoothed = f"mean sentence vector within {AROUND_M:.0f} m"
        rated: list[tuple[str, Callable[[], Array]]] = [
            ("BM25, summed within 250 m", self._bm25),
            (smoothed, lambda: self._mean_vector(self.vectors, self.asked)),
            (f"the same, {COMPONENTS} principal components, centred", lambda: self._mean_vector(*self._components())),
            ("mean of exp(20 cos), prior 1", lambda: self._mean_likeness(1.0)),
            ("mean of exp(20 cos), prior 5", lambda: self._mean_likeness(5.0)),
            ("sum of exp(20 cos)", lambda: self._near @ self._likeness),
        ]
        yield "nearest POIs by sentence vector", self.pois[_best(self._cosine)]
        for name, rate in rated:
            yield name, self.cells[_best(rate())]

    @cached_property
    def _near(self) -> csr_array:
        """(C, N) Gaussian weights of the POIs within 250 m of each cell."""
        weights = self._within.copy()
        weights.data = np.exp(-(weights.data**2) / (2 * SIGMA_M**2))
        return weights

    @cached_property
    def _within(self) -> csr_array:
        """(C, N) metres between cells and the POIs within 250 m; a millimetre at least, since sparse arrays drop zeros."""
        pairs = KDTree(self.cells).sparse_distance_matrix(KDTree(self.pois), AROUND_M, output_type="ndarray")
        metres = np.maximum(pairs["v"], 1e-3).astype(np.float32)
        return csr_array((metres, (pairs["i"], pairs["j"])), shape=(len(self.cells), len(self.pois)))

    @cached_property
    def _cosine(self) -> Array:
        """(N, Q) of the POIs' texts and the questions."""
        cosine: Array = (self.vectors @ self.asked.T)[self.text_id]
        return cosine

    @cached_property
    def _likeness(self) -> Array:
        """(N, Q) exp(20 cos)."""
        return np.exp(SHARPNESS * self._cosine)

    def _mean_likeness(self, prior: float) -> Array:
        """(C, Q), where `prior` POIs of the city's mean likeness stand in each cell beside those that are there."""
        weight = self._near.sum(axis=1)[:, None]
        rated: Array = (self._near @ self._likeness + prior * self._likeness.mean(axis=0)) / (weight + prior)
        return np.where(weight > 0, rated, -np.inf)

    def _mean_vector(self, vectors: Array, asked: Array) -> Array:
        """(C, Q) cosine of the mean vector around a cell and the questions. vectors (V, T), asked (Q, T)."""
        result = np.full((len(self.cells), len(asked)), -np.inf, np.float32)
        by_text = self._near @ csr_array(
            (np.ones(len(self.text_id), np.float32), (np.arange(len(self.text_id)), self.text_id)),
            shape=(len(self.text_id), len(self.texts)),
        )
        for start in range(0, len(self.cells), CELLS_AT_ONCE):
            means = by_text[start : start + CELLS_AT_ONCE] @ vectors
            length = np.linalg.norm(means, axis=1, keepdims=True)
            occupied = length[:, 0] > 0
            result[start : start + CELLS_AT_ONCE][occupied] = (means[occupied] / length[occupied]) @ _unit(asked).T
        return result

    def _components(self) -> tuple[Array, Array]:
        """(V, 128) and (Q, 128): the vectors less the POIs' mean, in the principal components of the POIs' vectors."""
        count = np.bincount(self.text_id, minlength=len(self.texts)).astype(np.float32)[:, None]
        mean = (count * self.vectors).sum(axis=0) / count.sum()
        centred = self.vectors - mean
        _, directions = np.linalg.eigh(centred.T @ (count * centred))
        kept = directions[:, -COMPONENTS:].astype(np.float32)
        return centred @ kept, (self.asked - mean) @ kept

    def _bm25(self) -> Array:
        """(C, Q) BM25 of the POIs' texts, summed over the POIs within 250 m."""
        words = [WORD.findall(text.lower()) for text in self.texts]
        length = np.array([len(row) for row in words], np.float64)[self.text_id]
        per_poi = np.zeros((len(self.text_id), len(self.questions)))
        for column, question in enumerate(self.questions):
            for word in set(WORD.findall(question.lower())):
                count = np.array([row.count(word) for row in words])[self.text_id]
                having = int((count > 0).sum())
                rarity = np.log(1 + (len(count) - having + 0.5) / (having + 0.5))
                per_poi[:, column] += rarity * count * (K1 + 1) / (count + K1 * (1 - B + B * length / length.mean()))
        rated: Array = (self._within > 0).astype(np.float32) @ per_poi
        return rated


def _best(rated: Array) -> Array:
    """(C, Q) ratings -> (Q, 10) rows of the best, best first; among equals, chance decides, the same in each run."""
    shuffled = np.random.default_rng(0).permutation(len(rated))
    mixed = rated[shuffled]
    top = np.argpartition(-mixed, PLACES, axis=0)[:PLACES]
    order = np.argsort(-np.take_along_axis(mixed, top, axis=0), axis=0, kind="stable")
    best: Array = shuffled[np.take_along_axis(top, order, axis=0)].T
    return best


def _unit(vectors: Array) -> Array:
    unit: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
