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

-- EXECUTE is PUBLIC's by default; what changes models is taken back.
REVOKE EXECUTE ON FUNCTION callipper.activate(integer), callipper.drop_model(integer, boolean),
    callipper._replace_views(integer) FROM PUBLIC;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'callipper_reader') THEN
        GRANT USAGE ON SCHEMA callipper TO callipper_reader;
        GRANT SELECT ON callipper.cells, callipper.points, callipper.poi, callipper.cell, callipper.grid,
            callipper.model, callipper.text_encoder, callipper.text_embedding TO callipper_reader;
    END IF;
END
$$;
