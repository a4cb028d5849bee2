-- Whose schema it is. Functions of schema sqlvec run with the rights of whoever searches, so an installation
-- lays itself over nothing that another role has made: CREATE OR REPLACE would leave it to that role.
-- CREATE EXTENSION looks after that itself.

DO $do$
DECLARE
    v_path pg_catalog.text := pg_catalog.current_setting('search_path');
    v_owner pg_catalog.name;
BEGIN
    -- Nothing planted on the way counts.
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    SELECT r.rolname INTO v_owner
    FROM (SELECT n.nspowner AS owner FROM pg_namespace AS n WHERE n.nspname = 'sqlvec'
          UNION ALL SELECT p.proowner FROM pg_proc AS p WHERE p.pronamespace = to_regnamespace('sqlvec')
          UNION ALL SELECT c.relowner FROM pg_class AS c WHERE c.relnamespace = to_regnamespace('sqlvec')
          UNION ALL SELECT t.typowner FROM pg_type AS t WHERE t.typnamespace = to_regnamespace('sqlvec')
          UNION ALL SELECT o.oprowner FROM pg_operator AS o WHERE o.oprnamespace = to_regnamespace('sqlvec')) AS s
    JOIN pg_roles AS r ON r.oid = s.owner AND r.rolname <> current_user
    LIMIT 1;
    IF FOUND AND NOT EXISTS (SELECT FROM pg_extension AS e WHERE e.extname = 'sqlvec') THEN
        RAISE EXCEPTION 'schema "sqlvec" in database "%" is, or holds things, of role "%", not of "%"', current_database(), v_owner, current_user
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('Everyone who searches runs its functions. Where that role is trusted, SET ROLE %I; and install as it; '
                                'otherwise DROP SCHEMA sqlvec CASCADE;', v_owner);
    END IF;
    PERFORM set_config('search_path', v_path, true);
END
$do$;
