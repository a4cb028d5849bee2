"""Write reference/sql.md from the comments of an installed schema ``sqlvec``.

Run it as ``python docs/reference.py DSN``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg

PAGE = Path(__file__).parent / "reference" / "sql.md"

_HEAD = """# SQL reference

Written by `python docs/reference.py DSN` from the comments on the objects of schema `sqlvec`.
Names that begin with an underscore are not meant to be called.
"""

_ROUTINES = """
    SELECT p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
           CASE p.prokind WHEN 'p' THEN 'CALL ' ELSE '' END || 'sqlvec.' || p.proname
               || '(' || pg_get_function_arguments(p.oid) || ')'
               || coalesce(' → ' || pg_get_function_result(p.oid), ''),
           obj_description(p.oid, 'pg_proc')
    FROM pg_proc AS p
    WHERE p.pronamespace = 'sqlvec'::regnamespace AND p.proname !~ '^(_|maintain_)'
      AND p.prokind = %s
    ORDER BY p.proname
"""

_RELATIONS = """
    SELECT c.relname,
           'sqlvec.' || c.relname || ' (' || (
               SELECT string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', '
                                 ORDER BY a.attnum)
               FROM pg_attribute AS a
               WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) || ')',
           coalesce(obj_description(c.oid, 'pg_class'), obj_description(c.reltype, 'pg_type'))
    FROM pg_class AS c
    WHERE c.relnamespace = 'sqlvec'::regnamespace AND c.relkind = %s AND c.relname !~ '^_'
    ORDER BY c.relname
"""

_SECTIONS = (
    ("Functions", _ROUTINES, "f"),
    ("Procedures", _ROUTINES, "p"),
    ("Types", _RELATIONS, "c"),
    ("Views", _RELATIONS, "v"),
    ("Catalog tables", _RELATIONS, "r"),
)


def page(dsn: str) -> str:
    """Return the page for the schema in a database."""
    parts = [_HEAD]
    with psycopg.connect(dsn) as connection:
        # Types of pgvector are shown without the schema it happens to live in.
        connection.execute(
            "SELECT set_config('search_path', 'pg_catalog, ' || quote_ident(n.nspname), true)"
            " FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace"
            " WHERE e.extname = 'vector'"
        )
        for title, query, kind in _SECTIONS:
            parts.append(f"## {title}\n")
            for name, signature, comment in connection.execute(query, [kind]):
                parts.append(f"### {name.partition('(')[0]}\n")
                parts.append(f"```text\n{signature}\n```\n\n{comment}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(sys.argv[1]), encoding="utf-8")
