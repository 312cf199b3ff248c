-- What is it like here? The kinds of places that are there, and stand out from the rest of the city. What nobody can see there
-- is not said.

-- The kinds of which POIs stand within reach of a place, or in an area. Where the data have a category for a kind, its POIs alone
-- count. Else names do: fully if a name says so, by half if it is like the kind's, and by half each name of bus stops and such,
-- which are called after what is near. What is like a landmark is none: a bar may be called Zoo.
CREATE OR REPLACE FUNCTION callipper._kinds_here(version integer, place @extschema:postgis@.geometry)
RETURNS TABLE (kind_id integer, pois integer, evidence float8, all_pois float8, nearest bigint[])
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED ROWS 20 SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    is_area constant boolean := @extschema:postgis@.ST_Dimension(place) = 2;
    reach_m float8 := 0;
    srid constant integer := (SELECT m.srid FROM callipper.model m WHERE m.version = _kinds_here.version);
    city constant @extschema:postgis@.geometry
        := (SELECT @extschema:postgis@.ST_Expand(m.extent, float8 '1') FROM callipper.model m WHERE m.version = _kinds_here.version);
    here @extschema:postgis@.geometry;
    box @extschema:postgis@.geometry;
BEGIN
    here := CASE WHEN is_area THEN callipper._area(place) ELSE callipper._as_point(place, 4326) END;
    IF is_area AND NOT here OPERATOR(@extschema:postgis@.@) city THEN  -- a projection has no numbers for the rest of the world
        here := @extschema:postgis@.ST_ClipByBox2D(here, city::@extschema:postgis@.box2d);
    END IF;
    here := @extschema:postgis@.ST_Transform(here, srid);
    IF NOT is_area THEN
        reach_m := callipper._describe_reach_m(version, here);
    END IF;
    box := @extschema:postgis@.ST_Expand(@extschema:postgis@.ST_Envelope(here), reach_m + 1);
    RETURN QUERY EXECUTE format($query$
        WITH near AS MATERIALIZED (
            SELECT p.kind_id, p.basis, p.point_id,
                @extschema:postgis@.ST_Distance(@extschema:postgis@.ST_SetSRID(
                    @extschema:postgis@.ST_MakePoint(p.easting::float8, p.northing::float8), $2), $1) AS distance
            FROM callipper.%1$I p
            WHERE p.i BETWEEN $3 AND $4 AND p.j BETWEEN $5 AND $6 AND p.basis <> 3
        ), inside AS MATERIALIZED (
            SELECT * FROM near WHERE distance <= $7
        ), counted AS (
            SELECT n.* FROM inside n JOIN callipper.kind k ON k.version = $8 AND k.kind_id = n.kind_id
            WHERE n.basis = 0 OR k.own_pois = 0 AND (n.basis = 1 OR n.basis = 2 AND NOT k.landmark)
            UNION ALL (
                SELECT DISTINCT ON (n.kind_id, e.name) n.* FROM inside n
                    JOIN callipper.kind k ON k.version = $8 AND k.kind_id = n.kind_id AND k.own_pois = 0
                    JOIN callipper.%2$I e ON e.point_id = n.point_id
                WHERE n.basis = 4 ORDER BY n.kind_id, e.name, n.distance, n.point_id
            )
        )
        SELECT n.kind_id, count(*)::integer, sum(CASE WHEN n.basis > 1 THEN 0.5 ELSE 1.0 END)::float8,
            (SELECT count(*)::float8 FROM inside WHERE basis = 0),
            (array_agg(n.point_id ORDER BY n.basis, n.distance, n.point_id))[:3]
        FROM counted n GROUP BY n.kind_id
    $query$, 'point_kind_v' || version, 'point_embedding_v' || version)
    USING here, srid,
        floor(@extschema:postgis@.ST_XMin(box::@extschema:postgis@.box3d) / 100)::integer,
        floor(@extschema:postgis@.ST_XMax(box::@extschema:postgis@.box3d) / 100)::integer,
        floor(@extschema:postgis@.ST_YMin(box::@extschema:postgis@.box3d) / 100)::integer,
        floor(@extschema:postgis@.ST_YMax(box::@extschema:postgis@.box3d) / 100)::integer,
        reach_m, version;
END
$$;
COMMENT ON FUNCTION callipper._kinds_here(integer, @extschema:postgis@.geometry) IS
    'kinds of POIs near a place or in an area: how many there are, what they weigh, all POIs there, and the three nearest';

-- The kinds that stand out. The first is the one whose number is the least likely by chance, by the log-likelihood ratio of a
-- Poisson count and the number that is usual among so many POIs, or rather by its root; of two that are as unlikely, the rarer kind says more. Five more POIs in the city keep the
-- rarest kinds in bounds. At a place, a prominent kind counts by how few places have one near as well: one station is usual
-- among 200 POIs, but it is what a place is known by. Each next kind is taken by what it adds: one that is like one said
-- already says little. callipper_trainer/standing_out.py has the same numbers.
CREATE OR REPLACE FUNCTION callipper._standing_out(version integer, place @extschema:postgis@.geometry, k bigint)
RETURNS TABLE (kind_id integer, name text, pois integer, lift float8, nearest bigint[])
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED ROWS 10 SET search_path = pg_catalog, pg_temp SET jit = off AS $$
#variable_conflict use_column
DECLARE
    city constant float8 := (SELECT sum(t.own_pois) FROM callipper.kind t WHERE t.version = _standing_out.version);
    is_area constant boolean := @extschema:postgis@.ST_Dimension(place) = 2;
    gains float8[];
    lifts float8[];  -- not in the answers: JSON would round them by the session's extra_float_digits
    answers jsonb[];
    vectors @extschema:vector@.vector[];
    best integer;
BEGIN
    SELECT array_agg(greatest(
            sqrt((r.evidence * ln(r.evidence / r.usual) - (r.evidence - r.usual)) * greatest(0, ln(city / r.sure_pois)) / 6), r.rare) ORDER BY r.name),
        array_agg(r.vec ORDER BY r.name),
        array_agg(r.lift ORDER BY r.name),
        array_agg(jsonb_build_object('kind_id', r.kind_id, 'name', r.name, 'pois', r.pois, 'nearest', r.nearest) ORDER BY r.name)
    INTO gains, vectors, lifts, answers FROM (
        SELECT s.*, p.vec
        FROM (
            SELECT h.*, t.name, t.sure_pois, h.evidence / h.all_pois / (t.sure_pois / city) AS lift,
                least(h.evidence, h.all_pois * (t.sure_pois + 5) / city) AS usual,
                CASE WHEN NOT is_area THEN -1.5 * ln(t.area_share) END AS rare
            FROM callipper._kinds_here(version, place) h JOIN callipper.kind t ON t.version = $1 AND t.kind_id = h.kind_id
            WHERE t.said AND t.sure_pois > 0
        ) s LEFT JOIN callipper.kind_phrase p ON p.version = $1 AND p.kind_id = s.kind_id AND p.phrase = s.name
        WHERE s.evidence >= 1 AND (s.lift >= 2 OR s.rare IS NOT NULL AND s.lift >= 1)
    ) r;
    FOR _ IN 1 .. least(k, coalesce(cardinality(answers), 0)) LOOP
        best := (SELECT g.place FROM unnest(gains) WITH ORDINALITY AS g(gain, place) WHERE g.gain > 0 ORDER BY g.gain DESC, g.place LIMIT 1);
        EXIT WHEN best IS NULL;
        kind_id := answers[best] ->> 'kind_id';
        name := answers[best] ->> 'name';
        pois := answers[best] ->> 'pois';
        lift := lifts[best];
        nearest := ARRAY(SELECT jsonb_array_elements_text(answers[best] -> 'nearest')::bigint);
        RETURN NEXT;
        FOR n IN 1 .. cardinality(gains) LOOP
            IF gains[n] > 0 THEN
                gains[n] := gains[n] * CASE WHEN n = best THEN 0
                    ELSE least(1, greatest(0, (0.9 - coalesce(@extschema:vector@.inner_product(vectors[n], vectors[best]), 0)) / 0.5))
                    END;
            END IF;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION callipper._standing_out(integer, @extschema:postgis@.geometry, bigint) IS
    'at most k kinds that say what a place is like, best first';

-- The language of an answer: 'pt' of 'pt-BR' and 'pt_BR'. The kinds of a version have English names, and those in kind_name.
CREATE OR REPLACE FUNCTION callipper._require_language(language text, version integer) RETURNS text
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    code constant text := substring(lower(language) FROM '^[a-z]*');
BEGIN
    IF code = 'en'
        OR EXISTS (SELECT FROM callipper.kind_name n WHERE n.version = _require_language.version AND n.language = code) THEN
        RETURN code;
    END IF;
    RAISE EXCEPTION 'model version % has no words in the language "%"', version, left(language, 20)
        USING ERRCODE = 'undefined_object', HINT = format('It has words in: %s.', concat_ws(', ', 'en', (
            SELECT string_agg(DISTINCT n.language, ', ') FROM callipper.kind_name n WHERE n.version = _require_language.version)));
END
$$;
COMMENT ON FUNCTION callipper._require_language(text, integer) IS
    'the code of a language in which a model version has names of kinds; an error for another';

-- What stands out at a place, with the reasons.
CREATE OR REPLACE FUNCTION callipper.describe(
    place @extschema:postgis@.geometry, k bigint DEFAULT 10, model integer DEFAULT callipper._active_version(),
    language text DEFAULT 'en'
) RETURNS TABLE (text text, similarity float8, percentile float8, pois integer, lift float8, because text)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER COST 100000 ROWS 10
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    answering constant integer := callipper._require_model(model);
    spoken constant text := callipper._require_language(language, answering);
    embedding constant @extschema:vector@.vector := callipper._locate(place, answering);
BEGIN
    IF callipper._require_k(k) IS NULL OR embedding IS NULL OR spoken IS NULL THEN
        RETURN;
    ELSIF NOT callipper._has_evidence(answering) THEN
        RETURN QUERY SELECT b.text, b.similarity, b.percentile, NULL::integer, NULL::float8, NULL::text
            FROM callipper._best_texts(answering, embedding, k) b;
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format($query$
        SELECT coalesce(l.name, b.name), -(e.emb OPERATOR(@extschema:vector@.<#>) $3),
            callipper._percentile(e.emb OPERATOR(@extschema:vector@.<#>) $3, callipper._city_distances($1, e.emb)),
            b.pois, b.lift, (
                SELECT string_agg(n.label, '; ' ORDER BY n.place) FROM (
                    SELECT callipper._label(p.name, p.text) AS label, min(a.place) AS place
                    FROM unnest(b.nearest) WITH ORDINALITY AS a(point_id, place) JOIN callipper.%1$I p ON p.point_id = a.point_id
                    GROUP BY label
                ) n
            )
        FROM callipper._standing_out($1, $2, $4) WITH ORDINALITY AS b(kind_id, name, pois, lift, nearest, place)
            LEFT JOIN callipper.%2$I e ON e.text_hash = hashtextextended(b.name, 0) AND e.text = b.name
            LEFT JOIN callipper.kind_name l ON l.version = $1 AND l.language = $5 AND l.kind_id = b.kind_id
        ORDER BY b.place
    $query$, 'point_embedding_v' || answering, 'text_embedding_v' || answering)
    USING answering, place, embedding, k, spoken;
END
$$;
COMMENT ON FUNCTION callipper.describe(@extschema:postgis@.geometry, bigint, integer, text) IS
    'Up to k kinds of places that say what a place is like: SELECT * FROM describe(ST_SetSRID(ST_Point(7.4206, 43.7326), 4326)).'
    ' They are kinds of which POIs stand within 250 m (where fewer than five are so near, 500 m or 1 km), at least twice as many as is usual in the city, or a station, a'
    ' stadium and the like that few places have near; first the one that is the least due to chance, each next one by what it adds. pois is their number, lift their share there over their share in the'
    ' city, because names up to three. A kind without a category of its own is found by the names of POIs, and of bus stops, which'
    ' are named after what is near. similarity and percentile are those of search(), for the name of the kind. Of a polygon, what'
    ' is inside counts. Where no POIs are near, or nothing stands out, nothing is said. language, such'
    ' as ''de'', is that of the kinds'' names.';

-- For a version of an earlier program, which does not know the kinds of its POIs: the texts by which the place stands out most.
-- By similarity alone, every place would be like the same few words. The partition is named, so that no other version's texts are locked.
CREATE OR REPLACE FUNCTION callipper._best_texts(version integer, place @extschema:vector@.vector, k bigint)
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
COMMENT ON FUNCTION callipper._best_texts(integer, @extschema:vector@.vector, bigint) IS
    'the k texts of a version''s vocabulary by which a place stands out most among the version''s sampled cells';

-- SQL, so that it is folded to a number where both arguments are constant, and cannot be cheaper than its parts.
CREATE OR REPLACE FUNCTION callipper.text_similarity(text text, place @extschema:postgis@.geometry) RETURNS float8
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 1000000 AS $$
    SELECT @extschema:vector@.inner_product(callipper.text_embed($1), callipper.loc_embed($2))
$$;
COMMENT ON FUNCTION callipper.text_similarity(text, @extschema:postgis@.geometry) IS
    'How well a text fits a place: SELECT text_similarity(''quiet park'', ST_SetSRID(ST_Point(7.4206, 43.7326), 4326)). The'
    ' cosine, from -1 to 1. Compare it between places; between texts, describe() is fairer.';
