"""Of which kinds POIs are: by their category, and by what their name suggests to an encoder whose vectors are made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from callipper_db import place_words
from callipper_db.arrays import Array
from callipper_db.place_words import load_thesaurus, look_up_key
from callipper_db.progress import Silent
from callipper_trainer.data.samples import Samples
from callipper_trainer.kinds import (
    ADDED_BY_NAME,
    CLOSE,
    CLOSE_TO_WORD,
    MOST_BY_NAME,
    Basis,
    Encode,
    KindRows,
    Kinds,
    find_kinds,
    plain_names,
)
from callipper_trainer.text_encoder import NGRAMS, find_encoder
from callipper_trainer.train import _languages_of
from town import ENCODER

OTHER = "Retailers - other"  # the thesaurus reads it as "shop"
AXES = {"bicycle shop": 0, "bakery": 1, "florist": 2, "butcher": 3, "shop": 4, "cafe": 5}


def vector(**shares: float) -> Array:
    """(9,) the cosine to some of AXES, by their names with _ for a space; the rest of the length is of no kind."""
    result = np.zeros(9)
    for name, share in shares.items():
        result[AXES[name.replace("_", " ")]] = share
    result[7] = np.sqrt(1 - result @ result)
    return result


def encode(texts: list[str]) -> Array:
    """Each name of AXES has an axis of its own, any other name of a kind one that no question has, and so have other texts.

    Not of unit length.
    """
    names = load_thesaurus().spelt
    return 3 * np.array([np.eye(9)[AXES.get(text, 8 if look_up_key(text) in names else 6)] for text in texts])


def names_of_kinds() -> list[str]:
    """What a name is compared with."""
    asked: list[list[str]] = []

    def listen(texts: list[str]) -> Array:
        asked.append(texts)
        return encode(texts)

    Kinds().read_named_texts(["Library Bus Stop, shop"], vector()[None], listen)
    return asked[0]


def told_of(of_names: Array) -> Encode:
    """These vectors of names_of_kinds(), and of a category one that is like none of them."""
    return lambda texts: of_names if len(texts) == len(of_names) else np.zeros((len(texts), 2))


def samples(*pois: tuple[str, str | None]) -> Samples:
    """POIs of (category, name)."""
    texts = [category for category, _ in pois]
    texts += [f"{name}, {category}" for category, name in pois if name]
    texts = list(dict.fromkeys(texts))
    name_id = [texts.index(f"{name}, {category}") if name else -1 for category, name in pois]
    text_id = np.array([texts.index(category) for category, _ in pois])
    places = np.arange(2.0 * len(pois)).reshape(-1, 2)
    return Samples(np.arange(1, len(pois) + 1), places, places, text_id, texts, 32631, np.array(name_id))


def read(pois: Samples, **vectors: Array) -> Kinds:
    """The kinds of some POIs, with the vectors of names; a name that has none is like no kind."""
    kinds = Kinds()
    kinds.read_texts([pois.texts[number] for number in np.unique(pois.text_id)])
    named = [pois.texts[number] for number in np.unique(pois.name_id) if number >= 0]
    kinds.read_named_texts(
        named, np.array([vectors.get(text.split(",")[0].split()[0], vector()) for text in named]), encode
    )
    return kinds


def kinds_of(pois: Samples, kinds: Kinds) -> list[tuple[int, str, Basis]]:
    """(row of the POI, kind, why)."""
    return [
        (row, kinds.names[number], Basis(basis))
        for row, number, basis in zip(*(column.tolist() for column in kinds.rows(pois)), strict=True)
    ]


def test_every_poi_is_of_the_kind_of_its_category() -> None:
    pois = samples(("bicycle_shop", None), ("Bicycle shops", None), ("dragon lair", None), (OTHER, "Smith"))
    kinds = read(pois)
    assert kinds_of(pois, kinds) == [
        (0, "bicycle shop", Basis.CATEGORY),
        (1, "bicycle shop", Basis.CATEGORY),
        (2, "dragon lair", Basis.CATEGORY),
        (3, "shop", Basis.CATEGORY),
    ]
    assert kinds.names == ["bicycle shop", "dragon lair", "shop"]


def test_a_name_suggests_kinds() -> None:
    pois = samples((OTHER, "Evers Wheels"), (OTHER, "Smith"), (OTHER, None), ("florist", "Evers Blooms"))
    kinds = read(pois, Evers=vector(bicycle_shop=0.7, bakery=CLOSE - 0.01))
    assert kinds_of(pois, kinds)[4:] == [(0, "bicycle shop", Basis.ALIKE), (3, "bicycle shop", Basis.ALIKE)]


def test_what_the_category_alone_is_like_is_suggested_by_no_name() -> None:
    pois = samples(("tea room", "Corner House"), ("tea room", "Holt Loaves"), ("tea room", "Old Bakery Lane"))
    kinds = Kinds()
    kinds.read_texts(["tea room"])
    alone = CLOSE + 0.01

    def encode_category(texts: list[str]) -> Array:
        return np.array([vector(bakery=alone) if text == "tea room" else encode([text])[0] / 3 for text in texts])

    vectors = [vector(bakery=alone + more) for more in (ADDED_BY_NAME - 0.01, ADDED_BY_NAME + 0.01, 0)]
    kinds.read_named_texts(
        [f"{name}, tea room" for name in ("Corner House", "Holt Loaves", "Old Bakery Lane")],
        np.array(vectors),
        encode_category,
    )
    assert kinds_of(pois, kinds)[3:] == [(1, "bakery", Basis.ALIKE), (2, "bakery", Basis.SAID)]


def test_what_a_name_says_is_surer_than_what_it_is_like() -> None:
    pois = samples(
        (OTHER, "Holt Bakery"), (OTHER, "Holt Loaves"), (OTHER, "Bakery Lane"), (OTHER, "Baker Street Florist")
    )
    kinds = Kinds()
    kinds.read_texts([OTHER])
    named = [f"{name}, {OTHER}" for name in ("Holt Bakery", "Holt Loaves", "Bakery Lane", "Baker Street Florist")]
    near, far = vector(bakery=CLOSE_TO_WORD + 0.01), vector(bakery=CLOSE_TO_WORD - 0.01)
    kinds.read_named_texts(named, np.array([near, vector(bakery=CLOSE + 0.01), near, vector(florist=0.3)]), encode)
    assert kinds_of(pois, kinds)[4:] == [
        (0, "bakery", Basis.SAID),
        (1, "bakery", Basis.ALIKE),
        (3, "florist", Basis.HINT),
    ]
    kinds.read_named_texts(named[:1], far[None], encode)
    assert kinds_of(pois.take(slice(0, 1)), kinds)[1:] == [(0, "bakery", Basis.HINT)], (
        "the words may have another sense"
    )


@pytest.mark.parametrize(
    ("category", "name", "close_to", "basis"),
    [
        (OTHER, "Evers Wheels", "bicycle_shop", Basis.ALIKE),
        (OTHER, "Fish Stall", "bicycle_shop", Basis.HINT),  # its words tell a fishmonger
        ("Restaurant/Cafe/Canteen", "Evers Wheels", "bicycle_shop", Basis.HINT),  # nor is a restaurant a shop
        ("Restaurant/Cafe/Canteen", "Evers Wheels", "bakery", Basis.ALIKE),
    ],
)
def test_what_describe_says_by_likeness_fits_words_and_category(
    category: str, name: str, close_to: str, basis: Basis
) -> None:
    pois = samples((category, name))
    kinds = read(pois, **{name.split()[0]: vector(**{close_to: 0.9})})
    assert (0, close_to.replace("_", " "), basis) in kinds_of(pois, kinds)


@pytest.mark.parametrize(
    ("category", "name", "kinds"),
    [
        ("Pub", "The Old Fire Station", []),  # a fancy
        (OTHER, "Village Green", []),
        ("Restaurant/Cafe/Canteen", "The Bus Stop", []),  # no POI is that by its name
        (OTHER, "Ted Baker", ["clothes shop"]),  # a brand
        ("Caring Premises", "Acorn Care Home", ["care home"]),
        ("Other catering premises", "Albany Park Baptist Church", ["church"]),
        (OTHER, "Fords Service Station", ["petrol station"]),
    ],
)
def test_kinds_that_a_name_says_without_being_like_them(category: str, name: str, kinds: list[str]) -> None:
    pois = samples((category, name))
    assert [kind for _, kind, basis in kinds_of(pois, read(pois)) if basis is Basis.HINT] == kinds


def test_describe_does_not_say_where_a_firm_is_listed() -> None:
    pois = samples(("Mobile caterer", None), ("food stall", None), ("Importers/Exporters", None))
    kinds = read(pois)
    said = {kinds.names[number]: kinds.is_said(number) for number in range(len(kinds.names))}
    assert said == {"mobile caterer": False, "food stall": True, "importer": False}
    assert all(place_words.reading(name) == name for name in load_thesaurus().unsaid)


def test_brands_of_the_countries_of_the_data_count() -> None:
    pois = samples(*((OTHER, name) for name in ("Spark", "Greggs", "Wickes", "Halfords Autocentre")))
    kinds, _ = find_kinds(pois, np.tile(vector(), (len(pois.texts), 1)), encode)
    assert kinds.countries == {"gb"}
    assert kinds.of_named_text[f"Spark, {OTHER}"] == []
    alone = pois.take(slice(0, 1))  # too few to tell the country
    kinds, _ = find_kinds(alone, np.tile(vector(), (len(pois.texts), 1)), encode)
    assert kinds.of_named_text[f"Spark, {OTHER}"] == [(kinds.number["mobile phone shop"], Basis.HINT)]


def test_a_name_that_says_a_kind_is_like_no_other_but_of_places_to_eat() -> None:
    pois = samples(("Caring Premises", "Lakeside Day Nursery"), (OTHER, "Lakeside Florist"), (OTHER, "Lakeside"))
    kinds = read(pois, Lakeside=vector(bicycle_shop=0.68, bakery=0.67))
    by_name = {(row, kind) for row, kind, why in kinds_of(pois, kinds) if why is not Basis.CATEGORY}
    assert by_name == {
        (0, "nursery or childcare"),
        (0, "bakery"),
        (1, "florist"),
        (1, "bakery"),
        (2, "bicycle shop"),
        (2, "bakery"),
    }


def test_a_name_that_is_like_another_name_of_the_kind_is_a_hint() -> None:
    pois = samples((OTHER, "Loaf"))
    kinds = Kinds()
    kinds.read_texts([OTHER])

    def tilt(texts: list[str]) -> Array:
        return np.array([np.eye(3)[{"bread shop": 0, OTHER: 1}.get(text, 2)] for text in texts])

    kinds.read_named_texts([f"Loaf, {OTHER}"], np.eye(3)[:1], tilt)
    assert kinds_of(pois, kinds)[1:] == [(0, "bakery", Basis.HINT)]


def test_a_name_of_one_word_is_a_hint_and_a_bar_called_zoo_is_none() -> None:
    pois = samples((OTHER, "Bakery"), (OTHER, "Zoo Bar"))
    kinds = Kinds()
    kinds.read_texts([OTHER])

    def tilt(texts: list[str]) -> Array:
        return np.array([np.eye(4)[{"bakery": 0, "zoo": 1, OTHER: 2}.get(text, 3)] for text in texts])

    kinds.read_named_texts([f"Bakery, {OTHER}", f"Zoo Bar, {OTHER}"], np.eye(4)[:2], tilt)
    assert kinds_of(pois, kinds)[2:] == [(0, "bakery", Basis.HINT), (1, "zoo", Basis.ALIKE), (1, "bar", Basis.HINT)]


def test_the_kind_of_the_category_is_not_said_twice() -> None:
    pois = samples(("bicycle_shop", "Evers Wheels"))
    assert kinds_of(pois, read(pois, Evers=vector(bicycle_shop=0.9))) == [(0, "bicycle shop", Basis.CATEGORY)]


def test_a_name_suggests_no_more_kinds_than_the_limit() -> None:
    angles = {"florist": 20, "bicycle shop": 0, "butcher": 30, "bakery": 10}  # degrees from the name
    assert len(angles) > MOST_BY_NAME and np.cos(np.radians(30)) > CLOSE
    turned = np.radians([angles.get(name, 90) for name in names_of_kinds()])
    pois = samples((OTHER, "All and More"))
    kinds = read(pois)
    of_names = np.stack([np.cos(turned), np.sin(turned)], 1)
    kinds.read_named_texts([f"All and More, {OTHER}"], np.array([[1.0, 0.0]]), told_of(of_names))
    assert kinds_of(pois, kinds)[1:] == [
        (0, "bicycle shop", Basis.ALIKE),
        (0, "bakery", Basis.ALIKE),
        (0, "florist", Basis.ALIKE),
    ]


@pytest.mark.parametrize("category", ["bus stop", "bench", "car park", "bus_stop"])
def test_the_name_of_a_bus_stop_says_nothing_of_it(category: str) -> None:
    pois = samples((category, "Evers Wheels"), (OTHER, "Evers Wheels"))
    kinds = read(pois, Evers=vector(bicycle_shop=0.9))
    assert kinds_of(pois, kinds) == [
        (0, place_words.reading(category), Basis.CATEGORY),
        (1, "shop", Basis.CATEGORY),
        (1, "bicycle shop", Basis.ALIKE),
    ]


def test_the_name_of_a_bus_stop_says_what_is_near() -> None:
    pois = samples(
        ("bus stop", "Camden Market"), ("bus stop", "Park Road"), ("bus stop", "Mill Hill"), ("Marketplace", None)
    )
    assert kinds_of(pois, read(pois))[4:] == [(0, "marketplace", Basis.NEAR)], "by the name that the data have for it"


@pytest.mark.parametrize("kind", ["bus stop", "bench", "railway station", "car park"])
def test_no_name_is_read_as_a_bus_stop(kind: str) -> None:
    """A kind that is called after what is near is never what a name suggests, however like it is."""
    pois, kinds = samples((OTHER, "Evers Wheels")), Kinds()
    kinds.read_texts([OTHER])
    for text, found in ((kind, []), ("bicycle shop", [(0, "bicycle shop", Basis.ALIKE)])):
        of_names = np.array([[1.0, 0.0] if name == text else [0.0, 1.0] for name in names_of_kinds()])
        kinds.read_named_texts([f"Evers Wheels, {OTHER}"], np.array([[1.0, 0.0]]), told_of(of_names))
        assert kinds_of(pois, kinds)[1:] == found


def test_a_category_of_several_kinds_is_a_kind_that_people_ask_for_by_the_phrases_of_each() -> None:
    pois = samples(("Bakery/florist", "Evers Loaves"))
    kinds = read(pois, Evers=vector(bakery=0.9))
    assert kinds_of(pois, kinds) == [(0, "bakery or florist", Basis.CATEGORY), (0, "bakery", Basis.ALIKE)]
    phrases = kinds.phrases(0)
    assert phrases[0] == "bakery or florist"
    for part in ("bakery", "florist"):
        assert set(phrases) & set(place_words.phrases(part))
    assert phrases[1:] == place_words.phrases("Bakery/florist")


def test_names_and_phrases_of_kinds() -> None:
    kinds = read(samples(("bicycle_shop", None), ("dragon lair", None)))
    assert kinds.phrases(0)[0] == "bicycle shop"
    assert set(kinds.phrases(0)) == {"bicycle shop", *place_words.phrases("bicycle shop")}
    assert kinds.phrases(1) == ["dragon lair"]


@pytest.mark.parametrize(
    ("category", "said"),
    [
        ("bakery", True),
        ("bench", False),
        ("dragon lair", True),
        ("Bakery/florist", True),
        ("a quiet corner behind the old mill", False),
    ],
)
def test_what_describe_may_say(category: str, said: bool) -> None:
    assert read(samples((category, None))).is_said(0) is said


def test_rows_of_new_kinds_go_on_with_the_numbers() -> None:
    kinds = Kinds(["cafe", "bakery"])
    kinds.read_texts(["Cafes", "dragon lair", "bakery", "florist"])
    assert kinds.of_text == {"Cafes": 0, "dragon lair": 2, "bakery": 1, "florist": 3}
    rows = KindRows.of(kinds, 2, encode)
    assert (rows.numbers, rows.names, rows.said) == ([2, 3], ["dragon lair", "florist"], [True, True])
    assert [phrase for number, phrase in rows.phrases if number == 2] == ["dragon lair"]
    assert len(rows.vectors) == len(rows.phrases)
    np.testing.assert_allclose(np.linalg.norm(rows.vectors, axis=1), 1, rtol=1e-6)
    (florist,) = [place for place, phrase in enumerate(rows.phrases) if phrase == (3, "florist")]
    assert rows.vectors[florist].argmax() == AXES["florist"]


def test_names_as_the_source_has_them() -> None:
    pois = samples(("cafe", "A, B, cafe"), ("cafe", None), ("cafe", "cafe"), ("Bakery, old", "Bun, Bakery, old"))
    assert plain_names(pois) == ["A, B, cafe", "", "cafe", "Bun, Bakery, old"]


def test_a_brand_says_what_a_shop_is_and_is_like_no_other_kind() -> None:
    """However near its name is to that of another kind."""
    pois = samples((OTHER, "Ladbrokes"), ("Pub", "Ladbrokes"))
    found = kinds_of(pois, read(pois, Ladbrokes=vector(bicycle_shop=0.9)))
    assert (0, "betting shop", Basis.HINT) in found
    assert (0, "bicycle shop") not in [(row, name) for row, name, _ in found]
    assert (1, "betting shop") not in [(row, name) for row, name, _ in found]


def test_a_kind_has_the_names_and_phrases_of_each_language() -> None:
    kinds = Kinds(languages=("de",))
    kinds.read_texts(["bakery", "dragon lair"])
    assert kinds.phrases(0)[:2] == ["bakery", "Bäckerei"]
    assert "buy fresh bread" not in kinds.phrases(0)
    assert kinds.phrases(1) == ["dragon lair"]
    both = Kinds(languages=("en", "de"))
    both.read_texts(["bakery"])
    assert set(kinds.phrases(0)) < set(both.phrases(0)) and "buy fresh bread" in both.phrases(0)


@pytest.mark.parametrize(("languages", "expected"), [(("de",), ["school"]), (("en",), [])])
def test_a_name_says_its_kind_in_the_languages_of_the_version(languages: tuple[str, ...], expected: list[str]) -> None:
    """The name is near the German name of the kind, and far from the English one."""
    pois = samples((OTHER, "Schule Klar"))
    kinds = Kinds(languages=languages)
    kinds.read_texts([OTHER])
    named = [pois.texts[number] for number in np.unique(pois.name_id)]

    def german(texts: list[str]) -> Array:
        return np.array([np.eye(9)[1 if text == "Schule" else 8] for text in texts])

    kinds.read_named_texts(named, vector(bakery=CLOSE_TO_WORD)[None], german)
    assert [(kinds.names[number], why) for number, why in kinds.of_named_text[named[0]]] == [
        (name, Basis.SAID) for name in expected
    ]


def test_an_encoder_of_many_languages_gets_those_of_the_names() -> None:
    german = [
        "Stadtapotheke",
        "Bäckerei Klar",
        "Bücherei Mitte",
        "Kita Spatzen",
        "Fleischerei Kunz",
        "Friseur Ines",
        "Rathaus",
    ]
    pois = samples(*((OTHER, name) for name in [*german, None]))
    many, english = find_encoder(NGRAMS), find_encoder(ENCODER)
    assert _languages_of(many, pois, Silent()) == ["de"]
    assert _languages_of(english, pois, Silent()) == []
