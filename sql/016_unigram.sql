-- The tokenizer of SentencePiece encoders, of the kind Unigram: a text becomes token ids. For every text they equal those of
-- Hugging Face's tokenizers. They do not depend on the database's locale, on ICU or on the version of the server.

-- Replaces characters by the encoder's own map, text_normal. As the library does, it replaces a whole grapheme cluster of less
-- than six bytes by the shortest entry with which the cluster begins. Other clusters are replaced character by character.
-- _grapheme_class() gives a letter for each character, and a regular expression cuts these letters into clusters.
CREATE OR REPLACE FUNCTION callipper._map_characters(content text, encoder integer) RETURNS text
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off
SET enable_memoize = off SET jit = off AS $$
DECLARE
    cluster constant text COLLATE "C" :=
        'rn|[rnc]|p*(?:l*(?:(?:v+|wv*)t*|l)|t+|ii|x(?:[efg]*zx)*|k(?:[ezg]*g[ezg]*k)*|[^rnc])[efgmz]*';
    classes constant text COLLATE "C" := (
        SELECT string_agg(callipper._grapheme_class(ascii(c))::text, '' ORDER BY n)
        FROM string_to_table(content, NULL) WITH ORDINALITY AS chars (c, n)
    );
BEGIN
    IF classes !~ 'rn|[efgmzp]' THEN  -- clusters of a single character, or of six bytes and more
        RETURN (
            SELECT string_agg(coalesce(m.target, c), '' ORDER BY n)
            FROM string_to_table(content, NULL) WITH ORDINALITY AS chars (c, n)
            LEFT JOIN callipper.text_normal m ON m.text_encoder_id = encoder AND m.source = c
        );
    END IF;
    RETURN (
        SELECT string_agg(coalesce(whole.target, by_character.target), '' ORDER BY clusters.n)
        FROM (
            SELECT n, substr(content, (sum(length(f[1])) OVER (ORDER BY n) - length(f[1]))::integer + 1, length(f[1])) AS part
            FROM regexp_matches(classes, cluster, 'g') WITH ORDINALITY AS found (f, n)
            OFFSET 0
        ) AS clusters
        LEFT JOIN LATERAL (
            SELECT m.target FROM generate_series(1, length(part)) AS size
            JOIN callipper.text_normal m ON m.text_encoder_id = encoder AND m.source = left(part, size)
            WHERE octet_length(part) < 6 ORDER BY size LIMIT 1
        ) AS whole ON true
        LEFT JOIN LATERAL (
            SELECT string_agg(coalesce(m.target, c), '' ORDER BY i) AS target
            FROM string_to_table(part, NULL) WITH ORDINALITY AS chars (c, i)
            LEFT JOIN callipper.text_normal m ON m.text_encoder_id = encoder AND m.source = c
            WHERE whole.target IS NULL
        ) AS by_character ON true
    );
END
$$;
COMMENT ON FUNCTION callipper._map_characters(text, integer) IS
    'a text with its characters replaced by the map of a SentencePiece encoder';

-- The words of a text: the encoder's own steps of normalisation, then a mark in place of each space and, if the encoder does
-- so, before the first word. A word begins at a mark. `spaces` are all that Unicode calls white space.
CREATE OR REPLACE FUNCTION callipper._marked_words(content text, encoder integer, tokenizer jsonb, is_first boolean)
RETURNS text[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    spaces constant text COLLATE "C" :=
        E'[\\u0009-\\u000d \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+';
    mark constant text := tokenizer ->> 'mark';
    prepend constant boolean := CASE tokenizer ->> 'prepend' WHEN 'always' THEN true WHEN 'first' THEN is_first ELSE false END;
    step jsonb;
    parts text[];
BEGIN
    FOR step IN SELECT jsonb_array_elements(tokenizer -> 'steps') LOOP
        content := CASE step ->> 'type'
            WHEN 'map' THEN CASE
                WHEN (step ->> 'keeps_ascii')::boolean AND content !~ E'[^ -~]' COLLATE "C" THEN content
                ELSE callipper._map_characters(content, encoder) END
            WHEN 'join spaces' THEN regexp_replace(content, ' {2,}' COLLATE "C", step ->> 'by', 'g')
            WHEN 'strip left' THEN regexp_replace(content, '^' || spaces, '')
            WHEN 'strip right' THEN regexp_replace(content, spaces || '$', '')
        END;
    END LOOP;
    parts := CASE WHEN (tokenizer ->> 'split_spaces')::boolean THEN regexp_split_to_array(content, spaces) ELSE ARRAY[content] END;
    RETURN ARRAY(
        SELECT word FROM (
            SELECT n, CASE WHEN prepend AND NOT starts_with(marked, mark) THEN mark || marked ELSE marked END AS marked
            FROM (SELECT n, replace(part, ' ', mark) AS marked FROM unnest(parts) WITH ORDINALITY AS p (part, n) WHERE part <> '') m
        ) AS p, LATERAL (
            SELECT p.marked AS word, 1 AS i WHERE NOT (tokenizer ->> 'split')::boolean
            UNION ALL
            SELECT CASE WHEN i > 1 THEN mark ELSE '' END || word, i
            FROM string_to_table(p.marked, mark) WITH ORDINALITY AS w (word, i) WHERE (tokenizer ->> 'split')::boolean
        ) AS words
        WHERE word <> '' ORDER BY n, i
    );
END
$$;
COMMENT ON FUNCTION callipper._marked_words(text, integer, jsonb, boolean) IS
    'words of a text after the normalisation of a SentencePiece encoder, most with a mark before them';

-- Splits a word into the pieces whose scores have the highest sum (Viterbi's algorithm). A character that is no piece is an
-- unknown one; unknown ones in a row are a single token, or their bytes are tokens if the encoder has those. best[i] is the
-- highest sum of the first i characters, and the last piece of these is token[i], which begins after character came_from[i].
-- Rows come in the library's order, so that equal sums have the same winner. It reads 64 beginnings of pieces at once, because
-- substr() takes longer in a longer text.
CREATE OR REPLACE FUNCTION callipper._best_pieces(word text, encoder integer, tokenizer jsonb) RETURNS integer[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off
SET enable_memoize = off SET jit = off AS $$
DECLARE
    size constant integer := length(word);
    longest constant integer := tokenizer ->> 'max_piece_chars';
    unknown constant integer := tokenizer ->> 'unknown_id';
    unknown_score constant float8 := tokenizer ->> 'unknown_score';
    stretch text;
    best float8[] := array_fill(NULL::float8, ARRAY[size]);
    token integer[] := array_fill(NULL::integer, ARRAY[size]);
    came_from integer[] := array_fill(NULL::integer, ARRAY[size]);
    piece record;
    reached float8;
    after integer := size;
    until integer;
    bytes integer[];
    ids integer[] := '{}';
BEGIN
    FOR past IN 0..size - 1 BY 64 LOOP
        stretch := substr(word, past + 1, 63 + longest);
        FOR piece IN
            SELECT past + s.first AS before, past + s.first + s.length AS last, t.token_id, t.score
            FROM (SELECT first, length FROM generate_series(0, least(63, length(stretch) - 1)) AS first,
                    generate_series(1, least(longest, length(stretch) - first)) AS length OFFSET 0) AS s
            LEFT JOIN callipper.text_token t
                ON t.text_encoder_id = encoder AND t.piece = substr(stretch, s.first + 1, s.length)
            WHERE t.token_id IS NOT NULL OR s.length = 1
            ORDER BY s.first, s.length
        LOOP
            reached := CASE WHEN piece.before = 0 THEN 0 ELSE best[piece.before] END + coalesce(piece.score, unknown_score);
            IF best[piece.last] IS NULL OR reached > best[piece.last] THEN
                best[piece.last] := reached;
                token[piece.last] := coalesce(piece.token_id, unknown);
                came_from[piece.last] := piece.before;
            END IF;
        END LOOP;
    END LOOP;
    WHILE after > 0 LOOP  -- from the end
        until := after;
        after := came_from[after];
        IF token[until] <> unknown THEN
            ids := token[until] || ids;
            CONTINUE;
        END IF;
        IF (tokenizer ->> 'join_unknown')::boolean THEN
            WHILE after > 0 AND token[after] = unknown LOOP
                after := came_from[after];
            END LOOP;
        END IF;
        bytes := NULL;
        IF (tokenizer ->> 'byte_fallback')::boolean THEN
            bytes := ARRAY(
                SELECT t.token_id FROM (SELECT convert_to(substr(word, after + 1, until - after), 'UTF8') AS raw) AS r
                CROSS JOIN LATERAL generate_series(0, length(raw) - 1) AS i
                LEFT JOIN callipper.text_token t
                    ON t.text_encoder_id = encoder AND t.piece = '<0x' || upper(lpad(to_hex(get_byte(raw, i)), 2, '0')) || '>'
                ORDER BY i
            );
        END IF;
        ids := CASE WHEN array_position(bytes, NULL) IS NULL AND bytes IS NOT NULL THEN bytes ELSE ARRAY[unknown] END || ids;
    END LOOP;
    RETURN ids;
END
$$;
COMMENT ON FUNCTION callipper._best_pieces(text, integer, jsonb) IS
    'token ids of a word: its split into pieces with the highest sum of scores';

-- Token ids of a text: special tokens, such as <mask>, are found first, and what is between them is split into words. Of a long
-- text it reads the beginning only, if that has enough tokens; it is cut at a space between ASCII letters, where words end.
CREATE OR REPLACE FUNCTION callipper._unigram(content text, encoder integer) RETURNS integer[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    spaces constant text COLLATE "C" := E'[\\u0009-\\u000d \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+';
    tokenizer jsonb;
    most integer;
    special jsonb;
    listed text;
    pattern text COLLATE "C";
    found text[];
    between text[];
    part text;
    word text;
    ids integer[] := '{}';
BEGIN
    SELECT e.arch -> 'tokenizer', least((e.arch -> 'tokenizer' ->> 'max_tokens')::integer, e.max_tokens) - 2
        INTO tokenizer, most FROM callipper.text_encoder e WHERE e.text_encoder_id = encoder;
    special := tokenizer -> 'special';
    FOR listed IN SELECT s ->> 'content' FROM jsonb_array_elements(special) AS s LOOP
        IF strpos(content, listed) > 0 THEN
            pattern := concat_ws('|', pattern, regexp_replace(listed COLLATE "C", '([^a-zA-Z0-9])', E'\\\\\\1', 'g'));
        END IF;
    END LOOP;
    found := ARRAY(SELECT m[1] FROM regexp_matches(content, '(' || pattern || ')', 'g') AS m WHERE pattern IS NOT NULL);
    between := CASE WHEN pattern IS NULL THEN ARRAY[content] ELSE regexp_split_to_array(content, pattern) END;
    FOR i IN 1..cardinality(between) LOOP
        part := between[i];
        IF (SELECT (s ->> 'strip_left')::boolean FROM jsonb_array_elements(special) AS s WHERE s ->> 'content' = found[i]) THEN
            part := regexp_replace(part, spaces || '$', '');
        END IF;
        IF (SELECT (s ->> 'strip_right')::boolean FROM jsonb_array_elements(special) AS s WHERE s ->> 'content' = found[i - 1]) THEN
            part := regexp_replace(part, '^' || spaces, '');
        END IF;
        IF part <> '' THEN
            FOREACH word IN ARRAY callipper._marked_words(part, encoder, tokenizer, i = 1) LOOP
                ids := ids || callipper._best_pieces(word, encoder, tokenizer);
                EXIT WHEN cardinality(ids) >= most;
            END LOOP;
        END IF;
        IF found[i] IS NOT NULL THEN
            ids := ids || (SELECT (s ->> 'id')::integer FROM jsonb_array_elements(special) AS s WHERE s ->> 'content' = found[i]);
        END IF;
        EXIT WHEN cardinality(ids) >= most;
    END LOOP;
    RETURN (tokenizer ->> 'first_id')::integer || ids[1:most] || (tokenizer ->> 'last_id')::integer;
END
$$;
COMMENT ON FUNCTION callipper._unigram(text, integer) IS
    'token ids of a text for a SentencePiece encoder, first and last special tokens included, cut at what the encoder reads';

-- Token ids of a text by the tokenizer of an encoder.
CREATE OR REPLACE FUNCTION callipper._token_ids(content text, encoder integer) RETURNS integer[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (SELECT e.arch -> 'tokenizer' ->> 'type' FROM callipper.text_encoder e WHERE e.text_encoder_id = encoder) = 'unigram' THEN
        RETURN callipper._unigram(content, encoder);
    END IF;
    RETURN callipper._wordpiece(content, encoder);
END
$$;
COMMENT ON FUNCTION callipper._token_ids(text, integer) IS
    'token ids of a text for a text encoder, first and last special tokens included, cut at what the encoder reads';
