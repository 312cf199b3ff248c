-- Where is it like this? Questions to a model version, by default the active one. Each is answered by the rows and weights of
-- that version alone. The default is folded to a number when the statement is planned, so that cells, points and text_embed()
-- in the same statement are of the same version. SECURITY DEFINER, since readers have no right on the tables of each version,
-- which come and go. Asked by NULL, they answer with no rows.

-- The cells for a text.
CREATE OR REPLACE FUNCTION callipper.search(
    query text, k integer DEFAULT 10, within @extschema:postgis@.geometry DEFAULT NULL,
    model integer DEFAULT callipper._active_version()
) RETURNS TABLE (cell_id bigint, geom @extschema:postgis@.geometry, similarity float8, percentile float8)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER COST 100000 ROWS 10
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    version integer := callipper._require_model(model);
BEGIN
    RETURN QUERY SELECT * FROM callipper._best_cells(
        version, callipper._find_text(query, version), k, callipper._area(within), '{}');
END
$$;
COMMENT ON FUNCTION callipper.search(text, integer, @extschema:postgis@.geometry, integer) IS
    'The k grid cells that fit a text best, best first: SELECT * FROM search(''quiet park'', 10,'
    ' ST_MakeEnvelope(7.41, 43.72, 7.43, 43.74, 4326)). similarity is the cosine, from -1 to 1. percentile says how many'
    ' percent of the city''s cells fit less well, by a random sample of up to 1,000 of them. With within, a geometry of any'
    ' kind and SRID, only cells that intersect it count, and none of them is missed. NULL is the whole city; there an HNSW'
    ' index, where the cells have one, answers for k up to 100, and about one of a hundred cells can be missing.';

-- The training POIs for a text.
CREATE OR REPLACE FUNCTION callipper.search_points(
    query text, k integer DEFAULT 10, within @extschema:postgis@.geometry DEFAULT NULL,
    model integer DEFAULT callipper._active_version()
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
        version, callipper._find_text(query, version), k, callipper._area(within), '{}');
END
$$;
COMMENT ON FUNCTION callipper.search_points(text, integer, @extschema:postgis@.geometry, integer) IS
    'The k training POIs whose places fit a text best, best first: SELECT * FROM search_points(''quiet park'', 10). What counts'
    ' is the place, not the POI''s own text. similarity, percentile (among the city''s cells) and within are those of search();'
    ' name and category are NULL where the model was not trained on callipper.poi.';

-- Examples as a single vector, so that an index can serve it. To subtract the dislikes as a whole would find places that are
-- like nothing of either; half of them leaves what is liked in charge.
CREATE OR REPLACE FUNCTION callipper._combine(version integer, likes text[], dislikes text[]) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    share constant real := 0.5;
    liked @extschema:vector@.vector;
    disliked @extschema:vector@.vector;
BEGIN
    IF coalesce(cardinality(likes), 0) = 0 THEN
        RAISE EXCEPTION 'there is no example to like' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give one text or more in the first array, such as ARRAY[''park''].';
    ELSIF EXISTS (SELECT FROM unnest(likes || dislikes) AS t(example) WHERE t.example IS NULL) THEN
        RAISE EXCEPTION 'an example is NULL' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Leave it out: array_remove(examples, NULL).';
    END IF;
    liked := (SELECT @extschema:vector@.avg(callipper._find_text(t.example, version)) FROM unnest(likes) AS t(example));
    disliked := (SELECT @extschema:vector@.avg(callipper._find_text(t.example, version)) FROM unnest(dislikes) AS t(example));
    IF disliked IS NOT NULL THEN
        liked := @extschema:vector@.vector_sub(liked, @extschema:vector@.vector_mul(
            disliked, array_fill(share, ARRAY[@extschema:vector@.vector_dims(disliked)])::@extschema:vector@.vector));
    END IF;
    IF @extschema:vector@.vector_norm(liked) < 1e-3 THEN
        RAISE EXCEPTION 'the examples cancel each other out' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give fewer, or such as are more alike.';
    END IF;
    RETURN @extschema:vector@.l2_normalize(liked);
END
$$;
COMMENT ON FUNCTION callipper._combine(integer, text[], text[]) IS
    'unit vector of mean(likes) - mean(dislikes) / 2 of the texts'' embeddings by a version';

-- The cells for examples.
CREATE OR REPLACE FUNCTION callipper.search_by_examples(
    likes text[], dislikes text[] DEFAULT '{}', k integer DEFAULT 10, within @extschema:postgis@.geometry DEFAULT NULL,
    model integer DEFAULT callipper._active_version()
) RETURNS TABLE (cell_id bigint, geom @extschema:postgis@.geometry, similarity float8, percentile float8)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER COST 100000 ROWS 10
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    version integer := callipper._require_model(model);
BEGIN
    RETURN QUERY SELECT * FROM callipper._best_cells(
        version, callipper._combine(version, likes, dislikes), k, callipper._area(within), '{}');
END
$$;
COMMENT ON FUNCTION callipper.search_by_examples(text[], text[], integer, @extschema:postgis@.geometry, integer) IS
    'The k grid cells that are like the first texts and unlike the second, best first: SELECT * FROM'
    ' search_by_examples(ARRAY[''park'', ''school''], ARRAY[''nightclub'']). Cells rank by their mean similarity to the likes'
    ' less half of that to the dislikes; similarity is the cosine to the one vector that ranks so. percentile, k and within are'
    ' those of search().';

-- What lies too near to a place, by its identifiers: distances are taken in the model's projected coordinates, of what a box
-- in degrees lets through. The box is cut a little too wide, since what is straight in metres is not in degrees.
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
    place @extschema:postgis@.geometry, k integer DEFAULT 10, within @extschema:postgis@.geometry DEFAULT NULL,
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
    @extschema:postgis@.geometry, integer, @extschema:postgis@.geometry, float8, integer
) IS
    'The k grid cells that are most like a place, best first: SELECT * FROM'
    ' similar_to(ST_SetSRID(ST_Point(7.4206, 43.7326), 4326), 10, NULL, 500). The place is any geometry that loc_embed() takes.'
    ' Cells nearer to it than min_distance_m do not count: metres from edge to edge in the model''s projected coordinates; by'
    ' default none is too near, not even the place''s own. similarity, percentile, k and within are those of search().';

-- The training POIs for a place.
CREATE OR REPLACE FUNCTION callipper.similar_points_to(
    place @extschema:postgis@.geometry, k integer DEFAULT 10, within @extschema:postgis@.geometry DEFAULT NULL,
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
    @extschema:postgis@.geometry, integer, @extschema:postgis@.geometry, float8, integer
) IS
    'The k training POIs whose places are most like a place, best first: SELECT * FROM'
    ' similar_points_to(ST_SetSRID(ST_Point(7.4206, 43.7326), 4326), 10, NULL, 500). The columns are those of search_points(),'
    ' the arguments those of similar_to().';
