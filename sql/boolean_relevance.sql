-- sqlvec.boolean_relevance: AND, OR and NOT over the relevance to several queries.
--
-- An embedding hardly knows AND and OR, and NOT least of all: "trees without fruit" lies near fruit
-- (BoolQuestions; Zhang and others, Findings of EMNLP 2024). Here every part of a question is a query of
-- its own, a relevance model makes probabilities of its cosines, and these are combined.

-- The queries of an expression that can find rows, those under an even number of NOTs. An error where it
-- is no expression over so many queries.
CREATE OR REPLACE FUNCTION sqlvec._boolean_finders(expression jsonb, queries int, negated boolean = false, depth int = 1) RETURNS int[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_hint CONSTANT text := 'E.g. {"and": [1, {"not": 2}]}: an object with one of the keys and, or, not; numbers are positions in the list, from 1.';
    v_operator text;
    v_operands jsonb;
    v_operand jsonb;
    v_number numeric;
    v_finders int[] := '{}';
BEGIN
    IF expression IS NULL THEN
        RAISE EXCEPTION 'the expression is NULL' USING ERRCODE = 'null_value_not_allowed', HINT = v_hint;
    ELSIF depth > 100 THEN
        RAISE EXCEPTION 'the expression is nested deeper than 100 operators' USING ERRCODE = 'program_limit_exceeded';
    ELSIF jsonb_typeof(expression) = 'number' THEN
        v_number := expression::numeric;
        IF v_number NOT BETWEEN 1 AND queries OR v_number <> trunc(v_number) THEN
            RAISE EXCEPTION 'the expression names query %, there are %', v_number, queries USING ERRCODE = 'invalid_parameter_value', HINT = v_hint;
        END IF;
        RETURN CASE WHEN negated THEN '{}' ELSE ARRAY[v_number::int] END;
    ELSIF jsonb_typeof(expression) <> 'object' OR (SELECT count(*) FROM jsonb_object_keys(expression)) <> 1 THEN
        RAISE EXCEPTION 'this is no expression: %', left(expression::text, 200) USING ERRCODE = 'invalid_parameter_value', HINT = v_hint;
    END IF;
    SELECT e.key, e.value INTO v_operator, v_operands FROM jsonb_each(expression) AS e;
    IF v_operator = 'not' THEN
        RETURN sqlvec._boolean_finders(v_operands, queries, NOT negated, depth + 1);
    ELSIF v_operator NOT IN ('and', 'or') THEN
        RAISE EXCEPTION 'unknown operator "%" in the expression', v_operator USING ERRCODE = 'invalid_parameter_value', HINT = v_hint;
    ELSIF jsonb_typeof(v_operands) <> 'array' OR v_operands = '[]' THEN
        RAISE EXCEPTION 'operator "%" takes a list that is not empty, not %', v_operator, left(v_operands::text, 200)
            USING ERRCODE = 'invalid_parameter_value', HINT = v_hint;
    END IF;
    FOR v_operand IN SELECT jsonb_array_elements(v_operands) LOOP
        v_finders := v_finders || sqlvec._boolean_finders(v_operand, queries, negated, depth + 1);
    END LOOP;
    RETURN ARRAY(SELECT DISTINCT f FROM unnest(v_finders) AS f ORDER BY f);
END
$body$;

-- The relevance of many rows. `relevances` holds that of all rows to query 1, then to query 2, and so on.
CREATE OR REPLACE FUNCTION sqlvec._boolean_relevances(expression jsonb, relevances float8[], hits int, combine text) RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_operator text;
    v_operands jsonb;
    v_operand jsonb;
    v_found float8[];
    v_next float8[];
BEGIN
    IF jsonb_typeof(expression) = 'number' THEN
        RETURN relevances[(expression::int - 1) * hits + 1 : expression::int * hits];
    END IF;
    SELECT e.key, e.value INTO v_operator, v_operands FROM jsonb_each(expression) AS e;
    IF v_operator = 'not' THEN
        RETURN ARRAY(SELECT 1 - p FROM unnest(sqlvec._boolean_relevances(v_operands, relevances, hits, combine)) AS p);
    END IF;
    FOR v_operand IN SELECT jsonb_array_elements(v_operands) LOOP
        v_next := sqlvec._boolean_relevances(v_operand, relevances, hits, combine);
        v_found := CASE WHEN v_found IS NULL THEN v_next ELSE ARRAY(
            SELECT CASE WHEN t.a IS NULL OR t.b IS NULL THEN NULL
                        WHEN combine = 'minimum' THEN CASE v_operator WHEN 'and' THEN least(t.a, t.b) ELSE greatest(t.a, t.b) END
                        WHEN v_operator = 'and' THEN sqlvec._flushed(t.a) * sqlvec._flushed(t.b)
                        ELSE t.a + t.b * (1 - t.a) END
            FROM unnest(v_found, v_next) AS t (a, b)) END;
    END LOOP;
    RETURN v_found;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._check_combine(combine text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF combine IS NULL OR combine NOT IN ('product', 'minimum') THEN
        RAISE EXCEPTION 'combine is product or minimum, not "%"', combine USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.boolean_relevance(expression jsonb, relevance float8[], combine text = 'product') RETURNS float8
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF array_ndims(relevance) > 1 THEN
        RAISE EXCEPTION 'relevance is a list, not an array of % dimensions', array_ndims(relevance) USING ERRCODE = 'array_subscript_error';
    ELSIF EXISTS (SELECT FROM unnest(relevance) AS r WHERE r NOT BETWEEN 0 AND 1) THEN
        RAISE EXCEPTION 'relevance holds a number that is no probability from 0 to 1' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM sqlvec._check_combine(combine), sqlvec._boolean_finders(expression, coalesce(cardinality(relevance), 0));
    RETURN (sqlvec._boolean_relevances(expression, ARRAY(SELECT r FROM unnest(relevance) AS r), 1, combine))[1];
END
$body$;

COMMENT ON FUNCTION sqlvec.boolean_relevance(jsonb, float8[], text) IS
    'Relevance to a question that is made of several, from those to each: expression is JSON such as {"and": [1, {"not": 2}]} or {"or": [1, 2]} whose numbers are positions in the list relevance, from 1. combine product takes them as independent: and is the product, or is 1 - the product of 1 - p; minimum takes the least and the largest. not is 1 - p in both. NULL where one that is needed is NULL.';
