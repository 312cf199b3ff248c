-- Records which POIs have changed, for `callipper-db refresh`, and notifies it.

-- Notes which POIs a statement has changed, and notifies listeners once per transaction. SECURITY DEFINER, because a role that
-- may write POIs need not be allowed to read or write these notes. There is one row per statement, with the ids as ranges. POIs
-- that were loaded together are one range, so that a load is not slowed down. TRUNCATE lists no rows, so it notes all ids.
-- A statement that changes no row notes nothing.
CREATE OR REPLACE FUNCTION callipper._note_poi_change() RETURNS trigger
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    touched int8multirange;
BEGIN
    CASE TG_OP
        WHEN 'INSERT' THEN
            touched := (SELECT range_agg(int8range(n.poi_id, n.poi_id, '[]')) FROM new_rows n);
        WHEN 'DELETE' THEN
            touched := (SELECT range_agg(int8range(o.poi_id, o.poi_id, '[]')) FROM old_rows o);
        WHEN 'UPDATE' THEN  -- the key itself may have changed
            touched := (SELECT range_agg(int8range(n.poi_id, n.poi_id, '[]')) FROM new_rows n)
                + (SELECT range_agg(int8range(o.poi_id, o.poi_id, '[]')) FROM old_rows o);
        WHEN 'TRUNCATE' THEN
            touched := '{(,)}';
    END CASE;
    IF touched IS NOT NULL THEN
        INSERT INTO callipper.poi_change (poi_ids) VALUES (touched);
        PERFORM pg_notify('callipper_poi', '');
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION callipper._note_poi_change() IS
    'trigger function of callipper.poi: note which POIs a statement has changed, and notify callipper_poi';

CREATE OR REPLACE TRIGGER note_insert AFTER INSERT ON callipper.poi
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION callipper._note_poi_change();
CREATE OR REPLACE TRIGGER note_update AFTER UPDATE ON callipper.poi
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION callipper._note_poi_change();
CREATE OR REPLACE TRIGGER note_delete AFTER DELETE ON callipper.poi
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION callipper._note_poi_change();
CREATE OR REPLACE TRIGGER note_truncate AFTER TRUNCATE ON callipper.poi
    FOR EACH STATEMENT EXECUTE FUNCTION callipper._note_poi_change();
