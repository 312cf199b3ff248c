-- The evidence for an answer: the kinds of places that a question asks for, the POIs of these kinds, and where these are close
-- together. An embedding finds similar places. An answer rests on POIs that are there, and names them.

-- The kinds that a question asks for. A kind is as near to a question as the nearest of its names and phrases, and a little
-- nearer for each other phrase that is near: one phrase alone is often near by chance. (The logarithm of a sum of exponentials
-- is a soft maximum.) The sum is divided by the root of the number of phrases, though not for fewer than ten. With the sum alone, common
-- kinds, which have more phrases, would take the questions of the others; with the mean, they would lose their own. A kind whose phrases
-- have the question's own words is nearer still. One with few POIs is less near, by half of `thinness` where there are five: such a kind
-- is often nothing but names that were misread. Kinds much farther than the nearest one do not count. If no phrase is near, there is no
-- kind. Kinds without POIs are left out first, because one of them would hide the next best. The numbers here and below were chosen on
-- questions that are not the benchmark's test half (docs/quality.md).
CREATE OR REPLACE FUNCTION callipper._kinds_asked(version integer, question @extschema:vector@.vector, words text)
RETURNS TABLE (kind_id integer, likeness float8, nearest_phrase float8)
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE ROWS 10 SET search_path = pg_catalog, pg_temp SET jit = off AS $$
#variable_conflict use_column
DECLARE
    sharpness constant float8 := 12;
    by_words constant float8 := 0.5;
    thinness constant float8 := 0.1;
    usual_phrases constant float8 := 40;
BEGIN
    RETURN QUERY
        SELECT k.kind_id, k.likeness, k.nearest_phrase FROM (
            SELECT n.kind_id, n.likeness, max(n.likeness) OVER () AS nearest, max(n.phrase) OVER () AS nearest_phrase FROM (
                SELECT p.kind_id, p.phrase, p.likeness + by_words * coalesce(w.share, 0) AS likeness FROM (
                    SELECT p.kind_id, max(p.likeness) AS phrase,
                        ln(sum(exp(sharpness * p.likeness)) / sqrt(greatest(10, count(*)) / usual_phrases)) / sharpness
                            - thinness * 5 / (5 + max(p.pois)) AS likeness
                    FROM (
                        SELECT p.kind_id, t.pois, @extschema:vector@.inner_product(p.vec, question) AS likeness
                        FROM callipper.kind_phrase p JOIN callipper.kind t ON t.version = p.version AND t.kind_id = p.kind_id
                        WHERE p.version = _kinds_asked.version AND t.pois > 0 OFFSET 0
                    ) p GROUP BY p.kind_id
                ) p LEFT JOIN callipper._shared_words(version, ARRAY[words], ARRAY(
                    SELECT t.kind_id FROM callipper.kind t WHERE t.version = _kinds_asked.version AND t.pois > 0
                )) w ON w.kind_id = p.kind_id
            ) n
        ) k WHERE k.nearest_phrase >= 0.4 AND k.likeness >= k.nearest - 0.08;
END
$$;
COMMENT ON FUNCTION callipper._kinds_asked(integer, @extschema:vector@.vector, text) IS
    'kinds of places that a question asks for, how near each is to the sentence encoder''s vector of it, and the cosine of the'
    ' nearest phrase of all';

-- The POIs whose own words are nearest to a question: 'Little Angel Puppet Theatre' for a puppet show. Kinds alone would not find
-- what is special about a POI. There are none in a version of an earlier program.
CREATE OR REPLACE FUNCTION callipper._alike_points(version integer, question @extschema:vector@.vector)
RETURNS TABLE (point_id bigint, likeness float8)
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED ROWS 300 SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    most constant integer := 300;
    least_likeness constant float8 := 0.3;
BEGIN
    IF to_regclass(format('callipper.%I', 'point_name_v' || version)) IS NOT NULL THEN
        RETURN QUERY EXECUTE format(
            'SELECT n.point_id, -n.distance FROM ('
            '    SELECT p.point_id, p.vec OPERATOR(@extschema:vector@.<#>) $1 AS distance FROM callipper.%I p'
            '    ORDER BY distance, p.point_id LIMIT $2'
            ') n WHERE n.distance <= -$3',
            'point_name_v' || version
        ) USING question::@extschema:vector@.halfvec, most, least_likeness;
    END IF;
END
$$;
COMMENT ON FUNCTION callipper._alike_points(integer, @extschema:vector@.vector) IS
    'the 300 POIs whose name and category are nearest to a question, with their cosines';

-- The POIs that a question asks for: those of its kinds, those whose own words are near to it, and those whose name has all of its
-- words, in whatever language the data have it. The nearest of all, kind or POI, weighs 1, the others less. reading is the kind by
-- which a POI counts; its own kind where its words or its name count alone. A kind counts for less
-- if only the name of the POI suggests it. A name counts for less if it is that of something near: a bus stop. A question without
-- a word, such as '?', matches no name; client_min_messages hides the NOTICE about it.
-- A word that few names have, and that is no name of the kind asked for, says which of that kind are meant: of butchers the kosher
-- ones. Where at least two have it, the others count a third. Where the question is nearly a phrase, its kinds are sure. Then a POI of
-- another kind counts a third, even if its name holds the words: asked for "cash", a cash and carry. But one of those words must be in no
-- name of the kinds: a place that is called a care home is one, whatever its category.
CREATE OR REPLACE FUNCTION callipper._relevant_points(version integer, question @extschema:vector@.vector, words text)
RETURNS TABLE (
    point_id bigint, easting float8, northing float8, i integer, j integer, weight float8, because text,
    reading integer, nearest_phrase float8
)
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED ROWS 2000
SET search_path = pg_catalog, pg_temp SET jit = off SET client_min_messages = warning AS $$
DECLARE
    by_name_alone constant float8 := exp(-1);
    sharpness constant float8 := 20;
    others constant float8 := 0.35;
    is_phrase constant float8 := 0.9;  -- least cosine of the nearest phrase
    shortest_word constant integer := 4;  -- letters; a name with a longer word that begins so has the word
    few constant bigint := (SELECT greatest(10, 0.0025 * sum(k.own_pois)) FROM callipper.kind k WHERE k.version = _relevant_points.version);
    spoken constant text[] := callipper._spoken(version);
    is_own_name constant text := CASE WHEN to_regclass(format('callipper.%I', 'point_name_v' || version)) IS NULL THEN 'true'
        ELSE format('EXISTS (SELECT FROM callipper.%I n WHERE n.point_id = e.point_id)', 'point_name_v' || version) END;
    -- Names in other languages are attributes of OpenStreetMap's and Overture's POIs; the index poi_other_names_idx has them.
    in_another_language constant text := format($other$
        UNION ALL SELECT p.point_id, p.easting, p.northing, p.i, p.j, p.kind_id, 0, 0, CASE WHEN OWN THEN 1.0 ELSE 0.5 END
        FROM callipper.poi o JOIN callipper.%1$I e ON e.point_id = o.poi_id
            JOIN callipper.%2$I p ON p.point_id = e.point_id AND p.basis = 0
        WHERE (strpos(o.attributes::text, '"name:') > 0 OR o.attributes ? 'names')
            AND jsonb_to_tsvector('simple', jsonb_path_query_array(o.attributes,
                '$.keyvalue() ? (@.key starts with "name:" || @.key == "names").value'), '["string"]') @@ $4
    $other$, 'point_embedding_v' || version, 'point_kind_v' || version);
BEGIN
    RETURN QUERY EXECUTE format($query$
        WITH asked AS MATERIALIZED (
            SELECT * FROM callipper._kinds_asked($1, $2, $6)
        ), alike AS MATERIALIZED (
            SELECT a.point_id, a.likeness FROM callipper._alike_points($1, $2) a
        ), which AS MATERIALIZED (
            SELECT to_tsquery('simple'::regconfig, quote_literal(w.word) || ':*') AS query
            FROM unnest(callipper._lexemes(left($6, 1000), $8)) AS w(word)
            WHERE length(w.word) >= $9 AND w.word <> ALL (ARRAY(
                SELECT unnest(callipper._lexemes(k.name, $8))
                FROM asked a JOIN callipper.kind k ON k.version = $1 AND k.kind_id = a.kind_id
            ))
        ), meant AS MATERIALIZED (
            SELECT e.point_id
            FROM which w JOIN callipper.%2$I e ON to_tsvector('simple'::regconfig, e.name) @@ w.query
            WHERE (SELECT count(*) FROM (
                SELECT FROM callipper.%2$I n WHERE to_tsvector('simple'::regconfig, n.name) @@ w.query LIMIT $10 + 1
            ) n) <= $10
        ), are_meant AS MATERIALIZED (
            SELECT count(DISTINCT p.point_id) >= 2 AS enough
            FROM meant m JOIN callipper.%1$I p ON p.point_id = m.point_id AND p.basis < 4 JOIN asked a ON a.kind_id = p.kind_id
        ), nearest AS (
            SELECT greatest((SELECT max(a.likeness) FROM asked a), (SELECT max(a.likeness) FROM alike a)) AS likeness
        ), suggested AS (
            SELECT p.point_id, p.easting, p.northing, p.i, p.j, p.kind_id,
                exp($5 * (a.likeness - n.likeness)) * CASE WHEN p.basis > 0 THEN $3 ELSE 1 END
                    * CASE WHEN t.enough AND p.point_id NOT IN (SELECT m.point_id FROM meant m) THEN $7 ELSE 1 END AS by_kind,
                0.0::float8 AS by_words, 0.0::float8 AS by_name
            FROM nearest n CROSS JOIN are_meant t CROSS JOIN asked a
                JOIN callipper.%1$I p ON p.kind_id = a.kind_id AND p.basis < 4
            UNION ALL SELECT p.point_id, p.easting, p.northing, p.i, p.j, p.kind_id, 0, exp($5 * (a.likeness - n.likeness)), 0
            FROM nearest n CROSS JOIN alike a JOIN callipper.%1$I p ON p.point_id = a.point_id AND p.basis = 0
            UNION ALL SELECT p.point_id, p.easting, p.northing, p.i, p.j, p.kind_id, 0, 0, CASE WHEN %3$s THEN 1.0 ELSE 0.5 END
            FROM callipper.%2$I e JOIN callipper.%1$I p ON p.point_id = e.point_id AND p.basis = 0
            WHERE to_tsvector('simple'::regconfig, e.name) @@ $4
            %4$s
        ), weighed AS (
            SELECT s.point_id, s.easting, s.northing, s.i, s.j, max(s.by_kind) AS by_kind, max(s.by_words) AS by_words,
                max(s.by_name) AS by_name, (max(ARRAY[s.by_kind, s.kind_id]))[2]::integer AS reading, n.phrase AS nearest_phrase,
                max(s.by_kind) = 0 AND n.phrase >= $11 AND EXISTS (SELECT FROM which) AS is_other_kind
            FROM suggested s CROSS JOIN (SELECT max(a.nearest_phrase) AS phrase FROM asked a) n
            GROUP BY s.point_id, s.easting, s.northing, s.i, s.j, n.phrase
        )
        SELECT w.point_id, w.easting, w.northing, w.i, w.j,
            greatest(w.by_name * CASE WHEN w.is_other_kind THEN $7 ELSE 1 END, least(1, w.by_kind + w.by_words)),
            CASE WHEN w.by_name > 0 THEN CASE WHEN w.is_other_kind THEN 'words' ELSE 'name' END
                WHEN w.by_kind >= w.by_words THEN 'kind' WHEN w.by_words >= 0.05 THEN 'words' END,
            w.reading, w.nearest_phrase
        FROM weighed w
    $query$, 'point_kind_v' || version, 'point_embedding_v' || version, is_own_name,
        CASE WHEN callipper._points_are_pois(version) THEN replace(in_another_language, 'OWN', is_own_name) END
    ) USING version, question, by_name_alone, plainto_tsquery('simple'::regconfig, left(words, 1000)), sharpness, words,
        others, spoken, shortest_word, few, is_phrase;
END
$$;
COMMENT ON FUNCTION callipper._relevant_points(integer, @extschema:vector@.vector, text) IS
    'POIs of a version that a question asks for, with weights of at most 1, what weighs most (name, kind or words), the kind that'
    ' the question is read as, and the cosine of the nearest phrase of all';

-- Whether a version has evidence. Versions of earlier programs have none and answer by their embeddings alone.
CREATE OR REPLACE FUNCTION callipper._has_evidence(version integer) RETURNS boolean
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN to_regclass(format('callipper.%I', 'point_kind_v' || version)) IS NOT NULL;
END
$$;
COMMENT ON FUNCTION callipper._has_evidence(integer) IS 'whether a version knows the kinds of its POIs';

-- The name and category of a POI, as an answer gives them for a reason.
CREATE OR REPLACE FUNCTION callipper._label(name text, content text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN $1 IS NULL OR $1 OPERATOR(pg_catalog.=) '' THEN pg_catalog.left($2, 60)
        ELSE pg_catalog.concat(pg_catalog.left($1, 60), ' (', pg_catalog.left($2, 60), ')') END
$$;
COMMENT ON FUNCTION callipper._label(text, text) IS 'name and category of a POI in one text';
