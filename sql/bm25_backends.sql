-- BM25 indexes of other extensions, as finders of candidates. Scores, and what a query means, stay
-- sqlvec's own: what such an index finds is matched and scored like everything else.

-- The BM25 index of an extension that serves a column, NULL columns where there is none. All of them
-- call their access method bm25: the extension it belongs to tells them apart.
CREATE OR REPLACE FUNCTION sqlvec._bm25_native_index(
    rel oid, columns name[], backend text, OUT extension name, OUT index_oid oid, OUT column_name name, OUT options text[]
) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT e.extname, i.indexrelid, a.attname, c.reloptions
    FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname = 'bm25'
    JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_catalog.pg_am'::regclass AND d.objid = m.oid AND d.deptype = 'e'
    JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = rel AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = rel AND i.indisvalid AND i.indpred IS NULL
      AND e.extname = CASE backend WHEN 'paradedb' THEN 'pg_search' ELSE backend END
      -- VectorChord indexes a column of its own type, the others the text.
      AND (a.attname = ANY (columns) OR e.extname = 'vchord_bm25')
    ORDER BY c.relname
    LIMIT 1;
END;

-- How rows `alias` are found through such an index: a condition and an order over the words in $7.
-- `place` is the schema of the extension's operators, `key` the key column of a ParadeDB index,
-- `tokenizer` the one that filled a column of VectorChord.
CREATE OR REPLACE FUNCTION sqlvec._bm25_native_sql(
    backend text, alias text, column_name text, index_name text, place text, key text, tokenizer text,
    OUT condition text, OUT ordering text
) LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    condition := 'true';
    CASE backend
    WHEN 'pg_textsearch' THEN
        ordering := format('%s.%I OPERATOR(%I.<@>) %3$I.to_bm25query($7, %L)', alias, column_name, place, index_name);
    WHEN 'paradedb' THEN
        condition := format('%s.%I OPERATOR(%I.|||) $7', alias, column_name, place);
        ordering := format('pdb.score(%s.%I) DESC', alias, key);
    WHEN 'vchord_bm25' THEN
        ordering := format('%s.%I OPERATOR(%I.<&>) %3$I.to_bm25query(%L::pg_catalog.regclass, tokenizer_catalog.tokenize($7, %L)::%3$I.bm25vector)',
                           alias, column_name, place, index_name, tokenizer);
    END CASE;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._check_backend(backend text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF backend IS NULL OR backend NOT IN ('auto', 'sqlvec', 'pg_textsearch', 'paradedb', 'vchord_bm25') THEN
        RAISE EXCEPTION 'backend "%" is unknown', backend
            USING ERRCODE = 'invalid_parameter_value', HINT = 'There are: auto, sqlvec, pg_textsearch, paradedb, vchord_bm25.';
    END IF;
END
$body$;

-- The native index that a search uses: the one asked for, or with auto a pg_textsearch index of the
-- same configuration, k1 and b, which ranks alike. The other two split text in ways of their own.
-- NULL columns: none.
CREATE OR REPLACE FUNCTION sqlvec._bm25_native(
    rel oid, derived sqlvec._derived, backend text, plain boolean, alias text, OUT name text, OUT condition text, OUT ordering text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_index record;
    v_place name;
    v_tokenizers text[];
    v_options jsonb;
BEGIN
    IF backend = 'sqlvec' OR backend = 'auto' AND NOT (plain AND EXISTS (SELECT FROM pg_am AS m WHERE m.amname = 'bm25')) THEN
        RETURN;
    END IF;
    SELECT * INTO v_index FROM sqlvec._bm25_native_index(rel, derived.source_columns, CASE backend WHEN 'auto' THEN 'pg_textsearch' ELSE backend END);
    v_options := (SELECT coalesce(jsonb_object_agg(split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)), '{}') FROM unnest(v_index.options) AS o);
    IF backend = 'auto' THEN
        IF v_index.index_oid IS NULL OR cardinality(derived.source_columns) > 1
           OR (v_options ->> 'text_config')::regconfig IS DISTINCT FROM sqlvec._bm25_config(derived.options)::regconfig
           OR coalesce((v_options ->> 'k1')::float8, 1.2) <> (derived.options ->> 'k1')::float8
           OR coalesce((v_options ->> 'b')::float8, 0.75) <> (derived.options ->> 'b')::float8 THEN
            RETURN;
        END IF;
    ELSIF v_index.index_oid IS NULL THEN
        RAISE EXCEPTION 'no index of % serves column "%" of table %', backend, array_to_string(derived.source_columns, ', '), sqlvec._qualified(rel)
            USING ERRCODE = 'undefined_object', HINT = 'Use backend => ''sqlvec'', or build one.';
    END IF;
    name := CASE backend WHEN 'auto' THEN 'pg_textsearch' ELSE backend END;
    SELECT n.nspname INTO v_place
    FROM pg_operator AS o JOIN pg_namespace AS n ON n.oid = o.oprnamespace
    JOIN pg_depend AS d ON d.classid = 'pg_operator'::regclass AND d.objid = o.oid AND d.deptype = 'e'
    JOIN pg_extension AS e ON e.oid = d.refobjid
    WHERE e.extname = v_index.extension AND o.oprname = CASE name WHEN 'pg_textsearch' THEN '<@>' WHEN 'paradedb' THEN '|||' ELSE '<&>' END
    LIMIT 1;
    IF name = 'vchord_bm25' THEN
        v_tokenizers := ARRAY[nullif(current_setting('sqlvec.vchord_tokenizer', true), '')];
        IF v_tokenizers[1] IS NULL THEN
            RAISE EXCEPTION 'which tokenizer filled column "%"?', v_index.column_name
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Say it: SET sqlvec.vchord_tokenizer = ''...'';';
        END IF;
    END IF;
    SELECT s.condition, s.ordering INTO condition, ordering
    FROM sqlvec._bm25_native_sql(name, alias, v_index.column_name, sqlvec._qualified(v_index.index_oid), v_place,
                                 v_options ->> 'key_field', v_tokenizers[1]) AS s;
END
$body$;
