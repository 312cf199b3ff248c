-- Who may read. Roles belong to the server, not to the database, so making one may be forbidden; the tables work without.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'callipper_reader') THEN
        CREATE ROLE callipper_reader NOLOGIN;
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'role callipper_reader was not made: it takes CREATEROLE. Grant SELECT on the views yourself.';
    WHEN duplicate_object OR unique_violation THEN
        NULL;  -- another init, of another database, made it this very moment
END
$$;

-- EXECUTE is PUBLIC's by default. Here it goes to nobody but the owner, and what only asks goes to the readers: the functions
-- without an underscore, and those that they call in the reader's name. Whatever reads weights does so in the owner's name
-- (SECURITY DEFINER).
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA callipper FROM PUBLIC;

DO $$
DECLARE
    answering regprocedure;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'callipper_reader') THEN
        RETURN;
    END IF;
    GRANT USAGE ON SCHEMA callipper TO callipper_reader;
    GRANT SELECT ON callipper.cells, callipper.points, callipper.poi, callipper.cell, callipper.grid,
        callipper.model, callipper.text_encoder, callipper.text_embedding TO callipper_reader;
    FOR answering IN
        SELECT p.oid FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'callipper'::regnamespace AND p.proname NOT IN ('activate', 'drop_model') AND (
            left(p.proname, 1) <> '_'
            OR p.proname IN ('_active_version', '_points_are_pois', '_find_text', '_locate', '_rate_support')
        )
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO callipper_reader', answering);
    END LOOP;
END
$$;
