"""Converts many rows to places at once. Rules.place does the same row by row, for blocks with a row that needs it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from callipper_db.arrays import Array
from callipper_db.read.place import (
    ATTRIBUTES_LIMIT,
    DESCRIPTION_LIMIT,
    ID_LIMIT,
    NAME_LIMIT,
    NOTHING,
    Rules,
    made_id,
    text_of,
    to_json,
    with_point,
    words_of,
)
from callipper_db.read.record import BAD_BYTE, Block, mapped

DECIMAL = frozenset("0123456789+-. ")  # characters that PostgreSQL and Python read alike
NUMBER_LIMIT = 40  # characters; longer ones may underflow

DELIMITER, QUOTE = "\x1f", "\x01"
COPY_FORMAT = "(FORMAT csv, DELIMITER E'\\x1f', QUOTE E'\\x01')"

SPECIAL = re.compile(f"[{DELIMITER}{QUOTE}\r\n]")

Texts = Sequence[str | None]


class Coordinates(NamedTuple):
    written: Sequence[Any] | Array  # for COPY as text
    values: Sequence[float] | Array


def csv_of(rows: Iterable[Sequence[Any]]) -> str:
    """CSV as COPY_FORMAT has it: None is an empty field.

    The delimiter and the quote are characters that texts hardly ever contain. So nearly all rows are joined without looking at
    their characters, and the quotes of JSON are not doubled.
    """
    texts = [["" if value is None else str(value) for value in row] for row in rows]
    text = "".join([DELIMITER.join(fields) + "\n" for fields in texts])
    plain = text.count(DELIMITER) == sum(map(len, texts)) - len(texts) and text.count("\n") == len(texts)
    if plain and QUOTE not in text and "\r" not in text:
        return text
    return "".join([DELIMITER.join(map(_quoted, fields)) + "\n" for fields in texts])


def _quoted(field: str) -> str:
    if not SPECIAL.search(field):
        return field
    return f"{QUOTE}{field.replace(QUOTE, 2 * QUOTE)}{QUOTE}"


class Parts(NamedTuple):
    """The columns of a block's places, without the attributes."""

    sources: Sequence[str]
    ids: Sequence[str]
    name: Texts
    category: Texts
    group: Texts
    description: Texts
    x: Coordinates
    y: Coordinates


def bulk_csv(block: Block, rules: Rules) -> str | None:
    """The rows of a prepared block for COPY; None: some row needs Rules.place."""
    if not len(block):
        return ""
    parts = parts_of(block, rules)
    attributes = _attributes(block, rules) if parts else []
    if parts is None or _longest(attributes) > ATTRIBUTES_LIMIT:
        return None
    *texts, x, y = parts
    columns: list[Any] = [block.rows, *texts, x.written, y.written, [None] * len(block), attributes]
    text = csv_of(zip(*columns, strict=True))
    return None if "\0" in text or "\\u0000" in text or BAD_BYTE in text or NESTED in text else text


def parts_of(block: Block, rules: Rules) -> Parts | None:
    """The parts of a prepared block's places; None: some row needs Rules.place."""
    x, y = _coordinates(block, rules)
    name, category, group, description, source, identity = (_texts(block, rules, part) for part in PARTS)
    if x is None or y is None or not _sound(rules, name, category, group, description):
        return None
    sources = [value or rules.source for value in source]
    if None in identity:
        made = zip(name, category, description, x.values, y.values, [None] * len(block), strict=True)
        identity = [value or made_id(*parts) for value, parts in zip(identity, made, strict=True)]
    ids = cast(Sequence[str], identity)
    if _longest(sources, ids) > ID_LIMIT:
        return None
    return Parts(sources, ids, name, category, group, description, x, y)


PARTS = ("name", "category", "group", "description", "source", "id")
NESTED = "[[[["  # perhaps nested too deeply: Rules.place counts


def _texts(block: Block, rules: Rules, part: str) -> Texts:
    name = getattr(rules.columns, part)
    if name is None or (part == "source" and not rules.any_source):
        return [None] * len(block)
    column = block.columns.get(name)
    if column is None:
        return [None] * len(block)
    if part == "category":
        return mapped(column, words_of)
    if (strip := getattr(column, "stripped", None)) and (stripped := strip(NOTHING if part == "name" else frozenset())):
        return cast(Texts, stripped)
    try:
        texts = [value.strip() or None for value in column]
    except AttributeError:
        texts = [text_of(value) for value in column]
    if part == "name" and not NOTHING.isdisjoint(texts):
        return [None if text in NOTHING else text for text in texts]
    return texts


def _sound(rules: Rules, name: Texts, category: Texts, group: Texts, description: Texts) -> bool:
    """Has every row a category (or a name, if the file has no categories), and is no text too long?"""
    needed = category if rules.columns.category else name
    short = _longest(name, category, group) <= NAME_LIMIT and _longest(description) <= DESCRIPTION_LIMIT
    return short and None not in needed


def _longest(*columns: Sequence[str | None]) -> int:
    lengths = [getattr(column, "longest", None) for column in columns]
    return max(
        longest() if longest else max(map(len, filter(None, column)), default=0)
        for longest, column in zip(lengths, columns, strict=True)
    )


def _coordinates(block: Block, rules: Rules) -> tuple[Coordinates | None, Coordinates | None]:
    columns = rules.columns
    if columns.lon and columns.lat:
        pair: Sequence[Sequence[Any] | Array] = (block.columns[columns.lon], block.columns[columns.lat])
    elif (points := getattr(block.shapes, "points", None)) is not None:  # WKB in a column of Arrow
        pair = points
    elif block.shapes and all(isinstance(shape, tuple) for shape in block.shapes):
        pair = list(zip(*block.shapes, strict=True))
    else:
        return None, None
    x, y = pair
    if rules.decimal == ",":
        x, y = (list(map(with_point, column)) if set(map(type, column)) == {str} else column for column in (x, y))
    return _numbers(x, 180 if rules.degrees else math.inf), _numbers(y, 90 if rules.degrees else math.inf)


def _numbers(column: Sequence[Any] | Array, bound: float) -> Coordinates | None:
    """Finite numbers within the bound, as floats or as decimal text; None if one is not."""
    if isinstance(column, np.ndarray):
        sound = np.isfinite(column).all() and (np.abs(column) <= bound).all()
        return Coordinates(column, column) if sound else None
    try:
        values = list(map(float, column))
    except (TypeError, ValueError, OverflowError):
        return None
    if not all(map(math.isfinite, values)) or min(values) < -bound or max(values) > bound:
        return None
    kinds = set(map(type, column))
    if kinds <= {float, int}:
        return Coordinates(values, values)
    if kinds == {str} and "_" not in (text := "".join(column)):
        plain = DECIMAL.issuperset(text) and max(map(len, column)) <= NUMBER_LIMIT
        return Coordinates(column if plain else values, values)
    return None


def _attributes(block: Block, rules: Rules) -> list[str]:
    """JSON objects of the columns that play no part, joined from pieces."""
    pieces = [_members(name, column) for name, column in block.columns.items() if name not in rules.used]
    return (
        ["{" + "".join(members)[:-1] + "}" for members in zip(*pieces, strict=True)] if pieces else ["{}"] * len(block)
    )


def _members(name: str, column: Sequence[Any]) -> list[str]:
    key = json.dumps(name, ensure_ascii=False)
    if set(map(type, column)) <= {str}:
        return [f"{key}:{_quote(value)}," if value else "" for value in column]
    return ["" if value is None or value == "" else f"{key}:{json_of(value)}," for value in column]


_quote = json.encoder.encode_basestring


def json_of(value: Any) -> str:
    """As to_json, in a quarter of its time for small values, because the json module makes an encoder for each."""
    kind = type(value)
    if kind is str:
        return _quote(value)
    if kind is list:
        return f"[{','.join(map(json_of, value))}]"
    if kind is dict and all(type(key) is str for key in value):
        return f"{{{','.join([f'{_quote(key)}:{json_of(item)}' for key, item in value.items()])}}}"
    if kind is int:
        return str(value)
    if kind is float and math.isfinite(value):
        return float.__repr__(value)
    return "null" if value is None else to_json(value)
