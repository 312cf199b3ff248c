"""Writes callipper_db/brands.txt anew from the Name Suggestion Index, which is on npm: python scripts/brands.py NSI.JSON

Get dist/json/nsi.min.json of the package name-suggestion-index (`npm pack name-suggestion-index`; BSD 3-clause licence).
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from callipper_db.place_words import Kind, kind_of, load_thesaurus, plain_words

# Things that carry a brand and are no place of it; homes; offices of parties and unions.
NO_PLACES = {
    "advertising": "totem",
    "amenity": "atm bicycle_parking charging_station parking parcel_locker payment_terminal photo_booth public_bookcase"
    " recycling telephone trolley_bay vending_machine waste_basket",
    "landuse": "residential",
    "leisure": "playground",
    "man_made": "charge_point",
    "office": "association company consulting political_party union",
    "shop": "outpost",
    "tourism": "information",
}
MOST_KINDS = 3  # of one name; a name that stands for more says too little
MOST_COUNTRIES = 10  # of a brand that is not the world's
EVERYWHERE = ""  # in place of a country
PARTS = {"fx": "fr", "ic": "es"}  # codes of the index for Metropolitan France and the Canary Islands -> their country
HEADER = """\
# Brands, by the kind of place that they are (a name of place_words.toml); brands.py reads it, scripts/brands.py writes it.
# A brand of at most ten countries has them in brackets.
# They are those of the Name Suggestion Index {version} (https://nsi.guide); brands_licence.txt is its licence.
"""


def kinds_of_tags(tag: str, tags: dict[str, str]) -> list[Kind]:
    """The kinds of place of one entry: that of its tag ("amenity/fast_food"), and those of its cuisines."""
    key, value = tag.replace("shop/catalogue", "shop/variety_store").split("/")
    own = kind_of(f"{value} shop") if key == "shop" and value != "convenience" else None
    kinds = [own or kind_of(value)]
    if key == "amenity" and value in ("restaurant", "fast_food", "cafe"):
        cuisine = tags.get("cuisine", "").split(";")[0]  # the first is what the place is known for
        kinds += [kind_of(f"{cuisine} restaurant") or kind_of(f"{cuisine} shop") or kind_of(cuisine)]
    return [kind for kind in kinds if kind]


def is_no_place(tag: str) -> bool:
    key, value = tag.split("/")
    return value in NO_PLACES.get(key, "").split()


def countries_of(entry: dict[str, Any]) -> set[str]:
    """The countries that have the brand of one entry, as ISO 3166 codes in lower case.

    EVERYWHERE stands for what is no country's code: a continent, a circle, a region with a name of its own. "us-tx.geojson", a
    state, stands for its country. What is excluded is not read.
    """
    found = set()
    for place in entry["locationSet"]["include"]:
        code = re.match(r"([a-z]{2})(?:-.*)?$", place.lower()) if isinstance(place, str) and place != "eu" else None
        found.add(PARTS.get(code[1], code[1]) if code else EVERYWHERE)
    return found


def read_brands(index: dict[str, Any]) -> dict[str, tuple[str, set[str], set[str]]]:
    """The words of a brand's name -> the name, its kinds, its countries; no countries for a brand that many have."""
    thesaurus = load_thesaurus()
    spelling: dict[str, str] = {}
    countries: dict[str, set[str]] = defaultdict(set)
    found: dict[str, set[str]] = defaultdict(set)
    for path, group in sorted(index.items()):
        tree, tag = path.split("/", 1)
        if tree != "brands" or is_no_place(tag):
            continue
        for entry in group.get("items", []):
            tags = entry["tags"]
            for spelt in (entry["displayName"], tags.get("name", ""), tags.get("name:en", "")):
                name = re.sub(r"\s*\(.*\)$", "", spelt)  # "Target (Australia)"
                key = " ".join(plain_words(name))
                if len(key) < 2 or key in thesaurus.spelt or re.search(r"[|:\[]", name):
                    continue
                spelling.setdefault(key, " ".join(name.split()))
                countries[key] |= countries_of(entry)
                found[key] |= {kind.name for kind in kinds_of_tags(tag, tags)}
    for kinds in found.values():
        if len(kinds) > 1:  # a supermarket's petrol station is called like the supermarket
            kinds.discard("petrol station")
    few = {
        key: set() if EVERYWHERE in there or len(there) > MOST_COUNTRIES else there for key, there in countries.items()
    }
    return {key: (spelling[key], kinds, few[key]) for key, kinds in found.items() if 0 < len(kinds) <= MOST_KINDS}


def main() -> None:
    data = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    by_kind: dict[str, list[str]] = defaultdict(list)
    brands = read_brands(data["nsi"])
    for name, kinds, countries in brands.values():
        for kind in kinds:
            by_kind[kind].append(f"{name} [{' '.join(sorted(countries))}]" if countries else name)
    lines = [f"{kind}: {' | '.join(sorted(names))}\n" for kind, names in sorted(by_kind.items())]
    text = HEADER.format(version=data["_meta"]["version"]) + "".join(lines)
    Path("callipper_db/brands.txt").write_text(text, encoding="utf-8")
    sys.stdout.write(f"{len(brands)} brands of {len(by_kind)} kinds\n")


if __name__ == "__main__":
    main()
