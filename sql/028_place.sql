-- The place of a geometry: one point, and that point in metres.

CREATE OR REPLACE FUNCTION callipper._require_srid(place @extschema:postgis@.geometry) RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF @extschema:postgis@.ST_SRID(place) = 0 THEN
        RAISE EXCEPTION 'the geometry has no SRID' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Say what its coordinates are, such as ST_SetSRID(geom, 4326) for longitude and latitude.';
    END IF;
    RETURN @extschema:postgis@.ST_SRID(place);
END
$$;
COMMENT ON FUNCTION callipper._require_srid(@extschema:postgis@.geometry) IS
    'the SRID of a geometry; an error when it has none';

-- The point that stands for a geometry, in the geometry's own coordinates. `known` is the SRID of a projection, which needs no
-- look-up. It refuses with a clear message what ST_Transform would refuse with an obscure one. It does not catch ST_Transform's
-- error, because before PostgreSQL 17 an EXCEPTION block may not run in a parallel worker.
CREATE OR REPLACE FUNCTION callipper._as_point(place @extschema:postgis@.geometry, known integer)
RETURNS @extschema:postgis@.geometry
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    asked integer := callipper._require_srid(place);
    spot @extschema:postgis@.geometry := @extschema:postgis@.ST_Force2D(place);
    finite boolean;
    geographic boolean := asked = 4326;
BEGIN
    IF @extschema:postgis@.ST_IsEmpty(spot) THEN
        RAISE EXCEPTION 'the geometry is empty' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Leave such rows out with: WHERE NOT ST_IsEmpty(geom)';
    ELSIF asked NOT IN (4326, known) THEN
        SELECT s.srtext ILIKE 'GEOG%' INTO geographic FROM @extschema:postgis@.spatial_ref_sys s WHERE s.srid = asked;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'PostGIS does not know SRID %', asked USING ERRCODE = 'invalid_parameter_value',
                HINT = 'SELECT srid, srtext FROM spatial_ref_sys lists those that it knows.';
        END IF;
    END IF;
    IF @extschema:postgis@.GeometryType(spot) = 'POINT' THEN
        finite := abs(@extschema:postgis@.ST_X(spot)) < 'infinity' AND abs(@extschema:postgis@.ST_Y(spot)) < 'infinity';
    ELSE
        finite := NOT EXISTS (
            SELECT FROM @extschema:postgis@.ST_DumpPoints(spot) AS d, LATERAL (
                SELECT @extschema:postgis@.ST_X(d.geom) AS x, @extschema:postgis@.ST_Y(d.geom) AS y
            ) AS at WHERE NOT (abs(x) < 'infinity' AND abs(y) < 'infinity')
        );
    END IF;
    IF NOT finite THEN
        RAISE EXCEPTION 'the geometry has a coordinate that is not finite' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Its text shows which: ST_AsText(geom)';
    END IF;
    IF @extschema:postgis@.GeometryType(spot) = 'POLYHEDRALSURFACE' THEN  -- ST_Centroid does not know this type
        spot := (SELECT @extschema:postgis@.ST_Collect(d.geom) FROM @extschema:postgis@.ST_Dump(spot) AS d);
    END IF;
    IF @extschema:postgis@.GeometryType(spot) <> 'POINT' THEN
        spot := @extschema:postgis@.ST_Centroid(spot);
    END IF;
    IF geographic AND abs(@extschema:postgis@.ST_Y(spot)) > 90 THEN
        RAISE EXCEPTION 'latitude % is not between -90 and 90', @extschema:postgis@.ST_Y(spot)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Longitude comes first: ST_Point(longitude, latitude).';
    END IF;
    RETURN spot;
END
$$;
COMMENT ON FUNCTION callipper._as_point(@extschema:postgis@.geometry, integer) IS
    'the point of a geometry, its centroid if it is no point; an error when it has no place on earth';

-- The place of a geometry in metres from the model's origin. A projection made for one city has no coordinates for the other
-- side of the earth. The usual projections work up to 8,000 km.
CREATE OR REPLACE FUNCTION callipper._to_metres(
    place @extschema:postgis@.geometry, srid integer, easting float8, northing float8, extent @extschema:postgis@.geometry
) RETURNS point
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    spot @extschema:postgis@.geometry := callipper._as_point(place, srid);
    lonlat @extschema:postgis@.geometry;
    away_m float8;
BEGIN
    IF @extschema:postgis@.ST_SRID(spot) <> srid THEN
        lonlat := @extschema:postgis@.ST_Transform(spot, 4326);
        away_m := @extschema:postgis@.ST_DistanceSphere(@extschema:postgis@.ST_ClosestPoint(extent, lonlat), lonlat);
        IF away_m > 8e6 THEN
            RAISE EXCEPTION 'the place lies % km from the model''s POIs, too far for its coordinate system (SRID %)',
                round(away_m / 1000), srid USING ERRCODE = 'invalid_parameter_value',
                HINT = 'Check the order of its coordinates and its SRID: ST_AsEWKT(geom)';
        END IF;
        spot := @extschema:postgis@.ST_Transform(spot, srid);
    END IF;
    RETURN point(@extschema:postgis@.ST_X(spot) - easting, @extschema:postgis@.ST_Y(spot) - northing);
END
$$;
COMMENT ON FUNCTION callipper._to_metres(@extschema:postgis@.geometry, integer, float8, float8, @extschema:postgis@.geometry) IS
    'place of a geometry in metres from a model''s origin';
