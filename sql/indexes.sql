-- Approximate indexes on a vector column: which there are, and which could be built.

-- Codes that are one immutable pgvector expression need no column. An index on one is known by the
-- text that pg_get_indexdef prints under search_path pg_catalog; for Matryoshka prefixes the index
-- itself tells the number of dimensions.
CREATE OR REPLACE FUNCTION sqlvec._expression_ways(rel oid, column_name text) RETURNS TABLE (
    way text, kind text, code_type text, dimensions int, expression text, query_expression text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record := sqlvec._column(rel, column_name);
    v_schema name := sqlvec._vector_schema();
BEGIN
    IF v_source.type_name NOT IN ('vector', 'halfvec') OR v_source.dimensions IS NULL THEN
        RETURN;
    END IF;
    way := 'expression:binary'; kind := 'binary'; code_type := 'bit'; dimensions := v_source.dimensions;
    expression := format('((%I.binary_quantize(%I))::bit(%s))', v_schema, column_name, dimensions);
    query_expression := 'sqlvec._binary(sqlvec._as_vector($2))';
    RETURN NEXT;
    IF v_source.type_name = 'vector' THEN
        way := 'expression:halfvec'; kind := 'halfvec'; code_type := 'halfvec';
        expression := format('((%I)::%I.halfvec(%s))', column_name, v_schema, dimensions);
        query_expression := 'sqlvec._halfvec($2)';
        RETURN NEXT;
        FOR dimensions IN
            SELECT DISTINCT a.atttypmod FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indexrelid AND a.attnum = 1
            WHERE i.indrelid = rel AND i.indexprs IS NOT NULL AND a.atttypmod BETWEEN 1 AND v_source.dimensions - 1
            ORDER BY a.atttypmod
        LOOP
            way := format('expression:truncate(%s)', dimensions); kind := 'truncate';
            expression := format('((%1$I.l2_normalize(%1$I.subvector(%2$I, 1, %3$s)))::%1$I.halfvec(%3$s))',
                                 v_schema, column_name, dimensions);
            query_expression := format('sqlvec._truncate_halfvec(sqlvec._as_vector($2), %s)', dimensions);
            RETURN NEXT;
        END LOOP;
    END IF;
END
$body$;

-- Derived columns of one source that their trigger keeps, by present names. The search's short cut
-- through what sqlvec._derived answers for all tables: it starts from the trigger. Every search asks
-- this, so what is seldom needed is asked of functions: a subquery would be set up each time.
CREATE OR REPLACE FUNCTION sqlvec._maintained_of(rel oid, source name, source_attnum smallint, source_typmod int) RETURNS TABLE (
    target_column name, target_attnum smallint, encoder text, kind text, levels int, code_type text, metric text
) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT t.attname, t.attnum, d.encoder, e.kind, coalesce((e.options ->> 'levels')::int, 1), e.code_type, d.metric
    FROM sqlvec.relation AS r
    JOIN sqlvec.derived AS d ON d.relation_id = r.id
    JOIN sqlvec.encoder AS e ON e.name = d.encoder
    -- Column numbers hold for the table the catalog knows, names for a partition or a restored copy.
    JOIN pg_catalog.pg_attribute AS t ON t.attrelid = rel AND NOT t.attisdropped
         AND t.attnum = CASE WHEN r.oid = rel THEN d.target_attnums[1] ELSE (sqlvec._attnums(rel, d.target_columns[1:1]))[1] END
    WHERE r.id = ANY (ARRAY(SELECT i.id FROM sqlvec._relation_ids(rel) AS i WHERE i.fires = 'A')) AND NOT d.suspect
      AND CASE WHEN r.oid = rel THEN source_attnum = d.source_attnums[1] ELSE source = d.source_columns[1] END
      AND source_typmod IN (-1, e.dimensions) AND t.atttypmod IN (-1, e.code_dimensions)
      -- The trigger of the table that the catalog row names, or of a restored one: of a table that is gone,
      -- privileges are NULL.
      AND (r.oid = coalesce(pg_catalog.pg_partition_root(rel), rel) OR pg_catalog.has_table_privilege(r.oid, 'SELECT') IS NULL)
      -- No other column has taken the name of a renamed one: the trigger writes by name.
      AND (source = d.source_columns[1] OR NOT sqlvec._has_column(rel, d.source_columns[1]))
      AND (t.attname = d.target_columns[1] OR NOT sqlvec._has_column(rel, d.target_columns[1]))
      -- The caller may read the codes.
      AND pg_catalog.has_column_privilege(rel, t.attnum, 'SELECT');
END;

CREATE OR REPLACE FUNCTION sqlvec._maintained_of(rel oid, source name) RETURNS TABLE (
    target_column name, target_attnum smallint, encoder text, kind text, levels int, code_type text, metric text
) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT m.* FROM pg_catalog.pg_attribute AS s CROSS JOIN LATERAL sqlvec._maintained_of(rel, source, s.attnum, s.atttypmod) AS m
    WHERE s.attrelid = rel AND s.attname = source;
END;

-- The metric of an operator class, NULL for one that is not pgvector's.
CREATE OR REPLACE FUNCTION sqlvec._opclass_metric(opclass name) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE split_part(opclass, '_', 2) WHEN 'l2' THEN 'l2' WHEN 'ip' THEN 'inner_product' WHEN 'cosine' THEN 'cosine'
                                        WHEN 'l1' THEN 'l1' WHEN 'hamming' THEN 'hamming' WHEN 'jaccard' THEN 'jaccard' END;

-- Valid approximate indexes of a table; attnum is 0 for an expression.
CREATE OR REPLACE FUNCTION sqlvec._ann_indexes(rel oid) RETURNS TABLE (
    index_oid oid, index_name name, partial boolean, opclass name, attnum smallint
) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT i.indexrelid, c.relname, i.indpred IS NOT NULL, o.opcname, i.indkey[0]
    FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_opclass AS o ON o.oid = i.indclass[0]
    JOIN pg_catalog.pg_am AS m ON m.oid = o.opcmethod AND m.amname IN ('hnsw', 'ivfflat')
    -- What Postgres itself brings has the numbers below 12000, so most indexes need no further look. Not
    -- 16384: an extension made in single-user mode, for an image, has numbers in between.
    WHERE i.indrelid = rel AND i.indclass[0] >= 12000 AND i.indisvalid AND i.indislive;
END;

-- One way to find candidates for a column.
DO $do$
BEGIN
    IF pg_catalog.to_regtype('sqlvec._way') IS NULL THEN
        CREATE TYPE sqlvec._way AS (
            way              text,  -- 'source', the name of a derived column, 'expression:' and a kind
            kind             text,  -- 'source' or the kind of encoder
            levels           int,   -- of a binary code
            rank             int,   -- codes in a column before expressions before the column itself
            metric           text,  -- of the search it serves; NULL where any will do
            index_name       name,  -- NULL for a derived column without an index
            partial          boolean,
            column_used      name,  -- NULL for an expression
            encoder          text,  -- of the column
            expression       text,
            query_expression text,  -- the code of the query $2; NULL for the query itself or what the encoder makes of it
            code_metric      text   -- of the index
        );
    END IF;
END
$do$;

-- Ways that have a valid HNSW or IVFFlat index, and derived columns that have none, in order of
-- preference. Every search asks this, so it takes one pass over the few indexes of the table, and has
-- catalogs read by key even where they are small enough that the planner would read them whole.
CREATE OR REPLACE FUNCTION sqlvec._ways(rel oid, column_name text, attnum smallint, typmod int) RETURNS sqlvec._way[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off
AS $body$
DECLARE
    v_row record;
    v_metric text;
    v_ways sqlvec._way[] := '{}';
BEGIN
    FOR v_row IN
        SELECT i.index_oid, i.index_name, i.partial, i.opclass, i.attnum,
               d.target_column, d.encoder, d.kind, d.levels, d.code_type, d.metric
        FROM (SELECT m.* FROM sqlvec._maintained_of(rel, column_name, _ways.attnum, typmod) AS m
              WHERE m.kind <> 'hubness') AS d -- which is searched for itself, with queries of its own
        FULL JOIN sqlvec._ann_indexes(rel) AS i ON i.attnum = d.target_attnum
        ORDER BY d.target_column IS NULL, i.attnum > 0, i.index_name
    LOOP
        IF v_row.target_column IS NOT NULL THEN
            v_metric := CASE v_row.code_type WHEN 'bit' THEN 'hamming' ELSE v_row.metric END;
            v_ways := v_ways || ROW(v_row.target_column, v_row.kind, v_row.levels, 1, v_row.metric,
                CASE WHEN v_row.opclass = sqlvec._opclass(v_row.code_type, v_metric) THEN v_row.index_name END,
                v_row.partial, v_row.target_column, v_row.encoder, NULL, NULL, v_metric)::sqlvec._way;
        ELSIF v_row.attnum = _ways.attnum THEN
            v_metric := sqlvec._opclass_metric(v_row.opclass);
            v_ways := v_ways || ROW('source', 'source', 1, 3, v_metric, v_row.index_name, v_row.partial, column_name, NULL, NULL, NULL, v_metric)::sqlvec._way;
        ELSIF v_row.attnum = 0 THEN
            v_metric := sqlvec._opclass_metric(v_row.opclass);
            v_ways := v_ways || ARRAY(
                SELECT ROW(w.way, w.kind, 1, 2, CASE WHEN w.kind <> 'binary' THEN v_metric END, v_row.index_name, v_row.partial,
                           NULL, NULL, w.expression, w.query_expression, v_metric)::sqlvec._way
                FROM sqlvec._expression_ways(rel, column_name) AS w
                WHERE w.expression = pg_get_indexdef(v_row.index_oid, 1, false));
        END IF;
    END LOOP;
    RETURN v_ways;
END
$body$;

-- The metric a search uses when it names none: the one that derived columns of the column were
-- declared for, else that of its indexes, where there is just one; cosine (hamming for bits) where
-- nothing says otherwise.
CREATE OR REPLACE FUNCTION sqlvec._default_metric(rel oid, column_name text, type_name text, ways sqlvec._way[]) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_way sqlvec._way;
    v_rank int;
    v_metric text;
    v_metrics text[] := '{}';
BEGIN
    FOREACH v_way IN ARRAY ways LOOP
        CONTINUE WHEN v_way.metric IS NULL OR v_way.metric = ANY (v_metrics) OR (v_rank = 1 AND v_way.rank > 1);
        v_rank := v_way.rank;
        v_metrics := v_metrics || v_way.metric;
    END LOOP;
    IF cardinality(v_metrics) > 1 THEN
        RAISE EXCEPTION 'column "%" of table % is indexed for several metrics: %',
            column_name, sqlvec._qualified(rel), array_to_string(v_metrics, ', ')
            USING ERRCODE = 'ambiguous_parameter', HINT = 'Name one: metric => ''cosine''.';
    END IF;
    IF v_metrics <> '{}' THEN
        RETURN v_metrics[1];
    ELSIF type_name = 'bit' THEN
        RETURN 'hamming';
    ELSIF type_name IN ('vector', 'halfvec') AND EXISTS (SELECT FROM sqlvec.encoder AS e WHERE e.kind IN ('fde', 'hubness')) THEN
        -- The norm of these codes says something.
        v_metric := (SELECT d.metric FROM sqlvec._derived_of(rel) AS d WHERE d.kind IN ('fde', 'hubness') AND d.target_column = column_name LIMIT 1);
    END IF;
    RETURN coalesce(v_metric, 'cosine');
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.plan_index(rel regclass, column_name text, metric text = NULL) RETURNS TABLE (
    name text, method text, opclass text, statement text, note text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record := sqlvec._column(rel, column_name);
    v_ways sqlvec._way[] := sqlvec._ways(rel, column_name, v_source.attnum, coalesce(v_source.dimensions, -1));
    v_metric text;
    v_partitioned boolean := (SELECT c.relkind = 'p' FROM pg_class AS c WHERE c.oid = rel);
    v_way record;
    v_index text;
    v_limit int;
BEGIN
    FOR v_way IN
        SELECT d.target_column FROM sqlvec._derived_of(rel) AS d
        WHERE column_name = ANY (d.source_columns || d.target_columns) AND NOT sqlvec._has_unfinished_index(rel, d.target_column, d.encoded_columns)
    LOOP
        name := 'unfinished'; method := 'btree'; opclass := NULL;
        statement := sqlvec._unfinished_index_sql(rel, v_way.target_column, true);
        note := 'lets a search see at once that every row has its code';
        RETURN NEXT;
    END LOOP;
    FOR v_way IN
        SELECT coalesce(d.target_columns[2], d.source_columns[1]) AS terms FROM sqlvec._derived_of(rel) AS d
        WHERE d.kind = 'bm25' AND d.maintained AND column_name = ANY (d.source_columns || d.target_columns)
    LOOP
        name := v_way.terms; method := 'gin'; opclass := 'tsvector_ops';
        statement := sqlvec._gin_index_sql(rel, v_way.terms, true);
        note := CASE WHEN sqlvec._has_gin(rel, v_way.terms) THEN 'is there already'
                     WHEN v_partitioned THEN 'Postgres refuses CONCURRENTLY on a partitioned table; "sqlvec index build" builds partition by partition' END;
        RETURN NEXT;
    END LOOP;
    IF method = 'gin' THEN
        RETURN;
    ELSIF v_source.type_name NOT IN ('vector', 'halfvec', '_vector', '_halfvec', 'bit', 'sparsevec') THEN
        IF EXISTS (SELECT FROM sqlvec._derived_of(rel) AS d WHERE column_name = ANY (d.source_columns || d.target_columns)) THEN
            RETURN;
        END IF;
        RAISE EXCEPTION 'column "%" of table % is of type %, not vector, halfvec, sparsevec or bit(n)',
            column_name, sqlvec._qualified(rel), format_type(v_source.type_oid, NULL)
            USING ERRCODE = 'datatype_mismatch',
                  HINT = 'A column of texts is indexed after sqlvec.add_bm25, one of multi-vectors after sqlvec.add_fde.';
    END IF;
    v_metric := sqlvec._checked_metric(
        coalesce(metric, sqlvec._default_metric(rel, column_name, v_source.type_name, v_ways)), v_source.type_name);
    FOR v_way IN
        SELECT 'source' AS way, quote_ident(column_name) AS expression, column_name AS stem,
               v_source.type_name::text AS code_type, v_source.dimensions, v_source.dimensions AS source_dimensions
        WHERE v_source.type_name NOT IN ('_vector', '_halfvec')
        UNION ALL
        SELECT d.target_column, quote_ident(d.target_column), d.target_column, d.code_type, d.code_dimensions, d.dimensions
        FROM sqlvec._derived_of(rel) AS d
        WHERE d.source_column = plan_index.column_name AND d.kind NOT IN ('pool', 'centroid', 'hubness') AND d.metric = v_metric AND d.maintained
        UNION ALL
        SELECT x.way, x.expression, column_name || '_' || x.kind || '_expression', x.code_type, x.dimensions, x.dimensions
        FROM sqlvec._expression_ways(rel, column_name) AS x
    LOOP
        name := v_way.way; method := 'hnsw'; note := NULL;
        opclass := sqlvec._opclass(v_way.code_type, CASE WHEN v_way.code_type = 'bit' AND v_metric <> 'jaccard' THEN 'hamming' ELSE v_metric END);
        v_limit := CASE v_way.code_type WHEN 'vector' THEN 2000 WHEN 'halfvec' THEN 4000 WHEN 'bit' THEN 64000 END;
        v_index := format('ix_%s_%s', (SELECT c.relname FROM pg_class AS c WHERE c.oid = rel), v_way.stem);
        -- One for another metric may have the name.
        IF EXISTS (SELECT FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_opclass AS o ON o.oid = i.indclass[0]
                   WHERE i.indrelid = rel AND c.relname = sqlvec._name(v_index || '_hnsw') AND o.opcname <> plan_index.opclass) THEN
            v_index := v_index || '_' || v_metric;
        END IF;
        statement := format('CREATE INDEX CONCURRENTLY %I ON %s USING hnsw (%s %I.%I)', sqlvec._index_name(rel, v_index || '_hnsw'),
            sqlvec._qualified(rel), v_way.expression, sqlvec._vector_schema(), opclass);
        IF v_way.dimensions IS NULL AND v_way.code_type <> 'sparsevec' THEN
            statement := NULL;
            note := format('column "%s" names no dimensions, which an index needs', column_name);
        ELSIF v_way.dimensions > v_limit THEN
            statement := NULL;
            note := format('%s dimensions are over the limit of %s; %s', v_way.dimensions, v_limit,
                CASE WHEN v_way.source_dimensions < v_way.dimensions THEN format('"levels" up to %s fit', v_limit / v_way.source_dimensions)
                     WHEN v_way.dimensions <= 4000 THEN 'encoders "halfvec" and "binary" fit' ELSE 'encoder "binary" fits, "truncate" may' END);
        ELSIF EXISTS (SELECT FROM unnest(v_ways) AS x
                      WHERE x.way = v_way.way AND x.index_name IS NOT NULL AND coalesce(x.metric, v_metric) = v_metric AND NOT x.partial) THEN
            note := 'is there already';
        ELSIF v_partitioned THEN
            note := 'Postgres refuses CONCURRENTLY on a partitioned table; "sqlvec index build" builds partition by partition';
        END IF;
        RETURN NEXT;
    END LOOP;
END
$body$;

COMMENT ON FUNCTION sqlvec.plan_index(regclass, text, text) IS
    'Indexes that would serve searches on a column, each with its CREATE INDEX CONCURRENTLY: on the column, on each derived column, on each code that is a plain expression; for BM25 the GIN index on its tsvector.';
