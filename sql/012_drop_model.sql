-- Dropping a model version. Readers of other versions do not wait for it.

-- Empties and renames the partitions of a version. Only readers of this version hold locks on them. It asks for its own lock in
-- brief tries, so that no reader queues behind it for long.
CREATE OR REPLACE FUNCTION callipper._empty_partitions(version integer, patience interval) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    usual constant text := current_setting('lock_timeout');
    began constant timestamptz := clock_timestamp();
    partitions constant text[] := ARRAY(
        SELECT name FROM pg_class c, LATERAL (SELECT c.relname || '_v' || version AS name) AS named
        WHERE c.relnamespace = 'callipper'::regnamespace AND c.relkind = 'p'
            AND to_regclass(format('callipper.%I', name)) IS NOT NULL ORDER BY name
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
    'empty a model version''s partitions and rename them; an error when readers hold them for longer than `patience`';

-- Drops the partitions that _empty_partitions() has emptied. DROP TABLE locks the parent, on which readers of all versions hold
-- locks, also when they idle in a transaction. So it tries briefly. What it cannot drop stays, empty, until the next
-- drop_model().
CREATE OR REPLACE FUNCTION callipper._drop_leftovers() RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    usual constant text := current_setting('lock_timeout');
    leftovers constant text[] := ARRAY(
        SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'callipper'::regnamespace
            AND c.relkind IN ('r', 'p') AND c.relispartition AND c.relname ~ '^dropped_[a-z_]+_v[0-9]+$' ORDER BY c.relname
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
    'drop the empty partitions of dropped model versions, unless a reader is in the way';

-- Removes a version and everything that belongs to it. The active version needs `force`; then no version is active.
-- It deletes the rows before it drops the tables, because no reader waits for a DELETE.
CREATE OR REPLACE FUNCTION callipper.drop_model(version integer, force boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    patience constant interval := coalesce(nullif(current_setting('lock_timeout')::interval, '0'), '30 s');
    doomed callipper.model;
BEGIN
    LOCK TABLE callipper.model IN SHARE ROW EXCLUSIVE MODE;
    PERFORM callipper._require_version(version);
    SELECT * INTO doomed FROM callipper.model m WHERE m.version = drop_model.version;
    IF doomed.status = 'active' AND NOT force THEN
        RAISE EXCEPTION 'model version % is the active one', version
            USING ERRCODE = 'object_in_use', HINT = 'Activate another first, or call drop_model(version, true).';
    END IF;
    PERFORM callipper._empty_partitions(version, patience);
    DELETE FROM callipper.model m WHERE m.version = drop_model.version;
    -- Remove the grid and its cells too, when no other model uses it.
    DELETE FROM callipper.grid g WHERE g.grid_id = doomed.grid_id
        AND NOT EXISTS (SELECT FROM callipper.model m WHERE m.grid_id = g.grid_id);
    PERFORM callipper._announce_change();
    PERFORM callipper._write_map();
    PERFORM callipper._drop_leftovers();
END
$$;
COMMENT ON FUNCTION callipper.drop_model(integer, boolean) IS
    'remove a model version and everything that belongs to it; force also removes the active one';
