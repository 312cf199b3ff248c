"""The questions, and which POIs answer them. They are found from names and categories alone.

    python -m benchmarks.answers.questions "fix my bike" --city london

shows samples of what answers a question and of what nearly does, for the person who writes the patterns.
"""

from __future__ import annotations

import argparse
import random
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from callipper_db.arrays import Array

FILE = Path(__file__).parent / "data" / "questions.toml"
BLIND = FILE.with_name("blind_questions.toml")  # for London alone
FRESH = FILE.with_name("fresh_questions.toml")  # for London alone
MINIMUM = {"monaco": 2}  # a question counts in a city if at least this many POIs answer it there; ...
MINIMUM_ELSEWHERE = 5  # ... in the other cities this many
SAMPLE = 25  # names that are shown
PATTERNS = ("category", "name", "name_in", "but")


@dataclass(frozen=True)
class Question:
    """What is asked, and the patterns of what answers it."""

    text: str
    kind: Literal["everyday", "oblique", "category"]
    half: Literal["dev", "test", "blind", "fresh"]
    patterns: Mapping[str, str]  # of PATTERNS
    by_city: Mapping[str, Mapping[str, str]]  # instead of these, in a city

    def relevant(self, names: Sequence[str], categories: Sequence[str], city: str) -> Array:
        """(N,) bool: the POIs that answer it."""
        patterns = self.by_city.get(city, self.patterns)
        kinds = sorted(set(categories))
        by_category = _matching(patterns.get("category"), kinds)
        named = _named_in(patterns.get("name_in"), kinds) if "name" in patterns else set()
        name, but = (_compiled(patterns.get(what)) for what in ("name", "but"))
        return np.array(
            [
                (category in by_category or (category in named and _found(name, own))) and not _found(but, own)
                for own, category in zip(names, categories, strict=True)
            ],
            bool,
        )


def read_questions(path: Path = FILE) -> list[Question]:
    """All questions, in the order of the file; an oblique one follows its everyday one.

    Raises ValueError that names a question with a mistake.
    """
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["question"]
    return [question for entry in entries for question in _questions(entry)]


def enough(city: str) -> int:
    """How many POIs must answer a question for it to count in a city."""
    return MINIMUM.get(city, MINIMUM_ELSEWHERE)


def answerable(
    questions: Sequence[Question], names: Sequence[str], categories: Sequence[str], city: str
) -> list[tuple[Question, Array]]:
    """The questions that count in a city, each with its (N,) mask of relevant POIs."""
    masks = [(question, question.relevant(names, categories, city)) for question in questions]
    return [(question, mask) for question, mask in masks if mask.sum() >= enough(city)]


def _questions(entry: dict[str, Any]) -> list[Question]:
    """One, or two where the need stands in oblique words as well."""
    text = entry["text"]
    cities = {key: value for key, value in entry.items() if isinstance(value, dict)}
    patterns = {key: value for key, value in entry.items() if key in PATTERNS}
    if unknown := set(entry) - {"text", "oblique", "kind", "half", *PATTERNS, *cities}:
        raise ValueError(f"question '{text}' has {', '.join(sorted(unknown))}, which means nothing")
    if entry["kind"] not in ("everyday", "category") or entry["half"] not in ("dev", "test", "blind", "fresh"):
        raise ValueError(f"question '{text}' is of kind {entry['kind']} and half {entry['half']}")
    for found in (patterns, *cities.values()):
        if unknown := set(found) - set(PATTERNS):
            raise ValueError(f"question '{text}' has the pattern {', '.join(sorted(unknown))}, which means nothing")
        if not {"category", "name"} & set(found):
            raise ValueError(f"question '{text}' needs a pattern for a category or a name")
        for pattern in found.values():
            try:
                _compiled(pattern)
            except re.error as error:
                raise ValueError(f"question '{text}': {pattern} is no regular expression ({error})") from error
    first = Question(text, entry["kind"], entry["half"], patterns, cities)
    return [first, replace(first, text=entry["oblique"], kind="oblique")] if "oblique" in entry else [first]


@cache
def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    return re.compile(pattern, re.IGNORECASE) if pattern else None


def _found(pattern: re.Pattern[str] | None, text: str) -> bool:
    return pattern is not None and pattern.search(text) is not None


@cache
def _groups() -> dict[str, str]:
    groups: dict[str, str] = tomllib.loads(FILE.read_text(encoding="utf-8"))["groups"]
    return groups


def _matching(pattern: str | None, kinds: Sequence[str]) -> set[str]:
    compiled = _compiled(pattern)
    return {kind for kind in kinds if compiled is not None and compiled.fullmatch(kind)}


def _named_in(pattern: str | None, kinds: Sequence[str]) -> set[str]:
    """The categories whose names are looked at."""
    if pattern is None:
        return set(kinds) - _matching(_groups()["named_after"], kinds)
    parts = [_groups().get(part, part) for part in pattern.split("|")]
    return _matching("|".join(parts), kinds)


def show_matches(question: Question, names: Sequence[str], categories: Sequence[str], city: str) -> Iterator[str]:
    """Lines that show how precise a question's patterns are: relevant POIs by category, samples of names, and near misses."""
    mask = question.relevant(names, categories, city)
    counts = Counter(category for category, hit in zip(categories, mask, strict=True) if hit)
    yield f"{question.text}: {mask.sum():,} POIs in {city}, {', '.join(f'{n:,} {kind}' for kind, n in counts.most_common(9))}"
    name = _compiled(question.by_city.get(city, question.patterns).get("name"))
    by_name = {own for own, hit in zip(names, mask, strict=True) if hit and _found(name, own)}
    elsewhere = _matching(_groups()["named_after"], sorted(set(categories)))
    misses = {
        f"{own} [{kind}]"
        for own, kind, hit in zip(names, categories, mask, strict=True)
        if not hit and kind not in elsewhere and _found(name, own)
    }
    for what, found in (("  by name", by_name), ("  no answer all the same", misses)):
        sample = random.Random(0).sample(sorted(found), min(SAMPLE, len(found)))
        yield f"{what} ({len(found):,}): {' | '.join(sorted(sample))}"


if __name__ == "__main__":
    from benchmarks.answers.cities import SRID, read_names

    parser = argparse.ArgumentParser(prog="python -m benchmarks.answers.questions", description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="*", help="questions (default: all)")
    parser.add_argument("--city", default="london", choices=list(SRID))
    options = parser.parse_args()
    chosen = [question for question in read_questions() if not options.text or question.text in options.text]
    if not chosen:
        parser.error(f"there is no such question in {FILE}")
    names, categories = read_names(options.city)
    for question in chosen:
        print("\n".join(show_matches(question, names, categories, options.city)))
