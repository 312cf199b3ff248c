"""Parquet and GeoParquet, a batch of rows at a time."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from callipper_db.errors import BadInput
from callipper_db.read.geojson import EPSG
from callipper_db.read.record import BAD_BYTE, BLOCK, Block, Reader, require

FEATURE = "Reading Parquet"
WKB_POINT = struct.Struct("<BIdd")
# How a point begins, and its length: of two dimensions, and of three as ISO and as PostGIS write it.
WKB_POINTS = {(b"\x01\x01\0\0\0", 21), (b"\x01\xe9\x03\0\0", 29), (b"\x01\x01\0\0\x80", 29)}
SRID = re.compile(r"srid:(\d+)$", re.IGNORECASE)
GEOARROW = "geoarrow."
CHUNK_LIMIT = 64_000_000  # bytes of a column in a row group, unpacked; only above it a column can be oversize
LONG_VALUE = 1_000_000  # bytes of a value on average
PACKED = 100  # times that a column is larger than on the disk


@contextmanager
def open_parquet(path: Path) -> Iterator[Reader]:
    """The geometry column is the one that the metadata `geo` names, that is GeoArrow, or of Parquet's own type; its CRS there
    is the SRID."""
    arrow, parquet = require("pyarrow", FEATURE), require("pyarrow.parquet", FEATURE)
    try:
        # Without these a whole column chunk, up to all rows of the file, would lie in memory.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            schema = file.schema_arrow
            shape, column = _geometry(file)
            oversize = _oversize(file.metadata)
            if shape in oversize:
                raise BadInput(path=path, reason=f"the values of its column {shape} are too long to be read")
            read = [name for name in schema.names if name not in oversize]
            rows = _Rows(arrow, file, read, shape, column.get("encoding"), path.stat().st_size)
            names = [name for name in read if name != shape]
            reader = Reader(
                rows.blocks(), names, rows.bytes_done, has_shape=bool(shape), srid=lambda: _srid(path, column)
            )
            reader.parts = {
                name: found for name in names if (found := list(_paths(arrow, name, schema.field(name).type)))
            }
            reader.notes += [f"column {name} was not read: its values are too long" for name in oversize]
            yield reader
    except (arrow.ArrowException, OSError) as error:
        raise BadInput(path=path, reason=f"it is not a sound Parquet file: {_one_line(error)}") from error


class ArrowColumns(Mapping[str, Sequence[Any]]):
    """The columns of a batch as Python values, made when they are asked for; also by a path: names.primary."""

    def __init__(self, arrow: Any, batch: Any, without: str | None = None) -> None:
        self._arrow = arrow
        self._batch = batch
        self._names = [name for name in batch.schema.names if name != without]
        self._without = without
        self._made: dict[str, Sequence[Any]] = {}

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name not in self._made:
            self._made[name] = plain(self._arrow, self._column(name))
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        try:
            self._column(str(name))
        except KeyError:
            return False
        return True

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self._batch.num_rows)

    def keep(self, chosen: Sequence[bool]) -> ArrowColumns:
        """Only the chosen rows."""
        return ArrowColumns(self._arrow, self._batch.filter(self._arrow.array(chosen)), self._without)

    def _column(self, name: str) -> Any:
        if name in self._names:
            return self._batch.column(name)
        first, *steps = name.split(".")
        if first not in self._names:
            raise KeyError(name)
        column = self._batch.column(first)
        compute = require("pyarrow.compute", FEATURE)
        for step in steps:
            if not self._arrow.types.is_struct(column.type) or column.type.get_field_index(step) < 0:
                raise KeyError(name)
            column = compute.struct_field(column, step)
        return column


class _Rows:
    def __init__(
        self, arrow: Any, file: Any, names: list[str], shape: str | None, encoding: str | None, size: int
    ) -> None:
        self._arrow = arrow
        self._file = file
        self._names = names
        self._shape = shape
        self._encoding = encoding
        self._size = size
        self._done = 0

    def bytes_done(self) -> int:
        return int(self._size * self._done / max(self._file.metadata.num_rows, 1))

    def blocks(self) -> Iterator[Block]:
        for batch in self._file.iter_batches(BLOCK, columns=self._names):
            shapes = shapes_of(self._arrow, batch.column(self._shape), self._encoding) if self._shape else None
            self._done += batch.num_rows
            yield Block(self._done - batch.num_rows + 1, ArrowColumns(self._arrow, batch, self._shape), shapes)


def plain(arrow: Any, column: Any) -> list[Any]:
    """A column as Python values: moments as text, text with its bad bytes marked."""
    kind = column.type
    if isinstance(kind, arrow.BaseExtensionType):
        column, kind = column.storage, column.storage.type
    if arrow.types.is_temporal(kind) and not arrow.types.is_duration(kind):
        column = column.cast(arrow.string())
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        large = arrow.types.is_large_string(kind)
        values = column.cast(arrow.large_binary() if large else arrow.binary()).to_pylist()
        values = [value if value is None else value.decode(errors="callipper-mark") for value in values]
    return values


def shapes_of(arrow: Any, column: Any, encoding: str | None) -> list[Any]:
    """Each row's shape: (x, y), hex of WKB, or GeoJSON, of a column of WKB or of GeoArrow's own encodings."""
    if isinstance(column.type, arrow.BaseExtensionType):
        column = column.storage
    if encoding in {None, "WKB"} or _is_bytes(arrow, column.type):
        return [_point(wkb) for wkb in plain(arrow, column)]
    if encoding == "point" and arrow.types.is_struct(column.type):
        compute = require("pyarrow.compute", FEATURE)
        x, y = (compute.struct_field(column, axis).to_pylist() for axis in ("x", "y"))
        return [None if a is None else (a, b) for a, b in zip(x, y, strict=True)]
    kind = GEOJSON_TYPES.get(encoding or "")
    return [_as_geojson(kind, value) for value in column.to_pylist()]


GEOJSON_TYPES = {
    "point": "Point",
    "linestring": "LineString",
    "polygon": "Polygon",
    "multipoint": "MultiPoint",
    "multilinestring": "MultiLineString",
    "multipolygon": "MultiPolygon",
}


def _as_geojson(kind: str | None, value: Any) -> Any:
    if value is None or kind is None:
        return None
    coordinates = _coordinates(value)
    return tuple(coordinates[:2]) if kind == "Point" else json.dumps({"type": kind, "coordinates": coordinates})


def _coordinates(value: Any) -> Any:
    """Structs of x and y, or interleaved coordinates, in lists of any depth, as GeoJSON has them."""
    if isinstance(value, dict):
        return [value["x"], value["y"]]
    return [_coordinates(item) for item in value] if isinstance(value, list) else value


def _is_bytes(arrow: Any, kind: Any) -> bool:
    tests = ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view")
    return any(getattr(arrow.types, test)(kind) for test in tests)


def _point(wkb: Any) -> Any:
    """(x, y) of a little-endian point, hex of any other WKB."""
    if not isinstance(wkb, bytes):
        return None
    if (wkb[:5], len(wkb)) in WKB_POINTS:
        return WKB_POINT.unpack_from(wkb)[2:]
    return wkb.hex()


def _oversize(metadata: Any) -> list[str]:
    """Columns that would fill the memory: with values of a megabyte and more, or of next to nothing on the disk."""
    found = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for chunk in map(group.column, range(group.num_columns)):
            size = chunk.total_uncompressed_size
            long = size > LONG_VALUE * max(chunk.num_values, 1) or size > PACKED * max(chunk.total_compressed_size, 1)
            if size > CHUNK_LIMIT and long:
                found.append(chunk.path_in_schema.split(".")[0])
    return list(dict.fromkeys(found))


def _geometry(file: Any) -> tuple[str | None, dict[str, Any]]:
    """The geometry column, and what is known about it: `encoding` and `crs` as GeoParquet has them."""
    schema = file.schema_arrow
    geo = _geo(schema.metadata or {})
    name = geo.get("primary_column")
    if name in schema.names:
        return str(name), geo["columns"][name]
    for field in schema:
        extension, about = _extension(field)
        if extension.startswith(GEOARROW):
            encoding = extension.removeprefix(GEOARROW)
            return field.name, {**about, "encoding": "WKB" if encoding == "wkb" else encoding}
    leaves = (file.schema.column(number) for number in range(len(file.schema)))
    for leaf in leaves:
        kind = json.loads(leaf.logical_type.to_json())
        if kind.get("Type") in {"Geometry", "Geography"} and leaf.path in schema.names:
            return str(leaf.path), {**kind, "encoding": "WKB"}
    return None, {}


def _extension(field: Any) -> tuple[str, dict[str, Any]]:
    """The name of a field's extension type and its metadata, whether or not pyarrow knows the type."""
    metadata = field.metadata or {}
    name = getattr(field.type, "extension_name", "") or metadata.get(b"ARROW:extension:name", b"").decode()
    text = metadata.get(b"ARROW:extension:metadata", b"") or getattr(field.type, "__arrow_ext_serialize__", bytes)()
    try:
        about = json.loads(text or b"{}")
    except ValueError:
        about = {}
    return name, about if isinstance(about, dict) else {}


def _geo(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    try:
        geo = json.loads(metadata.get(b"geo", b"{}"))
    except ValueError:
        return {}
    columns = geo.get("columns") if isinstance(geo, dict) else None
    return geo if isinstance(columns, dict) and isinstance(columns.get(geo.get("primary_column")), dict) else {}


def _paths(arrow: Any, path: str, kind: Any) -> Iterator[str]:
    """The ways to what is inside a nested column; a list of plain values, or a map, has none."""
    if arrow.types.is_struct(kind):
        for field in kind:
            nested = list(_paths(arrow, f"{path}.{field.name}", field.type))
            yield from nested or [f"{path}.{field.name}"]
    elif (arrow.types.is_list(kind) or arrow.types.is_large_list(kind)) and arrow.types.is_struct(kind.value_type):
        yield from _paths(arrow, f"{path}[0]", kind.value_type)


def _srid(path: Path, column: dict[str, Any]) -> int | None:
    """The SRID of a GeoParquet column: no `crs` means longitude and latitude, null an unknown one."""
    crs = column.get("crs")
    if crs is None:
        return None
    if isinstance(crs, str):  # of GeoArrow, or of Parquet's own type: 'OGC:CRS84', 'EPSG:27700', 'srid:27700'
        if crs.upper().endswith("CRS84"):
            return 4326
        if found := EPSG.search(crs) or SRID.match(crs):
            return int(found[1])
        try:
            crs = json.loads(crs)
        except ValueError:
            crs = {}
    identity = crs.get("id", {}) if isinstance(crs, dict) else {}
    if identity.get("authority") == "OGC" and str(identity.get("code")) == "CRS84":
        return 4326
    if identity.get("authority") in {"EPSG", "ESRI"} and str(identity.get("code")).isdigit():
        return int(identity["code"])
    raise BadInput(path=path, reason="the CRS in its metadata has no EPSG code; give it with --srid")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".").replace(BAD_BYTE, "?")
