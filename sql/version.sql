-- sqlvec.version(): which release is installed. Refuses to lay an older release over a newer one.

DO $do$
DECLARE
    v_installed text;
BEGIN
    IF pg_catalog.to_regprocedure('sqlvec.version()') IS NOT NULL THEN
        EXECUTE 'SELECT sqlvec.version()' INTO v_installed;
        IF pg_catalog.string_to_array(v_installed, '.')::int[]
           > pg_catalog.string_to_array('@VERSION@', '.')::int[] THEN
            RAISE EXCEPTION 'sqlvec % is installed here, which is newer than the % being installed',
                v_installed, '@VERSION@'
                USING ERRCODE = 'object_not_in_prerequisite_state',
                      HINT = 'Upgrade the package that runs the installation, or leave the database as it is.';
        END IF;
    END IF;
END
$do$;

CREATE OR REPLACE FUNCTION sqlvec.version() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '@VERSION@';

COMMENT ON FUNCTION sqlvec.version() IS 'Release of sqlvec that is installed, as major.minor.patch.';
