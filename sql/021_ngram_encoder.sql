-- An encoder over n-grams, stored as rows and evaluated here: Google's Universal Sentence Encoder for many languages (Yang et al.
-- 2019), the network with convolutions. It has no attention, and a quarter of the multiplications of all-MiniLM-L6-v2.

-- The activation max(0, x) of every number of every token.
CREATE OR REPLACE FUNCTION callipper._relu(tokens @extschema:vector@.vector[]) RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    FOR number IN 1..cardinality(tokens) LOOP
        tokens[number] := ARRAY(SELECT greatest(unnest(tokens[number]::real[]), real '0'));
    END LOOP;
    RETURN tokens;
END
$$;
COMMENT ON FUNCTION callipper._relu(@extschema:vector@.vector[]) IS 'the activation ReLU of every number of every token';

-- For each token the vectors of a window around it, one after the other; zeros where the window leaves the text.
CREATE OR REPLACE FUNCTION callipper._windows(tokens @extschema:vector@.vector[], before integer, size integer)
RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    zeros constant @extschema:vector@.vector := array_fill(0, ARRAY[@extschema:vector@.vector_dims(tokens[1])]);
    joined @extschema:vector@.vector;
    result @extschema:vector@.vector[] := '{}';
BEGIN
    FOR number IN 1..cardinality(tokens) LOOP
        joined := coalesce(tokens[number - before], zeros);
        FOR other IN number - before + 1..number - before + size - 1 LOOP
            joined := @extschema:vector@.vector_concat(joined, coalesce(tokens[other], zeros));
        END LOOP;
        result[number] := joined;
    END LOOP;
    RETURN result;
END
$$;
COMMENT ON FUNCTION callipper._windows(@extschema:vector@.vector[], integer, integer) IS
    'windows of tokens: (tokens, width) -> (tokens, size x width)';

-- The whole encoder. A token's vector is stored in whole numbers, each times a scale plus an offset, which go by token_id. Two
-- convolutions over windows of 2, 3 and 5 tokens follow, then the mean of the tokens and four layers. Numbers of layers: 0 the
-- projections before the convolutions; 2, 3, 5 these; 6 the projection of the mean; 7 to 10 the rest.
CREATE OR REPLACE FUNCTION callipper._encode_ngrams(tokens integer[], encoder integer) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off SET max_parallel_workers_per_gather = 0
AS $$
DECLARE
    arch constant jsonb := (SELECT t.arch FROM callipper.text_encoder t WHERE t.text_encoder_id = encoder);
    epsilon constant float8 := arch ->> 'epsilon';
    width constant integer[] := ARRAY[(arch ->> 'hidden_size')::integer];
    groups constant integer := jsonb_array_length(arch -> 'scale');
    sizes constant integer[] := ARRAY[2, 3, 5];
    befores constant integer[] := ARRAY[0, 1, 2];
    x @extschema:vector@.vector[];
    projected @extschema:vector@.vector[];
    part @extschema:vector@.vector[];
    a @extschema:vector@.vector[];
    b @extschema:vector@.vector[];
    channels integer;
    step text;
BEGIN
    x := ARRAY(
        SELECT @extschema:vector@.vector_add(
            @extschema:vector@.vector_mul(t.half::@extschema:vector@.vector,
                array_fill((arch -> 'scale' ->> (u.token_id % groups))::real, width)::@extschema:vector@.vector),
            array_fill((arch -> 'offset' ->> (u.token_id % groups))::real, width)::@extschema:vector@.vector)
        FROM unnest(tokens) WITH ORDINALITY AS u (token_id, number)
        JOIN callipper.text_token t ON t.text_encoder_id = encoder AND t.token_id = u.token_id
        ORDER BY u.number
    );
    projected := callipper._layer_norm(callipper._linear(x, encoder, 0, 'projection'), encoder, 0, 'embedding', epsilon);
    channels := @extschema:vector@.vector_dims(projected[1]) / 3;
    FOR i IN 1..3 LOOP
        part := ARRAY(SELECT @extschema:vector@.subvector(unnest(projected), (i - 1) * channels + 1, channels));
        FOREACH step IN ARRAY ARRAY['first', 'second'] LOOP
            part := callipper._add(part, callipper._relu(callipper._linear(
                callipper._windows(part, befores[i], sizes[i]), encoder, sizes[i], step)));
        END LOOP;
        FOR number IN 1..cardinality(x) LOOP
            x[number] := @extschema:vector@.vector_concat(x[number], part[number]);
        END LOOP;
    END LOOP;
    x := callipper._layer_norm(x, encoder, 6, 'output', epsilon);
    a := callipper._linear(ARRAY[(SELECT @extschema:vector@.avg(token) FROM unnest(x) token)], encoder, 6, 'projection');
    a[1] := @extschema:vector@.vector_mul(a[1], array_fill(sqrt(cardinality(tokens))::real, width)::@extschema:vector@.vector);
    b := callipper._relu(callipper._linear(a, encoder, 7, 'projection'));
    a := callipper._relu(callipper._linear(ARRAY[@extschema:vector@.vector_concat(a[1], b[1])], encoder, 8, 'projection'));
    b := callipper._relu(callipper._linear(a, encoder, 9, 'projection'));
    b := callipper._linear(ARRAY[@extschema:vector@.vector_concat(a[1], b[1])], encoder, 10, 'projection');
    RETURN @extschema:vector@.l2_normalize(ARRAY(SELECT tanh(unnest(b[1]::real[])))::@extschema:vector@.vector);
END
$$;
COMMENT ON FUNCTION callipper._encode_ngrams(integer[], integer) IS
    'the vector that an encoder over n-grams makes of the token ids of a text';
