"""Versions with evidence: a small town made by hand, and what search() and describe() must say of it, computed in Python."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from psycopg import sql
from psycopg.types.json import Jsonb

from callipper_db import binary_copy
from callipper_db.arrays import Array
from callipper_db.db import Connection
from callipper_db.tables import DIMENSIONS
from handmade import ORIGIN, Model, unit_vectors, write_model, write_partition, write_sample
from kind_words import lexemes, lexemes_of_kinds, shared_words

REACH_M = 250.0
FARTHER_M = (500.0, 1000.0)  # where fewer than FEW POIs are near
FEW = 5
SQUARE_M = 100.0
READINGS = 8  # of a question that are told apart
QUESTIONS = ("pub", "park", "fresh fish", "school", "quiet street", "the old mill")
KINDS = ("bakery", "bank", "cafe", "kiosk", "mill", "pub", "school", "shop", "waste basket")
UNSAID = "waste basket"
LANDMARK = "school"
BY_NAME = "mill"  # no POI has it as its category
NAMES = ("", "", "The Old Mill", "Mill", "Station Road", "Fresh Fish & Chips", "Park", "O'Neill's; café")
NOT_ITS_OWN = "Mill"  # as that of a bus stop
POIS = 700
SIDE_M = 3_000.0


class Reason(NamedTuple):
    """What is said of a cell."""

    relevant: int
    lift: float | None
    because: set[str]  # two POIs of a square are equally far from their middle: either may come first


class Candidate(NamedTuple):
    """A square that answers a question."""

    middle: Array  # (2,) of its relevant POIs, metres
    pois: float  # around it
    parts: dict[int, float]  # reading of the question -> its part of the score

    @property
    def score(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True, repr=False)
class Evidence:
    """The kinds of a version's POIs, as the tables have them."""

    names: list[str]  # (K,) of the kinds
    said: list[bool]
    phrases: list[Array]  # (K,) of (P, T) float64
    point_id: Array  # (N,)
    metres: Array  # (N, 2)
    labels: list[tuple[str, str]]  # (N,) name, text
    own: Array  # (N,) number of the kind of the category
    basis: list[dict[int, int]]  # (N,) kinds that the name says, is like, hints at or is near, with point_kind.basis
    landmark: list[bool]
    prominent: list[bool]
    words: dict[int, Array]  # number of a POI -> (T,) vector of its own words
    lexemes: dict[int, list[set[str]]]  # kind -> the words of each phrase
    lexemes_of: dict[str, set[str]]  # question -> its words
    lexemes_of_names: list[set[str]]  # (K,) the words of each kind's name

    @classmethod
    def read(cls, connection: Connection, version: int, dim: int) -> Evidence:
        """What publishing left."""
        kinds = connection.execute(
            "SELECT name, said, landmark, prominent FROM callipper.kind WHERE version = %s ORDER BY kind_id", [version]
        ).fetchall()
        query = sql.SQL(
            "SELECT p.kind_id, p.vec FROM callipper.kind_phrase p JOIN callipper.kind k USING (version, kind_id)"
            " WHERE version = {} ORDER BY p.kind_id, p.phrase <> k.name"
        ).format(sql.Literal(version))
        kind, vec = binary_copy.read_rows(connection, query, ["int4", "vector"], dim)
        points = connection.execute(
            "SELECT e.point_id, e.name, e.text, k.easting, k.northing, k.kind_id FROM callipper.point_embedding e"
            " JOIN callipper.point_kind k USING (version, point_id) WHERE version = %s AND basis = 0 ORDER BY point_id",
            [version],
        ).fetchall()
        row = {point[0]: number for number, point in enumerate(points)}
        basis: list[dict[int, int]] = [{} for _ in points]
        for point_id, kind_id, why in connection.execute(
            "SELECT point_id, kind_id, basis FROM callipper.point_kind WHERE version = %s AND basis > 0", [version]
        ):
            basis[row[point_id]][kind_id] = why
        words = connection.execute(
            "SELECT point_id, vec::vector::real[] FROM callipper.point_name WHERE version = %s", [version]
        ).fetchall()
        return cls(
            [name for name, *_ in kinds],
            [said for _, said, *_ in kinds],
            [vec[kind == number].astype(np.float64) for number in range(len(kinds))],
            np.array([point[0] for point in points]),
            np.array([point[3:5] for point in points]),
            [(point[1], point[2]) for point in points],
            np.array([point[5] for point in points]),
            basis,
            [landmark for *_, landmark, _ in kinds],
            [prominent for *_, prominent in kinds],
            {row[point_id]: np.array(vec, np.float64) for point_id, vec in words},
            lexemes_of_kinds(connection, version),
            {text: lexemes(connection, version, text) for text in QUESTIONS},
            [lexemes(connection, version, name) for name, *_ in kinds],
        )

    def of(self, number: int) -> set[int]:
        """The kinds of a POI, as search counts them."""
        return {int(self.own[number]), *(kind for kind, why in self.basis[number].items() if why < 4)}

    def label(self, number: int) -> str:
        """As a POI is named for a reason."""
        name, text = self.labels[number]
        return f"{name[:60]} ({text[:60]})" if name else text[:60]

    # Search

    def asked(self, question: Array, words: str) -> dict[int, float]:
        """The kinds that a question (T,) asks for, and how near they are."""
        cosines = self._cosines(question)
        if not cosines or max(found.max() for found in cosines.values()) < 0.4:
            return {}
        shared = shared_words(self.lexemes, cosines.keys(), self.lexemes_of[words])
        pois = Counter(kind for number in range(len(self.point_id)) for kind in self.of(number))
        likeness = {
            kind: float(
                np.log(np.exp(12 * found).sum() / np.sqrt(max(10, len(found)) / 40)) / 12
                + 0.5 * shared[kind]
                - 0.5 / (5 + pois[kind])
            )
            for kind, found in cosines.items()
        }
        return {kind: near for kind, near in likeness.items() if near >= max(likeness.values()) - 0.08}

    def _cosines(self, question: Array) -> dict[int, Array]:
        """Of the kinds that are there: those of their phrases."""
        there = {kind for number in range(len(self.point_id)) for kind in self.of(number)}
        return {kind: phrases @ question for kind, phrases in enumerate(self.phrases) if kind in there}

    def kept(self, question: Array) -> float:
        """What a reading of a question (T,) keeps of its weight with each answer."""
        nearest = max((float(found.max()) for found in self._cosines(question).values()), default=0.0)
        return float(np.clip(0.5 + 0.5 * (nearest - 0.8) / 0.19, 0.5, 1))

    def spread(self) -> float:
        """What a candidate keeps of its score with each answer near it: less in a city than in a small town."""
        squares = len({tuple(pair) for pair in np.floor(self.metres / SQUARE_M).astype(int).tolist()})
        return 0.8 + 0.2 * min(1.0, 10 * sum(shares_around().values()) / squares)

    def reading(self, question: Array, words: str) -> Callable[[int], int]:
        """The kind as which a POI counts for a question (T,)."""
        asked = self.asked(question, words)

        def of(number: int) -> int:
            found = [
                ((1.0 if kind == self.own[number] else np.exp(-1.0)) * np.exp(20 * asked[kind]), kind)
                for kind in self.of(number)
                if kind in asked
            ]
            return max(found)[1] if found else int(self.own[number])

        return of

    def alike(self, question: Array) -> dict[int, float]:
        """The POIs whose own words are nearest to a question (T,), with their cosines."""
        half = question.astype(np.float16).astype(np.float64)
        found = [(float(vector @ half), number) for number, vector in self.words.items()]
        return {number: cosine for cosine, number in sorted(found, reverse=True)[:300] if cosine >= 0.3}

    def named(self, words: str) -> set[int]:
        """The POIs whose name holds all of some words."""
        wanted = set(words.lower().split())
        spoken = [set("".join(c if c.isalnum() else " " for c in name.lower()).split()) for name, _ in self.labels]
        return {number for number, words_there in enumerate(spoken) if wanted <= words_there}

    def shares(self, question: Array, words: str) -> dict[int, tuple[float, float]]:
        """Of the POIs that a question asks for: the weight by kind, and the weight by their own words."""
        asked, alike = self.asked(question, words), self.alike(question)
        nearest = max([*asked.values(), *alike.values()], default=0.0)
        result = {}
        for number in range(len(self.point_id)):
            of = [
                (1.0 if kind == self.own[number] else np.exp(-1.0)) * np.exp(20 * (asked[kind] - nearest))
                for kind in self.of(number)
                if kind in asked
            ]
            if of or number in alike:
                by_words = np.exp(20 * (alike[number] - nearest)) if number in alike else 0.0
                result[number] = (float(max(of, default=0.0)), float(by_words))
        return result

    def weights(self, question: Array, words: str) -> dict[int, float]:
        """The POIs that a question asks for, with their weights."""
        shares = self.shares(question, words)
        result = {number: min(1.0, sum(share)) for number, share in shares.items()}
        for number in self.named(words):
            by_name = (1.0 if number in self.words else 0.5) * (
                0.35 if self._only_words(number, question, words) else 1
            )
            result[number] = max(result.get(number, 0.0), by_name)
        return result

    def because(self, number: int, question: Array, words: str) -> str | None:
        """Why a POI that a question asks for is found."""
        by_kind, by_words = self.shares(question, words).get(number, (0.0, 0.0))
        if number in self.named(words):
            return "words" if self._only_words(number, question, words) else "name"
        return "kind" if by_kind >= by_words else "words" if by_words >= 0.05 else None

    def _only_words(self, number: int, question: Array, words: str) -> bool:
        """Whether a POI whose name holds the words of a phrase is of another kind, and one word in no name of its kinds."""
        asked = self.asked(question, words)
        if not asked or max(map(max, self._cosines(question).values())) < 0.9:
            return False
        in_names = set[str]().union(*(self.lexemes_of_names[kind] for kind in asked))
        other = [word for word in self.lexemes_of[words] - in_names if len(word) >= 4]
        return bool(other) and self.shares(question, words).get(number, (0.0, 0.0))[0] == 0

    def candidates(
        self, question: Array, words: str, size_m: float, k: int, tried_first: int | None
    ) -> dict[tuple[int, int], Candidate]:
        """The square cells (i, j) of a size that are tried for k answers, each by its best square of 100 m.

        tried_first: how many squares are tried, besides the k best of each reading; None for all.
        """
        found = self._squares(question, words, k)
        tried = found[:tried_first]
        if tried_first is not None and self.kept(question) < 1:
            for reading in range(READINGS + 1):
                of_it = (candidate for candidate in found if reading in candidate.parts)
                tried = [*tried, *sorted(of_it, key=lambda candidate: -candidate.parts[reading])[:k]]
        result: dict[tuple[int, int], Candidate] = {}
        for candidate in sorted(tried, key=lambda candidate: -candidate.score):
            result.setdefault(tuple(np.floor(candidate.middle / size_m).astype(int).tolist()), candidate)
        return result

    def _squares(self, question: Array, words: str, k: int) -> list[Candidate]:
        """Each square of 100 m with a relevant POI, best first, and then those beside them if they are few for k answers."""
        weight, reading_of = self.weights(question, words), self.reading(question, words)
        held: dict[Any, list[int]] = defaultdict(list)
        count: dict[Any, int] = defaultdict(int)
        for number, place in enumerate(self.metres):
            square = tuple(np.floor(place / SQUARE_M).astype(int).tolist())
            count[square] += 1
            if number in weight:
                held[square].append(number)
        group = self._groups(held, weight, reading_of)
        around, found = shares_around(), []
        values = {square: np.array([weight[number] for number in numbers]) for square, numbers in held.items()}
        middle = {
            square: (self.metres[numbers] * values[square][:, None]).sum(axis=0) / values[square].sum()
            for square, numbers in held.items()
        }
        beside = (
            self._beside(middle, {square: value.sum() for square, value in values.items()}) if len(held) < 2 * k else {}
        )
        middle |= {square: place for square, place in beside.items() if square in count}
        for i, j in middle:
            near = [((i + east, j + north), share) for (east, north), share in around.items()]
            pois = sum(share * count[square] for square, share in near)
            parts: dict[int, float] = defaultdict(float)
            for square, share in near:
                for number in held.get(square, []):
                    parts[group[reading_of(number)]] += (
                        (1e-3 if (i, j) in beside else 1) * share * weight[number] / (max(pois, 1) + 5) ** 0.6
                    )
            found.append(Candidate(middle[i, j], pois, dict(parts)))
        return sorted(found, key=lambda candidate: -candidate.score)

    @staticmethod
    def _beside(middle: dict[Any, Array], weight: dict[Any, float]) -> dict[Any, Array]:
        """The squares near some with a middle (2,) in metres, each with its point that is nearest to the heaviest of them."""
        chosen: dict[Any, tuple[float, float, Array]] = {}
        for (i, j), place in middle.items():
            for east, north in shares_around():
                corner = np.array([i + east, j + north]) * SQUARE_M
                point = np.clip(place, corner + 1, corner + SQUARE_M - 1)  # on an edge it would be in two cells
                away = float(np.linalg.norm(point - place))
                square = (i + east, j + north)
                if square not in middle and away <= REACH_M:
                    best = (-weight[i, j], away, point)
                    chosen[square] = min(chosen.get(square, best), best, key=lambda found: found[:2])
        return {square: point for square, (*_, point) in chosen.items()}

    @staticmethod
    def _groups(
        held: dict[Any, list[int]], weight: dict[int, float], reading_of: Callable[[int], int]
    ) -> dict[int, int]:
        """Reading -> its place by its densest square; all beyond READINGS share one."""
        together: dict[Any, float] = defaultdict(float)
        for square, numbers in held.items():
            for number in numbers:
                together[reading_of(number), square] += weight[number]
        densest: dict[int, float] = defaultdict(float)
        for (reading, _), value in together.items():
            densest[reading] = max(densest[reading], value)
        order = sorted(densest, key=lambda reading: (-densest[reading], reading))
        return {reading: min(place, READINGS) for place, reading in enumerate(order)}

    def reason(self, candidate: Candidate, weight: dict[int, float]) -> Reason:
        """What there is to say for a candidate, by the weights of POIs."""
        away = {number: float(np.linalg.norm(self.metres[number] - candidate.middle)) for number in weight}
        within = [number for number in weight if away[number] <= REACH_M]
        strongest = max((round(weight[number], 3) for number in within), default=0.0)
        there = [number for number in within if round(weight[number], 3) >= min(0.3, 0.5 * strongest)]
        total = sum(value >= 0.3 for value in weight.values())
        lift = len(there) / max(candidate.pois, len(there), 1) / (total / len(self.point_id)) if total else 0.0
        return Reason(len(there), lift if strongest >= 0.3 else None, self._because(there, weight, away))

    def _because(self, there: list[int], weight: dict[int, float], away: dict[int, float]) -> set[str]:
        result = set()
        for direction in (1, -1):
            first = sorted(
                there,
                key=lambda number: (
                    -round(weight[number], 3),
                    round(away[number], 3),
                    direction * self.point_id[number],
                ),
            )[:12]
            labels: dict[str, list[int]] = defaultdict(list)
            for number in first:
                labels[self.label(number)].append(number)
            said = sorted(
                labels,
                key=lambda label: (
                    -round(max(weight[number] for number in labels[label]), 3),
                    round(min(away[number] for number in labels[label]), 3),
                    direction * self.point_id[min(labels[label], key=away.__getitem__)],
                ),
            )
            result.add("; ".join(said[:3]))
        return result

    # Describe

    def near(self, place: Array) -> list[int]:
        """The POIs that describe counts at a place (2,) in metres."""
        away = np.linalg.norm(self.metres - place, axis=1)
        reaches = [reach for reach in (REACH_M, *FARTHER_M) if (away <= reach).sum() >= FEW]
        return np.flatnonzero(away <= (reaches or FARTHER_M[-1:])[0]).tolist()

    def is_close_call(self, place: Array) -> bool:
        """Whether a POI is about as far from a place as describe looks."""
        away = np.linalg.norm(self.metres - place, axis=1)
        return bool(min(np.abs(away - reach).min() for reach in (REACH_M, *FARTHER_M)) < 1e-3)

    def counted(self, kind: int, among: list[int]) -> tuple[list[int], float]:
        """The POIs among some that describe counts for a kind, and what they weigh."""
        own = [number for number in among if self.own[number] == kind]
        if np.any(self.own == kind):
            return own, float(len(own))
        weights = {1: 1.0, 2: 0.0 if self.landmark[kind] else 0.5}
        named = [number for number in among if weights.get(self.basis[number].get(kind, 0))]
        stops = {self.labels[number][0]: number for number in among if self.basis[number].get(kind) == 4}
        weight = sum(weights[self.basis[number][kind]] for number in named) + 0.5 * len(stops)
        return [*named, *stops.values()], weight

    def rarity(self, kind: int) -> float:
        """-ln of the share of the squares with POIs from which one of a kind is near."""
        square = [tuple(map(int, pair)) for pair in np.floor(self.metres / 100)]
        own = np.flatnonzero(self.own == kind).tolist()
        counting = own or [number for number, basis in enumerate(self.basis) if basis.get(kind) in (1, 4)]
        around = [(i, j) for (i, j), share in shares_around().items() if share >= 0.5]
        near = {(square[n][0] + i, square[n][1] + j) for n in counting for i, j in around} & set(square)
        return float(-np.log(len(near) / len(set(square)))) if near else 0.0

    def described(self, inside: list[int], *, is_area: bool = False) -> list[tuple[str, int, float, set[str]]]:
        """The kinds that stand out among some POIs, best first: name, POIs, lift, and labels that the reason may name."""
        city = list(range(len(self.point_id)))
        left = {}
        for kind, name in enumerate(self.names):
            counting, weight = self.counted(kind, inside)
            usual = self.counted(kind, city)[1] / len(city)
            known = self.prominent[kind] and not is_area
            rarity = 1.5 * self.rarity(kind) if known else 0.0
            if not self.said[kind] or weight < 1 or weight / len(inside) / usual < (1 if known else 2):
                continue
            ratio = max(1.0, weight / (len(inside) * (usual + 5 / len(city))))
            surprise = np.sqrt(weight * (np.log(ratio) - 1 + 1 / ratio) * -np.log(usual) / 6)
            near = {
                label
                for number in inside
                if kind in {self.own[number], *self.basis[number]}
                for label in [self.label(number)]
            }
            left[kind] = [max(surprise, rarity), (name, len(counting), weight / len(inside) / usual, near)]
        result = []
        while any(gain > 0 for gain, _ in left.values()):
            best = min(left, key=lambda kind: (-round(left[kind][0], 6), self.names[kind]))
            result.append(left.pop(best)[1])
            for kind, row in left.items():
                likeness = float(self.phrases[kind][0] @ self.phrases[best][0])  # the first phrase is the name
                row[0] *= min(1.0, max(0.0, (0.9 - likeness) / 0.5))
        return result


def shares_around() -> dict[tuple[int, int], float]:
    """Of the squares around one, which share lies within 250 m of its middle, by a hundred points of each."""
    inner = np.arange(-45, 46, 10)
    result = {}
    for i in range(-3, 4):
        for j in range(-3, 4):
            share = float(np.mean(np.hypot(i * 100 + inner[:, None], j * 100 + inner[None]) <= 250))
            if share:
                result[i, j] = share
    return result


def write_town(connection: Connection, size_m: float = 100.0, seed: int = 0) -> tuple[Model, dict[str, Array]]:
    """A version with evidence that is active, and what the sentence encoder makes of each question."""
    random = np.random.default_rng(seed)
    kind = random.choice([number for number, name in enumerate(KINDS) if name != BY_NAME], POIS)
    quarter = random.uniform(0, SIDE_M, (len(KINDS), 2))
    spread = random.uniform(0, SIDE_M, (POIS, 2))
    near = quarter[kind] + random.normal(0, 150, (POIS, 2))
    metres = ORIGIN + np.where(random.random((POIS, 1)) < 0.5, near, spread)
    model = write_model(connection, metres, size_m=size_m, texts=tuple(dict.fromkeys([*QUESTIONS, *KINDS])))
    write_sample(connection, model, 200)
    names = [NAMES[number] for number in random.integers(0, len(NAMES), POIS)]
    ids = connection.execute(
        "SELECT array_agg(point_id ORDER BY point_id) FROM callipper.point_embedding WHERE version = %s",
        [model.version],
    ).fetchone()
    assert ids is not None
    connection.execute(
        "UPDATE callipper.point_embedding e SET name = p.name, text = p.text"
        " FROM unnest(%s::bigint[], %s::text[], %s::text[]) AS p(point_id, name, text)"
        " WHERE e.point_id = p.point_id AND e.version = %s",
        [ids[0], names, [KINDS[number] for number in kind], model.version],
    )
    _write_kinds(connection, model.version, random)
    suggested = [(row, KINDS.index(BY_NAME)) for row, name in enumerate(names) if "Mill" in name]
    rows = np.array([*range(POIS), *(row for row, _ in suggested)])
    write_partition(
        connection,
        "point_kind",
        model.version,
        {
            "point_id": ("int8", np.array(ids[0])[rows]),
            "kind_id": ("int4", np.array([*kind.tolist(), *(number for _, number in suggested)])),
            "basis": ("int2", np.where(np.arange(len(rows)) < POIS, 0, 1 + np.arange(len(rows)) % 4)),
            "easting": ("float8", metres[rows, 0]),
            "northing": ("float8", metres[rows, 1]),
        },
    )
    named = np.flatnonzero([name not in ("", NOT_ITS_OWN) for name in names])
    vectors = unit_vectors(len(named), seed + 7000, 4)
    write_partition(
        connection,
        "point_name",
        model.version,
        {"point_id": ("int8", np.array(ids[0])[named]), "vec": ("halfvec", vectors)},
    )
    connection.execute("SELECT callipper._count_evidence(%s)", [model.version])
    _write_location_encoder(connection, model.version)
    return model, _write_questions(connection, model.version, seed)


def _write_location_encoder(connection: Connection, version: int) -> None:
    """One linear layer over sine waves, so that a place has an embedding."""
    arch = {
        "features": [{"kind": "grid", "divisors_m": [100.0, 1000.0]}],
        "layers": [{"layer": "output", "activation": None}],
        "dimensions": DIMENSIONS,
    }
    connection.execute("UPDATE callipper.model SET arch = %s WHERE version = %s", [Jsonb(arch), version])
    columns: binary_copy.Columns = {
        "version": ("int4", version),
        "layer": ("text", [b"output"] * DIMENSIONS),
        "neuron": ("int4", np.arange(DIMENSIONS)),
        "weight": ("vector", unit_vectors(DIMENSIONS, 1, 8)),
        "bias": ("float4", np.zeros(DIMENSIONS)),
    }
    binary_copy.write_rows(connection, sql.Identifier("callipper", "location_weight"), columns)


def _write_kinds(connection: Connection, version: int, random: np.random.Generator) -> None:
    numbers = np.arange(len(KINDS))
    each = 3
    vectors = unit_vectors(each * len(KINDS), int(random.integers(1000)), 4)
    cafe, kiosk = (each * KINDS.index(name) for name in ("cafe", "kiosk"))  # alike
    vectors[kiosk] = (vectors[cafe] + vectors[kiosk]) / np.linalg.norm(vectors[cafe] + vectors[kiosk])
    tables: dict[str, binary_copy.Columns] = {
        "kind": {
            "kind_id": ("int4", numbers),
            "name": ("text", [name.encode() for name in KINDS]),
            "said": ("bool", np.array([name != UNSAID for name in KINDS])),
            "landmark": ("bool", np.array([name == LANDMARK for name in KINDS])),
            "prominent": ("bool", np.array([name == LANDMARK for name in KINDS])),
        },
        "kind_phrase": {
            "kind_id": ("int4", np.repeat(numbers, each)),
            "phrase": (
                "text",
                [(f"phrase {n}" if n % each else KINDS[n // each]).encode() for n in range(each * len(KINDS))],
            ),
            "vec": ("vector", vectors),
        },
    }
    for table, columns in tables.items():
        rows: binary_copy.Columns = {"version": ("int4", version), **columns}
        binary_copy.write_rows(connection, sql.Identifier("callipper", table), rows)
    connection.execute("SELECT callipper._count_words(%s)", [version])


def _write_questions(connection: Connection, version: int, seed: int) -> dict[str, Array]:
    vectors = unit_vectors(len(QUESTIONS), seed + 5000, 4)
    known = connection.execute(
        "SELECT vec::real[] FROM callipper.kind_phrase WHERE version = %s AND phrase = %s", [version, LANDMARK]
    ).fetchone()
    assert known is not None
    vectors[QUESTIONS.index(LANDMARK)] = known[0]  # a question that is a phrase
    for text, vector in zip(QUESTIONS, vectors, strict=True):
        connection.execute(
            "INSERT INTO callipper.text_vector (text_encoder_id, text, vec)"
            " SELECT text_encoder_id, %s, %s::real[]::vector FROM callipper.model WHERE version = %s"
            " ON CONFLICT DO NOTHING",
            [text, vector.tolist(), version],
        )
    return dict(zip(QUESTIONS, vectors.astype(np.float64), strict=True))
