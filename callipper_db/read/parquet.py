"""Parquet and GeoParquet, a batch of rows at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from callipper_db.errors import BadInput
from callipper_db.read.geojson import EPSG
from callipper_db.read.record import BAD_BYTE, BLOCK, Block, Reader, require

FEATURE = "Reading Parquet"
SRID = re.compile(r"srid:(\d+)$", re.IGNORECASE)
GEOARROW = "geoarrow."
CHUNK_LIMIT = 64_000_000  # bytes of a column in a row group, unpacked; a smaller column is never too large
LONG_VALUE = 1_000_000  # bytes of a value on average
PACKED = 100  # how many times a column may be larger than on the disk
MANY_VALUES = 1_000_000  # of a column in a row group, of lists with LONG_LIST items on average
LONG_LIST = 20_000
# A batch has BLOCK rows, or fewer so that it holds no more than:
BATCH_BYTES = 32_000_000
BATCH_VALUES = 2_000_000  # of one column
UNKNOWN_ROWS = 64  # where a dictionary has values of unknown length, each of which may stand in every row


@contextmanager
def open_parquet(path: Path) -> Iterator[Reader]:
    """The geometry column is the one that the metadata `geo` names, that is GeoArrow, or of Parquet's own type; its CRS there
    is the SRID."""
    arrow, parquet = require("pyarrow", FEATURE), require("pyarrow.parquet", FEATURE)
    try:
        # Without these settings, a whole column chunk, up to all rows of the file, would be in memory.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            schema = file.schema_arrow
            shape, column = _geometry(file)
            oversize = _oversize(file.metadata)
            if shape in oversize:
                raise BadInput(path=path, reason=f"the values of its column {shape} are too long to be read")
            read = [name for name in schema.names if name not in oversize]
            rows = _Rows(file, read, shape, column.get("encoding"), path.stat().st_size)
            names = [name for name in read if name != shape]
            reader = Reader(
                rows.blocks(), names, rows.bytes_done, has_shape=bool(shape), srid=lambda: _srid(path, column)
            )
            reader.in_arrow, reader.unread = True, rows.unread
            reader.parts = {
                name: found for name in names if (found := list(_paths(arrow, name, schema.field(name).type)))
            }
            reader.notes += [f"column {name} was not read: its values are too long" for name in oversize]
            yield reader
    except (arrow.ArrowException, OSError) as error:
        raise BadInput(path=path, reason=f"it is not a sound Parquet file: {_one_line(error)}") from error


class _Rows:
    def __init__(self, file: Any, names: list[str], shape: str | None, encoding: str | None, size: int) -> None:
        self._file = file
        self._names = names
        self._shape = shape
        self._encoding = encoding
        self._size = size
        self._done = 0
        self._batch = _rows_at_once(file.metadata)
        self.unread: set[str] = set()

    def bytes_done(self) -> int:
        return int(self._size * self._done / max(self._file.metadata.num_rows, 1))

    def blocks(self) -> Iterator[Block]:
        from callipper_db.read.arrow import ArrowColumns, shapes_of, without_views

        names = [name for name in self._names if name not in self.unread]
        for batch in map(without_views, self._file.iter_batches(self._batch, columns=names)):
            shapes = shapes_of(batch.column(self._shape), self._encoding) if self._shape else None
            self._done += batch.num_rows
            yield Block(self._done - batch.num_rows + 1, ArrowColumns(batch, self._shape), shapes)


def _oversize(metadata: Any) -> list[str]:
    """Columns that would fill the memory: with values of a megabyte or more, or so compressed that they are tiny on disk."""
    found = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for chunk in map(group.column, range(group.num_columns)):
            size = chunk.total_uncompressed_size
            long = size > LONG_VALUE * max(chunk.num_values, 1) or size > PACKED * max(chunk.total_compressed_size, 1)
            many = chunk.num_values > MANY_VALUES and chunk.num_values > LONG_LIST * group.num_rows
            if (size > CHUNK_LIMIT and long) or many:
                found.append(chunk.path_in_schema.split(".")[0])
    return list(dict.fromkeys(found))


def _rows_at_once(metadata: Any) -> int:
    """How many rows fit a batch, by what the metadata says of the columns."""
    rows = BLOCK
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for chunk in map(group.column, range(group.num_columns)):
            rows = min(rows, BATCH_BYTES * group.num_rows // max(chunk.total_uncompressed_size, 1))
            rows = min(rows, BATCH_VALUES * group.num_rows // max(chunk.num_values, 1))
            if _may_repeat_long_values(chunk):
                rows = min(rows, UNKNOWN_ROWS)
    return max(rows, 1)


def _may_repeat_long_values(chunk: Any) -> bool:
    """Texts or bytes in a dictionary, without the statistics that writers leave away where a value is long."""
    if chunk.physical_type != "BYTE_ARRAY" or not any("DICTIONARY" in encoding for encoding in chunk.encodings):
        return False
    known = chunk.statistics if chunk.is_stats_set else None
    if known is None:
        return True
    return not known.has_min_max and (not known.has_null_count or known.null_count < chunk.num_values)


def _geometry(file: Any) -> tuple[str | None, dict[str, Any]]:
    """The geometry column and its `encoding` and `crs`, in GeoParquet's form."""
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
    """The paths inside a nested column; a list of plain values, or a map, has none."""
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
