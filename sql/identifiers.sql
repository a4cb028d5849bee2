-- Names: how sqlvec builds them and how it finds columns.

-- A name of at most 63 bytes. A longer one is cut at a character boundary and ends in eight
-- digits of its hash, so that two long names stay two names.
CREATE OR REPLACE FUNCTION sqlvec._name(base text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE
        WHEN octet_length(base) <= 63 THEN base
        ELSE left(base, (SELECT max(n)::int
                         FROM generate_series(0, least(length(base), 54)) AS n
                         WHERE octet_length(left(base, n)) <= 54))
             || '_' || left(md5(base), 8)
    END;
END;

-- A name for an index of table rel that no other relation of its schema has. A table that was renamed
-- keeps the indexes it had under its old name.
CREATE OR REPLACE FUNCTION sqlvec._index_name(rel oid, base text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT n.name
    FROM (SELECT g.i, sqlvec._name(CASE g.i WHEN 1 THEN base ELSE base || '_' || g.i END) AS name FROM generate_series(1, 1000) AS g (i)) AS n
    WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_class AS t ON t.relnamespace = c.relnamespace AND t.oid = rel
        WHERE c.relname = n.name::name AND NOT EXISTS (SELECT FROM pg_catalog.pg_index AS x WHERE x.indexrelid = c.oid AND x.indrelid = rel))
    ORDER BY n.i LIMIT 1;
END;

-- The schema pgvector lives in.
CREATE OR REPLACE FUNCTION sqlvec._vector_schema() RETURNS name
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT n.nspname
    FROM pg_catalog.pg_extension AS e JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
    WHERE e.extname = 'vector';
END;

-- A table as "schema"."table", whatever the search_path.
CREATE OR REPLACE FUNCTION sqlvec._qualified(rel oid) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT format('%I.%I', n.nspname, c.relname)
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = rel;
END;

-- A type by its full name. format_type leaves the schema out where search_path finds the type, but a
-- statement of ours may run under another path, and a type in pg_temp goes before all.
CREATE OR REPLACE FUNCTION sqlvec._type_name(type_oid oid) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT format('%I.%I', n.nspname, t.typname)
    FROM pg_catalog.pg_type AS t JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
    WHERE t.oid = type_oid;
END;

-- A column with its type: base type name (of domains, the type beneath) and dimensions, which are
-- NULL where the type names none. An error that lists the columns when it is not there.
CREATE OR REPLACE FUNCTION sqlvec._column(
    rel oid, column_name text,
    OUT attnum smallint, OUT type_oid oid, OUT type_name name, OUT dimensions int
) LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_typmod int;
    v_type record;
BEGIN
    SELECT a.attnum, a.atttypid, a.atttypmod, t.typname, t.typtype, t.typbasetype, t.typtypmod INTO v_type
    FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    WHERE a.attrelid = rel AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'column "%" of table % does not exist', column_name, sqlvec._qualified(rel)
            USING ERRCODE = 'undefined_column',
                  HINT = (SELECT 'Columns are: ' || pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY a.attnum) || '.'
                          FROM pg_catalog.pg_attribute AS a
                          WHERE a.attrelid = rel AND a.attnum > 0 AND NOT a.attisdropped);
    END IF;
    attnum := v_type.attnum;
    type_oid := v_type.atttypid;
    v_typmod := v_type.atttypmod;
    WHILE v_type.typtype = 'd' LOOP
        type_oid := v_type.typbasetype;
        v_typmod := v_type.typtypmod;
        SELECT t.typname, t.typtype, t.typbasetype, t.typtypmod INTO v_type
        FROM pg_catalog.pg_type AS t WHERE t.oid = type_oid;
    END LOOP;
    type_name := v_type.typname;
    dimensions := CASE WHEN type_name IN ('vector', 'halfvec', '_vector', '_halfvec', 'sparsevec', 'bit') AND v_typmod > 0
                       THEN v_typmod END;
END
$body$;

-- The same of a column of multi-vectors; an error for one of another type.
CREATE OR REPLACE FUNCTION sqlvec._multivector_column(rel oid, column_name text, OUT type_name name, OUT dimensions int)
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_column record := sqlvec._column(rel, column_name);
BEGIN
    IF v_column.type_name NOT IN ('_halfvec', '_vector') THEN
        RAISE EXCEPTION 'column "%" of table % is of type %, not halfvec[] or vector[]',
            column_name, sqlvec._qualified(rel), format_type(v_column.type_oid, NULL)
            USING ERRCODE = 'datatype_mismatch',
                  HINT = CASE WHEN v_column.type_name IN ('vector', 'halfvec') THEN 'That is one vector per row: sqlvec.add_quantized and sqlvec.vector_search are for those.'
                              ELSE 'Multi-vectors are arrays of halfvec or vector.' END;
    END IF;
    type_name := v_column.type_name;
    dimensions := v_column.dimensions;
END
$body$;

-- Numbers of columns, in the order of their names.
CREATE OR REPLACE FUNCTION sqlvec._attnums(rel oid, names name[]) RETURNS smallint[]
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(a.attnum ORDER BY n.position)
    FROM unnest(names) WITH ORDINALITY AS n (name, position)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = rel AND a.attname = n.name AND a.attnum > 0 AND NOT a.attisdropped;
END;

-- The tables that hold the rows here: the leaf partitions, or the table itself.
CREATE OR REPLACE FUNCTION sqlvec._leaves(rel oid) RETURNS TABLE (leaf oid)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT t.relid::oid FROM pg_catalog.pg_partition_tree(rel) AS t JOIN pg_catalog.pg_class AS c ON c.oid = t.relid
    WHERE t.isleaf AND c.relkind <> 'f'
    UNION
    SELECT c.oid FROM pg_catalog.pg_class AS c WHERE c.oid = rel AND c.relkind NOT IN ('p', 'f');
END;

-- Foreign tables among the partitions or children of a table. Their rows have no address: postgres_fdw passes
-- ctid on, but of a partitioned table there two rows may have the same.
CREATE OR REPLACE FUNCTION sqlvec._foreign_parts(rel oid) RETURNS TABLE (part oid)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH RECURSIVE below AS (
        SELECT i.inhrelid FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_inherits AS i ON i.inhparent = c.oid
        WHERE c.oid = rel AND c.relhassubclass
        UNION
        SELECT i.inhrelid FROM below AS b JOIN pg_catalog.pg_inherits AS i ON i.inhparent = b.inhrelid)
    SELECT f.ftrelid FROM below AS b JOIN pg_catalog.pg_foreign_table AS f ON f.ftrelid = b.inhrelid;
END;
