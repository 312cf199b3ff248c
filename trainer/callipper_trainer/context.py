"""The context of a place: POI counts and text codes in a pyramid of lattices, as features of the location encoder.

A network that reads only coordinates can only memorise. So it also reads which POIs are near. Square lattices of 12.5, 25, ...
12,800 m hold, per cell, the number of POIs and the sum of their text codes. A place reads from each lattice a bilinear mix of
its four nearest cells. The mean code describes the POIs; lattices from 100 m up also count the POIs of each kind.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_array
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from callipper_db.arrays import Array
from callipper_trainer.config import TrainConfig

ROWS = 4096  # places that a thread looks up at once
MAX_THREADS = 8
CORNERS = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])  # of the four cells around a place


@dataclass(frozen=True)
class TextCode:
    """A short linear code of a sentence vector: its principal components over the training POIs."""

    weight: Array  # (C, T) float32
    bias: Array  # (C,) float32

    def __call__(self, vectors: Array) -> Array:
        """(V, T) -> (V, C) float32."""
        # In float64, so that a text's code does not depend on the other texts of the call: refresh compares sums of codes.
        code: Array = (vectors.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias).astype(np.float32)
        return code


@dataclass(frozen=True)
class KindCode:
    """K groups of similar texts. The kind of a text is the group with the nearest centre."""

    weight: Array  # (K, T) float32, the centres
    bias: Array  # (K,) float32, minus half their squared lengths: the largest product is then the nearest centre

    def __call__(self, vectors: Array) -> Array:
        """(V, T) -> (V, K) float32, one-hot."""
        nearness = vectors.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        kinds: Array = np.eye(len(self.weight), dtype=np.float32)[nearness.argmax(axis=1)]
        return kinds


def fit_kinds(text_vectors: Array, text_count: Array, most: int) -> KindCode:
    """At most `most` kinds, by k-means over (V, T) texts. Each text weighs the square root of its number of POIs, (V,)."""
    distinct, inverse = np.unique(text_vectors, axis=0, return_inverse=True)
    weight = np.bincount(inverse.reshape(-1), weights=np.sqrt(text_count), minlength=len(distinct))
    centres, weight = distinct[weight > 0], weight[weight > 0]
    if len(centres) > most:
        with threadpool_limits(1):  # several threads would add in a different order each time
            means = KMeans(most, n_init=1, max_iter=50, tol=0, random_state=0, algorithm="lloyd")
            centres = means.fit(centres, sample_weight=weight).cluster_centers_.astype(np.float32)
    return KindCode(centres, -(centres.astype(np.float64) ** 2).sum(axis=1).astype(np.float32) / 2)


def fit_text_code(text_vectors: Array, text_count: Array, size: int) -> TextCode:
    """The first `size` principal components of (V, T) texts with (V,) POIs each; zeros when there are fewer components."""
    count = text_count.astype(np.float64)
    vectors = text_vectors.astype(np.float64)
    mean = count @ vectors / count.sum()
    centred = vectors - mean
    values, components = np.linalg.eigh((centred * count[:, None]).T @ centred / count.sum())
    components = components[:, ::-1][:, :size].T
    # The sign of an eigenvector is arbitrary. Make its largest entry positive, so that all runs agree.
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1, keepdims=True), axis=1)
    components = components * np.sign(largest)
    components[values[::-1][: len(components)] < 1e-9] = 0
    weight = np.zeros((size, text_vectors.shape[1]))
    weight[: len(components)] = components
    return TextCode(weight.astype(np.float32), (-weight @ mean).astype(np.float32))


@dataclass(frozen=True)
class Level:
    """One lattice: its occupied cells, sorted by (i, j)."""

    size_m: float
    key: Array  # (M,) int64, see cell_key
    ij: Array  # (M, 2) int64
    count: Array  # (M,) float32, POIs
    code_sum: Array  # (M, C) float32; (M, C + K) in lattices that count kinds, the counts last


@dataclass(frozen=True)
class Pyramid:
    """The lattices over the training POIs, and the codes of their texts.

    It keeps its own sizes. So a model of an earlier program keeps the sizes that it was trained with.
    """

    text_code: TextCode
    kind_code: KindCode
    levels: list[Level]
    prior: float  # TrainConfig.prior
    kinds_from_m: float  # TrainConfig.kinds_from_m

    @property
    def code_size(self) -> int:
        """C, the length of a text's code."""
        return len(self.text_code.weight)

    @property
    def width(self) -> int:
        """The number of features of a place."""
        return sum(level.code_sum.shape[1] + 1 for level in self.levels)

    @property
    def counts_kinds(self) -> Array:
        """(width,) whether a feature is the count of a kind."""
        return np.concatenate([np.arange(level.code_sum.shape[1] + 1) > self.code_size for level in self.levels])

    def sum_width(self, size_m: float) -> int:
        """The length of a cell's sum in a lattice of this size: C, or C + K from `kinds_from_m` up."""
        return self.code_size + (len(self.kind_code.weight) if size_m >= self.kinds_from_m else 0)

    def codes(self, vectors: Array) -> Array:
        """(V, T) sentence vectors -> (V, C + K), what the lattices sum."""
        codes: Array = np.concatenate([self.text_code(vectors), self.kind_code(vectors)], axis=1)
        return codes

    def rebuild(self, metres: Array, codes: Array) -> Pyramid:
        """The same lattices over N other POIs: (N, 2) metres from the origin, (N, C + K) codes."""
        return self.build_levels([level.size_m for level in self.levels], metres, codes)

    def build_levels(self, sizes_m: list[float], metres: Array, codes: Array) -> Pyramid:
        """The same codes, with new lattices of these sizes over N POIs."""
        levels = [build_level(size_m, metres, codes[:, : self.sum_width(size_m)]) for size_m in sizes_m]
        return replace(self, levels=levels)

    def features(self, metres: Array, own_code: Array | None = None, without: Array | None = None) -> Array:
        """(N, 2) metres from the origin -> (N, width) float32: per lattice the mean code and log(1 + POIs), and in lattices
        that count kinds log(1 + POIs of the kind) for each.

        own_code: (N, C + K), the codes of places that are POIs of the pyramid. Each POI's own part is subtracted, exactly;
        with `without`, (N,) bool, only where it is true.
        """
        result = np.empty((len(metres), self.width), np.float32)

        def fill(start: int) -> None:
            rows = slice(start, start + ROWS)
            own = None if own_code is None else (own_code[rows], 1.0 if without is None else without[rows])
            blocks = [self._level_features(level, metres[rows], own) for level in self.levels]
            np.concatenate(blocks, axis=1, out=result[rows])

        starts = range(0, len(metres), ROWS)
        if len(starts) < 2:  # no pool: the caller is often a thread already
            for start in starts:
                fill(start)
        else:
            with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
                list(threads.map(fill, starts))
        return result

    def _level_features(self, level: Level, metres: Array, own: tuple[Array, Array | float] | None) -> Array:
        """(B, 2) -> (B, C + 1 + K)."""
        count, code = bilinear_sums(level, metres, own)
        mean = code[:, : self.code_size] / (count + self.prior)[:, None]
        kinds = np.maximum(code[:, self.code_size :], 0)
        return np.column_stack([mean, np.log1p(count), np.log1p(kinds)]).astype(np.float32)


def build_pyramid(metres: Array, text_id: Array, text_vectors: Array, config: TrainConfig) -> Pyramid:
    """The pyramid over N POIs. metres: (N, 2) from the origin; text_id: (N,) rows of text_vectors, (V, T)."""
    empty = fit_pyramid(text_vectors, np.bincount(text_id, minlength=len(text_vectors)), config)
    codes = empty.codes(text_vectors)[text_id]
    return empty.build_levels(config.lattice_sizes(), metres, codes)


def fit_pyramid(text_vectors: Array, text_count: Array, config: TrainConfig) -> Pyramid:
    """The codes fitted to (V, T) texts with (V,) POIs each; no lattices yet."""
    text_code = fit_text_code(text_vectors, text_count, config.code_size)
    kind_code = fit_kinds(text_vectors, text_count, config.kinds)
    return Pyramid(text_code, kind_code, [], config.prior, config.kinds_from_m)


def build_level(size_m: float, metres: Array, codes: Array, sums: type = np.float32) -> Level:
    """One lattice over N POIs. codes: (N, W), what it sums. sums: np.float64 when the caller adds the sums to others,
    because sums of rounded sums differ.
    """
    ij = np.floor(metres / size_m).astype(np.int64)
    key, first, inverse = np.unique(cell_key(ij), return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(len(key)))
    # In float64 and in row order: the same POIs give the same bits.
    code_sum = np.add.reduceat(codes[order].astype(np.float64), starts, axis=0)
    return Level(size_m, key, ij[first], np.bincount(inverse).astype(np.float32), code_sum.astype(sums))


def cell_key(ij: Array) -> Array:
    """(..., 2) int64 cell numbers (i, j) -> (...,) int64, sorted as (i, j)."""
    key: Array = ij[..., 0] * (1 << 32) + ij[..., 1]
    return key


def bilinear_sums(level: Level, metres: Array, own: tuple[Array, Array | float] | None) -> tuple[Array, Array]:
    """(B, 2) metres -> POIs (B,) and sum of codes (B, W), float64, mixed bilinearly from the four nearest cells.

    own: the code of the POI at each place, (B, C + K), and the share of it to subtract, (B,) or one number, 0 to 1.
    """
    position = metres / level.size_m - 0.5  # cell centres are whole numbers here
    corner = np.floor(position)
    fraction = (position - corner)[:, None]
    ij = corner.astype(np.int64)[:, None] + CORNERS  # (B, 4, 2)
    weight = np.prod(np.where(CORNERS, fraction, 1 - fraction), axis=2)
    key = cell_key(ij)
    at = np.minimum(np.searchsorted(level.key, key), len(level.key) - 1)
    share = np.where(level.key[at] == key, weight, 0).astype(np.float32)
    # A sparse matrix adds up four rows of the lattice in one pass; in float32, so that it need not convert the lattice.
    starts = np.arange(0, at.size + 1, 4, dtype=np.int32)
    mix = csr_array((share.reshape(-1), at.reshape(-1).astype(np.int32), starts), shape=(len(metres), len(level.key)))
    count, code = (mix @ level.count).astype(np.float64), (mix @ level.code_sum).astype(np.float64)
    if own is not None:
        own_code, left_out = own
        own_cell = np.floor(metres / level.size_m).astype(np.int64)
        own_share = ((ij == own_cell[:, None]).all(axis=2) * weight).sum(axis=1) * left_out
        count -= own_share
        code -= own_share[:, None] * own_code[:, : code.shape[1]]
    return np.maximum(count, 0), code  # rounding can leave an empty place a little below zero
