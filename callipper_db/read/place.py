"""From a record to a row of callipper.poi: which column is what, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from callipper_db.errors import BadInput
from callipper_db.read.record import BAD_BYTE, BAD_UTF8, Columns, Reader, Record, Refused

# The usual names, in order of precedence; compared without case.
USUAL = {
    "id": ("id", "source_id", "osm_id", "@id", "fid", "ogc_fid", "gid", "objectid", "poi_id", "fsq_place_id", "uuid"),
    "name": ("name", "title", "poi_name", "place_name"),
    "category": ("category", "type", "amenity", "kind", "class", "fclass", "label", "category_name", "poi_type"),
    "group": ("category_group", "group", "group_name", "categorygroup", "supercategory", "theme"),
    "description": ("description", "text", "desc"),
    "lon": ("lon", "lng", "long", "longitude", "x", "easting", "lon_x"),
    "lat": ("lat", "latitude", "y", "northing", "lat_y"),
    "geometry": ("geom", "geometry", "wkt", "the_geom", "wkb_geometry", "wkb"),
    "source": ("source",),
}

NAME_LIMIT = 500  # characters of name, category and group
DESCRIPTION_LIMIT = 10_000
ID_LIMIT = 300  # source and source_id together must fit an index page of PostgreSQL
ATTRIBUTES_LIMIT = 100_000  # characters of JSON
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

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str, separators=(",", ":")).encode


@dataclass(frozen=True)
class LoadOptions:
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
    street_furniture: bool = False  # keep OpenStreetMap's benches, bins and the like
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


def find_columns(path: Path, reader: Reader, options: LoadOptions) -> Columns:
    """The part that each column plays: as the options say, else by its usual name.

    Raises BadInput, naming the columns there are, if there are no coordinates or nothing that says what a place is.
    """
    if reader.columns:
        return reader.columns
    found = {part: _find(path, reader.names, part, getattr(options, f"{part}_column")) for part in USUAL}
    explicit_point = options.lon_column and options.lat_column
    if options.geometry_column or (reader.has_shape and not explicit_point):
        found["lon"] = found["lat"] = None
    elif found["lon"] and found["lat"]:
        found["geometry"] = None
    if reader.has_shape and not options.geometry_column:
        found["geometry"] = None
    columns = Columns(**found)
    _check_columns(path, reader, columns)
    return columns


def find_where(path: Path, reader: Reader, where: Mapping[str, str]) -> dict[str, str]:
    """The row filter with the file's own spelling of the columns."""
    if reader.columns:
        return dict(where)
    return {_named(path, reader.names, column, "--where"): value for column, value in where.items()}


@dataclass(frozen=True)
class Rules:
    """What makes a record a place, for one file."""

    columns: Columns
    where: Mapping[str, str]  # with the file's own spelling of the columns
    source: str  # of rows that name none
    any_source: bool  # a row may name its source
    degrees: bool  # the coordinates are known to be longitude and latitude, so their range is checked here

    @classmethod
    def of(cls, path: Path, reader: Reader, options: LoadOptions, source: str, srid: int) -> Rules:
        columns = find_columns(path, reader, options)
        where = find_where(path, reader, options.where)
        return cls(columns, where, options.source or reader.source or source, options.source is None, srid == 4326)

    def place(self, record: Record) -> Place | Refused | None:
        """A record's place; None: `where` leaves it out."""
        get, columns = record.values.get, self.columns
        if any((text_of(get(column)) or "") != wanted for column, wanted in self.where.items()):
            return None
        name, category = text_of(get(columns.name)), text_of(get(columns.category))
        group, description = text_of(get(columns.group)), text_of(get(columns.description))
        reason, x, y, shape = _position(record, columns, self.degrees)
        reason = reason or _text_reason(name, category, group, description, columns.category is not None)
        if reason:
            return Refused(record.row, reason, raw_of(record))
        source = text_of(get(columns.source)) if self.any_source else None
        identity = text_of(get(columns.id)) or made_id(name, category, description, x, y, shape)
        others = {key: value for key, value in record.values.items() if key not in self.used}
        attributes = to_json({key: value for key, value in others.items() if value not in (None, "")})
        place = Place(
            record.row, source or self.source, identity, name, category, group, description, x, y, shape, attributes
        )
        reason = _place_reason(place)
        return Refused(record.row, reason, raw_of(record)) if reason else place

    @cached_property
    def used(self) -> frozenset[str]:
        """The columns that are no attributes."""
        return frozenset(column for column in vars(self.columns).values() if column)


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
    if isinstance(value, (dict, list)):
        return to_json(value) if value else None
    return str(value)


def raw_of(record: Record) -> str:
    """The record as it stands in the file, for a reader of the rejects."""
    if record.raw is not None:
        return record.raw
    shown = record.values if record.shape is None else {**record.values, "geometry": record.shape}
    return json.dumps(shown, ensure_ascii=False, default=str)


def _find(path: Path, names: list[str], part: str, named: str | None) -> str | None:
    if named is not None:
        return _named(path, names, named, f"--{part}-column")
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[usual] for usual in USUAL[part] if usual in by_lower), None)


def _named(path: Path, names: list[str], column: str, option: str) -> str:
    if column in names:
        return column
    found = [name for name in names if name.lower() == column.lower()]
    if not found:
        raise BadInput(path=path, reason=f"there is no column {column!r} ({option}). {_columns_are(names)}")
    return found[0]


def _check_columns(path: Path, reader: Reader, columns: Columns) -> None:
    if not (reader.has_shape or columns.geometry or (columns.lon and columns.lat)):
        raise BadInput(
            path=path,
            reason=f"no columns of coordinates. {_columns_are(reader.names)}. Name them with --lon-column and"
            " --lat-column, or with --geometry-column if one holds WKT",
        )
    if not (columns.name or columns.category or columns.description):
        raise BadInput(
            path=path,
            reason=f"no column says what the places are. {_columns_are(reader.names)}. Name one with --category-column,"
            " --name-column or --description-column",
        )


def _columns_are(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 40} more" if len(listed) > 40 else ""
    return f"The columns are: {', '.join(listed[:40])}{more}" if listed else "There are no columns"


def _position(
    record: Record, columns: Columns, degrees: bool
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
        x, y = _number(shape[0]), _number(shape[1])
    except (TypeError, ValueError, OverflowError):
        missing = any(value is None or (isinstance(value, str) and not value.strip()) for value in shape)
        return NO_COORDINATES if missing else NOT_NUMBERS, None, None, None
    if not (math.isfinite(x) and math.isfinite(y)):
        return NOT_FINITE, None, None, None
    if degrees and not (-180 <= x <= 180 and -90 <= y <= 90):
        return OUT_OF_RANGE, None, None, None
    return None, x, y, None


def _number(value: Any) -> float:
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        raise ValueError("not a number")
    return float(value)


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
    if "\0" in everything or ("\\u0000" in place.attributes and _has_nul(json.loads(place.attributes))):
        return NUL
    return BAD_UTF8 if BAD_BYTE in everything else None


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
