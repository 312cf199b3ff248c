-- What the map page asks, of any version. A question is one vector: the page's server computes it once and keeps it, so that a
-- tile does not pay for the sentence encoder. SECURITY DEFINER, since readers have no right on the tables of each version.

-- Names the answers: the active version and its last change. It changes whenever an answer may change, so an ETag holds it.
CREATE OR REPLACE FUNCTION callipper._stamp() RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT concat(callipper._require_model(NULL), '.', c.transaction_id) FROM callipper.change c);
END
$$;
COMMENT ON FUNCTION callipper._stamp() IS 'name of what is answered now: the active version and its last change';

CREATE OR REPLACE FUNCTION callipper._question_vector(
    version integer, likes text[], dislikes text[], like_places @extschema:postgis@.geometry[],
    dislike_places @extschema:postgis@.geometry[]
) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER COST 100000 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN callipper._combine(callipper._require_model(version), likes, dislikes, like_places, dislike_places);
END
$$;
COMMENT ON FUNCTION callipper._question_vector(
    integer, text[], text[], @extschema:postgis@.geometry[], @extschema:postgis@.geometry[]
) IS '_combine() in the owner''s name';

-- How well cells fit a vector. Dynamic SQL names the partition, so that no other version's rows are locked. pg_tileserv publishes
-- functions whose first arguments are z, x and y, so those of the page end with them. Parallel workers would add up a block's cells in
-- another order each time, and round the mean otherwise now and then; a browser asks for several tiles at once anyway.
CREATE OR REPLACE FUNCTION callipper._match_tile(
    version integer, question @extschema:vector@.vector, z integer, x integer, y integer
) RETURNS bytea
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
SET max_parallel_workers_per_gather = 0 AS $$
DECLARE
    model constant integer := callipper._require_model(version);
    envelope constant @extschema:postgis@.geometry := @extschema:postgis@.ST_TileEnvelope(z, x, y);
    box @extschema:postgis@.geometry := @extschema:postgis@.ST_Transform(envelope, 4326);
    grid callipper.grid;
    side integer;
    tile bytea;
BEGIN
    SELECT g.* INTO grid FROM callipper.model m JOIN callipper.grid g ON g.grid_id = m.grid_id WHERE m.version = model;
    SELECT callipper._block_side(z, grid.size_m, m.extent) INTO side FROM callipper.model m WHERE m.version = model;
    IF side > 1 THEN  -- all cells of the blocks that touch the tile
        box := @extschema:postgis@.ST_Expand(box, callipper._block_margin(grid.size_m, side, box));
    END IF;
    EXECUTE format($query$
        WITH cell AS (
            SELECT c.cell_id, c.i, c.j, c.geom, s.similarity, callipper._percentile(-s.similarity, $1) AS percentile,
                coalesce(m.support, 1) AS support
            FROM callipper.cell c JOIN callipper.%1$I e ON e.cell_id = c.cell_id
                LEFT JOIN callipper.cell_summary m ON m.version = %3$s AND m.cell_id = c.cell_id,
                LATERAL (SELECT @extschema:vector@.inner_product(e.emb, $2) AS similarity OFFSET 0) AS s
            WHERE c.grid_id = $3 AND c.geom OPERATOR(@extschema:postgis@.&&) $4
        ), shape AS (
            %2$s
        )
        SELECT @extschema:postgis@.ST_AsMVT(t, 'cells'::text, 4096, 'geom'::text, 'id'::text) FROM (
            SELECT b.id, round(100 * b.similarity)::integer AS similarity, round(b.percentile)::integer AS percentile,
                round(100 * b.support)::integer AS support, @extschema:postgis@.ST_AsMVTGeom(
                    @extschema:postgis@.ST_Transform(b.geom, 3857), $5::@extschema:postgis@.box2d, 4096, 64, true) AS geom
            FROM shape b ORDER BY b.id
        ) t
    $query$, 'cell_embedding_v' || model, CASE side
        WHEN 1 THEN 'SELECT cell_id AS id, similarity, percentile, support, geom FROM cell'
        ELSE format('SELECT min(cell_id) AS id, avg(similarity) AS similarity, avg(percentile) AS percentile, avg(support) AS support,'
            ' @extschema:postgis@.ST_SetSRID(@extschema:postgis@.ST_Extent(geom), 4326)::@extschema:postgis@.geometry AS geom'
            ' FROM cell GROUP BY callipper._block_of(%L, i, j, %s)', grid.kind, side)
        END, model
    ) INTO tile USING callipper._city_distances(model, question), question, grid.grid_id, box, envelope;
    RETURN tile;
END
$$;
COMMENT ON FUNCTION callipper._match_tile(integer, @extschema:vector@.vector, integer, integer, integer) IS
    'a vector tile, layer "cells": how well the cells of a version fit a vector, and how well POIs support that, in percent';

-- The same as rows, for a download.
CREATE OR REPLACE FUNCTION callipper._match_cells(
    version integer, question @extschema:vector@.vector, within @extschema:postgis@.geometry, k bigint
) RETURNS TABLE (cell_id bigint, geom @extschema:postgis@.geometry, similarity float8, percentile float8)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER ROWS 10000 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT * FROM callipper._best_cells(callipper._require_model(version), question, k, callipper._area(within), '{}');
END
$$;
COMMENT ON FUNCTION callipper._match_cells(integer, @extschema:vector@.vector, @extschema:postgis@.geometry, bigint) IS
    'the k cells of a version that fit a vector best, in an area unless it is NULL';

-- POIs near a place by the labels that search() and describe() give them in because, the nearest for each label.
CREATE OR REPLACE FUNCTION callipper._labelled_points(version integer, place @extschema:postgis@.geometry, labels text[])
RETURNS TABLE (label text, point_id bigint, lon float8, lat float8)
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED SECURITY DEFINER ROWS 3 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    model constant integer := callipper._require_model(version);
    middle constant @extschema:postgis@.geometry := @extschema:postgis@.ST_Centroid(callipper._area(place));
    reach constant float8 := 1.2 * callipper._evidence_reach_m() / 111000;  -- degrees; cells reach beyond their middle
    box constant @extschema:postgis@.geometry := @extschema:postgis@.ST_Expand(middle,
        reach / greatest(0.01, cos(radians(@extschema:postgis@.ST_Y(middle)))), reach);
BEGIN
    RETURN QUERY EXECUTE format($query$
        SELECT DISTINCT ON (p.label) p.label, p.point_id, @extschema:postgis@.ST_X(p.geom), @extschema:postgis@.ST_Y(p.geom)
        FROM (
            SELECT callipper._label(e.name, e.text) AS label, e.point_id, e.geom FROM callipper.%I e
            WHERE e.geom OPERATOR(@extschema:postgis@.&&) $1
        ) p WHERE p.label = ANY ($2)
        ORDER BY p.label, p.geom OPERATOR(@extschema:postgis@.<->) $3, p.point_id
    $query$, 'point_embedding_v' || model) USING box, labels, middle;
END
$$;
COMMENT ON FUNCTION callipper._labelled_points(integer, @extschema:postgis@.geometry, text[]) IS
    'POIs around a place by the labels that because gives them';

-- Two versions' vectors are not comparable: each training has axes of its own. Percentiles of the same question are. A cell of the
-- first version is compared with the cell of the second that holds its middle. Squares of one CRS need no search in space for it.
CREATE OR REPLACE FUNCTION callipper._changed_cells(
    version integer, question @extschema:vector@.vector, other_version integer, other_question @extschema:vector@.vector, k bigint
) RETURNS TABLE (
    cell_id bigint, geom @extschema:postgis@.geometry, percentile float8, other_percentile float8, texts text, other_texts text
)
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED SECURITY DEFINER ROWS 10 SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
    model constant integer := callipper._require_model(version);
    other constant integer := callipper._require_model(other_version);
    grid callipper.grid;
    other_grid callipper.grid;
BEGIN
    PERFORM callipper._require_k(k);
    SELECT g.* INTO grid FROM callipper.model m JOIN callipper.grid g ON g.grid_id = m.grid_id WHERE m.version = model;
    SELECT g.* INTO other_grid FROM callipper.model m JOIN callipper.grid g ON g.grid_id = m.grid_id WHERE m.version = other;
    RETURN QUERY EXECUTE format($query$
        WITH pair AS (
            SELECT c.cell_id, c.geom, p.percentile, o.cell_id AS other_id, q.percentile AS other_percentile
            FROM callipper.%1$I e JOIN callipper.cell c ON c.cell_id = e.cell_id
                CROSS JOIN LATERAL (%3$s) o JOIN callipper.%2$I f ON f.cell_id = o.cell_id,
                LATERAL (SELECT callipper._percentile(e.emb OPERATOR(@extschema:vector@.<#>) $1, $3) AS percentile) p,
                LATERAL (SELECT callipper._percentile(f.emb OPERATOR(@extschema:vector@.<#>) $2, $4) AS percentile) q
            ORDER BY abs(p.percentile - q.percentile) DESC, c.cell_id LIMIT $5
        )
        SELECT p.cell_id, p.geom, p.percentile, p.other_percentile, s.top_texts, t.top_texts
        FROM pair p LEFT JOIN callipper.cell_summary s ON s.version = %4$s AND s.cell_id = p.cell_id
            LEFT JOIN callipper.cell_summary t ON t.version = %5$s AND t.cell_id = p.other_id
        ORDER BY abs(p.percentile - p.other_percentile) DESC, p.cell_id
    $query$, 'cell_embedding_v' || model, 'cell_embedding_v' || other, CASE
        WHEN grid.grid_id = other_grid.grid_id THEN 'SELECT c.cell_id'
        WHEN (grid.kind, other_grid.kind) = ('square', 'square') AND grid.srid = other_grid.srid THEN format(
            'SELECT n.cell_id FROM callipper.cell n WHERE n.grid_id = %1$s AND n.i = floor((c.i + 0.5) * %2$s::float8)::integer'
            ' AND n.j = floor((c.j + 0.5) * %2$s::float8)::integer', other_grid.grid_id, grid.size_m / other_grid.size_m)
        ELSE format('SELECT n.cell_id FROM callipper.cell n WHERE n.grid_id = %s'
            ' AND @extschema:postgis@.ST_Intersects(n.geom, @extschema:postgis@.ST_Centroid(c.geom)) ORDER BY n.cell_id LIMIT 1',
            other_grid.grid_id)
        END, model, other
    ) USING question, other_question, callipper._city_distances(model, question), callipper._city_distances(other, other_question), k;
END
$$;
COMMENT ON FUNCTION callipper._changed_cells(
    integer, @extschema:vector@.vector, integer, @extschema:vector@.vector, bigint
) IS 'the k cells of a version whose percentile differs most from that of another version, each by its own vector of the question';

-- A saved layer as a tile. The condition on geom reaches the table of cells, since the functions of a layer are inlined.
CREATE OR REPLACE FUNCTION callipper._layer_tile(name text, z integer, x integer, y integer) RETURNS bytea
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp SET max_parallel_workers_per_gather = 0 AS $$
DECLARE
    layer constant text := 'layer_' || name;
    box @extschema:postgis@.geometry;
    tile bytea;
BEGIN
    IF NOT EXISTS (SELECT FROM callipper.list_layers() l WHERE l.name = _layer_tile.name) THEN
        RAISE EXCEPTION 'there is no layer %', name USING ERRCODE = 'undefined_object', HINT = 'SELECT * FROM list_layers() lists them.';
    END IF;
    box := (SELECT @extschema:postgis@.ST_SetSRID(@extschema:postgis@.ST_Extent(c.geom), 4326) FROM callipper._tile_cells(z, x, y) c);
    EXECUTE format($query$
        SELECT @extschema:postgis@.ST_AsMVT(t, 'cells'::text, 4096, 'geom'::text, 'id'::text) FROM (
            SELECT b.id, b.similarity, b.percentile, b.support, @extschema:postgis@.ST_AsMVTGeom(
                @extschema:postgis@.ST_Transform(b.geom, 3857), @extschema:postgis@.ST_TileEnvelope($1, $2, $3)::@extschema:postgis@.box2d,
                4096, 64, true) AS geom
            FROM (
                SELECT min(c.cell_id) AS id, round(100 * avg(l.similarity))::integer AS similarity,
                    round(avg(l.percentile))::integer AS percentile, round(100 * avg(coalesce(m.support, 1)))::integer AS support,
                    @extschema:postgis@.ST_SetSRID(@extschema:postgis@.ST_Extent(c.geom), 4326)::@extschema:postgis@.geometry AS geom
                FROM callipper_map.%I l JOIN callipper._tile_cells($1, $2, $3) c ON c.cell_id = l.cell_id
                    JOIN callipper_map.cell m ON m.cell_id = l.cell_id
                WHERE l.geom OPERATOR(@extschema:postgis@.&&) $4 GROUP BY coalesce(c.block, c.cell_id)
            ) b ORDER BY b.id
        ) t
    $query$, layer) INTO tile USING z, x, y, box;
    RETURN coalesce(tile, '');
END
$$;
COMMENT ON FUNCTION callipper._layer_tile(text, integer, integer, integer) IS
    'a saved layer as a vector tile, with the columns of _match_tile()';
