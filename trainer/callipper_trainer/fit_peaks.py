"""Fits the first half of an embedding to the kinds of POIs: thresholds, gains and directions (peaks.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from callipper_db.arrays import Array
from callipper_db.tables import PEAK_DIMENSIONS
from callipper_trainer.data.samples import Samples
from callipper_trainer.kinds import Basis, Encode, KindRows, Kinds, find_kinds
from callipper_trainer.peaks import SQUARE_M, KindPeaks, PeakRule, PointKinds

MOST_KINDS = 1024  # that have a direction, the most frequent ones
FRAME_STEPS, FRAME_RATE = 300, 0.05
LOWEST_PEAK = 0.05  # keeps the gain of a kind without a peak within bounds


def point_kinds(kinds: Kinds, parts: Iterator[Samples]) -> PointKinds:
    """Of samples, in parts."""
    columns = []
    for part in parts:
        row, kind, basis = kinds.rows(part)
        of_it = basis < Basis.NEAR
        row, kind, by_name = row[of_it], kind[of_it], basis[of_it] > Basis.CATEGORY
        ij = np.floor(part.metres[row] / SQUARE_M).astype(np.int64)
        columns.append((part.point_id[row].astype(np.int64), kind.astype(np.int32), by_name, ij))
    return PointKinds(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def find_peaks(samples: Samples, text_vectors: Array, encode: Encode) -> KindPeaks | None:
    """The peaks of samples whose kinds are not known yet. text_vectors: (V, T) of samples.texts."""
    kinds, rows = find_kinds(samples, text_vectors, encode)
    return fit_peaks(kinds, rows, point_kinds(kinds, samples.chunks()))


def fit_peaks(kinds: Kinds, rows: KindRows, points: PointKinds, rule: PeakRule | None = None) -> KindPeaks | None:
    """Thresholds, gains and directions for the kinds of POIs; None where no POI is of a kind.

    rows: of all kinds, with the vectors of their phrases.
    """
    rule = rule or PeakRule()
    count = np.bincount(points.kind, minlength=len(kinds.names))
    frequent = np.lexsort((np.arange(len(count)), -count))[:MOST_KINDS]
    kind_id = np.sort(frequent[count[frequent] > 0])
    if not len(kind_id):
        return None
    number = np.array([kind for kind, _ in rows.phrases])
    at = np.minimum(np.searchsorted(kind_id, number), len(kind_id) - 1)
    known = kind_id[at] == number
    ones = np.ones(len(kind_id), np.float32)
    empty = np.zeros((len(kind_id), PEAK_DIMENSIONS), np.float32)
    squares = (np.unique(points.ij, axis=0) + 0.5) * SQUARE_M
    peaks = KindPeaks(rule, kind_id, empty, 0 * ones, ones, at[known], rows.vectors[known], points)
    evidence = peaks.evidence(squares).tocsc()
    above = max(round(rule.tail * len(squares)), min(rule.fewest, len(squares) // 10))
    peaks = replace(peaks, threshold=_ranked(evidence, above).astype(np.float32))
    height = _ranked(peaks.standing_out(squares).tocsc(), above // 6)
    peaks = replace(peaks, gain=(np.maximum(height, LOWEST_PEAK) ** -rule.equalising).astype(np.float32))
    strength = np.sqrt((peaks.standing_out(squares) ** 2).mean(axis=0))
    peaks = replace(peaks, code=_directions(peaks.phrases, peaks.phrase_kind, strength))
    length = np.sort(np.linalg.norm(peaks.standing_out(squares) @ peaks.code.astype(np.float64), axis=1))[::-1]
    full = float(length[int(rule.full * len(squares))])
    return replace(peaks, rule=replace(rule, length=full if full > 0 else 1.0))


def _ranked(values: Any, rank: int) -> Array:
    """(S, K) sparse, no value below 0 -> (K,) of each column the value that `rank` others exceed."""
    result = np.zeros(values.shape[1])
    for column in range(values.shape[1]):
        data = values.data[values.indptr[column] : values.indptr[column + 1]]
        if len(data) > rank:
            result[column] = -np.partition(-data, rank)[rank]
    return result


def _directions(phrases: Array, phrase_kind: Array, strength: Array) -> Array:
    """(P, T) phrases of kinds -> (K, 128) unit vectors, the nearer to a right angle the stronger the kinds are.

    They begin as the principal components of the kinds' phrases, so that kinds of like meaning share a direction first.
    strength: (K,) root mean square of a kind over the city: how much it disturbs the others.
    """
    count = len(strength)
    if count <= PEAK_DIMENSIONS:
        return np.eye(count, PEAK_DIMENSIONS, dtype=np.float32)
    sums = np.zeros((count, phrases.shape[1]))
    np.add.at(sums, phrase_kind, phrases.astype(np.float64))
    means = sums / np.maximum(np.bincount(phrase_kind, minlength=count), 1)[:, None]
    centred = means - means.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    # Not quite zero where the phrases have fewer components, since a gradient of nothing but zeros stays zero.
    begun = 1e-3 * np.random.default_rng(0).standard_normal((count, PEAK_DIMENSIONS))
    kept = min(PEAK_DIMENSIONS, len(values))
    begun[:, :kept] = left[:, :kept] * np.sign(left[np.abs(left[:, :kept]).argmax(axis=0), np.arange(kept)])
    begun[:, :kept] *= np.sqrt(values[:kept])  # half-way to directions of equal weight
    weight = torch.from_numpy((strength + 1e-6) / (strength + 1e-6).mean()).float()[:, None]
    vectors = torch.from_numpy(begun / np.maximum(np.linalg.norm(begun, axis=1, keepdims=True), 1e-12)).float()
    vectors.requires_grad_()
    optimiser = torch.optim.Adam([vectors], lr=FRAME_RATE)
    for _ in range(FRAME_STEPS):
        unit = functional.normalize(vectors, dim=1)
        disturbance = ((unit @ unit.T - torch.eye(count)) ** 2 * weight).sum()
        optimiser.zero_grad()
        disturbance.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    directions: Array = functional.normalize(vectors.detach(), dim=1).numpy()
    return directions
