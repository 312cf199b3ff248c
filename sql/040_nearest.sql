-- The cells and training POIs that are nearest to a vector, for search() and its siblings.
-- A filter on space is applied first. Then the ranking is exact, by an expression that no index serves, because an index on emb
-- would return too few rows. Only _cells_by_index() asks the index, for the whole city.

-- Only a superuser may create a function with a setting that the server does not know yet, such as hnsw.ef_search below.
-- pgvector defines its settings when the first vector is read. So this function reads one, as a default value. A dump holds
-- functions in the order of their names, so this one comes first there too.
CREATE OR REPLACE FUNCTION callipper._announce_settings(vector @extschema:vector@.vector DEFAULT '[1]') RETURNS void
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
$$;
COMMENT ON FUNCTION callipper._announce_settings(@extschema:vector@.vector) IS
    'does nothing; makes the settings of pgvector known where it is created, before functions that carry them';

-- An area in the coordinates of the tables. Arcs become lines, because PostGIS cannot intersect arcs. A part beyond the 180th
-- meridian, as in POLYGON((178 -19, 182 -19, ...)), is moved to its other side. Beyond one turn of the globe, or beyond the
-- poles, nothing is moved: there ST_WrapX can end the server by a segmentation fault (PostGIS 3.3).
CREATE OR REPLACE FUNCTION callipper._area(within @extschema:postgis@.geometry) RETURNS @extschema:postgis@.geometry
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM callipper._require_srid(within);
    IF @extschema:postgis@.ST_HasArc(within) THEN
        within := @extschema:postgis@.ST_CurveToLine(within, float8 '32', 0, 0);
    END IF;
    within := @extschema:postgis@.ST_Transform(within, 4326);
    IF (@extschema:postgis@.ST_XMax(within::@extschema:postgis@.box3d) > 180
        OR @extschema:postgis@.ST_XMin(within::@extschema:postgis@.box3d) < -180)
        AND @extschema:postgis@.ST_XMax(within::@extschema:postgis@.box3d) <= 540
        AND @extschema:postgis@.ST_XMin(within::@extschema:postgis@.box3d) >= -540
        AND @extschema:postgis@.ST_YMax(within::@extschema:postgis@.box3d) <= 90
        AND @extschema:postgis@.ST_YMin(within::@extschema:postgis@.box3d) >= -90 THEN
        within := @extschema:postgis@.ST_WrapX(within, float8 '180', float8 '-360');
        within := @extschema:postgis@.ST_WrapX(within, float8 '-180', float8 '360');
    END IF;
    RETURN within;
END
$$;
COMMENT ON FUNCTION callipper._area(@extschema:postgis@.geometry) IS 'a geometry in SRID 4326, without arcs';


CREATE OR REPLACE FUNCTION callipper._require_k(k bigint) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF k IS NULL OR k < 1 THEN
        RAISE EXCEPTION 'k is %', coalesce(k::text, 'NULL') USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Say how many rows you want, from 1 on.';
    END IF;
    RETURN k;
END
$$;
COMMENT ON FUNCTION callipper._require_k(bigint) IS 'k, a number of rows; an error when it is none';

-- The distances of the city's sampled cells from a question, the nearest first: what is usual in the city. The distance, here
-- and below, is that of pgvector's <#>, which is minus the similarity.
CREATE OR REPLACE FUNCTION callipper._city_distances(version integer, question @extschema:vector@.vector) RETURNS real[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        SELECT array_agg(d.distance ORDER BY d.distance) FROM (
            SELECT (s.emb OPERATOR(@extschema:vector@.<#>) question)::real AS distance FROM callipper.cell_sample s
            WHERE s.version = _city_distances.version
        ) d
    );
END
$$;
COMMENT ON FUNCTION callipper._city_distances(integer, @extschema:vector@.vector) IS
    'distance of each sampled cell of a version from a question, ascending; NULL when the version has no sample';

-- width_bucket() counts the sampled cells that are as near or nearer, by bisection.
CREATE OR REPLACE FUNCTION callipper._percentile(distance float8, city real[]) RETURNS float8
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT 100.0::pg_catalog.float8 OPERATOR(pg_catalog.*) (pg_catalog.cardinality($2)
        OPERATOR(pg_catalog.-) pg_catalog.width_bucket($1::pg_catalog.float4, $2))
        OPERATOR(pg_catalog./) pg_catalog.cardinality($2)
$$;
COMMENT ON FUNCTION callipper._percentile(float8, real[]) IS
    'the share of the sampled cells that are farther from a question, in percent';

-- Whether an index can return the nearest cells. An index that a user has made may be partial or of another distance.
CREATE OR REPLACE FUNCTION callipper._has_index(version integer) RETURNS boolean
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
            JOIN pg_opclass o ON o.oid = i.indclass[0] JOIN pg_attribute t ON (t.attrelid, t.attnum) = (i.indrelid, i.indkey[0])
        WHERE i.indrelid = to_regclass(format('callipper.%I', 'cell_embedding_v' || version))
            AND i.indisvalid AND i.indpred IS NULL AND a.amname = 'hnsw' AND o.opcname = 'vector_l2_ops' AND t.attname = 'emb'
    );
END
$$;
COMMENT ON FUNCTION callipper._has_index(integer) IS 'whether all cells of a version have an HNSW index for <->';

-- Nearest cells by the index, in no order. It looks at 1,000 candidates, the most that pgvector allows. Sequential scans are
-- off, so that the planner uses the index for a table of any size. HNSW can end in a local optimum and miss nearer cells, above
-- all where neighbours are very similar. The sample shows it: every sampled cell that is nearer than the farthest found cell
-- must be among the found ones. If one is not, the answer is NULL.
CREATE OR REPLACE FUNCTION callipper._cells_by_index(
    version integer, question @extschema:vector@.vector, city real[], OUT cell_ids bigint[], OUT distances float8[]
)
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
SET hnsw.ef_search = 1000 SET enable_seqscan = off SET jit = off AS $$
DECLARE
    farthest real;
BEGIN
    EXECUTE format(
        'SELECT array_agg(b.cell_id), array_agg(b.distance), max(b.distance) FROM ('
        '    SELECT e.cell_id, e.emb OPERATOR(@extschema:vector@.<#>) $1 AS distance FROM callipper.%I e'
        '    ORDER BY e.emb OPERATOR(@extschema:vector@.<->) $1 LIMIT 1000) b',
        'cell_embedding_v' || version
    ) INTO cell_ids, distances, farthest USING question;
    IF NOT city[:width_bucket(farthest, city)] <@ distances::real[] THEN
        cell_ids := NULL;
        distances := NULL;
    END IF;
END
$$;
COMMENT ON FUNCTION callipper._cells_by_index(integer, @extschema:vector@.vector, real[]) IS
    'up to 1,000 nearest cells of a version and their distances by HNSW; NULL when it seems to have missed nearer ones';

-- The nearest cells of an area, by an exact scan. CASE makes the order depend on both tables; otherwise the planner might rank
-- the whole city first. The filter is faster than the planner thinks, and in a small area starting parallel workers takes
-- longer than the scan. For a rectangle, bounding boxes show that most cells are inside.
CREATE OR REPLACE FUNCTION callipper._cells_in_area(
    version integer, question @extschema:vector@.vector, k bigint, area @extschema:postgis@.geometry, excluded bigint[],
    OUT cell_ids bigint[], OUT distances float8[]
)
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
SET parallel_setup_cost = 50000 SET jit = off AS $$
BEGIN
    EXECUTE format(
        'SELECT array_agg(b.cell_id), array_agg(-b.similarity) FROM ('
        '    SELECT e.cell_id,'
        '        CASE WHEN c.cell_id = e.cell_id THEN -(e.emb OPERATOR(@extschema:vector@.<#>) $1) END AS similarity'
        '    FROM callipper.cell c JOIN callipper.%I e ON e.cell_id = c.cell_id'
        '    WHERE c.grid_id = $2 AND c.geom OPERATOR(@extschema:postgis@.&&) $3'
        '        AND (c.geom OPERATOR(@extschema:postgis@.@) $4 OR @extschema:postgis@.ST_Intersects(c.geom, $3))'
        '        AND e.cell_id <> ALL ($5)'
        '    ORDER BY similarity DESC, e.cell_id LIMIT $6) b',
        'cell_embedding_v' || version
    ) INTO cell_ids, distances
    USING question, (SELECT m.grid_id FROM callipper.model m WHERE m.version = _cells_in_area.version), area,
        CASE WHEN @extschema:postgis@.ST_OrderingEquals(area, @extschema:postgis@.ST_Envelope(area)) THEN area END, excluded, k;
END
$$;
COMMENT ON FUNCTION callipper._cells_in_area(
    integer, @extschema:vector@.vector, bigint, @extschema:postgis@.geometry, bigint[]
) IS
    'the k nearest cells of a version that intersect an area, nearest first, and their distances; exact';

-- The nearest cells of the city, by an exact scan.
CREATE OR REPLACE FUNCTION callipper._cells_in_city(
    version integer, question @extschema:vector@.vector, k bigint, excluded bigint[],
    OUT cell_ids bigint[], OUT distances float8[]
)
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
    EXECUTE format(
        'SELECT array_agg(b.cell_id), array_agg(-b.similarity) FROM ('
        '    SELECT e.cell_id, -(e.emb OPERATOR(@extschema:vector@.<#>) $1) AS similarity'
        '    FROM callipper.%I e WHERE e.cell_id <> ALL ($2)'
        '    ORDER BY similarity DESC, e.cell_id LIMIT $3) b',
        'cell_embedding_v' || version
    ) INTO cell_ids, distances USING question, excluded, k;
END
$$;
COMMENT ON FUNCTION callipper._cells_in_city(integer, @extschema:vector@.vector, bigint, bigint[]) IS
    'the k nearest cells of a version, nearest first, and their distances; exact';

-- The k best cells for a question: by the index if there is one and it finds enough, else by an exact scan.
CREATE OR REPLACE FUNCTION callipper._best_cells(
    version integer, question @extschema:vector@.vector, k bigint, area @extschema:postgis@.geometry, excluded bigint[]
) RETURNS TABLE (cell_id bigint, geom @extschema:postgis@.geometry, similarity float8, percentile float8)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    most_by_index constant integer := 100;  -- for a larger k, HNSW misses too many
    city real[];
    best bigint[];
    distances float8[];
BEGIN
    IF callipper._require_k(k) IS NULL OR question IS NULL THEN
        RETURN;
    END IF;
    city := callipper._city_distances(version, question);
    IF area IS NOT NULL THEN
        SELECT a.cell_ids, a.distances INTO best, distances
            FROM callipper._cells_in_area(version, question, k, area, excluded) a;
    ELSIF k <= most_by_index AND callipper._has_index(version) THEN
        SELECT array_agg(b.cell_id), array_agg(b.distance) INTO best, distances FROM (
            SELECT f.cell_id, f.distance
            FROM callipper._cells_by_index(version, question, city) i,
                unnest(i.cell_ids, i.distances) AS f(cell_id, distance)
            WHERE NOT EXISTS (SELECT FROM unnest(excluded) AS x(cell_id) WHERE x.cell_id = f.cell_id)
            ORDER BY f.distance, f.cell_id LIMIT k
        ) b;
    END IF;
    IF area IS NULL AND (best IS NULL OR cardinality(best) < k) THEN
        SELECT c.cell_ids, c.distances INTO best, distances
            FROM callipper._cells_in_city(version, question, k, excluded) c;
    END IF;
    RETURN QUERY
        SELECT b.cell_id, c.geom, -b.distance, callipper._percentile(b.distance, city)
        FROM unnest(best, distances) WITH ORDINALITY AS b(cell_id, distance, place)
        LEFT JOIN callipper.cell c ON c.cell_id = b.cell_id ORDER BY b.place;
END
$$;
COMMENT ON FUNCTION callipper._best_cells(
    integer, @extschema:vector@.vector, bigint, @extschema:postgis@.geometry, bigint[]
) IS 'the k cells of a version that fit a question best, in an area unless it is NULL, without those excluded; best first';

-- The k best training POIs, by an exact scan, because they are fewer than the cells. poi_id and point_id are the same number
-- only if the model was trained on callipper.poi.
CREATE OR REPLACE FUNCTION callipper._best_points(
    version integer, question @extschema:vector@.vector, k bigint, area @extschema:postgis@.geometry, excluded bigint[]
) RETURNS TABLE (
    point_id bigint, name text, category text, text text, geom @extschema:postgis@.geometry,
    similarity float8, percentile float8
)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
    IF callipper._require_k(k) IS NULL OR question IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT b.point_id, coalesce(p.name, nullif(b.name, '''')), CASE WHEN $6 THEN p.category ELSE b.text END, b.text, b.geom,'
        '    b.similarity, callipper._percentile(-b.similarity, $1) FROM ('
        '    SELECT e.point_id, e.name, e.text, e.geom, -(e.emb OPERATOR(@extschema:vector@.<#>) $2) AS similarity FROM callipper.%I e'
        '    WHERE ($3 IS NULL OR @extschema:postgis@.ST_Intersects(e.geom, $3)) AND e.point_id <> ALL ($4)'
        '    ORDER BY similarity DESC, e.point_id LIMIT $5'
        ') b LEFT JOIN callipper.poi p ON p.poi_id = b.point_id AND $6 ORDER BY b.similarity DESC, b.point_id',
        'point_embedding_v' || version
    ) USING callipper._city_distances(version, question), question, area, excluded, k,
        (SELECT m.provenance ->> 'source' = 'callipper.poi' FROM callipper.model m WHERE m.version = _best_points.version);
END
$$;
COMMENT ON FUNCTION callipper._best_points(
    integer, @extschema:vector@.vector, bigint, @extschema:postgis@.geometry, bigint[]
) IS 'the k training POIs of a version whose places fit a question best; otherwise as _best_cells()';
