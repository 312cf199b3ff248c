"""Words for kinds of places in other languages: the form of the files, kinds in names, and the language of names."""

from __future__ import annotations

import pytest

from callipper_db.errors import LanguageUnknown
from callipper_db.languages import (
    LANGUAGES,
    check_language,
    is_named,
    kinds_in_name,
    languages_of,
    load_words,
    name_of,
    phrases,
    vocabulary,
)
from callipper_db.place_words import load_thesaurus

KINDS = load_thesaurus().kinds
GERMAN = [
    "Stadtapotheke",
    "Apotheke am Markt",
    "Kita Spatzen",
    "Goethe-Schule",
    "Bäckerei Klar",
    "Rathaus",
    "Bücherei Mitte",
]
ENGLISH = ["Bank Station", "Angel Station", "Oval Station", "Old Pharmacy", "City Library", "Corner Bakery", "Bar None"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_file_knows_the_kinds_and_areas_of_the_english_one(language: str) -> None:
    words = load_words(language)
    assert set(words.names) <= set(KINDS)
    assert len(words.names) > 0.9 * len(KINDS)
    assert len(words.areas) == len(load_thesaurus().areas)
    assert all(text and text == " ".join(text.split()) for texts in words.phrases.values() for text in texts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_kinds_have_the_same_first_name(language: str) -> None:
    names = [name.casefold() for name in load_words(language).names.values()]
    assert [name for name in names if names.count(name) > 1] == []


@pytest.mark.parametrize(
    ("language", "name", "expected"),
    [
        ("de", "Bäckerei Müller", ["bakery"]),
        ("de", "Stadtapotheke", ["pharmacy"]),
        ("de", "Apotheke am Rathaus", ["pharmacy"]),
        ("de", "Goethe-Gymnasium", ["secondary school"]),  # no gym
        ("de", "Sansibar", []),
        ("fr", "Boulangerie du Port", ["bakery"]),
        ("fr", "Restaurant de la Mairie", ["restaurant"]),
        ("fr", "École maternelle Plati", ["kindergarten"]),
        ("fr", "Jardin exotique", []),  # streets and houses are called so
        ("fr", "Trinity Irish Pub", ["irish pub"]),
        ("fr", "Corner Bakery", ["bakery"]),
        ("it", "Farmacia Comunale", ["pharmacy"]),
        ("es", "Panadería La Espiga", ["bakery"]),
        ("pt", "Padaria Central", ["bakery"]),
        ("nl", "Stadsapotheek", ["pharmacy"]),
        ("ja", "東京都立病院", ["hospital"]),
        ("ar", "صيدلية النهضة", ["pharmacy"]),
    ],
)
def test_a_name_says_its_kind(language: str, name: str, expected: list[str]) -> None:
    assert [kind.name for kind in kinds_in_name(name, [language, "en"])] == expected


def test_a_name_is_read_in_the_languages_asked_for_alone() -> None:
    assert kinds_in_name("Bäckerei Müller", ["en"]) == kinds_in_name("Corner Bakery", ["de"]) == []


def test_is_named_finds_a_word_anywhere_but_alone() -> None:
    assert is_named(KINDS["pharmacy"], "Alte Apotheke Nord", ["de"])
    assert not is_named(KINDS["pharmacy"], "Apotheke", ["de"])
    assert not is_named(KINDS["pharmacy"], "Alte Apotheke Nord", ["en"])


def test_languages_are_known_by_words_of_their_own() -> None:
    assert languages_of(GERMAN * 2) == ["de"]
    assert languages_of(ENGLISH * 10) == []
    assert languages_of(["Hotel Sol", "Bar Uno", "Farmacia"] * 20) == []  # words of several languages
    assert languages_of([]) == []


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        ("bakery", "Bäckerei"),
        ("science_museum", "Museum (science museum)"),
        ("cafe;bakery", "Bäckerei / Café"),
        ("underwater basket school", None),
    ],
)
def test_a_category_has_a_name(category: str, expected: str | None) -> None:
    found = name_of(category, "de")
    assert found == expected or (found and expected and sorted(found.split(" / ")) == sorted(expected.split(" / ")))


def test_phrases_of_a_category_are_names_first() -> None:
    assert phrases("bakery", "de")[0] == "Bäckerei"
    assert phrases("underwater basket school", "de") == []
    assert "buy fresh bread" in phrases("bakery", "en")


def test_the_vocabulary_is_that_of_all_its_languages() -> None:
    words = vocabulary(["en", "de"])
    assert {"bakery", "high street", "Bäckerei", "Einkaufsstraße"} <= set(words)
    assert "Bäckerei" not in vocabulary(["en"])


def test_an_unknown_language_is_refused_with_those_known() -> None:
    with pytest.raises(LanguageUnknown, match=r"'xx'.*ar, de, en"):
        check_language("xx")
