"""Everyday English for kinds of places: readings of category codes, and the phrases by which people ask; place_words.toml."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import chain, zip_longest
from typing import Any, NamedTuple

APOSTROPHES = "'\u2019"
# What divides a name such as "Lloyd Park / William Morris Gallery", "Cafe at Erith Leisure Centre", "Gun & Smoke - Deli".
PARTS = re.compile(r"[/,;|()\[\]@&]|\s-\s|\s(?:and|at|by|in|of)\s", re.IGNORECASE)
# St Mark's Church of England School is no church: the words say who runs it.
DENOMINATION = re.compile(r"\bchurch (?:of (?:england|ireland|scotland)|in wales)(?=\s+[\w(])", re.IGNORECASE)
ENDINGS = frozenset(["co", "company", "inc", "limited", "llp", "london", "ltd", "plc", "the", "uk"])  # of firms' names
LONGEST_NAME = 5  # words of a kind's name that are looked for in a POI's
ARTICLES = frozenset(["a", "the"])
MOST_PHRASES = 12  # of a category that lists several kinds, so that it weighs about as much as one kind


class Kind(NamedTuple):
    """A kind of place, as an entry of place_words.toml."""

    name: str
    also: tuple[str, ...]  # other names that a person says
    codes: tuple[str, ...]  # names that only data use; they read as the name
    narrower: tuple[str, ...]  # special kinds of it; they keep their own reading
    phrases: tuple[str, ...]
    terms: tuple[str, ...]  # more words that tell of it, compared as words alone
    said: bool  # `describe` may say its name
    named_after: bool  # its names are those of something near, as a bus stop's


class Thesaurus(NamedTuple):
    """place_words.toml, by the look-ups of this module."""

    kinds: dict[str, Kind]  # name -> kind
    areas: tuple[str, ...]  # words for areas, which are no kind of place
    landmarks: frozenset[str]  # names of kinds that a place is known by
    prominent: frozenset[str]  # those of them that a whole quarter is known by
    street_words: frozenset[str]  # names of kinds that streets, quarters and pubs are called after
    shop_words: frozenset[str]  # names of kinds that shops and restaurants are called after
    open_shops: frozenset[str]  # readings of categories that leave open what kind of shop a POI is
    open_eating: frozenset[str]  # the same for places to eat
    eating: frozenset[str]  # names of kinds of places to eat and drink
    pubs: frozenset[str]  # names of kinds whose names are fancies
    in_pubs: frozenset[str]  # names of kinds that these may be as well
    never_shops: frozenset[str]  # names of kinds that no shop and no place to eat or drink is
    with_food: frozenset[str]  # names of kinds of large places that have a cafe of their own
    unsaid: frozenset[str]  # readings of categories that `describe` does not say, beside the kinds that are not said
    found: dict[str, tuple[Kind, str]]  # look_up_key of every name and code -> its kind, its reading
    spelt: dict[str, Kind]  # look_up_key of every name that a person says -> its kind


def reading(category: str) -> str:
    """The category as a person says it, in lower case: "fast_food" is "fast food", "Other retail" is "shop".

    The table decides where it lists the category. Otherwise underscores and CamelCase become spaces, "a/b" becomes "a or b",
    "a;b" becomes "a and b", and of "key=value" and "a > b" the last part counts.
    """
    found = _find(category)
    if found:
        return found[1]
    parts, conjunction = _split(category)
    if len(parts) < 2:
        return _plain(category)
    read = list(dict.fromkeys(reading(part) for part in parts))
    return conjunction.join([", ".join(read[:-1]), read[-1]] if len(read) > 1 else read)


def phrases(category: str) -> list[str]:
    """Everyday phrases for the category: what people do, buy or need there, then its other names. Empty if it is unknown.

    A category that lists several kinds ("Pub/bar/nightclub") takes phrases of each in turn, MOST_PHRASES at most.
    """
    found = _find(category)
    if found:
        kind, read = found
        return [text for text in (*kind.phrases, *kind.also, kind.name) if text != read]
    parts, _ = _split(category)
    if len(parts) < 2:
        return []
    in_turn = chain.from_iterable(zip_longest(*(phrases(part) for part in parts)))
    return list(dict.fromkeys(text for text in in_turn if text))[:MOST_PHRASES]


def terms(category: str) -> list[str]:
    """Words that tell of the category and stand in no phrase; of several kinds, those of each. Empty if it is unknown."""
    return list(dict.fromkeys(term for kind in kinds_of(category) for term in kind.terms))


def kind_of(category: str) -> Kind | None:
    """The kind of place that the category is, None if it is unknown."""
    found = _find(category)
    return found[0] if found else None


def kinds_of(category: str) -> list[Kind]:
    """The kinds of a category that may list several, such as "Pub/bar/nightclub"; empty if one of them is unknown."""
    found = kind_of(category)
    parts, _ = _split(re.sub(r" (?:or|and) |, ", "/", category))
    if found or len(parts) < 2:
        return [found] if found else []
    kinds = [kind_of(part) for part in parts]
    return [kind for kind in kinds if kind] if all(kinds) else []


def kinds_in_name(name: str, *, of_stop: bool = False) -> list[Kind]:
    """The kinds that a name says in so many words, at the end of the name or of a part of it.

    "Kelvin Road Playgroup at Baptist Church" is a playgroup and a church, but "Church Street Cafe" is no church. A name that
    is nothing but one word for a kind ("The Castle") is a fancy. of_stop: the name is a bus stop's, or that of another kind
    which is named after what is near.
    """
    name = DENOMINATION.sub("", name)
    parts = [words for words in map(plain_words, PARTS.split(name)) if words]
    if len(parts) == 1 and len(parts[0]) == 1:
        return []
    signs = _signs(name) if of_stop else ()
    found = (_kind_at_end(words, of_stop and words not in signs) for words in parts)
    return list({kind.name: kind for kind in found if kind}.values())


def is_named(kind: Kind, name: str) -> bool:
    """Whether one of the kind's names stands in a name, next to other words."""
    thesaurus = load_thesaurus()
    words = [word for word in look_up_key(name).split() if word not in ARTICLES]
    spoken = f" {' '.join(words)} "
    for key in map(look_up_key, (kind.name, *kind.also, *kind.narrower)):
        fancy = key in thesaurus.street_words | thesaurus.shop_words or len(words) <= len(key.split())
        if not fancy and (f" {key} " in spoken or f" {key}s " in spoken):
            return True
    return False


@cache
def never_by_name(category: str) -> frozenset[str] | None:
    """The kinds that a POI of the category is not, however like theirs its name is; None where names are no fancies.

    A pub called Greyhound is no racing track, a shop called Village Green no common.
    """
    thesaurus, names = load_thesaurus(), {found.name for found in kinds_of(category)}
    if names and names <= thesaurus.pubs:
        return frozenset(thesaurus.kinds) - thesaurus.in_pubs - thesaurus.eating
    if reading(category) in thesaurus.open_shops | thesaurus.open_eating or (names and names <= thesaurus.eating):
        return thesaurus.never_shops
    return None


def is_landmark(category: str) -> bool:
    """Whether a place is known by it: a museum, a stadium. A category that lists several kinds is one if they all are."""
    return _is_among(category, load_thesaurus().landmarks)


def is_prominent(category: str) -> bool:
    """Whether a quarter is known by one of them: a railway station, a casino; of several kinds, by each."""
    return _is_among(category, load_thesaurus().prominent)


def _is_among(category: str, names: frozenset[str]) -> bool:
    found = kind_of(category)
    if found:
        return found.name in names
    parts, _ = _split(re.sub(r" or ", "/", category))
    return len(parts) > 1 and all(_is_among(part, names) for part in parts)


def vocabulary() -> list[str]:
    """The words for places that `describe` may say, sorted: one name for each kind of place, and words for areas."""
    thesaurus = load_thesaurus()
    return sorted({*thesaurus.areas, *(kind.name for kind in thesaurus.kinds.values() if kind.said)})


@cache
def load_thesaurus() -> Thesaurus:
    data: dict[str, Any] = tomllib.loads((files("callipper_db") / "place_words.toml").read_text(encoding="utf-8"))
    kinds = {name: _kind(name, entry) for name, entry in data["kinds"].items()}
    found: dict[str, tuple[Kind, str]] = {}
    for kind in kinds.values():
        found |= {look_up_key(code): (kind, kind.name) for code in kind.codes}
        found |= {look_up_key(name): (kind, name) for name in (kind.name, *kind.also, *kind.narrower)}
    street_words, shop_words = (frozenset(map(look_up_key, data[words])) for words in ("street_words", "shop_words"))
    spelt = {look_up_key(name): kind for kind in kinds.values() for name in (kind.name, *kind.also, *kind.narrower)}
    landmarks, prominent = frozenset(data["landmarks"]), frozenset(data["prominent"])
    open_shops, open_eating, eating = (frozenset(data[words]) for words in ("open_shops", "open_eating", "eating"))
    pubs, in_pubs, never_shops, with_food, unsaid = (
        frozenset(data[words]) for words in ("pubs", "in_pubs", "never_shops", "with_food", "unsaid")
    )
    return Thesaurus(
        kinds,
        tuple(data["areas"]),
        landmarks,
        prominent,
        street_words,
        shop_words,
        open_shops,
        open_eating,
        eating,
        pubs,
        in_pubs,
        never_shops,
        with_food,
        unsaid,
        found,
        spelt,
    )


def look_up_key(category: str) -> str:
    """What spellings of one category share: no case, accents, apostrophes or punctuation."""
    letters = unicodedata.normalize("NFKD", _plain(category))
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter) and letter not in APOSTROPHES)
    return " ".join(re.findall(r"[^\W_]+", bare))


def _kind(name: str, entry: dict[str, Any]) -> Kind:
    also, codes, narrower = (tuple(entry.get(names, [])) for names in ("also", "codes", "narrower"))
    return Kind(
        name,
        also,
        codes,
        narrower,
        tuple(entry["phrases"]),
        tuple(entry.get("terms", [])),
        entry.get("said", True),
        entry.get("named_after", False),
    )


def plain_words(part: str) -> list[str]:
    """The words of a name or of a part of it, without an article and without "Ltd" and numbers at the end."""
    words = look_up_key(part).split()
    while words and (words[-1] in ENDINGS or words[-1].isdigit()):
        words.pop()
    return words[1:] if words and words[0] in ARTICLES else words


def _kind_at_end(words: list[str], of_stop: bool) -> Kind | None:
    """The kind whose name is the longest at the end of some words; None for a word that says nothing there alone."""
    thesaurus, ends = load_thesaurus(), {words[-1], *_singulars(words[-1])}
    for length in range(min(LONGEST_NAME, len(words)), 1, -1):
        for end in ends:
            if found := thesaurus.spelt.get(" ".join([*words[-length:-1], end])):
                return found
    if ends & thesaurus.street_words or (ends & thesaurus.shop_words and not of_stop):
        return None
    return next((thesaurus.spelt[end] for end in sorted(ends) if end in thesaurus.spelt), None)


def _signs(name: str) -> list[list[str]]:
    """Single words that "&" or "and" joins to one that is no kind, as on the sign of a pub: Elephant & Castle."""
    pieces = re.split(f"({PARTS.pattern})", name, flags=PARTS.flags)
    words = [plain_words(piece) for piece in pieces[::2]]
    signs = []
    for joint, first, second in zip(pieces[1::2], words, words[1:], strict=False):
        if joint.strip().lower() in ("&", "and") and len(first) == len(second) == 1:
            signs += [
                own for own, other in ((first, second), (second, first)) if other[0] not in load_thesaurus().spelt
            ]
    return signs


def _find(category: str) -> tuple[Kind, str] | None:
    """The kind of the category and its reading; a plural is found by its singular."""
    found, key = load_thesaurus().found, look_up_key(category)
    if key in found:
        return found[key]
    return next((found[singular] for singular in _singulars(key) if singular in found), None)


def _singulars(key: str) -> Iterator[str]:
    if key.endswith("ies"):
        yield key[:-3] + "y"
    if key.endswith("es"):
        yield key[:-2]
    if key.endswith("s"):
        yield key[:-1]


def _plain(category: str) -> str:
    """By the rules for codes alone."""
    last = re.split(r"[=>]", category)[-1]
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", last.replace("_", " ").replace("&", " and "))
    return " ".join(words.lower().split())


def _split(category: str) -> tuple[list[str], str]:
    """The kinds that a list names, and the word that joins them."""
    separator, conjunction = (";", " and ") if ";" in category else ("/", " or ")
    return [part for part in map(str.strip, category.split(separator)) if part], conjunction
