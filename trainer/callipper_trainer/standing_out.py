"""Which kinds of places stand out at each of many places: what callipper.describe() says of one, for all cells at once.

The rule is that of sql/050_describe.sql, and a test holds the two together. describe() takes a tenth of a second a place, so
a city of 200,000 cells would take hours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from psycopg import sql
from scipy.spatial import cKDTree

from callipper_db import partitions
from callipper_db.arrays import Array
from callipper_db.binary_copy import read_rows
from callipper_db.db import Connection

REACH_M = 250.0  # how far describe() looks
TWICE = 2.0  # a kind is said if its share is at least this many times its share in the city,
SHRUNK = 1.2  # and at least this many times with
PRIOR = 5.0  # that many POIs of the usual mix next to those that are there
ROWS = 20_000  # places at once


@dataclass(frozen=True)
class PoiKinds:
    """The kinds of a version's POIs. N POIs, K kinds, M further kinds that names suggest."""

    names: list[str]  # (K,)
    said: Array  # (K,) bool, whether describe() may say it
    share: Array  # (K,) float64, of the city's POIs
    metres: Array  # (N, 2) easting and northing
    own: Array  # (N,) kind of the category
    named_poi: Array  # (M,) POI whose name suggests a kind, ascending
    named_kind: Array  # (M,) that kind


def read_poi_kinds(connection: Connection, version: int) -> PoiKinds | None:
    """The kinds of a published version; None for a version of an earlier program, which has none."""
    rows = connection.execute(
        "SELECT kind_id, name, said, pois, own_pois FROM callipper.kind WHERE version = %s ORDER BY kind_id", [version]
    ).fetchall()
    if not rows:
        return None
    query = sql.SQL("SELECT point_id, kind_id, by_name, easting, northing FROM {}").format(
        partitions.partition("point_kind", version)
    )
    point_id, kind_id, by_name, easting, northing = read_rows(
        connection, query, ["int8", "int4", "bool", "float8", "float8"]
    )
    number = np.full(rows[-1][0] + 1, -1)
    number[[row[0] for row in rows]] = np.arange(len(rows))
    own = np.flatnonzero(~by_name)
    own = own[np.argsort(point_id[own])]
    named = np.searchsorted(point_id[own], point_id[by_name])
    order = np.argsort(named, kind="stable")
    pois, own_pois = (np.array([row[column] for row in rows], np.float64) for column in (3, 4))
    return PoiKinds(
        [row[1] for row in rows],
        np.array([row[2] for row in rows]),
        pois / max(own_pois.sum(), 1),
        np.column_stack([easting, northing])[own],
        number[kind_id[own]],
        named[order],
        number[kind_id[by_name]][order],
    )


def kinds_around(pois: PoiKinds, metres: Array, most: int) -> tuple[list[str | None], Array]:
    """(P, 2) places -> up to `most` kinds that stand out within 250 m of each, as one text, and (P,) POIs there.

    The most significant kind comes first; None where nothing stands out.
    """
    tree = cKDTree(pois.metres)
    texts: list[str | None] = []
    counts = np.zeros(len(metres), np.int64)
    for start in range(0, len(metres), ROWS):
        here = cKDTree(metres[start : start + ROWS])
        pairs = here.sparse_distance_matrix(tree, REACH_M, output_type="ndarray")
        some, count = standing_out(pois, pairs["i"], pairs["j"], here.n, most)
        texts += some
        counts[start : start + ROWS] = count
    return texts, counts


def standing_out(pois: PoiKinds, place: Array, poi: Array, places: int, most: int) -> tuple[list[str | None], Array]:
    """The same for (R,) pairs of a place, from 0 to `places`, and a POI there."""
    count = np.bincount(place, minlength=places)
    many = len(pois.names)
    place, kind, own = _with_names(pois, place, poi)
    key, pairs = np.unique((place * many + kind) * many + own, return_counts=True)  # a row each of describe's `here`
    place, kind, own = key // many**2, key // many % many, key % many
    said = pois.said[kind] & (pois.share[kind] > 0)
    of_place = count[place]
    # What a name suggests counts only where the POI's own kind does not stand out.
    alone = said & (kind == own) & (pairs / of_place >= TWICE * pois.share[kind])
    counting = said & ((kind == own) | ~np.isin(place * many + own, (place * many + kind)[alone]))
    key, row = np.unique((place * many + kind)[counting], return_inverse=True)
    found = np.bincount(row, weights=pairs[counting], minlength=len(key))
    place, kind = key // many, key % many
    share = pois.share[kind]
    lift = found / count[place] / share
    shrunk = (found + PRIOR * share) / (count[place] + PRIOR) / share
    best = np.flatnonzero((lift >= TWICE) & (shrunk >= SHRUNK))
    place, kind, score = place[best], kind[best], (found * np.log(shrunk))[best]
    by_name = np.argsort(np.argsort(np.array(pois.names, object)))[kind]
    order = np.lexsort([by_name, -score, place])
    place, kind = place[order], kind[order]
    rank = np.arange(len(place)) - np.searchsorted(place, place)
    words: list[list[str]] = [[] for _ in range(places)]
    for number, said_kind in zip(place[rank < most].tolist(), kind[rank < most].tolist(), strict=True):
        words[number].append(pois.names[said_kind])
    return [", ".join(some) if some else None for some in words], count


def _with_names(pois: PoiKinds, place: Array, poi: Array) -> tuple[Array, Array, Array]:
    """Pairs of a place and a POI -> place, kind and own kind of each kind that the POI is of."""
    first = np.searchsorted(pois.named_poi, np.arange(len(pois.own) + 1))
    more = np.diff(first)[poi]  # kinds that the POI's name suggests
    again = np.repeat(np.arange(len(poi)), more)
    nth = np.arange(len(again)) - np.repeat(np.cumsum(more) - more, more)
    named = pois.named_kind[first[poi[again]] + nth]
    own = pois.own[poi]
    return (
        np.concatenate([place, place[again]]).astype(np.int64),
        np.concatenate([own, named]).astype(np.int64),
        np.concatenate([own, own[again]]).astype(np.int64),
    )
