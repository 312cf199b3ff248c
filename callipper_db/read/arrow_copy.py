"""Places in Arrow's columns as binary COPY data, made by Arrow with hardly any Python objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from callipper_db.arrays import Array
from callipper_db.read.arrow import ArrowColumn, bytes_of
from callipper_db.read.arrow_json import json_objects, json_texts
from callipper_db.read.bulk import NESTED, json_of, parts_of
from callipper_db.read.place import ATTRIBUTES_LIMIT, Place, Rules
from callipper_db.read.record import BAD_BYTE, Block

FIELDS = 11  # of a place
HEAD = np.dtype([("fields", ">i2"), ("length", ">i4"), ("row", ">i8")])
FLOAT = np.dtype([("length", ">i4"), ("value", ">f8")])
NULL = b"\xff\xff\xff\xff"  # the length -1
JSONB = b"\x01"  # the version of jsonb's format on the wire


def bulk_binary(block: Block, rules: Rules) -> bytes | None:
    """The rows of a prepared block for COPY; None: some row needs Rules.place."""
    if not len(block):
        return b""
    try:
        parts = parts_of(block, rules)
        if parts is None:
            return None
        *lists, x, y = parts
        columns = {name: _json(column) for name, column in block.columns.items() if name not in rules.used}
        texts = [_text(values) for values in lists]
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    attributes = json_objects(columns, len(block))
    if pc.max(pc.utf8_length(attributes)).as_py() > ATTRIBUTES_LIMIT or _holds(attributes, b"\\u0000", NESTED.encode()):
        return None
    if any(_holds(array, b"\0", BAD_BYTE.encode()) for array in [*texts, attributes]):
        return None
    return _rows(block.rows, texts, [x.values, y.values], pa.nulls(len(block), pa.binary()), attributes)


def binary_of(places: Sequence[Place]) -> bytes:
    """The same for places that were converted one by one."""
    if not places:
        return b""
    rows, *texts, x, y, shapes, attributes = zip(*places, strict=True)
    arrays = [pa.array(values, pa.string()) for values in (*texts, shapes, attributes)]
    *leading, shape, objects = arrays
    return _rows(rows, leading, [x, y], shape.cast(pa.binary()), objects)


def _json(column: Sequence[Any]) -> Any:
    if isinstance(column, ArrowColumn):
        return json_texts(column.arrow, json_of)
    texts = [None if value is None or value == "" else json_of(value) for value in column]
    return pa.array(texts, pa.string())


def _text(values: Sequence[str | None]) -> Any:
    return values.arrow if isinstance(values, ArrowColumn) else pa.array(values, pa.string())


def _holds(array: Any, *texts: bytes) -> bool:
    """Is one of the texts in the array? Their first byte is looked for first, which takes a tenth of the time."""
    found = bytes_of(array)
    return any(text[:1] in found and text in found for text in texts)


def _rows(
    rows: Sequence[int],
    texts: Sequence[Any],
    numbers: Sequence[Sequence[float | None] | Array],
    shape: Any,
    attributes: Any,
) -> bytes:
    head = np.empty(len(rows), HEAD)
    head["fields"], head["length"], head["row"] = FIELDS, 8, rows
    pieces = [_fixed(head)]
    for array in texts:
        pieces += _field(array)
    for values in numbers:
        pieces += _float_field(values)
    pieces += [*_field(shape), _lengths(attributes, len(JSONB)), pa.scalar(JSONB), attributes.cast(pa.binary())]
    joined = pc.binary_join_element_wise(*pieces, b"", null_handling="replace", null_replacement=b"")
    return bytes_of(joined)


def _field(array: Any) -> list[Any]:
    """The pieces of a field of text: lengths and values."""
    if array.null_count == len(array):
        return [pa.scalar(NULL)]
    return [_lengths(array), array.cast(pa.binary())]


def _float_field(values: Sequence[float | None] | Array) -> list[Any]:
    """The same of float8."""
    array = pa.array(values, pa.float64())
    field = np.empty(len(array), FLOAT)
    field["length"], field["value"] = 8, np.asarray(array.fill_null(0))
    binary = _fixed(field)
    return [pc.if_else(array.is_valid(), binary, pa.scalar(NULL)) if array.null_count else binary]


def _lengths(array: Any, more: int = 0) -> Any:
    """The length before each value; -1 before null, which has none."""
    lengths = pc.add(pc.binary_length(array), more).fill_null(-1)
    return _fixed(np.asarray(lengths).astype(">i4"))


def _fixed(numbers: Array) -> Any:
    kind = pa.binary(numbers.dtype.itemsize)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers.tobytes())]).cast(
        pa.binary()
    )
