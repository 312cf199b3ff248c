"""The thesaurus of places: the form of its file, readings, phrases, and how much of real data it covers."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callipper_db.place_words import (
    MOST_PHRASES,
    Kind,
    is_landmark,
    is_named,
    is_prominent,
    kind_of,
    kinds_in_name,
    load_thesaurus,
    look_up_key,
    never_by_name,
    phrases,
    reading,
    terms,
    vocabulary,
)
from callipper_db.read import Block, Record, open_reader, osm

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY.parent / "shared" / "data"
MONACO = REPOSITORY / "demo" / "monaco.osm.pbf"
KINDS = load_thesaurus().kinds

# The business types of the UK's food hygiene ratings.
FOOD_HYGIENE = [
    "Distributors/Transporters",
    "Farmers/growers",
    "Hospitals/Childcare/Caring Premises",
    "Hotel/bed & breakfast/guest house",
    "Importers/Exporters",
    "Manufacturers/packers",
    "Mobile caterer",
    "Other catering premises",
    "Pub/bar/nightclub",
    "Restaurant/Cafe/Canteen",
    "Retailers - other",
    "Retailers - supermarkets/hypermarkets",
    "School/college/university",
    "Takeaway/sandwich shop",
]

# Common categories of Overture Places.
OVERTURE = """
accommodation advertising_agency airport amusement_park antique_store appliance_store arcade art_gallery
arts_and_entertainment atms auto_body_shop automotive_parts_and_accessories automotive_repair bakery bank_credit_union
bar barber bars beach beauty_and_spa beauty_salon bed_and_breakfast bookstore brewery bridal_shop bubble_tea burger_restaurant
bus_station business_management_services butcher_shop cafe campground campus_building candy_store car_dealer
car_rental_agency car_wash casino caterer central_government_office chicken_restaurant chinese_restaurant
chiropractor church_cathedral cinema clothing_store cocktail_bar coffee_shop college_university
community_services_non_profits construction_services contractor convenience_store cosmetic_and_beauty_supplies
counseling_and_mental_health courier_and_delivery_services dance_club dance_school day_care_preschool dentist
department_store discount_store doctor driving_school dry_cleaning education electrician electronics
elementary_school employment_agencies event_planning eyewear_and_optician farm farmers_market
fast_food_restaurant financial_service fire_department flowers_and_gifts_shop food_truck freight_and_cargo_service
funeral_services_and_cemeteries furniture_store gas_station gift_shop golf_course grocery_store gym hair_salon
hardware_store high_school home_improvement_store hospital hostel hotel hvac_services ice_cream_shop indian_restaurant
information_technology_company insurance_agency italian_restaurant japanese_restaurant jewelry_store
landmark_and_historical_building landscaping language_school laundromat lawyer library liquor_store marketing_agency
massage_therapy medical_center middle_school mobile_phone_store mosque motorcycle_dealer museum music_school nail_salon
optometrist park parking pet_store pharmacy photographer physical_therapy pizza_restaurant playground plumbing
police_department post_office preschool printing_services professional_services pub public_school real_estate
real_estate_agent religious_organization restaurant retirement_home roofing sandwich_shop school seafood_restaurant
self_storage_facility shoe_store shopping shopping_center software_development spas sporting_goods
sports_and_recreation_venue sports_club_and_league stadium_arena supermarket sushi_restaurant swimming_pool
tattoo_and_piercing taxi_service thai_restaurant theatre tire_dealer_and_repair topic_concert_venue toy_store
train_station travel_services veterinarian wine_bar women's_clothing_store yoga_studio zoo
"""


def names(kind: Kind) -> tuple[str, ...]:
    return (kind.name, *kind.also, *kind.codes, *kind.narrower)


def test_every_text_is_plain_lower_case() -> None:
    texts = [text for kind in KINDS.values() for text in (*names(kind), *kind.phrases)]
    assert [
        text for text in [*texts, *load_thesaurus().areas] if text != " ".join(text.lower().split()) or not text
    ] == []


def test_every_kind_has_phrases_enough() -> None:
    assert [kind.name for kind in KINDS.values() if len(kind.phrases) + len(kind.also) < 2] == []
    assert [kind.name for kind in KINDS.values() if kind.said and len(kind.phrases) + len(kind.also) < 4] == []


def test_no_kind_has_a_phrase_twice() -> None:
    for kind in KINDS.values():
        keys = Counter(map(look_up_key, (kind.name, *kind.also, *kind.phrases)))
        assert [key for key, count in keys.items() if count > 1] == [], kind.name


def test_terms_are_short_and_stand_once() -> None:
    for kind in KINDS.values():
        keys = Counter(term.casefold() for term in kind.terms)
        assert [term for term, count in keys.items() if count > 1] == [], kind.name
        assert all(term == " ".join(term.split()) and 0 < len(term) <= 40 for term in kind.terms), kind.name
    assert sum(len(kind.terms) > 20 for kind in KINDS.values()) == len(KINDS)
    assert "hinge" in " ".join(terms("hardware shop")) and terms("dragon lair") == []
    assert set(terms("pub")) | set(terms("nightclub")) <= set(terms("Pub/bar/nightclub"))


def test_every_name_belongs_to_one_kind() -> None:
    keys = Counter(chain(*({look_up_key(name) for name in names(kind)} for kind in KINDS.values())))
    assert [key for key, count in keys.items() if count > 1] == []
    assert [kind.name for kind in KINDS.values() if len(set(map(look_up_key, names(kind)))) < len(names(kind))] == []


def test_no_phrase_is_the_name_of_another_kind() -> None:
    found = load_thesaurus().found
    wrong = [
        (kind.name, phrase)
        for kind in KINDS.values()
        for phrase in kind.phrases
        if look_up_key(phrase) in found and found[look_up_key(phrase)][0] is not kind
    ]
    assert wrong == []


def test_the_file_is_sorted() -> None:
    thesaurus = load_thesaurus()
    assert list(thesaurus.kinds) == sorted(thesaurus.kinds)
    assert list(thesaurus.areas) == sorted(set(thesaurus.areas))
    for kind in thesaurus.kinds.values():
        for listed in (kind.also, kind.codes, kind.narrower):
            assert list(listed) == sorted(listed), kind.name


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        ("fast_food", "fast food"),
        ("FastFoodRestaurant", "fast food restaurant"),
        ("Restaurant/Cafe/Canteen", "restaurant or cafe"),
        ("Other retail", "shop"),
        ("Retailers - other", "shop"),
        ("bus_stop", "bus stop"),
        ("BCT", "bus stop"),
        ("Pub/bar/nightclub", "pub, bar or nightclub"),
        ("Hotel/bed & breakfast/guest house", "hotel, bed and breakfast or guest house"),
        ("cafe;bakery", "cafe and bakery"),
        ("cafe;coffee_shop;cafe", "cafe and coffee shop"),
        ("amenity=place_of_worship", "place of worship"),
        ("shop=alcohol", "off-licence"),
        ("Food > Bakeries", "bakery"),
        ("Café", "cafe"),
        ("Doctors surgery", "doctor's surgery"),
        ("science_museum", "science museum"),
        ("underwater_basket_school", "underwater basket school"),
        ("花屋", "花屋"),
        ("///", "///"),
        ("", ""),
    ],
)
def test_reading(category: str, expected: str) -> None:
    assert reading(category) == expected


@pytest.mark.parametrize(
    ("category", "phrase"),
    [
        ("bicycle", "fix my bike"),
        ("Bicycle shop", "fix my bike"),
        ("movie_theater", "see a film"),
        ("bakery", "buy fresh bread"),
        ("Bakery", "buy fresh bread"),
        ("bakery_shop", "buy fresh bread"),
        ("post_office", "post a parcel"),
        ("dentist", "have a tooth pulled"),
        ("Pub/bar/nightclub", "go dancing"),
        ("Pub/bar/nightclub", "have a pint"),
        ("Libraries", "borrow books"),
        ("fish_and_chips", "chippy"),
        ("chippy", "fish and chip shop"),
    ],
)
def test_phrases_have(category: str, phrase: str) -> None:
    assert phrase in phrases(category)


def test_a_category_is_no_phrase_of_itself() -> None:
    assert [code for kind in KINDS.values() for code in names(kind) if reading(code) in phrases(code)] == []


@pytest.mark.parametrize("category", ["underwater_basket_school", "", "///", "花屋", "s"])
def test_an_unknown_category_has_no_phrases(category: str) -> None:
    assert phrases(category) == []


def test_a_list_of_kinds_has_no_more_phrases_than_the_limit() -> None:
    every = phrases("cafe;bakery;pub;library")
    assert len(every) == len(set(every)) == MOST_PHRASES
    assert {every[0], every[1], every[2], every[3]} == {
        phrases(kind)[0] for kind in ("cafe", "bakery", "pub", "library")
    }


@given(st.text())
def test_any_text_has_a_reading_in_plain_spaces(category: str) -> None:
    assert reading(category) == " ".join(reading(category).split())
    assert len(phrases(category)) == len(set(phrases(category)))


def test_the_vocabulary_says_kinds_and_areas() -> None:
    words = vocabulary()
    assert words == sorted(set(words)) and len(words) >= 400
    assert {"fishmonger", "playground", "language school", "residential area"} <= set(words)
    assert not {"shop", "bench", "catering premises"} & set(words)


def without_phrases(categories: Counter[str]) -> float:
    """Share of POIs, in percent."""
    return 100 * sum(count for category, count in categories.items() if not phrases(category)) / categories.total()


def test_categories_of_openstreetmap_are_known() -> None:
    table = osm.load_table()
    listed = [category.category for category in table.listed.values()]
    refined = [category for _, categories in table.refined.values() for category in categories.values()]
    assert [category for category in [*listed, *refined] if not phrases(category)] == []


@pytest.mark.parametrize("category", [*FOOD_HYGIENE, *OVERTURE.split()])
def test_category_is_known(category: str) -> None:
    assert phrases(category)
    assert not set(reading(category)) & set("_/;&")


def monaco_categories() -> Iterator[str]:
    with open_reader(MONACO) as reader:
        for block in reader.blocks:
            for record in block.records() if isinstance(block, Block) else block:
                if isinstance(record, Record):
                    yield record.values["@category"]


def test_monaco_is_covered() -> None:
    assert without_phrases(Counter(monaco_categories())) <= 5


@pytest.mark.skipif(not (DATA / "london_pois.csv.gz").exists(), reason="shared/data/london_pois.csv.gz is not there")
@pytest.mark.parametrize("column", ["category", "label"])
def test_london_is_covered(column: str) -> None:
    with gzip.open(DATA / "london_pois.csv.gz", "rt", encoding="utf-8") as file:
        categories = Counter(row[column] for row in csv.DictReader(file) if row["dup"] == "0")
    assert without_phrases(categories) <= 5


@pytest.mark.skipif(
    not (DATA / "global_osm_amenity_2015.parquet").exists(), reason="global_osm_amenity_2015.parquet is not there"
)
def test_amenities_of_the_world_are_covered() -> None:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(DATA / "global_osm_amenity_2015.parquet", columns=["category"])
    assert without_phrases(Counter(table["category"].to_pylist())) <= 5


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("Holt Bakery & Deli Ltd", ["bakery", "delicatessen"]),
        ("Kelvin Road Playgroup at Baptist Church", ["nursery or childcare", "church"]),
        ("St Martin's Church of England Primary School", ["primary school"]),
        ("St Martin's Church of England (VA) Primary School", ["primary school"]),
        ("St Martin's Church of England", ["church"]),
        ("Colfe's Prep School", ["primary school"]),
        ("Lloyd Park / William Morris Gallery", ["art gallery"]),
        ("Evans Butchers", ["butcher"]),
        ("Agora Market", []),
        ("Park Street Cafe", ["cafe"]),
        ("Castle Parade", []),
        ("Mill Hill", []),
        ("Rose Court", []),
        ("The Castle", []),
        ("Bakery", []),
        ("Limited", []),
        ("", []),
        ("☕", []),
    ],
)
def test_what_a_name_says(name: str, kinds: list[str]) -> None:
    assert [kind.name for kind in kinds_in_name(name)] == kinds


def test_a_bus_stop_is_called_after_a_market_and_not_after_a_street() -> None:
    assert [kind.name for kind in kinds_in_name("Camden Market", of_stop=True)] == ["market"]
    assert kinds_in_name("Mill Hill", of_stop=True) == []
    for stop in (
        "Elephant & Castle",
        "The Elephant and Castle / London Road",
        "Elephant & Castle - Stop K",
        "Inn & Castle & Lee",
    ):
        assert kinds_in_name(stop, of_stop=True) == []
    assert [kind.name for kind in kinds_in_name("School and Market", of_stop=True)] == ["school", "market"]
    assert [kind.name for kind in kinds_in_name("Windsor Castle", of_stop=True)] == ["castle"]


def test_a_kind_stands_in_a_name_next_to_other_words() -> None:
    cafe, peak = kind_of("cafe"), kind_of("peak")
    assert cafe is not None and peak is not None
    assert is_named(cafe, "Cafe Helen") and is_named(cafe, "The Cafes of Rome")
    assert not is_named(cafe, "The Cafe") and not is_named(cafe, "Cafeteria Helen") and not is_named(peak, "Mill Hill")


def test_landmarks() -> None:
    assert is_landmark("museum") and is_landmark("Museum / gallery") and is_landmark("museum or art gallery")
    assert not is_landmark("cafe") and not is_landmark("Museum/cafe") and not is_landmark("dragon lair")


def test_prominent_kinds() -> None:
    assert is_prominent("casino") and is_prominent("train_station") and not is_prominent("bowling alley")
    assert load_thesaurus().prominent <= load_thesaurus().landmarks


def test_words_that_say_nothing_alone_are_names_of_kinds() -> None:
    thesaurus = load_thesaurus()
    assert thesaurus.landmarks <= set(thesaurus.kinds)
    assert sorted((thesaurus.street_words | thesaurus.shop_words) - set(thesaurus.spelt)) == []
    assert thesaurus.street_words & thesaurus.shop_words == frozenset()


@pytest.mark.parametrize(
    ("kind", "category", "name", "expected"),
    [
        ("castle", "pub", "The Castle", False),
        ("horse racing track", "Pub/bar/nightclub", "Greyhound", False),
        ("charity club", "Pub", "Red Lion", False),  # like "Lions club"
        ("sports club", "Pub/bar/nightclub", "Wanstead Rugby Club", True),
        ("thai restaurant", "bar", "Thai Tiger", True),
        ("common", "Retailers - other", "The Village Greengrocers", False),
        ("greengrocer", "Retailers - other", "The Village Greengrocers", True),
        ("windmill", "Restaurant", "Windmill", False),
        ("thai restaurant", "Cafe", "Thai Cafe", True),
        ("health centre", "Community centre", "The Holywell", True),
        ("castle", "dragon lair", "The Castle", True),
    ],
)
def test_what_a_name_may_make_of_a_poi(kind: str, category: str, name: str, expected: bool) -> None:
    assert (kind not in (never_by_name(category) or ())) is expected, name


def test_kinds_of_pubs_and_those_of_no_shop_are_kinds() -> None:
    thesaurus = load_thesaurus()
    assert thesaurus.pubs | thesaurus.in_pubs | thesaurus.never_shops | thesaurus.eating <= set(thesaurus.kinds)
    assert thesaurus.never_shops & (thesaurus.eating | thesaurus.in_pubs) == frozenset()
