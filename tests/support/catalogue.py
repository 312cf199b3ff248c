"""What the catalogue of a database says about the schemas, in lines that reviewers read in a diff."""

from __future__ import annotations

from pathlib import Path

from callipper_db import db

GOLDEN = Path(__file__).parents[1] / "golden" / "catalogue.txt"

# Each query yields lines; together they are all that a reviewer of the schema wants to see.
CATALOGUE = {
    "tables": """
        SELECT format('%s %s%s%s', CASE c.relkind WHEN 'v' THEN 'view' ELSE 'table' END, c.relname,
                      coalesce(' partition by ' || pg_get_partkeydef(c.oid), ''),
                      coalesce(' -- ' || obj_description(c.oid, 'pg_class'), ''))
        FROM pg_class c WHERE c.relnamespace = 'callipper'::regnamespace AND c.relkind IN ('r', 'p', 'v') ORDER BY c.relname
    """,
    "columns": """
        SELECT format('%s.%s %s%s%s%s%s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                      CASE WHEN a.attnotnull THEN ' not null' ELSE '' END,
                      CASE a.attidentity WHEN 'a' THEN ' identity always' WHEN 'd' THEN ' identity' ELSE '' END,
                      coalesce(CASE a.attgenerated WHEN 's' THEN ' generated ' ELSE ' default ' END
                               || pg_get_expr(d.adbin, d.adrelid), ''),
                      coalesce(' -- ' || col_description(c.oid, a.attnum), ''))
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'callipper'::regnamespace AND c.relkind IN ('r', 'p', 'v')
          AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY c.relname, a.attnum
    """,
    "constraints": """
        SELECT format('%s: %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
        FROM pg_constraint WHERE connamespace = 'callipper'::regnamespace AND contype <> 'n'
        ORDER BY conrelid::regclass::text, conname
    """,
    "indexes": """
        SELECT pg_get_indexdef(i.indexrelid) || coalesce(' -- ' || array_to_string(c.reloptions, ', '), '')
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relnamespace = 'callipper'::regnamespace
        ORDER BY i.indrelid::regclass::text, c.relname
    """,
    # Without the aliases of one letter, which PostgreSQL 15 writes even where there is one table.
    "views": r"""
        SELECT format(E'%s\n%s', c.relname, regexp_replace(pg_get_viewdef(c.oid, true), '\m[a-z]\.', '', 'g'))
        FROM pg_class c WHERE c.relnamespace = 'callipper'::regnamespace AND c.relkind = 'v' ORDER BY c.relname
    """,
    "functions": """
        SELECT format(E'%s(%s) returns %s\\n    %s %s%s parallel %s, security %s%s\\n    -- %s', p.proname,
                      pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), l.lanname,
                      CASE p.provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END,
                      CASE WHEN p.proisstrict THEN ' strict' ELSE '' END,
                      CASE p.proparallel WHEN 's' THEN 'safe' WHEN 'r' THEN 'restricted' ELSE 'unsafe' END,
                      CASE WHEN p.prosecdef THEN 'definer' ELSE 'invoker' END,
                      coalesce(', ' || array_to_string(p.proconfig, ', '), ''), obj_description(p.oid, 'pg_proc'))
        FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
        WHERE p.pronamespace = 'callipper'::regnamespace ORDER BY p.proname, pg_get_function_arguments(p.oid)
    """,
    # What the owner may do goes without saying.
    "grants": """
        SELECT DISTINCT format('%s on %s to %s', g.privilege_type, o.name, coalesce(r.rolname, 'public'))
        FROM (
            SELECT 'schema callipper' AS name, nspowner AS owner, coalesce(nspacl, acldefault('n', nspowner)) AS acl
            FROM pg_namespace WHERE nspname = 'callipper'
            UNION ALL
            SELECT relname, relowner, coalesce(relacl, acldefault('r', relowner))
            FROM pg_class WHERE relnamespace = 'callipper'::regnamespace AND relkind IN ('r', 'p', 'v')
            UNION ALL
            SELECT format('%s(%s)', proname, pg_get_function_identity_arguments(oid)), proowner,
                   coalesce(proacl, acldefault('f', proowner))
            FROM pg_proc WHERE pronamespace = 'callipper'::regnamespace
        ) AS o, aclexplode(o.acl) AS g LEFT JOIN pg_roles r ON r.oid = g.grantee
        WHERE g.grantee <> o.owner ORDER BY 1
    """,
}


def catalogue(connection: db.Connection) -> str:
    parts = []
    for schema_name in ("callipper", "callipper_map"):
        for title, query in CATALOGUE.items():
            text = query.replace("'callipper'", f"'{schema_name}'").replace(
                "'schema callipper'", f"'schema {schema_name}'"
            )
            lines = [str(line) for (line,) in connection.execute(text.encode())]
            parts.append("\n".join([f"== {title} of {schema_name}", *lines]))
    return "\n\n".join(parts) + "\n"
