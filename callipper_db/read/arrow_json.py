"""JSON of Arrow's columns without a Python object per value."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from callipper_db.read.arrow import as_text, bytes_of, plain, storage

DEEP = 20  # levels of nesting; a deeper value is written by itself
ESCAPED = bytes(range(32)) + b'"\\'


def json_texts(array: Any, written: Callable[[Any], str], depth: int = 0) -> Any:
    """The values of an array as JSON, null where they are null.

    `written` writes values of types that this module does not know. Raises ArrowInvalid for text that is not UTF-8.
    """
    array = storage(array)
    kind = array.type
    if pa.types.is_dictionary(kind):
        return json_texts(array.dictionary_decode(), written, depth)
    if pa.types.is_null(kind):
        return pa.nulls(len(array), pa.string())
    if _is_text(kind) or as_text(kind):
        return _quoted(array, written)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return array.cast(pa.string())
    if pa.types.is_floating(kind):
        numbers = array.cast(pa.float64())
        return pc.if_else(pc.is_finite(numbers), numbers.cast(pa.string()), _where_valid(array, "null"))
    if pa.types.is_struct(kind) and depth < DEEP and kind.num_fields:
        return _objects(array, written, depth)
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and depth < DEEP:
        return _lists(array, written, depth)
    return pa.array([None if value is None else written(value) for value in plain(array)], pa.string())


def _is_text(kind: Any) -> bool:
    return any(getattr(pa.types, test)(kind) for test in ("is_string", "is_large_string", "is_string_view"))


def _where_valid(array: Any, text: str) -> Any:
    return pc.if_else(array.is_valid(), pa.scalar(text), pa.scalar(None, pa.string()))


def _quoted(array: Any, written: Callable[[Any], str]) -> Any:
    # Arrow does not check the texts of a file, but it checks bytes that it converts to text.
    texts = array.cast(pa.string()) if as_text(array.type) else array.cast(pa.binary()).cast(pa.string())
    data = bytes_of(texts)
    if len(data.translate(None, ESCAPED)) < len(data):
        return pa.array([None if text is None else written(text) for text in texts.to_pylist()], pa.string())
    return pc.binary_join_element_wise('"', texts, '"', "")


def _objects(array: Any, written: Callable[[Any], str], depth: int) -> Any:
    pieces: list[Any] = []
    for number, field in enumerate(array.type):
        texts = json_texts(pc.struct_field(array, [number]), written, depth + 1)
        pieces += [("," if number else "{") + written(field.name) + ":", texts.fill_null("null")]
    texts = pc.binary_join_element_wise(*pieces, "}", "")
    return pc.if_else(array.is_valid(), texts, pa.scalar(None, pa.string())) if array.null_count else texts


def _lists(array: Any, written: Callable[[Any], str], depth: int) -> Any:
    items = json_texts(pc.list_flatten(array), written, depth + 1).fill_null("null")
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(array) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), items), ",")
    texts = pc.binary_join_element_wise("[", joined, "]", "")
    return pc.if_else(array.is_valid(), texts, pa.scalar(None, pa.string())) if array.null_count else texts


def json_objects(columns: Mapping[str, Any], rows: int) -> Any:
    """One JSON object per row, from columns of JSON. Nulls and empty texts are left out."""
    if not columns:
        return pa.array(["{}"] * rows, pa.string())
    members = [
        pc.binary_join_element_wise(
            f"{json.dumps(name, ensure_ascii=False)}:", pc.if_else(pc.equal(texts, '""'), None, texts), ",", ""
        )
        for name, texts in columns.items()
    ]
    # Not null_handling="skip", which loses rows without members.
    inside = pc.binary_join_element_wise(*members, "", null_handling="replace", null_replacement="")
    return pc.binary_join_element_wise("{", pc.ascii_rtrim(inside, ","), "}", "")
