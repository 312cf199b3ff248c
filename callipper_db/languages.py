"""Words for kinds of places in other languages than English: languages/XX.toml. place_words.py has the English ones."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from callipper_db import place_words
from callipper_db.errors import LanguageUnknown
from callipper_db.place_words import Kind

ENGLISH = "en"
FOLDER = files("callipper_db") / "languages"
LANGUAGES = tuple(sorted(file.name.removesuffix(".toml") for file in FOLDER.iterdir()))
WITHOUT_SPACES = frozenset(["ja", "zh"])
# These write a word with what is before it: Stadtapotheke. Of a short word that would be chance: Sansibar.
COMPOUNDING = frozenset(["de", "ko", "nl"])
LEAST_LETTERS = 5  # of the end of a German or Dutch word
OTHER_NAMES = (
    4  # the entries of a kind among which one word is a name; a later one is something that people do or buy there
)
LONGEST_NAME = 5  # words
# Before these words stands what the POI is, after them where, whose or what for: "Apotheke am Rathaus", "Bar de la Mairie".
BINDING = {
    "de": "am an auf bei beim dem den der des die das fuer für gegenueber gegenüber im in und unter vom von vor zu zum zur",
    "es": "a al con de del el en la las los para por y",
    "fr": "a à au aux chez d de des du en et l la le les par pour sous sur",
    "it": "a ad al alla alle ai con d da dal dalla degli dei del della delle dell di e i il in l la le lo per",
    "nl": "aan bij de den der en het in op te ten ter van voor 't",
    "pl": "dla i im na nad pod przy u w z",
    "pt": "a ao as com da das de do dos e em na no o os para",
    "ru": "для и им имени на при у",  # noqa: RUF001
    "tr": "ve",
}
SAMPLE = 5000  # names of POIs from which their languages are found
LEAST_SHARE = 0.015  # of them, that have a word which only the language has: see languages_of
LEAST_NAMES = 5  # the same as a number
LOAN_WORDS = 2  # the commonest words of a language, which do not count


class Words(NamedTuple):
    """A file of languages/."""

    names: dict[str, str]  # English name of a kind -> what describe says
    spelt: dict[str, Kind]  # key() of a name -> its kind
    phrases: dict[str, tuple[str, ...]]  # English name of a kind -> names and phrases
    areas: tuple[str, ...]


def check_language(language: str) -> str:
    """The code of a language: 'pt' of 'pt-BR'. Raises LanguageUnknown."""
    code = re.split("[-_]", language.lower())[0]
    if code != ENGLISH and code not in LANGUAGES:
        reason = f"There are words for places in: {', '.join(sorted((ENGLISH, *LANGUAGES)))}."
        raise LanguageUnknown(language=language, reason=reason)
    return code


@cache
def load_words(language: str) -> Words:
    """The words of one of LANGUAGES. Raises LanguageUnknown."""
    data = tomllib.loads((FOLDER / f"{check_language(language)}.toml").read_text(encoding="utf-8"))
    kinds, listed = place_words.load_thesaurus().kinds, data["kinds"]
    spelt: dict[str, Kind] = {}
    for first in (True, False):  # the name that describe says of one kind may be another name of a second
        for name, texts in listed.items():
            for text in texts[:1] if first else filter(_is_word, texts[1:OTHER_NAMES]):
                spelt.setdefault(key(text), kinds[name])
    phrases = {name: tuple(texts) for name, texts in listed.items()}
    return Words({name: texts[0] for name, texts in listed.items()}, spelt, phrases, tuple(data["areas"].values()))


def name_of(category: str, language: str) -> str | None:
    """What describe says of a category: 'Bäckerei' of a bakery; None for one that the thesaurus does not know.

    A special kind, which has no word of its own, is said in English after the wider one: "Museum (science museum)".
    """
    names = load_words(language).names
    found, read = place_words.kinds_of(category), place_words.reading(category)
    if not found or not all(kind.name in names for kind in found):
        return None
    said = " / ".join(dict.fromkeys(names[kind.name] for kind in found))
    return f"{said} ({read})" if len(found) == 1 and read in found[0].narrower else said


def phrases(category: str, language: str) -> list[str]:
    """Names and everyday phrases for a category. Empty if it is unknown."""
    if language == ENGLISH:
        return place_words.phrases(category)
    words = load_words(language).phrases
    return [text for kind in place_words.kinds_of(category) for text in words.get(kind.name, ())]


def vocabulary(languages: Iterable[str]) -> list[str]:
    """Words for kinds of places and for areas."""
    found = list[str]()
    for language in languages:
        if language == ENGLISH:
            found += place_words.vocabulary()
        else:
            words = load_words(language)
            found += sorted({*words.names.values(), *words.areas})
    return list(dict.fromkeys(found))


def kinds_in_name(name: str, languages: Iterable[str], *, of_stop: bool = False) -> list[Kind]:
    """The kinds that a name says in so many words of some languages: 'Bäckerei Müller', 'Boulangerie du Port'.

    A single English word counts if no other language reads the name, since it may mean something else there: a German
    gymnasium is a school. Names of kinds that streets and shops are called after do not count, as in English.
    """
    languages = set(languages)
    english = place_words.kinds_in_name(name, of_stop=of_stop) if ENGLISH in languages else []
    others = sorted(languages - {ENGLISH})
    found = {word: load_words(language).spelt[word] for language in others for word in _words_for_kinds(name, language)}
    spoken = f" {place_words.look_up_key(name)} "
    if not found or any(f" {key} " in spoken for kind in english for key in _long_names(kind)):  # "Trinity Irish Pub"
        return english
    return list({kind.name: kind for kind in found.values()}.values())


def is_named(kind: Kind, name: str, languages: Iterable[str]) -> bool:
    """Whether one of the kind's names stands in a name, next to other words."""
    for language in languages:
        if language == ENGLISH:
            if place_words.is_named(kind, name):
                return True
        elif not _is_fancy(kind):
            spoken = f" {key(name)} "
            for text in load_words(language).phrases.get(kind.name, ())[:OTHER_NAMES]:
                if _is_word(text) and f" {key(text)} " in spoken and f" {key(text)} " != spoken:
                    return True
    return False


def languages_of(names: Iterable[str]) -> list[str]:
    """The languages other than English that names of POIs speak, the commonest first.

    A language is known by words for kinds that no other language has: Apotheke, not Hotel or Farmacia. Its two commonest do
    not count, since they may be loan words, as the Dutch station, which is English too.
    """
    names = list(names)[:SAMPLE]
    owners = _owners()
    shares = {}
    for language in LANGUAGES:
        found = [[word for word in _words_for_kinds(name, language) if owners[word] == 1] for name in names]
        counts = Counter(word for words in found for word in words[:1])
        shares[language] = counts.total() - sum(count for _, count in counts.most_common(LOAN_WORDS))
    enough = max(LEAST_NAMES, LEAST_SHARE * len(names))
    return sorted((language for language in LANGUAGES if shares[language] >= enough), key=lambda one: -shares[one])


def key(text: str) -> str:
    """What spellings share: no case, Latin accents or punctuation. Signs that make another letter, as in Japanese, stay."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    kept = unicodedata.normalize(
        "NFC", "".join(mark for mark in letters if unicodedata.combining(mark) not in _ACCENTS)
    )
    spaced = "".join(mark if mark.isalnum() or unicodedata.category(mark)[0] == "M" else " " for mark in kept)
    return " ".join(spaced.split())


# Combining classes of accents, and of Arabic vowel signs.
_ACCENTS = frozenset([202, 216, 220, 230, *range(27, 36)])


def _is_word(text: str) -> bool:
    return len(key(text).split()) == 1 and len(text) <= 20


def _is_fancy(kind: Kind) -> bool:
    """Whether streets, houses or shops are called after such places."""
    thesaurus = place_words.load_thesaurus()
    return place_words.look_up_key(kind.name) in thesaurus.street_words | thesaurus.shop_words


def _long_names(kind: Kind) -> list[str]:
    return [key for key in map(place_words.look_up_key, (kind.name, *kind.also, *kind.narrower)) if " " in key]


@cache
def _owners() -> Counter[str]:
    """In how many languages a word, as key() has it, is a name of a kind."""
    spelt = (word for language in LANGUAGES for word in load_words(language).spelt)
    return Counter([*place_words.load_thesaurus().spelt, *spelt])


def _words_for_kinds(name: str, language: str) -> list[str]:
    """The names of kinds, as keys, that stand in a language at the beginning or at the end of a part of a POI's name."""
    parts = [words for words in (key(part).split() for part in place_words.PARTS.split(name)) if words]
    if len(parts) == 1 and len(parts[0]) == 1 and language not in WITHOUT_SPACES | COMPOUNDING:
        return []
    return [word for word in (_word_for_kind(words, language) for words in parts) if word]


def _word_for_kind(words: list[str], language: str) -> str | None:
    spelt, binding = load_words(language).spelt, _binding(language)
    while len(words) > 1 and words[0] in binding:
        words = words[1:]
    for length in range(min(LONGEST_NAME, len(words)), 1, -1):  # "agence de voyage" has a binding word itself
        if (some := " ".join(words[:length])) in spelt:
            return some
    words = words[: next((place for place, word in enumerate(words) if place and word in binding), None)]
    for length in range(min(LONGEST_NAME, len(words)), 0, -1):
        for some in (" ".join(words[:length]), " ".join(words[-length:])):
            if len(some) > 1 and some in spelt and not (length == 1 and _is_fancy(spelt[some])):
                return some
    if language in WITHOUT_SPACES | COMPOUNDING:
        ends = (_end_of_compound(word, language) for word in dict.fromkeys([words[0], words[-1]]))
        return next((end for end in ends if end), None)
    return None


def _end_of_compound(word: str, language: str) -> str | None:
    """The longest name of a kind at the end of a word, such as apotheke of Stadtapotheke."""
    spelt = load_words(language).spelt
    least = LEAST_LETTERS if language in ("de", "nl") else 2
    ends = (word[start:] for start in range(1, len(word) - least + 1))
    return next((end for end in ends if end in spelt and not _is_fancy(spelt[end])), None)


@cache
def _binding(language: str) -> frozenset[str]:
    return frozenset(map(key, BINDING.get(language, "").split()))
