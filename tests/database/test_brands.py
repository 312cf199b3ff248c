"""Brands: the form of the file, and which POIs are of a brand's kinds."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from callipper_db.brands import countries_of, kinds_of_brand, load_brands
from callipper_db.place_words import load_thesaurus, reading

RETAIL = "Retailers - other"  # reads as "shop"
EATING = "Restaurant/Cafe/Canteen"


@pytest.mark.parametrize(
    ("name", "category", "kinds"),
    [
        ("Ladbrokes", RETAIL, {"betting shop"}),
        ("LADBROKES LTD 12", "shop", {"betting shop"}),
        ("Boots - Brixton", RETAIL, {"chemist", "pharmacy"}),
        ("Boots @ Tesco", RETAIL, {"chemist", "pharmacy"}),
        ("The Starbucks (Strand)", EATING, {"cafe", "coffee shop"}),
        ("Pret a Manger Euston", EATING, {"fast food restaurant", "sandwich shop"}),
        (
            "KFC",
            "fast_food",
            {"fast food restaurant", "chicken shop", "burger restaurant"},
        ),  # one kind is the category's
        ("セブン-イレブン", "", {"convenience store"}),
        ("Primark Stores Ltd", RETAIL, {"clothes shop"}),  # ends like a company's name
        ("Hollywood Bowl Dagenham", EATING, {"bowling alley"}),  # a large place with a cafe
    ],
)
def test_the_kinds_of_a_brand(name: str, category: str, kinds: set[str]) -> None:
    assert {kind.name for kind in kinds_of_brand(name, category)} == kinds


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("Castle", "Pub"),  # a pub is what it is
        ("Ladbrokes", EATING),  # a restaurant may only be a kind of restaurant
        ("Boots", "Bus stop"),  # a stop is called after what is near
        ("Paul Smith", EATING),  # one word of a brand begins many names
        ("M & B Supermarket", RETAIL),
        ("Four Seasons Supermarket", RETAIL),  # the rest says another kind
        ("Coffee House", EATING),  # words for a kind
        ("", RETAIL),
        ("12", RETAIL),
        ("Sarah's", ""),
        ("Stores Ltd", RETAIL),
        ("Cineworld", EATING),  # one word of a large place is not enough: "Pulse" and "Fora" are brands too
        ("Pulse - Soho", EATING),
        ("Cineworld Stores", EATING),
    ],
)
def test_no_brand(name: str, category: str) -> None:
    assert kinds_of_brand(name, category) == []


@pytest.mark.parametrize(
    ("names", "countries"),
    [
        (["Greggs", "Poundland", "Halfords Autocentre", "Wickes - Ealing", "Bäckerei Müller"], {"gb"}),
        (["Greggs", "Poundland"], set()),  # too few to tell
        (["Spark", "SPARK", "Spark - Acton", "Spark (Ealing)"], set()),  # one brand
        (["Starbucks", "Zara", "H&M", "IKEA"], set()),  # the world's
        ([], set()),
    ],
)
def test_the_countries_of_names(names: list[str], countries: set[str]) -> None:
    assert countries_of(names) == countries


def test_a_brand_of_one_word_counts_where_its_country_is() -> None:
    assert load_brands()["spark"].countries == {"nz"}
    assert kinds_of_brand("Spark", RETAIL, frozenset(["gb"])) == []
    for countries in (frozenset(["nz", "au"]), frozenset[str]()):
        assert [kind.name for kind in kinds_of_brand("Spark", RETAIL, countries)] == ["mobile phone shop"]
    assert kinds_of_brand("Chicken Express", EATING, frozenset(["gb"])) != [], "two words say enough"
    assert kinds_of_brand("Star Stores", RETAIL, frozenset(["gb"])) == []


def test_the_form_of_the_file() -> None:
    lines = (files("callipper_db") / "brands.txt").read_text(encoding="utf-8").splitlines()
    entries = [line.split(": ", 1) for line in lines if not line.startswith("#")]
    kinds = [kind for kind, _ in entries]
    assert kinds == sorted(set(kinds))
    assert set(kinds) <= load_thesaurus().kinds.keys()
    for _, names in entries:
        assert names.split(" | ") == sorted(set(names.split(" | ")))
        for countries in re.findall(r"\[(.*?)\]", names):
            found = countries.split(" ")
            assert found == sorted(set(found)) and len(found) <= 10
            assert all(re.fullmatch("[a-z]{2}", country) for country in found)


def test_no_brand_is_a_word_for_a_kind() -> None:
    assert load_brands().keys().isdisjoint(load_thesaurus().spelt)
    assert all(len(brand.kinds) <= 3 for brand in load_brands().values())


def test_the_lists_of_categories_name_kinds_or_readings() -> None:
    thesaurus = load_thesaurus()
    assert thesaurus.eating <= thesaurus.kinds.keys()
    for words in (thesaurus.open_shops, thesaurus.open_eating):
        assert {reading(word) for word in words} == words
    assert not thesaurus.open_shops & thesaurus.open_eating
