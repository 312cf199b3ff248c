-- Model versions: which one is active, and how another becomes active.
--
-- One place says which version is active: callipper.model.status. A statement reads it once. The planner folds
-- _active_version() to a number, and all parts of the statement use that number: the views, text_embed(), loc_embed(), and
-- search() and its siblings through the default of their argument `model`. So no statement mixes two versions, and a
-- REPEATABLE READ transaction keeps its version to its end.
--
-- A cached plan must not outlive the version that it has folded. So each change is announced, and all sessions drop their
-- cached plans. A session whose snapshot is older than the change would cache an old plan again; _active_version() prevents it.

-- The next two functions return the last announcement. Function bodies are rows of the catalogue, and every snapshot sees the
-- newest ones. _announce_change() replaces the bodies. It waits for nobody, because readers hold no lock on a function.
CREATE OR REPLACE FUNCTION callipper._newest_version() RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT 0::pg_catalog.int4
$$;
COMMENT ON FUNCTION callipper._newest_version() IS 'version that was activated last, 0 for none, for a cached plan to fold';

CREATE OR REPLACE FUNCTION callipper._newest_change() RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT 0::pg_catalog.int8
$$;
COMMENT ON FUNCTION callipper._newest_change() IS 'transaction that last changed what is answered, as the catalogue has it';

-- The table callipper.change holds the same transaction, but each snapshot sees its own row.
CREATE OR REPLACE FUNCTION callipper._set_newest(version integer, change bigint) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    replace constant text := 'CREATE OR REPLACE FUNCTION callipper.%I() RETURNS %s'
        ' LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS ''SELECT %s::pg_catalog.%s''';
BEGIN
    EXECUTE format(replace, '_newest_version', 'integer', coalesce(version, 0), 'int4');
    EXECUTE format(replace, '_newest_change', 'bigint', coalesce(change, 0), 'int8');
END
$$;
COMMENT ON FUNCTION callipper._set_newest(integer, bigint) IS 'replace the bodies of _newest_version() and _newest_change()';

-- Makes every session plan anew, because constants in its plans are no longer true: a version, a model's extent, loc_embed()
-- of a constant. The GRANT changes no right, but it writes pg_namespace, and then all sessions drop their cached plans. The
-- caller holds a lock on callipper.model, so that no two do this at the same time.
CREATE OR REPLACE FUNCTION callipper._announce_change() RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    change constant bigint := pg_current_xact_id()::text::bigint;
BEGIN
    UPDATE callipper.change c SET transaction_id = change WHERE c.transaction_id <> change;
    PERFORM callipper._set_newest((SELECT m.version FROM callipper.model m WHERE m.status = 'active'), change);
    EXECUTE format('GRANT USAGE ON SCHEMA callipper TO %I', current_user);
END
$$;
COMMENT ON FUNCTION callipper._announce_change() IS
    'make every session drop its cached plans, and note which transaction changed what is answered';

-- DISCARD PLANS during planning also drops the plan that is being made, after its first use.
CREATE OR REPLACE FUNCTION callipper._keep_no_plan() RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE 'DISCARD PLANS';
END
$$;
COMMENT ON FUNCTION callipper._keep_no_plan() IS 'make this session drop its cached plans, also one that is being made';

-- IMMUTABLE so that the planner folds it. It reads in the snapshot of the planning, as every function does that is not
-- VOLATILE. It takes a reader's lock on the version's cells, so that drop_model() cannot run between the planning of a
-- statement and its execution.
CREATE OR REPLACE FUNCTION callipper._active_version() RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    change bigint;
    active integer;
BEGIN
    SELECT c.transaction_id, (SELECT m.version FROM callipper.model m WHERE m.status = 'active') INTO change, active
        FROM callipper.change c;
    IF change = callipper._newest_change() THEN
        -- _newest_version() is a constant here, so this statement is planned once, for one partition. `active` may be older.
        PERFORM FROM callipper.cell_embedding e WHERE e.version = callipper._newest_version() LIMIT 0;
        IF active = callipper._newest_version() THEN
            RETURN active;
        END IF;
    END IF;
    IF callipper._newest_change() = pg_current_xact_id_if_assigned()::text::bigint THEN
        -- This transaction's own change, within a function or a DO block that began before it.
        active := nullif(callipper._newest_version(), 0);
    END IF;
    IF change IS DISTINCT FROM callipper._newest_change() THEN
        PERFORM callipper._keep_no_plan();
    END IF;
    IF active IS NULL THEN
        RETURN 0;
    END IF;
    EXECUTE format('SELECT FROM callipper.cell_embedding e WHERE e.version = %s LIMIT 0', active);
    IF to_regclass(format('callipper.%I', 'cell_embedding_v' || active)) IS NULL THEN
        RAISE EXCEPTION 'model version % was dropped after this transaction began', active
            USING ERRCODE = 'serialization_failure', HINT = 'Begin a new transaction.';
    END IF;
    RETURN active;
END
$$;
COMMENT ON FUNCTION callipper._active_version() IS
    'version of the active model in the snapshot of the statement, 0 when there is none; folded when a statement is planned';

CREATE OR REPLACE FUNCTION callipper._require_version(version integer) RETURNS void
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM callipper.model m WHERE m.version = _require_version.version) THEN
        RAISE EXCEPTION 'there is no model version %', version
            USING ERRCODE = 'undefined_object', HINT = 'SELECT version, status FROM callipper.model lists them.';
    END IF;
END
$$;
COMMENT ON FUNCTION callipper._require_version(integer) IS 'an error when there is no such model version';

-- The version that answers a question. NULL means the active one.
CREATE OR REPLACE FUNCTION callipper._require_model(version integer) RETURNS integer
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    version := coalesce(version, callipper._active_version());
    IF version = 0 THEN
        RAISE EXCEPTION 'no model is active' USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Train one with: callipper-db train';
    END IF;
    PERFORM callipper._require_version(version);
    RETURN version;
END
$$;
COMMENT ON FUNCTION callipper._require_model(integer) IS
    'the model version given, the active one for NULL; an error when there is none';

-- Whether a version's points are rows of callipper.poi. If not, equal values of poi_id and point_id mean nothing.
-- IMMUTABLE so that the planner folds it.
CREATE OR REPLACE FUNCTION callipper._points_are_pois(version integer) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN coalesce((SELECT m.provenance ->> 'source' = 'callipper.poi' FROM callipper.model m
                     WHERE m.version = _points_are_pois.version), false);
END
$$;
COMMENT ON FUNCTION callipper._points_are_pois(integer) IS 'whether a model version was trained on callipper.poi';

-- Makes a version the active one. No reader waits for it, and it waits for no reader.
CREATE OR REPLACE FUNCTION callipper.activate(version integer) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE callipper.model IN SHARE ROW EXCLUSIVE MODE;
    PERFORM callipper._require_version(version);
    UPDATE callipper.model m SET status = 'ready' WHERE m.status = 'active' AND m.version <> activate.version;
    UPDATE callipper.model m SET status = 'active', activated_at = clock_timestamp()
        WHERE m.version = activate.version AND m.status <> 'active';
    PERFORM callipper._announce_change();
    PERFORM callipper._write_map();
END
$$;
COMMENT ON FUNCTION callipper.activate(integer) IS
    'make a model version the active one; the old or the new version answers a statement, never a mix of both';
