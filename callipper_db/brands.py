"""Brands: what kind of place a name such as "Ladbrokes" or "Costa" stands for, where a category leaves it open; brands.txt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from callipper_db import place_words
from callipper_db.place_words import Kind

# What divides a brand from a place: "Costa @ Tesco", "Subway (Strand)", "Boots - Brixton", "Starbucks at Euston".
BRANCH = re.compile(r"[/,;|(@]|\s-\s|\sat\s", re.IGNORECASE)
# Fewest words and letters of a brand that begins a longer name: "Pret a Manger Euston", but not "Paul Smith" or "M & B Foods".
FEWEST_WORDS, FEWEST_LETTERS = 2, 6
# Words that end the name of a company but of no brand, beside those that plain_words() leaves out: "Primark Stores".
COMPANY = frozenset(["ag", "gmbh", "sa", "stores"])
# A country counts if it has at least this share of the brands of the country that has most. Words that are brands elsewhere
# have votes too: London has 274 British brands by this count, and 77 American ones.
LEAST_SHARE = 1 / 3
FEWEST_BRANDS = 3  # of a country; fewer may be chance
MOST_VOTES = 3  # a brand of more countries has no vote


class Brand(NamedTuple):
    """An entry of brands.txt."""

    kinds: list[Kind]
    countries: frozenset[str]  # ISO 3166 codes in lower case; empty for a brand of the world


def countries_of(names: Iterable[str]) -> frozenset[str]:
    """The countries in which POIs of these names are, by the brands among them; empty where these are too few."""
    counts, brands, found = Counter[str](), load_brands(), set[str]()
    for name in names:
        spelt = (" ".join(place_words.plain_words(part)) for part in (name, BRANCH.split(name, 1)[0]))
        found |= {next((words for words in spelt if words in brands), "")}
    for words in found - {""}:  # a brand has one vote, however many shops
        countries = brands[words].countries
        for country in countries if len(countries) <= MOST_VOTES else ():
            counts[country] += 6 // len(countries)  # sixths, which are whole
    enough = max(6 * FEWEST_BRANDS, LEAST_SHARE * max(counts.values(), default=0))
    return frozenset(country for country, count in counts.items() if count >= enough)


def kinds_of_brand(name: str, category: str, countries: frozenset[str] = frozenset()) -> list[Kind]:
    """The kinds of place that the POI's brand says; none if its name is no brand's, or its category says all there is to say.

    A brand of one word, such as Spark, counts only in countries that have it, if these are known: elsewhere it is a word.

    A category as open as "shop" may be anything that is called so, one such as "restaurant" only a place to eat, or a large
    place that has a cafe. A category that is one of the brand's kinds lets it have the others too: a fast food restaurant "KFC"
    is a chicken shop.
    """
    is_open, may_be = possible_kinds(category)
    if not may_be:
        return []
    length, kinds = _brand(name, countries)
    if is_open:
        if length >= FEWEST_WORDS:  # "Hollywood Bowl", but not "Pulse" or "Fora"
            may_be |= place_words.load_thesaurus().with_food
        return [kind for kind in kinds if kind.name in may_be]
    return kinds if any(kind.name in may_be for kind in kinds) else []


@cache
def possible_kinds(category: str) -> tuple[bool, frozenset[str]]:
    """Whether a category leaves open what a POI is, and the names of the kinds that a brand must have, or have one of."""
    thesaurus, read = place_words.load_thesaurus(), place_words.reading(category)
    if not category or read in thesaurus.open_shops:
        return True, frozenset(thesaurus.kinds)
    if read in thesaurus.open_eating:
        return True, thesaurus.eating
    kind = place_words.kind_of(category)
    return False, frozenset([kind.name] if kind and not kind.named_after else [])


def _brand(name: str, countries: frozenset[str]) -> tuple[int, list[Kind]]:
    """The number of words and the kinds of the brand that the name is, or begins with; 0 and none of no brand."""
    brands = load_brands()
    for spelt in dict.fromkeys([name, BRANCH.split(name, 1)[0]]):
        words = place_words.plain_words(spelt)
        whole = len(words)
        while whole > 1 and words[whole - 1] in COMPANY:
            whole -= 1
        for length in dict.fromkeys([len(words), whole]):
            found = brands.get(" ".join(words[:length]))
            if found and (length > 1 or not countries or not found.countries or countries & found.countries):
                return length, found.kinds
        for length in range(len(words) - 1, FEWEST_WORDS - 1, -1):
            brand = " ".join(words[:length])
            if brand in brands and len(brand) - brand.count(" ") >= FEWEST_LETTERS:
                kinds = brands[brand].kinds
                said = place_words.kinds_in_name(name)  # "Four Seasons Supermarket" is no hotel
                fits = not said or any(kind in kinds for kind in said)
                return (length, kinds) if fits else (0, [])
    return 0, []


@cache
def load_brands() -> dict[str, Brand]:
    """The words of a brand, without an article -> its kinds and countries."""
    kinds, brands = place_words.load_thesaurus().kinds, dict[str, Brand]()
    for line in (files("callipper_db") / "brands.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            kind, _, entries = line.partition(": ")
            for entry in entries.split(" | "):
                name, _, countries = entry.partition(" [")
                key = " ".join(place_words.plain_words(name))
                there = frozenset(countries.removesuffix("]").split())
                brands.setdefault(key, Brand([], there)).kinds.append(kinds[kind])
    return brands
