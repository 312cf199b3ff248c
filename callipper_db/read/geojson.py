"""GeoJSON: feature collections, and a feature or a plain object a line."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import ijson  # type: ignore[import-untyped]

from callipper_db.errors import BadInput
from callipper_db.read.record import BAD_JSON, BAD_UTF8, LINE_TOO_LONG, Reader, Record, Refused, in_blocks
from callipper_db.read.text import MAX_LINE, Lines, open_text

FEATURES_LOOKED_AT = 1000  # to learn which properties there are
CHUNK = 65_536  # characters
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
EPSG = re.compile(r"(?:EPSG|ESRI):(?:[\d.]*:)?(\d+)$", re.IGNORECASE)
CRS84 = re.compile(r"CRS:?84$", re.IGNORECASE)


@contextmanager
def open_collection(path: Path) -> Iterator[Reader]:
    """A FeatureCollection. Its old-style `crs` member may stand behind the features, so the SRID is known last."""
    with open_text(path) as (text, file):
        collection = _Collection(path, text)
        yield _reader(collection.records(), file.tell, collection)


@contextmanager
def open_lines(path: Path) -> Iterator[Reader]:
    """Newline-delimited GeoJSON, also with record separators (RFC 8142)."""
    with open_text(path) as (text, file):
        yield _reader(_line_records(Lines(text)), file.tell, None)


class _Collection:
    def __init__(self, path: Path, text: io.TextIOWrapper) -> None:
        self.path = path
        self._text = text
        self._crs: list[Any] = []

    def srid(self) -> int | None:
        return crs_srid(self.path, self._crs[0]) if self._crs and self._crs[0] is not None else None

    def records(self) -> Iterator[Record]:
        row = 0
        for row, feature in enumerate(self._features(), 1):
            yield _from_feature(row, feature, None)
        if not row:
            raise BadInput(path=self.path, reason="it is JSON but no GeoJSON FeatureCollection with features")

    def _features(self) -> Iterator[Any]:
        features, crs = ijson.sendable_list(), ijson.sendable_list()
        parsers = [
            ijson.items_coro(features, "features.item", use_float=True),
            ijson.items_coro(crs, "crs", use_float=True),
        ]
        try:
            while chunk := self._text.read(CHUNK).encode():
                for parser in parsers:
                    parser.send(chunk)
                self._crs.extend(crs)
                del crs[:]
                yield from features
                del features[:]
            for parser in parsers:
                parser.close()
        except ijson.JSONError as error:
            raise BadInput(path=self.path, reason=f"it is not valid JSON: {_one_line(error)}") from error


def crs_srid(path: Path, crs: Any) -> int | None:
    """The SRID of an old-style `crs` member."""
    name = crs.get("properties", {}).get("name") if isinstance(crs, dict) else crs
    if isinstance(name, str) and CRS84.search(name):
        return 4326
    if isinstance(name, str) and (found := EPSG.search(name)):
        return int(found[1])
    raise BadInput(path=path, reason=f"its crs {json.dumps(crs)[:200]} is not an EPSG code; give it with --srid")


def _reader(records: Iterator[Record | Refused], bytes_done: Any, collection: _Collection | None) -> Reader:
    first = list(islice(records, FEATURES_LOOKED_AT))
    seen = [record for record in first if isinstance(record, Record)]
    return Reader(
        in_blocks(chain(first, records)),
        list(dict.fromkeys(name for record in seen for name in record.values)),
        bytes_done,
        has_shape=any(record.shape is not None for record in seen),
        srid=collection.srid if collection else lambda: None,
        srid_known=collection is None,
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
