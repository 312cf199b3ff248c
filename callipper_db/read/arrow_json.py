"""JSON of Arrow's columns without a Python object per value."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from callipper_db.read.arrow import as_text, bytes_of, checked, is_text, plain, storage

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
    if is_text(kind) or as_text(kind):
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


def _where_valid(array: Any, text: str) -> Any:
    return pc.if_else(array.is_valid(), pa.scalar(text), pa.scalar(None, pa.string()))


def _quoted(array: Any, written: Callable[[Any], str]) -> Any:
    texts = array.cast(pa.string()) if as_text(array.type) else checked(array)
    data = bytes_of(texts)
    if len(data.translate(None, ESCAPED)) < len(data):
        return pa.array([None if text is None else written(text) for text in texts.to_pylist()], pa.string())
    return pc.binary_join_element_wise('"', texts, '"', "")


def _objects(array: Any, written: Callable[[Any], str], depth: int) -> Any:
    pieces: list[Any] = []
    for number, field in enumerate(array.type):
        texts = json_texts(pc.struct_field(array, [number]), written, depth + 1)
        pieces += [
            ("," if number else "{") + written(field.name) + ":",
            texts.fill_null("null") if texts.null_count else texts,
        ]
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
    whole: list[Any] = []  # pieces of the members that no row lacks
    others: list[Any] = []  # members with a comma behind them
    for name, texts in columns.items():
        key = f"{json.dumps(name, ensure_ascii=False)}:"
        empty = pc.equal(texts, '""')
        if pc.any(empty).as_py():
            texts = pc.if_else(empty, None, texts)
        if not texts.null_count:
            whole += [f",{key}" if whole else key, texts]
        elif texts.null_count < len(texts):
            others.append((key, texts))
    if not whole and not others:
        return pa.array(["{}"] * rows, pa.string())
    # Not null_handling="skip", which loses rows without members.
    if whole:
        members = [pc.binary_join_element_wise(f",{key}", texts, "") for key, texts in others]
        return pc.binary_join_element_wise("{", *whole, *members, "}", "", null_handling="replace", null_replacement="")
    members = [pc.binary_join_element_wise(key, texts, ",", "") for key, texts in others]
    inside = pc.binary_join_element_wise(*members, "", null_handling="replace", null_replacement="")
    return pc.binary_join_element_wise("{", pc.ascii_rtrim(inside, ","), "}", "")
