"""Overture Maps places: https://docs.overturemaps.org/schema/reference/places/place/"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from callipper_db.read.layout import Derived, Layout, column_at, texts_at
from callipper_db.read.record import Columns, Reader, mapped

CLOSED = "permanently_closed"
PERMANENTLY_CLOSED = "permanently closed"
LOW_CONFIDENCE = "confidence below --min-confidence"
UNCATEGORISED = "no category"
# The columns with the category, the most exact first. Releases with `taxonomy` will soon drop `categories`.
CATEGORY = ("taxonomy.primary", "basic_category", "categories.primary")
GROUP = ("taxonomy.hierarchy", "categories.hierarchy")
ALTERNATES = ("taxonomy.alternates", "categories.alternate")
# Kept unchanged as attributes. `sources`, `bbox`, `version` and the rules of names are not kept.
KEPT = ("confidence", "websites", "socials", "emails", "phones", "addresses", "operating_status")
UNREAD = frozenset({"sources", "bbox", "version", "theme", "type", "update_time"})


def recognise(reader: Reader) -> bool:
    """Is this a release of places, with nested names and one of the schema's category columns?"""
    inside = {path for paths in reader.parts.values() for path in paths}
    names = inside | set(reader.names)
    return "id" in names and "names.primary" in names and any(path in names for path in CATEGORY)


def layout(reader: Reader, min_confidence: float | None) -> Layout:
    """Names, categories as words, and other useful attributes. Closed places are left out."""
    inside = {path for paths in reader.parts.values() for path in paths} | set(reader.names)
    has_group = any(path in inside for path in GROUP)

    def derive(columns: Mapping[str, Sequence[Any]], rows: int) -> Derived:
        return _derive(columns, rows, inside, min_confidence)

    columns = Columns(id="id", name="names.primary", category="@category", group="@group" if has_group else None)
    return Layout("Overture places", columns, derive, frozenset(reader.names) - set(KEPT), UNREAD)


def humane(category: str | None) -> str | None:
    """'fast_food_restaurant' as 'fast food restaurant'."""
    return category.replace("_", " ").strip() or None if category else None


def _derive(columns: Mapping[str, Sequence[Any]], rows: int, inside: set[str], min_confidence: float | None) -> Derived:
    """inside: the paths that the file has, of which JSON may lack some in any row."""

    def column(path: str) -> Sequence[Any]:
        return column_at(columns, path, rows) if path in inside else [None] * rows

    first_path, *more = filter(inside.__contains__, CATEGORY)
    category = texts_at(columns, first_path, rows)
    for path in more:
        if None in category:
            category = [first or second for first, second in zip(category, texts_at(columns, path, rows), strict=True)]
    for path in ALTERNATES:
        if path in inside and None in category:
            category = [first or _first(listed) for first, listed in zip(category, column(path), strict=True)]
    derived: dict[str, Sequence[Any]] = {
        "names.primary": texts_at(columns, "names.primary", rows),
        "@category": mapped(category, humane),
        "names": _common_names(column("names.common")),
        "alternate_categories": next((column(path) for path in ALTERNATES if path in inside), [None] * rows),
        "brand": column("brand.names.primary"),
        "brand_wikidata": column("brand.wikidata"),
    }
    for path in GROUP:
        if path in inside:
            derived["@group"] = mapped(_first_of_each(column(path)), humane)
            break
    if min_confidence is None and CLOSED not in column("operating_status") and None not in category:
        return Derived(derived)
    left_out = [
        PERMANENTLY_CLOSED if status == CLOSED else None if kind else UNCATEGORISED
        for status, kind in zip(column("operating_status"), category, strict=True)
    ]
    if min_confidence is not None:
        left_out = [
            reason or (None if _sureness(sure) >= min_confidence else LOW_CONFIDENCE)
            for reason, sure in zip(left_out, column("confidence"), strict=True)
        ]
    return Derived(derived, left_out)


def _first_of_each(lists: Sequence[Any]) -> Sequence[Any]:
    """The first text of each list. A column of Arrow stays one, unless a list begins with nothing."""
    of_arrow = getattr(lists, "first_texts", None)
    return (of_arrow() if of_arrow else None) or [_first(listed) for listed in lists]


def _first(listed: Any) -> str | None:
    """The first text of a list."""
    found = next(filter(None, listed), None) if isinstance(listed, list) else None
    return found if isinstance(found, str) else None


def _sureness(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return -1.0


def _common_names(names: Sequence[Any]) -> Sequence[Any]:
    """Names by language, from the pairs that a map is read as."""
    if getattr(names, "is_empty", False) or not any(names):
        return names
    return [_dictionary(pairs) if isinstance(pairs, list) else pairs or None for pairs in names]


def _dictionary(pairs: list[Any]) -> dict[Any, Any]:
    whole = (pair for pair in pairs if isinstance(pair, (tuple, list)) and len(pair) == 2)
    return {str(language): name for language, name in whole}
