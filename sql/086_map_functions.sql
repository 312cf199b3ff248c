-- Questions in a form that tools can ask: without operators, with names that are no keywords in any SQL parser, with declared
-- geometry type and SRID, and with a default for every text, so that a tool can call a function before anybody types a text. For
-- NULL, they return no rows.

-- Rows of these functions. A layer has the comments of cell_match.
COMMENT ON COLUMN callipper_map.cell_match.cell_id IS 'key of the cell, as in callipper_map.cell';
COMMENT ON COLUMN callipper_map.cell_match.geom IS 'the cell as a polygon in EPSG:4326';
COMMENT ON COLUMN callipper_map.cell_match.lon IS 'longitude of the middle of the cell, degrees';
COMMENT ON COLUMN callipper_map.cell_match.lat IS 'latitude of the middle of the cell, degrees';
COMMENT ON COLUMN callipper_map.cell_match.similarity IS 'cosine of the question and the cell, -1 to 1';
COMMENT ON COLUMN callipper_map.cell_match.percentile IS 'share of the city''s cells that fit less well, percent';
COMMENT ON COLUMN callipper_map.place_match.place_id IS 'key of the POI, as in callipper_map.place';
COMMENT ON COLUMN callipper_map.place_match.geom IS 'the POI as a point in EPSG:4326';
COMMENT ON COLUMN callipper_map.place_match.lon IS 'its longitude, degrees';
COMMENT ON COLUMN callipper_map.place_match.lat IS 'its latitude, degrees';
COMMENT ON COLUMN callipper_map.place_match.name IS 'its name';
COMMENT ON COLUMN callipper_map.place_match.kind IS 'its kind, as describe() calls it';
COMMENT ON COLUMN callipper_map.place_match.similarity IS 'cosine of the question and its embedding, -1 to 1';
COMMENT ON COLUMN callipper_map.place_match.percentile IS 'share of the city''s cells that fit less well, percent';
COMMENT ON COLUMN callipper_map.cell_answer.rank IS '1 is the best cell';
COMMENT ON COLUMN callipper_map.cell_answer.cell_id IS 'key of the cell, as in callipper_map.cell';
COMMENT ON COLUMN callipper_map.cell_answer.geom IS 'the cell as a polygon in EPSG:4326';
COMMENT ON COLUMN callipper_map.cell_answer.lon IS 'longitude of the middle of the cell, degrees';
COMMENT ON COLUMN callipper_map.cell_answer.lat IS 'latitude of the middle of the cell, degrees';
COMMENT ON COLUMN callipper_map.cell_answer.similarity IS 'as search() returns it';
COMMENT ON COLUMN callipper_map.cell_answer.percentile IS 'as search() returns it';
COMMENT ON COLUMN callipper_map.cell_answer.relevant IS 'as search() returns it';
COMMENT ON COLUMN callipper_map.cell_answer.lift IS 'as search() returns it';
COMMENT ON COLUMN callipper_map.cell_answer.because IS 'as search() returns it';

-- The distances of the sampled cells from a question, for percentiles. SECURITY DEFINER, because readers may not read the sample.
CREATE OR REPLACE FUNCTION callipper._city_of(question @extschema:vector@.vector) RETURNS real[]
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN callipper._city_distances(callipper._active_version(), question);
END
$$;
COMMENT ON FUNCTION callipper._city_of(@extschema:vector@.vector) IS '_city_distances() for the active version, in the owner''s name';

-- Likes and dislikes as one vector.
CREATE OR REPLACE FUNCTION callipper._examples(likes text[], dislikes text[]) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN callipper._combine(callipper._require_model(NULL), likes, dislikes, '{}', '{}');
END
$$;
COMMENT ON FUNCTION callipper._examples(text[], text[]) IS '_combine() for the active version, in the owner''s name';

-- OFFSET 0 keeps the question from being computed once a cell.
CREATE OR REPLACE FUNCTION callipper._cells_by(question @extschema:vector@.vector)
RETURNS SETOF callipper_map.cell_match
LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 10000 AS $$
    SELECT m.cell_id, m.geom, m.lon, m.lat, s.similarity,
        callipper._percentile((OPERATOR(pg_catalog.-) s.similarity)::pg_catalog.float8, q.city)
    FROM (SELECT question, callipper._city_of(question) AS city OFFSET 0) AS q
        CROSS JOIN callipper_map.cell m JOIN callipper.cells e ON e.cell_id OPERATOR(pg_catalog.=) m.cell_id,
        LATERAL (SELECT @extschema:vector@.inner_product(e.emb, q.question) AS similarity) AS s
    WHERE q.question IS NOT NULL
$$;
COMMENT ON FUNCTION callipper._cells_by(@extschema:vector@.vector) IS 'every cell, and how well a vector fits it';

CREATE OR REPLACE FUNCTION callipper_map.cells_by_text(query text DEFAULT 'park') RETURNS SETOF callipper_map.cell_match
LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 10000 AS $$
    SELECT cell_id, geom, lon, lat, similarity, percentile FROM callipper._cells_by(callipper.text_embed(query))
$$;
COMMENT ON FUNCTION callipper_map.cells_by_text(text) IS
    'Every cell, and how well a text fits it: SELECT * FROM callipper_map.cells_by_text(''quiet park''). similarity is the cosine,'
    ' percentile the share of the city''s cells that fit less well, in percent.';

CREATE OR REPLACE FUNCTION callipper_map.cells_by_examples(likes text[], dislikes text[] DEFAULT '{}')
RETURNS SETOF callipper_map.cell_match
LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 10000 AS $$
    SELECT cell_id, geom, lon, lat, similarity, percentile FROM callipper._cells_by(callipper._examples(likes, dislikes))
$$;
COMMENT ON FUNCTION callipper_map.cells_by_examples(text[], text[]) IS
    'Every cell, and how well it fits the first texts and not the second: SELECT * FROM callipper_map.cells_by_examples('
    'ARRAY[''park'', ''school''], ARRAY[''nightclub'']). The columns are those of cells_by_text().';

CREATE OR REPLACE FUNCTION callipper_map.places_by_text(query text DEFAULT 'park') RETURNS SETOF callipper_map.place_match
LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 10000 AS $$
    SELECT m.place_id, m.geom, m.lon, m.lat, m.name, m.kind, s.similarity,
        callipper._percentile((OPERATOR(pg_catalog.-) s.similarity)::pg_catalog.float8, q.city)
    FROM (SELECT v.question, callipper._city_of(v.question) AS city
          FROM (SELECT callipper.text_embed(query) AS question OFFSET 0) AS v OFFSET 0) AS q
        CROSS JOIN callipper_map.place m JOIN callipper.points e ON e.point_id OPERATOR(pg_catalog.=) m.place_id,
        LATERAL (SELECT @extschema:vector@.inner_product(e.emb, q.question) AS similarity) AS s
    WHERE q.question IS NOT NULL
$$;
COMMENT ON FUNCTION callipper_map.places_by_text(text) IS
    'Every POI that the model was trained on, and how well a text fits where it is. similarity and percentile are those of'
    ' cells_by_text().';

CREATE OR REPLACE FUNCTION callipper_map.find_cells(query text DEFAULT 'park', k bigint DEFAULT 10)
RETURNS SETOF callipper_map.cell_answer
LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 10 AS $$
    SELECT s.rank, s.cell_id, m.geom, m.lon, m.lat, s.similarity, s.percentile, s.relevant, s.lift, s.because
    FROM callipper.search(query, k) WITH ORDINALITY
            AS s(cell_id, geom, similarity, percentile, relevant, lift, because, rank)
        JOIN callipper_map.cell m ON m.cell_id OPERATOR(pg_catalog.=) s.cell_id
    ORDER BY s.rank
$$;
COMMENT ON FUNCTION callipper_map.find_cells(text, bigint) IS
    'The k cells that answer a text best, with the reasons, as search() finds them; rank 1 is the best.';

CREATE OR REPLACE FUNCTION callipper_map.describe_place(
    lon float8, lat float8, k bigint DEFAULT 10, language text DEFAULT 'en'
)
RETURNS TABLE (text text, pois integer, lift float8, because text)
LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 10 AS $$
    SELECT d.text, d.pois, d.lift, d.because
    FROM callipper.describe(
        @extschema:postgis@.ST_SetSRID(@extschema:postgis@.ST_MakePoint(lon, lat), 4326), k, language => language) d
$$;
COMMENT ON FUNCTION callipper_map.describe_place(float8, float8, bigint, text) IS
    'Up to k kinds of places that say what a place is like, as describe() says it: SELECT * FROM'
    ' callipper_map.describe_place(7.4206, 43.7326).';

-- GeoJSON, for tools that draw from text.
CREATE OR REPLACE VIEW callipper_map.cell_geojson AS
SELECT cell_id, @extschema:postgis@.ST_AsGeoJSON(geom, 6, 0) AS geojson, lon, lat, cluster, cluster_label, color, top_texts,
    support, poi_count
FROM callipper_map.cell;
COMMENT ON VIEW callipper_map.cell_geojson IS 'callipper_map.cell with its geometry as GeoJSON text';
COMMENT ON COLUMN callipper_map.cell_geojson.geojson IS 'the cell as GeoJSON in EPSG:4326, six decimals';
COMMENT ON COLUMN callipper_map.cell_geojson.cell_id IS 'as in callipper_map.cell';
COMMENT ON COLUMN callipper_map.cell_geojson.lon IS 'as in callipper_map.cell';
COMMENT ON COLUMN callipper_map.cell_geojson.lat IS 'as in callipper_map.cell';
COMMENT ON COLUMN callipper_map.cell_geojson.cluster IS 'as in callipper_map.cell';
COMMENT ON COLUMN callipper_map.cell_geojson.cluster_label IS 'as in callipper_map.cell';
COMMENT ON COLUMN callipper_map.cell_geojson.color IS 'as in callipper_map.cell';
COMMENT ON COLUMN callipper_map.cell_geojson.top_texts IS 'as in callipper_map.cell';
COMMENT ON COLUMN callipper_map.cell_geojson.support IS 'as in callipper_map.cell';
COMMENT ON COLUMN callipper_map.cell_geojson.poi_count IS 'as in callipper_map.cell';
