"""What lies around a place: a pyramid of POI counts and text codes, as features of the location encoder.

A coordinate alone tells a network where it is, not what is there, so it can only memorise. PostGIS knows what is there:
square lattices of 12.5, 25, ... 12,800 m hold, per cell, the number of POIs and the sum of their texts' codes; a point reads
from each level the bilinear mix of its four nearest cells. Of what a code tells, the mean says what the POIs around are like,
and from 100 m up the number of each kind says how many of it there are.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from callipper_db.arrays import Array
from callipper_trainer.config import TrainConfig

ROWS = 4096  # points that a thread looks up at once
THREADS = 8  # at most


@dataclass(frozen=True)
class TextCode:
    """A short linear code of the sentence encoder's vectors: their principal components over the training POIs."""

    weight: Array  # (C, T) float32
    bias: Array  # (C,) float32

    def __call__(self, vectors: Array) -> Array:
        """(V, T) -> (V, C) float32."""
        # In float64, so that a text has the same code whatever texts are coded beside it: refresh compares sums of them.
        code: Array = (vectors.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias).astype(np.float32)
        return code


@dataclass(frozen=True)
class KindCode:
    """Groups of like texts, K of them: a text is of the kind whose linear map of the sentence encoder's vector is largest."""

    weight: Array  # (K, T) float32, the centres
    bias: Array  # (K,) float32, minus half their squared lengths: so the largest is the nearest

    def __call__(self, vectors: Array) -> Array:
        """(V, T) -> (V, K) float32, one 1 a row."""
        near = vectors.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        kinds: Array = np.eye(len(self.weight), dtype=np.float32)[near.argmax(axis=1)]
        return kinds


def fit_kinds(text_vectors: Array, text_count: Array, most: int) -> KindCode:
    """At most `most` kinds, by k-means over (V, T) texts. A text counts as the root of its number of POIs, (V,)."""
    distinct, inverse = np.unique(text_vectors, axis=0, return_inverse=True)
    weight = np.bincount(inverse.reshape(-1), weights=np.sqrt(text_count), minlength=len(distinct))
    centres, weight = distinct[weight > 0], weight[weight > 0]
    if len(centres) > most:
        with threadpool_limits(1):  # threads would add up in another order each time
            means = KMeans(most, n_init=1, max_iter=50, tol=0, random_state=0, algorithm="lloyd")
            centres = means.fit(centres, sample_weight=weight).cluster_centers_.astype(np.float32)
    return KindCode(centres, -(centres.astype(np.float64) ** 2).sum(axis=1).astype(np.float32) / 2)


def fit_text_code(text_vectors: Array, text_count: Array, size: int) -> TextCode:
    """The first `size` principal components of (V, T) texts that (V,) POIs carry; zeros where there are fewer components."""
    count = text_count.astype(np.float64)
    vectors = text_vectors.astype(np.float64)
    mean = count @ vectors / count.sum()
    centred = vectors - mean
    values, components = np.linalg.eigh((centred * count[:, None]).T @ centred / count.sum())
    components = components[:, ::-1][:, :size].T
    # An eigenvector's sign is arbitrary; its largest entry decides, so that runs agree.
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
    code_sum: Array  # (M, C) float32; in lattices that count kinds (M, C + K), the POIs of each kind last


@dataclass(frozen=True)
class Pyramid:
    """The lattices over the training POIs, and the codes of their texts.

    Its sizes are its own, and not this module's: a model that an earlier program made is read as it was made.
    """

    text_code: TextCode
    kind_code: KindCode
    levels: list[Level]
    prior: float  # TrainConfig.prior
    kinds_from_m: float  # TrainConfig.kinds_from_m

    @property
    def code_size(self) -> int:
        """Numbers of a text's code."""
        return len(self.text_code.weight)

    @property
    def width(self) -> int:
        """Number of features."""
        return sum(level.code_sum.shape[1] + 1 for level in self.levels)

    @property
    def counts_kinds(self) -> Array:
        """(width,) which features are numbers of POIs of a kind."""
        return np.concatenate([np.arange(level.code_sum.shape[1] + 1) > self.code_size for level in self.levels])

    def sums(self, size_m: float) -> int:
        """How many numbers a lattice with cells of this size sums up: the code, and in large cells the kinds."""
        return self.code_size + (len(self.kind_code.weight) if size_m >= self.kinds_from_m else 0)

    def codes(self, vectors: Array) -> Array:
        """(V, T) vectors of texts -> (V, C + K) what the lattices sum up."""
        codes: Array = np.concatenate([self.text_code(vectors), self.kind_code(vectors)], axis=1)
        return codes

    def over(self, metres: Array, codes: Array) -> Pyramid:
        """The same lattices over other POIs: (N, 2) metres from the origin and the codes of each."""
        return self.with_levels([level.size_m for level in self.levels], metres, codes)

    def with_levels(self, sizes_m: list[float], metres: Array, codes: Array) -> Pyramid:
        """The same codes, with lattices of these cells over POIs."""
        levels = [build_level(size_m, metres, codes[:, : self.sums(size_m)]) for size_m in sizes_m]
        return replace(self, levels=levels)

    def features(self, metres: Array, own_code: Array | None = None, without: Array | None = None) -> Array:
        """(N, 2) metres from the origin -> (N, width) float32: per level the mean code, log(1 + number of POIs) around a
        point, and in large cells the same of each kind.

        own_code: (N, C + K), for POIs that are in the pyramid: each one's own part is taken out, exactly; where
        `without`, (N,) bool, is given, only of these.
        """
        result = np.empty((len(metres), self.width), np.float32)

        def fill(start: int) -> None:
            rows = slice(start, start + ROWS)
            own = None if own_code is None else (own_code[rows], 1.0 if without is None else without[rows])
            blocks = [self._level_features(level, metres[rows], own) for level in self.levels]
            np.concatenate(blocks, axis=1, out=result[rows])

        starts = range(0, len(metres), ROWS)
        if len(starts) < 2:  # often from a thread already
            for start in starts:
                fill(start)
        else:
            with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
                list(threads.map(fill, starts))
        return result

    def _level_features(self, level: Level, metres: Array, own: tuple[Array, Array | float] | None) -> Array:
        """(B, 2) -> (B, C + 1 + K)."""
        count, code = around(level, metres, own)
        mean = code[:, : self.code_size] / (count + self.prior)[:, None]
        kinds = np.maximum(code[:, self.code_size :], 0)
        return np.column_stack([mean, np.log1p(count), np.log1p(kinds)]).astype(np.float32)


def build_pyramid(metres: Array, text_id: Array, text_vectors: Array, config: TrainConfig) -> Pyramid:
    """The pyramid over N places: metres (N, 2) from the origin, text_id (N,) into text_vectors (V, T)."""
    empty = fit_pyramid(text_vectors, np.bincount(text_id, minlength=len(text_vectors)), config)
    codes = empty.codes(text_vectors)[text_id]
    return empty.with_levels(config.lattice_sizes(), metres, codes)


def fit_pyramid(text_vectors: Array, text_count: Array, config: TrainConfig) -> Pyramid:
    """The codes of (V, T) texts that (V,) POIs carry; without lattices yet."""
    text_code = fit_text_code(text_vectors, text_count, config.code_size)
    kind_code = fit_kinds(text_vectors, text_count, config.kinds)
    return Pyramid(text_code, kind_code, [], config.prior, config.kinds_from_m)


def build_level(size_m: float, metres: Array, codes: Array, sums: type = np.float32) -> Level:
    """One lattice; sums: np.float64 where they are to be added to others, since rounded sums would add up to another.

    codes: (N, W) of the POIs, what this lattice sums up.
    """
    ij = np.floor(metres / size_m).astype(np.int64)
    key, first, inverse = np.unique(cell_key(ij), return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(len(key)))
    # Sums in float64, in the order of the rows: the same POIs give the same bits.
    code_sum = np.add.reduceat(codes[order].astype(np.float64), starts, axis=0)
    return Level(size_m, key, ij[first], np.bincount(inverse).astype(np.float32), code_sum.astype(sums))


def cell_key(ij: Array) -> Array:
    """(..., 2) cell numbers -> (...,) one int64 each."""
    key: Array = ij[..., 0] * (1 << 32) + ij[..., 1]
    return key


def around(level: Level, metres: Array, own: tuple[Array, Array | float] | None) -> tuple[Array, Array]:
    """(B, 2) -> number of POIs (B,) and sum of their codes (B, W), float64: the bilinear mix of the four nearest cells.

    own: the code of the POI at each place, and how much of it is left out, 0 to 1.
    """
    position = metres / level.size_m - 0.5  # cell centres are whole numbers here
    corner = np.floor(position)
    fraction = position - corner
    corner = corner.astype(np.int64)
    own_cell = np.floor(metres / level.size_m).astype(np.int64)
    count = np.zeros(len(metres), np.float64)
    code = np.zeros((len(metres), level.code_sum.shape[1]), np.float64)
    for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        ij = corner + step
        weight = np.prod(np.where(step, fraction, 1 - fraction), axis=1)
        at = np.minimum(np.searchsorted(level.key, cell_key(ij)), len(level.key) - 1)
        found = (level.key[at] == cell_key(ij)) * weight
        count += found * level.count[at]
        code += found[:, None] * level.code_sum[at]
        if own is not None:
            own_code, left_out = own
            share = weight * (ij == own_cell).all(axis=1) * left_out
            count -= share
            code -= share[:, None] * own_code[:, : code.shape[1]]
    return np.maximum(count, 0), code  # of nothing the subtraction leaves a little
