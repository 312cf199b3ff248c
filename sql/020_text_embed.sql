-- The text tower: a text becomes a vector in the space of the places.

-- The form under which a text is remembered: lower case, single spaces, none at the ends.
CREATE OR REPLACE FUNCTION callipper._text_key(text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT pg_catalog.lower(pg_catalog.btrim(pg_catalog.regexp_replace($1, '\s+', ' ', 'g')))
$$;
COMMENT ON FUNCTION callipper._text_key(text) IS 'a text as it is remembered: lower case, single spaces';

-- The embedding of a text by the active model. VOLATILE, to see what is committed by now: a query that waited for activate()
-- has a snapshot from before it, in which the old model is active, while the views already show the new one.
CREATE OR REPLACE FUNCTION callipper._find_text(text) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE SET search_path = pg_catalog, @extschema:vector@, pg_temp AS $$
DECLARE
    active integer := callipper._active_version();
    key text := callipper._text_key($1);
    answer vector;
BEGIN
    IF active IS NULL THEN
        RAISE EXCEPTION 'no model is active' USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Train one with: callipper-db train';
    END IF;
    IF key = '' THEN
        RAISE EXCEPTION 'the text is empty' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give a word or a phrase, such as ''park''.';
    END IF;
    SELECT t.emb INTO answer FROM callipper.text_embedding t
        WHERE t.version = active AND t.text_hash = hashtextextended(key, 0) AND t.text = key;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'model version % has not met the text "%"', active,
                left(key, 60) || CASE WHEN length(key) > 60 THEN '...' ELSE '' END
            USING ERRCODE = 'no_data_found',
            HINT = format('Add it with: callipper-db remember %L. The texts it knows: SELECT text FROM callipper.text_embedding WHERE version = %s.',
                          left(key, 60), active);
    END IF;
    RETURN answer;
END
$$;
COMMENT ON FUNCTION callipper._find_text(text) IS 'embedding of a text by the active model, from its remembered texts';

-- IMMUTABLE so that a constant argument is folded once, when the query is planned; STABLE would run it for each row. What
-- that promises too much, a change of the active model, activate() repairs by dropping every session's cached plans.
-- Never use it in an index or a generated column.
CREATE OR REPLACE FUNCTION callipper.text_embed(text) RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT callipper._find_text($1)
$$;
COMMENT ON FUNCTION callipper.text_embed(text) IS
    'embedding of a text by the active model: unit length, 128 dimensions; compare it with the column emb by <->';
