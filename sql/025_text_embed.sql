-- The text tower: a text becomes a vector in the same space as places.

-- The form in which a text is remembered: lower case, single spaces, none at the ends. The pattern has no backslash, because
-- with standard_conforming_strings off it would be an escape.
CREATE OR REPLACE FUNCTION callipper._text_key(text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT pg_catalog.lower(pg_catalog.btrim(pg_catalog.regexp_replace($1, '[[:space:]]+', ' ', 'g')))
$$;
COMMENT ON FUNCTION callipper._text_key(text) IS 'a text as it is remembered: lower case, single spaces';

-- The signature of a vector in the text of an open cursor. Readers have no right on the key.
CREATE OR REPLACE FUNCTION callipper._sign(content text, version integer, answer text) RETURNS text
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT encode(sha256(k.key || sha256(convert_to(concat_ws(' ', version, answer, content), 'UTF8'))), 'hex')
            FROM callipper.signing_key k);
END
$$;
COMMENT ON FUNCTION callipper._sign(text, integer, text) IS 'signature of the embedding of a text, as an open cursor keeps it';

-- Encodes a text with the encoder of a model version. SECURITY DEFINER, here and below: readers need no right on weights.
CREATE OR REPLACE FUNCTION callipper._encode_text(content text, version integer) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    encoder callipper.text_encoder := (
        SELECT t FROM callipper.text_encoder t JOIN callipper.model m USING (text_encoder_id)
        WHERE m.version = _encode_text.version
    );
    tokens integer[];
BEGIN
    PERFORM callipper._require_model(version);
    IF NOT EXISTS (SELECT FROM callipper.text_norm n WHERE n.text_encoder_id = encoder.text_encoder_id) THEN
        RAISE EXCEPTION 'model version % has not met the text "%", and its text encoder % is not in the database', version,
                left(content, 60) || CASE WHEN length(content) > 60 THEN '...' ELSE '' END, encoder.name
            USING ERRCODE = 'no_data_found',
            HINT = format('Install it with: callipper-db text-encoder install %s. '
                          'Or add the text with: callipper-db remember %L. '
                          'The texts it knows: SELECT text FROM callipper.text_embedding WHERE version = %s.',
                          encoder.name, left(content, 60), version);
    END IF;
    tokens := callipper._token_ids(content, encoder.text_encoder_id);
    IF cardinality(tokens) <= 2 THEN  -- the marks of begin and end
        RAISE EXCEPTION 'the text holds nothing that can be read' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give a word or a phrase, such as ''park''.';
    END IF;
    IF callipper._knows_no_word(content, encoder.text_encoder_id) THEN
        RAISE WARNING 'the text encoder % knows no word of the text "%", so its embedding means nothing', encoder.name,
                left(content, 60) || CASE WHEN length(content) > 60 THEN '...' ELSE '' END
            USING HINT = callipper._other_language(encoder.arch);
    ELSIF callipper._spells_out(content, tokens, encoder.text_encoder_id) THEN
        RAISE WARNING 'the text encoder % reads the text "%" letter by letter, so its embedding means little', encoder.name,
                left(content, 60) || CASE WHEN length(content) > 60 THEN '...' ELSE '' END
            USING HINT = callipper._other_language(encoder.arch);
    END IF;
    IF encoder.arch ->> 'prompt' <> '' THEN  -- such as 'query: '
        tokens := callipper._token_ids((encoder.arch ->> 'prompt') || content, encoder.text_encoder_id);
    END IF;
    RETURN callipper._encode_tokens(tokens, encoder.text_encoder_id);
END
$$;
COMMENT ON FUNCTION callipper._encode_text(text, integer) IS
    'the sentence encoder''s vector of any text, by the encoder of a model version';

-- The beginning of a text. A long text is cut first, before any work is done on it.
CREATE OR REPLACE FUNCTION callipper._cut_text(content text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    longest_read constant integer := 10000;  -- characters; an encoder reads the first few hundred words
    is_cut constant boolean := octet_length(content) > longest_read AND length(content) > longest_read;
BEGIN
    content := left(content, longest_read);
    IF callipper._text_key(content) = '' THEN
        RAISE EXCEPTION 'the text is empty' USING ERRCODE = 'invalid_parameter_value',
            HINT = concat_ws(' ', 'Give a word or a phrase, such as ''park''.',
                             CASE WHEN is_cut THEN format('Only the first %s characters are read.', longest_read) END);
    END IF;
    RETURN content;
END
$$;
COMMENT ON FUNCTION callipper._cut_text(text) IS
    'the first characters of a text, as many as are read; an error when they are blank';

-- A question without the words that every question may have: 'Where can I buy fresh bread near me?' is 'buy fresh bread'. To the
-- sentence encoder 'somewhere to pray' is more like 'somewhere to sleep' than like 'pray'. No backslash; see _text_key.
CREATE OR REPLACE FUNCTION callipper._plain_question(content text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    who constant text := '(i|we|you|one|people|my [a-z]+)';
    good constant text := '(good|nice|great|best|better|nearest|closest|next)';
    place constant text := '(places?|spots?|areas?|somewhere|anywhere)';
    openings constant text[] := ARRAY[
        '(please|hello|hi|hey|excuse me)[,!.]?',
        'where (else )?(can|could|do|does|should|would|might|may|shall) ' || who || '( (go|find|get) to)?', 'where to',
        'where(''s| is| are)( the| a| an)?',
        'how (can|could|do|does|should|would) ' || who,
        who || '( would|''d| really| just)* (want|need|like|love|wish|have) to',
        who || '( would|''d| really| just)* (want|need|like|love)',
        '(i am|i''m|im|we are|we''re|people)? ?looking for', '(show|tell|find) (me|us)', 'find', 'take (me|us) to',
        '(is|are) there( any| a| an| some)?', 'do you (know|have)( any| a| an| some)?',
        '((a|an|the|some|any) )?(' || good || ' )*' || place || ' (to|for|that has|that have|that sells?|with|where '
            || who || ' (can|could|may|might))',
        '((a|the|some|any) )?' || good
    ];
    endings constant text[] := ARRAY[
        'near me', 'nearby', 'near here', 'around here', 'round here', 'close by', 'in town', 'in (this|the) city', 'please'
    ];
    spaced constant text := btrim(regexp_replace(content, '[[:space:]]+', ' ', 'g'));
    plain text := regexp_replace(
        regexp_replace(spaced, '^((' || array_to_string(openings, '|') || ') )+', '', 'i'),
        '(,? (' || array_to_string(endings, '|') || '))+[ ?!.]*$', '', 'i');
BEGIN
    -- Alone, these two verbs would be read as nouns.
    IF spaced ~* '(to|can|could|do|should|may|might)( (i|we|you|one|people))? (park|fish)( |[?!.]|$)' THEN
        plain := CASE lower(rtrim(plain, ' ?!.')) WHEN 'park' THEN 'park the car' WHEN 'fish' THEN 'go fishing' ELSE plain END;
    END IF;
    RETURN CASE WHEN plain = spaced OR plain !~ '[[:alnum:]]' THEN content ELSE rtrim(plain, ' ?!.') END;
END
$$;
COMMENT ON FUNCTION callipper._plain_question(text) IS
    'a question without the words that any question may have, such as ''where can I'' and ''near me''';

-- The sentence encoder's vector of a text: from text_vector, where the trainer stores vectors; else from an open cursor, if
-- this transaction has computed it before; else from the transformer.
--
-- A transaction keeps its vectors in the text of open cursors. Cursors are the only memory that a function has in a parallel
-- worker, on a standby and in a read-only transaction, and they end with the transaction. The function reads the text of a
-- cursor and never fetches from it: FETCH would run a query that somebody else may have opened under that name, with the rights
-- of this function's owner. Another function in this transaction could do so, or an earlier client of a pooler WITH HOLD. For
-- the same reason the text counts only if it has a signature, which nobody else can make.
CREATE OR REPLACE FUNCTION callipper._find_vector(content text, version integer) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SECURITY DEFINER COST 1000000 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    most_cursors constant integer := 256;
    met refcursor;
    statement text;
    is_taken boolean;
    answer @extschema:vector@.vector;
BEGIN
    content := callipper._cut_text(content);
    SELECT v.vec INTO answer FROM callipper.model m JOIN callipper.text_vector v
        ON v.text_encoder_id = m.text_encoder_id AND v.text_hash = hashtextextended(content, 0) AND v.text = content
        WHERE m.version = _find_vector.version;
    IF FOUND THEN
        RETURN answer;
    END IF;
    met := format('callipper text v%s %s %s', version, hashtextextended(content, 1), hashtextextended(content, 2));
    SELECT c.statement INTO statement FROM pg_cursors c WHERE c.name = met::text;
    is_taken := FOUND;
    IF split_part(statement, '''', 4) = callipper._sign(content, version, split_part(statement, '''', 2)) THEN
        RETURN split_part(statement, '''', 2);
    END IF;
    answer := callipper._encode_text(content, version);
    IF is_taken THEN
        RETURN answer;
    END IF;
    IF (SELECT count(*) FROM pg_cursors c WHERE c.name LIKE 'callipper text v%' AND NOT c.is_holdable) >= most_cursors THEN
        DECLARE
            oldest refcursor := (SELECT c.name FROM pg_cursors c WHERE c.name LIKE 'callipper text v%' AND NOT c.is_holdable
                                 ORDER BY c.creation_time LIMIT 1);
        BEGIN
            CLOSE oldest;
        END;
    END IF;
    OPEN met NO SCROLL FOR EXECUTE format('SELECT %L, %L', answer, callipper._sign(content, version, answer::text));
    RETURN answer;
END
$$;
COMMENT ON FUNCTION callipper._find_vector(text, integer) IS
    'the sentence encoder''s vector of a text, remembered or computed';

-- The embedding of a text by a model version: from text_embedding if it is remembered there, else the model's projection of
-- the sentence encoder's vector.
CREATE OR REPLACE FUNCTION callipper._find_text(content text, version integer) RETURNS @extschema:vector@.vector
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SECURITY DEFINER COST 1000000 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    key text;
    answered_by integer;
    answer @extschema:vector@.vector;
BEGIN
    content := callipper._cut_text(content);
    key := callipper._text_key(content);
    -- _newest_version() is a constant here, so this statement is planned once, for one partition. `version` may be another one;
    -- that is looked up below.
    SELECT t.version, t.emb INTO answered_by, answer FROM callipper.text_embedding t
        WHERE t.version = callipper._newest_version() AND t.text_hash = hashtextextended(key, 0) AND t.text = key;
    IF answered_by = version THEN
        RETURN answer;
    END IF;
    IF version <> callipper._newest_version() THEN
        EXECUTE format('SELECT t.emb FROM callipper.text_embedding t WHERE t.version = %s'
                       ' AND t.text_hash = hashtextextended($1, 0) AND t.text = $1', version) INTO answer USING key;
        IF answer IS NOT NULL THEN
            RETURN answer;
        END IF;
    END IF;
    IF callipper._plain_question(content) <> content THEN
        RETURN callipper._find_text(callipper._plain_question(content), version);
    END IF;
    answer := callipper._find_vector(content, version);
    RETURN callipper._join_text(callipper._text_peaks(answer, version, content), @extschema:vector@.l2_normalize(ARRAY(
        SELECT @extschema:vector@.inner_product(p.weight, answer) + p.bias FROM callipper.text_projection p
        WHERE p.version = _find_text.version ORDER BY p.neuron
    )::@extschema:vector@.vector), version);
END
$$;
COMMENT ON FUNCTION callipper._find_text(text, integer) IS 'embedding of a text by a model version, remembered or computed';

-- IMMUTABLE so that the planner folds a constant argument once; STABLE would run the transformer for each row. The answer
-- changes with the active model, so activate() makes every session drop its cached plans. Never use this function in an index
-- or a generated column. COST is that of an unknown text. It keeps a prepared statement on custom plans, in which the text is
-- folded too.
CREATE OR REPLACE FUNCTION callipper.text_embed(text) RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 1000000 AS $$
    SELECT callipper._find_text($1, callipper._active_version())
$$;
COMMENT ON FUNCTION callipper.text_embed(text) IS
    'embedding of any text by the active model: unit length, 256 dimensions; compare it with the column emb by <->: '
    'SELECT * FROM callipper.cells ORDER BY emb <-> text_embed(''quiet park'') LIMIT 10';

CREATE OR REPLACE FUNCTION callipper.text_embed(text, model integer) RETURNS @extschema:vector@.vector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 1000000 AS $$
    SELECT callipper._find_text($1, $2)
$$;
COMMENT ON FUNCTION callipper.text_embed(text, integer) IS
    'embedding of any text by the model version given: SELECT text_embed(''quiet park'', 3)';
