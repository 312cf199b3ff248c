"""The kinds of each POI, by its category and by its name. search() and describe() answer from them.

The thesaurus (callipper_db/place_words.py) lists kinds and the phrases by which people ask for them. A category is found there
by its spelling; one that is not there is a kind of its own. A name says a kind in words ('Holt Bakery & Deli'), or it suggests
one whose sentence vector is close: 'Evers Cycles, Retailers - other' is a bicycle shop. A bus stop's name says what is near.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from callipper_db import languages, partitions, place_words
from callipper_db.arrays import Array
from callipper_db.binary_copy import write_rows
from callipper_db.brands import countries_of, kinds_of_brand
from callipper_db.db import Connection
from callipper_db.name_words import GENERAL, kinds_told, left_open
from callipper_trainer.data.sample_file import StoredSamples
from callipper_trainer.data.samples import Samples
from callipper_trainer.weight_rows import WeightRows

# Least cosine of "name, category" and a kind's name for the name to suggest the kind (docs/experiments.md).
CLOSE = 0.65
CLOSE_TO_WORD = 0.6  # the same to the kind's first name, which describe says
# By how much the name must add to the cosine of the category alone: every "cafe" is like an internet cafe, whatever its name.
ADDED_BY_NAME = 0.05
LEAST_WORDS = 2  # of a name that is like a kind's; a name of one word is a fancy
MOST_BY_NAME = 3  # kinds that one name suggests at most: some of the three that it is most like
LONGEST_KIND = 500  # characters of a kind's name; it is in an index, which takes no long text
LONGEST_NAME = 1000  # characters of a POI's name that are stored; an index of words takes a megabyte at most
LONGEST_WORDS = 4  # words; a longer category is a description, and nobody asks by it
ROWS = 2048  # texts compared at once


class Basis(IntEnum):
    """Why a POI counts for a kind; point_kind.basis."""

    CATEGORY = 0
    SAID = 1  # its name says so, and is like it: 'Holt Bakery'
    ALIKE = 2  # its name is like the kind's: 'Evers Cycles' is like 'bicycle shop'
    HINT = 3  # a brand, words whose vector is not like the kind, or a faint likeness; for search, not for describe
    NEAR = 4  # it is a bus stop or such, whose name says what is near


Encode = Callable[[list[str]], Array]  # (V,) texts -> (V, T), the sentence encoder's vectors


@dataclass
class Kinds:
    """The kinds of a version by number, and the kinds of its texts."""

    names: list[str] = field(default_factory=list)
    languages: tuple[str, ...] = (languages.ENGLISH,)  # of names and phrases
    countries: frozenset[str] = frozenset()  # whose brands count; empty for those of all
    category: dict[int, str] = field(default_factory=dict)  # kind -> the first category text of that kind, if any
    of_text: dict[str, int] = field(default_factory=dict)  # category text -> its kind
    # "name, category" -> kinds by the name
    of_named_text: dict[str, list[tuple[int, Basis]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.number = {name: number for number, name in enumerate(self.names)}
        self.synonym: dict[str, int] = {}  # name of a kind of the thesaurus -> a kind that means the same
        for name in self.names:
            self._note_synonym(name)

    def add(self, name: str) -> int:
        """The number of a kind. A new kind gets the next number."""
        if name not in self.number:
            self.number[name] = len(self.names)
            self.names.append(name)
            self._note_synonym(name)
        return self.number[name]

    def add_same(self, name: str) -> int:
        """The number of a kind of the thesaurus: where the data call it otherwise, of that."""
        return self.synonym[name] if name in self.synonym else self.add(name)

    def _note_synonym(self, name: str) -> None:
        found = place_words.kind_of(name)
        if found and name in (found.name, *found.also):
            self.synonym.setdefault(found.name, self.number[name])

    def read_texts(self, texts: list[str]) -> None:
        """Find the kinds of category texts."""
        for text in texts:
            self.of_text[text] = number = self.add(place_words.reading(text)[:LONGEST_KIND])
            self.category.setdefault(number, text)

    def read_named_texts(self, named_texts: list[str], vectors: Array, encode: Encode) -> None:
        """Find the kinds that texts "name, category" suggest, from their vectors (V, T)."""
        if not named_texts:
            return
        kinds = list(place_words.load_thesaurus().kinds.values())
        suggestible = np.array([not kind.named_after for kind in kinds])
        others = [languages.load_words(language) for language in self.languages if language != languages.ENGLISH]
        spelt = list[tuple[str, int]]()
        firsts = []  # for each kind, the first of its names in each language
        for number, kind in enumerate(kinds):
            first = len(spelt)
            spelt += [(name, number) for name in (kind.name, *kind.also, *kind.narrower)]
            firsts.append([first])
            for words in others:
                firsts[-1].append(len(spelt) if kind.name in words.names else first)
                spelt += [(name, number) for name in words.phrases.get(kind.name, ())[:1]]
        starts, said_first = np.flatnonzero(np.diff([number for _, number in spelt], prepend=-1)), np.array(firsts)
        names, vectors = _unit(encode([name for name, _ in spelt])), _unit(vectors)
        categories = {category: row for row, category in enumerate(["", *self.of_text])}
        alone = _unit(encode(list(categories)))
        for start in range(0, len(named_texts), ROWS):
            likeness = vectors[start : start + ROWS] @ names.T
            own, close = (
                likeness[:, said_first].max(axis=2),
                np.maximum.reduceat(likeness, starts, axis=1),
            )  # (B, kinds)
            parts = [self._parts(text) for text in named_texts[start : start + ROWS]]
            used, of = np.unique([categories[category] for _, category in parts], return_inverse=True)
            enough = np.maximum.reduceat(alone[used] @ names.T, starts, axis=1)[of] + ADDED_BY_NAME
            enough[used[of] == 0] = CLOSE  # it has no category
            best = np.argsort(-np.where(suggestible, close, -1), axis=1, kind="stable")[:, :MOST_BY_NAME]
            for row, (name, category) in enumerate(parts):
                near = [n for n in best[row].tolist() if suggestible[n] and close[row, n] >= CLOSE]
                found = self._kinds_by_name(
                    name,
                    category,
                    [kinds[n].name for n in near],
                    {kinds[n].name for n in near if close[row, n] >= enough[row, n]},
                    {kinds[n].name for n in np.flatnonzero(own[row] >= CLOSE_TO_WORD).tolist()},
                )
                self.of_named_text[named_texts[start + row]] = [
                    (self.add_same(suggested), basis) for suggested, basis in found.items()
                ]

    def _kinds_by_name(
        self, name: str, category: str, near: list[str], nearer: set[str], sure: set[str]
    ) -> dict[str, Basis]:
        """The kinds that a POI's name suggests, and why.

        near: at most MOST_BY_NAME kinds whose names are close to "name, category", the closest first. nearer: those of them
        where the name adds ADDED_BY_NAME to the cosine of the category. sure: the kinds whose first name, which describe()
        says, is close.
        """
        thesaurus, stop = place_words.load_thesaurus(), place_words.kind_of(category)
        of_stop = stop is not None and stop.named_after
        found_kinds = languages.kinds_in_name(name, self.languages, of_stop=of_stop)
        if of_stop:
            return dict.fromkeys(sorted(kind.name for kind in found_kinds), Basis.NEAR)
        never = place_words.never_by_name(category)
        said = {kind.name for kind in found_kinds if not kind.named_after}
        said -= (never or frozenset()) - sure
        named = {kind for kind in near if languages.is_named(thesaurus.kinds[kind], name, self.languages)}
        like = {kind for kind in near if kind in named or kind in nearer} - (never or frozenset())
        if never is None and any(
            languages.is_named(kind, name, self.languages) for kind in place_words.kinds_of(category)
        ):
            like = set()  # Holt Community Centre is no health centre
        # A name that says a kind suggests no other: Lakeside Nursery is no garden centre. But a place to eat may be of several.
        if told := said - GENERAL:
            like &= told | thesaurus.eating
        brand = {kind.name for kind in kinds_of_brand(name, category, self.countries)}
        if brand:  # Ted Baker is no bakery
            said &= brand | GENERAL
            like &= brand
        # A bar may be called Zoo Bar.
        in_words = said | {kind for kind in like & named if not place_words.is_landmark(kind)}
        found = dict.fromkeys([*sorted(brand), *filter(like.__contains__, near), *sorted(in_words)], Basis.HINT)
        # What describe() says must be surer. A club may be called Fabric. A Fish Stall is like a fishing shop, but its words
        # tell a fishmonger.
        by_words, left = {kind.name for kind in kinds_told(name, category)}, left_open(category)
        if not by_words and len(place_words.look_up_key(name).split()) >= LEAST_WORDS:
            fits = like if left is None else like & (left | thesaurus.with_food)
            found |= dict.fromkeys(sorted(fits & sure), Basis.ALIKE)
        found |= dict.fromkeys(sorted(by_words), Basis.ALIKE)
        return found | dict.fromkeys(sorted(in_words & sure), Basis.SAID)

    def name_of(self, named_text: str) -> str:
        """The name of a text "name, category", by the categories that were read."""
        return self._parts(named_text)[0]

    def _parts(self, named_text: str) -> tuple[str, str]:
        """Name and category of a text "name, category", by the categories that were read."""
        place = named_text.find(", ")
        while place >= 0:
            if named_text[place + 2 :] in self.of_text:
                return named_text[:place], named_text[place + 2 :]
            place = named_text.find(", ", place + 1)
        return named_text, ""

    def rows(self, samples: Samples) -> tuple[Array, Array, Array]:
        """The kinds of all samples: (R,) row of the sample, (R,) kind, (R,) its basis."""
        texts, own = samples.texts, np.zeros(len(samples.texts), np.int32)
        for number in np.unique(samples.text_id):
            own[number] = self.of_text[texts[number]]
        row, kind = [np.arange(len(samples))], [own[samples.text_id]]
        basis = [np.full(len(samples), Basis.CATEGORY, np.int16)]
        named = np.unique(samples.name_id[samples.name_id >= 0]).tolist()
        by_name = {number: self.of_named_text.get(texts[number], []) for number in named}
        for place in range(max(map(len, by_name.values()), default=0)):
            suggested = np.full((len(texts) + 1, 2), -1, np.int32)
            for number, found in by_name.items():
                if len(found) > place:
                    suggested[number] = found[place]
            chosen, why = suggested[samples.name_id].T  # no name, -1, reads the last entry
            use = np.flatnonzero((chosen >= 0) & (chosen != kind[0]))
            row.append(use)
            kind.append(chosen[use])
            basis.append(why[use].astype(np.int16))
        return np.concatenate(row), np.concatenate(kind), np.concatenate(basis)

    def phrases(self, number: int) -> list[str]:
        """The phrases by which people ask for a kind, its own name first."""
        name = self.names[number]
        category = self.category.get(number, name)
        said = [phrase for language in self.languages for phrase in languages.phrases(category, language)]
        return list(dict.fromkeys([name, *said]))

    def terms(self, number: int) -> list[str]:
        """Words that tell of a kind and stand in no phrase."""
        name = self.names[number]
        return place_words.terms(self.category.get(number, name)) if languages.ENGLISH in self.languages else []

    def is_said(self, number: int) -> bool:
        """Whether describe() may say the kind's name."""
        name = self.names[number]
        if name in place_words.load_thesaurus().unsaid:
            return False
        found = place_words.kind_of(name)
        return found.said if found else len(name.split()) <= LONGEST_WORDS


def find_kinds(
    samples: Samples | StoredSamples,
    text_vectors: Array,
    encode: Encode,
    spoken: tuple[str, ...] = (languages.ENGLISH,),
) -> tuple[Kinds, KindRows]:
    """The kinds of all POIs: by their texts and by their names in some languages."""
    texts, named = (np.unique(np.concatenate(parts)) for parts in _text_numbers(samples))
    named = named[named >= 0]
    kinds = Kinds(languages=spoken)
    kinds.read_texts([samples.texts[number] for number in texts])
    kinds.countries = countries_of(kinds.name_of(samples.texts[number]) for number in named)
    kinds.read_named_texts([samples.texts[number] for number in named], text_vectors[named], encode)
    return kinds, KindRows.of(kinds, 0, encode)


def _text_numbers(samples: Samples | StoredSamples) -> tuple[list[Array], list[Array]]:
    """Which texts there are, and which names, of each part of the samples."""
    pairs = [(np.unique(part.text_id), np.unique(part.name_id)) for part in samples.chunks()]
    return [texts for texts, _ in pairs], [names for _, names in pairs]


def plain_names(samples: Samples) -> list[str]:
    """(N,) the bare names of the POIs, cut to LONGEST_NAME, '' for none. samples.texts has names as 'name, category'."""
    texts = samples.texts
    return [
        texts[named].removesuffix(f", {texts[text]}")[:LONGEST_NAME] if named >= 0 else ""
        for named, text in zip(samples.name_id.tolist(), samples.text_id.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class KindRows:
    """Kinds to write, with their phrases and the phrases' sentence vectors."""

    numbers: list[int]
    names: list[str]
    said: list[bool]  # whether describe() may say the name
    landmark: list[bool]
    prominent: list[bool]
    foreign: list[tuple[int, str, str]]  # (number of the kind, language other than English, name in it)
    phrases: list[tuple[int, str]]  # (number of the kind, one of its phrases)
    vectors: Array  # (phrases, T), unit length
    terms: list[tuple[int, str]]  # (number of the kind, a word that stands in no phrase)

    @classmethod
    def of(cls, kinds: Kinds, first: int, encode: Encode) -> KindRows:
        """The kinds from number `first` on."""
        numbers = list(range(first, len(kinds.names)))
        phrases = [(number, phrase) for number in numbers for phrase in kinds.phrases(number)]
        distinct = list(dict.fromkeys(phrase for _, phrase in phrases))
        row = {phrase: place for place, phrase in enumerate(distinct)}
        vectors = _unit(encode(distinct))[[row[phrase] for _, phrase in phrases]] if phrases else np.empty((0, 0))
        said = [kinds.is_said(number) for number in numbers]
        names = [kinds.names[number] for number in numbers]
        foreign = [
            (number, language, found)
            for number, name in zip(numbers, names, strict=True)
            for language in languages.LANGUAGES
            if (found := languages.name_of(name, language))
        ]
        landmark, prominent = (list(map(ask, names)) for ask in (place_words.is_landmark, place_words.is_prominent))
        terms = [(number, term) for number in numbers for term in kinds.terms(number)]
        return cls(numbers, names, said, landmark, prominent, foreign, phrases, vectors, terms)


def write_kinds(connection: Connection, version: int, rows: KindRows) -> None:
    """Write kinds, their names in other languages, their phrases and terms, and the words of these."""
    if not rows.numbers:
        return
    written = WeightRows(connection, version)
    written.write(
        "kind",
        {
            "kind_id": ("int4", np.array(rows.numbers)),
            "name": ("text", [name.encode() for name in rows.names]),
            "said": ("bool", np.array(rows.said)),
            "landmark": ("bool", np.array(rows.landmark)),
            "prominent": ("bool", np.array(rows.prominent)),
        },
    )
    written.write(
        "kind_name",
        {
            "language": ("text", [language.encode() for _, language, _ in rows.foreign]),
            "kind_id": ("int4", np.array([number for number, _, _ in rows.foreign], np.int32)),
            "name": ("text", [name.encode() for _, _, name in rows.foreign]),
        },
    )
    written.write(
        "kind_phrase",
        {
            "kind_id": ("int4", np.array([number for number, _ in rows.phrases])),
            "phrase": ("text", [phrase.encode() for _, phrase in rows.phrases]),
            "vec": ("vector", rows.vectors),
        },
    )
    written.write(
        "kind_term",
        {
            "kind_id": ("int4", np.array([number for number, _ in rows.terms], np.int32)),
            "term": ("text", [term.encode() for _, term in rows.terms]),
        },
    )
    connection.execute("SELECT callipper._count_words(%s)", [version])
    connection.execute("ANALYZE callipper.kind_word")  # many texts are compared with them at once


def write_point_kinds(connection: Connection, version: int, kinds: Kinds, samples: Samples) -> None:
    """Write the kinds of some samples into the version's partition."""
    row, kind, basis = kinds.rows(samples)
    write_rows(
        connection,
        partitions.partition("point_kind", version),
        {
            "version": ("int4", version),
            "point_id": ("int8", samples.point_id[row]),
            "kind_id": ("int4", kind),
            "basis": ("int2", basis),
            "easting": ("float8", samples.metres[row, 0]),
            "northing": ("float8", samples.metres[row, 1]),
        },
    )


def write_point_names(connection: Connection, version: int, samples: Samples, text_vectors: Array) -> None:
    """Write the sentence vectors of some samples' names into the version's partition. text_vectors: (V, T) of their texts.

    A bus stop is called after what is near, which its name does not make it, so such names are left out.
    """
    used = np.unique(samples.text_id)
    categories = [place_words.kind_of(samples.texts[number]) for number in used]
    named_after = used[[kind is not None and kind.named_after for kind in categories]]
    rows = np.flatnonzero((samples.name_id >= 0) & ~np.isin(samples.text_id, named_after))
    write_rows(
        connection,
        partitions.partition("point_name", version),
        {
            "version": ("int4", version),
            "point_id": ("int8", samples.point_id[rows]),
            "vec": ("halfvec", _unit(text_vectors[samples.name_id[rows]])),
        },
    )


def read_kinds(
    connection: Connection, version: int, spoken: tuple[str, ...], countries: frozenset[str]
) -> Kinds | None:
    """The kinds of a published version, by number; None for a version of an earlier program that has none.

    spoken: the languages of its words. countries: those whose brands count.
    """
    rows = connection.execute(
        "SELECT name FROM callipper.kind WHERE version = %s ORDER BY kind_id", [version]
    ).fetchall()
    return Kinds([str(name) for (name,) in rows], spoken, countries) if rows else None


def _unit(vectors: Array) -> Array:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Array = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return result
