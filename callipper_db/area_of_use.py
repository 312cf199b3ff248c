"""The parts of the globe that coordinate reference systems are made for.

Of all CRS in metres, as EPSG and Esri publish them (PROJ 9.5): srid,west,south,east,north in degrees. UTM zones are not listed,
because their metres stay true in a country that is wider than a zone.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from callipper_db.arrays import Array

AREAS_OF_USE = Path(__file__).with_name("area_of_use.csv")
AROUND = 0.5  # degrees by which places may exceed an area of use, whose numbers are rounded


class Region(NamedTuple):
    """A part of the globe in degrees. East of the 180th meridian, `east` is over 180."""

    name: str
    west: float
    south: float
    east: float
    north: float

    def holds(self, lon: Array, lat: Array) -> Array:
        """Whether each place (N,) is in it."""
        along = ((self.west <= lon) & (lon <= self.east)) | ((self.west <= lon + 360) & (lon + 360 <= self.east))
        found: Array = along & (self.south <= lat) & (lat <= self.north)
        return found


def area_of_use(srid: int) -> Region | None:
    """The part of the globe that a CRS is made for; None for a UTM zone, and if it is not known."""
    with AREAS_OF_USE.open() as lines:
        found = next((line for line in lines if line.startswith(f"{srid},")), None)
    if found is None:
        return None
    west, south, east, north = map(float, found.split(",")[1:])
    east += 360 if east < west else 0
    return Region(f"EPSG:{srid}", west - AROUND, south - AROUND, east + AROUND, north + AROUND)
