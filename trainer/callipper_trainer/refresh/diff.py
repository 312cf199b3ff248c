"""The differences between a source and a published model: points, and cells of the lattices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from psycopg import sql

from callipper_db.arrays import Array
from callipper_db.binary_copy import read_rows
from callipper_db.db import Connection
from callipper_trainer.context import Level, cell_key
from callipper_trainer.data.samples import Samples
from callipper_trainer.kinds import plain_names


@dataclass(frozen=True)
class PointDiff:
    """The source compared with the stored points."""

    added: Array  # rows of the samples
    changed: Array  # rows of the samples
    removed: Array  # ids of stored points
    as_trained: int  # points of the source that are just as in the training

    @property
    def anything(self) -> bool:
        return bool(len(self.added) or len(self.changed) or len(self.removed))


def compare_points(connection: Connection, version: int, samples: Samples, *, names: bool = True) -> PointDiff:
    """Compare id, place, text and, with `names`, name. Texts and names are compared by their 64-bit hash."""
    query = connection.named(
        "SELECT point_id, ST_X(geom), ST_Y(geom), hashtextextended(text, 0), hashtextextended(name, 0), trained::int4::int2"
        " FROM callipper.point_embedding WHERE version = {} ORDER BY point_id"
    ).format(sql.Literal(version))
    kinds = ["int8", "float8", "float8", "int8", "int8", "int2"]
    stored, lon, lat, text, name, trained = read_rows(connection, query, kinds)
    _, here, there = np.intersect1d(samples.point_id, stored, assume_unique=True, return_indices=True)
    same = (samples.lonlat[here] == np.column_stack([lon, lat])[there]).all(axis=1)
    same &= _hash_texts(connection, samples.texts)[samples.text_id[here]] == text[there]
    if names:
        distinct, number = np.unique(np.array(plain_names(samples), dtype=object), return_inverse=True)
        same &= _hash_texts(connection, distinct.tolist())[number[here]] == name[there]
    return PointDiff(
        added=np.setdiff1d(np.arange(len(samples)), here, assume_unique=True),
        changed=np.sort(here[~same]),
        removed=np.setdiff1d(stored, samples.point_id, assume_unique=True),
        as_trained=int(trained[there[same]].sum()),
    )


def _hash_texts(connection: Connection, texts: list[str]) -> Array:
    rows = connection.execute(
        "SELECT hashtextextended(t, 0) FROM unnest(%s::text[]) WITH ORDINALITY AS l(t, number) ORDER BY number", [texts]
    ).fetchall()
    return np.array([number for (number,) in rows], np.int64)


@dataclass(frozen=True)
class LatticeDiff:
    """The cells of one lattice that differ, as they are now; cells that are empty now have n = 0."""

    number: int
    now: Level

    def is_read_by(self, metres: Array) -> Array:
        """(N, 2) metres from the origin -> (N,) whether one of the four cells that a place reads differs."""
        corner = np.floor(metres / self.now.size_m - 0.5).astype(np.int64)
        result = np.zeros(len(metres), bool)
        if len(self.now.key):
            for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
                key = cell_key(corner + step)
                at = np.minimum(np.searchsorted(self.now.key, key), len(self.now.key) - 1)
                result |= self.now.key[at] == key
        return result


def compare_level(number: int, before: Level, now: Level) -> LatticeDiff:
    """The cells of a lattice that differ in any bit, are new, or are empty now."""
    place = np.minimum(np.searchsorted(before.key, now.key), max(len(before.key) - 1, 0))
    known = before.key[place] == now.key if len(before.key) else np.zeros(len(now.key), bool)
    same = np.zeros(len(now.key), bool)
    same[known] = now.count[known] == before.count[place[known]]
    same[known] &= (now.code_sum[known] == before.code_sum[place[known]]).all(axis=1)
    gone = np.isin(before.key, now.key, assume_unique=True, invert=True)
    key = np.concatenate([now.key[~same], before.key[gone]])
    order = np.argsort(key)
    columns = [
        (now.ij[~same], before.ij[gone]),
        (now.count[~same], np.zeros(gone.sum(), np.float32)),
        (now.code_sum[~same], np.zeros_like(before.code_sum[gone])),
    ]
    return LatticeDiff(number, Level(now.size_m, key[order], *(np.concatenate(pair)[order] for pair in columns)))
