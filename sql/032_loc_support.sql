-- How well data support a place: whether its embedding can be more than a guess.

-- The reach of a place: the distance to its nth nearest training POI, or to the last one if there are fewer. It is in degrees,
-- so that the index on geom can serve it. A circle in degrees is an ellipse on the ground, which is fine for comparing areas.
CREATE OR REPLACE FUNCTION callipper._reach(lonlat @extschema:postgis@.geometry, version integer, neighbours integer)
RETURNS float8
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    reach float8;
BEGIN
    -- The version as a constant, so that no other version's POIs are locked.
    EXECUTE format('SELECT max(distance) FROM (
        SELECT p.geom OPERATOR(@extschema:postgis@.<->) $1 AS distance FROM callipper.point_embedding p
        WHERE p.version = %s ORDER BY p.geom OPERATOR(@extschema:postgis@.<->) $1 LIMIT $2
    ) AS nearest', version) INTO reach USING lonlat, neighbours;
    RETURN coalesce(reach, 'infinity');
END
$$;
COMMENT ON FUNCTION callipper._reach(@extschema:postgis@.geometry, integer, integer) IS
    'distance to the nth nearest training POI of a model version, in degrees';

-- The usual reach of POIs: nine of ten have their eighth neighbour within it. It is measured at 64 POIs, evenly spaced in the
-- order of their ids, so it is always the same.
CREATE OR REPLACE FUNCTION callipper._measure_usual_reach(version integer) RETURNS float8
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    reach float8;
BEGIN
    EXECUTE format('SELECT percentile_cont(0.9) WITHIN GROUP (ORDER BY callipper._reach(sample.geom, %1$s, 9))
        FROM (
            SELECT min(p.point_id)::numeric AS first, max(p.point_id)::numeric AS last FROM callipper.point_embedding p
            WHERE p.version = %1$s
        ) AS ids, generate_series(0, 63) AS step, LATERAL (
            SELECT p.geom FROM callipper.point_embedding p
            WHERE p.version = %1$s AND p.point_id >= (first + (last - first) * step / 64)::bigint
            ORDER BY p.point_id LIMIT 1
        ) AS sample', version) INTO reach;
    RETURN reach;
END
$$;
COMMENT ON FUNCTION callipper._measure_usual_reach(integer) IS
    'reach that nine of ten training POIs of a model version keep within';

-- IMMUTABLE so that a plan keeps the answer, as that of _location_encoder(). The answer starts with its version.
CREATE OR REPLACE FUNCTION callipper._newest_reach() RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    version constant integer := callipper._newest_version();
BEGIN
    RETURN ARRAY[version, callipper._measure_usual_reach(version)];
END
$$;
COMMENT ON FUNCTION callipper._newest_reach() IS
    'version that was activated last and usual reach of its POIs, for a plan to keep';

-- Density is the number of neighbours divided by the area that they reach over. So a ratio of densities is a ratio of squares.
CREATE OR REPLACE FUNCTION callipper._rate_support(place @extschema:postgis@.geometry, version integer) RETURNS float8
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SECURITY DEFINER COST 10000
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    here @extschema:postgis@.geometry := @extschema:postgis@.ST_Transform(callipper._as_point(place, 4326), 4326);
    smallest CONSTANT float8 := 1e-5;  -- about a metre; otherwise POIs at one spot would be infinitely dense
    kept constant float8[] := callipper._newest_reach();
    usual float8 := kept[2];
BEGIN
    PERFORM callipper._require_model(version);
    IF kept[1] <> version THEN
        usual := callipper._measure_usual_reach(version);
    END IF;
    RETURN least(1, (greatest(usual, smallest) / greatest(callipper._reach(here, version, 8), smallest)) ^ 2);
END
$$;
COMMENT ON FUNCTION callipper._rate_support(@extschema:postgis@.geometry, integer) IS
    'support of a place by a model version''s POIs';

-- IMMUTABLE for the same reason, and with the same caution, as text_embed.
CREATE OR REPLACE FUNCTION callipper.loc_support(place @extschema:postgis@.geometry) RETURNS float8
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 10000 AS $$
    SELECT callipper._rate_support(place, callipper._active_version())
$$;
COMMENT ON FUNCTION callipper.loc_support(@extschema:postgis@.geometry) IS
    'how well the active model''s POIs support loc_embed of a place, from 0 to 1: the density of its eight nearest training'
    ' POIs, divided by the density that nine of ten training POIs have around them, and at most 1. So it is 1 where POIs are as'
    ' dense as usual, a quarter where the eighth is twice as far, and 0.0001 where it is a hundred times as far';
