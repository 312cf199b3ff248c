-- The words that a question shares with the phrases of a kind. A sentence encoder blurs rare words: to it, pierogi are some food, and
-- 'a tenner on the favourite' is money. That a phrase has the very word tells more.

-- The distinct words of a text, cut to their stems by PostgreSQL's dictionaries of some languages. Stop words are left out. Of
-- Japanese, Chinese and Korean these are pairs of letters, because PostgreSQL does not know where their words end.
CREATE OR REPLACE FUNCTION callipper._lexemes(content text, languages text[]) RETURNS text[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
    words text[] := ARRAY(
        SELECT DISTINCT word.lexeme FROM unnest(languages) AS spoken(code), unnest(to_tsvector(CASE spoken.code
            WHEN 'ar' THEN 'arabic' WHEN 'de' THEN 'german' WHEN 'en' THEN 'english' WHEN 'es' THEN 'spanish'
            WHEN 'fr' THEN 'french' WHEN 'hi' THEN 'hindi' WHEN 'it' THEN 'italian' WHEN 'nl' THEN 'dutch'
            WHEN 'pt' THEN 'portuguese' WHEN 'ru' THEN 'russian' WHEN 'tr' THEN 'turkish' ELSE 'simple'
            END::regconfig, content)) AS word
        WHERE spoken.code NOT IN ('ja', 'ko', 'zh'));
BEGIN
    IF languages && ARRAY['ja', 'ko', 'zh'] THEN  -- in a database of one of a few encodings, which know these letters
        words := words || ARRAY(
            SELECT DISTINCT substr(run.letters[1], place, 2)
            FROM regexp_matches(content, '[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{2,}', 'g') AS run(letters),
                generate_series(1, length(run.letters[1]) - 1) AS place
            WHERE substr(run.letters[1], place, 2) <> ALL (words));
    END IF;
    RETURN words;
END
$$;
COMMENT ON FUNCTION callipper._lexemes(text, text[]) IS 'the distinct words of a text, as stems of some languages';

-- The languages in which a version has phrases. Earlier programs knew English alone.
CREATE OR REPLACE FUNCTION callipper._spoken(version integer) RETURNS text[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN coalesce((SELECT ARRAY(SELECT jsonb_array_elements_text(m.provenance -> 'languages')) FROM callipper.model m
        WHERE m.version = _spoken.version AND jsonb_typeof(m.provenance -> 'languages') = 'array'), ARRAY['en']);
END
$$;
COMMENT ON FUNCTION callipper._spoken(integer) IS 'codes of the languages in which a version has phrases';

-- In how many phrases of each kind each word is; the kind's terms count as one phrase. Publishing and refreshing call it.
CREATE OR REPLACE FUNCTION callipper._count_words(version integer) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    languages constant text[] := callipper._spoken(version);
BEGIN
    DELETE FROM callipper.kind_word w WHERE w.version = _count_words.version;
    INSERT INTO callipper.kind_word (version, kind_id, word, phrases)
        SELECT _count_words.version, p.kind_id, w.word, count(*) FROM (
            SELECT p.kind_id, p.phrase FROM callipper.kind_phrase p WHERE p.version = _count_words.version
            UNION ALL
            SELECT t.kind_id, string_agg(t.term, ', ') FROM callipper.kind_term t
            WHERE t.version = _count_words.version GROUP BY t.kind_id
        ) AS p(kind_id, phrase), unnest(callipper._lexemes(p.phrase, languages)) AS w(word)
        GROUP BY p.kind_id, w.word;
END
$$;
COMMENT ON FUNCTION callipper._count_words(integer) IS 'counts the phrases of each kind that have each word, and its terms';

-- How much of each text each of some kinds says in its own phrases, from 0 to 1. A word counts by its rarity among the kinds
-- (inverse document frequency): one that two sevenths of them have says nothing. One phrase with the word counts by half, many phrases
-- count fully. number is the text's place in texts, from 1. Many texts at once take a tenth of the time that they take one by one.
CREATE OR REPLACE FUNCTION callipper._shared_words(version integer, texts text[], kinds integer[])
RETURNS TABLE (number integer, kind_id integer, share float8)
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE ROWS 50 SET search_path = pg_catalog, pg_temp SET jit = off
SET plan_cache_mode = force_custom_plan AS $$  -- a plan for any number of texts takes ten times as long for one
#variable_conflict use_column
DECLARE
    spoken constant text[] := callipper._spoken(version);
BEGIN
    RETURN QUERY
        WITH asked AS MATERIALIZED (
            SELECT t.number::integer AS number, a.word FROM unnest(texts) WITH ORDINALITY AS t(content, number),
                unnest(callipper._lexemes(left(t.content, 1000), spoken)) AS a(word)
        ), held AS MATERIALIZED (
            SELECT w.word, w.kind_id, w.phrases::float8 / (w.phrases + 1) AS part
            FROM (SELECT DISTINCT a.word FROM asked a) a
                JOIN callipper.kind_word w ON w.version = _shared_words.version AND w.word = a.word
            WHERE w.kind_id = ANY (kinds)
        ), rarity AS MATERIALIZED (
            SELECT a.word, greatest(0, ln(1 + cardinality(kinds) / (1 + count(h.word))::float8) - 1.5) AS worth
            FROM (SELECT DISTINCT a.word FROM asked a) a LEFT JOIN held h USING (word) GROUP BY a.word
        ), whole AS MATERIALIZED (
            SELECT a.number, sum(r.worth) AS worth FROM asked a JOIN rarity r USING (word) GROUP BY a.number
        )
        SELECT a.number, h.kind_id, sum(r.worth * h.part) / t.worth
        FROM asked a JOIN rarity r USING (word) JOIN held h USING (word) JOIN whole t USING (number)
        WHERE r.worth > 0 GROUP BY a.number, h.kind_id, t.worth;
END
$$;
COMMENT ON FUNCTION callipper._shared_words(integer, text[], integer[]) IS
    'how much of each text, from 0 to 1, the phrases of each of some kinds share with it, by rarity of the words';
