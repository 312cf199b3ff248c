-- The cells that answer a question, by the evidence around them, and in which order.

-- The order of candidates in which each reading of the question has its turn, and each part of the city. Without, the ten answers
-- to "somewhere to sit and read" are all cafes of one shopping centre. With each answer, the readings that made it count less for
-- the next ones, by `kept` (1 leaves them as they are), and so do the places within reach of it, by `near_another`. A candidate has
-- a row for each reading: its place in metres, and the reading's part of its score.
CREATE OR REPLACE FUNCTION callipper._in_turn(
    candidates bigint[], eastings float8[], northings float8[], readings integer[], parts float8[], kept float8,
    near_another float8, k bigint
) RETURNS TABLE (candidate bigint, place bigint)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE ROWS 50 SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    most constant integer := 50;  -- answers in turn; nobody reads on to see the next reading
    reach_m constant float8 := callipper._evidence_reach_m();
    weights float8[] := array_fill(1.0::float8, ARRAY[(SELECT max(r.reading) FROM unnest(readings) AS r(reading))]);
    taken bigint[] := '{}';
    places point[] := '{}';
    best record;
BEGIN
    WHILE cardinality(taken) < least(k, most) LOOP
        SELECT c.candidate, c.middle, c.score INTO best FROM (
            SELECT c.candidate, point(min(c.easting), min(c.northing)) AS middle, sum(c.part * weights[c.reading]) AS score
            FROM unnest(candidates, eastings, northings, readings, parts) AS c(candidate, easting, northing, reading, part)
            WHERE c.candidate <> ALL (taken) GROUP BY c.candidate
        ) c ORDER BY c.score * near_another ^ (
            SELECT count(*)::float8 FROM unnest(places) AS p(middle) WHERE p.middle <-> c.middle <= reach_m
        ) DESC, c.candidate LIMIT 1;
        EXIT WHEN NOT FOUND;
        taken := taken || best.candidate;
        places := places || best.middle;
        IF kept < 1 THEN
            weights := ARRAY(
                SELECT w.weight * kept ^ coalesce(c.part * w.weight / nullif(best.score, 0), 0)
                FROM unnest(weights) WITH ORDINALITY AS w(weight, reading) LEFT JOIN (
                    SELECT a.* FROM unnest(candidates, readings, parts) AS a(candidate, reading, part) WHERE a.candidate = best.candidate
                ) AS c ON c.reading = w.reading ORDER BY w.reading);
        END IF;
    END LOOP;
    RETURN QUERY
        SELECT c.candidate, row_number() OVER (ORDER BY array_position(taken, c.candidate), sum(c.part) DESC, c.candidate)
        FROM unnest(candidates, parts) AS c(candidate, part) GROUP BY c.candidate;
END
$$;
COMMENT ON FUNCTION callipper._in_turn(bigint[], float8[], float8[], integer[], float8[], float8, float8, bigint) IS
    'candidates in the order in which each reading of a question and each part of the city has its turn';

-- The best cells by the evidence. The squares with the most relevant POIs are rated: the weight of relevant POIs within 250 m,
-- divided by a power of the number of all POIs there. A prior of five keeps a lonely POI from winning. The answer of a square
-- is the cell that contains the middle of its relevant POIs. The surer the question is (the nearer it is to a phrase), the less
-- its readings take turns; the eight readings with the densest square are told apart. In a town that the surroundings of ten
-- answers would fill, its parts take no turns. Where few squares have relevant POIs, those beside them, within reach, come
-- next. Scores that differ by the order of a sum are equal. The POIs around all answers are found by one join of squares,
-- because a broad question has tens of thousands. An answer that rests on faint likenesses alone names these, and has no lift.
-- With an area, only squares in its bounding box are rated. The box is cut to the city first, because a projection made for one
-- city has no coordinates for the other side of the earth.
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
    ten_of constant float8 := 10 * (SELECT sum(a.share) FROM callipper._squares_around() a) / greatest(1, (
        SELECT count(*) FROM (SELECT FROM callipper.poi_density d WHERE d.version = _cells_by_evidence.version LIMIT 20000) d));
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
        ), sure AS MATERIALIZED (
            SELECT least(1, greatest(0.5, 0.5 + 0.5 * (coalesce(max(nearest_phrase), 0) - 0.8) / 0.19))::float8 AS kept FROM relevant
        ), reading AS MATERIALIZED (
            SELECT s.reading, least(row_number() OVER (ORDER BY max(s.weight) DESC, s.reading), 9)::integer AS place FROM (
                SELECT r.reading, sum(r.weight) AS weight FROM relevant r, sure WHERE sure.kept < 1 GROUP BY r.i, r.j, r.reading
            ) s GROUP BY s.reading
        ), square AS MATERIALIZED (
            SELECT r.i, r.j, coalesce(n.place, 1) AS reading, sum(r.weight) AS weight,
                sum(r.easting * r.weight) AS easting, sum(r.northing * r.weight) AS northing
            FROM relevant r LEFT JOIN reading n ON n.reading = r.reading GROUP BY r.i, r.j, coalesce(n.place, 1)
        ), whole AS MATERIALIZED (
            SELECT i, j, sum(weight) AS weight, sum(easting) / sum(weight) AS easting, sum(northing) / sum(weight) AS northing
            FROM square GROUP BY i, j
        ), beside AS (
            SELECT DISTINCT ON (i, j) i, j, weight, easting, northing FROM (
                SELECT s.i + a.i AS i, s.j + a.j AS j, a.i AS east, a.j AS north, s.weight,
                    least(greatest(s.easting, 100 * (s.i + a.i) + 1), 100 * (s.i + a.i) + 99) AS easting,
                    least(greatest(s.northing, 100 * (s.j + a.j) + 1), 100 * (s.j + a.j) + 99) AS northing,
                    point(s.easting, s.northing) AS middle
                FROM whole s CROSS JOIN callipper._squares_around() a WHERE (SELECT count(*) FROM whole) < 2 * $12
            ) n WHERE NOT EXISTS (SELECT FROM whole w WHERE w.i = n.i AND w.j = n.j) AND point(easting, northing) <-> middle <= $10
            ORDER BY i, j, weight::real DESC, (point(easting, northing) <-> middle)::real, east, north
        ), seed AS (
            SELECT i, j, easting, northing, first FROM (
                SELECT *, row_number() OVER (PARTITION BY first ORDER BY weight DESC, i, j) AS place FROM (
                    SELECT i, j, easting, northing, weight, 1.0::float8 AS first FROM whole
                    UNION ALL SELECT i, j, easting, northing, weight, 1e-3::float8 FROM beside
                ) s
                WHERE $4 IS NULL OR (
                    easting BETWEEN @extschema:postgis@.ST_XMin($4::@extschema:postgis@.box3d)
                        AND @extschema:postgis@.ST_XMax($4::@extschema:postgis@.box3d)
                    AND northing BETWEEN @extschema:postgis@.ST_YMin($4::@extschema:postgis@.box3d)
                        AND @extschema:postgis@.ST_YMax($4::@extschema:postgis@.box3d)
                )
            ) s WHERE place <= greatest(1500, 5 * $12) OR first < 1
        ), rated AS (
            SELECT s.i, s.j, s.easting, s.northing, d.pois, o.reading,
                s.first * sum(o.weight * a.share) / (greatest(d.pois, 1) + 5.0::float8) ^ 0.6::float8 AS part
            FROM seed s CROSS JOIN callipper._squares_around() a
                JOIN square o ON o.i = s.i + a.i AND o.j = s.j + a.j
                JOIN callipper.poi_density d ON d.version = $1 AND d.i = s.i AND d.j = s.j
            GROUP BY s.i, s.j, s.easting, s.northing, s.first, d.pois, o.reading
        ), summed AS (
            SELECT r.i, r.j, r.easting, r.northing, r.pois, sum(r.part) AS score, min(r.place) AS place,
                array_agg(r.reading) AS readings, array_agg(r.part) AS parts
            FROM (SELECT *, row_number() OVER (PARTITION BY reading ORDER BY part DESC, i, j) AS place FROM rated) r
            GROUP BY r.i, r.j, r.easting, r.northing, r.pois
        ), found AS MATERIALIZED (
            SELECT DISTINCT ON (c.cell_id) c.cell_id, c.geom, r.score, r.easting, r.northing, r.pois, r.readings, r.parts
            FROM (
                SELECT * FROM (SELECT *, row_number() OVER (ORDER BY score DESC, i, j) AS whole FROM summed) w
                WHERE $6 IS NOT NULL OR w.whole <= $11 OR w.place <= $12
            ) r, LATERAL (
                    SELECT c.cell_id, c.geom FROM (
                        SELECT c.cell_id, c.geom FROM callipper.cell c
                        WHERE c.grid_id = $7 AND @extschema:postgis@.ST_Intersects(c.geom, @extschema:postgis@.ST_Transform(
                            @extschema:postgis@.ST_SetSRID(@extschema:postgis@.ST_MakePoint(r.easting::float8, r.northing::float8), $8), 4326))
                        OFFSET 0  -- else the order by cell_id could lead the planner to read all cells in that order
                    ) c ORDER BY c.cell_id LIMIT 1
                ) c
            WHERE $6 IS NULL OR @extschema:postgis@.ST_Intersects(c.geom, $6)
            ORDER BY c.cell_id, r.score::real DESC, r.i, r.j
        ), turn AS (
            SELECT v.candidate, v.place FROM (
                SELECT array_agg(f.cell_id) AS cells, array_agg(f.easting) AS eastings, array_agg(f.northing) AS northings,
                    array_agg(p.reading) AS readings, array_agg(p.part) AS parts
                FROM found f CROSS JOIN unnest(f.readings, f.parts) AS p(reading, part)
            ) c, sure, callipper._in_turn(c.cells, c.eastings, c.northings, c.readings, c.parts, sure.kept, $13, $5) v
        ), best AS MATERIALIZED (
            SELECT f.cell_id, f.geom, f.score, f.easting, f.northing, f.pois, t.place,
                floor(f.easting / 100)::integer AS i, floor(f.northing / 100)::integer AS j
            FROM found f JOIN turn t ON t.candidate = f.cell_id ORDER BY t.place LIMIT $5
        ), around AS MATERIALIZED (
            SELECT f.cell_id, r.point_id, r.weight, r.distance, max(r.weight) OVER (PARTITION BY f.cell_id) AS strongest
            FROM best f CROSS JOIN generate_series(-3, 3) AS a(i) CROSS JOIN generate_series(-3, 3) AS b(j)
                JOIN relevant p ON p.i = f.i + a.i AND p.j = f.j + b.j,
                LATERAL (
                    -- Of nearly equal ones the nearer counts. The middles are sums, which differ by their order in the last digit.
                    SELECT p.point_id, round(p.weight::numeric, 3) AS weight,
                        round((point(p.easting, p.northing) <-> point(f.easting, f.northing)) * 1000) / 1000 AS distance
                ) r
            WHERE r.distance <= $10
        ), near AS MATERIALIZED (
            SELECT *, row_number() OVER (PARTITION BY cell_id ORDER BY weight DESC, distance, point_id) AS place
            FROM around WHERE weight >= least(0.3, 0.5 * strongest)
        ), counted AS (
            SELECT cell_id, count(*)::float8 AS relevant, bool_or(strongest >= 0.3) AS sure FROM near GROUP BY cell_id
        ), named AS (
            SELECT n.cell_id, e.name, e.text, row_number() OVER (
                    PARTITION BY n.cell_id ORDER BY max(n.weight) DESC, min(n.distance), min(n.point_id)) AS place
            FROM near n JOIN callipper.%1$I e ON e.point_id = n.point_id WHERE n.place <= 12 GROUP BY n.cell_id, e.name, e.text
        ), reason AS (
            SELECT n.cell_id, string_agg(callipper._label(n.name, n.text), '; ' ORDER BY n.place) AS because
            FROM named n WHERE n.place <= 3 GROUP BY n.cell_id
        )
        SELECT f.cell_id, f.geom, f.score, coalesce(c.relevant, 0)::integer,
            CASE WHEN c.sure THEN c.relevant / greatest(f.pois, c.relevant, 1) / nullif((SELECT pois FROM total) / $9, 0) END, r.because
        FROM best f LEFT JOIN counted c ON c.cell_id = f.cell_id LEFT JOIN reason r ON r.cell_id = f.cell_id
        ORDER BY f.place
    $query$, 'point_embedding_v' || version
    ) USING version, question, words, box, k, area, grid, srid, pois, callipper._evidence_reach_m(), tried, wanted, 0.8 + 0.2 * least(1, ten_of);
END
$$;
COMMENT ON FUNCTION callipper._cells_by_evidence(
    integer, @extschema:vector@.vector, text, bigint, @extschema:postgis@.geometry
) IS 'the cells of a version around which most of what a question asks for stands, best first, with the reasons';
