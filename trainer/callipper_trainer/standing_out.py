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

REACH_M = 250.0  # how far describe() looks, as callipper._evidence_reach_m(); ...
FARTHER_M = (500.0, 1000.0)  # ... and where fewer than LEAST_POIS are so near, as callipper._describe_reach_m()
LEAST_POIS = 5
TWICE = 2.0  # a kind is said if its share is at least this many times its share in the city
ONCE = 1.0  # the same of a prominent kind
PROMINENCE = 1.5  # what the rarity of a prominent kind counts for, to one deviation of a kind's number
RARE = 6.0  # the -ln of its share in the city with which a kind counts as it is; a commoner one counts for less
MORE_POIS = 5.0  # in the city, which keep the rarest kinds in bounds
ROWS = 20_000  # places at once


@dataclass(frozen=True)
class PoiKinds:
    """What counts as evidence for the kinds of a version's POIs. K kinds, N POIs, M pairs of a POI and a kind."""

    names: list[str]  # (K,), sorted
    said: Array  # (K,) bool, whether describe() may say it
    rarity: (
        Array  # (K,) PROMINENCE times -ln of the share of the city that has one near; NaN for all but prominent kinds
    )
    sure_pois: Array  # (K,) float64
    city: float  # POIs
    likeness: Array  # (K, K) cosine of the kinds' names
    metres: Array  # (N, 2) easting and northing
    pair_poi: Array  # (M,) ascending
    pair_kind: Array  # (M,)
    pair_weight: Array  # (M,) float64: 1, or a half
    pair_name: Array  # (M,) number of a bus stop's name, which counts once; -1 for all else


def read_poi_kinds(connection: Connection, version: int) -> PoiKinds | None:
    """The kinds of a published version; None for a version of an earlier program, which has none."""
    rows = connection.execute(
        "SELECT kind_id, name, said, landmark, own_pois, sure_pois, -ln(area_share) FROM callipper.kind"
        " WHERE version = %s ORDER BY name",
        [version],
    ).fetchall()
    if not rows:
        return None
    rows.sort(key=lambda row: row[1])
    number = np.full(max(row[0] for row in rows) + 1, -1)
    number[[row[0] for row in rows]] = np.arange(len(rows))
    said, landmark, own, sure = (np.array([row[column] for row in rows]) for column in range(2, 6))
    query = sql.SQL(
        "SELECT p.point_id, p.kind_id, p.basis, p.easting, p.northing, hashtextextended(e.name, 0)"
        " FROM {} p JOIN {} e USING (point_id)"
    ).format(partitions.partition("point_kind", version), partitions.partition("point_embedding", version))
    point_id, kind_id, basis, easting, northing, name = read_rows(
        connection, query, ["int8", "int4", "int2", "float8", "float8", "int8"]
    )
    kind, first = number[kind_id], np.flatnonzero(basis == 0)
    first = first[np.argsort(point_id[first])]
    counts = (basis == 0) | (own[kind] == 0) & ((basis == 1) | ((basis == 2) & ~landmark[kind]) | (basis == 4))
    poi = np.searchsorted(point_id[first], point_id)
    rows_in = np.flatnonzero(counts)[np.argsort(poi[counts], kind="stable")]
    _, name = np.unique(name, return_inverse=True)
    return PoiKinds(
        [row[1] for row in rows],
        said,
        PROMINENCE * np.array([row[6] for row in rows], np.float64),
        sure.astype(np.float64),
        float(own.sum()),
        _likeness(connection, version, rows, number),
        np.column_stack([easting, northing])[first],
        poi[rows_in],
        kind[rows_in],
        np.where(basis[rows_in] > 1, 0.5, 1.0),
        np.where(basis[rows_in] == 4, name[rows_in], -1),
    )


def _likeness(connection: Connection, version: int, rows: list[tuple[object, ...]], number: Array) -> Array:
    found = connection.execute(
        "SELECT k.kind_id, p.vec::real[] FROM callipper.kind k JOIN callipper.kind_phrase p"
        " ON p.version = k.version AND p.kind_id = k.kind_id AND p.phrase = k.name WHERE k.version = %s",
        [version],
    ).fetchall()
    result = np.zeros((len(rows), len(rows)))
    if found:
        place = number[[kind_id for kind_id, _ in found]]
        vectors = np.array([vec for _, vec in found])
        result[np.ix_(place, place)] = vectors @ vectors.T
    return result


def kinds_around(pois: PoiKinds, metres: Array, most: int) -> tuple[list[str | None], Array]:
    """(P, 2) places -> up to `most` kinds that stand out near each, as one text, and (P,) POIs within 250 m.

    The most telling kind comes first; None where nothing stands out.
    """
    tree = cKDTree(pois.metres)
    texts: list[str | None] = []
    counts = np.zeros(len(metres), np.int64)
    for start in range(0, len(metres), ROWS):
        here = cKDTree(metres[start : start + ROWS])
        pairs = here.sparse_distance_matrix(tree, REACH_M, output_type="ndarray")
        some, count = standing_out(pois, pairs["i"], pairs["j"], here.n, most)
        counts[start : start + ROWS] = count
        for reach in FARTHER_M:
            lonely = np.flatnonzero(count < LEAST_POIS)
            pairs = cKDTree(here.data[lonely]).sparse_distance_matrix(tree, reach, output_type="ndarray")
            more, count[lonely] = standing_out(pois, pairs["i"], pairs["j"], len(lonely), most)
            for row, text in zip(lonely.tolist(), more, strict=True):
                some[row] = text
        texts += some
    return texts, counts


def standing_out(pois: PoiKinds, place: Array, poi: Array, places: int, most: int) -> tuple[list[str | None], Array]:
    """The same for (R,) pairs of a place, from 0 to `places`, and a POI there."""
    count = np.bincount(place, minlength=places)
    many = len(pois.names)
    place, pair = _pairs(pois, place, poi)
    # A bus stop's name counts once a place and kind.
    once = np.unique(
        np.column_stack(
            [place, pois.pair_kind[pair], pois.pair_name[pair], np.where(pois.pair_name[pair] < 0, pair, -1)]
        ),
        axis=0,
        return_index=True,
    )[1]
    place, pair = place[once], pair[once]
    key, row = np.unique(place * many + pois.pair_kind[pair], return_inverse=True)
    evidence = np.bincount(row.reshape(-1), weights=pois.pair_weight[pair], minlength=len(key))
    place, kind = key // many, key % many
    sure_pois = pois.sure_pois[kind]
    rarity = pois.rarity[kind]
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = evidence / count[place] / (sure_pois / pois.city)
    usual = np.minimum(evidence, count[place] * (sure_pois + MORE_POIS) / pois.city)
    ratio = evidence * np.log(evidence / usual) - (evidence - usual)
    with np.errstate(divide="ignore"):
        rareness = np.maximum(0, np.log(pois.city / sure_pois)) / RARE
    gain = np.fmax(np.sqrt(ratio * rareness), rarity)
    enough = (lift >= TWICE) | (~np.isnan(rarity) & (lift >= ONCE))
    best = np.flatnonzero(pois.said[kind] & (sure_pois > 0) & enough & (evidence >= 1))
    place, kind, gain = place[best], kind[best], gain[best]
    words: list[list[str]] = [[] for _ in range(places)]
    for _ in range(most):
        # The rows are in the order of place and of name: of equal gains the first wins.
        order = np.lexsort([np.arange(len(place)), -gain, place])
        first = order[np.unique(place[order], return_index=True)[1]]
        first = first[gain[first] > 0]
        chosen = np.full(places, -1)
        chosen[place[first]] = kind[first]
        for number, said in zip(place[first].tolist(), kind[first].tolist(), strict=True):
            words[number].append(pois.names[said])
        said_there = chosen[place]
        left = np.clip((0.9 - pois.likeness[kind, said_there]) / 0.5, 0, 1)
        gain = np.where(said_there < 0, 0, np.where(kind == said_there, 0, gain * left))
    return [", ".join(some) if some else None for some in words], count


def _pairs(pois: PoiKinds, place: Array, poi: Array) -> tuple[Array, Array]:
    """Pairs of a place and a POI -> place and row of each kind that the POI is evidence for."""
    first = np.searchsorted(pois.pair_poi, np.arange(len(pois.metres) + 1))
    more = np.diff(first)[poi]
    again = np.repeat(np.arange(len(poi)), more)
    nth = np.arange(len(again)) - np.repeat(np.cumsum(more) - more, more)
    return place[again].astype(np.int64), first[poi[again]] + nth
