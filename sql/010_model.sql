-- Model versions: which one answers, and how another takes over.
--
-- Which version answers is said in one place, callipper.model.status, and read once for each statement: the planner folds
-- _active_version() to a number, in the snapshot that all of the planning uses. Everything in the statement takes that number:
-- the views, text_embed(), loc_embed(), and search() and its siblings by the default of their argument `model`. So no statement
-- mixes two versions, and a REPEATABLE READ transaction keeps its version to its end.
--
-- What a plan has folded must not outlive the version. Each change is therefore announced: all sessions drop their cached
-- plans. A session whose snapshot is older than the change would cache another old plan; _active_version() notices that.

-- The next two say what was announced last. They are catalogue rows, so they say what is true now, however old the snapshot of
-- a transaction is. _announce_change() replaces their bodies. No reader holds a lock on a function, so that waits for nobody.
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

-- The table callipper.change holds the same transaction, as each snapshot sees it.
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

-- Makes every session plan anew: what a plan has folded to a constant is no longer true, such as a version, a model's extent
-- or loc_embed() of a constant. Granting on the schema changes no right, but writes pg_namespace, and then all sessions drop
-- their cached plans. The caller holds a lock on callipper.model, so that no two do it at once.
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

-- Dropping all plans while one is made drops that one too, after it has been used once.
CREATE OR REPLACE FUNCTION callipper._keep_no_plan() RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE 'DISCARD PLANS';
END
$$;
COMMENT ON FUNCTION callipper._keep_no_plan() IS 'make this session drop its cached plans, those in the making included';

-- IMMUTABLE so that it is folded when a statement is planned. It then reads in the snapshot of the planning, as all functions
-- do that are not VOLATILE. It holds the version's cells by a reader's lock, so that drop_model() cannot come between the
-- planning of a statement and its execution.
CREATE OR REPLACE FUNCTION callipper._active_version() RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    change bigint;
    active integer;
BEGIN
    SELECT c.transaction_id, (SELECT m.version FROM callipper.model m WHERE m.status = 'active') INTO change, active
        FROM callipper.change c;
    IF change = callipper._newest_change() THEN
        -- The constant lets this statement be planned once, for the one partition. Afterwards it may stand for a newer version.
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

-- The version that a question is for. NULL stands for the active one.
CREATE OR REPLACE FUNCTION callipper._require_model(version integer) RETURNS integer
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    version := coalesce(version, callipper._active_version());
    IF version = 0 THEN
        RAISE EXCEPTION 'no model is active' USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Train one with: callipper-db train';
    ELSIF NOT EXISTS (SELECT FROM callipper.model m WHERE m.version = _require_model.version) THEN
        RAISE EXCEPTION 'there is no model version %', version
            USING ERRCODE = 'undefined_object', HINT = 'SELECT version, status FROM callipper.model lists them.';
    END IF;
    RETURN version;
END
$$;
COMMENT ON FUNCTION callipper._require_model(integer) IS
    'the model version given, the active one for NULL; an error where there is none';

-- Whether a version's points are rows of callipper.poi; otherwise poi_id and point_id only happen to be the same number.
-- IMMUTABLE so that it is folded when a statement is planned.
CREATE OR REPLACE FUNCTION callipper._points_are_pois(version integer) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN coalesce((SELECT m.provenance ->> 'source' = 'callipper.poi' FROM callipper.model m
                     WHERE m.version = _points_are_pois.version), false);
END
$$;
COMMENT ON FUNCTION callipper._points_are_pois(integer) IS 'whether a model version was trained on callipper.poi';

-- Makes a version the one that answers. No reader waits for it, and it waits for no reader.
CREATE OR REPLACE FUNCTION callipper.activate(version integer) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE callipper.model IN SHARE ROW EXCLUSIVE MODE;
    IF NOT EXISTS (SELECT FROM callipper.model m WHERE m.version = activate.version) THEN
        RAISE EXCEPTION 'there is no model version %', version
            USING ERRCODE = 'undefined_object', HINT = 'SELECT version, status FROM callipper.model lists them.';
    END IF;
    UPDATE callipper.model m SET status = 'ready' WHERE m.status = 'active' AND m.version <> activate.version;
    UPDATE callipper.model m SET status = 'active', activated_at = clock_timestamp()
        WHERE m.version = activate.version AND m.status <> 'active';
    PERFORM callipper._announce_change();
END
$$;
COMMENT ON FUNCTION callipper.activate(integer) IS
    'make a model version the one that answers; a statement is answered by the old one or the new one, never by a mix';
