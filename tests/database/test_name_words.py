"""Words in names that tell what kind of place it is."""

from __future__ import annotations

from importlib.resources import files

import pytest

from callipper_db import place_words
from callipper_db.name_words import kinds_told, left_open, load_name_words


@pytest.mark.parametrize(
    ("name", "category", "kinds"),
    [
        ("Lahore Tandoori", "Restaurant/Cafe/Canteen", ["indian restaurant"]),
        ("LAHORE TANDOORI", "restaurant", ["indian restaurant"]),
        ("Punjab Restaurant", "restaurant", ["indian restaurant"]),
        ("Kaiten Sushi", "restaurant", ["japanese restaurant", "sushi restaurant"]),
        ("Aux Délices, Boulangerie", "Retailers - other", ["bakery"]),
        ("Turkish Delight", "shop", ["sweet shop"]),  # of two phrases the longer
        ("Hong Kong Supermarket", "shop", []),  # the name says what it is, and no shop is a restaurant
        ("Hong Kong Stores", "shop", []),
        ("Lahore Tandoori", "pub", []),  # the category says what it is
        ("Lahore Tandoori", "Primary school", []),
        ("Masala", "", ["indian restaurant"]),
        ("", "restaurant", []),
        ("Smith and Sons", "restaurant", []),
    ],
)
def test_words_tell_the_kind(name: str, category: str, kinds: list[str]) -> None:
    assert sorted(kind.name for kind in kinds_told(name, category)) == kinds


def test_what_a_category_leaves_open() -> None:
    assert left_open("Pub") is None
    shop, eating = left_open("Retailers - other"), left_open("Restaurant/Cafe/Canteen")
    assert shop is not None and "bakery" in shop and "seafood restaurant" not in shop
    assert eating is not None and "seafood restaurant" in eating and "bicycle shop" not in eating


def test_the_words_are_in_order() -> None:
    """Kinds of the thesaurus, sorted, in the spelling by which they are looked up, none twice under a kind."""
    text = (files("callipper_db") / "name_words.txt").read_text(encoding="utf-8")
    lines = [line.partition(": ") for line in text.splitlines() if not line.startswith("#")]
    kinds = [kind for kind, _, _ in lines]
    assert kinds == sorted(set(kinds)) and set(kinds) <= set(place_words.load_thesaurus().kinds)
    for _, _, words in lines:
        phrases = words.split(" | ")
        assert len(set(phrases)) == len(phrases) > 0
        assert all(phrase == place_words.look_up_key(phrase) != "" for phrase in phrases)
    assert sum(len(found) for found in load_name_words().values()) > 5000
