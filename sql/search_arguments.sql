-- Arguments of the search functions: checked, and resolved to what they name.

CREATE OR REPLACE FUNCTION sqlvec._relation_of(rel_type regtype) RETURNS oid
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_rel oid := (SELECT c.oid FROM pg_type AS t JOIN pg_class AS c ON c.oid = t.typrelid
                  WHERE t.oid = rel_type AND c.relkind <> 'c');
BEGIN
    IF v_rel IS NULL THEN
        RAISE EXCEPTION 'rel is the table as a typed NULL row, not a value of type %', rel_type
            USING ERRCODE = 'datatype_mismatch', HINT = 'E.g. sqlvec.vector_search(NULL::doc, ''embedding'', ...).';
    END IF;
    RETURN v_rel;
END
$body$;

-- The single column that keys a table, checked or found.
CREATE OR REPLACE FUNCTION sqlvec._key_column(rel oid, key_column text) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_keys name[];
BEGIN
    IF key_column IS NOT NULL THEN
        PERFORM sqlvec._column(rel, key_column);
        RETURN key_column;
    END IF;
    v_keys := ARRAY(SELECT a.attname FROM pg_index AS i, unnest(i.indkey[0:i.indnkeyatts - 1]) AS k (attnum)
                    JOIN pg_attribute AS a ON a.attnum = k.attnum
                    WHERE i.indrelid = rel AND i.indisprimary AND a.attrelid = rel);
    IF cardinality(v_keys) <> 1 THEN
        RAISE EXCEPTION 'table % has % primary key', sqlvec._qualified(rel),
            CASE cardinality(v_keys) WHEN 0 THEN 'no' ELSE 'a composite' END
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Name a unique column: key_column => ''...''; or use the search that returns whole rows.';
    END IF;
    RETURN v_keys[1];
END
$body$;

-- Refuses numbers out of range before anything is looked up. Answers true, because an assignment costs a
-- third of a PERFORM, which runs a query.
CREATE OR REPLACE FUNCTION sqlvec._check_search(
    column_name text, query_dimensions int, k int, candidates int, oversample float8, mode text
) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF k IS NULL OR k NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'k is a number from 1 to 10000, not %', k USING ERRCODE = 'invalid_parameter_value';
    ELSIF candidates IS NOT NULL AND oversample IS NOT NULL THEN
        RAISE EXCEPTION 'candidates and oversample say the same thing: give one' USING ERRCODE = 'invalid_parameter_value';
    ELSIF candidates < k OR candidates > 1000000 THEN
        RAISE EXCEPTION 'candidates is a number from k (%) to 1000000, not %', k, candidates USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT (oversample >= 1 AND oversample <= 1000) THEN
        RAISE EXCEPTION 'oversample is a number from 1 to 1000, not %', oversample USING ERRCODE = 'invalid_parameter_value';
    ELSIF query_dimensions IS NULL THEN
        RAISE EXCEPTION 'the query is NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF mode IS NULL OR column_name IS NULL THEN
        RAISE EXCEPTION 'column_name and mode cannot be NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    RETURN true;
END
$body$;

-- The type of a query by its short name.
CREATE OR REPLACE FUNCTION sqlvec._query_type(query_type text) RETURNS regtype
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE query_type WHEN 'vector' THEN 'vector'::regtype WHEN 'sparsevec' THEN 'sparsevec'::regtype WHEN 'bit' THEN 'bit'::regtype END;

-- The column to search, once it fits the query.
CREATE OR REPLACE FUNCTION sqlvec._searched_column(
    rel oid, column_name text, query_type text, query_dimensions int, OUT type_name name, OUT dimensions int
) LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record := sqlvec._column(rel, column_name);
BEGIN
    IF v_source.type_name <> query_type AND NOT (query_type = 'vector' AND v_source.type_name = 'halfvec') THEN
        RAISE EXCEPTION 'column "%" of table % is of type %, which a % query cannot search',
            column_name, sqlvec._qualified(rel), format_type(v_source.type_oid, NULL), query_type
            USING ERRCODE = 'datatype_mismatch',
                  HINT = CASE WHEN v_source.type_name IN ('vector', 'halfvec') THEN 'Use sqlvec.vector_search.'
                              WHEN v_source.type_name = 'bit' THEN 'Use sqlvec.bit_search.'
                              WHEN v_source.type_name = 'sparsevec' THEN 'Use sqlvec.sparse_search.'
                              ELSE 'Columns that can be searched are of type vector, halfvec, sparsevec or bit(n).' END;
    ELSIF v_source.dimensions <> query_dimensions THEN
        RAISE EXCEPTION 'column "%" of table % has % dimensions, the query has %',
            column_name, sqlvec._qualified(rel), v_source.dimensions, query_dimensions
            USING ERRCODE = 'data_exception';
    END IF;
    type_name := v_source.type_name;
    dimensions := v_source.dimensions;
END
$body$;
