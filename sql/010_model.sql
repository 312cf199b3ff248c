-- Model versions: which one answers, how another takes over, how one goes.

-- The version that answers now, NULL when there is none. _replace_views() puts the answer in place of this look-up: like a
-- view, a function is read as it stands now, however old the snapshot of a transaction, so texts and cells never differ.
CREATE OR REPLACE FUNCTION callipper._active_version() RETURNS integer
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT version FROM callipper.model WHERE status = 'active'
$$;
COMMENT ON FUNCTION callipper._active_version() IS 'version of the active model, NULL when there is none';

-- The version that a question is for: the one given, the active one for NULL.
CREATE OR REPLACE FUNCTION callipper._require_model(version integer) RETURNS integer
LANGUAGE plpgsql VOLATILE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF version IS NULL THEN
        version := callipper._active_version();
        IF version IS NULL THEN
            RAISE EXCEPTION 'no model is active' USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'Train one with: callipper-db train';
        END IF;
    ELSIF NOT EXISTS (SELECT FROM callipper.model m WHERE m.version = _require_model.version) THEN
        RAISE EXCEPTION 'there is no model version %', version
            USING ERRCODE = 'undefined_object', HINT = 'SELECT version, status FROM callipper.model lists them.';
    END IF;
    RETURN version;
END
$$;
COMMENT ON FUNCTION callipper._require_model(integer) IS 'the model version given, the active one for NULL; an error where there is none';

-- Takes both views for an exchange. A query that reads `points` before `cells` and one that reads them the other way round
-- would each, half-way, wait for us while we wait for them; PostgreSQL would end one of the two. So the second view is asked
-- for only as long as no deadlock is looked for yet; after that both are let go, and it is the contested one's turn to be the
-- first, for which we queue. Whoever set a lock_timeout gets its error. To reset an option that is not set changes nothing,
-- and unlike LOCK TABLE it locks the view alone, not the tables in it.
CREATE OR REPLACE FUNCTION callipper._lock_views() RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    lock constant text := 'ALTER VIEW callipper.%I RESET (check_option)';
    usual constant text := current_setting('lock_timeout');
    patience constant interval := nullif(usual::interval, '0');
    began constant timestamptz := clock_timestamp();
    views text[] := '{cells, points}';
    has_one boolean;
BEGIN
    IF to_regclass('callipper.cells') IS NULL THEN
        RETURN;  -- they are made for the first time
    END IF;
    LOOP
        has_one := false;
        BEGIN
            EXECUTE format(lock, views[1]);
            has_one := true;
            PERFORM set_config('lock_timeout', '100ms', true);
            EXECUTE format(lock, views[2]);
            PERFORM set_config('lock_timeout', usual, true);
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF NOT has_one OR clock_timestamp() - began > patience THEN
                RAISE;
            END IF;
            views := ARRAY[views[2], views[1]];
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION callipper._lock_views() IS 'lock the views cells and points, without a deadlock with their readers';

-- Points the views `cells` and `points` and _active_version() at one version; NULL makes them empty. Reading a partition by
-- name rather than the partitioned table lets ORDER BY emb <-> ... walk its index. LEFT JOIN, though every cell_id has its
-- cell, lets the planner skip the join when geom is not asked for. The column lists never change, so that views of the
-- user's on top of them stay valid.
CREATE OR REPLACE FUNCTION callipper._replace_views(version integer) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, @extschema:vector@, @extschema:postgis@, pg_temp AS $$
DECLARE
    suffix text := coalesce('_v' || version, '');
    condition text := CASE WHEN version IS NULL THEN 'false' ELSE 'true' END;
    own_source boolean := coalesce((SELECT m.provenance ->> 'source' = 'callipper.poi' FROM callipper.model m
                                    WHERE m.version = _replace_views.version), false);
BEGIN
    PERFORM callipper._lock_views();
    EXECUTE format($view$
        CREATE OR REPLACE VIEW callipper.cells AS
        SELECT e.cell_id, c.geom, e.emb
        FROM callipper.%I e LEFT JOIN callipper.cell c ON c.cell_id = e.cell_id WHERE %s
    $view$, 'cell_embedding' || suffix, condition);
    -- poi_id and point_id are the same number only where the model was trained on callipper.poi.
    EXECUTE format($view$
        CREATE OR REPLACE VIEW callipper.points AS
        SELECT e.point_id, p.name, p.category, e.text, e.geom, e.emb
        FROM callipper.%I e LEFT JOIN callipper.poi p ON %L AND p.poi_id = e.point_id WHERE %s
    $view$, 'point_embedding' || suffix, own_source, condition);
    COMMENT ON VIEW callipper.cells IS 'grid cells with their embedding by the active model (unit length, 128 dimensions)';
    COMMENT ON VIEW callipper.points IS 'training POIs with the embedding of their place by the active model';
    EXECUTE format($function$
        CREATE OR REPLACE FUNCTION callipper._active_version() RETURNS integer
        LANGUAGE sql STABLE PARALLEL SAFE AS 'SELECT %s::pg_catalog.int4'
    $function$, coalesce(version::text, 'NULL'));
END
$$;
COMMENT ON FUNCTION callipper._replace_views(integer) IS 'point the views cells and points, and _active_version(), at one model version';

-- Makes a version the one that answers. Granting on the schema anew changes no right, but writes pg_namespace, at which
-- every session drops its cached plans, those that have folded text_embed('...') to a constant among them.
CREATE OR REPLACE FUNCTION callipper.activate(version integer) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, @extschema:vector@, @extschema:postgis@, pg_temp AS $$
BEGIN
    LOCK TABLE callipper.model IN SHARE ROW EXCLUSIVE MODE;
    IF NOT EXISTS (SELECT FROM callipper.model m WHERE m.version = activate.version) THEN
        RAISE EXCEPTION 'there is no model version %', version
            USING ERRCODE = 'undefined_object', HINT = 'SELECT version, status FROM callipper.model lists them.';
    END IF;
    UPDATE callipper.model m SET status = 'ready' WHERE m.status = 'active' AND m.version <> activate.version;
    UPDATE callipper.model m SET status = 'active', activated_at = clock_timestamp()
        WHERE m.version = activate.version AND m.status <> 'active';
    PERFORM callipper._replace_views(version);
    EXECUTE format('GRANT USAGE ON SCHEMA callipper TO %I', current_user);
END
$$;
COMMENT ON FUNCTION callipper.activate(integer) IS
    'make a model version the one that answers; readers see the old one or the new one, never a mix';

-- Removes a version with its partitions. The active one goes only when asked for by force, and then none answers.
CREATE OR REPLACE FUNCTION callipper.drop_model(version integer, force boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, @extschema:vector@, @extschema:postgis@, pg_temp AS $$
DECLARE
    doomed callipper.model;
    parent text;
BEGIN
    LOCK TABLE callipper.model IN SHARE ROW EXCLUSIVE MODE;
    SELECT * INTO doomed FROM callipper.model m WHERE m.version = drop_model.version;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no model version %', version
            USING ERRCODE = 'undefined_object', HINT = 'SELECT version, status FROM callipper.model lists them.';
    ELSIF doomed.status = 'active' AND NOT force THEN
        RAISE EXCEPTION 'model version % is the active one', version
            USING ERRCODE = 'object_in_use', HINT = 'Activate another first, or call drop_model(version, true).';
    ELSIF doomed.status = 'active' THEN
        PERFORM callipper._replace_views(NULL);
    END IF;
    FOREACH parent IN ARRAY ARRAY['text_embedding', 'cell_embedding', 'point_embedding'] LOOP
        EXECUTE format('DROP TABLE IF EXISTS callipper.%I', parent || '_v' || version);
    END LOOP;
    DELETE FROM callipper.model m WHERE m.version = drop_model.version;
    -- A grid that no model uses any more goes too, with its cells.
    DELETE FROM callipper.grid g WHERE g.grid_id = doomed.grid_id
        AND NOT EXISTS (SELECT FROM callipper.model m WHERE m.grid_id = g.grid_id);
    EXECUTE format('GRANT USAGE ON SCHEMA callipper TO %I', current_user);
END
$$;
COMMENT ON FUNCTION callipper.drop_model(integer, boolean) IS
    'remove a model version with everything that belongs to it; force also removes the active one';
