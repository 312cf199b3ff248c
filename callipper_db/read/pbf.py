"""OpenStreetMap PBF: nodes, and closed ways and multipolygons as areas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from callipper_db.errors import BadInput
from callipper_db.read import osm
from callipper_db.read.osm_tags import FURNITURE
from callipper_db.read.record import (
    BAD_GEOMETRY,
    BAD_UTF8,
    Columns,
    LeftOut,
    Reader,
    Record,
    Refused,
    in_blocks,
    require,
)

FEATURE = "Reading OpenStreetMap PBF"
COLUMNS = Columns(id="@id", name="name", category="@category", group="@group")  # no OSM key begins with @
LOCATIONS = "sparse_file_array"  # node locations lie in a temporary file, not in memory


@contextmanager
def open_pbf(path: Path, street_furniture: bool) -> Iterator[Reader]:
    osmium = require("osmium", FEATURE)
    yield Reader(
        in_blocks(_records(osmium, path, street_furniture)),
        [],
        has_shape=True,
        columns=COLUMNS,
        source="osm",
        srid=lambda: 4326,
    )


def _records(osmium: Any, path: Path, street_furniture: bool) -> Iterator[Record | Refused | LeftOut]:
    of_interest = osmium.filter.KeyFilter(*osm.keys())
    file = osmium.FileProcessor(str(path)).with_locations(LOCATIONS).with_areas(of_interest).with_filter(of_interest)
    wkb = osmium.geom.WKBFactory()
    row = 0
    try:
        for thing in file:
            if thing.is_node() or thing.is_area():
                tags = _tags(thing)
                category = osm.categorise(tags) if tags is not None else None
                if category or tags is None:
                    row += 1
                    yield _record(wkb, row, thing, tags, category, street_furniture)
    except (RuntimeError, OSError) as error:
        raise BadInput(path=path, reason=f"it is not a sound PBF file: {' '.join(str(error).split())[:200]}") from error


def _tags(thing: Any) -> dict[str, str] | None:
    """None: they are not UTF-8."""
    try:
        return {tag.k: tag.v for tag in thing.tags}
    except UnicodeDecodeError:
        return None


def _record(
    wkb: Any, row: int, thing: Any, tags: dict[str, str] | None, category: osm.Category | None, street_furniture: bool
) -> Record | Refused | LeftOut:
    if tags is None or category is None:
        return Refused(row, BAD_UTF8, _osm_id(thing))
    if category.group == osm.STREET_FURNITURE and not street_furniture:
        return LeftOut(FURNITURE)
    try:
        shape = (thing.lon, thing.lat) if thing.is_node() else wkb.create_multipolygon(thing)
    except RuntimeError:
        return Refused(row, BAD_GEOMETRY, _osm_id(thing))
    values = {"@id": _osm_id(thing), "@category": category.category, "@group": category.group, **tags}
    return Record(row, values, shape, None)


def _osm_id(thing: Any) -> str:
    if thing.is_node():
        return f"node/{thing.id}"
    return f"{'way' if thing.from_way() else 'relation'}/{thing.orig_id()}"
