-- The text tower: a text becomes a vector in the space of the places.

-- The form under which a text is remembered: lower case, single spaces, none at the ends. No backslash in the pattern: where
-- standard_conforming_strings is off, it would not be one.
CREATE OR REPLACE FUNCTION callipper._text_key(text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT pg_catalog.lower(pg_catalog.btrim(pg_catalog.regexp_replace($1, '[[:space:]]+', ' ', 'g')))
$$;
COMMENT ON FUNCTION callipper._text_key(text) IS 'a text as it is remembered: lower case, single spaces';

-- A text through the encoder and the model's projection. SECURITY DEFINER, here and below: who asks needs no right on weights.
CREATE OR REPLACE FUNCTION callipper._encode_text(content text, version integer) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, @extschema:vector@, pg_temp AS $$
DECLARE
    encoder callipper.text_encoder := (
        SELECT t FROM callipper.text_encoder t JOIN callipper.model m USING (text_encoder_id)
        WHERE m.version = _encode_text.version
    );
    tokens integer[];
    encoded vector;
BEGIN
    IF NOT EXISTS (SELECT FROM callipper.text_norm n WHERE n.text_encoder_id = encoder.text_encoder_id) THEN
        RAISE EXCEPTION 'model version % has not met the text "%", and its text encoder % is not in the database', version,
                left(content, 60) || CASE WHEN length(content) > 60 THEN '...' ELSE '' END, encoder.name
            USING ERRCODE = 'no_data_found',
            HINT = format('Install it with: callipper-db text-encoder install %s. '
                          'Or add the text with: callipper-db remember %L. '
                          'The texts it knows: SELECT text FROM callipper.text_embedding WHERE version = %s.',
                          encoder.name, left(content, 60), version);
    END IF;
    tokens := callipper._wordpiece(content, encoder.text_encoder_id);
    IF cardinality(tokens) <= 2 THEN  -- the marks of begin and end
        RAISE EXCEPTION 'the text holds nothing that can be read' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give a word or a phrase, such as ''park''.';
    END IF;
    encoded := callipper._encode_tokens(tokens, encoder.text_encoder_id);
    RETURN l2_normalize(ARRAY(
        SELECT inner_product(p.weight, encoded) + p.bias FROM callipper.text_projection p
        WHERE p.version = _encode_text.version ORDER BY p.neuron
    )::vector);
END
$$;
COMMENT ON FUNCTION callipper._encode_text(text, integer) IS 'embedding of any text by a model version, by the transformer';

-- The embedding of a text by a model version: one that is remembered in text_embedding, else one that this transaction has
-- met, else the transformer's. VOLATILE, to see what is committed by now: a query that waited for activate() has a snapshot
-- from before it, in which the old model is active, while the views already show the new one.
--
-- What a transaction has met lies in open cursors: they are the one kind of memory that a function has in a parallel worker,
-- on a standby and in a read-only transaction alike, and they go with the transaction. The vector is read from the text of
-- the cursor. To fetch it would run whatever somebody has opened under that name, with the rights of this function's owner.
CREATE OR REPLACE FUNCTION callipper._find_text(content text, version integer) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, @extschema:vector@, pg_temp AS $$
DECLARE
    longest_remembered constant integer := 10000;  -- a longer text is not looked up: making its key takes too long
    most_cursors constant integer := 256;
    key text;
    met refcursor;
    answer vector;
BEGIN
    IF length(content) <= longest_remembered THEN
        key := callipper._text_key(content);
        IF key = '' THEN
            RAISE EXCEPTION 'the text is empty' USING ERRCODE = 'invalid_parameter_value',
                HINT = 'Give a word or a phrase, such as ''park''.';
        END IF;
        SELECT t.emb INTO answer FROM callipper.text_embedding t
            WHERE t.version = _find_text.version AND t.text_hash = hashtextextended(key, 0) AND t.text = key;
        IF FOUND THEN
            RETURN answer;
        END IF;
    END IF;
    met := format('callipper text v%s %s %s', version, hashtextextended(content, 1), hashtextextended(content, 2));
    SELECT split_part(c.statement, '''', 2)::vector INTO answer FROM pg_cursors c WHERE c.name = met::text;
    IF FOUND THEN
        RETURN answer;
    END IF;
    answer := callipper._encode_text(content, version);
    IF (SELECT count(*) FROM pg_cursors c WHERE c.name LIKE 'callipper text v%') >= most_cursors THEN
        DECLARE
            oldest refcursor := (SELECT c.name FROM pg_cursors c WHERE c.name LIKE 'callipper text v%'
                                 ORDER BY c.creation_time LIMIT 1);
        BEGIN
            CLOSE oldest;
        END;
    END IF;
    OPEN met NO SCROLL FOR EXECUTE format('SELECT %L', answer);
    RETURN answer;
END
$$;
COMMENT ON FUNCTION callipper._find_text(text, integer) IS 'embedding of a text by a model version, remembered or computed';

-- IMMUTABLE so that a constant argument is folded once, when the query is planned; STABLE would run it for each row. What
-- that promises too much, a change of the active model, activate() repairs by dropping every session's cached plans.
-- Never use it in an index or a generated column. COST, which is what an unknown text takes, keeps a prepared statement on
-- plans made for its parameters, in which the text is folded too.
CREATE OR REPLACE FUNCTION callipper.text_embed(text) RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 1000000 AS $$
    SELECT callipper._find_text($1, callipper._require_model(NULL))
$$;
COMMENT ON FUNCTION callipper.text_embed(text) IS
    'embedding of any text by the active model: unit length, 128 dimensions; compare it with the column emb by <->: '
    'SELECT * FROM callipper.cells ORDER BY emb <-> text_embed(''quiet park'') LIMIT 10';

CREATE OR REPLACE FUNCTION callipper.text_embed(text, model integer) RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 1000000 AS $$
    SELECT callipper._find_text($1, callipper._require_model($2))
$$;
COMMENT ON FUNCTION callipper.text_embed(text, integer) IS
    'embedding of any text by the model version given: SELECT text_embed(''quiet park'', 3)';
