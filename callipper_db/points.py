"""Points in longitude and latitude from what a file says, by PostGIS."""

from __future__ import annotations

from callipper_db import db

# A point on the surface of any geometry, in longitude and latitude; NULL for what PostGIS cannot read or place.
TO_POINT = """
CREATE FUNCTION pg_temp.callipper_point(x float8, y float8, shape text, srid int) RETURNS @geometry
LANGUAGE plpgsql STABLE AS $$
DECLARE
    place @geometry;
BEGIN
    IF shape IS NULL THEN
        place := ST_SetSRID(ST_MakePoint(x, y), srid);
    ELSIF shape LIKE '{%' THEN
        place := ST_SetSRID(ST_GeomFromGeoJSON(shape), srid);
    ELSE
        place := shape::@geometry;
        place := CASE WHEN ST_SRID(place) = 0 THEN ST_SetSRID(place, srid) ELSE place END;
    END IF;
    place := CASE WHEN ST_GeometryType(place) = 'ST_Point' THEN place ELSE ST_PointOnSurface(place) END;
    RETURN ST_Transform(place, 4326);
EXCEPTION WHEN internal_error OR data_exception OR feature_not_supported THEN
    RETURN NULL;
END
$$"""


def unknown_srid(connection: db.Connection, srid: int) -> str | None:
    """What to say of an SRID that PostGIS does not know; None for one that it knows."""
    if connection.execute(connection.named("SELECT 1 FROM spatial_ref_sys WHERE srid = %s"), [srid]).fetchone():
        return None
    return f"PostGIS knows no SRID {srid}; give another with --srid"
