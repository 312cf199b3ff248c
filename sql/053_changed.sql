-- What has changed between two states of the POIs under the same weights. Cells move only because POIs near them have changed;
-- a new training would move all of them.

-- The state to compare with: the one asked for, or the last one kept.
CREATE OR REPLACE FUNCTION callipper._require_states(version integer, old integer, new integer) RETURNS integer
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kept constant integer[] := ARRAY(
        SELECT s.state FROM callipper.kept_state s WHERE s.version = _require_states.version ORDER BY s.state);
BEGIN
    IF cardinality(kept) = 0 THEN
        RAISE EXCEPTION 'model version % has kept no earlier state of its POIs', version
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Keep what the next refresh replaces with: callipper-db refresh --keep';
    END IF;
    old := coalesce(old, (SELECT max(s) FROM unnest(kept) AS s WHERE new IS NULL OR s < new));
    IF old <> ALL (kept) OR new <> ALL (kept) THEN
        RAISE EXCEPTION 'model version % has no kept state %', version, CASE WHEN old <> ALL (kept) THEN old ELSE new END
            USING ERRCODE = 'undefined_object', HINT = format('It has kept: %s.', array_to_string(kept, ', '));
    ELSIF old >= new OR old IS NULL THEN
        RAISE EXCEPTION 'no state is earlier than the new one, %', new USING ERRCODE = 'invalid_parameter_value',
            HINT = format('The kept states, the earliest first: %s. Leave `new` away to compare with today.',
                array_to_string(kept, ', '));
    END IF;
    RETURN old;
END
$$;
COMMENT ON FUNCTION callipper._require_states(integer, integer, integer) IS
    'the earlier of two states to compare; an error unless a version has kept them. NULL: the last one, and today';

-- The POIs that are not the same in two states, a row for each side on which they exist: +1 as it is in the new state, -1 as it
-- was in the old one. A POI that was changed and then changed back is the same. So is one that was only corrected, because nobody
-- would see that there: it has another name, or stands less than 50 m from where it stood, and counts for the same kinds. Counts by
-- squares of 100 m can still move an embedding far when it crosses a border (docs/experiments.md).
CREATE OR REPLACE FUNCTION callipper._differing_points(version integer, old integer, new integer)
RETURNS TABLE (
    point_id bigint, side integer, differs text, label text, kinds integer[], easting float8, northing float8
)
LANGUAGE plpgsql STABLE PARALLEL SAFE ROWS 500 SET search_path = pg_catalog, pg_temp SET jit = off AS $$
#variable_conflict use_column
DECLARE
    srid constant integer := (SELECT m.srid FROM callipper.model m WHERE m.version = $1);
    ids constant bigint[] := ARRAY(
        SELECT DISTINCT p.point_id FROM callipper.kept_point p WHERE p.version = $1 AND p.state >= $2 AND (p.state < $3 OR $3 IS NULL));
BEGIN
    RETURN QUERY
        WITH was AS MATERIALIZED (
            SELECT DISTINCT ON (p.point_id) p.point_id, p.text, p.name, p.geom, p.kinds FROM callipper.kept_point p
            WHERE p.version = $1 AND p.state >= $2 AND (p.state < $3 OR $3 IS NULL) ORDER BY p.point_id, p.state
        ), later AS MATERIALIZED (
            SELECT DISTINCT ON (p.point_id) p.point_id, p.text, p.name, p.geom, p.kinds FROM callipper.kept_point p
            WHERE p.version = $1 AND p.state >= $3 AND p.point_id = ANY (ids) ORDER BY p.point_id, p.state
        ), present AS MATERIALIZED (
            SELECT * FROM later
            UNION ALL
            SELECT n.* FROM callipper._points_now($1, ids) n WHERE n.point_id NOT IN (SELECT l.point_id FROM later l)
        ), pair AS MATERIALIZED (
            SELECT point_id, CASE WHEN w.text IS NULL THEN 'added' WHEN i.text IS NULL THEN 'removed' ELSE 'changed' END AS differs,
                w.text AS old_text, i.text AS new_text, w.kinds AS old_kinds, i.kinds AS new_kinds,
                callipper._label(w.name, w.text) AS old_label, callipper._label(i.name, i.text) AS new_label,
                @extschema:postgis@.ST_Transform(w.geom, srid) AS old_place, @extschema:postgis@.ST_Transform(i.geom, srid) AS new_place
            FROM was w JOIN present i USING (point_id)
        ), distance AS (
            SELECT * FROM (SELECT p.*, @extschema:postgis@.ST_Distance(p.old_place, p.new_place) AS metres FROM pair p) m
            WHERE m.old_text IS DISTINCT FROM m.new_text OR m.old_kinds IS DISTINCT FROM m.new_kinds OR m.metres >= 50
        )
        SELECT d.point_id, 1, d.differs,
            concat(d.new_label, CASE WHEN d.new_label <> d.old_label THEN ', was ' || d.old_label END,
                CASE WHEN d.metres >= 1 THEN format(', moved by %s m', round(d.metres)) END),
            d.new_kinds, @extschema:postgis@.ST_X(d.new_place), @extschema:postgis@.ST_Y(d.new_place)
        FROM distance d WHERE d.new_text IS NOT NULL
        UNION ALL
        SELECT d.point_id, -1, d.differs,
            concat(d.old_label, CASE WHEN d.new_label <> d.old_label THEN ', is now ' || d.new_label END,
                CASE WHEN d.metres >= 1 THEN format(', moved by %s m', round(d.metres)) END),
            d.old_kinds, @extschema:postgis@.ST_X(d.old_place), @extschema:postgis@.ST_Y(d.old_place)
        FROM distance d WHERE d.old_text IS NOT NULL;
END
$$;
COMMENT ON FUNCTION callipper._differing_points(integer, integer, integer) IS
    'POIs that are not the same in two states of a version, as they are in the new one (side 1) and as they were (side -1)';

-- The cells that have moved. `new` NULL is today.
CREATE OR REPLACE FUNCTION callipper._moved_cells(version integer, old integer, new integer)
RETURNS TABLE (cell_id bigint, easting float8, northing float8, moved float8)
LANGUAGE plpgsql STABLE PARALLEL SAFE ROWS 5000 SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
    RETURN QUERY EXECUTE format($query$
        WITH was AS MATERIALIZED (
            SELECT DISTINCT ON (c.cell_id) c.cell_id, c.easting, c.northing, c.emb FROM callipper.kept_cell c
            WHERE c.version = $1 AND c.state >= $2 AND (c.state < $3 OR $3 IS NULL) ORDER BY c.cell_id, c.state
        ), later AS MATERIALIZED (
            SELECT DISTINCT ON (c.cell_id) c.cell_id, c.emb FROM callipper.kept_cell c
            WHERE c.version = $1 AND c.state >= $3 ORDER BY c.cell_id, c.state
        )
        SELECT m.cell_id, m.easting, m.northing, m.moved FROM (
            SELECT w.cell_id, w.easting, w.northing, w.emb OPERATOR(@extschema:vector@.<->) coalesce(l.emb, e.emb) AS moved
            FROM was w LEFT JOIN later l ON l.cell_id = w.cell_id LEFT JOIN callipper.%I e ON e.cell_id = w.cell_id
        ) m WHERE m.moved > 1e-5  -- less is but rounding
    $query$, 'cell_embedding_v' || version) USING version, old, new;
END
$$;
COMMENT ON FUNCTION callipper._moved_cells(integer, integer, integer) IS
    'cells whose embedding is not the same in two states of a version, and how far it has moved';

-- How sure it is that two counts differ: the log-likelihood ratio of two Poisson counts with a mean each, and with one mean.
CREATE OR REPLACE FUNCTION callipper._change_likelihood(before integer, after integer) RETURNS float8
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    mean constant float8 := (before + after) / 2.0;
BEGIN
    RETURN CASE WHEN before > 0 THEN before * ln(before / mean) ELSE 0 END
        + CASE WHEN after > 0 THEN after * ln(after / mean) ELSE 0 END;
END
$$;
COMMENT ON FUNCTION callipper._change_likelihood(integer, integer) IS
    'log-likelihood ratio of a count that has changed to one that has not';

-- What is more and what is less within 250 m of a place than before: the kinds whose numbers differ the most surely, of equals first those that are
-- categories of POIs, then the rarer ones. Of kinds that are alike one is said, a category rather than what names suggest. The
-- numbers are those of describe(): today's, less what came later than the new state.
CREATE OR REPLACE FUNCTION callipper._words_of_change(
    version integer, place @extschema:postgis@.geometry, kinds integer[], gains integer[], laters integer[],
    OUT towards text, OUT away text
)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
    IF kinds IS NULL THEN
        RETURN;
    END IF;
    WITH counted AS (
        SELECT t.kind_id, t.name, t.own_pois, g.gain, greatest(coalesce(n.pois, 0) - g.later, g.gain, 0) AS pois
        FROM unnest(kinds, gains, laters) AS g(kind_id, gain, later)
            JOIN callipper.kind t ON t.version = $1 AND t.kind_id = g.kind_id AND t.said
            LEFT JOIN callipper._kinds_here($1, @extschema:postgis@.ST_Buffer(place, callipper._evidence_reach_m(), 32)) n
                ON n.kind_id = g.kind_id
    ), word AS (
        SELECT c.gain > 0 AS more, c.own_pois = 0 AS by_name, format('%s %s -> %s', c.name, c.pois - c.gain, c.pois) AS said, p.vec,
            row_number() OVER (PARTITION BY c.gain > 0
                ORDER BY callipper._change_likelihood(c.pois - c.gain, c.pois) DESC, c.own_pois = 0, c.own_pois, c.name) AS place
        FROM counted c LEFT JOIN callipper.kind_phrase p ON p.version = $1 AND p.kind_id = c.kind_id AND p.phrase = c.name
    ), new_word AS (
        SELECT w.more, w.said, row_number() OVER (PARTITION BY w.more ORDER BY w.place) AS place FROM word w WHERE NOT EXISTS (
            SELECT FROM word b WHERE b.more = w.more AND (b.by_name, b.place) < (w.by_name, w.place)
                AND @extschema:vector@.inner_product(b.vec, w.vec) > 0.6)
    )
    SELECT string_agg(w.said, '; ' ORDER BY w.place) FILTER (WHERE w.more),
        string_agg(w.said, '; ' ORDER BY w.place) FILTER (WHERE NOT w.more)
        INTO towards, away FROM new_word w WHERE w.place <= 3;
END
$$;
COMMENT ON FUNCTION callipper._words_of_change(integer, @extschema:postgis@.geometry, integer[], integer[], integer[]) IS
    'up to three kinds of places that a place has more of than before, and fewer of, with both numbers';
