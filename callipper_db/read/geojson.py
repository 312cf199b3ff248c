"""GeoJSON: feature collections, and a feature or a plain object a line."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import ijson  # type: ignore[import-untyped]

from callipper_db.errors import BadInput
from callipper_db.read.record import BAD_JSON, BAD_UTF8, LINE_TOO_LONG, Reader, Record, Refused, in_blocks
from callipper_db.read.text import CHUNK, MAX_LINE, Lines, open_text

FEATURES_LOOKED_AT = 1000  # to learn which properties there are
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
EPSG = re.compile(r"(?:EPSG|ESRI):(?:[\d.]*:)?(\d+)$", re.IGNORECASE)
CRS84 = re.compile(r"CRS:?84$", re.IGNORECASE)


@contextmanager
def open_collection(path: Path) -> Iterator[Reader]:
    """A FeatureCollection, with the old-style `crs` member that may stand before or behind the features."""
    with open_text(path) as (text, file):
        yield _reader(_collection_records(path, text), file.tell, cache(partial(_collection_srid, path)))


@contextmanager
def open_lines(path: Path) -> Iterator[Reader]:
    """Newline-delimited GeoJSON, also with record separators (RFC 8142)."""
    with open_text(path) as (text, file):
        yield _reader(_line_records(Lines(text)), file.tell, lambda: None)


class _Utf8:
    """Text as the bytes that ijson reads."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text

    def read(self, size: int) -> bytes:
        return self._text.read(size).encode()


@contextmanager
def _json_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except ijson.JSONError as error:
        reason = f"it is not valid JSON: {' '.join(str(error).split())[:200]}"
        raise BadInput(path=path, reason=reason) from error


def _collection_records(path: Path, text: io.TextIOWrapper) -> Iterator[Record]:
    row = 0
    with _json_errors(path):
        for row, feature in enumerate(ijson.items(_Utf8(text), "features.item", use_float=True), 1):
            yield _from_feature(row, feature, None)
    if not row:
        raise BadInput(path=path, reason="it is JSON but no GeoJSON FeatureCollection with features")


def _collection_srid(path: Path) -> int | None:
    """The SRID of the member `crs`. Parsing is slow, so the file is first searched for the word."""
    with open_text(path) as (text, _):
        chunks = iter(lambda: text.read(CHUNK), "")
        if not any('"crs"' in before + chunk for before, chunk in pairwise(chain([""], chunks))):
            return None
    with open_text(path) as (text, _), _json_errors(path):
        crs = next(ijson.items(_Utf8(text), "crs", use_float=True), None)
        return None if crs is None else crs_srid(path, crs)


def crs_srid(path: Path, crs: Any) -> int | None:
    """The SRID of an old-style `crs` member."""
    name = crs.get("properties", {}).get("name") if isinstance(crs, dict) else crs
    if isinstance(name, str) and CRS84.search(name):
        return 4326
    if isinstance(name, str) and (found := EPSG.search(name)):
        return int(found[1])
    raise BadInput(path=path, reason=f"its crs {json.dumps(crs)[:200]} is not an EPSG code; give it with --srid")


def _reader(
    records: Iterator[Record | Refused], bytes_done: Callable[[], int], srid: Callable[[], int | None]
) -> Reader:
    first = list(islice(records, FEATURES_LOOKED_AT))
    seen = [record for record in first if isinstance(record, Record)]
    return Reader(
        in_blocks(chain(first, records)),
        list(dict.fromkeys(name for record in seen for name in record.values)),
        bytes_done,
        has_shape=any(record.shape is not None for record in seen),
        srid=srid,
    )


def _line_records(lines: Lines) -> Iterator[Record | Refused]:
    for line in lines:
        lines.begin()
        text = line.strip("\x1e \t\r\n")
        if text:
            yield _from_line(lines.number, text)


def _from_line(row: int, text: str) -> Record | Refused:
    if len(text) >= MAX_LINE:
        return Refused(row, LINE_TOO_LONG, text)
    try:
        value = json.loads(text)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Refused(row, BAD_UTF8, text)
    except (ValueError, RecursionError):
        return Refused(row, BAD_JSON, text)
    return _from_feature(row, value, text) if isinstance(value, dict) else Refused(row, BAD_JSON, text)


def _from_feature(row: int, feature: Any, raw: str | None) -> Record:
    """A feature's properties, its id as `id` unless there is such a property; other objects are plain columns."""
    if not isinstance(feature, dict):
        return Record(row, {}, None, json.dumps(feature, default=str))
    if feature.get("type") != "Feature":
        return Record(row, feature, None, raw)
    properties = feature.get("properties")
    values = properties if isinstance(properties, dict) else {}
    if "id" in feature:
        values.setdefault("id", feature["id"])
    return Record(row, values, _shape(feature.get("geometry")), raw)


def _shape(geometry: Any) -> Any:
    if not isinstance(geometry, dict):
        return None
    coordinates = geometry.get("coordinates")
    if geometry.get("type") == "Point" and isinstance(coordinates, list) and len(coordinates) >= 2:
        return coordinates[0], coordinates[1]
    return json.dumps(geometry)
