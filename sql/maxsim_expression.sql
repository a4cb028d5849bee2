-- MaxSim as an expression of the statement that searches.

CREATE OR REPLACE FUNCTION sqlvec._vectors(x halfvec[]) RETURNS vector[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN x::vector[];

-- One aggregate per query token goes over a document once, in half the time of sqlvec.maxsim, which cannot
-- know how many tokens a query has. Statements for many are long in planning; there, and where the number
-- is NULL, the function is called, which workers share.
CREATE OR REPLACE FUNCTION sqlvec._maxsim_expression(type_name text, tokens text, query text, query_tokens int) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_half boolean := type_name = '_halfvec';
    v_query text := CASE WHEN v_half THEN query ELSE format('sqlvec._vectors(%s)', query) END;
    v_sum text;
BEGIN
    IF query_tokens IS NULL OR query_tokens > 128 THEN
        RETURN format(CASE WHEN v_half THEN 'sqlvec.maxsim(%s, %s)' ELSE 'sqlvec.maxsim_vector(%s, %s)' END, tokens, v_query);
    END IF;
    v_sum := (SELECT string_agg(format('pg_catalog.min("sqlvec token".x %s (%s)[%s])', sqlvec._operator('inner_product'), v_query, n),
                                ' OPERATOR(pg_catalog.+) ' ORDER BY n) FROM generate_series(1, query_tokens) AS n);
    RETURN format('(SELECT %s(0::pg_catalog.float8 OPERATOR(pg_catalog.-) (%s)) FROM (SELECT pg_catalog.unnest(%s) AS x) AS "sqlvec token")',
                  CASE WHEN NOT v_half THEN 'sqlvec._number' END, v_sum, tokens);
END
$body$;
