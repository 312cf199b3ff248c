-- The location tower: a place becomes a vector in the same space as texts.

-- Features of kind "grid": sine and cosine of easting and northing at each divisor.
CREATE OR REPLACE FUNCTION callipper._grid_features(feature callipper._location_feature, metres point)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        SELECT array_agg(sin(metres[0] / d)) || array_agg(cos(metres[0] / d))
            || array_agg(sin(metres[1] / d)) || array_agg(cos(metres[1] / d))
        FROM unnest(feature.divisors_m) AS d
    )::@extschema:vector@.vector;
END
$$;
COMMENT ON FUNCTION callipper._grid_features(callipper._location_feature, point) IS
    'features of kind grid: sines and cosines of easting and northing';

-- Features of kind "context": for each lattice the mean code of the nearby POIs, and log(1 + their number). The four cells
-- nearest to the point are mixed bilinearly. Lattices with large cells also count the POIs of each kind, after the code in
-- code_sum; log(1 + count) of each kind follows as a feature.
CREATE OR REPLACE FUNCTION callipper._context_features(feature callipper._location_feature, metres point)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    code integer[] := ARRAY[feature.code];
    part @extschema:vector@.vector;
    result @extschema:vector@.vector;
BEGIN
    FOR part IN
        SELECT CASE kinds
            WHEN 0 THEN shown
            ELSE @extschema:vector@.vector_concat(shown, ARRAY(
                SELECT ln(1 + kind)
                FROM unnest(@extschema:vector@.subvector(around.sums, feature.code + 1, kinds)::real[]) AS kind
            )::@extschema:vector@.vector) END
        FROM unnest(feature.sizes_m) WITH ORDINALITY AS lattice(size_m, number),
            LATERAL (SELECT CASE WHEN size_m >= feature.kinds_from_m THEN feature.kinds ELSE 0 END AS kinds) AS counted,
            LATERAL (SELECT ARRAY[feature.code + kinds] AS width) AS summed,
            -- In units of cells, with cell centres at whole numbers; bounded so that an integer can hold it.
            LATERAL (SELECT greatest(-2e9, least(2e9, metres[0] / size_m - 0.5)) AS x,
                            greatest(-2e9, least(2e9, metres[1] / size_m - 0.5)) AS y) AS here,
            LATERAL (
                SELECT coalesce(sum(share * n), 0) AS n,
                    coalesce(
                        @extschema:vector@.sum(
                            @extschema:vector@.vector_mul(code_sum, array_fill(share, width)::@extschema:vector@.vector)
                        ),
                        array_fill(0, width)::@extschema:vector@.vector
                    ) AS sums
                FROM (
                    SELECT c.n, c.code_sum, (1 - abs(x - c.i)) * (1 - abs(y - c.j)) AS share
                    FROM callipper.context_cell c
                    WHERE c.version = feature.version AND c.level = number - 1
                        AND c.i IN (floor(x)::integer, floor(x)::integer + 1)
                        AND c.j IN (floor(y)::integer, floor(y)::integer + 1)
                    OFFSET 0
                ) AS near
            ) AS around,
            LATERAL (SELECT @extschema:vector@.vector_concat(
                @extschema:vector@.vector_mul(
                    @extschema:vector@.subvector(around.sums, 1, feature.code),
                    array_fill(1 / (around.n + feature.prior), code)::@extschema:vector@.vector
                ), ARRAY[ln(1 + around.n)]::@extschema:vector@.vector
            ) AS shown) AS likened
        ORDER BY number
    LOOP
        result := coalesce(@extschema:vector@.vector_concat(result, part), part);
    END LOOP;
    RETURN @extschema:vector@.vector_mul(@extschema:vector@.vector_sub(result, feature.mean), feature.scale);
END
$$;
COMMENT ON FUNCTION callipper._context_features(callipper._location_feature, point) IS
    'features of kind context: mean code and number of the nearby POIs, per lattice, standardised';

-- The input of the network: the features of each kind, in the order of model.arch.
CREATE OR REPLACE FUNCTION callipper._place_features(features callipper._location_feature[], metres point)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    feature callipper._location_feature;
    part @extschema:vector@.vector;
    result @extschema:vector@.vector;
BEGIN
    FOREACH feature IN ARRAY features LOOP
        part := CASE feature.kind
            WHEN 'grid' THEN callipper._grid_features(feature, metres)
            WHEN 'context' THEN callipper._context_features(feature, metres)
        END;
        result := coalesce(@extschema:vector@.vector_concat(result, part), part);
    END LOOP;
    RETURN result;
END
$$;
COMMENT ON FUNCTION callipper._place_features(callipper._location_feature[], point) IS 'input of a location encoder''s network';

-- The network. Each round of the recursion is one layer: x is its input, `kept` the input of the residual block around it. A
-- layer that joins reads x and the features. The value of a neuron is inner_product(weights, x) + bias, and ReLU turns negative
-- ones into 0. An encoder without neurons reads them from the table, which takes twice as long.
CREATE OR REPLACE FUNCTION callipper._embed_place(place @extschema:postgis@.geometry, encoder callipper._location_encoder)
RETURNS @extschema:vector@.vector
LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE forward(number, x, kept, features) AS (
        SELECT 1, place_features, NULL::@extschema:vector@.vector, place_features
        FROM (SELECT callipper._place_features(encoder.features, callipper._to_metres(
            place, encoder.srid, encoder.origin_easting, encoder.origin_northing, encoder.extent)) AS place_features OFFSET 0
        ) AS begun
        UNION ALL
        SELECT f.number + 1,
            CASE layer.residual WHEN 'add' THEN @extschema:vector@.vector_add(f.kept, output.y) ELSE output.y END,
            CASE layer.residual WHEN 'begin' THEN f.x ELSE f.kept END,
            f.features
        FROM forward f,
            LATERAL (SELECT (encoder.layers[f.number]).* OFFSET 0) AS layer,
            LATERAL (
                SELECT CASE layer.residual
                    WHEN 'join' THEN @extschema:vector@.vector_concat(f.x, f.features) ELSE f.x
                END AS x OFFSET 0
            ) AS enters,
            LATERAL (
                SELECT @extschema:vector@.vector_concat(enters.x, '[1]'::@extschema:vector@.vector) AS x1 OFFSET 0
            ) AS biased,
            LATERAL (SELECT CASE layer.activation WHEN 'relu' THEN 0::float8 ELSE '-infinity' END AS lowest OFFSET 0) AS bound,
            LATERAL (SELECT CASE
                WHEN layer.neurons IS NOT NULL THEN ARRAY(
                    SELECT greatest(lowest, @extschema:vector@.inner_product(neuron, x1))
                    FROM (SELECT unnest(layer.neurons) AS neuron) AS n
                )
                ELSE ARRAY(
                    SELECT greatest(lowest, @extschema:vector@.inner_product(w.weight, enters.x) + w.bias)
                    FROM callipper.location_weight w
                    WHERE w.version = layer.version AND w.layer = layer.name ORDER BY w.neuron
                )
            END::@extschema:vector@.vector AS y OFFSET 0) AS output
        WHERE f.number <= cardinality(encoder.layers)
    )
    SELECT x FROM forward WHERE number > cardinality(encoder.layers)
$$;
COMMENT ON FUNCTION callipper._embed_place(@extschema:postgis@.geometry, callipper._location_encoder) IS
    'output of a location encoder for a place';

-- A plan may keep the encoder of another version than the question is for.
CREATE OR REPLACE FUNCTION callipper._encoder_of(version integer, kept callipper._location_encoder)
RETURNS callipper._location_encoder
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN (kept).version OPERATOR(pg_catalog.=) $1 THEN kept END
$$;
COMMENT ON FUNCTION callipper._encoder_of(integer, callipper._location_encoder) IS
    'a location encoder if it is that of the version, else NULL';

-- The embedding of a place by a model version. SECURITY DEFINER, because readers have no right on the weights. The plan of its
-- expression keeps the encoder of the version that was activated last, as a constant, until the next activation. A custom plan
-- for each call would read the encoder each time; plan_cache_mode prevents that, here and in the functions that it calls.
CREATE OR REPLACE FUNCTION callipper._locate(place @extschema:postgis@.geometry, version integer)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SECURITY DEFINER COST 30000
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    RETURN callipper._join_place(callipper._place_peaks(place, version), callipper._embed_place(place, coalesce(
        callipper._encoder_of(version, callipper._location_encoder(callipper._newest_version())),
        callipper._read_location_encoder(version, false)
    )), version);
END
$$;
COMMENT ON FUNCTION callipper._locate(@extschema:postgis@.geometry, integer) IS 'embedding of a place by a model version';

-- IMMUTABLE for the same reason, and with the same caution, as text_embed.
CREATE OR REPLACE FUNCTION callipper.loc_embed(place @extschema:postgis@.geometry) RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 30000 AS $$
    SELECT callipper._locate(place, callipper._active_version())
$$;
COMMENT ON FUNCTION callipper.loc_embed(@extschema:postgis@.geometry) IS
    'embedding of a place by the active model, in the space of text_embed: unit length, 256 dimensions. Takes a geometry of any'
    ' SRID that PostGIS can transform, inside the model''s extent or not, and a line or polygon at its ST_Centroid';

CREATE OR REPLACE FUNCTION callipper.loc_embed(place @extschema:postgis@.geometry, model integer)
RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 60000 AS $$
    SELECT callipper._locate(place, model)
$$;
COMMENT ON FUNCTION callipper.loc_embed(@extschema:postgis@.geometry, integer) IS
    'embedding of a place by the model version given, as loc_embed(geometry); one that is not active takes twice the time';
