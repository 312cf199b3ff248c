-- Who may read. Roles belong to the server, not to the database, so init may not be allowed to make one. It works without.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'callipper_reader') THEN
        CREATE ROLE callipper_reader NOLOGIN;
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'role callipper_reader was not made: it takes CREATEROLE. A role of yours may ask after: SELECT callipper._grant_reader(''NAME'')';
    WHEN duplicate_object OR unique_violation THEN
        NULL;  -- another init, of another database, made it this very moment
END
$$;

-- By default PUBLIC may execute every function. Here only the owner may, and readers get the functions that ask: those without
-- an underscore, and those that these call with the reader's rights. Functions that read weights are SECURITY DEFINER.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA callipper, callipper_map FROM PUBLIC;

CREATE OR REPLACE FUNCTION callipper._grant_reader(reader name) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    answering regprocedure;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA callipper, callipper_map TO %I', reader);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA callipper_map TO %I', reader);
    EXECUTE format('GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA callipper_map TO %I', reader);
    EXECUTE format('GRANT SELECT ON callipper.cells, callipper.points, callipper.poi, callipper.cell, callipper.grid,'
        ' callipper.model, callipper.text_encoder, callipper.text_embedding TO %I', reader);
    FOR answering IN
        SELECT p.oid FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'callipper'::regnamespace AND p.proname NOT IN ('activate', 'drop_model', 'save_layer', 'remove_layer') AND (
            left(p.proname, 1) <> '_'
            OR p.proname IN ('_active_version', '_points_are_pois', '_find_text', '_locate', '_rate_support', '_city_of', '_examples',
                '_percentile', '_cells_by', '_block_of', '_block_side', '_block_margin', '_h3_index', '_h3_parent', '_tile_cells', '_stamp',
                '_question_vector', '_match_tile',
                '_match_cells', '_labelled_points', '_changed_cells', '_layer_tile')
        )
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', answering, reader);
    END LOOP;
END
$$;
COMMENT ON FUNCTION callipper._grant_reader(name) IS
    'let a role ask everything and change nothing; where init may not make callipper_reader, call it after each init';
REVOKE EXECUTE ON FUNCTION callipper._grant_reader(name) FROM PUBLIC;

SELECT callipper._grant_reader(rolname) FROM pg_catalog.pg_roles WHERE rolname = 'callipper_reader';
