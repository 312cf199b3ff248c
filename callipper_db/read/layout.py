"""What the columns of a file mean: a provider's own scheme, and paths into nested columns."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from callipper_db.read.record import Columns

STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
HSTORE = re.compile(r'"((?:[^"\\]|\\.)*)"\s*=>\s*(?:"((?:[^"\\]|\\.)*)"|NULL)')
TEXT_LIMIT = 100_000  # characters of a text that is parsed as JSON


class Derived(NamedTuple):
    """Columns that are made from a file's own columns."""

    columns: Mapping[str, Sequence[Any]]
    left_out: Sequence[str | None] | None = None  # why each row is left out, None to keep it; None: keep all


Derive = Callable[[Mapping[str, Sequence[Any]], int], Derived]  # of columns and their number of rows


@dataclass(frozen=True)
class Layout:
    """A provider's scheme."""

    provider: str
    columns: Columns  # which column, derived or the file's own, plays which part; None: found by its usual name
    derive: Derive
    hidden: frozenset[str] = frozenset()  # columns that are no attributes, because derived columns hold their content
    unread: frozenset[str] = frozenset()  # hidden columns from which nothing is derived


class Field(NamedTuple):
    """A column, or something inside a nested one."""

    column: str
    steps: tuple[str | int, ...] = ()


def find_field(names: Iterable[str], path: str) -> Field | None:
    """The field that `path` names: a column, in any case, or a path into a column: names.primary, tags[0]."""
    by_lower = {name.lower(): name for name in reversed(list(names))}
    if path in by_lower.values():
        return Field(path)
    if path.lower() in by_lower:
        return Field(by_lower[path.lower()])
    for cut in sorted((match.start() for match in re.finditer(r"[.\[]", path)), reverse=True):
        column = by_lower.get(path[:cut].lower())
        steps = STEP.findall(path[cut:])
        whole = "".join(f".{key}" if key else f"[{index}]" for key, index in steps)
        if column is not None and steps and whole == path[cut:]:
            return Field(column, tuple(key or int(index) for key, index in steps))
    return None


def value_at(value: Any, steps: Sequence[str | int]) -> Any:
    """The value at the end of `steps` inside a dictionary, list, list of pairs, or a text with one of these; or None."""
    for step in steps:
        value = parsed(value) if isinstance(value, str) else value
        if isinstance(step, int):
            value = value[step] if isinstance(value, (list, tuple)) and step < len(value) else None
        elif isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list):  # pairs of a map; or records, of which the first with the key counts
            found = (item[1] for item in value if isinstance(item, tuple) and len(item) == 2 and item[0] == step)
            inside = (item[step] for item in value if isinstance(item, dict) and item.get(step) is not None)
            value = next(found, None) if any(isinstance(item, tuple) for item in value) else next(inside, None)
        else:
            return None
    return value


def column_at(columns: Mapping[str, Sequence[Any]], path: str, rows: int) -> Sequence[Any]:
    """The column at a path, also inside of dictionaries; None in each row where there is no such thing."""
    if path in columns:
        return columns[path]
    first, *steps = path.split(".")
    return [value_at(value, steps) for value in columns[first]] if first in columns else [None] * rows


def texts_at(columns: Mapping[str, Sequence[Any]], path: str, rows: int) -> Sequence[Any]:
    """The same for a column of texts: None where something else stands there, as JSON may have it."""
    column = column_at(columns, path, rows)
    if getattr(column, "holds_text", False):
        return column  # Arrow's, whose type is known
    return [value if isinstance(value, str) else None for value in column]


def parsed(text: str) -> Any:
    """A dictionary or list that is written as JSON, hstore or as Python shows it; None for other texts."""
    text = text.strip()
    if len(text) > TEXT_LIMIT:
        return None
    if text.startswith('"') and (pairs := HSTORE.findall(text)):
        return {_unescaped(key): _unescaped(value) for key, value in pairs}
    if not text.startswith(("{", "[")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    return found if isinstance(found, (dict, list)) else None


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)
