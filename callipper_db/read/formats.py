"""Which reader a file needs: by its first bytes, then by its suffix."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from contextlib import AbstractContextManager
from pathlib import Path

from callipper_db.errors import BadInput
from callipper_db.read import vector
from callipper_db.read.delimited import is_delimited, open_delimited
from callipper_db.read.geojson import ENVELOPES, holds_collections, open_collection, open_lines
from callipper_db.read.parquet import open_parquet
from callipper_db.read.pbf import open_pbf
from callipper_db.read.record import Reader, ReadOptions
from callipper_db.read.text import Text

LINE_SUFFIXES = {".geojsonl", ".geojsons", ".geojsonseq", ".ndjson", ".jsonl"}
TEXT_SUFFIXES = {".csv", ".tsv", ".tab", ".txt"}
BINARY_SUFFIXES = {".parquet", ".geoparquet", ".pbf"} | (vector.SUFFIXES - {".kml", ".gpx"})
XML_SUFFIXES = {".kml", ".gpx", ".osm"}
SOURCE_SUFFIXES = {".gz", ".geojson", ".json"} | XML_SUFFIXES | BINARY_SUFFIXES | LINE_SUFFIXES | TEXT_SUFFIXES
HEAD = 65_536  # bytes
MAPINFO = re.compile(r"!table\b|version \d+\s", re.IGNORECASE)  # .tab, .mif
OSM_XML = re.compile(r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<osm(Change)?[\s>]", re.DOTALL)
WEB_PAGE = re.compile(r"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
KNOWN = (
    "CSV, TSV, GeoJSON, newline-delimited GeoJSON, Overpass JSON (these also with .gz), (Geo)Parquet, OpenStreetMap PBF and"
    " XML, GeoPackage, Shapefile, FlatGeobuf, KML, GPX, XLSX and ODS. Others: ogr2ogr -t_srs EPSG:4326 pois.gpkg FILE"
)


# How files begin that are not read, and what to do with them.
NOT_READ = {
    b"BZh": "it is packed with bzip2; unpack it first",
    b"\xfd7zXZ\0": "it is packed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "it is packed with zstd; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "it is a 7z archive; unpack it first",
    b"Rar!": "it is a rar archive; unpack it first",
    b"\xd0\xcf\x11\xe0": "it is a sheet of an old Excel; save it as XLSX or CSV",
    b"ARROW1": "Arrow and Feather files are not read; save it as Parquet",
}


def open_reader(path: Path, options: ReadOptions | None = None) -> AbstractContextManager[Reader]:
    """Open a file of POIs. Raises BadInput for a path that is no file, an empty file, and an unknown format."""
    options = options or ReadOptions()
    _check_encoding(path, options.encoding)
    head = _read_head(path)
    if advice := next((advice for begin, advice in NOT_READ.items() if head.startswith(begin)), None):
        raise BadInput(path=path, reason=advice)
    if kind := vector.kind_of(path, head):
        return vector.open_vector(path, kind, options.layer, options.encoding)
    if options.layer is not None:
        raise BadInput(path=path, reason="it has no layers; leave --layer away")
    if head.startswith(b"PAR1"):
        return open_parquet(path)
    if head[4:6] == b"\x0a\x09" and head[6:15] == b"OSMHeader":
        return open_pbf(path, options.street_furniture)
    suffix = _suffix(path)
    if suffix in BINARY_SUFFIXES:
        raise BadInput(path=path, reason=f"it does not begin as a {suffix[1:]} file does; fetch the file again")
    text = _as_text(head, options.encoding)
    if WEB_PAGE.match(text):
        raise BadInput(
            path=path, reason="it is a web page and no data; look at it in a browser, and fetch the file again"
        )
    if text.startswith("<"):
        if OSM_XML.match(text):
            return open_pbf(path, options.street_furniture)
        raise BadInput(path=path, reason=f"it is XML of an unknown kind. Known are {KNOWN}")
    if MAPINFO.match(text):
        raise BadInput(path=path, reason=f"MapInfo tables are not read. Known are {KNOWN}")
    if suffix in LINE_SUFFIXES or text.startswith("\x1e") or _is_object_a_line(text):
        return open_lines(path)
    if text.startswith(("{", "[")) and suffix not in TEXT_SUFFIXES:
        return open_collection(path)
    if suffix in TEXT_SUFFIXES or (suffix not in {".json", ".geojson"} and is_delimited(text)):
        return open_delimited(path, options.encoding, options.decimal)
    raise BadInput(path=path, reason=f"the format is not known. Known are {KNOWN}")


def _check_encoding(path: Path, encoding: str | None) -> None:
    """Raises BadInput for what Python knows no encoding of text by."""
    if encoding is None:
        return
    try:
        "".encode(encoding)
    except (LookupError, ValueError):
        reason = (
            f"{encoding} (--encoding) is no known encoding; well-known are utf-8, cp1252, latin-1, cp1250 and utf-16"
        )
        raise BadInput(path=path, reason=reason) from None


def _as_text(head: bytes, encoding: str | None) -> str:
    return Text(io.BytesIO(head), encoding).read(HEAD).lstrip()


def _read_head(path: Path) -> bytes:
    """The first bytes, unpacked if the file is gzip."""
    try:
        if not path.is_file():
            raise BadInput(path=path, reason="it is not a file" if path.exists() else "there is no such file")
        with open(path, "rb") as file:
            head = file.read(HEAD)
        if head.startswith(b"\x1f\x8b"):
            head = zlib.decompressobj(wbits=31).decompress(head, HEAD)
    except OSError as error:
        raise BadInput(path=path, reason=f"it cannot be read ({error.strerror or error})") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(path=path, reason=f"the gzip stream is broken ({error}); fetch the file again") from error
    if not head.strip():
        raise BadInput(path=path, reason="the file is empty")
    return head


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")


def _is_object_a_line(text: str) -> bool:
    """Is the first line a complete JSON object, but no FeatureCollection and no answer of a web service?"""
    line, _, more = text.partition("\n")
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(first, dict) or first.get("type") == "FeatureCollection":
        return False
    wrapped = any(isinstance(first.get(key), list) for key in ("features", "elements", *ENVELOPES))
    return bool(more.strip()) or not (wrapped or any(map(holds_collections, first.values())))
