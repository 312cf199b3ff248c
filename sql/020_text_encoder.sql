-- A BERT encoder, stored as rows and evaluated here: token ids -> the vector of the text. docs/transformer.md explains it.
-- A vector[] holds one vector per token. A matrix product is a scan over the rows of text_weight: pgvector's inner_product
-- multiplies each neuron with the tokens.
-- Every name of pgvector has its schema, because that schema is on no search_path: others may be allowed to create there.
-- An array that is assigned to a vector needs no cast.

-- A linear layer: number i of a token's result is inner_product(weight of neuron i, token) + bias of neuron i. Reading a row
-- costs more than multiplying it, so one scan serves eight tokens. FILTER skips slots without a token, at almost no cost.
CREATE OR REPLACE FUNCTION callipper._linear(tokens @extschema:vector@.vector[], encoder integer, layer integer, part text)
RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    result @extschema:vector@.vector[] := '{}';
    a @extschema:vector@.vector; b @extschema:vector@.vector; c @extschema:vector@.vector; d @extschema:vector@.vector;
    e @extschema:vector@.vector; f @extschema:vector@.vector; g @extschema:vector@.vector; h @extschema:vector@.vector;
BEGIN
    FOR start IN 1..cardinality(tokens) BY 8 LOOP
        a := tokens[start];     b := tokens[start + 1]; c := tokens[start + 2]; d := tokens[start + 3];
        e := tokens[start + 4]; f := tokens[start + 5]; g := tokens[start + 6]; h := tokens[start + 7];
        SELECT
            array_agg(@extschema:vector@.inner_product(w.weight, a) + w.bias),
            array_agg(@extschema:vector@.inner_product(w.weight, b) + w.bias) FILTER (WHERE b IS NOT NULL),
            array_agg(@extschema:vector@.inner_product(w.weight, c) + w.bias) FILTER (WHERE c IS NOT NULL),
            array_agg(@extschema:vector@.inner_product(w.weight, d) + w.bias) FILTER (WHERE d IS NOT NULL),
            array_agg(@extschema:vector@.inner_product(w.weight, e) + w.bias) FILTER (WHERE e IS NOT NULL),
            array_agg(@extschema:vector@.inner_product(w.weight, f) + w.bias) FILTER (WHERE f IS NOT NULL),
            array_agg(@extschema:vector@.inner_product(w.weight, g) + w.bias) FILTER (WHERE g IS NOT NULL),
            array_agg(@extschema:vector@.inner_product(w.weight, h) + w.bias) FILTER (WHERE h IS NOT NULL)
        INTO a, b, c, d, e, f, g, h
        FROM (
            SELECT t.weight, t.bias FROM callipper.text_weight t
            WHERE t.text_encoder_id = encoder AND t.layer = _linear.layer AND t.part = _linear.part
            ORDER BY t.neuron
        ) w;
        result := result || ARRAY[a, b, c, d, e, f, g, h];
    END LOOP;
    RETURN result[:cardinality(tokens)];
END
$$;
COMMENT ON FUNCTION callipper._linear(@extschema:vector@.vector[], integer, integer, text) IS
    'a linear layer of a text encoder: (tokens, inputs) -> (tokens, neurons)';

-- Layer norm: normalises each token to mean 0 and variance 1, then applies gain and bias.
CREATE OR REPLACE FUNCTION callipper._layer_norm(
    tokens @extschema:vector@.vector[], encoder integer, layer integer, part text, epsilon float8
) RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    width integer := @extschema:vector@.vector_dims(tokens[1]);
    ones @extschema:vector@.vector := array_fill(1, ARRAY[width]);
    norm callipper.text_norm;
    mean @extschema:vector@.vector;
    centred @extschema:vector@.vector;
    scale @extschema:vector@.vector;
    result @extschema:vector@.vector[] := '{}';
BEGIN
    SELECT * INTO norm FROM callipper.text_norm n
        WHERE n.text_encoder_id = encoder AND n.layer = _layer_norm.layer AND n.part = _layer_norm.part;
    FOR number IN 1..cardinality(tokens) LOOP
        mean := array_fill(@extschema:vector@.inner_product(tokens[number], ones) / width, ARRAY[width]);
        centred := @extschema:vector@.vector_sub(tokens[number], mean);
        scale := array_fill(1 / sqrt(@extschema:vector@.inner_product(centred, centred) / width + epsilon), ARRAY[width]);
        scale := @extschema:vector@.vector_mul(norm.gain, scale);
        result[number] := @extschema:vector@.vector_add(norm.bias, @extschema:vector@.vector_mul(centred, scale));
    END LOOP;
    RETURN result;
END
$$;
COMMENT ON FUNCTION callipper._layer_norm(@extschema:vector@.vector[], integer, integer, text, float8) IS
    'a layer norm of a text encoder: (tokens, width) -> (tokens, width)';

-- The activation x / 2 * (1 + erf(x / sqrt 2)). PostgreSQL has erf() only from version 16 on, and calling it for each number
-- would be the slowest part of the encoder. So erf(x / sqrt 2) is computed as tanh(x * P(x^2)) with a polynomial P of degree 6.
-- Only tanh() then runs number by number; the rest works on whole vectors. The coefficients are a minimax fit over |x| < 6.2.
-- GELU is off by 7e-8 at most; for larger |x|, tanh() is 1 as it should be. pgvector raises an error when a product is too
-- small for a float4, so tiny numbers are rounded to 0 first.
CREATE OR REPLACE FUNCTION callipper._gelu(tokens @extschema:vector@.vector[]) RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    width integer[] := ARRAY[@extschema:vector@.vector_dims(tokens[1])];
    -- real, because converting a numeric takes 100 times as long
    one @extschema:vector@.vector := array_fill(real '1', width);
    half @extschema:vector@.vector := array_fill(real '0.5', width);
    c0 @extschema:vector@.vector := array_fill(real '7.97884268e-01', width);
    c1 @extschema:vector@.vector := array_fill(real '3.63341492e-02', width);
    c2 @extschema:vector@.vector := array_fill(real '-3.30267565e-05', width);
    c3 @extschema:vector@.vector := array_fill(real '-5.52733701e-05', width);
    c4 @extschema:vector@.vector := array_fill(real '3.97406848e-06', width);
    c5 @extschema:vector@.vector := array_fill(real '-1.33783058e-07', width);
    c6 @extschema:vector@.vector := array_fill(real '1.81392409e-09', width);
    x @extschema:vector@.vector;
    square @extschema:vector@.vector;
    p @extschema:vector@.vector;
    one_and_tanh @extschema:vector@.vector;
    result @extschema:vector@.vector[] := '{}';
BEGIN
    FOR number IN 1..cardinality(tokens) LOOP
        x := @extschema:vector@.vector_sub(@extschema:vector@.vector_add(tokens[number], one), one);
        square := @extschema:vector@.vector_mul(x, x);
        p := @extschema:vector@.vector_add(c5, @extschema:vector@.vector_mul(square, c6));  -- Horner's scheme
        p := @extschema:vector@.vector_add(c4, @extschema:vector@.vector_mul(square, p));
        p := @extschema:vector@.vector_add(c3, @extschema:vector@.vector_mul(square, p));
        p := @extschema:vector@.vector_add(c2, @extschema:vector@.vector_mul(square, p));
        p := @extschema:vector@.vector_add(c1, @extschema:vector@.vector_mul(square, p));
        p := @extschema:vector@.vector_add(c0, @extschema:vector@.vector_mul(square, p));
        one_and_tanh := ARRAY(SELECT 1 + tanh(unnest(@extschema:vector@.vector_mul(x, p)::real[])));
        result[number] := @extschema:vector@.vector_mul(tokens[number], @extschema:vector@.vector_mul(half, one_and_tanh));
    END LOOP;
    RETURN result;
END
$$;
COMMENT ON FUNCTION callipper._gelu(@extschema:vector@.vector[]) IS 'the activation GELU of every number of every token';

-- The values of a layer, transposed: one vector per neuron, with a number per token. So attention mixes them by inner products.
CREATE OR REPLACE FUNCTION callipper._values(tokens @extschema:vector@.vector[], encoder integer, layer integer)
RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN ARRAY(
        SELECT ARRAY(SELECT @extschema:vector@.inner_product(w.weight, unnest(tokens)) + w.bias)::@extschema:vector@.vector
        FROM callipper.text_weight w
        WHERE w.text_encoder_id = encoder AND w.layer = _values.layer AND w.part = 'value'
        ORDER BY w.neuron
    );
END
$$;
COMMENT ON FUNCTION callipper._values(@extschema:vector@.vector[], integer, integer) IS
    'the values of an attention layer: (tokens, inputs) -> (neurons, tokens)';

-- Attention: for each token, each head mixes the values of all tokens, weighted by the softmax of inner_product(query, key).
-- The highest score is subtracted before exp(), and differences too large for a float4 are cut. OFFSET 0 keeps the planner from
-- computing a subquery again at each place where its result is used.
CREATE OR REPLACE FUNCTION callipper._attention(
    queries @extschema:vector@.vector[], keys @extschema:vector@.vector[], "values" @extschema:vector@.vector[], heads integer
) RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    width integer := cardinality("values") / heads;
    scale float8 := 1 / sqrt(width);
    ones @extschema:vector@.vector := array_fill(1, ARRAY[cardinality(keys)]);
    head_keys @extschema:vector@.vector[];
    head_values @extschema:vector@.vector[];
    mixes @extschema:vector@.vector[];
    result @extschema:vector@.vector[] := '{}';
BEGIN
    FOR start IN 1..heads * width BY width LOOP  -- the head's first neuron
        head_keys := ARRAY(SELECT @extschema:vector@.subvector(unnest(keys), start, width));
        head_values := "values"[start:start + width - 1];
        mixes := ARRAY(
            SELECT ARRAY(
                SELECT @extschema:vector@.inner_product(shares, unnest(head_values))
                    / @extschema:vector@.inner_product(shares, ones)
            )::@extschema:vector@.vector
            FROM (
                SELECT ARRAY(SELECT exp(greatest(unnest(scores) - best, -80)))::@extschema:vector@.vector AS shares
                FROM (SELECT @extschema:vector@.subvector(unnest(queries), start, width) AS query OFFSET 0) q, LATERAL (
                    SELECT array_agg(score) AS scores, max(score) AS best
                    FROM (SELECT scale * @extschema:vector@.inner_product(query, unnest(head_keys)) AS score OFFSET 0) s
                ) t
                OFFSET 0
            ) u
        );
        FOR token IN 1..cardinality(queries) LOOP
            result[token] := coalesce(@extschema:vector@.vector_concat(result[token], mixes[token]), mixes[token]);
        END LOOP;
    END LOOP;
    RETURN result;
END
$$;
COMMENT ON FUNCTION callipper._attention(
    @extschema:vector@.vector[], @extschema:vector@.vector[], @extschema:vector@.vector[], integer
) IS 'multi-head attention: queries and keys (tokens, width), values (neurons, tokens) -> (tokens, width)';

-- The sum of two lists of vectors, token by token.
CREATE OR REPLACE FUNCTION callipper._add(a @extschema:vector@.vector[], b @extschema:vector@.vector[])
RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    FOR number IN 1..cardinality(a) LOOP
        a[number] := @extschema:vector@.vector_add(a[number], b[number]);
    END LOOP;
    RETURN a;
END
$$;
COMMENT ON FUNCTION callipper._add(@extschema:vector@.vector[], @extschema:vector@.vector[]) IS 'a + b, token by token';

-- The whole encoder (Devlin et al. 2019, BERT), then the steps that sentence-transformers adds: the mean of the tokens or the
-- first token, and unit length if the encoder normalises. The settings keep scans in the order of the primary key.
CREATE OR REPLACE FUNCTION callipper._encode_tokens(tokens integer[], encoder integer) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off SET max_parallel_workers_per_gather = 0
AS $$
DECLARE
    arch jsonb := (SELECT t.arch FROM callipper.text_encoder t WHERE t.text_encoder_id = encoder);
    epsilon float8 := arch ->> 'layer_norm_eps';
    heads integer := arch ->> 'num_attention_heads';
    x @extschema:vector@.vector[];
    attended @extschema:vector@.vector[];
    answer @extschema:vector@.vector;
BEGIN
    IF arch ->> 'model_type' = 'ngrams' THEN
        RETURN callipper._encode_ngrams(tokens, encoder);
    END IF;
    x := ARRAY(
        SELECT @extschema:vector@.vector_add(coalesce(t.embedding, t.half::@extschema:vector@.vector), p.embedding)
        FROM unnest(tokens) WITH ORDINALITY AS u (token_id, number)
        JOIN callipper.text_token t ON t.text_encoder_id = encoder AND t.token_id = u.token_id
        JOIN callipper.text_position p ON p.text_encoder_id = encoder AND p.position = u.number - 1
        ORDER BY u.number
    );
    x := callipper._layer_norm(x, encoder, -1, 'embedding', epsilon);
    FOR layer IN 0..(arch ->> 'num_hidden_layers')::integer - 1 LOOP
        attended := callipper._attention(
            callipper._linear(x, encoder, layer, 'query'),
            callipper._linear(x, encoder, layer, 'key'),
            callipper._values(x, encoder, layer),
            heads
        );
        x := callipper._add(x, callipper._linear(attended, encoder, layer, 'attention'));
        x := callipper._layer_norm(x, encoder, layer, 'attention', epsilon);
        x := callipper._add(x, callipper._linear(
            callipper._gelu(callipper._linear(x, encoder, layer, 'intermediate')), encoder, layer, 'output'
        ));
        x := callipper._layer_norm(x, encoder, layer, 'output', epsilon);
    END LOOP;
    answer := CASE
        WHEN arch ->> 'pooling' = 'first' THEN x[1] ELSE (SELECT @extschema:vector@.avg(token) FROM unnest(x) token)
    END;
    RETURN CASE WHEN (arch ->> 'normalize')::boolean THEN @extschema:vector@.l2_normalize(answer) ELSE answer END;
END
$$;
COMMENT ON FUNCTION callipper._encode_tokens(integer[], integer) IS
    'the vector that a text encoder makes of the token ids of a text';
