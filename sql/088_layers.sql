-- Saved layers: a question as a view, which a map draws like a table. It follows the active model.

CREATE OR REPLACE FUNCTION callipper.save_layer(
    name text, query text, likes text[] DEFAULT '{}', dislikes text[] DEFAULT '{}'
) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wanted constant text[] := array_remove(query || likes, NULL);
    layer constant text := 'layer_' || name;
    existing constant regclass := to_regclass(format('callipper_map.%I', layer));
    named text;
    said text;
    reader text;
BEGIN
    IF name IS NULL OR name !~ '^[a-z][a-z0-9_]{0,49}$' THEN
        RAISE EXCEPTION '"%" cannot name a layer', coalesce(name, 'NULL') USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Take up to 50 of a-z, 0-9 and _, a letter first.';
    ELSIF existing IS NOT NULL THEN
        RAISE EXCEPTION 'there is a layer % already', name USING ERRCODE = 'duplicate_object',
            HINT = format('Remove it first: SELECT remove_layer(%L)', name);
    END IF;
    -- An error about these texts must come now, and not when a map reads the layer.
    PERFORM callipper._examples(wanted, coalesce(dislikes, '{}'));
    EXECUTE format('CREATE VIEW callipper_map.%I AS SELECT cell_id, geom, lon, lat, similarity, percentile FROM ', layer)
        || CASE WHEN cardinality(wanted) = 1 AND coalesce(cardinality(dislikes), 0) = 0
            THEN format('callipper_map.cells_by_text(%L)', wanted[1])
            ELSE format('callipper_map.cells_by_examples(%L::text[], %L::text[])', wanted, coalesce(dislikes, '{}')) END;
    FOR named, said IN
        SELECT a.attname, col_description(a.attrelid, a.attnum) FROM pg_attribute a
        WHERE a.attrelid = 'callipper_map.cell_match'::regclass AND a.attnum > 0
    LOOP
        EXECUTE format('COMMENT ON COLUMN callipper_map.%I.%I IS %L', layer, named, said);
    END LOOP;
    -- Whoever of the owner's members has saved it, the others may remove it.
    EXECUTE format('ALTER VIEW callipper_map.%I OWNER TO %s', layer, (
        SELECT n.nspowner::regrole FROM pg_namespace n WHERE n.nspname = 'callipper_map'));
    EXECUTE format('COMMENT ON VIEW callipper_map.%I IS %L', layer, concat('How well cells fit: ', array_to_string(wanted, ', '),
        '; not: ' || nullif(array_to_string(dislikes, ', '), '')));
    -- Every role that may read the cells may read the layer.
    FOR reader IN
        SELECT r.rolname FROM pg_class c, aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee
        WHERE c.oid = 'callipper_map.cell'::regclass AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT SELECT ON callipper_map.%I TO %I', layer, reader);
    END LOOP;
END
$$;
COMMENT ON FUNCTION callipper.save_layer(text, text, text[], text[]) IS
    'Saves a question as the view callipper_map.layer_NAME, with a row per cell: SELECT save_layer(''quiet'', ''quiet residential'
    ' street''). likes are more texts that it should be like, dislikes such as it should not.';

CREATE OR REPLACE FUNCTION callipper.remove_layer(name text) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF to_regclass(format('callipper_map.%I', 'layer_' || name)) IS NULL THEN
        RAISE EXCEPTION 'there is no layer %', name USING ERRCODE = 'undefined_object',
            HINT = coalesce((
                SELECT 'The layers are: ' || string_agg(l.name, ', ' ORDER BY l.name) FROM callipper.list_layers() l
            ), 'There are none.');
    END IF;
    EXECUTE format('DROP VIEW callipper_map.%I', 'layer_' || name);
END
$$;
COMMENT ON FUNCTION callipper.remove_layer(text) IS 'Removes a layer that save_layer() has saved.';

CREATE OR REPLACE FUNCTION callipper.list_layers() RETURNS TABLE (name text, question text)
LANGUAGE plpgsql STABLE PARALLEL SAFE ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT substr(c.relname, 7), obj_description(c.oid, 'pg_class') FROM pg_class c
        WHERE c.relnamespace = 'callipper_map'::regnamespace AND c.relkind = 'v' AND left(c.relname, 6) = 'layer_' ORDER BY 1;
END
$$;
COMMENT ON FUNCTION callipper.list_layers() IS 'the saved layers, and what each asks';
