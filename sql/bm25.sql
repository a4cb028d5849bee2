-- sqlvec.add_bm25: declare a text column searchable by BM25.

-- The tsvector of a text. Where it would be too long for Postgres, what comes after the first part
-- keeps its words but loses their positions, and words after about 600 kB of different ones are lost.
CREATE OR REPLACE FUNCTION sqlvec._bm25_long_tsvector(config regconfig, body text) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $body$
DECLARE
    v_terms tsvector := '';
    v_piece text;
    v_start int := 1;
BEGIN
    BEGIN
        RETURN to_tsvector(config, body);
    EXCEPTION WHEN program_limit_exceeded THEN
        NULL;
    END;
    WHILE v_start <= length(body) AND pg_column_size(v_terms) < 600000 LOOP
        v_piece := substr(body, v_start, 50000);
        IF v_start + 50000 <= length(body) AND v_piece ~ '\s' THEN
            v_piece := regexp_replace(v_piece, '\S*$', ''); -- up to the last space
        END IF;
        v_terms := v_terms || CASE WHEN v_start = 1 THEN to_tsvector(config, v_piece) ELSE strip(to_tsvector(config, v_piece)) END;
        v_start := v_start + length(v_piece);
    END LOOP;
    RETURN v_terms;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._bm25_tsvector(config regconfig, body text) RETURNS tsvector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN octet_length(body) <= 100000 THEN to_tsvector(config, body) ELSE sqlvec._bm25_long_tsvector(config, body) END;

-- The tsvector of several texts, each under its label. NULL where all of them are.
CREATE OR REPLACE FUNCTION sqlvec._bm25_fields(config regconfig, labels "char"[], bodies text[]) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_terms tsvector;
    v_field tsvector;
BEGIN
    FOR n IN 1 .. cardinality(bodies) LOOP
        CONTINUE WHEN bodies[n] IS NULL;
        v_field := setweight(sqlvec._bm25_tsvector(config, bodies[n]), labels[n]);
        v_terms := CASE WHEN v_terms IS NULL THEN v_field
                        WHEN pg_column_size(v_terms) + pg_column_size(v_field) < 900000 THEN v_terms || v_field
                        ELSE v_terms END;
    END LOOP;
    RETURN v_terms;
END
$body$;

-- The tsvector expression of an encoder over the expressions of its sources. Without its configuration
-- there are no codes, but writes go on.
CREATE OR REPLACE FUNCTION sqlvec._bm25_tsvector_expression(options jsonb, arguments text[]) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE WHEN (options ->> 'tsvector')::boolean THEN arguments[1]
                WHEN c.name IS NULL THEN 'NULL::pg_catalog.tsvector'
                WHEN options -> 'labels' = 'null'
                THEN format('sqlvec._bm25_tsvector(%L::pg_catalog.regconfig, (%s)::pg_catalog.text)', c.name, arguments[1])
                ELSE format('sqlvec._bm25_fields(%L::pg_catalog.regconfig, %L, ARRAY[%s])', c.name,
                            (SELECT array_agg(l) FROM jsonb_array_elements_text(options -> 'labels') AS l),
                            (SELECT string_agg(format('(%s)::pg_catalog.text', a), ', ') FROM unnest(arguments) AS a)) END
    FROM (SELECT sqlvec._bm25_config(options, true) AS name) AS c;
END;

-- Weights of the labels D, C, B, A as an SQL constant.
CREATE OR REPLACE FUNCTION sqlvec._bm25_weights(options jsonb) RETURNS real[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN options -> 'weights' <> 'null'
            THEN (SELECT array_agg(w::real) FROM jsonb_array_elements_text(options -> 'weights') AS w) END;

-- k1, b, mean length and weights as SQL constants. Rows of the catalog belong to whoever owns the table:
-- whatever they say, this is four numbers.
CREATE OR REPLACE FUNCTION sqlvec._bm25_constants(options jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN format('%s, %s, %s, %s', (options ->> 'k1')::numeric, (options ->> 'b')::numeric, (options ->> 'average_length')::numeric,
              coalesce(quote_literal(sqlvec._bm25_weights(options)::numeric[]::text), 'NULL'));

CREATE OR REPLACE FUNCTION sqlvec._bm25_expression(options jsonb, arguments text[]) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT format(CASE WHEN (options ->> 'tsvector')::boolean THEN '(sqlvec._bm25_document(%s, %s)).code'
                       ELSE 'sqlvec._bm25_document(%s, %s)' END,
                  sqlvec._bm25_tsvector_expression(options, arguments), sqlvec._bm25_constants(options));
END;

-- Labels and weights of fields: equal weights share a label, the heaviest gets A. An error for fields
-- that no four labels can tell apart.
CREATE OR REPLACE FUNCTION sqlvec._bm25_labels(fields jsonb, columns text[], OUT labels text[], OUT weights real[])
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_different real[];
BEGIN
    v_different := ARRAY(SELECT DISTINCT (fields ->> c)::real FROM unnest(columns) AS c ORDER BY 1 DESC);
    IF cardinality(v_different) > 4 THEN
        RAISE EXCEPTION 'fields have % different weights; a tsvector tells four apart', cardinality(v_different)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give some fields the same weight.';
    END IF;
    labels := ARRAY(SELECT chr(64 + array_position(v_different, (fields ->> c.name)::real))
                    FROM unnest(columns) WITH ORDINALITY AS c (name, position) ORDER BY c.position);
    weights := ARRAY(SELECT coalesce(v_different[n], 1) FROM generate_series(4, 1, -1) AS n);
END
$body$;

-- An error for anything but an object of positive numbers.
CREATE OR REPLACE FUNCTION sqlvec._check_fields(fields jsonb) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_name text;
    v_weight jsonb;
BEGIN
    IF jsonb_typeof(fields) <> 'object' OR fields = '{}' THEN
        RAISE EXCEPTION 'fields is a JSON object of columns and their weights, not %', fields
            USING ERRCODE = 'invalid_parameter_value', HINT = 'E.g. {"title": 2.0, "body": 1.0}.';
    END IF;
    FOR v_name, v_weight IN SELECT * FROM jsonb_each(fields) LOOP
        IF jsonb_typeof(v_weight) <> 'number' OR v_weight::text::numeric NOT BETWEEN 0.001 AND 1000 THEN
            RAISE EXCEPTION 'the weight of field "%" is a number from 0.001 to 1000, not %', v_name, v_weight
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
END
$body$;

-- Mean length of documents over a sample of at most about 1,000 rows; 100 terms where there are none.
CREATE OR REPLACE FUNCTION sqlvec._bm25_sample_length(rel oid, options jsonb, sources name[]) RETURNS float8
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_length float8;
    v_pages float8 := (SELECT sum(pg_relation_size(t.leaf)) FROM sqlvec._leaves(rel) AS t) / current_setting('block_size')::int;
BEGIN
    EXECUTE format('SELECT avg(nullif(sqlvec._bm25_length(%s, %L), 0)) FROM (SELECT t.* FROM %s AS t TABLESAMPLE SYSTEM (%s) LIMIT 1000) AS t',
                   sqlvec._bm25_tsvector_expression(options, ARRAY(SELECT format('t.%I', s) FROM unnest(sources) AS s)),
                   sqlvec._bm25_weights(options), sqlvec._qualified(rel), least(100, 20000 / greatest(v_pages, 1)))
    INTO v_length;
    RETURN coalesce(v_length, 100);
END
$body$;

-- Whether a valid GIN index stands on a column.
CREATE OR REPLACE FUNCTION sqlvec._has_gin(rel oid, column_name name) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_index AS i
        JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
        JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname = 'gin'
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = rel AND i.indisvalid AND i.indpred IS NULL AND a.attname = column_name);
END;

-- Every search reads the pending entries of the index, and every insert without them takes several
-- times as long: a short list of them.
CREATE OR REPLACE FUNCTION sqlvec._gin_index_sql(rel oid, column_name name, online boolean) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT format('CREATE INDEX %s%I ON %s USING gin (%I) WITH (gin_pending_list_limit = 512)',
                  CASE WHEN online AND c.relkind <> 'p' THEN 'CONCURRENTLY ' ELSE '' END,
                  sqlvec._index_name(rel, format('ix_%s_%s', c.relname, column_name)), sqlvec._qualified(rel), column_name)
    FROM pg_catalog.pg_class AS c WHERE c.oid = rel;
END;

CREATE OR REPLACE PROCEDURE sqlvec.add_bm25(
    rel regclass, column_name text, config regconfig = 'pg_catalog.english', k1 real = 1.2, b real = 0.75, target text = NULL,
    fields jsonb = NULL, tenant text = NULL
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_column record;
    v_column_type oid;
    v_sources text[];
    v_targets text[];
    v_labels record;
    v_options jsonb;
    v_encoder text;
    v_terms text;
    v_filled boolean;
BEGIN
    IF rel IS NULL OR config IS NULL OR k1 IS NULL OR b IS NULL THEN
        RAISE EXCEPTION 'add_bm25 needs a table, a text search configuration, k1 and b' USING ERRCODE = 'null_value_not_allowed';
    ELSIF NOT k1 BETWEEN 0 AND 100 THEN
        RAISE EXCEPTION 'k1 is a number from 0 to 100, not %', k1 USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT b BETWEEN 0 AND 1 THEN
        RAISE EXCEPTION 'b is a number from 0 to 1, not %', b USING ERRCODE = 'invalid_parameter_value';
    ELSIF column_name IS NULL AND fields IS NULL THEN
        RAISE EXCEPTION 'add_bm25 needs a column' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Name it, or several with their weights: fields => ''{"title": 2.0, "body": 1.0}''.';
    END IF;
    PERFORM sqlvec._require_table(rel);
    IF fields IS NOT NULL THEN
        PERFORM sqlvec._check_fields(fields);
    END IF;
    -- In the order of the table's columns; _column refuses one that is not there.
    v_sources := CASE WHEN column_name IS NULL THEN ARRAY(SELECT f FROM jsonb_object_keys(fields) AS f ORDER BY (sqlvec._column(rel, f)).attnum)
                      ELSE ARRAY[column_name] END;
    FOR n IN 1 .. cardinality(v_sources) LOOP
        v_column := sqlvec._column(rel, v_sources[n]);
        IF NOT (v_column.type_name = 'tsvector' AND cardinality(v_sources) = 1)
           AND (SELECT t.typcategory FROM pg_type AS t WHERE t.oid = v_column.type_oid) <> 'S' THEN
            RAISE EXCEPTION 'column "%" of table % is of type %, not %', v_sources[n], rel, format_type(v_column.type_oid, NULL),
                CASE WHEN cardinality(v_sources) = 1 THEN 'text or tsvector' ELSE 'text' END
                USING ERRCODE = 'datatype_mismatch';
        END IF;
    END LOOP;
    IF v_column.type_name = 'tsvector' AND fields IS NOT NULL THEN
        IF column_name IS NULL OR EXISTS (SELECT FROM jsonb_object_keys(fields) AS f WHERE f NOT IN ('A', 'B', 'C', 'D')) THEN
            RAISE EXCEPTION 'fields of tsvector column "%" are its labels A, B, C and D, not %', v_sources[1], fields
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Name the column itself as column_name.';
        END IF;
    ELSIF column_name IS NOT NULL AND fields IS NOT NULL THEN
        RAISE EXCEPTION 'give a column or fields, not both' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'A tsvector column takes both: its fields are the weights of its labels.';
    END IF;
    IF tenant IS NOT NULL THEN
        v_column_type := (sqlvec._column(rel, tenant)).type_oid;
        IF sqlvec._btree_operator(v_column_type, 3) IS NULL THEN
            RAISE EXCEPTION 'column "%" of table % is of type %, whose values cannot be compared', tenant, rel, format_type(v_column_type, NULL)
                USING ERRCODE = 'datatype_mismatch';
        END IF;
    END IF;

    v_options := jsonb_build_object(
        'config', (SELECT format('%I.%I', n.nspname, c.cfgname) FROM pg_ts_config AS c JOIN pg_namespace AS n ON n.oid = c.cfgnamespace
                   WHERE c.oid = config),
        'config_oid', config::oid, 'k1', k1, 'b', b, 'tsvector', v_column.type_name = 'tsvector', 'labels', NULL, 'weights', NULL);
    IF v_options ->> 'config' IS NULL THEN
        RAISE EXCEPTION 'text search configuration % does not exist', config USING ERRCODE = 'undefined_object';
    END IF;
    IF column_name IS NULL THEN
        v_labels := sqlvec._bm25_labels(fields, v_sources);
        v_options := v_options || jsonb_build_object('labels', v_labels.labels, 'weights', v_labels.weights);
    ELSIF fields IS NOT NULL THEN
        v_options := v_options || jsonb_build_object('weights', ARRAY(SELECT coalesce((fields ->> l)::real, 1) FROM unnest('{D,C,B,A}'::text[]) AS l));
    END IF;

    target := coalesce(target, sqlvec._name(array_to_string(v_sources, '_') || '_bm25'));
    v_targets := CASE WHEN v_column.type_name = 'tsvector' THEN ARRAY[target] ELSE ARRAY[target, sqlvec._name(target || '_tsv')] END;
    PERFORM sqlvec._claim_targets(rel, v_sources, v_targets);
    v_options := v_options || jsonb_build_object('average_length', sqlvec._bm25_sample_length(rel, v_options, v_sources));
    v_encoder := sqlvec._own_encoder_name(rel, target);
    INSERT INTO sqlvec.encoder (name, kind, dimensions, code_type, code_dimensions, options, owner)
    VALUES (v_encoder, 'bm25', NULL, 'sparsevec', 1000000000, v_options, sqlvec._owner(rel));

    v_filled := sqlvec._add_target(rel, target, v_encoder, 'sparsevec', 1000000000);
    IF cardinality(v_targets) = 2 THEN
        v_filled := sqlvec._add_target(rel, v_targets[2], v_encoder, 'tsvector', NULL) OR v_filled;
    END IF;
    PERFORM sqlvec._declare(rel, v_sources, v_targets, v_encoder, true, 'inner_product', v_filled, tenant);

    v_terms := CASE cardinality(v_targets) WHEN 2 THEN v_targets[2] ELSE v_sources[1] END;
    IF NOT sqlvec._has_gin(rel, v_terms)
       AND (SELECT sum(pg_relation_size(t.leaf)) FROM sqlvec._leaves(rel) AS t) <= 32 * 1024 * 1024 THEN
        EXECUTE sqlvec._gin_index_sql(rel, v_terms, false);
    END IF;
END
$body$;

COMMENT ON PROCEDURE sqlvec.add_bm25(regclass, text, regconfig, real, real, text, jsonb, text) IS
    'Declare text column `column_name`, or several with their weights in `fields`, searchable by BM25: adds sparsevec column `target` with the term weights and tsvector column `target`_tsv that finds them, kept by the trigger of the table; a small table gets its GIN index at once. A tsvector column of the application gets the weights only. tenant names a column whose values have statistics of their own. Then: CALL sqlvec.backfill, the index, CALL sqlvec.analyze_bm25.';
