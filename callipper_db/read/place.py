"""From a record to a row of callipper.poi: which column is what, and what is refused."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from callipper_db.errors import BadInput
from callipper_db.read import foursquare, geonames, osm_tags, overture, vector
from callipper_db.read.layout import Field, Layout, find_field, parsed, value_at
from callipper_db.read.record import (
    BAD_BYTE,
    BAD_UTF8,
    TOO_DEEP,
    Block,
    Columns,
    LeftOut,
    Reader,
    ReadOptions,
    Record,
    Refused,
    pick,
)

# The usual names, in order of precedence; compared without case.
USUAL = {
    "id": ("id", "source_id", "osm_id", "@id", "fid", "ogc_fid", "gid", "objectid", "poi_id", "fsq_place_id", "uuid"),
    "name": ("name", "title", "poi_name", "place_name", "names"),
    "category": (
        "category",
        "type",
        "amenity",
        "kind",
        "class",
        "fclass",
        "label",
        "category_name",
        "poi_type",
        "categories",
    ),
    "group": ("category_group", "group", "group_name", "categorygroup", "supercategory", "theme"),
    "description": ("description", "text", "desc"),
    "lon": ("lon", "lng", "long", "longitude", "x", "easting", "lon_x", "@lon"),
    "lat": ("lat", "latitude", "y", "northing", "lat_y", "@lat"),
    "geometry": ("geom", "geometry", "wkt", "the_geom", "wkb_geometry", "wkb"),
    "source": ("source",),
}
INSIDE = ("primary", "name", "label", "value", "text", "main", "en")  # of a nested column the part that is its text

NAME_LIMIT = 500  # characters of name, category and group
DESCRIPTION_LIMIT = 10_000
ID_LIMIT = 300  # source and source_id together must fit an index page of PostgreSQL
ATTRIBUTES_LIMIT = 100_000  # characters of JSON
DEPTH_LIMIT = 100  # levels of nesting
ID_DECIMALS = 6  # of the coordinates that a made id hashes

NO_COORDINATES = "no coordinates"
NOT_NUMBERS = "coordinates that are not numbers"
NOT_FINITE = "coordinates that are NaN or infinite"
OUT_OF_RANGE = "longitude or latitude out of range"
NO_CATEGORY = "neither category nor description"
NO_TEXT = "neither name, category nor description"
NAME_TOO_LONG = "name, category or group over 500 characters"
DESCRIPTION_TOO_LONG = "description over 10,000 characters"
ID_TOO_LONG = "id or source over 300 characters"
ATTRIBUTES_TOO_LONG = "other columns over 100,000 characters"
NUL = "a NUL character"
NOT_WHERE = "not what --where asks for"

ENTITY = re.compile(r"&#?\w+;")  # of HTML: its semicolon parts nothing
SIMPLE_ARRAY = re.compile(r"\{[^{}\":\\]*\}")
JSON_TOKEN = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*"')

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str, separators=(",", ":")).encode


@dataclass(frozen=True)
class LoadOptions(ReadOptions):
    """What the user says about the files. Columns are found by their usual names unless named here."""

    id_column: str | None = None
    name_column: str | None = None
    category_column: str | None = None
    group_column: str | None = None
    description_column: str | None = None
    lon_column: str | None = None
    lat_column: str | None = None
    geometry_column: str | None = None  # WKT, EWKT, hex WKB or GeoJSON
    source_column: str | None = None
    source: str | None = None  # for every row; None: the source column, else the file's name without its endings
    srid: int | None = None  # of the coordinates; None: what the file says, else 4326
    where: Mapping[str, str] = field(default_factory=dict)  # column -> the value that a row must have
    replace_source: bool = False  # remove rows of the same sources that the files no longer hold
    min_confidence: float | None = None  # of Overture places, 0 to 1; less sure ones are left out
    rejects: Path | None = None  # None: <file name>.rejects.csv in the working directory


class Place(NamedTuple):
    """A row for COPY, in its order of columns."""

    row: int
    source: str
    source_id: str
    name: str | None
    category: str | None
    category_group: str | None
    description: str | None
    x: float | None
    y: float | None
    shape: str | None  # what PostGIS turns into a point; then x and y are None
    attributes: str


def find_layout(path: Path, reader: Reader, options: LoadOptions) -> Layout | None:
    """The provider's scheme that the file follows; None: its columns are found by their names."""
    overturned = overture.recognise(reader)
    if options.min_confidence is not None and not overturned:
        raise BadInput(path=path, reason="--min-confidence is for Overture places, which this file does not hold")
    if reader.provider == "geonames":
        return geonames.layout()
    if reader.provider == "gpx" or (reader.provider == "kml" and not osm_tags.has_marks(reader)):
        return vector.layout(reader)
    if overturned:
        return overture.layout(reader, options.min_confidence)
    if foursquare.recognise(reader):
        return foursquare.layout(reader)
    if reader.columns:
        return None
    return osm_tags.find(reader, options.street_furniture, options.category_column is None)


def find_columns(path: Path, reader: Reader, options: LoadOptions, layout: Layout | None = None) -> Columns:
    """The part that each column plays: as the options say, as the layout has it, else by its usual name.

    Raises BadInput, naming the columns there are, if there are no coordinates or nothing that says what a place is.
    """
    named = {part: getattr(options, f"{part}_column") for part in USUAL}
    fixed = reader.columns or (layout.columns if layout else Columns())
    found: dict[str, str | None] = {}
    for part, column in named.items():
        if column is not None:
            found[part] = _named(path, reader, column, f"--{part}-column")
        elif getattr(fixed, part) is not None:
            found[part] = getattr(fixed, part)
        elif reader.columns or (part == "group" and fixed.category):
            found[part] = None
        else:
            found[part] = find_usual(reader, part)
    explicit_point = (options.lon_column and options.lat_column) or (fixed.lon and fixed.lat)
    if options.geometry_column or (reader.has_shape and not explicit_point):
        found["lon"] = found["lat"] = None
    elif found["lon"] and found["lat"]:
        found["geometry"] = None
    if reader.has_shape and not options.geometry_column:
        found["geometry"] = None
    columns = Columns(**found)
    _check_columns(path, reader, columns)
    return columns


@dataclass(frozen=True)
class Rules:
    """What makes a record a place, for one file."""

    columns: Columns
    where: Mapping[str, str]  # with the file's own spelling of the columns
    source: str  # of rows that name none
    any_source: bool  # a row may name its source
    degrees: bool  # the coordinates are known to be longitude and latitude, so their range is checked here
    layout: Layout | None = None
    fields: Mapping[str, Field] = field(default_factory=dict)  # path into a nested column -> where that is
    decimal: str | None = None  # "," where it stands before the decimals

    @classmethod
    def of(cls, path: Path, reader: Reader, options: LoadOptions, source: str, srid: int) -> Rules:
        """The rules for an open file. Raises BadInput where its columns do not do."""
        layout = find_layout(path, reader, options)
        columns = find_columns(path, reader, options, layout)
        where = {_named(path, reader, column, "--where"): value for column, value in options.where.items()}
        named = {*filter(None, vars(columns).values()), *where}
        fields = {name: found for name in named if (found := find_field(reader.names, name)) and found.steps}
        if layout:
            reader.unread |= layout.unread - named - {column for column, _ in fields.values()}
        return cls(
            columns,
            where,
            options.source or reader.source or source,
            options.source is None,
            srid == 4326,
            layout,
            fields,
            reader.decimal,
        )

    def prepare(self, block: Block) -> tuple[Block, Counter[str]]:
        """The block with derived columns and without the rows that are not wanted, which are counted by their reason."""
        rows = len(block)
        columns: dict[str, Sequence[Any]] = {
            path: block.columns[path]
            if path in block.columns
            else [value_at(value, steps) for value in block.columns[name]]
            for path, (name, steps) in self.fields.items()
        }
        left_out: list[str | None] = [None] * rows
        for path, wanted in self.where.items():
            values = columns[path] if path in columns else block.columns.get(path) or left_out
            left_out = [
                reason or (None if _matches(value, wanted) else NOT_WHERE)
                for reason, value in zip(left_out, values, strict=True)
            ]
        if self.layout:
            derived = self.layout.derive(block.columns, rows)
            columns = {**derived.columns, **columns}
            if derived.left_out:
                described = block.columns.get(self.columns.description or "") or left_out
                left_out = [
                    first or (None if text and second in osm_tags.UNTOLD else second)
                    for first, second, text in zip(left_out, derived.left_out, described, strict=True)
                ]
        columns = {name: column for name, column in columns.items() if not name.startswith("@") or name in self.used}
        hidden = self.layout.hidden if self.layout else frozenset()
        kept = [reason is None for reason in left_out]
        if not all(kept):
            block = block.keep(kept)
            columns = {name: pick(column, kept) for name, column in columns.items()}
        own = {name: block.columns[name] for name in block.columns if name in self.used or name not in hidden}
        counts = Counter(reason for reason in left_out if reason)
        return replace(block, columns={**own, **columns}), counts

    def place_of(self, record: Record) -> Place | Refused | LeftOut:
        """A record's place, or why it is none."""
        block = Block(record.row, {name: [value] for name, value in record.values.items()}, [record.shape])
        prepared, counts = self.prepare(block)
        if counts:
            return LeftOut(next(iter(counts)))
        values = {name: column[0] for name, column in prepared.columns.items()}
        return self.place(record._replace(values=values, raw=raw_of(record)))

    def place(self, record: Record) -> Place | Refused:
        """The place of a record that is prepared."""
        get, columns = record.values.get, self.columns
        name, category = text_of(get(columns.name)), words_of(get(columns.category))
        group, description = text_of(get(columns.group)), text_of(get(columns.description))
        reason, x, y, shape = _position(record, columns, self.degrees, self.decimal)
        reason = reason or _text_reason(name, category, group, description, columns.category is not None)
        if reason:
            return Refused(record.row, reason, raw_of(record))
        source = text_of(get(columns.source)) if self.any_source else None
        identity = text_of(get(columns.id)) or made_id(name, category, description, x, y, shape)
        others = {key: value for key, value in record.values.items() if key not in self.used}
        try:
            attributes = to_json({key: value for key, value in others.items() if value not in (None, "")})
        except RecursionError:
            return Refused(record.row, TOO_DEEP, raw_of(record))
        place = Place(
            record.row, source or self.source, identity, name, category, group, description, x, y, shape, attributes
        )
        reason = _place_reason(place)
        return Refused(record.row, reason, raw_of(record)) if reason else place

    @cached_property
    def used(self) -> frozenset[str]:
        """The columns that are no attributes."""
        return frozenset(column for column in vars(self.columns).values() if column) | frozenset(self.fields)


def _matches(value: Any, wanted: str) -> bool:
    """Is it the wanted value, or a list that holds it?"""
    if isinstance(value, list):
        return any(text_of(item) == wanted for item in value)
    return (text_of(value) or "") == wanted


def text_of(value: Any) -> str | None:
    """A value as text without white space around it; None for what is empty or NaN."""
    if isinstance(value, str):
        return value.strip() or None
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, (list, tuple)):
        return "; ".join(filter(None, map(text_of, value))) or None
    if isinstance(value, (dict, bytes)):
        return None  # there is no telling which part of it is meant
    return str(value)


def words_of(value: Any) -> str | None:
    """A category; several of them, as a list or between semicolons, in one order: 'restaurant;bar' is 'bar and restaurant'."""
    if isinstance(value, str) and value[:1] in {"[", "{"}:
        value = _listed(value)
    if isinstance(value, str) and ";" in value and not ENTITY.search(value):
        value = value.split(";")
    if not isinstance(value, (list, tuple)):
        return text_of(value)
    words = sorted({text for text in map(text_of, value) if text})
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]])) or None


def _listed(text: str) -> Any:
    """The list that JSON, Python or PostgreSQL write like this; else the text."""
    if SIMPLE_ARRAY.fullmatch(text):
        return text[1:-1].split(",")
    found = parsed(text)
    return found if isinstance(found, list) else None if isinstance(found, dict) else text


def raw_of(record: Record) -> str:
    """The record as it stands in the file, for a reader of the rejects."""
    if record.raw is not None:
        return record.raw
    shown = record.values if record.shape is None else {**record.values, "geometry": record.shape}
    return json.dumps(shown, ensure_ascii=False, default=str)


def find_usual(reader: Reader, part: str) -> str | None:
    """The column with a usual name for this part; of a nested one the part that is its text."""
    by_lower = {name.lower().removeprefix("properties."): name for name in reversed(reader.names)}
    for usual in USUAL[part]:
        column = by_lower.get(usual)
        inside = [f"{usual}.{key}" for key in INSIDE]
        if column is None:
            flat = next((by_lower[path] for path in inside if path in by_lower), None)
            if flat is not None and part in {"name", "category", "group"}:
                return flat
        elif column not in reader.parts or part == "geometry":
            return column
        elif found := next((f"{column}.{key}" for key in INSIDE if f"{column}.{key}" in reader.parts[column]), None):
            return found
    return None


def _named(path: Path, reader: Reader, column: str, option: str) -> str:
    """The user's name of a column or a path into one, in the file's spelling. Raises BadInput if there is no such thing."""
    if reader.columns and not reader.names:
        return column  # of OpenStreetMap's PBF, where any tag may be
    found = find_field(reader.names, column)
    if found is None:
        raise BadInput(path=path, reason=f"there is no column {column!r} ({option}). {_columns_are(reader)}")
    whole = found.column + "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in found.steps)
    parts = reader.parts.get(found.column, [])
    if parts and not found.steps and option != "--geometry-column":
        reason = f"{found.column} ({option}) holds structures. Name a part of it: {', '.join(parts[:10])}"
        raise BadInput(path=path, reason=reason)
    if parts and not reader.may_hold(whole):
        reason = f"there is no {whole} ({option}). In {found.column} there are: {', '.join(parts[:20])}"
        raise BadInput(path=path, reason=reason)
    return whole


def _check_columns(path: Path, reader: Reader, columns: Columns) -> None:
    if not (reader.has_shape or columns.geometry or (columns.lon and columns.lat)):
        raise BadInput(
            path=path,
            reason=f"no columns of coordinates. {_columns_are(reader)}. Name them with --lon-column and"
            " --lat-column, or with --geometry-column if one holds WKT",
        )
    if not (columns.name or columns.category or columns.description):
        raise BadInput(
            path=path,
            reason=f"no column says what the places are. {_columns_are(reader)}. Name one with --category-column,"
            " --name-column or --description-column",
        )


def _columns_are(reader: Reader) -> str:
    listed = [name for column in reader.names for name in reader.parts.get(column) or [column]]
    more = f" and {len(listed) - 40} more" if len(listed) > 40 else ""
    return f"The columns are: {', '.join(listed[:40])}{more}" if listed else "There are no columns"


def _position(
    record: Record, columns: Columns, degrees: bool, decimal: str | None
) -> tuple[str | None, float | None, float | None, str | None]:
    """(reason to refuse, x, y, shape); the shape is for PostGIS to turn into a point."""
    values, shape = record.values, record.shape
    if columns.lon is not None:
        shape = values.get(columns.lon), values.get(columns.lat)
    elif columns.geometry is not None:
        shape = values.get(columns.geometry)
        shape = shape.hex() if isinstance(shape, bytes) else text_of(shape)
    if shape is None:
        return NO_COORDINATES, None, None, None
    if isinstance(shape, str):
        return None, None, None, shape
    try:
        x, y = _number(shape[0], decimal), _number(shape[1], decimal)
    except (TypeError, ValueError, OverflowError):
        missing = any(value is None or (isinstance(value, str) and not value.strip()) for value in shape)
        return NO_COORDINATES if missing else NOT_NUMBERS, None, None, None
    if not (math.isfinite(x) and math.isfinite(y)):
        return NOT_FINITE, None, None, None
    if degrees and not (-180 <= x <= 180 and -90 <= y <= 90):
        return OUT_OF_RANGE, None, None, None
    return None, x, y, None


def _number(value: Any, decimal: str | None) -> float:
    if decimal == "," and isinstance(value, str):
        value = with_point(value)
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        raise ValueError("not a number")
    return float(value)


def with_point(number: str) -> str:
    """'1.234,5' as '1234.5'."""
    return number.replace(".", "").replace(",", ".") if "," in number else number


def _text_reason(
    name: str | None, category: str | None, group: str | None, description: str | None, any_category: bool
) -> str | None:
    if not category and not description and (any_category or not name):
        return NO_CATEGORY if any_category else NO_TEXT
    if any(text is not None and len(text) > NAME_LIMIT for text in (name, category, group)):
        return NAME_TOO_LONG
    if description is not None and len(description) > DESCRIPTION_LIMIT:
        return DESCRIPTION_TOO_LONG
    return None


def _place_reason(place: Place) -> str | None:
    if len(place.source) > ID_LIMIT or len(place.source_id) > ID_LIMIT:
        return ID_TOO_LONG
    if len(place.attributes) > ATTRIBUTES_LIMIT:
        return ATTRIBUTES_TOO_LONG
    everything = "\n".join(
        [
            place.source,
            place.source_id,
            place.name or "",
            place.category or "",
            place.category_group or "",
            place.description or "",
            place.shape or "",
            place.attributes,
        ]
    )
    if (
        place.attributes.count("[") + place.attributes.count("{") > DEPTH_LIMIT
        and _depth(place.attributes) > DEPTH_LIMIT
    ):
        return TOO_DEEP
    if "\0" in everything or ("\\u0000" in place.attributes and _has_nul(json.loads(place.attributes))):
        return NUL
    return BAD_UTF8 if BAD_BYTE in everything else None


def _depth(text: str) -> int:
    """How deep JSON is nested."""
    depth = deepest = 0
    for token in JSON_TOKEN.findall(text):
        depth += 1 if token in "[{" else -1 if token in "]}" else 0
        deepest = max(deepest, depth)
    return deepest


def _has_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_nul(key) or _has_nul(item) for key, item in value.items())
    if isinstance(value, list):
        return any(map(_has_nul, value))
    return isinstance(value, str) and "\0" in value


def to_json(values: Any) -> str:
    """JSON; numbers that JSON has no spelling for (NaN, infinity) become null."""
    try:
        return _encode(values)
    except ValueError:
        return _encode(_without_nan(values))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def made_id(
    name: str | None, category: str | None, description: str | None, x: float | None, y: float | None, shape: str | None
) -> str:
    """An id for a row that has none: the same name and category at the same place give the same."""
    text = f"{name or ''}\x1f{category or ''}" if name or category else f"\x1f\x1f{description}"
    where = f"{x:.{ID_DECIMALS}f} {y:.{ID_DECIMALS}f}" if shape is None else shape
    return blake2b(f"{text}\x1f{where}".encode(errors="replace"), digest_size=12).hexdigest()
