"""Parquet and GeoParquet, a batch of rows at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from callipper_db.errors import BadInput
from callipper_db.read.record import BAD_BYTE, BLOCK, Block, Reader, require

FEATURE = "Reading Parquet"
WKB_POINT = struct.Struct("<BIdd")


@contextmanager
def open_parquet(path: Path) -> Iterator[Reader]:
    """The geometry column that the metadata `geo` names is the shape; its CRS there is the SRID."""
    arrow, parquet = require("pyarrow", FEATURE), require("pyarrow.parquet", FEATURE)
    try:
        # Without these a whole column chunk, up to all rows of the file, would lie in memory.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            geo = _geo(file.schema_arrow.metadata or {})
            shape = geo.get("primary_column")
            shape = shape if shape in file.schema_arrow.names else None
            rows = _Rows(arrow, file, shape, path.stat().st_size)
            names = [name for name in file.schema_arrow.names if name != shape]
            column = geo["columns"][shape] if shape else {}
            yield Reader(rows.blocks(), names, rows.bytes_done, has_shape=bool(shape), srid=lambda: _srid(path, column))
    except (arrow.ArrowException, OSError) as error:
        raise BadInput(path=path, reason=f"it is not a sound Parquet file: {_one_line(error)}") from error


class _Rows:
    def __init__(self, arrow: Any, file: Any, shape: str | None, size: int) -> None:
        self._arrow = arrow
        self._file = file
        self._shape = shape
        self._size = size
        self._done = 0

    def bytes_done(self) -> int:
        return int(self._size * self._done / max(self._file.metadata.num_rows, 1))

    def blocks(self) -> Iterator[Block]:
        for batch in self._file.iter_batches(BLOCK):
            names = batch.schema.names
            columns: dict[str, Sequence[Any]] = {name: _plain(self._arrow, batch.column(name)) for name in names}
            shapes = [_point(wkb) for wkb in columns.pop(self._shape)] if self._shape else None
            self._done += batch.num_rows
            yield Block(self._done - batch.num_rows + 1, columns, shapes)


def _plain(arrow: Any, column: Any) -> list[Any]:
    """A column as Python values: moments as text, text with its bad bytes marked."""
    kind = column.type
    if arrow.types.is_temporal(kind) and not arrow.types.is_duration(kind):
        column = column.cast(arrow.string())
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        large = arrow.types.is_large_string(kind)
        values = column.cast(arrow.large_binary() if large else arrow.binary()).to_pylist()
        values = [value if value is None else value.decode(errors="callipper-mark") for value in values]
    return values


def _point(wkb: Any) -> Any:
    """(x, y) of a two-dimensional little-endian point, hex of any other WKB."""
    if not isinstance(wkb, bytes):
        return None
    if len(wkb) == WKB_POINT.size and wkb[:5] == b"\x01\x01\x00\x00\x00":
        return WKB_POINT.unpack(wkb)[2:]
    return wkb.hex()


def _geo(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    try:
        geo = json.loads(metadata.get(b"geo", b"{}"))
    except ValueError:
        return {}
    columns = geo.get("columns") if isinstance(geo, dict) else None
    return geo if isinstance(columns, dict) and geo.get("primary_column") in columns else {}


def _srid(path: Path, column: dict[str, Any]) -> int | None:
    """The SRID of a GeoParquet column: no `crs` means longitude and latitude, null an unknown one."""
    crs = column.get("crs")
    if crs is None:
        return None
    identity = crs.get("id", {}) if isinstance(crs, dict) else {}
    if identity.get("authority") == "OGC" and str(identity.get("code")) == "CRS84":
        return 4326
    if identity.get("authority") in {"EPSG", "ESRI"} and str(identity.get("code")).isdigit():
        return int(identity["code"])
    raise BadInput(path=path, reason="the CRS in its metadata has no EPSG code; give it with --srid")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".").replace(BAD_BYTE, "?")
