-- callipper_map: the active model for people and their tools. Its tables are written in the transaction that activates or
-- refreshes a version, so they always show the version that answers. They are tables because tools need a primary key and
-- bounds, which a view does not have. Rows are deleted and inserted, never truncated: no reader waits.

-- Brings both tables up to date with the active version. It writes only rows that differ.
CREATE OR REPLACE FUNCTION callipper._write_map() RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- A number in the statements, so that no other version's rows are locked.
    active constant integer := coalesce((SELECT m.version FROM callipper.model m WHERE m.status = 'active'), 0);
    gone bigint;
    written bigint;
BEGIN
    EXECUTE format($query$
        DELETE FROM callipper_map.cell m
        WHERE NOT EXISTS (SELECT FROM callipper.cell_embedding e WHERE e.version = %1$s AND e.cell_id = m.cell_id)
    $query$, active);
    GET DIAGNOSTICS gone = ROW_COUNT;
    EXECUTE format($query$
        INSERT INTO callipper_map.cell AS m (
            cell_id, geom, lon, lat, cluster, cluster_label, color, top_texts, support, poi_count, model_version)
        SELECT e.cell_id, c.geom, @extschema:postgis@.ST_X(middle), @extschema:postgis@.ST_Y(middle),
            s.cluster, k.label, s.color, s.top_texts, s.support, s.poi_count, e.version
        FROM callipper.cell_embedding e JOIN callipper.cell c ON c.cell_id = e.cell_id
            LEFT JOIN callipper.cell_summary s ON s.version = %1$s AND s.cell_id = e.cell_id
            LEFT JOIN callipper.cell_cluster k ON k.version = %1$s AND k.cluster = s.cluster,
            LATERAL (SELECT @extschema:postgis@.ST_Centroid(c.geom) AS middle OFFSET 0) AS at
        WHERE e.version = %1$s
        ON CONFLICT (cell_id) DO UPDATE SET cluster = excluded.cluster, cluster_label = excluded.cluster_label,
            color = excluded.color, top_texts = excluded.top_texts, support = excluded.support,
            poi_count = excluded.poi_count, model_version = excluded.model_version
        WHERE (m.cluster, m.cluster_label, m.color, m.top_texts, m.support, m.poi_count, m.model_version) IS DISTINCT FROM
            (excluded.cluster, excluded.cluster_label, excluded.color, excluded.top_texts, excluded.support,
             excluded.poi_count, excluded.model_version)
    $query$, active);
    GET DIAGNOSTICS written = ROW_COUNT;
    PERFORM callipper._analyse_if('callipper_map.cell', gone + written);
    EXECUTE format($query$
        DELETE FROM callipper_map.place m
        WHERE NOT EXISTS (SELECT FROM callipper.point_embedding e WHERE e.version = %1$s AND e.point_id = m.place_id)
    $query$, active);
    GET DIAGNOSTICS gone = ROW_COUNT;
    EXECUTE format($query$
        INSERT INTO callipper_map.place AS m (place_id, geom, lon, lat, name, category, kind, text, model_version)
        SELECT e.point_id, e.geom, @extschema:postgis@.ST_X(e.geom), @extschema:postgis@.ST_Y(e.geom),
            coalesce(p.name, nullif(e.name, '')), p.category, t.name, e.text, e.version
        FROM callipper.point_embedding e
            LEFT JOIN callipper.poi p ON p.poi_id = e.point_id AND callipper._points_are_pois(%1$s)
            LEFT JOIN callipper.point_kind k ON k.version = %1$s AND k.point_id = e.point_id AND k.basis = 0
            LEFT JOIN callipper.kind t ON t.version = %1$s AND t.kind_id = k.kind_id
        WHERE e.version = %1$s
        ON CONFLICT (place_id) DO UPDATE SET geom = excluded.geom, lon = excluded.lon, lat = excluded.lat,
            name = excluded.name, category = excluded.category, kind = excluded.kind, text = excluded.text,
            model_version = excluded.model_version
        WHERE (m.lon, m.lat, m.name, m.category, m.kind, m.text, m.model_version) IS DISTINCT FROM
            (excluded.lon, excluded.lat, excluded.name, excluded.category, excluded.kind, excluded.text,
             excluded.model_version)
    $query$, active);
    GET DIAGNOSTICS written = ROW_COUNT;
    PERFORM callipper._analyse_if('callipper_map.place', gone + written);
END
$$;
COMMENT ON FUNCTION callipper._write_map() IS 'bring the tables of callipper_map to what the active version says';

-- Tools take the bounds of a layer from the statistics, which only ANALYZE makes.
CREATE OR REPLACE FUNCTION callipper._analyse_if(relation regclass, changed bigint) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF changed > 0.1 * (SELECT c.reltuples FROM pg_class c WHERE c.oid = relation) THEN
        EXECUTE format('ANALYZE %s', relation);
    END IF;
END
$$;
COMMENT ON FUNCTION callipper._analyse_if(regclass, bigint) IS 'analyse a table if more than a tenth of its rows have changed';

-- For programs that compute with embeddings: as an array, which every driver knows, and as pgvector's type.
CREATE OR REPLACE VIEW callipper_map.cell_vector AS
SELECT c.cell_id, c.lon, c.lat, e.emb::real[] AS emb, e.emb AS vector
FROM callipper_map.cell c JOIN callipper.cells e ON e.cell_id = c.cell_id;
COMMENT ON VIEW callipper_map.cell_vector IS 'embeddings of the cells by the active model, unit length';
COMMENT ON COLUMN callipper_map.cell_vector.cell_id IS 'key of the cell';
COMMENT ON COLUMN callipper_map.cell_vector.lon IS 'longitude of the middle of the cell, degrees';
COMMENT ON COLUMN callipper_map.cell_vector.lat IS 'latitude of the middle of the cell, degrees';
COMMENT ON COLUMN callipper_map.cell_vector.emb IS 'the embedding as an array';
COMMENT ON COLUMN callipper_map.cell_vector.vector IS 'the embedding as pgvector has it';

-- A cell's H3 index, of which callipper.cell keeps the halves (callipper_db/h3_cells.py).
CREATE OR REPLACE FUNCTION callipper._h3_index(upper integer, lower integer) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT ($1::pg_catalog.int8 OPERATOR(pg_catalog.<<) 32)
        OPERATOR(pg_catalog.|) ($2::pg_catalog.int8 OPERATOR(pg_catalog.&) 4294967295::pg_catalog.int8)
$$;
COMMENT ON FUNCTION callipper._h3_index(integer, integer) IS 'H3 index from its upper and lower 32 bits';

CREATE OR REPLACE VIEW callipper_map.cell_h3 AS
SELECT pg_catalog.to_hex(callipper._h3_index(c.i, c.j)) AS h3index, callipper._h3_index(c.i, c.j) AS h3, m.cell_id, m.lon, m.lat,
    m.cluster, m.cluster_label, m.color, m.top_texts, m.support, m.poi_count
FROM callipper_map.cell m JOIN callipper.cell c ON c.cell_id OPERATOR(pg_catalog.=) m.cell_id
    JOIN callipper.grid g ON g.grid_id OPERATOR(pg_catalog.=) c.grid_id AND g.kind OPERATOR(pg_catalog.=) 'h3';
COMMENT ON VIEW callipper_map.cell_h3 IS 'callipper_map.cell with the H3 index of each cell; empty unless the grid has H3 cells';
COMMENT ON COLUMN callipper_map.cell_h3.h3index IS 'the H3 index in hexadecimal, as Kepler.gl and other tools take it';
COMMENT ON COLUMN callipper_map.cell_h3.h3 IS 'the H3 index as a number';
COMMENT ON COLUMN callipper_map.cell_h3.cell_id IS 'key of the cell';
COMMENT ON COLUMN callipper_map.cell_h3.lon IS 'longitude of the middle of the cell, degrees';
COMMENT ON COLUMN callipper_map.cell_h3.lat IS 'latitude of the middle of the cell, degrees';
COMMENT ON COLUMN callipper_map.cell_h3.cluster IS 'as in callipper_map.cell';
COMMENT ON COLUMN callipper_map.cell_h3.cluster_label IS 'as in callipper_map.cell';
COMMENT ON COLUMN callipper_map.cell_h3.color IS 'as in callipper_map.cell';
COMMENT ON COLUMN callipper_map.cell_h3.top_texts IS 'as in callipper_map.cell';
COMMENT ON COLUMN callipper_map.cell_h3.support IS 'as in callipper_map.cell';
COMMENT ON COLUMN callipper_map.cell_h3.poi_count IS 'as in callipper_map.cell';

-- A database of an earlier program has a model, but these tables are empty.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM callipper_map.cell) THEN
        PERFORM callipper._write_map();
    END IF;
END
$$;
