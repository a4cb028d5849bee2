-- Preconditions of an installation. Whatever runs the bundle (command line, psql script,
-- CREATE EXTENSION) wraps it in one transaction and puts pgvector's schema on search_path,
-- so that types, operators and SQL bodies below bind by identity, not by name.

DO $do$
DECLARE
    v_version text := (SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'vector');
    v_parts int[];
BEGIN
    -- One installer at a time; the second waits and then finds everything in place.
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('sqlvec.install'));

    IF v_version IS NULL THEN
        RAISE EXCEPTION 'sqlvec needs the extension "vector" (pgvector 0.8.0 or newer), which is not installed in database "%"',
            pg_catalog.current_database()
            USING ERRCODE = 'undefined_object',
                  HINT = 'Run CREATE EXTENSION vector; as a role that may, then install sqlvec again.';
    END IF;
    v_parts := pg_catalog.string_to_array(pg_catalog.substring(v_version, '^[0-9]+[.][0-9]+'), '.')::int[];
    IF v_parts < ARRAY[0, 8] THEN
        RAISE EXCEPTION 'sqlvec needs pgvector 0.8.0 or newer; database "%" has %',
            pg_catalog.current_database(), v_version
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Install a newer pgvector on the server, then run ALTER EXTENSION vector UPDATE;';
    END IF;
    IF pg_catalog.to_regnamespace('sqlvec') IS NULL
       AND NOT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') THEN
        RAISE EXCEPTION 'role "%" may not create schema "sqlvec" in database "%"',
            current_user, pg_catalog.current_database()
            USING ERRCODE = 'insufficient_privilege',
                  HINT = pg_catalog.format('Run GRANT CREATE ON DATABASE %I TO %I; or install as the owner of the database.',
                                           pg_catalog.current_database(), current_user);
    END IF;
END
$do$;

CREATE SCHEMA IF NOT EXISTS sqlvec;
COMMENT ON SCHEMA sqlvec IS 'sqlvec: quantized, multi-vector and hybrid search on pgvector';
