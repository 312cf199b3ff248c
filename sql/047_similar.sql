-- Where is it like there? The cells and training POIs that are most like a place, by their embeddings.

-- The identifiers of rows that are too near to a place. A box in degrees selects candidates, and their distances are measured in
-- the model's projected coordinates. The box is a little too wide, because straight lines in metres are not straight in degrees.
CREATE OR REPLACE FUNCTION callipper._too_near(
    version integer, place @extschema:postgis@.geometry, distance_m float8, relation text, identifier text
) RETURNS bigint[]
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    srid integer := (SELECT m.srid FROM callipper.model m WHERE m.version = _too_near.version);
    spot @extschema:postgis@.geometry := @extschema:postgis@.ST_Transform(callipper._area(place), srid);
    box @extschema:postgis@.geometry
        := @extschema:postgis@.ST_MakeEnvelope(float8 '-180', float8 '-90', float8 '180', float8 '90', 4326);
    result bigint[];
BEGIN
    IF distance_m IS NULL OR NOT distance_m BETWEEN 0 AND 1e8 THEN
        RAISE EXCEPTION 'min_distance_m is %', coalesce(distance_m::text, 'NULL') USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give a number of metres, from 0 on.';
    ELSIF distance_m = 0 OR place IS NULL THEN
        RETURN '{}';
    ELSIF distance_m < 50000 THEN
        box := @extschema:postgis@.ST_Expand(@extschema:postgis@.ST_Envelope(spot), distance_m * 1.01 + 1);
        box := @extschema:postgis@.ST_Segmentize(box, greatest(distance_m, 100) / 4);
        box := @extschema:postgis@.ST_Envelope(@extschema:postgis@.ST_Transform(box, 4326));
    END IF;
    EXECUTE format(
        'SELECT array_agg(x.%I) FROM callipper.%I x WHERE x.geom OPERATOR(@extschema:postgis@.&&) $1'
        '    AND @extschema:postgis@.ST_Distance(@extschema:postgis@.ST_Transform(x.geom, $2), $3) < $4',
        identifier, relation
    ) INTO result USING box, srid, spot, distance_m;
    RETURN coalesce(result, '{}');
END
$$;
COMMENT ON FUNCTION callipper._too_near(integer, @extschema:postgis@.geometry, float8, text, text) IS
    'identifiers of the rows of a table whose geom is less than a distance from a place';

-- The cells for a place.
CREATE OR REPLACE FUNCTION callipper.similar_to(
    place @extschema:postgis@.geometry, k bigint DEFAULT 10, within @extschema:postgis@.geometry DEFAULT NULL,
    min_distance_m float8 DEFAULT 0, model integer DEFAULT callipper._active_version()
) RETURNS TABLE (cell_id bigint, geom @extschema:postgis@.geometry, similarity float8, percentile float8)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER COST 100000 ROWS 10
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    version integer := callipper._require_model(model);
BEGIN
    RETURN QUERY SELECT * FROM callipper._best_cells(
        version, callipper._locate(place, version), k, callipper._area(within),
        callipper._too_near(version, place, min_distance_m, 'cell', 'cell_id'));
END
$$;
COMMENT ON FUNCTION callipper.similar_to(
    @extschema:postgis@.geometry, bigint, @extschema:postgis@.geometry, float8, integer
) IS
    'The k grid cells that are most like a place, best first: SELECT * FROM'
    ' similar_to(ST_SetSRID(ST_Point(7.4206, 43.7326), 4326), 10, NULL, 500). The place is any geometry that loc_embed() takes.'
    ' Cells nearer to it than min_distance_m do not count: metres from edge to edge in the model''s projected coordinates; by'
    ' default none is too near, not even the place''s own. similarity, percentile, k and within are those of search().';

-- The training POIs for a place.
CREATE OR REPLACE FUNCTION callipper.similar_points_to(
    place @extschema:postgis@.geometry, k bigint DEFAULT 10, within @extschema:postgis@.geometry DEFAULT NULL,
    min_distance_m float8 DEFAULT 0, model integer DEFAULT callipper._active_version()
) RETURNS TABLE (
    point_id bigint, name text, category text, text text, geom @extschema:postgis@.geometry,
    similarity float8, percentile float8
)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER COST 100000 ROWS 10
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    version integer := callipper._require_model(model);
BEGIN
    RETURN QUERY SELECT * FROM callipper._best_points(
        version, callipper._locate(place, version), k, callipper._area(within),
        callipper._too_near(version, place, min_distance_m, 'point_embedding_v' || version, 'point_id'));
END
$$;
COMMENT ON FUNCTION callipper.similar_points_to(
    @extschema:postgis@.geometry, bigint, @extschema:postgis@.geometry, float8, integer
) IS
    'The k training POIs whose places are most like a place, best first: SELECT * FROM'
    ' similar_points_to(ST_SetSRID(ST_Point(7.4206, 43.7326), 4326), 10, NULL, 500). The columns are those of search_points(),'
    ' the arguments those of similar_to().';
