-- What is it like here? Texts for a place. By similarity alone, every place would be like the same few words, those that lie in
-- the middle of all texts; so a text is rated by how the place stands out in the city, among the version's sampled cells.

-- The texts for a place. The distances of the sampled cells are kept with each text of the vocabulary and taken from the sample
-- where they are not. As a vector they are unpacked once a text, and give mean and deviation at once.
CREATE OR REPLACE FUNCTION callipper.describe(
    place @extschema:postgis@.geometry, k integer DEFAULT 10, model integer DEFAULT callipper._active_version()
) RETURNS TABLE (text text, similarity float8, percentile float8)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER COST 100000 ROWS 10
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    version integer := callipper._require_model(model);
BEGIN
    RETURN QUERY SELECT * FROM callipper._best_texts(version, callipper._locate(place, version), k);
END
$$;
COMMENT ON FUNCTION callipper.describe(@extschema:postgis@.geometry, integer, integer) IS
    'The k texts that say best what a place is like: SELECT * FROM describe(ST_SetSRID(ST_Point(7.4206, 43.7326), 4326)). Of'
    ' the common words for places and the categories that the model was published with, those come first by which the place'
    ' stands out in its city: percentile says how many percent of the city''s cells fit the text less well, by a random sample'
    ' of up to 1,000 of them; among equals, the one by which it stands out farther, in standard deviations, is first.'
    ' similarity is the cosine, from -1 to 1. The place is any geometry that loc_embed() takes.';

-- The k best of a version's vocabulary. The partition is named, so that no other version's texts are locked.
CREATE OR REPLACE FUNCTION callipper._best_texts(version integer, place @extschema:vector@.vector, k integer)
RETURNS TABLE (text text, similarity float8, percentile float8)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    sampled integer := (SELECT count(*) FROM callipper.cell_sample s WHERE s.version = _best_texts.version);
    ones @extschema:vector@.vector;
BEGIN
    IF callipper._require_k(k) IS NULL OR place IS NULL THEN
        RETURN;
    END IF;
    IF sampled > 0 THEN
        ones := array_fill(1, ARRAY[sampled]);
        RETURN QUERY EXECUTE format('
            SELECT rated.text, -rated.distance, rated.percentile
            FROM (
                SELECT t.text, t.distance, callipper._percentile(t.distance, t.city::real[]) AS percentile,
                    @extschema:vector@.inner_product(t.city, $2) / $3 AS mean,
                    @extschema:vector@.inner_product(t.city, t.city) / $3 AS square
                FROM (
                    SELECT e.text, e.emb OPERATOR(@extschema:vector@.<#>) $1 AS distance,
                        coalesce(e.city_distances, callipper._city_distances(e.version, e.emb))::@extschema:vector@.vector AS city
                    FROM callipper.%I e WHERE e.vocabulary
                    OFFSET 0
                ) t
            ) rated
            ORDER BY rated.percentile DESC,
                CASE WHEN rated.square - rated.mean ^ 2 > 1e-7  -- less is but rounding
                    THEN (rated.mean - rated.distance) / sqrt(rated.square - rated.mean ^ 2) END DESC NULLS LAST,
                rated.text
            LIMIT $4', 'text_embedding_v' || version) USING place, ones, sampled, k;
    END IF;
    IF sampled = 0 OR NOT FOUND THEN
        RAISE EXCEPTION 'model version % was published without words for places', version
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Train a new version with: callipper-db train';
    END IF;
END
$$;
COMMENT ON FUNCTION callipper._best_texts(integer, @extschema:vector@.vector, integer) IS
    'the k texts of a version''s vocabulary by which a place stands out most among the version''s sampled cells';

-- SQL, so that it is folded to a number where both arguments are constant, and cannot be cheaper than its parts.
CREATE OR REPLACE FUNCTION callipper.text_similarity(text text, place @extschema:postgis@.geometry) RETURNS float8
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 1000000 AS $$
    SELECT @extschema:vector@.inner_product(callipper.text_embed($1), callipper.loc_embed($2))
$$;
COMMENT ON FUNCTION callipper.text_similarity(text, @extschema:postgis@.geometry) IS
    'How well a text fits a place: SELECT text_similarity(''quiet park'', ST_SetSRID(ST_Point(7.4206, 43.7326), 4326)). The'
    ' cosine, from -1 to 1. Compare it between places; between texts, describe() is fairer.';
