-- The rows without a code, and the index that knows them: what tells a search whether it may use the
-- codes at all.

-- The rows that wait for their code, in the words that pg_get_expr uses.
CREATE OR REPLACE FUNCTION sqlvec._unfinished(target name, sources name[], alias text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN format('((%s%I IS NULL) AND %s)', alias, target, sqlvec._has_source(sources, alias));

-- The partial index that answers "is every row encoded?" without reading the table.
CREATE OR REPLACE FUNCTION sqlvec._unfinished_index_sql(rel oid, target text, online boolean) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT format('CREATE INDEX %sIF NOT EXISTS %I ON %s ((1)) WHERE %s',
                  CASE WHEN online AND c.relkind <> 'p' THEN 'CONCURRENTLY ' ELSE '' END,
                  sqlvec._index_name(rel, 'ix_' || c.relname || '_' || target || '_unfinished'),
                  sqlvec._qualified(rel), sqlvec._unfinished(target, d.encoded_columns, ''))
    FROM sqlvec._derived_of(rel) AS d JOIN pg_catalog.pg_class AS c ON c.oid = rel
    WHERE d.target_column = target;
END;

-- Create it on the spot where reading the table takes a few milliseconds; larger tables get it
-- CONCURRENTLY from a client, which no function can do.
CREATE OR REPLACE FUNCTION sqlvec._index_unfinished(rel oid, target text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_size bigint := (SELECT sum(pg_relation_size(t.leaf)) FROM sqlvec._leaves(rel) AS t);
BEGIN
    IF v_size > 32 * 1024 * 1024 THEN
        RETURN false;
    END IF;
    EXECUTE sqlvec._unfinished_index_sql(rel, target, false);
    RETURN true;
END
$body$;

-- Whether an index holds exactly the rows that wait for their code.
CREATE OR REPLACE FUNCTION sqlvec._has_unfinished_index(rel oid, target name, sources name[]) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_index AS i
        WHERE i.indrelid = rel AND i.indisvalid
          AND pg_catalog.pg_get_expr(i.indpred, i.indrelid)
              = sqlvec._unfinished(target, sources, ''));
END;
