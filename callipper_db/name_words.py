"""Words in a name that tell what kind of place it is: "Lahore Tandoori" is an Indian restaurant; name_words.txt."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from callipper_db import place_words
from callipper_db.brands import possible_kinds
from callipper_db.place_words import Kind

SERVES = (
    "restaurant",
    "bar",
    "pub",
    "diner",
    "bistro",
    "parlour",
    "steakhouse",
)  # how the names of kinds end that no shop is
# Kinds that a name says and that leave open which: "Lahore Restaurant" is an Indian one.
GENERAL = frozenset(["bar", "cafe", "diner", "fast food restaurant", "restaurant", "shop", "takeaway"])


@cache
def left_open(category: str) -> frozenset[str] | None:
    """Names of the kinds that a POI of the category may be; None where the category says already what it is.

    A category such as "restaurant" leaves open only what kind of place to eat it is.
    """
    is_open, may_be = possible_kinds(category)
    if not is_open:
        return None
    if category and place_words.reading(category) in place_words.load_thesaurus().open_shops:
        return frozenset(kind for kind in may_be if not kind.endswith(SERVES))  # "Hong Kong Supermarket"
    return may_be


def kinds_told(name: str, category: str) -> list[Kind]:
    """The kinds that words of a POI's name tell, each once; none where the category says already what the POI is."""
    may_be = left_open(category)
    if may_be is None:
        return []
    said = {kind.name for kind in place_words.kinds_in_name(name)} - GENERAL
    if said:
        may_be &= said  # "Turkish Delight Bakery"
    words, told = place_words.look_up_key(name).split(), dict[str, Kind]()
    known, first = load_name_words(), 0
    while first < len(words):
        found = next(
            (entry for entry in known.get(words[first], ()) if _begins_with(words[first:], entry[0])), ((), [])
        )
        told |= {kind.name: kind for kind in found[1] if kind.name in may_be}
        first += max(1, len(found[0]))
    return list(told.values())


def _begins_with(words: list[str], phrase: tuple[str, ...]) -> bool:
    return tuple(words[: len(phrase)]) == phrase


@cache
def load_name_words() -> dict[str, list[tuple[tuple[str, ...], list[Kind]]]]:
    """The first word of a phrase -> the phrases that begin with it, as words, the longest first, each with its kinds."""
    kinds, phrases = place_words.load_thesaurus().kinds, dict[tuple[str, ...], list[Kind]]()
    for line in (files("callipper_db") / "name_words.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            kind, _, words = line.partition(": ")
            for phrase in words.split(" | "):
                phrases.setdefault(tuple(place_words.look_up_key(phrase).split()), []).append(kinds[kind])
    by_first = dict[str, list[tuple[tuple[str, ...], list[Kind]]]]()
    for spelt, found in sorted(phrases.items(), key=lambda entry: -len(entry[0])):
        by_first.setdefault(spelt[0], []).append((spelt, found))
    return by_first
