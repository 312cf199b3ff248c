"""Whether the words that are said of a place are true there, and whether a resident would say them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

from benchmarks.answers.cities import AnswerCity
from benchmarks.answers.score import AROUND_M
from callipper_db.arrays import Array

PLACES = Path(__file__).parent / "data" / "places.toml"
WORDS = 5  # of a place
RANDOM_PLACES = 300
SUPPORTED = 5  # POIs within 250 m that a random place has at least
OVER = 2.0  # lift from which a word is over-represented
CLOSE = 0.6  # cosine from which a training text stands for a free word
PRIOR = 5.0  # POIs of the city's mix that the baseline adds to each place
APT = 2  # of the five words, for a place to be described aptly


@dataclass(frozen=True)
class NamedPlace:
    """A place that everybody knows, and patterns of what a resident would say of it."""

    name: str
    lon: float
    lat: float
    apt: tuple[str, ...]

    def apt_words(self, words: Sequence[str]) -> list[str]:
        """Those of the words in which a pattern is found."""
        return [word for word in words if any(re.search(pattern, word, re.IGNORECASE) for pattern in self.apt)]


@dataclass(frozen=True)
class Verdict:
    """Of a word at a place."""

    category: bool  # whether it is one of the city's categories, and not a free word
    count: int  # POIs within 250 m that it stands for
    lift: float  # their share there over their share in the city


@dataclass(frozen=True)
class WordJudge:
    """Judges words by a city's POIs. A category stands for its POIs; a free word for those whose text or category is close."""

    city: AnswerCity
    encode: Callable[[list[str]], Array]  # unit vectors

    def judge(self, places: Array, words: Sequence[Sequence[str]]) -> list[list[Verdict]]:
        """places (P, 2) metres, and the words that are said of each."""
        distinct = sorted({word for row in words for word in row})
        stands_for = dict(zip(distinct, self._stands_for(distinct), strict=True))
        result = []
        for near, row in zip(self._tree.query_ball_point(places, AROUND_M), words, strict=True):
            result.append([self._verdict(word, stands_for[word], near) for word in row])
        return result

    def local_lift(self, places: Array) -> list[list[str]]:
        """The baseline: the five categories with the highest lift at each place, shrunk by a prior of five POIs."""
        kinds, number = np.unique(self.city.categories, return_inverse=True)
        share = np.bincount(number) / len(number)
        result = []
        for near in self._tree.query_ball_point(places, AROUND_M):
            count = np.bincount(number[near], minlength=len(kinds))
            lift = np.where(count > 0, (count + PRIOR * share) / (len(near) + PRIOR) / share, -np.inf)
            best = np.argsort(-lift, kind="stable")[:WORDS]
            result.append([str(kinds[row]) for row in best if count[row]])
        return result

    def random_places(self) -> Array:
        """(300,) rows of cells that have some POIs around; the same in each run."""
        around = self._tree.query_ball_point(self.city.cells, AROUND_M, return_length=True)
        supported = np.flatnonzero(around >= SUPPORTED)
        chosen = np.random.default_rng(0).permutation(len(supported))[:RANDOM_PLACES]
        rows: Array = supported[chosen]
        return rows

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(self.city.metres)

    @cached_property
    def _category(self) -> Array:
        return np.array([category.casefold() for category in self.city.categories])

    @cached_property
    def _text_vectors(self) -> Array:
        return self.encode(self.city.texts)

    def _stands_for(self, words: list[str]) -> list[Array]:
        """(N,) bool of each word."""
        kinds, number = np.unique(self.city.categories, return_inverse=True)
        vectors = self.encode(words)
        by_text = vectors @ self._text_vectors.T
        by_kind = vectors @ self.encode([str(kind) for kind in kinds]).T
        result = []
        for row, word in enumerate(words):
            if self._is_category(word):
                result.append(self._category == word.casefold())
            else:
                result.append((by_text[row][self.city.text_id] >= CLOSE) | (by_kind[row][number] >= CLOSE))
        return result

    def _is_category(self, word: str) -> bool:
        return word.casefold() in self._categories

    @cached_property
    def _categories(self) -> set[str]:
        return set(self._category.tolist())

    def _verdict(self, word: str, stands_for: Array, near: list[int]) -> Verdict:
        count = int(stands_for[near].sum())
        share = stands_for.mean()
        return Verdict(self._is_category(word), count, float(count / len(near) / share) if count else 0.0)


def read_places(path: Path = PLACES) -> list[NamedPlace]:
    """The thirty places of London."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["place"]
    return [NamedPlace(e["name"], e["lon"], e["lat"], tuple(e["apt"])) for e in entries]


def summarise_words(verdicts: Sequence[Sequence[Verdict]]) -> dict[str, float]:
    """How many words are said, and what share of them is over-represented, unsupported, or a category."""
    said = [verdict for row in verdicts for verdict in row]
    if not said:
        return {"places": len(verdicts), "words": 0}
    return {
        "places": len(verdicts),
        "words": len(said),
        "over_represented": round(float(np.mean([verdict.lift >= OVER for verdict in said])), 3),
        "unsupported": round(float(np.mean([verdict.count == 0 for verdict in said])), 3),
        "categories": round(float(np.mean([verdict.category for verdict in said])), 3),
    }
