"""JSON: GeoJSON collections, features or plain objects (one per line or in an array), and answers of Overpass."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from callipper_db.errors import BadInput
from callipper_db.read.json_stream import SURROGATE, NotJson, Stream
from callipper_db.read.overpass import from_element
from callipper_db.read.record import (
    BAD_JSON,
    BAD_UTF8,
    HOPELESS,
    LINE_TOO_LONG,
    TOO_DEEP,
    Reader,
    Record,
    Refused,
    in_blocks,
)
from callipper_db.read.text import MAX_LINE, Lines, Text, open_text

EPSG = re.compile(r"(?:EPSG|ESRI):(?:[\d.]*:)?(\d+)$", re.IGNORECASE)
CRS84 = re.compile(r"CRS:?84$", re.IGNORECASE)
NAMES_LIMIT = 5000  # different columns, at most
DEPTH_LOOKED_AT = 3  # levels of nested columns whose paths are listed
NO_FEATURES = "it is JSON but no GeoJSON FeatureCollection with features, and no array of objects"
# The members in which answers of web services have their array of objects.
ENVELOPES = ("results", "places", "businesses", "venues", "pois", "items", "records", "rows", "data")

# A collection that says so first: it is read feature by feature, however long it is.
COLLECTION = re.compile(r'\{\s*"type"\s*:\s*"FeatureCollection"')
COLLECTIONS = re.compile(r'\[\s*\{\s*"type"\s*:\s*"FeatureCollection"')
NESTED_LIMIT = 50  # collections inside each other

Records = Iterator[Record | Refused]
Make = Callable[[int, Any, str], Record | Refused]  # of a row's number, its value and its text


@contextmanager
def open_collection(path: Path) -> Iterator[Reader]:
    """A FeatureCollection, with the old-style `crs` member before or behind the features; an array of features or of plain
    objects, also as a member of an object; or the elements of an Overpass answer."""
    with open_text(path, guess=False) as text:
        about: dict[str, Any] = {}
        reader = Reader(in_blocks(_collection(path, text, about)), [], text.tell)

        def look(reader: Reader, advance: Callable[[int], None]) -> None:
            with open_text(path, guess=False) as again:
                _survey(reader, _collection(path, again, about), again, advance)
            reader.provider = "osm" if "elements" in about else None

        reader.survey = look
        reader.srid = lambda: crs_srid(path, about["crs"]) if about.get("crs") is not None else None
        yield reader


@contextmanager
def open_lines(path: Path) -> Iterator[Reader]:
    """Newline-delimited GeoJSON, also with record separators (RFC 8142)."""
    with open_text(path, guess=False) as text:
        reader = Reader(in_blocks(_lines(Lines(text))), [], text.tell)

        def look(reader: Reader, advance: Callable[[int], None]) -> None:
            with open_text(path, guess=False) as again:
                _survey(reader, _lines(Lines(again)), again, advance)

        reader.survey = look
        yield reader


def crs_srid(path: Path, crs: Any) -> int | None:
    """The SRID of an old-style `crs` member."""
    name = crs.get("properties", {}).get("name") if isinstance(crs, dict) else crs
    if isinstance(name, str) and CRS84.search(name):
        return 4326
    if isinstance(name, str) and (found := EPSG.search(name)):
        return int(found[1])
    raise BadInput(path=path, reason=f"its crs {json.dumps(crs)[:200]} is not an EPSG code; give it with --srid")


def _collection(path: Path, text: Text, about: dict[str, Any]) -> Records:
    """The records of a document, or of several one behind the other. Their other members go into `about`."""
    stream, numbers, read = Stream(text), itertools.count(1), False
    try:
        while not read or stream.peek() == "{":
            records = _elements if stream.peek() == "[" else _members
            for record in records(stream, from_feature, numbers, about):
                read = True
                yield record
            if not read:
                break
    except NotJson as error:
        raise BadInput(path=path, reason=f"it is not valid JSON: {error}") from error
    if not read:
        raise BadInput(path=path, reason=NO_FEATURES)
    if about.get("several_crs"):
        raise BadInput(path=path, reason="its collections have different crs; load each from a file of its own")


def _members(stream: Stream, _: Make, numbers: Iterator[int], about: dict[str, Any], depth: int = 0) -> Records:
    """The records of the next object: those of its array of features, and of the collections that are its members."""
    for key in stream.members():
        make = from_element if key == "elements" else from_feature if key in ("features", *ENVELOPES) else None
        if make and stream.peek() == "[":
            about[key] = None
            yield from _elements(stream, make, numbers, about, depth)
        elif depth < NESTED_LIMIT and stream.begins(COLLECTION):
            yield from _members(stream, from_feature, numbers, about, depth + 1)
        elif stream.peek() == "[" and stream.begins(COLLECTIONS):
            yield from _elements(stream, from_feature, numbers, about, depth)
        else:
            value = stream.item().value
            if key == "spatialReference":
                value = _esri_crs(value)
            if (key == "crs" or (key == "spatialReference" and value)) and value is not None:
                about["several_crs"] = about.get("several_crs") or about.get("crs", value) != value
                about["crs"] = value
            elif _is_collection(value):
                yield from _records(value, numbers)


def _elements(stream: Stream, make: Make, numbers: Iterator[int], about: dict[str, Any], depth: int = 0) -> Records:
    """The records of the next array. A collection in it stands for its features."""
    for _ in stream.elements():
        if make is from_feature and depth < NESTED_LIMIT and stream.begins(COLLECTION):
            yield from _members(stream, from_feature, numbers, about, depth + 1)
            continue
        item = stream.item()
        if item.problem:
            yield Refused(next(numbers), item.problem, item.raw)
        elif make is from_feature and _is_collection(item.value):
            yield from _records(item.value, numbers)
        else:
            yield make(next(numbers), item.value, item.raw)


def _is_collection(value: Any) -> bool:
    return (
        isinstance(value, dict) and value.get("type") == "FeatureCollection" and isinstance(value.get("features"), list)
    )


def holds_collections(value: Any) -> bool:
    """Is a value a FeatureCollection, or an array that begins with one?"""
    return _is_collection(value[0] if isinstance(value, list) and value else value)


def _records(collection: dict[str, Any], numbers: Iterator[int]) -> Records:
    """The records of a collection that has been read, and of those inside it."""
    waiting = [collection]
    while waiting:
        feature = waiting.pop()
        if _is_collection(feature):
            waiting += reversed(feature["features"])
        else:
            yield from_feature(next(numbers), feature, json.dumps(feature, ensure_ascii=False))


def _lines(lines: Lines) -> Records:
    last = 0
    for line in lines:
        lines.begin()
        text = line.strip("\x1e \t\r\n")
        # A collection in a line makes several rows, whose numbers must differ.
        numbers = itertools.count(max(lines.number, last + 1))
        for record in _from_line(numbers, text) if text else ():
            last = record.row
            yield record


def _from_line(numbers: Iterator[int], text: str) -> Records:
    if len(text) >= MAX_LINE:
        yield Refused(next(numbers), LINE_TOO_LONG, text)
        return
    try:
        value = json.loads(text)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        yield Refused(next(numbers), BAD_UTF8, text)
    except RecursionError:
        yield Refused(next(numbers), TOO_DEEP, text)
    except ValueError:
        yield Refused(next(numbers), BAD_JSON, text)
    else:
        if _is_collection(value):
            yield from _records(value, numbers)
        else:
            yield from_feature(next(numbers), value, text)


def from_feature(row: int, feature: Any, raw: str) -> Record | Refused:
    """A feature's properties, its id as `id` unless there is such a property; the attributes of a feature of ArcGIS's.

    Other objects are plain columns.
    """
    if not isinstance(feature, dict):
        return Refused(row, BAD_JSON, raw)
    if feature.get("type") != "Feature":
        if isinstance(feature.get("attributes"), dict) and "geometry" in feature:
            return Record(row, feature["attributes"], _esri_shape(feature["geometry"]), raw)
        return Record(row, feature, None, raw)
    properties = feature.get("properties")
    values = properties if isinstance(properties, dict) else {}
    if "id" in feature:
        values.setdefault("id", feature["id"])
    try:
        return Record(row, values, _shape(feature.get("geometry")), raw)
    except RecursionError:
        return Refused(row, TOO_DEEP, raw)


def _shape(geometry: Any) -> Any:
    if not isinstance(geometry, dict):
        return None
    coordinates = geometry.get("coordinates")
    if geometry.get("type") == "Point" and isinstance(coordinates, list) and len(coordinates) >= 2:
        return coordinates[0], coordinates[1]
    return json.dumps(geometry)


def _esri_crs(reference: Any) -> str | None:
    """The CRS of ArcGIS's JSON; its own number of Web Mercator is 102100."""
    code = (reference.get("latestWkid") or reference.get("wkid")) if isinstance(reference, dict) else None
    return f"EPSG:{3857 if code == 102100 else code}" if isinstance(code, int) else None


def _esri_shape(geometry: Any) -> Any:
    """A geometry of ArcGIS's JSON."""
    if not isinstance(geometry, dict):
        return None
    kinds = {"rings": "Polygon", "paths": "MultiLineString", "points": "MultiPoint"}
    for key, kind in kinds.items():
        if key in geometry:
            return json.dumps({"type": kind, "coordinates": geometry[key]})
    return geometry.get("x"), geometry.get("y")


def _survey(reader: Reader, records: Records, text: Text, advance: Callable[[int], None]) -> None:
    """Read the whole file to learn its columns and the paths in nested ones: a key may first appear near the end."""
    names: dict[str, None] = {}
    parts: dict[str, dict[str, None]] = {}
    done, sound, refusals, refused = 0, 0, 0, None
    for rows in in_blocks(records):
        for record in rows:
            if isinstance(record, Refused):
                refusals += 1
                refused = refused or record.reason
            if not isinstance(record, Record):
                continue
            sound += 1
            reader.has_shape |= record.shape is not None
            if len(names) < NAMES_LIMIT:
                names.update(dict.fromkeys(record.values))
            for name, value in record.values.items():
                if isinstance(value, (dict, list)) and len(paths := parts.setdefault(name, {})) < NAMES_LIMIT:
                    paths.update(dict.fromkeys(_paths(name, value)))
        advance(text.tell() - done)
        done = text.tell()
        if not sound and refusals >= HOPELESS:
            refused = f"{refused}. The rest of the file was not read"
            break
    reader.unreadable = None if sound else refused
    reader.names[:] = [str(name) for name in names]
    reader.parts = {name: list(paths) for name, paths in parts.items() if paths}


def _paths(path: str, value: Any, depth: int = DEPTH_LOOKED_AT) -> Iterator[str]:
    """The paths inside a nested value; a list of plain values has none."""
    if isinstance(value, dict) and depth:
        for key, inside in value.items():
            nested = list(_paths(f"{path}.{key}", inside, depth - 1))
            yield from nested or [f"{path}.{key}"]
    elif isinstance(value, list) and depth and value and isinstance(value[0], dict):
        yield from _paths(f"{path}[0]", value[0], depth - 1)
