-- Vector tiles for pg_tileserv, martin and tipg. The arguments are z, x and y, then the question, with a default. A tile has whole
-- percents, feature ids and no vectors, so it is small, and has the same bytes for the same question. Cells that would be narrower
-- than 3 pixels are merged into blocks of 2 x 2, 4 x 4 and so on; H3 cells into the coarser H3 cells of about that size.

-- A tile is 512 pixels wide, so it has at most about 32,000 blocks. All tiles of a zoom have the same side: it follows from the middle
-- of the city. 313086 is the equator's length in metres divided by 512 / 4 pixels.
CREATE OR REPLACE FUNCTION callipper._block_side(z integer, size_m float8, city @extschema:postgis@.geometry) RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    latitude constant float8 := @extschema:postgis@.ST_Y(@extschema:postgis@.ST_Centroid(city));
    alone constant integer := round(log(2, (313086 * cos(radians(latitude)) / size_m)::numeric));  -- from this zoom on, cells are alone
BEGIN
    RETURN 2 ^ greatest(0, least(alone - z, 8));
END
$$;
COMMENT ON FUNCTION callipper._block_side(integer, float8, @extschema:postgis@.geometry) IS
    'cells a side that make one block at a zoom, so that it is 3 to 6 pixels wide; a power of two, 256 at most';

-- What a tile's box is cut wider by: a block and a cell.
CREATE OR REPLACE FUNCTION callipper._block_margin(size_m float8, side integer, box @extschema:postgis@.geometry) RETURNS float8
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (side + 1) * 3 * size_m / 111000  -- an H3 cell has its edge as size_m, and is wider than that
        / greatest(0.05, cos(radians(@extschema:postgis@.ST_YMax(box::@extschema:postgis@.box3d))));
END
$$;
COMMENT ON FUNCTION callipper._block_margin(float8, integer, @extschema:postgis@.geometry) IS
    'degrees by which a tile''s box is cut wider, so that it holds its blocks in full';

-- An H3 index has its resolution in four bits, then three bits for each level, all set for the levels that the cell lacks. A level
-- has seven cells for one of the level above.
CREATE OR REPLACE FUNCTION callipper._h3_parent(index bigint, side integer) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    coarse constant bigint := greatest(0, ((index >> 52) & 15) - round(ln(side ^ 2) / ln(7::float8))::integer);
BEGIN
    RETURN (index & ~(15::bigint << 52)) | (coarse << 52) | ((1::bigint << (3 * (15 - coarse))::integer) - 1);
END
$$;
COMMENT ON FUNCTION callipper._h3_parent(bigint, integer) IS 'coarser H3 cell that a cell is in, of about side x side cells';

-- A tile calls it for each cell. It is not STRICT, because the planner inlines no STRICT function that has a CASE.
CREATE OR REPLACE FUNCTION callipper._block_of(kind text, i integer, j integer, side integer) RETURNS bigint
LANGUAGE sql IMMUTABLE CALLED ON NULL INPUT PARALLEL SAFE AS $$
    SELECT CASE WHEN $1 OPERATOR(pg_catalog.=) 'h3' THEN callipper._h3_parent(callipper._h3_index($2, $3), $4)
        ELSE callipper._h3_index(
            pg_catalog.floor($2::pg_catalog.float8 OPERATOR(pg_catalog./) $4::pg_catalog.float8)::pg_catalog.int4,
            pg_catalog.floor($3::pg_catalog.float8 OPERATOR(pg_catalog./) $4::pg_catalog.float8)::pg_catalog.int4) END
$$;
COMMENT ON FUNCTION callipper._block_of(text, integer, integer, integer) IS
    'number of the block of side x side cells that a cell of a grid is in';

-- The cells of all blocks that touch a tile, with the number of the block; NULL where each cell is one.
CREATE OR REPLACE FUNCTION callipper._tile_cells(z integer, x integer, y integer)
RETURNS TABLE (block bigint, cell_id bigint, geom @extschema:postgis@.geometry)
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED ROWS 1000 SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    box @extschema:postgis@.geometry := @extschema:postgis@.ST_Transform(@extschema:postgis@.ST_TileEnvelope(z, x, y), 4326);
    grid callipper.grid;
    side integer;
BEGIN
    SELECT g.* INTO grid FROM callipper.model m JOIN callipper.grid g ON g.grid_id = m.grid_id WHERE m.status = 'active';
    SELECT callipper._block_side(z, grid.size_m, m.extent) INTO side FROM callipper.model m WHERE m.status = 'active';
    IF side > 1 THEN
        RETURN QUERY
            SELECT callipper._block_of(grid.kind, c.i, c.j, side), m.cell_id, m.geom
            FROM callipper_map.cell m JOIN callipper.cell c ON c.cell_id = m.cell_id
            WHERE m.geom OPERATOR(@extschema:postgis@.&&)
                @extschema:postgis@.ST_Expand(box, callipper._block_margin(grid.size_m, side, box));
    ELSE
        RETURN QUERY SELECT NULL::bigint, m.cell_id, m.geom FROM callipper_map.cell m WHERE m.geom OPERATOR(@extschema:postgis@.&&) box;
    END IF;
END
$$;
COMMENT ON FUNCTION callipper._tile_cells(integer, integer, integer) IS
    'cells of a tile, and the block that each is in at its zoom; NULL where cells are not merged';

CREATE OR REPLACE FUNCTION callipper_map.similarity_tile(z integer, x integer, y integer, query text DEFAULT 'park') RETURNS bytea
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN callipper._match_tile(callipper._active_version(), callipper.text_embed(query), z, x, y);
END
$$;
COMMENT ON FUNCTION callipper_map.similarity_tile(integer, integer, integer, text) IS
    'A vector tile, layer "cells": how well a text fits, as similarity (100 times the cosine), percentile, and support in percent,'
    ' all whole numbers';

CREATE OR REPLACE FUNCTION callipper_map.similarity_tile_json(z integer, x integer, y integer, query_params json) RETURNS bytea
LANGUAGE sql STABLE PARALLEL RESTRICTED AS $$
    SELECT callipper_map.similarity_tile(z, x, y, coalesce(query_params OPERATOR(pg_catalog.->>) 'query'::pg_catalog.text, 'park'))
$$;
COMMENT ON FUNCTION callipper_map.similarity_tile_json(integer, integer, integer, json) IS
    'similarity_tile() for martin, which passes what stands after the ? of a URL as JSON: {"query": "quiet park"}';

CREATE OR REPLACE FUNCTION callipper_map.cell_tile(z integer, x integer, y integer) RETURNS bytea
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
    RETURN (
        WITH cell AS MATERIALIZED (
            SELECT c.block, c.cell_id, c.geom, m.cluster, m.cluster_label, m.color, m.top_texts, m.support, m.poi_count
            FROM callipper._tile_cells(z, x, y) c JOIN callipper_map.cell m ON m.cell_id = c.cell_id
        ), shape AS (
            SELECT c.cell_id AS id, c.cluster, c.cluster_label, c.color, c.top_texts, round(100 * c.support)::integer AS support,
                c.poi_count, c.geom FROM cell c WHERE c.block IS NULL
            UNION ALL
            SELECT min(c.cell_id), mode() WITHIN GROUP (ORDER BY c.cluster), mode() WITHIN GROUP (ORDER BY c.cluster_label),
                mode() WITHIN GROUP (ORDER BY c.color), NULL, round(100 * avg(c.support))::integer, round(avg(c.poi_count))::integer,
                @extschema:postgis@.ST_SetSRID(@extschema:postgis@.ST_Extent(c.geom), 4326)::@extschema:postgis@.geometry
            FROM cell c WHERE c.block IS NOT NULL GROUP BY c.block
        )
        SELECT @extschema:postgis@.ST_AsMVT(t, 'cells'::text, 4096, 'geom'::text, 'id'::text) FROM (
            SELECT s.id, s.cluster, s.cluster_label, s.color, s.top_texts, s.support, s.poi_count,
                @extschema:postgis@.ST_AsMVTGeom(@extschema:postgis@.ST_Transform(s.geom, 3857),
                    @extschema:postgis@.ST_TileEnvelope(z, x, y)::@extschema:postgis@.box2d, 4096, 64, true) AS geom
            FROM shape s ORDER BY s.id
        ) t
    );
END
$$;
COMMENT ON FUNCTION callipper_map.cell_tile(integer, integer, integer) IS
    'A vector tile, layer "cells": group, colour, kinds of places, support in percent and POIs within 250 m. A block of merged'
    ' cells has the most common group and colour, and no kinds of places';

CREATE OR REPLACE FUNCTION callipper_map.place_tile(z integer, x integer, y integer) RETURNS bytea
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    envelope constant @extschema:postgis@.geometry := @extschema:postgis@.ST_TileEnvelope(z, x, y);
    spot constant integer := CASE WHEN z < 15 THEN 32 ELSE 1 END;  -- of the tile's 4096, in which one point, in their middle, stands for all
BEGIN
    RETURN (
        SELECT @extschema:postgis@.ST_AsMVT(t, 'places'::text, 4096, 'geom'::text, 'id'::text) FROM (
            SELECT s.id, p.name, p.kind, s.places, s.geom FROM (
                SELECT min(q.place_id) AS id, count(*)::integer AS places, @extschema:postgis@.ST_MakePoint(
                    round(avg(@extschema:postgis@.ST_X(q.geom))), round(avg(@extschema:postgis@.ST_Y(q.geom)))) AS geom
                FROM (
                    SELECT m.place_id, @extschema:postgis@.ST_AsMVTGeom(@extschema:postgis@.ST_Transform(m.geom, 3857),
                        envelope::@extschema:postgis@.box2d, 4096, 64, true) AS geom
                    FROM callipper_map.place m
                    WHERE m.geom OPERATOR(@extschema:postgis@.&&) @extschema:postgis@.ST_Transform(envelope, 4326)
                ) q WHERE q.geom IS NOT NULL
                GROUP BY CASE spot WHEN 1 THEN q.place_id END,
                    floor(@extschema:postgis@.ST_X(q.geom) / spot), floor(@extschema:postgis@.ST_Y(q.geom) / spot)
            ) s JOIN callipper_map.place p ON p.place_id = s.id ORDER BY s.id
        ) t
    );
END
$$;
COMMENT ON FUNCTION callipper_map.place_tile(integer, integer, integer) IS
    'A vector tile, layer "places": POIs with name and kind; below zoom 15 one stands for those close by, and says how many (places)';
