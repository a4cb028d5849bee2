-- Approximate indexes on a vector column: which there are, and which could be built.

-- Ways to find candidates for a column: through itself, through each derived column, through each
-- expression that is a code. `expression` is what the index holds, over the bare table.
CREATE OR REPLACE FUNCTION sqlvec._ways(rel oid, column_name text, metric text) RETURNS TABLE (
    way text,             -- 'source', the name of the derived column, or the kind of the expression
    kind text,
    column_used name,     -- NULL for an expression
    expression text,      -- as pg_get_indexdef prints it under search_path pg_catalog
    query_expression text,-- code of the query $2
    code_metric text,
    opclass text,
    dimensions int
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record := sqlvec._column(rel, column_name);
    v_schema name := sqlvec._vector_schema();
    v_derived record;
BEGIN
    way := 'source'; kind := 'source'; column_used := column_name; expression := quote_ident(column_name);
    query_expression := '$2'; code_metric := metric; opclass := sqlvec._opclass(v_source.type_name, metric);
    dimensions := v_source.dimensions;
    RETURN NEXT;
    IF v_source.type_name NOT IN ('vector', 'halfvec') THEN
        RETURN;
    END IF;
    FOR v_derived IN
        SELECT d.* FROM sqlvec._derived_of(rel) AS d
        WHERE d.source_column = column_name AND d.metric = _ways.metric AND d.maintained
          AND sqlvec._has_column(rel, d.target_column)
        ORDER BY d.id
    LOOP
        way := v_derived.target_column; kind := v_derived.kind; column_used := v_derived.target_column;
        expression := quote_ident(v_derived.target_column);
        query_expression := format('(SELECT %s)', sqlvec._encode_expression(v_derived.encoder, 'sqlvec._as_vector($2)'));
        code_metric := CASE v_derived.code_type WHEN 'bit' THEN 'hamming' ELSE metric END;
        opclass := sqlvec._opclass(v_derived.code_type, code_metric);
        dimensions := v_derived.code_dimensions;
        RETURN NEXT;
    END LOOP;
    -- Codes that are one immutable pgvector expression need no column. They are known by their
    -- text; for Matryoshka prefixes the index itself tells the number of dimensions.
    column_used := NULL;
    IF v_source.dimensions IS NULL THEN
        RETURN;
    END IF;
    IF v_source.type_name = 'vector' THEN
        way := 'expression:halfvec'; kind := 'halfvec'; dimensions := v_source.dimensions;
        expression := format('((%I)::%I.halfvec(%s))', column_name, v_schema, dimensions);
        query_expression := '(SELECT sqlvec._halfvec($2))';
        code_metric := metric; opclass := sqlvec._opclass('halfvec', metric);
        RETURN NEXT;
    END IF;
    way := 'expression:binary'; kind := 'binary'; dimensions := v_source.dimensions;
    expression := format('((%I.binary_quantize(%I))::bit(%s))', v_schema, column_name, dimensions);
    query_expression := '(SELECT sqlvec._binary(sqlvec._as_vector($2)))';
    code_metric := 'hamming'; opclass := 'bit_hamming_ops';
    RETURN NEXT;
    IF v_source.type_name = 'vector' THEN
        FOR dimensions IN
            SELECT DISTINCT a.atttypmod FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indexrelid AND a.attnum = 1
            WHERE i.indrelid = rel AND i.indexprs IS NOT NULL AND a.atttypmod BETWEEN 1 AND v_source.dimensions
            ORDER BY a.atttypmod
        LOOP
            way := format('expression:truncate(%s)', dimensions); kind := 'truncate';
            expression := format('((%1$I.l2_normalize(%1$I.subvector(%2$I, 1, %3$s)))::%1$I.halfvec(%3$s))',
                                 v_schema, column_name, dimensions);
            query_expression := format('(SELECT sqlvec._truncate_halfvec(sqlvec._as_vector($2), %s))', dimensions);
            code_metric := metric; opclass := sqlvec._opclass('halfvec', metric);
            RETURN NEXT;
        END LOOP;
    END IF;
END
$body$;

-- The ways that have a valid HNSW or IVFFlat index, which answers for the whole table.
CREATE OR REPLACE FUNCTION sqlvec._indexed_ways(rel oid, column_name text, metric text) RETURNS TABLE (
    index_name name, method name, partial boolean, way text, kind text, column_used name, expression text,
    query_expression text, code_metric text, dimensions int
) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT c.relname, m.amname, i.indpred IS NOT NULL, w.way, w.kind, w.column_used, w.expression,
           w.query_expression, w.code_metric, w.dimensions
    FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname IN ('hnsw', 'ivfflat')
    JOIN pg_catalog.pg_opclass AS o ON o.oid = i.indclass[0]
    JOIN sqlvec._ways(rel, column_name, metric) AS w
      ON w.opclass = o.opcname AND w.expression = pg_catalog.pg_get_indexdef(i.indexrelid, 1, false)
    WHERE i.indrelid = rel AND i.indisvalid AND i.indislive
    -- Derived columns before expressions before the column itself: codes make the smaller index.
    ORDER BY i.indpred IS NOT NULL, w.way = 'source', w.column_used IS NULL, c.relname;
END;

-- The metric a search uses when it names none: the one that derived columns of the column were
-- declared for, else that of its indexes, where there is just one; cosine (hamming for bits) where
-- nothing says otherwise.
CREATE OR REPLACE FUNCTION sqlvec._default_metric(rel oid, column_name text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_type name := (sqlvec._column(rel, column_name)).type_name;
    v_metrics text[] := ARRAY(SELECT DISTINCT d.metric FROM sqlvec._derived_of(rel) AS d WHERE d.source_column = column_name);
BEGIN
    IF v_metrics = '{}' THEN
        v_metrics := ARRAY(
            SELECT DISTINCT m.metric
            FROM pg_index AS i
            JOIN pg_opclass AS o ON o.oid = i.indclass[0]
            JOIN pg_attribute AS a ON a.attrelid = rel AND a.attnum = i.indkey[0] AND a.attname = column_name
            JOIN unnest(ARRAY['l2', 'inner_product', 'cosine', 'l1', 'hamming', 'jaccard']) AS m (metric)
              ON o.opcname = sqlvec._opclass(v_type, m.metric)
            WHERE i.indrelid = rel AND i.indisvalid);
    END IF;
    IF cardinality(v_metrics) > 1 THEN
        RAISE EXCEPTION 'column "%" of table % is indexed for several metrics: %',
            column_name, sqlvec._qualified(rel), array_to_string(v_metrics, ', ')
            USING ERRCODE = 'ambiguous_parameter', HINT = 'Name one: metric => ''cosine''.';
    END IF;
    RETURN coalesce(v_metrics[1], CASE v_type WHEN 'bit' THEN 'hamming' ELSE 'cosine' END);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.plan_index(rel regclass, column_name text, metric text = NULL) RETURNS TABLE (
    name text, method text, opclass text, statement text, note text
) LANGUAGE plpgsql STABLE
AS $body$
DECLARE
    v_source record := sqlvec._column(rel, column_name);
    v_metric text := sqlvec._checked_metric(
        coalesce(metric, sqlvec._default_metric(rel, column_name)), v_source.type_name);
    v_way record;
    v_limit int;
BEGIN
    FOR v_way IN
        SELECT d.target_column FROM sqlvec._derived_of(rel) AS d
        WHERE d.source_column = column_name AND NOT sqlvec._has_unfinished_index(rel, d.target_column, d.source_column)
    LOOP
        name := 'unfinished'; method := 'btree'; opclass := NULL;
        statement := sqlvec._unfinished_index_sql(rel, v_way.target_column, true);
        note := 'lets a search see at once that every row has its code';
        RETURN NEXT;
    END LOOP;
    FOR v_way IN SELECT w.* FROM sqlvec._ways(rel, column_name, v_metric) AS w LOOP
        name := v_way.way; method := 'hnsw'; opclass := v_way.opclass; note := NULL;
        v_limit := CASE WHEN v_way.opclass LIKE 'vector%' THEN 2000 WHEN v_way.opclass LIKE 'halfvec%' THEN 4000
                        WHEN v_way.opclass LIKE 'bit%' THEN 64000 END;
        statement := pg_catalog.format('CREATE INDEX CONCURRENTLY %I ON %s USING hnsw (%s %I.%I)',
            sqlvec._name(pg_catalog.format('ix_%s_%s_hnsw', (SELECT c.relname FROM pg_catalog.pg_class AS c WHERE c.oid = rel),
                                           coalesce(v_way.column_used, column_name || '_' || v_way.kind))),
            sqlvec._qualified(rel), v_way.expression, sqlvec._vector_schema(), v_way.opclass);
        IF v_way.dimensions IS NULL AND v_way.opclass NOT LIKE 'sparsevec%' THEN
            statement := NULL;
            note := pg_catalog.format('column "%s" names no dimensions, which an index needs', column_name);
        ELSIF v_way.dimensions > v_limit THEN
            statement := NULL;
            note := pg_catalog.format('%s dimensions are over the limit of %s; %s', v_way.dimensions, v_limit,
                CASE WHEN v_way.dimensions <= 4000 THEN 'encoders "halfvec" and "binary" fit' ELSE 'encoder "binary" fits, "truncate" may' END);
        ELSIF EXISTS (SELECT FROM sqlvec._indexed_ways(rel, column_name, v_metric) AS x WHERE x.way = v_way.way) THEN
            note := 'is there already';
        END IF;
        RETURN NEXT;
    END LOOP;
END
$body$;

COMMENT ON FUNCTION sqlvec.plan_index(regclass, text, text) IS
    'Indexes that would serve vector_search on a column, each with its CREATE INDEX CONCURRENTLY: on the column, on each derived column, on each code that is a plain expression.';
