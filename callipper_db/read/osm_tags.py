"""OpenStreetMap objects whose tags stand in columns: overpass-turbo, Overpass CSV and JSON, QuickOSM, osmnx, srai, GDAL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from callipper_db.read import osm
from callipper_db.read.layout import Derived, Layout, parsed
from callipper_db.read.record import Columns, Reader

NO_KIND = "no kind of place among its OpenStreetMap tags"
FURNITURE = "street furniture (--street-furniture keeps it)"
UNTOLD = {NO_KIND}  # a description makes up for it
PREFIXES = ("", "tags.", "tags_", "tag_", "tag.", "tags:", "properties.tags.", "properties.")
TAG_COLUMNS = ("tags", "other_tags", "all_tags", "properties.tags")  # dictionaries, or texts of them
# A single column with another key (place, landuse, barrier) may come from any data.
TELLING = ("amenity", "shop", "tourism", "healthcare", "leisure", "craft", "office", "club", "historic")
ID_COLUMNS = ("full_id", "@id", "@osmid", "feature_id", "osm_id", "osmid", "id", "properties.@id")
TYPE_COLUMNS = ("@type", "osm_type", "@osmtype", "element_type", "element", "type", "kind", "properties.@type")
MARKS = {"full_id", "@id", "@type", "@osmid", "osm_id", "osmid", "osm_type", "osm_way_id", "feature_id", "element"}
EDIT = {"@version", "@timestamp", "@changeset", "@uid", "@user"}
NOT_TAGS = EDIT | {"@lon", "@lat", "center.lon", "center.lat", "osm_way_id"}
ELEMENTS = {"n": "node", "w": "way", "r": "relation", "node": "node", "way": "way", "relation": "relation"}
ELEMENT = re.compile(r"(?:^|/)(node|way|relation)[/ :]?(\d+)$")
PAIR = re.compile(r"([\w:]+)=(.+)")  # amenity=cafe: what srai makes of tags in groups
NO_GROUP = re.compile("name|title|class|type|categ|kind|label", re.IGNORECASE)  # says itself what places are
SHORT = re.compile(r"([nwr])(\d+)$", re.IGNORECASE)
OTHER_CATEGORIES = {"category", "kind", "label", "category_name", "poi_type", "fclass"}


def find(reader: Reader, street_furniture: bool, categories: bool = True) -> Layout | None:
    """The layout of tag columns; None if there are none. If another column holds the category, only the ids are derived.

    Two of the keys in TELLING are enough, or a column of tags. One key is enough if no other column can hold a category.
    """
    tags = TagColumns(reader)
    categories = categories and tags.found(reader.provider == "osm")
    if not categories and not has_marks(reader):
        return None
    objects = ObjectColumns(reader)

    def derive(columns: Mapping[str, Sequence[Any]], rows: int) -> Derived:
        derived = objects.derive(columns, rows)
        if not objects.name and tags.nested:
            derived["@name"] = [_text(more.get("name")) for more in tags.dictionaries(columns, rows)]
        if not categories:
            return Derived(derived)
        kinds = tags.categorise(columns, rows)
        derived["@category"] = [kind and kind.category for kind in kinds]
        derived["@group"] = [kind and kind.group for kind in kinds]
        furniture = None if street_furniture else osm.STREET_FURNITURE
        left_out = [NO_KIND if kind is None else FURNITURE if kind.group == furniture else None for kind in kinds]
        return Derived(derived, left_out)

    columns = Columns(
        id="@id" if objects.has_id else None,
        name=objects.name or ("@name" if tags.nested else None),
        category="@category" if categories else None,
        group="@group" if categories else None,
        lon="@lon" if objects.has_centre else objects.lower.get("@lon"),
        lat="@lat" if objects.has_centre else objects.lower.get("@lat"),
    )
    return Layout("OpenStreetMap tags", columns, derive, objects.no_tags())


class ObjectColumns:
    """The columns that say which object a row is, what it is called and where it is."""

    def __init__(self, reader: Reader) -> None:
        self.lower = {name.lower(): name for name in reversed(reader.names)}
        self.identity = self._first(ID_COLUMNS)
        self.element = self._first(TYPE_COLUMNS)
        self.way = self.lower.get("osm_way_id")
        self.name = self._first(f"{prefix}name" for prefix in PREFIXES)
        # Overpass writes where a node is to lon and lat, where a way is to center.lon and center.lat.
        self.has_centre = {"lon", "lat", "center.lon", "center.lat"} <= set(self.lower)

    @property
    def has_id(self) -> bool:
        return bool(self.identity or self.way)

    def derive(self, columns: Mapping[str, Sequence[Any]], rows: int) -> dict[str, Sequence[Any]]:
        """The id, and the place where two pairs of columns have it."""
        nothing = [None] * rows
        derived: dict[str, Sequence[Any]] = {}
        if self.has_id:
            named = (self.identity, self.element, self.way)
            values = [columns.get(column) or nothing if column else nothing for column in named]
            derived["@id"] = list(map(element_id, *values))
        if self.has_centre:
            for part, own, other in (("@lon", "lon", "center.lon"), ("@lat", "lat", "center.lat")):
                pairs = zip(
                    columns.get(self.lower[own]) or nothing, columns.get(self.lower[other]) or nothing, strict=True
                )
                derived[part] = [_filled(first, second) for first, second in pairs]
        return derived

    def no_tags(self) -> frozenset[str]:
        """The columns that are no attributes of the place."""
        positions = {"lon", "lat"} if self.has_centre else set()
        ids = {"id", "@id"} if self.identity else set()  # overpass-turbo writes it twice
        hidden = {self.lower[column] for column in NOT_TAGS | positions | ids if column in self.lower}
        return frozenset(hidden.union(column for column in (self.identity, self.element, self.way) if column))

    def _first(self, names: Iterable[str]) -> str | None:
        return next((self.lower[name] for name in names if name in self.lower), None)


def has_marks(reader: Reader) -> bool:
    """Are there columns that only objects of OpenStreetMap have?"""
    return not MARKS.isdisjoint(name.lower() for name in reader.names)


def element_id(identity: Any, element: Any, way: Any = None) -> str | None:
    """'node/17' of 'node/17', 'n17', 17 with 'node', or a link to it; 17 alone stays '17'."""
    text = _text(identity)
    if text is None:
        return f"way/{_text(way)}" if _text(way) else None
    if found := ELEMENT.search(text):
        return f"{found[1]}/{found[2]}"
    if found := SHORT.match(text):
        return f"{ELEMENTS[found[1].lower()]}/{found[2]}"
    kind = ELEMENTS.get((_text(element) or "").lower())
    return f"{kind}/{text}" if kind else text


class TagColumns:
    """The columns that hold tags, and the category that a row's tags give."""

    def __init__(self, reader: Reader) -> None:
        second = {second for second, _ in osm.load_table().refined.values()}
        self.keys = [*osm.keys(), *sorted(second)]
        lower = {name.lower(): name for name in reversed(reader.names)}
        self.columns = {
            key: next(lower[prefix + key] for prefix in PREFIXES if prefix + key in lower)
            for key in self.keys
            if any(prefix + key in lower for prefix in PREFIXES)
        }
        self.nested = [lower[name] for name in TAG_COLUMNS if name in lower]
        others = [name for name in reader.names if name.lower() not in ID_COLUMNS]
        grouped = reader.has_shape and "feature_id" in lower and not (self.columns or self.nested)
        self.grouped = others if grouped and not any(map(NO_GROUP.search, others)) else []
        self.reader = reader
        self.kinds: dict[tuple[Any, ...], osm.Category | None] = {}

    def found(self, certain: bool) -> bool:
        names = {name.lower() for name in self.reader.names}
        telling = sum(key in self.columns for key in TELLING)
        inside = {path.rpartition(".")[2] for name in self.nested for path in self.reader.parts.get(name, ())}
        in_nested = bool(self.nested) and (
            not inside.isdisjoint(TELLING) or has_marks(self.reader) or {"type", "id"} <= names
        )
        if "category" in names and not certain:
            return False
        if self.grouped:
            return True
        return certain or in_nested or telling > 1 or (telling == 1 and names.isdisjoint(OTHER_CATEGORIES))

    def categorise(self, columns: Mapping[str, Sequence[Any]], rows: int) -> list[osm.Category | None]:
        nothing = [None] * rows
        keys = list(self.columns)
        values = (
            list(zip(*(columns.get(name) or nothing for name in self.columns.values()), strict=True)) or [()] * rows
        )
        if self.grouped:
            texts = (map(_text, columns.get(name) or nothing) for name in self.grouped)
            pairs = [[PAIR.fullmatch(text or "") for text in row] for row in zip(*texts, strict=True)]
            return [osm.categorise({pair[1]: pair[2] for pair in row if pair}) for row in pairs]
        if not self.nested:
            return [self._kind(keys, combination) for combination in values]
        spread: list[dict[str, Any]] = [dict(zip(keys, combination, strict=True)) for combination in values]
        for tags, more in zip(spread, self.dictionaries(columns, rows), strict=True):
            tags.update(more)
        return [osm.categorise(_tags(tags)) for tags in spread]

    def dictionaries(self, columns: Mapping[str, Sequence[Any]], rows: int) -> list[dict[str, Any]]:
        """The tags in the columns of tags, one dictionary per row."""
        together: list[dict[str, Any]] = [{} for _ in range(rows)]
        for name in self.nested:
            for tags, more in zip(together, map(_dictionary, columns.get(name) or [None] * rows), strict=True):
                tags.update(more or {})
        return together

    def _kind(self, keys: list[str], values: tuple[Any, ...]) -> osm.Category | None:
        try:
            if values not in self.kinds:
                if len(self.kinds) > 100_000:
                    self.kinds.clear()
                self.kinds[values] = osm.categorise(_tags(dict(zip(keys, values, strict=True))))
            return self.kinds[values]
        except TypeError:  # a list among them
            return osm.categorise(_tags(dict(zip(keys, values, strict=True))))


def _tags(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: text for key, value in values.items() if (text := _text(value)) is not None}


def _dictionary(value: Any) -> dict[str, Any] | None:
    found = parsed(value) if isinstance(value, str) else value
    if isinstance(found, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in found):
        found = dict(found)
    return found if isinstance(found, dict) else None


def _text(value: Any) -> str | None:
    """A tag's value as text; None if it is empty or NaN."""
    if isinstance(value, list):
        return ";".join(filter(None, map(_text, value))) or None
    if value is None or value != value or isinstance(value, (dict, bool)):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() or None


def _filled(first: Any, second: Any) -> Any:
    return second if first in (None, "") or first != first else first
