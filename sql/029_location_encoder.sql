-- The location encoder as one value: model.arch with its weights. _locate() calls the internal functions of this file and of
-- 030_loc_embed.sql, so they run with its rights and its search_path.

-- These are views because a view defines a composite type. A neuron is a vector: its weights, then its bias.
CREATE OR REPLACE VIEW callipper._location_layer AS
SELECT m.version, l.number,
    l.layer ->> 'layer' AS name, l.layer ->> 'activation' AS activation, l.layer ->> 'residual' AS residual,
    ARRAY(
        SELECT w.weight OPERATOR(@extschema:vector@.||) ARRAY[w.bias]::@extschema:vector@.vector
        FROM callipper.location_weight w WHERE w.version = m.version AND w.layer = l.layer ->> 'layer' ORDER BY w.neuron
    ) AS neurons
FROM callipper.model m, jsonb_array_elements(m.arch -> 'layers') WITH ORDINALITY AS l(layer, number);

CREATE OR REPLACE VIEW callipper._location_feature AS
SELECT m.version, f.number, f.feature ->> 'kind' AS kind,
    ARRAY(SELECT d::float8 FROM jsonb_array_elements(f.feature -> 'divisors_m') WITH ORDINALITY AS e(d, n) ORDER BY n)
        AS divisors_m,
    ARRAY(SELECT s::float8 FROM jsonb_array_elements(f.feature -> 'sizes_m') WITH ORDINALITY AS e(s, n) ORDER BY n)
        AS sizes_m,
    (f.feature -> 'code')::integer AS code, (f.feature -> 'prior')::float8 AS prior,
    -- JSON writes a list as pgvector writes a vector.
    CASE f.feature ->> 'kind' WHEN 'context' THEN (m.standardisation -> 'mean')::text::@extschema:vector@.vector END AS mean,
    CASE f.feature ->> 'kind' WHEN 'context' THEN (m.standardisation -> 'scale')::text::@extschema:vector@.vector END AS scale,
    coalesce((f.feature -> 'kinds')::integer, 0) AS kinds, (f.feature -> 'kinds_from_m')::float8 AS kinds_from_m
FROM callipper.model m, jsonb_array_elements(m.arch -> 'features') WITH ORDINALITY AS f(feature, number);

CREATE OR REPLACE VIEW callipper._location_encoder AS
SELECT m.version, m.srid, m.origin_easting, m.origin_northing, m.extent,
    ARRAY(SELECT f FROM callipper._location_feature f WHERE f.version = m.version ORDER BY f.number) AS features,
    ARRAY(SELECT l FROM callipper._location_layer l WHERE l.version = m.version ORDER BY l.number) AS layers
FROM callipper.model m;

-- Reads the location encoder of a version: whole, for a plan to keep, or without its neurons, for one use. When there is none
-- that this database can run, the whole one is NULL, and the other an error.
CREATE OR REPLACE FUNCTION callipper._read_location_encoder(version integer, whole boolean) RETURNS callipper._location_encoder
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    encoder callipper._location_encoder;
    unknown text := (
        SELECT string_agg(DISTINCT part, ', ') FROM (
            SELECT format('feature "%s"', f.kind) FROM callipper._location_feature f
                WHERE f.version = _read_location_encoder.version AND coalesce(f.kind, '') NOT IN ('grid', 'context')
            UNION ALL SELECT format('activation "%s"', l.activation) FROM callipper._location_layer l
                WHERE l.version = _read_location_encoder.version AND l.activation NOT IN ('relu')
            UNION ALL SELECT format('residual "%s"', l.residual) FROM callipper._location_layer l
                WHERE l.version = _read_location_encoder.version AND l.residual NOT IN ('begin', 'add', 'join')
        ) AS parts(part)
    );
BEGIN
    SELECT e.version, e.srid, e.origin_easting, e.origin_northing, e.extent, e.features,
        CASE WHEN whole THEN e.layers ELSE ARRAY(
            SELECT ROW(l.version, l.number, l.name, l.activation, l.residual, NULL)::callipper._location_layer
            FROM callipper._location_layer l WHERE l.version = e.version ORDER BY l.number
        ) END
        INTO encoder FROM callipper._location_encoder e WHERE e.version = _read_location_encoder.version;
    IF unknown IS NULL AND cardinality(encoder.features) > 0 AND cardinality(encoder.layers) > 0 THEN
        RETURN encoder;
    ELSIF whole THEN
        RETURN NULL;
    END IF;
    PERFORM callipper._require_model(version);
    RAISE EXCEPTION 'the location encoder of model version % cannot run here: %',
            version, coalesce('unknown ' || unknown, 'it is empty')
        USING ERRCODE = 'feature_not_supported', HINT = 'Run init of the callipper-db that trained this model, or train anew.';
END
$$;
COMMENT ON FUNCTION callipper._read_location_encoder(integer, boolean) IS
    'location encoder of a model version: whole, or without its neurons';

-- IMMUTABLE so that a plan keeps the answer. Only a refresh changes the rows of a version, and after it all plans are made anew
-- (_announce_change).
CREATE OR REPLACE FUNCTION callipper._location_encoder(version integer) RETURNS callipper._location_encoder
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT callipper._read_location_encoder(version, true)
$$;
COMMENT ON FUNCTION callipper._location_encoder(integer) IS 'location encoder of a model version, whole, for a plan to keep';
