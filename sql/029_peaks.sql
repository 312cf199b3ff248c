-- The first half of an embedding: where each kind of place peaks in the city (trainer/callipper_trainer/peaks.py). Versions of
-- earlier programs have none; their embeddings hold zeros there.

-- POIs of each kind are counted around a place by squares of 100 m, the nearer the more, and divided by a power of all POIs
-- there. What is above the kind's threshold counts, along the kind's direction. NULL where the version has no peaks.
CREATE OR REPLACE FUNCTION callipper._place_peaks(place @extschema:postgis@.geometry, version integer)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    rule jsonb;
    srid integer;
    extent @extschema:postgis@.geometry;
    reach float8;
    by_name float8;
    metres point;
    x float8;
    y float8;
    kinds integer[];
    held float8[];
    pois float8;
    first_half @extschema:vector@.vector;
BEGIN
    SELECT m.arch -> 'peaks', m.srid, m.extent INTO rule, srid, extent
        FROM callipper.model m WHERE m.version = _place_peaks.version;
    IF rule IS NULL THEN
        RETURN NULL;
    ELSIF to_regclass(format('callipper.%I', 'point_kind_v' || version)) IS NULL THEN
        RETURN array_fill(0::real, ARRAY[128])::@extschema:vector@.vector;
    END IF;
    reach := (rule ->> 'reach_m')::float8 / 100;
    by_name := (rule ->> 'by_name')::float8;
    metres := callipper._to_metres(place, srid, 0, 0, extent);
    -- In squares, whole numbers at their centres; bounded to what an integer holds. A quotient of 1e-323 would be an underflow.
    x := greatest(-2e9, least(2e9, (metres[0] - 50) / 100));
    y := greatest(-2e9, least(2e9, (metres[1] - 50) / 100));
    -- Each plan names one partition: one that named the table would lock the partitions of all versions. The constant lets the
    -- first statement be planned once. Of the names only those of the POIs themselves count, not those of stops.
    IF version = callipper._newest_version() THEN
        SELECT array_agg(n.kind_id), array_agg(n.held), sum(n.pois) INTO kinds, held, pois FROM (
            SELECT p.kind_id, sum(s.share * CASE WHEN p.basis > 0 THEN by_name ELSE 1 END) AS held,
                sum(s.share) FILTER (WHERE p.basis = 0) AS pois
            FROM generate_series(ceil(x - reach)::integer, floor(x + reach)::integer) AS a(i)
                JOIN callipper.point_kind p ON p.version = callipper._newest_version() AND p.i = a.i
                    AND p.j BETWEEN ceil(y - reach)::integer AND floor(y + reach)::integer AND p.basis < 4,
                LATERAL (SELECT (1 - abs(x - p.i) / reach) * (1 - abs(y - p.j) / reach) AS share) AS s
            GROUP BY p.kind_id
        ) AS n;
    ELSE
        EXECUTE format($query$
            SELECT array_agg(n.kind_id), array_agg(n.held), sum(n.pois) FROM (
                SELECT p.kind_id, sum(s.share * CASE WHEN p.basis > 0 THEN $4 ELSE 1 END) AS held,
                    sum(s.share) FILTER (WHERE p.basis = 0) AS pois
                FROM generate_series(ceil($1 - $3)::integer, floor($1 + $3)::integer) AS a(i)
                    JOIN callipper.%I p ON p.i = a.i AND p.j BETWEEN ceil($2 - $3)::integer AND floor($2 + $3)::integer AND p.basis < 4,
                    LATERAL (SELECT (1 - abs($1 - p.i) / $3) * (1 - abs($2 - p.j) / $3) AS share) AS s
                GROUP BY p.kind_id
            ) AS n
        $query$, 'point_kind_v' || version) INTO kinds, held, pois USING x, y, reach, by_name;
    END IF;
    pois := power(coalesce(pois, 0) + (rule ->> 'prior')::float8, (rule ->> 'power')::float8);
    SELECT @extschema:vector@.sum(@extschema:vector@.vector_mul(
            k.direction,
            array_fill((k.gain * (n.held / pois - k.threshold))::real, ARRAY[@extschema:vector@.vector_dims(k.direction)])
                ::@extschema:vector@.vector))
        INTO first_half
        FROM unnest(kinds, held) AS n(kind_id, held)
            JOIN callipper.kind_peak k ON k.version = _place_peaks.version AND k.kind_id = n.kind_id AND n.held / pois > k.threshold;
    IF first_half IS NULL THEN
        RETURN array_fill(0::real, ARRAY[128])::@extschema:vector@.vector;
    END IF;
    RETURN @extschema:vector@.vector_mul(first_half, array_fill(
        (1 / greatest(@extschema:vector@.vector_norm(first_half), (rule ->> 'length')::float8))::real,
        ARRAY[@extschema:vector@.vector_dims(first_half)])::@extschema:vector@.vector);
END
$$;
COMMENT ON FUNCTION callipper._place_peaks(@extschema:postgis@.geometry, integer) IS
    'first half of the embedding of a place: how far kinds of places stand out there';

-- The directions of the kinds that a text asks for, by each kind's phrases and their words; zeros where it asks for none. Unlike in
-- callipper._kinds_asked(), few POIs do not count against a kind: a refresh would change what texts mean. A version of an earlier program
-- has no softness: there the nearest phrase alone counts.
CREATE OR REPLACE FUNCTION callipper._text_peaks(question @extschema:vector@.vector, version integer, words text)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    rule jsonb := (SELECT m.arch -> 'peaks' FROM callipper.model m WHERE m.version = _text_peaks.version);
    softness constant float8 := rule ->> 'softness';
    evenness constant float8 := coalesce((rule ->> 'evenness')::float8, 0);  -- an earlier program has none
    by_words constant float8 := coalesce((rule ->> 'by_words')::float8, 0);  -- an earlier program has none
    asked @extschema:vector@.vector := @extschema:vector@.l2_normalize(question);
    first_half @extschema:vector@.vector;
BEGIN
    IF rule IS NULL THEN
        RETURN NULL;
    END IF;
    WITH phrase AS (
        SELECT p.kind_id, @extschema:vector@.inner_product(p.vec, asked) AS cosine
        FROM callipper.kind_peak k JOIN callipper.kind_phrase p USING (version, kind_id)
        WHERE k.version = _text_peaks.version OFFSET 0
    ), likeness AS (
        SELECT p.kind_id, p.cosine + by_words * coalesce(w.share, 0) AS cosine FROM (
            SELECT p.kind_id,
                coalesce((ln(sum(exp(softness * p.cosine))) - evenness * ln(greatest(10, count(*)))) / softness, max(p.cosine)) AS cosine
            FROM phrase p GROUP BY p.kind_id
        ) p LEFT JOIN callipper._shared_words(version, ARRAY[words], ARRAY(
            SELECT k.kind_id FROM callipper.kind_peak k WHERE k.version = _text_peaks.version AND by_words > 0
        )) w ON w.kind_id = p.kind_id
    ), nearest AS (
        SELECT max(l.cosine) AS cosine, (SELECT max(p.cosine) FROM phrase p) AS phrase FROM likeness l
    )
    SELECT @extschema:vector@.sum(@extschema:vector@.vector_mul(
            k.direction,
            array_fill(exp((rule ->> 'sharpness')::float8 * (l.cosine - n.cosine))::real,
                ARRAY[@extschema:vector@.vector_dims(k.direction)])::@extschema:vector@.vector))
        INTO first_half
        FROM likeness l CROSS JOIN nearest n
            JOIN callipper.kind_peak k ON k.version = _text_peaks.version AND k.kind_id = l.kind_id
        WHERE n.phrase >= (rule ->> 'floor')::float8 AND l.cosine >= n.cosine - (rule ->> 'width')::float8;
    IF first_half IS NULL THEN
        RETURN array_fill(0::real, ARRAY[128])::@extschema:vector@.vector;
    END IF;
    RETURN @extschema:vector@.l2_normalize(first_half);
END
$$;
COMMENT ON FUNCTION callipper._text_peaks(@extschema:vector@.vector, integer, text) IS
    'first half of the embedding of a text: the directions of the kinds of places that it asks for';

-- Both halves as one vector of unit length: what the first half leaves of the length is the second's. NULL means zeros.
CREATE OR REPLACE FUNCTION callipper._join_halves(first_half @extschema:vector@.vector, second_half @extschema:vector@.vector)
RETURNS @extschema:vector@.vector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    dimensions constant integer := 256;
    own integer := @extschema:vector@.vector_dims(second_half);
    length real;
BEGIN
    IF first_half IS NULL THEN
        RETURN CASE WHEN own < dimensions
            THEN @extschema:vector@.vector_concat(array_fill(0::real, ARRAY[dimensions - own])::@extschema:vector@.vector, second_half)
            ELSE second_half END;
    END IF;
    length := sqrt(greatest(0, 1 - @extschema:vector@.inner_product(first_half, first_half)));
    RETURN @extschema:vector@.vector_concat(
        first_half, @extschema:vector@.vector_mul(second_half, array_fill(length, ARRAY[own])::@extschema:vector@.vector));
END
$$;
COMMENT ON FUNCTION callipper._join_halves(@extschema:vector@.vector, @extschema:vector@.vector) IS
    'embedding from its two halves, unit length';

-- Of a place, from its peaks and the output of the location encoder, which is the second half. The first half echoes a little of that. In
-- a version of an earlier program it has a summary of the context instead, which the encoder puts before the second half.
CREATE OR REPLACE FUNCTION callipper._join_place(
    peaks @extschema:vector@.vector, output @extschema:vector@.vector, version integer
) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    rule constant jsonb := (SELECT m.arch -> 'peaks' FROM callipper.model m WHERE m.version = _join_place.version);
    most constant float8 := coalesce((rule ->> 'most')::float8, 1);  -- an earlier program has none
    width constant integer := @extschema:vector@.vector_dims(peaks);
    norm float8;
    first_half @extschema:vector@.vector;
    second_half @extschema:vector@.vector;
BEGIN
    IF peaks IS NULL THEN
        RETURN callipper._join_halves(NULL, @extschema:vector@.l2_normalize(output));
    END IF;
    second_half := @extschema:vector@.l2_normalize(
        @extschema:vector@.subvector(output, @extschema:vector@.vector_dims(output) - width + 1, width));
    first_half := @extschema:vector@.vector_add(peaks, @extschema:vector@.vector_mul(
        CASE WHEN rule ? 'echo' THEN second_half
            ELSE @extschema:vector@.l2_normalize(@extschema:vector@.subvector(output, 1, width)) END,
        array_fill(coalesce(rule ->> 'echo', rule ->> 'summary')::real, ARRAY[width])::@extschema:vector@.vector));
    norm := @extschema:vector@.vector_norm(first_half);
    IF norm > most THEN
        first_half := @extschema:vector@.vector_mul(
            first_half, array_fill((most / norm)::real, ARRAY[width])::@extschema:vector@.vector);
    END IF;
    RETURN callipper._join_halves(first_half, second_half);
END
$$;
COMMENT ON FUNCTION callipper._join_place(@extschema:vector@.vector, @extschema:vector@.vector, integer) IS
    'embedding of a place from its peaks and the output of the location encoder';

-- Of a text: where it asks for a kind, the first half is the longer one, by what model.arch says; else the second is all. The second
-- takes away what the echo in a place's first half adds to the inner product (exactly so where the place stands out in nothing), or
-- in a version of an earlier program what the summary adds, as far as the place's second half foretells it.
CREATE OR REPLACE FUNCTION callipper._join_text(
    first_half @extschema:vector@.vector, second_half @extschema:vector@.vector, version integer
) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    rule jsonb := (SELECT m.arch -> 'peaks' FROM callipper.model m WHERE m.version = _join_text.version);
    width integer := @extschema:vector@.vector_dims(second_half);
    echo constant float8 := rule ->> 'echo';
BEGIN
    IF first_half IS NULL OR @extschema:vector@.vector_norm(first_half) = 0 THEN
        RETURN callipper._join_halves(first_half, second_half);
    END IF;
    second_half := @extschema:vector@.vector_sub(
        @extschema:vector@.vector_mul(
            second_half, array_fill((rule ->> 'text_context')::real, ARRAY[width])::@extschema:vector@.vector),
        CASE WHEN echo IS NOT NULL THEN @extschema:vector@.vector_mul(
            first_half, array_fill((echo / sqrt(1 - echo ^ 2))::real, ARRAY[width])::@extschema:vector@.vector)
        ELSE ARRAY(
            SELECT (rule ->> 'summary')::float8 * @extschema:vector@.inner_product(w.weight, first_half)
            FROM callipper.location_weight w WHERE w.version = _join_text.version AND w.layer = 'foretold' ORDER BY w.neuron
        )::@extschema:vector@.vector END);
    RETURN @extschema:vector@.l2_normalize(@extschema:vector@.vector_concat(first_half, second_half));
END
$$;
COMMENT ON FUNCTION callipper._join_text(@extschema:vector@.vector, @extschema:vector@.vector, integer) IS
    'embedding of a text from its two halves, unit length';
