"""Schema ``sqlvec`` as the server's catalog describes it, for comparing installations."""

from __future__ import annotations

from sqlalchemy import Connection

_OBJECTS = """
WITH ns AS (SELECT oid, nspacl FROM pg_namespace WHERE nspname = 'sqlvec')
SELECT 'schema sqlvec', concat_ws(E'\\n', ns.nspacl, obj_description(ns.oid, 'pg_namespace'))
FROM ns
UNION ALL
SELECT 'routine ' || p.oid::regprocedure,
       concat_ws(E'\\n', pg_get_functiondef(p.oid), p.provolatile, p.proparallel, p.prosecdef,
                 p.proleakproof, p.procost, p.prorows, p.proconfig, p.proacl,
                 obj_description(p.oid, 'pg_proc'))
FROM ns JOIN pg_proc AS p ON p.pronamespace = ns.oid
WHERE p.prokind <> 'a'
UNION ALL
SELECT 'relation ' || c.oid::regclass,
       concat_ws(E'\\n', c.relkind, c.reloptions, c.relacl, c.relrowsecurity,
                 CASE c.relkind WHEN 'v' THEN pg_get_viewdef(c.oid)
                                WHEN 'i' THEN pg_get_indexdef(c.oid) END,
                 obj_description(c.oid, 'pg_class'))
FROM ns JOIN pg_class AS c ON c.relnamespace = ns.oid
UNION ALL
SELECT 'column ' || c.oid::regclass || '.' || a.attname,
       concat_ws(E'\\n', a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                 a.attidentity, a.attgenerated, a.attstorage, a.attacl,
                 pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum))
FROM ns JOIN pg_class AS c ON c.relnamespace = ns.oid
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
UNION ALL
SELECT 'constraint ' || o.conrelid::regclass || '.' || o.conname, pg_get_constraintdef(o.oid)
FROM ns JOIN pg_constraint AS o ON o.connamespace = ns.oid
UNION ALL
SELECT 'trigger ' || t.tgrelid::regclass || '.' || t.tgname,
       concat_ws(E'\\n', pg_get_triggerdef(t.oid), t.tgenabled)
FROM ns JOIN pg_class AS c ON c.relnamespace = ns.oid
JOIN pg_trigger AS t ON t.tgrelid = c.oid AND NOT t.tgisinternal
UNION ALL
SELECT 'policy ' || p.polrelid::regclass || '.' || p.polname,
       concat_ws(E'\\n', p.polcmd, p.polroles, pg_get_expr(p.polqual, p.polrelid),
                 pg_get_expr(p.polwithcheck, p.polrelid))
FROM ns JOIN pg_class AS c ON c.relnamespace = ns.oid
JOIN pg_policy AS p ON p.polrelid = c.oid
UNION ALL
SELECT 'type ' || t.oid::regtype, concat_ws(E'\\n', t.typtype, t.typacl, e.labels)
FROM ns JOIN pg_type AS t ON t.typnamespace = ns.oid
LEFT JOIN LATERAL (SELECT array_agg(enumlabel ORDER BY enumsortorder)::text AS labels
                   FROM pg_enum WHERE enumtypid = t.oid) AS e ON true
"""


def snapshot(connection: Connection) -> dict[str, str]:
    """Return the definition of every object in schema ``sqlvec``, by kind and name."""
    result = connection.exec_driver_sql(_OBJECTS, execution_options={"no_parameters": True})
    return {name: definition for name, definition in result}


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return the names of the objects that two snapshots do not share."""
    return sorted({name for name, _ in one.items() ^ other.items()})
