-- The WordPiece tokenizer of BERT encoders: a text becomes token ids. For every text they equal those of Hugging Face's
-- tokenizers. They do not depend on the database's locale, on ICU or on the version of the server.

-- Orders combining marks as NFD does. Only the order of marks of kind 7 matters, because accents are stripped next. Other marks
-- and dropped characters do not end a run of marks. Few texts in a million need this.
CREATE OR REPLACE FUNCTION callipper._canonical_order(content text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        SELECT string_agg(c, '' ORDER BY run, class NULLS FIRST, number)
        FROM (
            SELECT c, number, callipper._combining_class(ascii(c)) AS class,
                count(*) FILTER (WHERE (callipper._char_kind(ascii(c)) IN (1, 5, 7)) IS NOT TRUE)
                    OVER (ORDER BY number) AS run
            FROM string_to_table(content, NULL) WITH ORDINALITY AS chars (c, number)
        ) AS marks
    );
END
$$;
COMMENT ON FUNCTION callipper._canonical_order(text) IS 'a decomposed text with its marks, except accents, in canonical order';

-- BERT's normalisation of characters beyond ASCII: it drops control characters and accents, turns every space into ' ', writes
-- lower case, and puts spaces around ideographs and punctuation. _char_kind() classifies a character; OFFSET 0 makes the
-- planner call it once. The server's Unicode is newer than the tokenizer's. So a character that the server does not decompose
-- is one that the tokenizer does not decompose either.
CREATE OR REPLACE FUNCTION callipper._normalize_unicode(
    content text, lower_case boolean, strip_accents boolean, split_cjk boolean
) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    result text;
    unordered boolean;
BEGIN
    IF strip_accents AND content IS NOT NFD NORMALIZED THEN
        SELECT string_agg(CASE WHEN callipper._char_kind(ascii(c)) > 7 THEN normalize(c, NFD) ELSE c END, '') INTO content
        FROM string_to_table(content, NULL) AS c;
    ELSIF lower_case AND NOT strip_accents THEN
        content := replace(content, chr(304), 'i' || chr(775));  -- the one lower case of two characters
    END IF;
    FOR pass IN 1..2 LOOP
        SELECT string_agg(
            CASE kind & 7
                WHEN 0 THEN
                    CASE WHEN lower_case THEN
                        CASE callipper._lower_offset(code)
                            WHEN 0 THEN c
                            WHEN 1000001 THEN chr(code | 1)
                            WHEN 1000002 THEN chr(code + (code & 1))
                            ELSE chr(code + callipper._lower_offset(code))
                        END
                    ELSE c END
                WHEN 1 THEN ''
                WHEN 2 THEN ' '
                WHEN 3 THEN CASE WHEN split_cjk THEN ' ' || c || ' ' ELSE c END
                WHEN 4 THEN ' ' || c || ' '
                WHEN 7 THEN c
                ELSE CASE WHEN strip_accents AND kind IS NOT NULL THEN '' ELSE c END
            END, ''), bool_or(kind = 7) INTO result, unordered
        FROM (SELECT c, ascii(c) AS code, callipper._char_kind(ascii(c)) AS kind
              FROM string_to_table(content, NULL) AS c OFFSET 0) AS chars;
        EXIT WHEN pass = 2 OR NOT (unordered AND strip_accents);
        content := callipper._canonical_order(content);
    END LOOP;
    RETURN result;
END
$$;
COMMENT ON FUNCTION callipper._normalize_unicode(text, boolean, boolean, boolean) IS
    'a text as a BERT encoder reads it, except for its ASCII characters';

-- The words of a text after BERT's normalisation and pre-tokenisation: split at spaces, with each punctuation mark alone.
CREATE OR REPLACE FUNCTION callipper._bert_words(content text, lower_case boolean, strip_accents boolean, split_cjk boolean)
RETURNS text[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF content ~ E'[\\u0001-\\u001f\\u007f]' COLLATE "C" THEN
        content := regexp_replace(translate(content, E'\t\n\r', '   '), E'[\\u0001-\\u001f\\u007f]' COLLATE "C", '', 'g');
    END IF;
    IF octet_length(content) > length(content) THEN
        content := callipper._normalize_unicode(content, lower_case, strip_accents, split_cjk);
    END IF;
    IF lower_case THEN
        content := lower(content COLLATE "C");  -- ASCII only
    END IF;
    content := regexp_replace(content, '([!-/:-@[-`{-~])' COLLATE "C", E' \\1 ', 'g');
    RETURN array_remove(string_to_array(content, ' '), '');
END
$$;
COMMENT ON FUNCTION callipper._bert_words(text, boolean, boolean, boolean) IS 'words of a text, as BERT splits it';

-- The same for a text that may contain special tokens, such as [MASK]. They are found first and are words of their own. Words
-- beyond the number asked for may be left out.
CREATE OR REPLACE FUNCTION callipper._words(
    content text, special text[], lower_case boolean, strip_accents boolean, split_cjk boolean, most integer
) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    token text;
    pattern text COLLATE "C";
    found text[];
    between text[];
    words text[] := '{}';
BEGIN
    FOREACH token IN ARRAY special LOOP
        IF strpos(content, token) > 0 THEN
            pattern := concat_ws('|', pattern, regexp_replace(token COLLATE "C", '([^a-zA-Z0-9])', E'\\\\\\1', 'g'));
        END IF;
    END LOOP;
    IF pattern IS NULL THEN
        RETURN callipper._bert_words(content, lower_case, strip_accents, split_cjk);
    END IF;
    found := ARRAY(SELECT m[1] FROM regexp_matches(content, '(' || pattern || ')', 'g') AS m);
    between := regexp_split_to_array(content, pattern);
    FOR i IN 1..cardinality(between) LOOP
        words := words || callipper._bert_words(between[i], lower_case, strip_accents, split_cjk) || found[i];
        EXIT WHEN cardinality(words) > most;
    END LOOP;
    RETURN array_remove(words, NULL);
END
$$;
COMMENT ON FUNCTION callipper._words(text, text[], boolean, boolean, boolean, integer) IS
    'words of a text, as BERT splits it, special tokens included';

-- Splits a word that is not in the vocabulary: it takes the longest piece at the beginning of the word, then the longest at the
-- beginning of the rest, and so on. NULL when no piece fits a rest. `longest` is the length of the longest piece.
CREATE OR REPLACE FUNCTION callipper._split_word(word text, encoder integer, prefix text, longest integer) RETURNS integer[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    rest text := word;
    shortest integer := 1;
    token integer;
    size integer;
    ids integer[] := '{}';
BEGIN
    WHILE length(rest) >= shortest LOOP
        SELECT t.token_id, length(t.piece) INTO token, size FROM callipper.text_token t
            WHERE t.text_encoder_id = encoder
                AND t.piece = ANY (ARRAY(
                    SELECT left(rest, n) FROM generate_series(shortest, least(length(rest), longest)) AS n
                ))
            ORDER BY length(t.piece) DESC LIMIT 1;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        ids := ids || token;
        rest := prefix || substr(rest, size + 1);
        shortest := length(prefix) + 1;
    END LOOP;
    RETURN ids;
END
$$;
COMMENT ON FUNCTION callipper._split_word(text, integer, text, integer) IS
    'token ids of a word by greedy longest match, NULL when it cannot be split';

-- Token ids of the first words of a text, with the first and last special token; at most as many as the encoder reads. Most
-- words are in the vocabulary as a whole, so all are looked up at once. The plan is generic; one for given values is the same.
CREATE OR REPLACE FUNCTION callipper._word_tokens(words text[], encoder integer, tokenizer jsonb) RETURNS integer[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    most integer := (tokenizer ->> 'max_tokens')::integer - 2;
    longest_word integer := (tokenizer ->> 'max_word_chars')::integer;
    longest_piece integer := coalesce((tokenizer ->> 'max_piece_chars')::integer, longest_word);
    unknown text := tokenizer ->> 'unknown';
    listed text[] := ARRAY[tokenizer ->> 'first', tokenizer ->> 'last', unknown] || words[1:most];
    found integer[];
    ids integer[] := '{}';
BEGIN
    found := ARRAY(
        SELECT t.token_id FROM unnest(listed) WITH ORDINALITY AS w (word, number)
        LEFT JOIN callipper.text_token t ON t.text_encoder_id = encoder
            AND t.piece = CASE WHEN length(w.word) > longest_word THEN unknown ELSE w.word END
        ORDER BY w.number
    );
    IF array_position(found[1:3], NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'the vocabulary of text encoder % lacks %', encoder, listed[array_position(found, NULL)]
            USING ERRCODE = 'data_corrupted', HINT = 'Install the text encoder anew.';
    END IF;
    IF array_position(found, NULL) IS NULL THEN
        RETURN found[1] || found[4:] || found[2];
    END IF;
    FOR i IN 4..cardinality(found) LOOP
        ids := ids || CASE WHEN found[i] IS NOT NULL THEN found[i:i] ELSE
            coalesce(callipper._split_word(listed[i], encoder, tokenizer ->> 'prefix', longest_piece), found[3:3]) END;
        EXIT WHEN cardinality(ids) >= most;
    END LOOP;
    RETURN found[1] || ids[1:most] || found[2];
END
$$;
COMMENT ON FUNCTION callipper._word_tokens(text[], integer, jsonb) IS
    'token ids of words, with the first and last special token of a text';

-- Token ids of a text. It reads only the beginning of a long text, if that yields enough tokens. The cut is after a character
-- that always ends a word, so the tokens are the first ones of the whole text. If a special token contains such a character,
-- the cut could split it; then the whole text is read.
CREATE OR REPLACE FUNCTION callipper._wordpiece(content text, encoder integer) RETURNS integer[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    tokenizer jsonb;
    special text[];
    lower_case boolean;
    strip_accents boolean;
    split_cjk boolean;
    most integer;
    ends text COLLATE "C";
    size integer;
    part text;
    ids integer[];
BEGIN
    IF getdatabaseencoding() <> 'UTF8' THEN
        RAISE EXCEPTION 'texts can be read in a database of encoding UTF8 only, not %', getdatabaseencoding()
            USING ERRCODE = 'feature_not_supported',
            HINT = 'Move to one that was made by: CREATE DATABASE ... ENCODING ''UTF8'' TEMPLATE template0.';
    END IF;
    SELECT e.arch -> 'tokenizer', ARRAY(SELECT jsonb_array_elements_text(e.arch -> 'tokenizer' -> 'special')),
            least((e.arch -> 'tokenizer' ->> 'max_tokens')::integer, e.max_tokens)
        INTO tokenizer, special, most FROM callipper.text_encoder e WHERE e.text_encoder_id = encoder;
    IF tokenizer IS NULL THEN
        RAISE EXCEPTION 'text encoder % is not installed in this database', encoder
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Install it with: callipper-db text-encoder install NAME.';
    END IF;
    lower_case := tokenizer ->> 'lower_case';
    strip_accents := coalesce(tokenizer ->> 'strip_accents', tokenizer ->> 'lower_case');
    split_cjk := tokenizer ->> 'split_cjk';
    tokenizer := jsonb_set(tokenizer, '{max_tokens}', to_jsonb(most));
    size := 8 * most;
    LOOP
        part := left(content, size);
        IF octet_length(part) < octet_length(content) THEN
            ends := E'[ \t\r\n,.;\\u3000-\\u3002' || CASE WHEN split_cjk THEN E'\\u4e00-\\u9fff]' ELSE ']' END;
            part := CASE WHEN array_to_string(special, '') ~ ends THEN content
                    ELSE coalesce(substring(part FROM '^.*' || ends), '') END;
        END IF;
        ids := callipper._word_tokens(
            callipper._words(part, special, lower_case, strip_accents, split_cjk, most), encoder, tokenizer
        );
        EXIT WHEN cardinality(ids) = most OR octet_length(part) = octet_length(content);
        size := 8 * size;
    END LOOP;
    RETURN ids;
END
$$;
COMMENT ON FUNCTION callipper._wordpiece(text, integer) IS
    'token ids of a text for a text encoder, first and last special tokens included, cut at what the encoder reads';
