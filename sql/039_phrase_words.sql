-- The words that a question shares with the phrases of a kind. A sentence encoder blurs rare words: to it, pierogi are some food, and
-- 'a tenner on the favourite' is money. That a phrase has the very word tells more.

-- The distinct words of a text, cut to their stems by PostgreSQL's dictionaries of some languages, without their stop words (it has none
-- of Arabic and Hindi). An Arabic, Hindi or Russian word gets the stem of its own language alone, if that is spoken. Of the other
-- languages, the one with the most stop words in the text gives the stems, since it is the text's own: of "mit dem Hund" German. The
-- English dictionary would keep "mit" and "dem" as words. Where several have equally many, as of one word, each gives its stems; a
-- language without a dictionary, such as Polish, always gives the words as they are. Of Japanese, Chinese and Korean, pairs of letters
-- of one script and single Chinese characters stand for words, because PostgreSQL does not know where these end. A pair of two
-- scripts, such as the end of a noun with a particle, is no word. Only Korean has words between spaces as well.
CREATE OR REPLACE FUNCTION callipper._lexemes(content text, languages text[]) RETURNS text[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    not_words constant integer[] := ARRAY[12, 13, 14, 23];  -- types of ts_parse(): blanks, tags, protocols and entities
    others text[] := ARRAY(SELECT code FROM unnest(languages) AS s(code) WHERE code NOT IN ('ar', 'hi', 'ja', 'ko', 'ru', 'zh'));
    words text[] := '{}';
    tokens text[];
    script record;
BEGIN
    -- The letters below are Unicode's. A database of another encoding may know none of them.
    IF languages && ARRAY['ja', 'ko', 'zh'] THEN
        words := ARRAY(
            SELECT substr(run.letters[1], place, 2)
            FROM regexp_matches(content,
                    '[\u3040-\u309f\u30fc]{2,}|[\u30a0-\u30ff]{2,}|[\u3005\u3400-\u9fff]{2,}|[\uac00-\ud7af]{2,}', 'g') AS run(letters),
                generate_series(1, length(run.letters[1]) - 1) AS place
            UNION
            SELECT found.letter[1] FROM regexp_matches(content, '[\u3400-\u9fff]', 'g') AS found(letter)
        );
        content := regexp_replace(content, '[\u3005\u3040-\u30ff\u3400-\u9fff]+', ' ', 'g');
    END IF;
    tokens := ARRAY(SELECT DISTINCT lower(t.token) FROM ts_parse('default', content) t WHERE t.tokid <> ALL (not_words));
    FOR script IN
        SELECT * FROM (VALUES ('ar', 'arabic_stem', '[\u0600-\u06ff]'), ('hi', 'hindi_stem', '[\u0900-\u097f]'),
            ('ru', 'russian_stem', '[\u0400-\u04ff]')) AS s(code, dictionary, letters)
        WHERE s.code = ANY (languages)
    LOOP
        words := words || ARRAY(SELECT DISTINCT stem FROM unnest(tokens) AS t(token),
            unnest(ts_lexize(script.dictionary::regdictionary, t.token)) AS stem WHERE t.token ~ script.letters);
        tokens := ARRAY(SELECT t.token FROM unnest(tokens) AS t(token) WHERE t.token !~ script.letters);
    END LOOP;
    IF others = '{}' AND languages <> '{}' THEN
        others := ARRAY['simple'];
    END IF;
    RETURN words || ARRAY(
        WITH dictionary AS (
            SELECT code, CASE code WHEN 'de' THEN 'german_stem' WHEN 'en' THEN 'english_stem' WHEN 'es' THEN 'spanish_stem'
                WHEN 'fr' THEN 'french_stem' WHEN 'it' THEN 'italian_stem' WHEN 'nl' THEN 'dutch_stem'
                WHEN 'pt' THEN 'portuguese_stem' WHEN 'tr' THEN 'turkish_stem' ELSE 'simple' END AS name
            FROM unnest(others) AS spoken(code)
        ), stemmed AS MATERIALIZED (
            SELECT d.code, d.name, ts_lexize(d.name::regdictionary, t.token) AS stems
            FROM dictionary d, unnest(tokens) AS t(token)
        ), likely AS (
            SELECT s.code, s.name = 'simple' OR rank() OVER (ORDER BY count(*) FILTER (WHERE s.stems = '{}') DESC) = 1 AS is_likely
            FROM stemmed s GROUP BY s.code, s.name
        )
        SELECT DISTINCT stem FROM likely l JOIN stemmed s ON s.code = l.code AND l.is_likely, unnest(s.stems) AS stem
        WHERE stem <> ALL (words));
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

-- In how many phrases of each kind each word is; the kind's terms count as one phrase. The empty word stands in all phrases of a
-- kind, so it has their number. A version of an earlier program gets no such row, since texts would change their meaning by a refresh.
-- Publishing and refreshing call it.
CREATE OR REPLACE FUNCTION callipper._count_words(version integer) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    languages constant text[] := callipper._spoken(version);
BEGIN
    DELETE FROM callipper.kind_word w WHERE w.version = _count_words.version;
    INSERT INTO callipper.kind_word (version, kind_id, word, phrases)
        WITH phrase AS MATERIALIZED (
            SELECT p.kind_id, p.phrase FROM callipper.kind_phrase p WHERE p.version = _count_words.version
            UNION ALL
            SELECT t.kind_id, string_agg(t.term, ', ') FROM callipper.kind_term t
            WHERE t.version = _count_words.version GROUP BY t.kind_id
        )
        SELECT _count_words.version, p.kind_id, w.word, count(*)
        FROM phrase p CROSS JOIN unnest(callipper._lexemes(p.phrase, languages)) AS w(word) GROUP BY p.kind_id, w.word
        UNION ALL
        SELECT _count_words.version, p.kind_id, '', count(*) FROM phrase p
        WHERE NOT EXISTS (SELECT FROM callipper.model m WHERE m.version = _count_words.version
            AND m.arch -> 'peaks' ? 'by_words' AND NOT m.arch -> 'peaks' ? 'evenness')
        GROUP BY p.kind_id;
END
$$;
COMMENT ON FUNCTION callipper._count_words(integer) IS 'counts the phrases of each kind that have each word, and its terms; the empty word has their number';

-- How much of each text each of some kinds says in its own phrases, from 0 to 1. A word counts by its rarity among the kinds
-- (inverse document frequency): one that two sevenths of them have says nothing. One phrase with the word counts by half, many phrases
-- count fully. In a kind of more than 40 phrases, one of them says a little less, else a word that is there by chance would count as much
-- as one that is all there is; a version of an earlier program does not have their number. number is the text's place in texts, from 1.
-- Many texts at once take a tenth of the time that they take one by one.
CREATE OR REPLACE FUNCTION callipper._shared_words(version integer, texts text[], kinds integer[])
RETURNS TABLE (number integer, kind_id integer, share float8)
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE ROWS 50 SET search_path = pg_catalog, pg_temp SET jit = off
SET plan_cache_mode = force_custom_plan AS $$  -- a plan for any number of texts takes ten times as long for one
#variable_conflict use_column
DECLARE
    usual_phrases constant float8 := 40;
    spoken constant text[] := callipper._spoken(version);
BEGIN
    RETURN QUERY
        WITH asked AS MATERIALIZED (
            SELECT t.number::integer AS number, a.word FROM unnest(texts) WITH ORDINALITY AS t(content, number),
                unnest(callipper._lexemes(left(t.content, 1000), spoken)) AS a(word)
        ), held AS MATERIALIZED (
            SELECT w.word, w.kind_id, w.phrases / (w.phrases + sqrt(sqrt(greatest(1, n.phrases / usual_phrases)))) AS part
            FROM (SELECT DISTINCT a.word FROM asked a) a
                JOIN callipper.kind_word w ON w.version = _shared_words.version AND w.word = a.word
                LEFT JOIN callipper.kind_word n ON n.version = w.version AND n.word = '' AND n.kind_id = w.kind_id
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
