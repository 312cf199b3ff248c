"""The elements of an Overpass answer in JSON: `out center`, `out geom`, or nodes alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from callipper_db.read.record import BAD_JSON, Record, Refused

NO_GEOMETRY = "a way or relation without a place; ask Overpass for it with: out center"


def from_element(row: int, element: Any, raw: str) -> Record | Refused:
    """An element's tags, its id as @id, and its place: the point, the centre, or the geometry of a way."""
    if not isinstance(element, dict):
        return Refused(row, BAD_JSON, raw)
    tags = element.get("tags")
    tags = tags if isinstance(tags, dict) else {}
    shape = _place(element)
    if shape is None and tags and element.get("type") != "node":
        return Refused(row, NO_GEOMETRY, raw)
    return Record(row, {**tags, "@id": f"{element.get('type')}/{element.get('id')}"}, shape, raw)


def _place(element: dict[str, Any]) -> Any:
    """(x, y), or GeoJSON."""
    centre = element.get("center")
    for place in (element, centre if isinstance(centre, dict) else {}):
        if "lon" in place and "lat" in place:
            return place["lon"], place["lat"]
    if line := _line(element.get("geometry")):
        closed = len(line) > 3 and line[0] == line[-1]
        return json.dumps(
            {"type": "Polygon", "coordinates": [line]} if closed else {"type": "LineString", "coordinates": line}
        )
    bounds = element.get("bounds")
    if not isinstance(bounds, dict):
        return None
    try:
        return (bounds["minlon"] + bounds["maxlon"]) / 2, (bounds["minlat"] + bounds["maxlat"]) / 2
    except (KeyError, TypeError):
        return None


def _line(points: Any) -> Sequence[Sequence[float]]:
    if not isinstance(points, list):
        return []
    return [
        [point["lon"], point["lat"]]
        for point in points
        if isinstance(point, dict) and "lon" in point and "lat" in point
    ]
