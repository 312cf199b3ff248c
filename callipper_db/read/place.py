"""From a record to a row of callipper.poi, or to the reason why it is refused."""

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

from callipper_db.other_degrees import may_be_degrees
from callipper_db.read import osm_tags
from callipper_db.read.columns import LoadOptions, find_columns, find_layout, named_column
from callipper_db.read.layout import Field, Layout, find_field, parsed, value_at
from callipper_db.read.record import (
    BAD_BYTE,
    BAD_UTF8,
    TOO_DEEP,
    Block,
    Columns,
    LeftOut,
    Reader,
    Record,
    Refused,
    pick,
)

NAME_LIMIT = 500  # characters of name, category and group
DESCRIPTION_LIMIT = 10_000
ID_LIMIT = 300  # source and source_id together must fit an index page of PostgreSQL
ATTRIBUTES_LIMIT = 100_000  # characters of JSON
DEPTH_LIMIT = 100  # levels of nesting
ID_DECIMALS = 6  # of the coordinates in the hash of a derived id

NO_COORDINATES = "no coordinates"
NOT_NUMBERS = "coordinates that are not numbers"
NOT_FINITE = "coordinates that are NaN or infinite"
OUT_OF_RANGE = "longitude or latitude out of range"
SWAPPED = "latitude out of range; the longitude and the latitude may be swapped"
NO_CATEGORY = "neither category nor description"
NO_TEXT = "neither name, category nor description"
NAME_TOO_LONG = "name, category or group over 500 characters"
DESCRIPTION_TOO_LONG = "description over 10,000 characters"
ID_TOO_LONG = "id or source over 300 characters"
ATTRIBUTES_TOO_LONG = "other columns over 100,000 characters"
NUL = "a NUL character"
NOT_WHERE = "not what --where asks for"

PAIR = re.compile(r"[(\[]?\s*([-+]?\d+(?:\.\d+)?)\s*[,;]\s*([-+]?\d+(?:\.\d+)?)\s*[)\]]?")  # 48.85, 2.35
# 48°51'24"N, N 48.85, 48.85°: at least one letter or sign.
ANGLE = re.compile(
    r"(?=.*[^-+.\d])([NSEW]?)\s*([-+]?\d+(?:\.\d+)?)\s*[°º]?"
    r"(?:\s*(\d+(?:\.\d+)?)\s*['\u2032\u2019](?:\s*(\d+(?:\.\d+)?)\s*(?:\"|\u2033|\u201d|''))?)?\s*([NSEW]?)",
    re.IGNORECASE,
)
UNTELLING = {"point_of_interest", "establishment"}  # Google's types of every place
# How programs write that there is nothing: pandas, R, QGIS, SQL, ArcGIS.
NOTHING = frozenset({"NaN", "nan", "NA", "N/A", "NULL", "null", "None", "<NA>", "<Null>"})
ENTITY = re.compile(r"&#?\w+;")  # an HTML entity, whose semicolon separates nothing
SIMPLE_ARRAY = re.compile(r"\{[^{}\":\\]*\}")
JSON_TOKEN = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*"')

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str, separators=(",", ":")).encode


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
    shape: str | None  # for PostGIS to turn into a point; then x and y are None
    attributes: str


@dataclass(frozen=True)
class Rules:
    """What makes a record a place, for one file."""

    columns: Columns
    where: Mapping[str, str]  # by the file's own spelling of the columns
    source: str  # for rows that name no source
    any_source: bool  # a row may name its source
    degrees: bool  # the coordinates are known to be longitude and latitude, so their range is checked here
    layout: Layout | None = None
    fields: Mapping[str, Field] = field(default_factory=dict)  # path into a nested column -> its field
    decimal: str | None = None  # the decimal sign, if it is a comma

    @classmethod
    def of(cls, path: Path, reader: Reader, options: LoadOptions, source: str, srid: int) -> Rules:
        """The rules for an open file. Raises BadInput if its columns are not sufficient."""
        layout = find_layout(path, reader, options)
        columns = find_columns(path, reader, options, layout)
        where = {named_column(path, reader, column, "--where"): value for column, value in options.where.items()}
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
        """The block with derived columns and without unwanted rows; these are counted by their reason."""
        rows = len(block)
        columns: dict[str, Sequence[Any]] = {
            path: block.columns[path]
            if path in block.columns
            else [value_at(value, steps) for value in block.columns.get(name) or [None] * rows]
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
        """The place of a record, or why there is none."""
        block = Block(record.row, {name: [value] for name, value in record.values.items()}, [record.shape])
        prepared, counts = self.prepare(block)
        if counts:
            return LeftOut(next(iter(counts)))
        values = {name: column[0] for name, column in prepared.columns.items()}
        return self.place(record._replace(values=values, raw=raw_of(record)))

    def place(self, record: Record) -> Place | Refused:
        """The place of a prepared record."""
        get, columns = record.values.get, self.columns
        name, category = name_of(get(columns.name)), words_of(get(columns.category))
        group, description = text_of(get(columns.group)), text_of(get(columns.description))
        unsound, x, y, shape = _position(record, columns, self.degrees, self.decimal)
        doubtful = unsound is not None and x is not None and y is not None and may_be_degrees(x, y)
        reason = None if doubtful else unsound
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
        reason = _place_reason(place) or unsound
        return Refused(record.row, reason, raw_of(record), place if reason is unsound else None) if reason else place

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
    """A value as text without white space at its ends; None if it is empty or NaN."""
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
        return None  # it is not clear which part is meant
    return str(value)


def name_of(value: Any) -> str | None:
    """The same of a name: None also for NULL and the like."""
    text = text_of(value)
    return None if text in NOTHING else text


def words_of(value: Any) -> str | None:
    """A category's words. Several, as a list or between semicolons, are sorted: 'restaurant;bar' is 'bar and restaurant'."""
    if isinstance(value, str) and value[:1] in {"[", "{"}:
        value = _listed(value)
    if isinstance(value, str) and ";" in value and not ENTITY.search(value):
        value = value.split(";")
    if not isinstance(value, (list, tuple)):
        return name_of(value)
    told = {text for text in map(name_of, value) if text}
    words = sorted(told - UNTELLING or told)
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]])) or None


def _listed(text: str) -> Any:
    """The list, if the text is one in the notation of JSON, Python or PostgreSQL; else the text."""
    if SIMPLE_ARRAY.fullmatch(text):
        return text[1:-1].split(",")
    found = parsed(text)
    return found if isinstance(found, list) else None if isinstance(found, dict) else text


def raw_of(record: Record) -> str:
    """The record as it is in the file, for the file of rejects."""
    if record.raw is not None:
        return record.raw
    shown = record.values if record.shape is None else {**record.values, "geometry": record.shape}
    return json.dumps(shown, ensure_ascii=False, default=str)


def _position(
    record: Record, columns: Columns, degrees: bool, decimal: str | None
) -> tuple[str | None, float | None, float | None, str | None]:
    """(reason to refuse, x, y, shape). PostGIS turns the shape into a point. A place out of range has its numbers too."""
    values, shape = record.values, record.shape
    if columns.lon is not None:
        shape = values.get(columns.lon), values.get(columns.lat)
    elif columns.geometry is not None:
        shape = values.get(columns.geometry)
        shape = _written_shape(shape)
    if shape is None:
        return NO_COORDINATES, None, None, None
    if isinstance(shape, str):
        return None, None, None, shape
    try:
        x, y = _number(shape[0], decimal, "EW"), _number(shape[1], decimal, "NS")
    except (TypeError, ValueError, OverflowError):
        missing = any(value is None or (isinstance(value, str) and not value.strip()) for value in shape)
        return NO_COORDINATES if missing else NOT_NUMBERS, None, None, None
    if not (math.isfinite(x) and math.isfinite(y)):
        return NOT_FINITE, None, None, None
    if degrees and not (-180 <= x <= 180 and -90 <= y <= 90):
        return out_of_range(x, y), x, y, None
    return None, x, y, None


def out_of_range(x: float, y: float) -> str:
    """Why a place is not on the globe."""
    return SWAPPED if abs(x) <= 90 < abs(y) <= 180 else OUT_OF_RANGE


def _written_shape(value: Any) -> Any:
    """WKT, hex of WKB or GeoJSON; or (longitude, latitude) of a text with the two, latitude first as people write them."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return json.dumps(value)
    text = text_of(value)
    if text and (pair := PAIR.fullmatch(text)):
        first, second = pair.groups()
        return (first, second) if abs(float(first)) > 90 else (second, first)
    return text


def _number(value: Any, decimal: str | None, directions: str) -> float:
    """A coordinate, also as people write angles: 48.85 N, 48°51'24"N. Raises ValueError, TypeError or OverflowError."""
    if decimal == "," and isinstance(value, str):
        value = with_point(value)
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        raise ValueError("not a number")
    if isinstance(value, str) and (angle := ANGLE.fullmatch(value.strip())):
        return _degrees(angle, directions)
    return float(value)


def _degrees(angle: re.Match[str], directions: str) -> float:
    """Raises ValueError for 60 minutes or more, and for a direction of the other axis."""
    before, degrees, minutes, seconds, after = angle.groups(default="")
    direction = (before + after).upper()
    parts = [float(minutes or 0), float(seconds or 0)]
    if max(parts) >= 60 or direction not in {"", *directions}:
        raise ValueError("not an angle")
    size = abs(float(degrees)) + parts[0] / 60 + parts[1] / 3600
    return -size if degrees.startswith("-") or direction in {"W", "S"} else size


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
    """An id for a row without one. The same name, category and place give the same id."""
    text = f"{name or ''}\x1f{category or ''}" if name or category else f"\x1f\x1f{description}"
    where = f"{x:.{ID_DECIMALS}f} {y:.{ID_DECIMALS}f}" if shape is None else shape
    return blake2b(f"{text}\x1f{where}".encode(errors="replace"), digest_size=12).hexdigest()
