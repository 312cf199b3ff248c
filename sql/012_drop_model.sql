-- How a model version goes, without that readers of the others wait.

-- Takes a version's partitions out of use: empties and renames them. Only readers of this very version hold a lock on them. The
-- lock is asked for in brief tries, so that no reader queues behind this for long.
CREATE OR REPLACE FUNCTION callipper._empty_partitions(version integer, patience interval) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    usual constant text := current_setting('lock_timeout');
    began constant timestamptz := clock_timestamp();
    partitions constant text[] := ARRAY(
        SELECT name FROM unnest(ARRAY['cell_embedding', 'point_embedding', 'text_embedding', 'point_kind'])
            WITH ORDINALITY AS p(parent, number),
            LATERAL (SELECT p.parent || '_v' || version AS name) AS named
        WHERE to_regclass(format('callipper.%I', name)) IS NOT NULL ORDER BY number
    );
    name text;
BEGIN
    LOOP
        BEGIN
            PERFORM set_config('lock_timeout', '50ms', true);
            FOREACH name IN ARRAY partitions LOOP
                EXECUTE format('LOCK TABLE callipper.%I IN ACCESS EXCLUSIVE MODE', name);
            END LOOP;
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() - began > patience THEN
                RAISE EXCEPTION 'model version % is still being read', version USING ERRCODE = 'lock_not_available',
                    HINT = format('Try again when these have ended their transactions: process %s.', coalesce((
                        SELECT string_agg(DISTINCT l.pid::text, ', ') FROM pg_locks l
                        WHERE l.granted AND l.pid <> pg_backend_pid() AND l.relation IN (
                            SELECT to_regclass(format('callipper.%I', p)) FROM unnest(partitions) AS p)
                        ), 'none any more'));
            END IF;
        END;
        PERFORM pg_sleep(0.2);
    END LOOP;
    PERFORM set_config('lock_timeout', usual, true);
    FOREACH name IN ARRAY partitions LOOP
        EXECUTE format('TRUNCATE callipper.%I', name);
        EXECUTE format('ALTER TABLE callipper.%I RENAME TO %I', name, 'dropped_' || name);
    END LOOP;
END
$$;
COMMENT ON FUNCTION callipper._empty_partitions(integer, interval) IS
    'empty a model version''s partitions and rename them; an error where they are being read for longer than a while';

-- Drops what _empty_partitions() has left. That takes a lock on the parent, which the readers of all versions hold, idle ones
-- too. So it is tried briefly; what cannot be dropped stays behind, empty, until the next drop_model().
CREATE OR REPLACE FUNCTION callipper._drop_leftovers() RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    usual constant text := current_setting('lock_timeout');
    leftovers constant text[] := ARRAY(
        SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'callipper'::regnamespace
            AND c.relkind = 'r' AND c.relname ~ '^dropped_((cell|point|text)_embedding|point_kind)_v[0-9]+$' ORDER BY c.relname
    );
    leftover text;
BEGIN
    PERFORM set_config('lock_timeout', '50ms', true);
    FOREACH leftover IN ARRAY leftovers LOOP
        BEGIN
            EXECUTE format('DROP TABLE callipper.%I', leftover);
        EXCEPTION WHEN lock_not_available THEN
            EXIT;
        END;
    END LOOP;
    PERFORM set_config('lock_timeout', usual, true);
END
$$;
COMMENT ON FUNCTION callipper._drop_leftovers() IS
    'drop the empty partitions of dropped model versions, where no reader is in the way';

-- Removes a version with everything that belongs to it. The active one goes only by force, and then none answers.
-- The rows go before the tables: no reader waits while they are deleted.
CREATE OR REPLACE FUNCTION callipper.drop_model(version integer, force boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    patience constant interval := coalesce(nullif(current_setting('lock_timeout')::interval, '0'), '30 s');
    doomed callipper.model;
BEGIN
    LOCK TABLE callipper.model IN SHARE ROW EXCLUSIVE MODE;
    SELECT * INTO doomed FROM callipper.model m WHERE m.version = drop_model.version;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no model version %', version
            USING ERRCODE = 'undefined_object', HINT = 'SELECT version, status FROM callipper.model lists them.';
    ELSIF doomed.status = 'active' AND NOT force THEN
        RAISE EXCEPTION 'model version % is the active one', version
            USING ERRCODE = 'object_in_use', HINT = 'Activate another first, or call drop_model(version, true).';
    END IF;
    PERFORM callipper._empty_partitions(version, patience);
    DELETE FROM callipper.model m WHERE m.version = drop_model.version;
    -- A grid that no model uses any more goes too, with its cells.
    DELETE FROM callipper.grid g WHERE g.grid_id = doomed.grid_id
        AND NOT EXISTS (SELECT FROM callipper.model m WHERE m.grid_id = g.grid_id);
    PERFORM callipper._announce_change();
    PERFORM callipper._drop_leftovers();
END
$$;
COMMENT ON FUNCTION callipper.drop_model(integer, boolean) IS
    'remove a model version with everything that belongs to it; force also removes the active one';
