-- All that is in the schemas belongs to the owner of the schema, whoever of its members, or a superuser, has run init. So the
-- functions that run with their owner's rights never run with those of a superuser, and can read what they need. What somebody
-- else has made here stays theirs.
DO $$
DECLARE
    change text;
BEGIN
    FOR change IN
        SELECT format('ALTER %s %s OWNER TO %I', ours.kind, ours.name, r.rolname)
        FROM (
            SELECT CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE' WHEN 'c' THEN 'TYPE'
                ELSE 'TABLE' END, c.oid::regclass::text, c.relnamespace, c.relowner
            FROM pg_catalog.pg_class c
            WHERE c.relkind IN ('r', 'p', 'v', 'm', 'c') OR c.relkind = 'S' AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_depend d
                WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
            )
            UNION ALL
            SELECT 'ROUTINE', p.oid::regprocedure::text, p.pronamespace, p.proowner FROM pg_catalog.pg_proc p
        ) AS ours(kind, name, namespace, owner)
        JOIN pg_catalog.pg_namespace n ON n.oid = ours.namespace
        JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
        WHERE n.nspname IN ('callipper', 'callipper_map') AND ours.owner <> n.nspowner
            AND pg_catalog.pg_has_role(ours.owner, n.nspowner, 'MEMBER')
    LOOP
        EXECUTE change;
    END LOOP;
END
$$;
