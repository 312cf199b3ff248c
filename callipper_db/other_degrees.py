"""Files whose degrees are counted in another way: longitudes from 0 to 360, or whole numbers of 1e-7 degrees (E7).

A row alone does not show it, so rows that such a file may hold are staged, and this decides when all rows are there:

- E7: all rows are whole numbers, and nearly all are beyond the coordinates of any CRS in metres, or the columns say E7;
- 0 to 360: no longitude is negative, and some of them are above 180, more than mistakes would be.

In other files, such rows are out of range.
"""

from __future__ import annotations

from callipper_db.db import Connection

E7 = 10_000_000
LON_LIMIT, LAT_LIMIT = 180, 90
# Coordinates of CRS in metres go up to 61 million, where a zone of up to 60 stands before the easting.
NO_METRES = 61_000_000
NEARLY_ALL = 0.95
MORE_THAN_MISTAKES = 0.05

LOOK = """
SELECT count(*), count(*) FILTER (WHERE x > 180 AND x <= 360 AND abs(y) <= 90), count(*) FILTER (WHERE x < 0),
    bool_and(x = trunc(x) AND y = trunc(y) AND abs(x) <= 180 * %(e7)s AND abs(y) <= 90 * %(e7)s),
    count(*) FILTER (WHERE greatest(abs(x), abs(y)) > %(no_metres)s),
    count(*) FILTER (WHERE abs(x) > 180 OR abs(y) > 90)
FROM poi_load WHERE x IS NOT NULL AND y IS NOT NULL"""


def may_be_degrees(x: float, y: float) -> bool:
    """Whether a place that is out of range is a place on the globe in a file that counts degrees in another way."""
    if LON_LIMIT < x <= 2 * LON_LIMIT and abs(y) <= LAT_LIMIT:
        return True
    whole = float(x).is_integer() and float(y).is_integer()
    return whole and abs(x) <= LON_LIMIT * E7 and abs(y) <= LAT_LIMIT * E7 and max(abs(x), abs(y)) > 2 * LON_LIMIT


def read_otherwise(connection: Connection, named_e7: bool) -> str | None:
    """Turn the coordinates of poi_load into longitude and latitude, if the file counts otherwise; returns what to say of it.

    named_e7: the columns of the coordinates say that they are E7.
    """
    rows, above, negative, whole, no_metres, beyond = connection.one(LOOK, {"e7": E7, "no_metres": NO_METRES})
    if beyond and whole and (named_e7 or no_metres >= NEARLY_ALL * rows):
        connection.execute("UPDATE poi_load SET x = x / %(e7)s, y = y / %(e7)s", {"e7": E7})
        return "the coordinates are whole numbers of 1e-7 degrees (E7) and were read so: 515072000 is 51.5072"
    if above and not negative and above >= MORE_THAN_MISTAKES * rows:
        connection.execute("UPDATE poi_load SET x = x - 360 WHERE x > 180 AND x <= 360")
        return (
            f"the longitudes go from 0 to 360: those of {above:,} rows are above 180 and were read as west (359 is -1)"
        )
    return None
