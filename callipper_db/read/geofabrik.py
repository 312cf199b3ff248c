"""Geofabrik's extracts of OpenStreetMap as Shapefiles and GeoPackages: https://download.geofabrik.de/osm-data-in-gis-formats-free.pdf"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from callipper_db.read import osm
from callipper_db.read.layout import Derived, Layout, texts_at
from callipper_db.read.osm_tags import FURNITURE
from callipper_db.read.record import Columns, Reader

ID, CLASS, CODE, NAME = "osm_id", "fclass", "code", "name"
# Classes that Geofabrik made from a value and a second tag, and the tag that each stands for.
SPLIT = {
    "recycling": ("amenity", "recycling"),
    "vending": ("amenity", "vending_machine"),
    "camera": ("man_made", "surveillance"),
}


def recognise(reader: Reader) -> bool:
    """Does it have the columns of all layers of the extracts?"""
    return {ID, CLASS, CODE} <= set(reader.names)


def layout(reader: Reader, street_furniture: bool) -> Layout:
    """The category of `fclass`, which is an OpenStreetMap value without its key, by the same table as for PBF files."""
    columns = Columns(id=ID, name=NAME if NAME in reader.names else None, category="@category", group="@group")

    def derive(columns: Mapping[str, Sequence[Any]], rows: int) -> Derived:
        values = texts_at(columns, CLASS, rows)
        kinds = {value: category_of(value) for value in set(values)}
        found = [kinds[value] for value in values]
        furniture = None if street_furniture else osm.STREET_FURNITURE
        return Derived(
            {"@category": [kind and kind[0] for kind in found], "@group": [kind and kind[1] for kind in found]},
            [FURNITURE if kind and kind[1] == furniture else None for kind in found],
        )

    return Layout("Geofabrik", columns, derive)


def category_of(value: Any) -> tuple[str, str | None] | None:
    """Category and group of a class; None for an empty one."""
    text = str(value or "").strip()
    if not text:
        return None
    table = osm.load_table()
    religions = table.refined["amenity", "place_of_worship"][1]
    first = text.split("_")[0]
    if first in religions:  # christian_catholic
        return religions[first], table.listed["amenity", "place_of_worship"].group
    tags = [(key, text) for key in table.fallback_group] + ([SPLIT[first]] if first in SPLIT else [])
    return next((table.listed[tag] for tag in tags if tag in table.listed), (osm.readable(text), None))
