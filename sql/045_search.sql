-- Where is it like this? Questions to a model version, by default the active one. Each is answered by the rows and weights of
-- that version alone. The default is folded to a number when the statement is planned, so that cells, points and text_embed()
-- in the same statement are of the same version. SECURITY DEFINER, since readers have no right on the tables of each version,
-- which come and go. Asked by NULL, they answer with no rows.

-- The sentence encoder's vector of a question, unit length; NULL where the database does not have the encoder, and knows the
-- question by its embedding alone. An EXCEPTION block would not do: before PostgreSQL 18 it fails where the statement has
-- parallel workers.
CREATE OR REPLACE FUNCTION callipper._question(query text, version integer) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    encoder constant integer := (SELECT m.text_encoder_id FROM callipper.model m WHERE m.version = _question.version);
    content constant text := callipper._cut_text(query);
    key constant text := callipper._text_key(content);
    answer @extschema:vector@.vector;
BEGIN
    SELECT v.vec INTO answer FROM callipper.text_vector v
        WHERE v.text_encoder_id = encoder AND v.text_hash IN (hashtextextended(content, 0), hashtextextended(key, 0))
            AND v.text IN (content, key)
        ORDER BY v.text = content DESC LIMIT 1;
    IF NOT FOUND AND callipper._plain_question(content) <> content THEN
        RETURN callipper._question(callipper._plain_question(content), version);
    ELSIF NOT FOUND AND EXISTS (SELECT FROM callipper.text_norm n WHERE n.text_encoder_id = encoder) THEN
        IF callipper._knows_no_word(content, encoder) THEN  -- a vector that is near to nothing; names may still hold the words
            RETURN array_fill(0, ARRAY[(SELECT t.dim FROM callipper.text_encoder t WHERE t.text_encoder_id = encoder)])
                ::@extschema:vector@.vector;
        END IF;
        answer := callipper._find_vector(content, version);
    END IF;
    RETURN @extschema:vector@.l2_normalize(answer);
END
$$;
COMMENT ON FUNCTION callipper._question(text, integer) IS
    'the sentence encoder''s vector of a question, NULL where it is not to be had';

-- The cells for a text: first those with evidence, then, where these are fewer than k, those that are nearest by the embedding.
CREATE OR REPLACE FUNCTION callipper.search(
    query text, k bigint DEFAULT 10, within @extschema:postgis@.geometry DEFAULT NULL,
    model integer DEFAULT callipper._active_version()
) RETURNS TABLE (
    cell_id bigint, geom @extschema:postgis@.geometry, similarity float8, percentile float8,
    relevant integer, lift float8, because text
)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER COST 100000 ROWS 10
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    version constant integer := callipper._require_model(model);
    question constant @extschema:vector@.vector := callipper._find_text(query, version);
    area constant @extschema:postgis@.geometry := callipper._area(within);
    city constant real[] := callipper._city_distances(version, question);
    vector @extschema:vector@.vector;
    found bigint[] := '{}';
    answer record;
BEGIN
    IF callipper._require_k(k) IS NULL OR question IS NULL THEN
        RETURN;
    END IF;
    IF callipper._has_evidence(version) THEN
        vector := callipper._question(query, version);
    END IF;
    IF vector IS NOT NULL THEN
        FOR answer IN EXECUTE format(
            'SELECT f.cell_id, f.geom, -(e.emb OPERATOR(@extschema:vector@.<#>) $6) AS similarity, f.relevant, f.lift, f.because'
            ' FROM callipper._cells_by_evidence($1, $2, $3, $4, $5) WITH ORDINALITY'
            '    AS f(cell_id, geom, score, relevant, lift, because, place)'
            ' JOIN callipper.%I e ON e.cell_id = f.cell_id ORDER BY f.place', 'cell_embedding_v' || version
        ) USING version, vector, query, k, area, question LOOP
            found := found || answer.cell_id;
            cell_id := answer.cell_id;
            geom := answer.geom;
            similarity := answer.similarity;
            percentile := callipper._percentile(-answer.similarity, city);
            relevant := answer.relevant;
            lift := answer.lift;
            because := answer.because;
            RETURN NEXT;
        END LOOP;
    END IF;
    IF cardinality(found) < k THEN
        RETURN QUERY SELECT b.cell_id, b.geom, b.similarity, b.percentile, NULL::integer, NULL::float8, NULL::text
            FROM callipper._best_cells(version, question, k - cardinality(found), area, found) b;
    END IF;
END
$$;
COMMENT ON FUNCTION callipper.search(text, bigint, @extschema:postgis@.geometry, integer) IS
    'The k grid cells that fit a text best, best first: SELECT * FROM search(''quiet park'', 10,'
    ' ST_MakeEnvelope(7.41, 43.72, 7.43, 43.74, 4326)). First come the cells around which POIs stand that the text asks for:'
    ' relevant is their number within 250 m, lift their share there over their share in the city, because names up to three. Where'
    ' the text can be read in several ways, each has its turn. Without a lift, the POIs are only faintly like the text.'
    ' Then come the cells nearest to the text by their embedding, without these. similarity is the cosine, from -1 to 1.'
    ' percentile says how many percent of the city''s cells are less similar, by a random sample of up to 1,000 of them. With'
    ' within, a geometry of any kind and SRID, only cells that intersect it count. NULL is the whole city.';

-- The training POIs for a text: those whose name holds its words, then those of the kinds that it asks for and those whose own
-- words are near to it. Among equals the surroundings decide, by the embedding.
CREATE OR REPLACE FUNCTION callipper.search_points(
    query text, k bigint DEFAULT 10, within @extschema:postgis@.geometry DEFAULT NULL,
    model integer DEFAULT callipper._active_version()
) RETURNS TABLE (
    point_id bigint, name text, category text, text text, geom @extschema:postgis@.geometry,
    similarity float8, percentile float8, because text
)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER COST 100000 ROWS 10
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    version constant integer := callipper._require_model(model);
    question constant @extschema:vector@.vector := callipper._find_text(query, version);
    area constant @extschema:postgis@.geometry := callipper._area(within);
    city constant real[] := callipper._city_distances(version, question);
    vector @extschema:vector@.vector;
    found bigint[] := '{}';
    answer record;
BEGIN
    IF callipper._require_k(k) IS NULL OR question IS NULL THEN
        RETURN;
    END IF;
    IF callipper._has_evidence(version) THEN
        vector := callipper._question(query, version);
    END IF;
    IF vector IS NOT NULL THEN
        FOR answer IN EXECUTE format(
            'SELECT r.point_id, coalesce(p.name, nullif(e.name, '''')) AS name,'
            '    CASE WHEN callipper._points_are_pois($1) THEN p.category ELSE e.text END AS category, e.text, e.geom,'
            '    -(e.emb OPERATOR(@extschema:vector@.<#>) $4) AS similarity,'
            '    r.because'
            ' FROM callipper._relevant_points($1, $2, $3) r JOIN callipper.%I e ON e.point_id = r.point_id'
            ' LEFT JOIN callipper.poi p ON p.poi_id = e.point_id AND callipper._points_are_pois($1)'
            ' WHERE $5 IS NULL OR @extschema:postgis@.ST_Intersects(e.geom, $5)'
            ' ORDER BY r.because IS DISTINCT FROM ''name'', CASE WHEN r.because = ''name'' THEN r.weight END DESC,'
            '    CASE WHEN r.because = ''name'' THEN length(e.name) END, r.weight DESC, similarity DESC, r.point_id'
            ' LIMIT $6', 'point_embedding_v' || version
        ) USING version, vector, query, question, area, k LOOP
            found := found || answer.point_id;
            point_id := answer.point_id;
            name := answer.name;
            category := answer.category;
            text := answer.text;
            geom := answer.geom;
            similarity := answer.similarity;
            percentile := callipper._percentile(-answer.similarity, city);
            because := answer.because;
            RETURN NEXT;
        END LOOP;
    END IF;
    IF cardinality(found) < k THEN
        RETURN QUERY SELECT b.point_id, b.name, b.category, b.text, b.geom, b.similarity, b.percentile, NULL::text
            FROM callipper._best_points(version, question, k - cardinality(found), area, found) b;
    END IF;
END
$$;
COMMENT ON FUNCTION callipper.search_points(text, bigint, @extschema:postgis@.geometry, integer) IS
    'The k training POIs that fit a text best, best first: SELECT * FROM search_points(''quiet park'', 10). First come POIs'
    ' whose name holds all of its words (because is name), then POIs of the kinds that it asks for (because is kind) and POIs'
    ' whose name and category are near to it, or hold its words but are of another kind (because is words), then those whose surroundings fit. similarity is that of the POI''s place; percentile (among the city''s cells) and within are those'
    ' of search(); category is what the model read where it was not trained on callipper.poi.';

-- Examples as a single vector, so that an index can serve it. To subtract the dislikes as a whole would find places that are
-- like nothing of either; half of them leaves what is liked in charge. An area is the mean of its cells, which the map has of the
-- active version alone.
CREATE OR REPLACE FUNCTION callipper._combine(
    version integer, likes text[], dislikes text[], like_places @extschema:postgis@.geometry[],
    dislike_places @extschema:postgis@.geometry[]
) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    share constant real := 0.5;
    has_map constant boolean := version = callipper._active_version();
    liked @extschema:vector@.vector;
    disliked @extschema:vector@.vector;
BEGIN
    IF coalesce(cardinality(likes), 0) + coalesce(cardinality(like_places), 0) = 0 THEN
        RAISE EXCEPTION 'there is no example to like' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give one text or more in the first array, such as ARRAY[''park''], or like_places.';
    ELSIF EXISTS (SELECT FROM unnest(likes || dislikes) AS t(example) WHERE t.example IS NULL)
        OR EXISTS (SELECT FROM unnest(like_places || dislike_places) AS t(example) WHERE t.example IS NULL) THEN
        RAISE EXCEPTION 'an example is NULL' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Leave it out: array_remove(examples, NULL).';
    END IF;
    SELECT @extschema:vector@.avg(e.emb) FILTER (WHERE e.liked), @extschema:vector@.avg(e.emb) FILTER (WHERE NOT e.liked)
        INTO liked, disliked FROM (
            SELECT true AS liked, callipper._find_text(t.example, version) AS emb FROM unnest(likes) AS t(example)
            UNION ALL SELECT false, callipper._find_text(t.example, version) FROM unnest(dislikes) AS t(example)
            UNION ALL
            SELECT p.liked, CASE WHEN has_map AND @extschema:postgis@.ST_Dimension(p.place) = 2 THEN callipper.area_embed(p.place)
                ELSE callipper._locate(p.place, version) END
            FROM (
                SELECT true, t.place FROM unnest(like_places) AS t(place)
                UNION ALL SELECT false, t.place FROM unnest(dislike_places) AS t(place)
            ) AS p(liked, place)
        ) AS e;
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
COMMENT ON FUNCTION callipper._combine(
    integer, text[], text[], @extschema:postgis@.geometry[], @extschema:postgis@.geometry[]
) IS 'unit vector of mean(likes) - mean(dislikes) / 2 of the embeddings of texts and places by a version';

-- The cells for examples.
CREATE OR REPLACE FUNCTION callipper.search_by_examples(
    likes text[] DEFAULT '{}', dislikes text[] DEFAULT '{}', k bigint DEFAULT 10,
    within @extschema:postgis@.geometry DEFAULT NULL, model integer DEFAULT callipper._active_version(),
    like_places @extschema:postgis@.geometry[] DEFAULT '{}', dislike_places @extschema:postgis@.geometry[] DEFAULT '{}'
) RETURNS TABLE (cell_id bigint, geom @extschema:postgis@.geometry, similarity float8, percentile float8)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER COST 100000 ROWS 10
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    version integer := callipper._require_model(model);
BEGIN
    RETURN QUERY SELECT * FROM callipper._best_cells(
        version, callipper._combine(version, likes, dislikes, like_places, dislike_places), k, callipper._area(within), '{}');
END
$$;
COMMENT ON FUNCTION callipper.search_by_examples(
    text[], text[], bigint, @extschema:postgis@.geometry, integer, @extschema:postgis@.geometry[],
    @extschema:postgis@.geometry[]
) IS
    'The k grid cells that are like the first texts and places and unlike the second, best first: SELECT * FROM'
    ' search_by_examples(ARRAY[''park'', ''school''], ARRAY[''nightclub'']), or search_by_examples(like_places =>'
    ' ARRAY[ST_SetSRID(ST_Point(7.42, 43.73), 4326)]). Cells rank by their mean similarity to the likes less half of that to the'
    ' dislikes; similarity is the cosine to the one vector that ranks so. A polygon counts as the mean of its cells. percentile, k'
    ' and within are those of search().';
