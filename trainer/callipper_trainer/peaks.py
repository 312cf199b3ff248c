"""The first half of an embedding: where each kind of place peaks in the city.

The location encoder knows what a neighbourhood is like, but a contrast over thousands of POIs has no room for the one bicycle
shop of a street. So the kinds of the POIs (kinds.py) are counted around a place. Only counts that stand out in the city are
kept: for each kind what exceeds a threshold, as a ReLU does it. Hundreds of kinds share 128 numbers: each has a direction of
its own, almost at right angles to those of the kinds that it could be confused with.

A text is the sum of the directions of the kinds that it asks for, by the phrases of the thesaurus and their words. So the
inner product of a place and a text is how far the kinds that the text asks for stand out at the place.

Most places stand out in nothing. The first half of every place echoes a little of its second: numbers that are nearly always
zero are noise to a reader that scales each number by its deviation. A text takes away from its second half what the echo adds
to its inner products. In a version of an earlier program, principal components of the context take the place of the echo (the
summary), and a text takes away as much of them as the second half of a place foretells.

A place has length 1. The second half, the location encoder's, has what the first half leaves. docs/experiments.md says how the
numbers below were chosen.

Shapes: N places, K kinds, V texts, P phrases, C numbers of the context, T dimensions of the sentence encoder.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from psycopg import sql
from scipy.sparse import csr_array, diags_array
from scipy.spatial import KDTree

from callipper_db.arrays import Array
from callipper_db.binary_copy import Columns, read_rows
from callipper_db.db import Connection
from callipper_db.tables import PEAK_DIMENSIONS
from callipper_trainer.context import cell_key
from callipper_trainer.weight_rows import WeightRows

FORETOLD = "foretold"  # the layer's name in location_weight
SQUARE_M = 100.0  # callipper.point_kind counts by these squares
FEWEST_PHRASES = 10  # that a kind counts as having, where their number makes it less near
ROWS = 512  # texts that are compared with all phrases at once
ROWS_SHARED = 4096  # texts whose words are looked up at once


@dataclass(frozen=True)
class PeakRule:
    """How peaks are found; kept with the model, so that a later program reads them as they were made."""

    reach_m: float = 250.0  # POIs count up to here, each axis, and less the farther they are
    prior: float = 2.0  # POIs that are added to those around a place
    power: float = 0.5  # counts are divided by this power of the POIs around: 1 gives shares, 0 numbers
    by_name: float = float(np.exp(-1))  # weight of a kind that only the POI's name suggests
    tail: float = 0.0015  # share of the squares above a kind's threshold
    fewest: int = 15  # squares above the threshold in a small city
    equalising: float = 0.5  # 1 makes the peaks of rare kinds as high as those of frequent ones, 0 leaves them
    full: float = 0.0003  # share of the squares at which the first half has all of the length
    sharpness: float = 20.0  # a text asks for kinds by exp(sharpness * cosine)
    softness: float | None = (
        12.0  # of the maximum over a kind's phrases; None in a version of an earlier program: the nearest alone
    )
    evenness: float = (
        0.5  # 0: the more phrases a kind has, the nearer it is; 1: the mean counts; 0 in an earlier program's version
    )
    by_words: float = (
        0.5  # what a kind gains whose phrases share all words with a text; 0 in an earlier program's version
    )
    width: float = 0.08  # kinds that are farther than the nearest one by this cosine are not asked for
    floor: float = 0.4  # cosine from which a text asks for kinds at all
    text_context: float = 0.2  # length of a text's second half, to 1 of its first
    echo: float = 0.4  # length of the second half that is added to the first; 0 in an earlier program's version
    summary: float = 0.0  # the same of the context's summary; 0.15 in an earlier program's version
    length: float = 1.0  # of the summed directions of a place where the first half has all of the length
    # Of a first half at most; 1 in a version of an earlier program. The second half is the root of what is left, and
    # near 0 the root would turn the last digit of float32 into 1e-4.
    most: float = 0.999

    @property
    def echoed(self) -> float:
        """What a text's first half adds to an inner product by way of the echo, in numbers of a place's second half.

        That half is the shorter for the echo. Exact where a place stands out in nothing.
        """
        return self.echo / float(np.sqrt(1 - self.echo**2))


@dataclass(frozen=True)
class Summary:
    """What the first half of a place has of its context in a version of an earlier program."""

    weight: Array  # (128, C) float32: the context's principal components
    bias: Array  # (128,) float32
    foretold: Array  # (128, 128) float32: the summary's numbers from those of the second half

    def of(self, context: Array) -> Array:
        """(N, C) standardised context -> (N, 128) float64, unit length."""
        summary = (context @ self.weight.T + self.bias).astype(np.float64)
        return np.asarray(summary / np.maximum(np.linalg.norm(summary, axis=1, keepdims=True), 1e-12))


@dataclass(frozen=True)
class PointKinds:
    """Rows of callipper.point_kind: the POIs, their kinds, and the squares of 100 m that they stand in."""

    point_id: Array  # (R,) int64
    kind: Array  # (R,) int32
    by_name: Array  # (R,) bool
    ij: Array  # (R, 2) int64

    def without(self, point_ids: Array) -> PointKinds:
        """Less some POIs."""
        kept = ~np.isin(self.point_id, point_ids)
        return PointKinds(self.point_id[kept], self.kind[kept], self.by_name[kept], self.ij[kept])

    def plus(self, other: PointKinds) -> PointKinds:
        """With more rows."""
        pairs = zip(self.columns, other.columns, strict=True)
        return PointKinds(*(np.concatenate(pair) for pair in pairs))

    @property
    def columns(self) -> tuple[Array, Array, Array, Array]:
        return self.point_id, self.kind, self.by_name, self.ij

    def changed_squares(self, now: PointKinds) -> Array:
        """(S, 2) squares in which kinds are counted otherwise now."""
        rows = [np.column_stack([part.ij, part.kind, part.by_name]) for part in (self, now)]
        distinct, inverse = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
        signs = np.repeat([1, -1], [len(part) for part in rows])
        changed = np.bincount(inverse.reshape(-1), weights=signs, minlength=len(distinct)) != 0
        result: Array = np.unique(distinct[changed, :2], axis=0)
        return result


@dataclass(frozen=True)
class KindPeaks:
    """The first half of both towers."""

    rule: PeakRule
    kind_id: Array  # (K,) int, the kinds that have a direction, ascending
    code: Array  # (K, 128) float32, their directions, unit length
    threshold: Array  # (K,) float32
    gain: Array  # (K,) float32
    phrase_kind: Array  # (P,) rows of kind_id, ascending
    phrases: Array  # (P, T) float32, unit length
    points: PointKinds
    summary: Summary | None = None  # of a version of an earlier program

    @cached_property
    def squares(self) -> tuple[Array, csr_array, Array]:
        """(S,) keys of the squares, ascending, (S, K) what they hold of each kind, and (S,) how many POIs."""
        points = self.points
        key, square = np.unique(cell_key(points.ij), return_inverse=True)
        row = np.minimum(np.searchsorted(self.kind_id, points.kind), len(self.kind_id) - 1)
        known = self.kind_id[row] == points.kind
        own, named = (
            self._count(square, row, known & chosen, len(key)) for chosen in (~points.by_name, points.by_name)
        )
        return key, own + self.rule.by_name * named, np.bincount(square, weights=~points.by_name, minlength=len(key))

    def _count(self, square: Array, row: Array, chosen: Array, squares: int) -> csr_array:
        """(squares, K) whole numbers, which add up to the same in any order."""
        pairs = (square[chosen], row[chosen])
        return csr_array((np.ones(len(pairs[0])), pairs), shape=(squares, len(self.kind_id)))

    def evidence(self, metres: Array) -> csr_array:
        """(N, 2) easting and northing -> (N, K) how many POIs of each kind stand around, for their surroundings."""
        key, held, pois = self.squares
        reach = self.rule.reach_m / SQUARE_M
        here = metres / SQUARE_M - 0.5  # centres of squares are whole numbers here
        first = np.ceil(here - reach).astype(np.int64)
        rows, columns, shares = [], [], []
        steps = range(int(2 * reach) + 1)
        for step in ((east, north) for east in steps for north in steps):
            ij = first + step
            share = np.prod(np.maximum(0, 1 - np.abs(here - ij) / reach), axis=1)
            at = np.minimum(np.searchsorted(key, cell_key(ij)), len(key) - 1)
            found = np.flatnonzero((key[at] == cell_key(ij)) & (share > 0))
            rows.append(found)
            columns.append(at[found])
            shares.append(share[found])
        pairs = (np.concatenate(rows), np.concatenate(columns))
        around = csr_array((np.concatenate(shares), pairs), shape=(len(metres), len(key)))
        return diags_array((around @ pois + self.rule.prior) ** -self.rule.power) @ (around @ held)

    def standing_out(self, metres: Array) -> csr_array:
        """(N, 2) -> (N, K) by how much the evidence stands out."""
        evidence = self.evidence(metres).tocsr()
        over = np.maximum(evidence.data - self.threshold[evidence.indices], 0) * self.gain[evidence.indices]
        return csr_array((over, evidence.indices, evidence.indptr), shape=evidence.shape)

    def embed_places(self, metres: Array, context: Array, second: Array) -> Array:
        """(N, 2) easting and northing in the model's CRS, (N, C) standardised context and (N, 128) second halves of unit length
        -> (N, 128) float64, length < 1.
        """
        result = self.standing_out(metres) @ self.code.astype(np.float64)
        result /= np.maximum(np.linalg.norm(result, axis=1, keepdims=True), self.rule.length)
        if self.summary is None:
            result += self.rule.echo * second
        else:
            result += self.rule.summary * self.summary.of(context)
        result /= np.maximum(np.linalg.norm(result, axis=1, keepdims=True) / self.rule.most, 1)
        return np.asarray(result)

    def join_text(self, first: Array, second: Array) -> Array:
        """(V, 128) of embed_texts, (V, 128) second halves of unit length -> (V, 256) float64, unit length."""
        asks = first.any(axis=1, keepdims=True)
        summary = self.summary
        added = self.rule.echoed * first if summary is None else self.rule.summary * (first @ summary.foretold)
        second = np.where(asks, self.rule.text_context * second - added, second)
        joined = np.concatenate([first, second], axis=1)
        return np.asarray(joined / np.linalg.norm(joined, axis=1, keepdims=True))

    def embed_texts(self, vectors: Array, shared: csr_array | None = None) -> Array:
        """(V, T) vectors of the sentence encoder -> (V, 128) float64, of unit length, or zeros where no kind is asked for.

        shared: (V, K), what shared_words() finds of the texts; without it words do not count.
        """
        result = np.zeros((len(vectors), PEAK_DIMENSIONS))
        starts = np.flatnonzero(np.diff(self.phrase_kind, prepend=-1))
        kinds = self.phrase_kind[starts]
        for start in range(0, len(vectors), ROWS):
            rows = slice(start, start + ROWS)
            asked = vectors[rows] / np.maximum(np.linalg.norm(vectors[rows], axis=1, keepdims=True), 1e-12)
            cosines = np.asarray(asked, np.float32) @ self.phrases.T
            asks = cosines.max(axis=1, keepdims=True) >= self.rule.floor
            likeness = self._likeness(cosines, starts)
            if shared is not None:
                likeness += self.rule.by_words * shared[rows].toarray()[:, kinds]
            nearest = likeness.max(axis=1, keepdims=True)
            weight = np.exp(self.rule.sharpness * (likeness - nearest))
            weight *= (likeness >= nearest - self.rule.width) & asks
            summed = weight @ self.code[kinds].astype(np.float64)
            result[rows] = summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-12)
        return result

    def _likeness(self, cosines: Array, starts: Array) -> Array:
        """(B, P) cosines to all phrases, the first of each kind -> (B, K) float64, a soft maximum."""
        if self.rule.softness is None:
            return np.maximum.reduceat(cosines, starts, axis=1).astype(np.float64)
        summed = np.add.reduceat(np.exp(np.float32(self.rule.softness) * cosines), starts, axis=1)
        number = np.maximum(np.diff(starts, append=cosines.shape[1]), FEWEST_PHRASES)
        return np.asarray(
            (np.log(summed.astype(np.float64)) - self.rule.evenness * np.log(number)) / self.rule.softness
        )

    def over(self, points: PointKinds) -> KindPeaks:
        """The same over other POIs."""
        return replace(self, points=points)

    def reads(self, metres: Array, squares: Array) -> Array:
        """(N, 2) easting and northing, (S, 2) squares -> (N,) whether a place reads one of the squares."""
        if not len(squares):
            return np.zeros(len(metres), bool)
        centres = (squares + 0.5) * SQUARE_M
        distance, _ = KDTree(centres).query(
            metres, p=np.inf, distance_upper_bound=np.nextafter(self.rule.reach_m, np.inf)
        )
        result: Array = np.isfinite(distance)
        return result

    def entry(self) -> dict[str, Any]:
        """What model.arch says of it."""
        return asdict(self.rule)


def write_peaks(connection: Connection, version: int, peaks: KindPeaks) -> None:
    """Write thresholds, gains and directions; kinds, phrases and POIs are there already."""
    columns: Columns = {
        "kind_id": ("int4", peaks.kind_id),
        "threshold": ("float4", peaks.threshold),
        "gain": ("float4", peaks.gain),
        "direction": ("vector", peaks.code),
    }
    WeightRows(connection, version).write("kind_peak", columns)


def read_peaks(
    connection: Connection, version: int, entry: dict[str, Any], text_dim: int, summary: tuple[Array, Array] | None
) -> KindPeaks:
    """The peaks of a stored version. entry: model.arch's; text_dim: T; summary: weight and bias of a Summary."""
    query = "SELECT kind_id, threshold, gain, direction FROM callipper.kind_peak WHERE version = {} ORDER BY kind_id"
    kinds = ["int4", "float4", "float4", "vector"]
    kind_id, threshold, gain, code = _read(connection, version, query, kinds, PEAK_DIMENSIONS)
    query = (
        "SELECT kind_id, vec FROM callipper.kind_phrase JOIN callipper.kind_peak USING (version, kind_id) WHERE version = {}"
        ' ORDER BY kind_id, phrase COLLATE "C"'
    )
    of, phrases = _read(connection, version, query, ["int4", "vector"], text_dim)
    points, row = read_points(connection, version), np.searchsorted(kind_id, of)
    older = {"softness": None, "evenness": 0.0, "by_words": 0.0, "most": 1.0, "echo": 0.0}
    return KindPeaks(
        PeakRule(**older | entry),
        kind_id,
        code,
        threshold,
        gain,
        row,
        phrases,
        points,
        # Stored with a row per number of the second half, since SQL takes inner products of rows.
        None if summary is None else Summary(*summary, WeightRows(connection, version).read_layer(FORETOLD)[0].T),
    )


def read_points(connection: Connection, version: int) -> PointKinds:
    """The kinds of a version's POIs."""
    query = (
        "SELECT point_id, kind_id, basis > 0, i, j FROM callipper.point_kind WHERE version = {} AND basis < 4"
        " ORDER BY point_id, kind_id"
    )
    point_id, kind, by_name, i, j = _read(connection, version, query, ["int8", "int4", "bool", "int4", "int4"])
    return PointKinds(point_id, kind, by_name.astype(bool), np.column_stack([i, j]).astype(np.int64))


def shared_words(connection: Connection, version: int, peaks: KindPeaks | None, texts: list[str]) -> csr_array | None:
    """(V,) texts -> (V, K) how much of each one the phrases of each kind of the peaks share with it, as SQL says by the
    version's words. None where they do not count.
    """
    if peaks is None or not peaks.rule.by_words:
        return None
    kind_id = peaks.kind_id
    row, column, share = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [np.empty(0, np.float32)]
    for start in range(0, len(texts), ROWS_SHARED):
        query = sql.SQL(
            "SELECT number, kind_id, share FROM callipper._shared_words({}, {}::text[], {}::int4[])"
        ).format(sql.Literal(version), sql.Literal(texts[start : start + ROWS_SHARED]), sql.Literal(kind_id.tolist()))
        number, kind, part = read_rows(connection, query, ["int4", "int4", "float8"])
        row.append(number - 1 + start)
        column.append(np.searchsorted(kind_id, kind).astype(np.int32))
        share.append(part.astype(np.float32))
    pairs = (np.concatenate(row), np.concatenate(column))
    return csr_array((np.concatenate(share), pairs), shape=(len(texts), len(kind_id)))


def _read(connection: Connection, version: int, query: str, kinds: list[str], dim: int = 0) -> list[Array]:
    return read_rows(connection, sql.SQL(query).format(sql.Literal(version)), kinds, dim)
