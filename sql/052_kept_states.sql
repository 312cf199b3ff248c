-- States of the POIs that a refresh was asked to keep (callipper-db refresh --keep), and what they keep: the POIs that have
-- changed since, as they were, and the embeddings of the cells near them, as they were. What is not kept is as it is now. So a
-- POI or cell of a state is its row of that state or, without one, of the next later state that has one; without any, today's.

-- The kinds of which describe() counts a POI. What is only named after a place nearby, such as a bus stop, is none of its kind.
CREATE OR REPLACE FUNCTION callipper._kinds_of(version integer, point_ids bigint[])
RETURNS TABLE (point_id bigint, kinds integer[])
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE ROWS 100 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF callipper._has_evidence(version) THEN
        RETURN QUERY EXECUTE format($query$
            SELECT p.point_id, array_agg(p.kind_id ORDER BY p.kind_id)
            FROM callipper.%I p JOIN callipper.kind k ON k.version = $1 AND k.kind_id = p.kind_id
            WHERE p.point_id = ANY ($2)
                AND (p.basis = 0 OR k.own_pois = 0 AND (p.basis = 1 OR p.basis = 2 AND NOT k.landmark))
            GROUP BY p.point_id
        $query$, 'point_kind_v' || version) USING version, point_ids;
    END IF;
END
$$;
COMMENT ON FUNCTION callipper._kinds_of(integer, bigint[]) IS 'kinds that POIs of a version count for, as they are now';

-- POIs as they are now. One that does not exist has no text.
CREATE OR REPLACE FUNCTION callipper._points_now(version integer, point_ids bigint[])
RETURNS TABLE (point_id bigint, text text, name text, geom @extschema:postgis@.geometry, kinds integer[])
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE ROWS 100 SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
    RETURN QUERY EXECUTE format($query$
        SELECT a.point_id, e.text, e.name, e.geom, coalesce(k.kinds, '{}')
        FROM unnest($2) AS a(point_id) LEFT JOIN callipper.%I e ON e.point_id = a.point_id
            LEFT JOIN callipper._kinds_of($1, $2) k ON k.point_id = a.point_id
    $query$, 'point_embedding_v' || version) USING version, point_ids;
END
$$;
COMMENT ON FUNCTION callipper._points_now(integer, bigint[]) IS 'POIs of a version as they are now';

-- Later states do not rest on earlier ones, so these can be forgotten.
CREATE OR REPLACE FUNCTION callipper._forget_states(version integer, keep integer) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM callipper.kept_state s WHERE s.version = _forget_states.version AND s.state NOT IN (
        SELECT n.state FROM callipper.kept_state n WHERE n.version = _forget_states.version ORDER BY n.state DESC LIMIT keep);
END
$$;
COMMENT ON FUNCTION callipper._forget_states(integer, integer) IS 'forget the kept states of a version but the `keep` newest';

-- Begins a state, which holds what the next refreshes replace. Cells of earlier states are kept in it at once, because POIs far
-- from them move them too, and changed() must know them as they are now.
CREATE OR REPLACE FUNCTION callipper._begin_state(version integer, keep integer) RETURNS integer
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    begun integer;
BEGIN
    INSERT INTO callipper.kept_state (version, state)
        SELECT _begin_state.version, coalesce(max(s.state), 0) + 1 FROM callipper.kept_state s WHERE s.version = _begin_state.version
        RETURNING state INTO begun;
    PERFORM callipper._forget_states(version, keep);
    EXECUTE format($query$
        INSERT INTO callipper.kept_cell (version, state, cell_id, easting, northing, emb)
        SELECT $1, $2, k.cell_id, k.easting, k.northing, e.emb
        FROM (SELECT DISTINCT c.cell_id, c.easting, c.northing FROM callipper.kept_cell c WHERE c.version = $1) k
            JOIN callipper.%I e ON e.cell_id = k.cell_id
    $query$, 'cell_embedding_v' || version) USING version, begun;
    RETURN begun;
END
$$;
COMMENT ON FUNCTION callipper._begin_state(integer, integer) IS
    'begin a kept state of a version, and forget all but the `keep` newest; returns its number';

-- Keeps POIs in the newest state, before a refresh writes them. What the state has already was there before, so it stays.
CREATE OR REPLACE FUNCTION callipper._keep_points(version integer, point_ids bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO callipper.kept_point (version, state, point_id, text, name, geom, kinds)
    SELECT _keep_points.version, s.state, n.point_id, n.text, n.name, n.geom, n.kinds
    FROM callipper._points_now(version, point_ids) n,
        (SELECT max(k.state) AS state FROM callipper.kept_state k WHERE k.version = _keep_points.version) s
    ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION callipper._keep_points(integer, bigint[]) IS 'keep POIs as they are now in the newest kept state of a version';

-- The kept states, for people.
CREATE OR REPLACE FUNCTION callipper.list_states(model integer DEFAULT callipper._active_version())
RETURNS TABLE (state integer, replaced_at timestamptz, pois bigint)
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    answering constant integer := callipper._require_model(model);
BEGIN
    RETURN QUERY SELECT s.state, s.replaced_at, (
            SELECT count(*) FROM callipper.kept_point p WHERE p.version = s.version AND p.state = s.state)
        FROM callipper.kept_state s WHERE s.version = answering ORDER BY s.state;
END
$$;
COMMENT ON FUNCTION callipper.list_states(integer) IS
    'The states of the POIs that callipper-db refresh --keep has kept, the earliest first: SELECT * FROM list_states(). pois is'
    ' the number of POIs that have changed between it and the next one, or now.';
