"""Which projected CRS a model's metres are in: chosen for the POIs, or checked against them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from callipper_db.area_of_use import Region, area_of_use
from callipper_db.db import Connection
from callipper_db.errors import BadExtent

REACH_DEGREES = 12.0  # from a transverse Mercator's central meridian; beyond, its metres are wrong by more than 1 %

# For POIs beyond one UTM zone: equal-area CRS, the smallest region first. PostGIS has all of them.
EQUAL_AREA = {
    3035: Region("Europe", -35, 24, 45, 85),
    5070: Region("the United States", -130, 20, -60, 55),
    102001: Region("Canada", -145, 40, -50, 85),
    3577: Region("Australia", 95, -45, 170, -8),
    102008: Region("North America", -175, 5, -10, 85),
    102033: Region("South America", -95, -60, -30, 15),
    102022: Region("Africa", -30, -40, 60, 40),
    102028: Region("the south of Asia", 55, -15, 160, 45),
    102025: Region("the north of Asia", 25, 10, 180, 85),
    6931: Region("the north of the globe", -180, 0, 180, 90),
    6932: Region("the south of the globe", -180, -90, 180, 0),
    6933: Region("the world", -180, -90, 180, 90),
}
# For POIs on both sides of the 180th meridian, where the equal-area CRS end. Its areas are wrong, and its metres are true
# at the equator.
PACIFIC = (3832, Region("the Pacific", 90, -60, 300, 60))
USABLE = 0.05  # share by which metres may be off before a CRS of the user's choice is refused
SHARE = 0.95  # of the POIs whose metres must be true
MUCH_ALIKE = 1.5
HELD = 0.99  # of the POIs that must be in a region
LOOKED_AT = 500  # POIs at which the distortion is measured

TRANSVERSE_MERCATOR = re.compile(r"\+proj=(?:utm .*?\+zone=(\d+)|tmerc .*?\+lon_0=(-?[\d.]+))")

# A function that must be created before the session becomes read-only. It returns how many metres of the CRS one metre to the
# east and one metre to the north are at a place; NULL where the CRS has no coordinates for the place.
METRE_IN = """
CREATE OR REPLACE FUNCTION pg_temp.metre_in(place @geometry, srid int) RETURNS float8[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    lat float8 := greatest(least(ST_Y(place), 89.9), -89.9);
    here @geometry := ST_SetSRID(ST_MakePoint(ST_X(place), lat), 4326);
    east @geometry := ST_SetSRID(ST_MakePoint(ST_X(place) - sign(ST_X(place)) * 0.001 / cosd(lat), lat), 4326);
    north @geometry := ST_SetSRID(ST_MakePoint(ST_X(place), lat - sign(lat) * 0.001), 4326);
    origin @geometry;
    scale float8[];
BEGIN
    IF ST_X(place) = 0 OR lat = 0 THEN
        RETURN pg_temp.metre_in(ST_Translate(here, float8 '1e-6', float8 '1e-6'), srid);
    END IF;
    origin := ST_Transform(here, srid);
    scale := ARRAY[
        ST_Distance(origin, ST_Transform(east, srid)) / ST_DistanceSpheroid(here, east),
        ST_Distance(origin, ST_Transform(north, srid)) / ST_DistanceSpheroid(here, north)];
    RETURN CASE WHEN scale[1] < 'Infinity' AND scale[2] < 'Infinity'
        AND ST_DistanceSphere(ST_Transform(origin, 4326), here) < 1000 THEN scale END;
EXCEPTION WHEN internal_error OR numeric_value_out_of_range THEN
    RETURN NULL;
END
$$"""

DISTORTION = """
SELECT percentile_disc(%(share)s) WITHIN GROUP (ORDER BY off) FROM (
    SELECT coalesce(greatest(abs(scale[1] - 1), abs(scale[2] - 1)), 'Infinity') AS off
    FROM (SELECT geom FROM pg_temp.sample ORDER BY hashfloat8(ST_X(geom) + ST_Y(geom)), id LIMIT %(rows)s) AS s,
        LATERAL (SELECT pg_temp.metre_in(s.geom, %(srid)s::int4) AS scale OFFSET 0) AS m
) AS measured"""


@dataclass(frozen=True)
class Crs:
    """A CRS in metres."""

    srid: int
    off: float  # share by which its metres are wrong at nearly all POIs, at most
    region: str | None = None  # the region that it is made for; None for a UTM zone and for the user's choice

    @property
    def note(self) -> str | None:
        """What the user should know about it."""
        if self.off <= USABLE:
            return None
        made_for = f", which has true areas for {self.region}," if self.region else ""
        return (
            f"In EPSG:{self.srid}{made_for} distances are wrong by up to {self.off:.0%} where these POIs are: cells and"
            " surroundings are stretched by that much. A model of a smaller region has truer ones."
        )


def choose_crs(connection: Connection) -> Crs:
    """The UTM zone of the middle of the POIs. If they reach too far beyond it, the equal-area CRS with the truest metres."""
    utm, reach = _utm_zone(connection)
    if reach <= REACH_DEGREES:
        return Crs(utm, 0.0)
    known = {
        srid for (srid,) in connection.execute(connection.named("SELECT srid FROM spatial_ref_sys WHERE srtext <> ''"))
    }
    candidates = [PACIFIC] if _crosses_180(connection) else [*EQUAL_AREA.items()]
    found = [
        Crs(srid, _distortion(connection, srid), region.name)
        for srid, region in candidates
        if srid in known and _holds(connection, region)
    ]
    truest = min((crs.off for crs in found), default=math.inf)
    if math.isinf(truest):
        raise BadExtent(
            reason=f"the POIs reach {reach:.0f} degrees from the middle of one UTM zone, and no equal-area CRS of this PostGIS"
            " has all of them. Name a projected CRS with --srid, or take a part of them with --source 'SELECT ... WHERE ...'."
        )
    return next(crs for crs in found if crs.off <= MUCH_ALIKE * truest)  # the smallest region of the good ones


def check_crs(connection: Connection, srid: int, force: bool) -> Crs:
    """The user's CRS. Raises BadExtent, which names a better CRS, if its metres are not true where the POIs are."""
    query = connection.named("SELECT proj4text, srtext FROM spatial_ref_sys WHERE srid = %s")
    row = connection.execute(query, [srid]).fetchone()
    if row is None or not row[1]:
        raise BadExtent(reason=f"PostGIS does not know EPSG:{srid}. Leave --srid away to use the UTM zone.")
    if (unit := _other_unit(*map(str, row))) is not None:
        here = choose_crs(connection).srid
        raise BadExtent(
            reason=f"EPSG:{srid} is not projected in metres: {unit}. Name a CRS in metres for these POIs (--srid {here}), or"
            " leave --srid away. The CRS that the POIs were loaded in does not matter."
        )
    if force:
        return Crs(srid, 0.0)
    crs = Crs(srid, _distortion(connection, srid))
    covers = _is_in_use(connection, srid, str(row[0]))
    if crs.off <= USABLE and covers:
        return crs
    better = choose_crs(connection)
    if not covers or better.off * 2 <= crs.off:
        wrong = f"has metres that are wrong by {crs.off:.0%} here"
        what = wrong if USABLE < crs.off < math.inf else "is not made for where these POIs are"
        raise BadExtent(
            reason=f"EPSG:{srid} {what}. Leave --srid away for EPSG:{better.srid}, or keep it with --force-srid."
        )
    return crs


def _other_unit(proj4text: str, srtext: str) -> str | None:
    """What the coordinates of a CRS are, if they are not metres on a plane."""
    if not srtext.startswith("PROJCS"):
        return "its coordinates are angles" if srtext.startswith("GEOGCS") else "it is not the CRS of a plane"
    if "+units=m" in proj4text.split():
        return None
    units = re.findall(r'UNIT\["([^"]+)"', srtext)  # the last one is that of the plane
    return f"its unit is {units[-1]}" if units else "its unit is another"


def _is_in_use(connection: Connection, srid: int, proj4text: str) -> bool:
    """Is a CRS made for the region of the POIs, as far as is known?"""
    if (region := area_of_use(srid)) is not None:
        return _holds(connection, region)
    meridian = TRANSVERSE_MERCATOR.search(proj4text)
    if meridian is None:
        return True
    zone, lon_0 = meridian.groups()
    return _reach(connection, int(zone) * 6 - 183 if zone else float(lon_0)) <= REACH_DEGREES


def _holds(connection: Connection, region: Region) -> bool:
    """Are nearly all POIs in it?"""
    (share,) = connection.one(
        connection.named(
            "SELECT avg((ST_Y(geom) BETWEEN %(south)s AND %(north)s AND (ST_X(geom) BETWEEN %(west)s AND %(east)s"
            " OR ST_X(geom) + 360 BETWEEN %(west)s AND %(east)s))::int) FROM pg_temp.sample"
        ),
        region._asdict(),
    )
    return float(share) >= HELD


def _crosses_180(connection: Connection) -> bool:
    """Are the POIs close together, on both sides of the 180th meridian?"""
    width, shifted_width = connection.one(
        connection.named(
            "SELECT max(ST_X(geom)) - min(ST_X(geom)), max(x) - min(x) FROM pg_temp.sample,"
            " LATERAL (SELECT CASE WHEN ST_X(geom) < 0 THEN ST_X(geom) + 360 ELSE ST_X(geom) END AS x) AS shifted"
        )
    )
    return float(width) > 180 > float(shifted_width)


def _reach(connection: Connection, meridian: float) -> float:
    """The largest distance of a POI from a meridian, in degrees."""
    query = "SELECT max(least(abs(ST_X(geom) - %(c)s), 360 - abs(ST_X(geom) - %(c)s))) FROM pg_temp.sample"
    return float(connection.one(connection.named(query), {"c": meridian})[0])


def _utm_zone(connection: Connection) -> tuple[int, float]:
    """The zone of the middle of the POIs, and how many degrees they reach from its meridian."""
    # A circular mean, which also holds for a country on both sides of the 180th meridian.
    query = "SELECT degrees(atan2(avg(sind(ST_X(geom))), avg(cosd(ST_X(geom))))), avg(ST_Y(geom)) FROM pg_temp.sample"
    lon, lat = connection.one(connection.named(query))
    zone = min(60, math.floor((float(lon) + 180) / 6) + 1)
    return (32600 if lat >= 0 else 32700) + zone, _reach(connection, zone * 6 - 183)


def _distortion(connection: Connection, srid: int) -> float:
    values = {"share": SHARE, "rows": LOOKED_AT, "srid": srid}
    return float(connection.one(connection.named(DISTORTION), values)[0])
