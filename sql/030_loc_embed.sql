-- The location tower: a place becomes a vector in the space of the texts.

-- A geometry as the point that it is asked at, in its own coordinates; `known` is an SRID that need not be looked up, that of
-- a projection. What ST_Transform would refuse with a riddle is refused here: an EXCEPTION block, which could translate the
-- riddle, may not run in a parallel worker before PostgreSQL 17.
CREATE OR REPLACE FUNCTION callipper._as_point(place @extschema:postgis@.geometry, known integer)
RETURNS @extschema:postgis@.geometry
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, @extschema:vector@, @extschema:postgis@, pg_temp AS $$
DECLARE
    asked integer := ST_SRID(place);
    spot geometry := ST_Force2D(place);
    finite boolean;
    geographic boolean := asked = 4326;
BEGIN
    IF asked = 0 THEN
        RAISE EXCEPTION 'the geometry has no SRID' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Say what its coordinates are, such as ST_SetSRID(geom, 4326) for longitude and latitude.';
    ELSIF ST_IsEmpty(spot) THEN
        RAISE EXCEPTION 'the geometry is empty' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Leave such rows out with: WHERE NOT ST_IsEmpty(geom)';
    ELSIF asked NOT IN (4326, known) THEN
        SELECT s.srtext ILIKE 'GEOG%' INTO geographic FROM spatial_ref_sys s WHERE s.srid = asked;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'PostGIS does not know SRID %', asked USING ERRCODE = 'invalid_parameter_value',
                HINT = 'SELECT srid, srtext FROM spatial_ref_sys lists those that it knows.';
        END IF;
    END IF;
    IF GeometryType(spot) = 'POINT' THEN
        finite := abs(ST_X(spot)) < 'infinity' AND abs(ST_Y(spot)) < 'infinity';
    ELSE
        finite := NOT EXISTS (SELECT FROM ST_DumpPoints(spot) AS d
                              WHERE NOT (abs(ST_X(d.geom)) < 'infinity' AND abs(ST_Y(d.geom)) < 'infinity'));
    END IF;
    IF NOT finite THEN
        RAISE EXCEPTION 'the geometry has a coordinate that is not finite' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Its text shows which: ST_AsText(geom)';
    END IF;
    IF GeometryType(spot) = 'POLYHEDRALSURFACE' THEN  -- of which ST_Centroid knows nothing
        spot := (SELECT ST_Collect(d.geom) FROM ST_Dump(spot) AS d);
    END IF;
    IF GeometryType(spot) <> 'POINT' THEN
        spot := ST_Centroid(spot);
    END IF;
    IF geographic AND abs(ST_Y(spot)) > 90 THEN
        RAISE EXCEPTION 'latitude % is not between -90 and 90', ST_Y(spot) USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Longitude comes first: ST_Point(longitude, latitude).';
    END IF;
    RETURN spot;
END
$$;
COMMENT ON FUNCTION callipper._as_point(@extschema:postgis@.geometry, integer) IS
    'the point that a geometry is asked at, its centroid if it is none; refuses what has no place on earth';

-- A geometry's place in metres from the model's origin. A projection for one city has no numbers for the other side of the
-- earth; 8,000 km is within what the usual ones bear.
CREATE OR REPLACE FUNCTION callipper._to_metres(
    place @extschema:postgis@.geometry, srid integer, easting float8, northing float8, extent @extschema:postgis@.geometry
) RETURNS point
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, @extschema:vector@, @extschema:postgis@, pg_temp AS $$
DECLARE
    spot geometry := callipper._as_point(place, srid);
    lonlat geometry;
    away_m float8;
BEGIN
    IF ST_SRID(spot) <> srid THEN
        lonlat := ST_Transform(spot, 4326);
        away_m := ST_DistanceSphere(ST_ClosestPoint(extent, lonlat), lonlat);
        IF away_m > 8e6 THEN
            RAISE EXCEPTION 'the place lies % km from the model''s POIs, too far for its coordinate system (SRID %)',
                round(away_m / 1000), srid USING ERRCODE = 'invalid_parameter_value',
                HINT = 'Check the order of its coordinates and its SRID: ST_AsEWKT(geom)';
        END IF;
        spot := ST_Transform(spot, srid);
    END IF;
    RETURN point(ST_X(spot) - easting, ST_Y(spot) - northing);
END
$$;
COMMENT ON FUNCTION callipper._to_metres(@extschema:postgis@.geometry, integer, float8, float8, @extschema:postgis@.geometry) IS
    'place of a geometry in metres from a model''s origin';

-- Features of kind "grid": sine and cosine of easting and northing at each divisor.
CREATE OR REPLACE FUNCTION callipper._grid_features(feature callipper._location_feature, metres point)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, @extschema:vector@, pg_temp AS $$
BEGIN
    RETURN (
        SELECT array_agg(sin(metres[0] / d)) || array_agg(cos(metres[0] / d))
            || array_agg(sin(metres[1] / d)) || array_agg(cos(metres[1] / d))
        FROM unnest(feature.divisors_m) AS d
    )::vector;
END
$$;
COMMENT ON FUNCTION callipper._grid_features(callipper._location_feature, point) IS
    'features of kind grid: sines and cosines of easting and northing';

-- Features of kind "context": of each lattice the mean code of the POIs around, and log(1 + their number). The four cells
-- nearest to the point count, each by how near its centre lies. Lattices of large cells sum up, after the code, the POIs of
-- each kind, and the features go on with log(1 + number) of these.
CREATE OR REPLACE FUNCTION callipper._context_features(feature callipper._location_feature, metres point)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, @extschema:vector@, pg_temp AS $$
DECLARE
    code integer[] := ARRAY[feature.code];
    part vector;
    result vector;
BEGIN
    FOR part IN
        SELECT CASE kinds
            WHEN 0 THEN shown
            ELSE shown || ARRAY(
                SELECT ln(1 + kind) FROM unnest(subvector(around.sums, feature.code + 1, kinds)::real[]) AS kind
            )::vector END
        FROM unnest(feature.sizes_m) WITH ORDINALITY AS lattice(size_m, number),
            LATERAL (SELECT CASE WHEN size_m >= feature.kinds_from_m THEN feature.kinds ELSE 0 END AS kinds) AS counted,
            LATERAL (SELECT ARRAY[feature.code + kinds] AS width) AS summed,
            -- In cells, whole numbers at their centres; bounded to what an integer holds.
            LATERAL (SELECT greatest(-2e9, least(2e9, metres[0] / size_m - 0.5)) AS x,
                            greatest(-2e9, least(2e9, metres[1] / size_m - 0.5)) AS y) AS here,
            LATERAL (
                SELECT coalesce(sum(share * n), 0) AS n,
                    coalesce(sum(code_sum * array_fill(share, width)::vector), array_fill(0, width)::vector) AS sums
                FROM (
                    SELECT c.n, c.code_sum, (1 - abs(x - c.i)) * (1 - abs(y - c.j)) AS share
                    FROM callipper.context_cell c
                    WHERE c.version = feature.version AND c.level = number - 1
                        AND c.i IN (floor(x)::integer, floor(x)::integer + 1)
                        AND c.j IN (floor(y)::integer, floor(y)::integer + 1)
                    OFFSET 0
                ) AS near
            ) AS around,
            LATERAL (SELECT subvector(around.sums, 1, feature.code) * array_fill(1 / (around.n + feature.prior), code)::vector
                || ARRAY[ln(1 + around.n)]::vector AS shown) AS likened
        ORDER BY number
    LOOP
        result := coalesce(result || part, part);
    END LOOP;
    RETURN (result - feature.mean) * feature.scale;
END
$$;
COMMENT ON FUNCTION callipper._context_features(callipper._location_feature, point) IS
    'features of kind context: mean code and number of the POIs around, per lattice, standardised';

-- What the network reads: the features of each kind, in the order of model.arch.
CREATE OR REPLACE FUNCTION callipper._place_features(features callipper._location_feature[], metres point)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, @extschema:vector@, pg_temp AS $$
DECLARE
    feature callipper._location_feature;
    part vector;
    result vector;
BEGIN
    FOREACH feature IN ARRAY features LOOP
        part := CASE feature.kind
            WHEN 'grid' THEN callipper._grid_features(feature, metres)
            WHEN 'context' THEN callipper._context_features(feature, metres)
        END;
        result := coalesce(result || part, part);
    END LOOP;
    RETURN result;
END
$$;
COMMENT ON FUNCTION callipper._place_features(callipper._location_feature[], point) IS 'input of a location encoder''s network';

-- The network. Each round is a layer: x is what enters it, `kept` what the residual block that it stands in began with. A
-- layer that joins reads the features once more, beside x. A neuron's value is inner_product(weights, x) + bias; ReLU is that
-- nothing is lower than 0. Neurons that the value at hand lacks come from the table, which takes twice as long.
CREATE OR REPLACE FUNCTION callipper._embed_place(place @extschema:postgis@.geometry, encoder callipper._location_encoder)
RETURNS @extschema:vector@.vector
LANGUAGE sql STABLE STRICT PARALLEL SAFE AS $$
    WITH RECURSIVE forward(number, x, kept, features) AS (
        SELECT 1, place_features, NULL::vector, place_features
        FROM (SELECT callipper._place_features(encoder.features, callipper._to_metres(
            place, encoder.srid, encoder.origin_easting, encoder.origin_northing, encoder.extent)) AS place_features OFFSET 0
        ) AS begun
        UNION ALL
        SELECT f.number + 1,
            CASE layer.residual WHEN 'add' THEN f.kept + output.y ELSE output.y END,
            CASE layer.residual WHEN 'begin' THEN f.x ELSE f.kept END,
            f.features
        FROM forward f,
            LATERAL (SELECT (encoder.layers[f.number]).* OFFSET 0) AS layer,
            LATERAL (SELECT CASE layer.residual WHEN 'join' THEN f.x || f.features ELSE f.x END AS x OFFSET 0) AS enters,
            LATERAL (SELECT enters.x || '[1]'::vector AS x1 OFFSET 0) AS biased,
            LATERAL (SELECT CASE layer.activation WHEN 'relu' THEN 0::float8 ELSE '-infinity' END AS lowest OFFSET 0) AS bound,
            LATERAL (SELECT CASE
                WHEN layer.neurons IS NOT NULL THEN ARRAY(
                    SELECT greatest(lowest, inner_product(neuron, x1)) FROM (SELECT unnest(layer.neurons) AS neuron) AS n
                )
                ELSE ARRAY(
                    SELECT greatest(lowest, inner_product(w.weight, enters.x) + w.bias) FROM callipper.location_weight w
                    WHERE w.version = layer.version AND w.layer = layer.name ORDER BY w.neuron
                )
            END::vector AS y OFFSET 0) AS output
        WHERE f.number <= cardinality(encoder.layers)
    )
    SELECT l2_normalize(x) FROM forward WHERE number > cardinality(encoder.layers)
$$;
COMMENT ON FUNCTION callipper._embed_place(@extschema:postgis@.geometry, callipper._location_encoder) IS
    'embedding of a place by a location encoder';

-- The embedding of a place by a model version. VOLATILE, as _find_text is, and as the owner, since readers have no right on
-- the weights. The plan of its one expression keeps the active version's encoder: _active_version() is a constant there until
-- activate() replaces it, and then the plan is made anew. All within one expression, so that no two versions can mix.
-- A plan made for each call would read the encoder each time; plan_cache_mode forbids it, here and in all that is called.
CREATE OR REPLACE FUNCTION callipper._locate(place @extschema:postgis@.geometry, version integer)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE SECURITY DEFINER COST 30000
SET search_path = pg_catalog, @extschema:vector@, @extschema:postgis@, pg_temp SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    RETURN callipper._embed_place(place, coalesce(
        CASE version WHEN callipper._active_version() THEN callipper._location_encoder(callipper._active_version()) END,
        callipper._read_location_encoder(version, false)
    ));
END
$$;
COMMENT ON FUNCTION callipper._locate(@extschema:postgis@.geometry, integer) IS 'embedding of a place by a model version';

-- IMMUTABLE for the same reason, and with the same caution, as text_embed.
CREATE OR REPLACE FUNCTION callipper.loc_embed(place @extschema:postgis@.geometry) RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 30000 AS $$
    SELECT callipper._locate(place, callipper._require_model(NULL))
$$;
COMMENT ON FUNCTION callipper.loc_embed(@extschema:postgis@.geometry) IS
    'embedding of a place by the active model, in the space of text_embed: unit length, 128 dimensions. Takes a geometry of any'
    ' SRID that PostGIS can transform, inside the model''s extent or not; one that is no point is asked at its ST_Centroid';

CREATE OR REPLACE FUNCTION callipper.loc_embed(place @extschema:postgis@.geometry, model integer)
RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 60000 AS $$
    SELECT callipper._locate(place, callipper._require_model(model))
$$;
COMMENT ON FUNCTION callipper.loc_embed(@extschema:postgis@.geometry, integer) IS
    'embedding of a place by a model version, the active one or, in twice the time, another; otherwise as loc_embed(geometry)';
