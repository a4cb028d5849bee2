-- sqlvec.bm25_tsquery, bm25_query, bm25_score, bm25_headline: the parts of a BM25 search, one by one.

CREATE OR REPLACE FUNCTION sqlvec.bm25_tsquery(rel anyelement, column_name text, query text) RETURNS tsquery
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_derived sqlvec._derived := sqlvec._bm25_column(sqlvec._relation_of(pg_typeof(rel)), column_name);
    v_parsed record;
BEGIN
    v_parsed := sqlvec._parse_bm25(sqlvec._bm25_config(v_derived.options)::regconfig, query);
    RETURN sqlvec._bm25_condition(v_parsed.lexemes, v_parsed.required, v_parsed.excluded, v_parsed.prefixes);
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_tsquery(anyelement, text, text) IS
    'What a document must match to be found by sqlvec.bm25_search with this query, as a tsquery; NULL for a query that asks for nothing.';

CREATE OR REPLACE FUNCTION sqlvec.bm25_query(rel anyelement, column_name text, query text, tenant text = NULL) RETURNS sparsevec
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    q sqlvec._bm25_query := sqlvec._prepare_bm25(sqlvec._relation_of(pg_typeof(rel)), column_name, query, NULL, tenant);
BEGIN
    RETURN sqlvec._bm25_vector(coalesce((q).lexemes, '{}'), coalesce((q).weights, '{}'));
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_query(anyelement, text, text, text) IS
    'The weights of the words of a query, inverse document frequency times occurrences, as a vector: the BM25 score of a row is 0 - (body_bm25 <#> this).';

CREATE OR REPLACE FUNCTION sqlvec.bm25_maximum(rel anyelement, column_name text, query text, tenant text = NULL) RETURNS float8
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    q sqlvec._bm25_query := sqlvec._prepare_bm25(sqlvec._relation_of(pg_typeof(rel)), column_name, query, NULL, tenant);
BEGIN
    RETURN sqlvec._bm25_maximum(q);
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_maximum(anyelement, text, text, text) IS
    'The score that no document can exceed for this query: the sum of inverse document frequencies times k1 + 1. A share of it compares across queries, as sqlvec.relevance_score needs.';

CREATE OR REPLACE FUNCTION sqlvec.bm25_score(hit anyelement, column_name text, query text, tenant text = NULL) RETURNS float8
LANGUAGE plpgsql STABLE
AS $body$
DECLARE
    v_rel pg_catalog.oid := sqlvec._relation_of(pg_catalog.pg_typeof(hit));
    q sqlvec._bm25_query;
    v_tenant pg_catalog.name := (sqlvec._bm25_column(v_rel, column_name)).tenant_column;
    v_terms pg_catalog.text;
    v_score pg_catalog.float8;
BEGIN
    IF tenant IS NULL AND v_tenant IS NOT NULL THEN
        EXECUTE pg_catalog.format('SELECT ($1).%I::pg_catalog.text', v_tenant) INTO tenant USING hit;
        IF tenant IS NULL THEN
            RETURN NULL; -- belongs to nobody, and no statistics say how rare its words are
        END IF;
    END IF;
    q := sqlvec._prepare_bm25(v_rel, column_name, query, NULL, tenant);
    IF (q).condition IS NULL THEN
        RETURN 0;
    END IF;
    v_terms := sqlvec._bm25_tsvector_expression(
        ((q).derived).options, ARRAY(SELECT pg_catalog.format('($1).%I', c) FROM pg_catalog.unnest(((q).derived).source_columns) AS c));
    EXECUTE pg_catalog.concat('SELECT ', sqlvec._bm25_score_expression(((q).derived).options, v_terms))
    INTO v_score USING hit, NULL, NULL, NULL, (q).lexemes, (q).weights;
    RETURN v_score;
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_score(anyelement, text, text, text) IS
    'BM25 score of one row of a table (sqlvec.bm25_score(d, ''body'', ''words'') FROM doc AS d), computed from its text: 0 where no word of the query stands in it. Of phrases, + and - only the words count.';

CREATE OR REPLACE FUNCTION sqlvec.bm25_headline(hit anyelement, column_name text, query text, options text = '') RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_rel oid := sqlvec._relation_of(pg_typeof(hit));
    v_derived sqlvec._derived := sqlvec._bm25_column(v_rel, column_name, true);
    v_parsed record;
    v_condition tsquery;
    v_text text;
BEGIN
    IF (sqlvec._column(v_rel, column_name)).type_name = 'tsvector' OR column_name = ANY (v_derived.target_columns) THEN
        RAISE EXCEPTION 'column "%" holds no text to highlight', column_name
            USING ERRCODE = 'datatype_mismatch',
                  HINT = 'Name the text column, or use ts_headline with sqlvec.bm25_tsquery.';
    END IF;
    v_parsed := sqlvec._parse_bm25(sqlvec._bm25_config(v_derived.options)::regconfig, query);
    EXECUTE format('SELECT ($1).%I::text', column_name) INTO v_text USING hit;
    -- Whatever scored, and phrases where they stand.
    v_condition := sqlvec._bm25_condition(v_parsed.lexemes, NULL, NULL, v_parsed.prefixes);
    v_condition := coalesce(v_condition || v_parsed.required, v_condition, v_parsed.required);
    RETURN CASE WHEN v_condition IS NULL THEN v_text
                ELSE ts_headline(sqlvec._bm25_config(v_derived.options)::regconfig, v_text, v_condition, options) END;
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_headline(anyelement, text, text, text) IS
    'The words of the query in text column column_name of a row, highlighted by ts_headline with its options. Select it from the hits of a search, so that it runs on those alone.';
