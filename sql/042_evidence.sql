-- The evidence for an answer: the kinds of places that a question asks for, the POIs of these kinds, and where these are close
-- together. An embedding finds similar places. An answer rests on POIs that are there, and names them.

-- The kinds that a question asks for. A kind is as near to a question as the nearest of its names and phrases, and a little nearer
-- for each other phrase that is near: one phrase alone is often near by chance. (The logarithm of a sum of exponentials is a soft
-- maximum.) Kinds much farther than the nearest one do not count. If no phrase is near, there is no kind. Kinds without POIs are
-- left out first, because one of them would hide the next best. The numbers here and below were chosen on questions that are not
-- the benchmark's test half (docs/quality.md).
CREATE OR REPLACE FUNCTION callipper._kinds_asked(version integer, question @extschema:vector@.vector)
RETURNS TABLE (kind_id integer, likeness float8)
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    sharpness constant float8 := 20;
BEGIN
    RETURN QUERY
        SELECT k.kind_id, k.likeness FROM (
            SELECT n.kind_id, n.likeness, max(n.likeness) OVER () AS nearest, max(n.phrase) OVER () AS nearest_phrase FROM (
                SELECT p.kind_id, max(p.likeness) AS phrase, ln(sum(exp(sharpness * p.likeness))) / sharpness AS likeness FROM (
                    SELECT p.kind_id, @extschema:vector@.inner_product(p.vec, question) AS likeness
                    FROM callipper.kind_phrase p JOIN callipper.kind t ON t.version = p.version AND t.kind_id = p.kind_id
                    WHERE p.version = _kinds_asked.version AND t.pois > 0 OFFSET 0
                ) p GROUP BY p.kind_id
            ) n
        ) k WHERE k.nearest_phrase >= 0.4 AND k.likeness >= k.nearest - 0.08;
END
$$;
COMMENT ON FUNCTION callipper._kinds_asked(integer, @extschema:vector@.vector) IS
    'kinds of places that a question asks for, and how near each is to the sentence encoder''s vector of it';

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
-- words, in whatever language the data have it. The nearest of all, kind or POI, weighs 1, the others less. A kind counts for less
-- if only the name of the POI suggests it. A name counts for less if it is that of something near: a bus stop. A question without
-- a word, such as '?', matches no name; client_min_messages hides the NOTICE about it.
CREATE OR REPLACE FUNCTION callipper._relevant_points(version integer, question @extschema:vector@.vector, words text)
RETURNS TABLE (point_id bigint, easting float8, northing float8, i integer, j integer, weight float8, because text)
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED ROWS 2000
SET search_path = pg_catalog, pg_temp SET jit = off SET client_min_messages = warning AS $$
DECLARE
    by_name_alone constant float8 := exp(-1);
    sharpness constant float8 := 20;
    is_own_name constant text := CASE WHEN to_regclass(format('callipper.%I', 'point_name_v' || version)) IS NULL THEN 'true'
        ELSE format('EXISTS (SELECT FROM callipper.%I n WHERE n.point_id = e.point_id)', 'point_name_v' || version) END;
    -- Names in other languages are attributes of OpenStreetMap's and Overture's POIs; the index poi_other_names_idx has them.
    in_another_language constant text := format($other$
        UNION ALL SELECT p.point_id, p.easting, p.northing, p.i, p.j, 0, 0, CASE WHEN OWN THEN 1.0 ELSE 0.5 END
        FROM callipper.poi o JOIN callipper.%1$I e ON e.point_id = o.poi_id
            JOIN callipper.%2$I p ON p.point_id = e.point_id AND p.basis = 0
        WHERE (strpos(o.attributes::text, '"name:') > 0 OR o.attributes ? 'names')
            AND jsonb_to_tsvector('simple', jsonb_path_query_array(o.attributes,
                '$.keyvalue() ? (@.key starts with "name:" || @.key == "names").value'), '["string"]') @@ $4
    $other$, 'point_embedding_v' || version, 'point_kind_v' || version);
BEGIN
    RETURN QUERY EXECUTE format($query$
        WITH asked AS MATERIALIZED (
            SELECT a.kind_id, a.likeness FROM callipper._kinds_asked($1, $2) a
        ), alike AS MATERIALIZED (
            SELECT a.point_id, a.likeness FROM callipper._alike_points($1, $2) a
        ), nearest AS (
            SELECT greatest((SELECT max(a.likeness) FROM asked a), (SELECT max(a.likeness) FROM alike a)) AS likeness
        )
        SELECT r.point_id, r.easting, r.northing, r.i, r.j,
            greatest(max(r.by_name), least(1, max(r.by_kind) + max(r.by_words))),
            CASE WHEN max(r.by_name) > 0 THEN 'name' WHEN max(r.by_kind) >= max(r.by_words) THEN 'kind'
                WHEN max(r.by_words) >= 0.05 THEN 'words' END
        FROM (
            SELECT p.point_id, p.easting, p.northing, p.i, p.j,
                exp($5 * (a.likeness - n.likeness)) * CASE WHEN p.basis > 0 THEN $3 ELSE 1 END AS by_kind,
                0.0::float8 AS by_words, 0.0::float8 AS by_name
            FROM nearest n CROSS JOIN asked a JOIN callipper.%1$I p ON p.kind_id = a.kind_id AND p.basis < 4
            UNION ALL SELECT p.point_id, p.easting, p.northing, p.i, p.j, 0, exp($5 * (a.likeness - n.likeness)), 0
            FROM nearest n CROSS JOIN alike a JOIN callipper.%1$I p ON p.point_id = a.point_id AND p.basis = 0
            UNION ALL SELECT p.point_id, p.easting, p.northing, p.i, p.j, 0, 0, CASE WHEN %3$s THEN 1.0 ELSE 0.5 END
            FROM callipper.%2$I e JOIN callipper.%1$I p ON p.point_id = e.point_id AND p.basis = 0
            WHERE to_tsvector('simple'::regconfig, e.name) @@ $4
            %4$s
        ) r GROUP BY r.point_id, r.easting, r.northing, r.i, r.j
    $query$, 'point_kind_v' || version, 'point_embedding_v' || version, is_own_name,
        CASE WHEN callipper._points_are_pois(version) THEN replace(in_another_language, 'OWN', is_own_name) END
    ) USING version, question, by_name_alone, plainto_tsquery('simple'::regconfig, left(words, 1000)), sharpness;
END
$$;
COMMENT ON FUNCTION callipper._relevant_points(integer, @extschema:vector@.vector, text) IS
    'POIs of a version that a question asks for, with weights of at most 1, and what weighs most: name, kind or words';

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

-- The best cells by the evidence. The squares with the most relevant POIs are rated: the weight of relevant POIs within 250 m,
-- divided by a power of the number of all POIs there. A prior of five keeps a lonely POI from winning. The answer of a square
-- is the cell that contains the middle of its relevant POIs. The POIs around all answers are found by one join of squares, because
-- a broad question has tens of thousands. With an area, only squares in its bounding box are rated. The box is cut to the city
-- first, because a projection made for one city has no coordinates for the other side of the earth.
CREATE OR REPLACE FUNCTION callipper._cells_by_evidence(
    version integer, question @extschema:vector@.vector, words text, k bigint, area @extschema:postgis@.geometry
) RETURNS TABLE (
    cell_id bigint, geom @extschema:postgis@.geometry, score float8, relevant integer, lift float8, because text
)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp SET jit = off AS $$
#variable_conflict use_column
DECLARE
    srid constant integer := (SELECT m.srid FROM callipper.model m WHERE m.version = _cells_by_evidence.version);
    grid constant integer := (SELECT m.grid_id FROM callipper.model m WHERE m.version = _cells_by_evidence.version);
    pois constant float8 := (SELECT sum(t.own_pois) FROM callipper.kind t WHERE t.version = _cells_by_evidence.version);
    size_m constant float8 := (SELECT g.size_m FROM callipper.grid g WHERE g.grid_id = grid);
    around constant @extschema:postgis@.geometry
        := (SELECT @extschema:postgis@.ST_Expand(m.extent, float8 '1') FROM callipper.model m WHERE m.version = _cells_by_evidence.version);
    wanted constant bigint := least(k, 1000000000);  -- more cells than any city has, and its multiples are no overflow
    tried constant bigint := ceil((3 * wanted + 20) * least(greatest(1, size_m / 100) ^ 2, 1e6));  -- a cell may hold many squares
    box @extschema:postgis@.geometry;
BEGIN
    IF area IS NOT NULL THEN
        box := @extschema:postgis@.ST_Intersection(@extschema:postgis@.ST_Envelope(area), around, float8 '-1');
        box := @extschema:postgis@.ST_Transform(@extschema:postgis@.ST_Segmentize(box, float8 '0.1'), srid);
        box := @extschema:postgis@.ST_Expand(@extschema:postgis@.ST_Envelope(box), 100 + 2 * size_m);
    END IF;
    RETURN QUERY EXECUTE format($query$
        WITH relevant AS MATERIALIZED (
            SELECT * FROM callipper._relevant_points($1, $2, $3)
        ), total AS (
            SELECT count(*)::float8 AS pois FROM relevant WHERE weight >= 0.3
        ), square AS MATERIALIZED (
            SELECT i, j, sum(weight) AS weight, sum(easting * weight) / sum(weight) AS easting,
                sum(northing * weight) / sum(weight) AS northing
            FROM relevant GROUP BY i, j
        ), seed AS (
            SELECT * FROM square
            WHERE $4 IS NULL OR (
                easting BETWEEN @extschema:postgis@.ST_XMin($4::@extschema:postgis@.box3d)
                    AND @extschema:postgis@.ST_XMax($4::@extschema:postgis@.box3d)
                AND northing BETWEEN @extschema:postgis@.ST_YMin($4::@extschema:postgis@.box3d)
                    AND @extschema:postgis@.ST_YMax($4::@extschema:postgis@.box3d)
            )
            ORDER BY weight DESC, i, j LIMIT greatest(1500, 5 * $12)
        ), rated AS (
            SELECT s.i, s.j, s.easting, s.northing, d.pois,
                sum(o.weight * a.share) / (greatest(d.pois, 1) + 5.0::float8) ^ 0.6::float8 AS score
            FROM seed s CROSS JOIN callipper._squares_around() a
                JOIN square o ON o.i = s.i + a.i AND o.j = s.j + a.j
                JOIN callipper.poi_density d ON d.version = $1 AND d.i = s.i AND d.j = s.j
            GROUP BY s.i, s.j, s.easting, s.northing, d.pois
            ORDER BY score DESC, s.i, s.j
        ), found AS (
            SELECT DISTINCT ON (c.cell_id) c.cell_id, c.geom, r.score, r.easting, r.northing, r.pois
            FROM (SELECT * FROM rated ORDER BY score DESC, i, j LIMIT CASE WHEN $6 IS NULL THEN $11 END) r,
                LATERAL (
                    SELECT c.cell_id, c.geom FROM callipper.cell c
                    WHERE c.grid_id = $7 AND @extschema:postgis@.ST_Intersects(c.geom, @extschema:postgis@.ST_Transform(
                        @extschema:postgis@.ST_SetSRID(@extschema:postgis@.ST_MakePoint(r.easting::float8, r.northing::float8), $8), 4326))
                    ORDER BY c.cell_id LIMIT 1
                ) c
            WHERE $6 IS NULL OR @extschema:postgis@.ST_Intersects(c.geom, $6)
            ORDER BY c.cell_id, r.score DESC
        ), best AS MATERIALIZED (
            SELECT *, floor(easting / 100)::integer AS i, floor(northing / 100)::integer AS j
            FROM found ORDER BY score DESC, cell_id LIMIT $5
        ), near AS MATERIALIZED (
            SELECT f.cell_id, r.point_id, r.weight, r.distance,
                row_number() OVER (PARTITION BY f.cell_id ORDER BY r.weight DESC, r.distance, r.point_id) AS place
            FROM best f CROSS JOIN generate_series(-3, 3) AS a(i) CROSS JOIN generate_series(-3, 3) AS b(j)
                JOIN relevant p ON p.i = f.i + a.i AND p.j = f.j + b.j AND p.weight >= 0.3,
                LATERAL (
                    SELECT p.point_id, round(p.weight::numeric, 3) AS weight,  -- of nearly equal ones the nearer counts
                        point(p.easting, p.northing) <-> point(f.easting, f.northing) AS distance
                ) r
            WHERE r.distance <= $10
        ), counted AS (
            SELECT cell_id, count(*)::float8 AS relevant FROM near GROUP BY cell_id
        ), named AS (
            SELECT n.cell_id, e.name, e.text, row_number() OVER (
                    PARTITION BY n.cell_id ORDER BY max(n.weight) DESC, min(n.distance), min(n.point_id)) AS place
            FROM near n JOIN callipper.%1$I e ON e.point_id = n.point_id WHERE n.place <= 12 GROUP BY n.cell_id, e.name, e.text
        ), reason AS (
            SELECT n.cell_id, string_agg(callipper._label(n.name, n.text), '; ' ORDER BY n.place) AS because
            FROM named n WHERE n.place <= 3 GROUP BY n.cell_id
        )
        SELECT f.cell_id, f.geom, f.score, coalesce(c.relevant, 0)::integer,
            coalesce(c.relevant, 0) / greatest(f.pois, c.relevant, 1) / nullif((SELECT pois FROM total) / $9, 0), r.because
        FROM best f LEFT JOIN counted c ON c.cell_id = f.cell_id LEFT JOIN reason r ON r.cell_id = f.cell_id
        ORDER BY f.score DESC, f.cell_id
    $query$, 'point_embedding_v' || version
    ) USING version, question, words, box, k, area, grid, srid, pois, callipper._evidence_reach_m(), tried, wanted;
END
$$;
COMMENT ON FUNCTION callipper._cells_by_evidence(
    integer, @extschema:vector@.vector, text, bigint, @extschema:postgis@.geometry
) IS 'the cells of a version around which most of what a question asks for stands, best first, with the reasons';
