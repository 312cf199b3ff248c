"""Columns of Arrow that look like those of the other readers: Python values, made on demand. Needs the extra `geo`."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from callipper_db.arrays import Array
from callipper_db.read.record import mapped

WHITE_SPACE = "".join(filter(str.isspace, map(chr, range(sys.maxunicode + 1))))  # what str.strip takes away
WKB_POINT = struct.Struct("<BIdd")
# The first bytes of a WKB point and its length: 2D, 3D by ISO, 3D by PostGIS.
WKB_POINTS = {(b"\x01\x01\0\0\0", 21), (b"\x01\xe9\x03\0\0", 29), (b"\x01\x01\0\0\x80", 29)}
GEOJSON_TYPES = {
    "point": "Point",
    "linestring": "LineString",
    "polygon": "Polygon",
    "multipoint": "MultiPoint",
    "multilinestring": "MultiLineString",
    "multipolygon": "MultiPolygon",
}


class ArrowColumn(Sequence[Any]):
    """A column of a batch. `arrow` is the array; as Python values it is a list, made once."""

    def __init__(self, array: Any) -> None:
        self.arrow = array

    @cached_property
    def values(self) -> list[Any]:
        return plain(self.arrow)

    def __getitem__(self, index: Any) -> Any:
        return self.values[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __contains__(self, value: object) -> bool:
        if value is None:
            return bool(self.arrow.null_count)
        if is_text(self.arrow.type) and isinstance(value, str):
            return bool(pc.any(pc.equal(self.texts, value)).as_py())
        return value in self.values

    def __len__(self) -> int:
        return len(self.arrow)

    def keep(self, chosen: Sequence[bool]) -> ArrowColumn:
        """Only the chosen rows."""
        return type(self)(self.arrow.filter(pa.array(chosen)))

    @cached_property
    def texts(self) -> Any:
        """Texts, or whole numbers as texts, as Arrow's strings; None of any other type."""
        if pa.types.is_string(self.arrow.type):
            return self.arrow
        return (
            self.arrow.cast(pa.string()) if is_text(self.arrow.type) or pa.types.is_integer(self.arrow.type) else None
        )

    @property
    def holds_text(self) -> bool:
        """Is each value a text or null?"""
        return is_text(self.arrow.type)

    @property
    def is_empty(self) -> bool:
        """Has no row a value?"""
        return bool(self.arrow.null_count == len(self.arrow))

    def mapped(self, function: Callable[[Any], Any]) -> Sequence[Any]:
        """See record.mapped; the function makes texts or None."""
        if not is_text(self.arrow.type):
            return mapped(self.values, function)
        coded = self.texts.dictionary_encode()
        return ArrowColumn(pa.array(map(function, plain(coded.dictionary)), pa.string()).take(coded.indices))

    def stripped(self, nothing: frozenset[str]) -> ArrowColumn | None:
        """`texts` without white space at their ends, null where one is empty or one of `nothing`.

        Raises ArrowInvalid for text that is not UTF-8.
        """
        if self.texts is None:
            return None
        texts = pc.utf8_trim(checked(self.texts), characters=WHITE_SPACE)
        empty = pc.is_in(texts, pa.array(["", *nothing]))
        return ArrowColumn(pc.if_else(empty, None, texts) if pc.any(empty).as_py() else texts)

    def first_texts(self) -> ArrowColumn | None:
        """The first text of each list, null for no list and an empty one; None if a list begins with something else."""
        kind = self.arrow.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not is_text(kind.value_type):
            return None
        filled = pc.greater(pc.list_value_length(self.arrow), 0).fill_null(False)
        first = self.arrow.values.take(pc.if_else(filled, self.arrow.offsets[:-1], None))
        told = pc.and_(first.is_valid(), pc.not_equal(first, "")).fill_null(False)
        return ArrowColumn(first) if told.equals(filled) else None

    def longest(self) -> int:
        """Characters of the longest text."""
        return pc.max(pc.utf8_length(self.arrow)).as_py() or 0


class WkbColumn(ArrowColumn):
    """A column of WKB; the values are (x, y) of points, and hex of anything else."""

    @cached_property
    def values(self) -> list[Any]:
        points = self.points
        return [*map(_point, plain(self.arrow))] if points is None else list(zip(*map(list, points), strict=True))

    @cached_property
    def points(self) -> tuple[Array, Array] | None:
        """x and y, each (N,), if all rows are little-endian points of the same dimensions."""
        wide = pa.types.is_large_binary(self.arrow.type)
        if self.arrow.null_count or not len(self.arrow) or not (wide or pa.types.is_binary(self.arrow.type)):
            return None
        _, offsets, data = self.arrow.buffers()
        start, end = self.arrow.offset, self.arrow.offset + len(self.arrow) + 1
        ends = np.frombuffer(offsets, np.int64 if wide else np.int32, end)[start:]
        length = int(ends[1] - ends[0])
        if length not in {size for _, size in WKB_POINTS} or (np.diff(ends) != length).any():
            return None
        rows = np.frombuffer(data, np.uint8, len(self.arrow) * length, ends[0]).reshape(-1, length)
        if (rows[:, :5] != rows[0, :5]).any() or (rows[0, :5].tobytes(), length) not in WKB_POINTS:
            return None
        xy = np.ascontiguousarray(rows[:, 5:21]).view("<f8")
        return xy[:, 0], xy[:, 1]


class ArrowColumns(Mapping[str, Sequence[Any]]):
    """The columns of a batch. A path (names.primary) names a nested one."""

    def __init__(self, batch: Any, without: str | None = None) -> None:
        self._batch = batch
        self._names = [name for name in batch.schema.names if name != without]
        self._without = without
        self._made: dict[str, ArrowColumn] = {}

    def __getitem__(self, name: str) -> ArrowColumn:
        if name not in self._made:
            self._made[name] = ArrowColumn(self._array(name))
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        try:
            self._array(str(name))
        except KeyError:
            return False
        return True

    def keep(self, chosen: Sequence[bool]) -> ArrowColumns:
        """Only the chosen rows."""
        return ArrowColumns(self._batch.filter(pa.array(chosen)), self._without)

    def _array(self, name: str) -> Any:
        if name in self._names:
            return self._batch.column(name)
        first, *steps = name.split(".")
        if first not in self._names:
            raise KeyError(name)
        array = self._batch.column(first)
        for step in steps:
            if not pa.types.is_struct(array.type) or array.type.get_field_index(step) < 0:
                raise KeyError(name)
            array = pc.struct_field(array, step)
        return array


def plain(array: Any) -> list[Any]:
    """Python values: dates and times as text, and text with its bad bytes marked."""
    array = storage(array)
    if (readable := _retyped(array.type, _read_as)) != array.type:
        array = array.cast(readable)
    try:
        values: list[Any] = array.to_pylist()
    except UnicodeDecodeError:
        large = pa.types.is_large_string(array.type)
        values = array.cast(pa.large_binary() if large else pa.binary()).to_pylist()
        values = [value if value is None else value.decode(errors="callipper-mark") for value in values]
    return values


def bytes_of(array: Any) -> bytes:
    """The bytes of all texts of a string array, one after the other."""
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int32, array.offset + len(array) + 1)
    return bytes(data[ends[array.offset] : ends[-1]]) if data else b""


def is_text(kind: Any) -> bool:
    """Is it a type of texts?"""
    return any(getattr(pa.types, test)(kind) for test in ("is_string", "is_large_string", "is_string_view"))


def checked(texts: Any) -> Any:
    """The same texts. Raises ArrowInvalid if one is not UTF-8: Arrow does not check the texts of a file."""
    return texts.cast(pa.binary()).cast(pa.string())


def storage(array: Any) -> Any:
    """An array of an extension type as the type that it is stored as; others as they are."""
    return array.storage if isinstance(array.type, pa.BaseExtensionType) else array


def as_text(kind: Any) -> bool:
    """Is it a date or time, which is read as text?"""
    return pa.types.is_temporal(kind) and not pa.types.is_duration(kind)


def without_views(batch: Any) -> Any:
    """A batch with plain texts and bytes instead of views of them, which hardly any function of Arrow takes."""
    schema = pa.schema([field.with_type(_retyped(field.type, _without_view)) for field in batch.schema])
    return batch if schema.equals(batch.schema) else batch.cast(schema)


def _retyped(kind: Any, change: Callable[[Any], Any]) -> Any:
    """The type with changed types, also inside lists and structs."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return (pa.list_ if pa.types.is_list(kind) else pa.large_list)(_retyped(kind.value_type, change))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _retyped(field.type, change)) for field in kind])
    return change(kind)


def _read_as(kind: Any) -> Any:
    """Text for dates and times, because Python has no nanoseconds."""
    return pa.string() if as_text(kind) else kind


def _without_view(kind: Any) -> Any:
    return pa.string() if pa.types.is_string_view(kind) else pa.binary() if pa.types.is_binary_view(kind) else kind


def shapes_of(array: Any, encoding: str | None) -> Sequence[Any]:
    """Each row's shape, (x, y), hex of WKB, or GeoJSON, of a column of WKB or of GeoArrow's own encodings."""
    array = storage(array)
    if encoding in {None, "WKB"} or _is_bytes(array.type):
        return WkbColumn(array)
    if encoding == "point" and pa.types.is_struct(array.type):
        x, y = (pc.struct_field(array, axis).to_pylist() for axis in ("x", "y"))
        return [None if a is None else (a, b) for a, b in zip(x, y, strict=True)]
    kind = GEOJSON_TYPES.get(encoding or "")
    return [_as_geojson(kind, value) for value in array.to_pylist()]


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


def _is_bytes(kind: Any) -> bool:
    tests = ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view")
    return any(getattr(pa.types, test)(kind) for test in tests)


def _point(wkb: Any) -> Any:
    """(x, y) of a little-endian point, hex of any other WKB."""
    if not isinstance(wkb, bytes):
        return None
    if (wkb[:5], len(wkb)) in WKB_POINTS:
        return WKB_POINT.unpack_from(wkb)[2:]
    return wkb.hex()
