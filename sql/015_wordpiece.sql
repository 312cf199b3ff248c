-- The BERT tokenizer: a text becomes the ids of word pieces, as Hugging Face's tokenizers library makes them.

-- A text with its words set apart by spaces: control characters gone, each punctuation mark and each Chinese ideograph a word
-- of its own, accents off and small letters where the encoder was trained so. sql/014_unicode.sql says what each character is.
CREATE OR REPLACE FUNCTION callipper._bert_words(content text, lower_case boolean, strip_accents boolean, split_cjk boolean)
RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF octet_length(content) = length(content) THEN  -- ASCII alone
        content := translate(content, E'\t\n\r', '   ');
        content := regexp_replace(content, '[\u0001-\u001f\u007f]', '', 'g');
        content := regexp_replace(content, '[!-/:-@[-`{-~]', ' \& ', 'g');
        RETURN CASE WHEN lower_case THEN lower(content COLLATE "C") ELSE content END;
    END IF;
    RETURN (
        WITH cleaned AS (
            SELECT number, c, kind
            FROM (
                SELECT number, c, CASE
                    WHEN code >= 128 THEN callipper._char_kind(code)
                    WHEN code IN (9, 10, 13, 32) THEN 2
                    WHEN code < 32 OR code = 127 THEN 1
                    ELSE 0
                END AS kind
                FROM (SELECT number, c, ascii(c) AS code FROM unnest(string_to_array(content, NULL)) WITH ORDINALITY AS u(c, number)) a
                OFFSET 0
            ) k
            WHERE kind <> 1
        ), decomposed AS (
            SELECT number, place, kind, ascii(part) AS code,
                CASE WHEN ascii(part) >= 128 THEN callipper._char_kind(ascii(part)) & 7 ELSE 0 END AS part_kind
            FROM cleaned, LATERAL unnest(CASE WHEN strip_accents AND kind >= 8
                THEN string_to_array(normalize(c, NFD), NULL) ELSE ARRAY[c] END) WITH ORDINALITY AS p(part, place)
        ), ordered AS (
            -- The canonical order: what combines with a character follows it by combining class.
            SELECT *, count(*) FILTER (WHERE NOT strip_accents OR part_kind NOT IN (5, 7)) OVER (ORDER BY number, place) AS run,
                CASE WHEN strip_accents AND part_kind = 7 THEN callipper._combining_class(code) ELSE 0 END AS class
            FROM decomposed
        )
        SELECT string_agg(CASE
            WHEN kind & 7 = 2 THEN ' '
            WHEN kind & 7 = 3 AND split_cjk THEN ' ' || chr(code) || ' '
            WHEN part_kind = 4 OR code BETWEEN 33 AND 47 OR code BETWEEN 58 AND 64 OR code BETWEEN 91 AND 96
                OR code BETWEEN 123 AND 126 THEN ' ' || chr(code) || ' '
            WHEN NOT lower_case THEN chr(code)
            WHEN code < 128 THEN lower(chr(code) COLLATE "C")
            WHEN code = 304 THEN U&'i\0307'
            ELSE (SELECT chr(code + CASE o WHEN 1000001 THEN 1 - code % 2 WHEN 1000002 THEN code % 2 ELSE o END)
                  FROM (SELECT callipper._lower_offset(code) AS o OFFSET 0) l)
        END, '' ORDER BY run, class, number, place)
        FROM ordered
        WHERE NOT (strip_accents AND part_kind IN (5, 6))
    );
END
$$;
COMMENT ON FUNCTION callipper._bert_words(text, boolean, boolean, boolean) IS
    'a text as BERT''s tokenizer reads it, its words set apart by spaces';

-- The pieces of one word: again and again the longest one that the vocabulary holds. NULL where there is none.
CREATE OR REPLACE FUNCTION callipper._word_pieces(word text, encoder integer, prefix text) RETURNS integer[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    result integer[] := '{}';
    inside text := '';
    found_id integer;
    found_length integer;
BEGIN
    WHILE word <> '' LOOP
        SELECT t.token_id INTO found_id FROM callipper.text_token t WHERE t.text_encoder_id = encoder AND t.piece = inside || word;
        found_length := length(word);
        IF found_id IS NULL THEN
            SELECT t.token_id, n INTO found_id, found_length
            FROM generate_series(length(word) - 1, 1, -1) AS n,
                LATERAL (SELECT p.token_id FROM callipper.text_token p
                         WHERE p.text_encoder_id = encoder AND p.piece = inside || left(word, n) OFFSET 0) AS t
            LIMIT 1;
        END IF;
        IF found_id IS NULL THEN
            RETURN NULL;
        END IF;
        result := result || found_id;
        word := substr(word, found_length + 1);
        inside := prefix;
    END LOOP;
    RETURN result;
END
$$;
COMMENT ON FUNCTION callipper._word_pieces(text, integer, text) IS 'token ids of one word, NULL where the vocabulary cannot spell it';

-- The token ids of a text, as many as the encoder takes. A long text is read in portions, so that the end of a megabyte is
-- not looked at when its beginning is enough; a word that a portion cuts is read on with the next.
CREATE OR REPLACE FUNCTION callipper._wordpiece(content text, encoder integer) RETURNS integer[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    portion integer := 4000;
    settings jsonb := (SELECT t.arch -> 'tokenizer' FROM callipper.text_encoder t WHERE t.text_encoder_id = encoder);
    lower_case boolean := settings ->> 'lower_case';
    strip_accents boolean := coalesce((settings ->> 'strip_accents')::boolean, lower_case);
    split_cjk boolean := settings ->> 'split_cjk';
    longest_word integer := settings ->> 'max_word_chars';
    room integer := (settings ->> 'max_tokens')::integer - 2;
    id_of jsonb := (
        SELECT jsonb_object_agg(t.piece, t.token_id) FROM callipper.text_token t
        WHERE t.text_encoder_id = encoder AND t.piece = ANY (ARRAY(SELECT jsonb_array_elements_text(settings -> 'special')))
    );
    special text;
    at integer;
    upto integer;
    cut integer;
    marker text;
    segment text;
    words text := '';
    word text;
    result integer[] := '{}';
BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'the encoding of this database is %, and texts are read as UTF8', current_setting('server_encoding')
            USING ERRCODE = 'feature_not_supported', HINT = 'Make the database with: CREATE DATABASE ... ENCODING ''UTF8''';
    END IF;
    WHILE content <> '' AND cardinality(result) < room LOOP
        -- A special token that stands in the text is what it says, before anything else is looked at.
        upto := NULL;
        marker := NULL;
        FOR special IN SELECT jsonb_object_keys(id_of) LOOP
            at := strpos(content, special);
            IF at > 0 AND (upto IS NULL OR at <= upto) THEN
                upto := at - 1;
                marker := special;
            END IF;
        END LOOP;
        segment := CASE WHEN marker IS NULL THEN content ELSE left(content, upto) END;
        content := CASE WHEN marker IS NULL THEN '' ELSE substr(content, upto + length(marker) + 1) END;
        words := '';
        WHILE segment <> '' AND cardinality(result) < room LOOP
            cut := least(portion, length(segment));
            -- What combines with a character stays with it.
            WHILE cut < length(segment) AND ascii(substr(segment, cut + 1, 1)) >= 128
                AND callipper._char_kind(ascii(substr(segment, cut + 1, 1))) & 7 IN (1, 5, 6, 7) AND cut < 2 * portion LOOP
                cut := cut + 1;
            END LOOP;
            words := words || coalesce(callipper._bert_words(left(segment, cut), lower_case, strip_accents, split_cjk), '');
            segment := substr(segment, cut + 1);
            portion := least(2 * portion, 64000);  -- cutting takes time in proportion to all that remains
            FOR word IN SELECT w FROM string_to_table(CASE WHEN segment = '' THEN words ELSE regexp_replace(words, '[^ ]*$', '') END, ' ') w
                WHERE w <> '' LOOP
                result := result || coalesce(
                    CASE WHEN length(word) <= longest_word THEN callipper._word_pieces(word, encoder, settings ->> 'prefix') END,
                    ARRAY[(id_of ->> (settings ->> 'unknown'))::integer]
                );
                EXIT WHEN cardinality(result) >= room;
            END LOOP;
            -- A cut word; of one that is too long in any case, as much as shows that.
            words := left(substring(words FROM '[^ ]*$'), longest_word + 1);
        END LOOP;
        IF marker IS NOT NULL THEN
            result := result || (id_of ->> marker)::integer;
        END IF;
    END LOOP;
    RETURN (id_of ->> (settings ->> 'first'))::integer || result[:room] || (id_of ->> (settings ->> 'last'))::integer;
END
$$;
COMMENT ON FUNCTION callipper._wordpiece(text, integer) IS
    'token ids of a text as the encoder''s own tokenizer makes them, cut at the encoder''s limit';
