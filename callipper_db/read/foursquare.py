"""Foursquare Open Source Places: https://docs.foursquare.com/data-products/docs/places-os-data-schema"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from callipper_db.read.layout import Derived, Layout, column_at, parsed
from callipper_db.read.record import Columns, Reader

ID, LABELS = "fsq_place_id", "fsq_category_labels"
NEXT_LABEL = re.compile(r",\s*(?=[^,>]+ > )")  # in "[Retail > Shop, Event > Market]", as DuckDB writes a list into CSV
PART = re.compile(r"\s*>\s*")  # 'Dining and Drinking > Restaurant > Pizzeria'
CLOSED = "closed (date_closed)"
NOT_A_PLACE = "closed, gone or no place (unresolved_flags)"
UNRESOLVED = {"closed", "delete", "deleted", "doesnt_exist", "duplicate", "inappropriate", "privatevenue"}
UNCATEGORISED = "no category"
NOWHERE = "no coordinates"
# In attributes the same again: places as WKB, boxes, what the categories' numbers are, when the row was written.
HIDDEN = frozenset({ID, LABELS, "fsq_category_ids", "geom", "bbox", "placemaker_url", "dt", "unresolved_flags"})


def recognise(reader: Reader) -> bool:
    """Does it have the columns of the open data set?"""
    return {ID, LABELS} <= set(reader.names)


def layout(reader: Reader) -> Layout:
    """The last part of the first label is the category, its first part the group. Closed places are left out."""
    lon_lat = {"latitude", "longitude"} <= set(reader.names)
    columns = Columns(
        id=ID,
        name="name",
        category="@category",
        group="@group",
        lon="longitude" if lon_lat else None,
        lat="latitude" if lon_lat else None,
        geometry=None if lon_lat or "geom" not in reader.names else "geom",
    )
    return Layout("Foursquare places", columns, _derive, HIDDEN - {columns.geometry})


def _derive(columns: Mapping[str, Sequence[Any]], rows: int) -> Derived:
    def column(name: str) -> Sequence[Any]:
        return column_at(columns, name, rows)

    listed = list(map(_listed, column(LABELS)))
    first = [next(iter(labels), None) for labels in listed]
    levels = {label: PART.split(label.strip()) for label in set(first) if label}
    labels = [levels.get(label or "") for label in first]
    left_out: list[str | None] = []
    for closed, flags, parts, lon, lat in zip(
        column("date_closed"),
        column("unresolved_flags"),
        labels,
        *((column("longitude"), column("latitude")) if "longitude" in columns else ([0] * rows, [0] * rows)),
        strict=True,
    ):
        if closed not in (None, ""):
            left_out.append(CLOSED)
        elif flags and UNRESOLVED.intersection(_listed(flags)):
            left_out.append(NOT_A_PLACE)
        elif lon in (None, "") or lat in (None, ""):
            left_out.append(NOWHERE)
        else:
            left_out.append(None if parts else UNCATEGORISED)
    return Derived(
        {
            "@category": [parts[-1] if parts else None for parts in labels],
            "@group": [parts[0] if parts else None for parts in labels],
            "other_labels": [labels[1:] or None for labels in listed],
        },
        left_out,
    )


def _listed(value: Any) -> list[str]:
    """The texts of a list, also if a CSV holds it as text."""
    found = parsed(value) if isinstance(value, str) else value
    if isinstance(value, str) and not isinstance(found, list):
        found = NEXT_LABEL.split(value.strip().strip("[]"))
    return [text for text in found if isinstance(text, str) and text.strip()] if isinstance(found, list) else []
