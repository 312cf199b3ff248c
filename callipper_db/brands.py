"""Brands: what kind of place a name such as "Ladbrokes" or "Costa" stands for, where a category leaves it open; brands.txt."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from callipper_db import place_words
from callipper_db.place_words import Kind

# What divides a brand from a place: "Costa @ Tesco", "Subway (Strand)", "Boots - Brixton", "Starbucks at Euston".
BRANCH = re.compile(r"[/,;|(@]|\s-\s|\sat\s", re.IGNORECASE)
# Fewest words and letters of a brand that begins a longer name: "Pret a Manger Euston", but not "Paul Smith" or "M & B Foods".
FEWEST_WORDS, FEWEST_LETTERS = 2, 6
# Words that end the name of a company but of no brand, beside those that plain_words() leaves out: "Primark Stores".
COMPANY = frozenset(["ag", "gmbh", "sa", "stores"])


def kinds_of_brand(name: str, category: str) -> list[Kind]:
    """The kinds of place that the POI's brand says; none if its name is no brand's, or its category says all there is to say.

    A category as open as "shop" may be anything that is called so, one such as "restaurant" only a place to eat, or a large
    place that has a cafe. A category that is one of the brand's kinds lets it have the others too: a fast food restaurant "KFC"
    is a chicken shop.
    """
    is_open, may_be = possible_kinds(category)
    if not may_be:
        return []
    length, kinds = _brand(name)
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


def _brand(name: str) -> tuple[int, list[Kind]]:
    """The number of words and the kinds of the brand that the name is, or begins with; 0 and none of no brand."""
    brands = load_brands()
    for spelt in dict.fromkeys([name, BRANCH.split(name, 1)[0]]):
        words = place_words.plain_words(spelt)
        whole = len(words)
        while whole > 1 and words[whole - 1] in COMPANY:
            whole -= 1
        for length in dict.fromkeys([len(words), whole]):
            if found := brands.get(" ".join(words[:length])):
                return length, found
        for length in range(len(words) - 1, FEWEST_WORDS - 1, -1):
            brand = " ".join(words[:length])
            if brand in brands and len(brand) - brand.count(" ") >= FEWEST_LETTERS:
                said = place_words.kinds_in_name(name)  # "Four Seasons Supermarket" is no hotel
                fits = not said or any(kind in brands[brand] for kind in said)
                return (length, brands[brand]) if fits else (0, [])
    return 0, []


@cache
def load_brands() -> dict[str, list[Kind]]:
    """The words of a brand, without an article -> its kinds."""
    kinds, brands = place_words.load_thesaurus().kinds, dict[str, list[Kind]]()
    for line in (files("callipper_db") / "brands.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            kind, _, names = line.partition(": ")
            for name in names.split(" | "):
                brands.setdefault(" ".join(place_words.plain_words(name)), []).append(kinds[kind])
    return brands
