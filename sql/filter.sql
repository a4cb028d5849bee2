-- The filter argument of the search functions: JSON to SQL with every value bound.

-- "schema".operator of a btree strategy (1 <, 2 <=, 3 =, 4 >=, 5 >) for a type: what its default
-- operator class says, so that citext and friends keep their meaning. NULL when there is none.
CREATE OR REPLACE FUNCTION sqlvec._btree_operator(type_oid oid, strategy int) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    -- The types that most columns have need no look.
    IF type_oid IN ('int8'::regtype, 'int4'::regtype, 'int2'::regtype, 'text'::regtype, 'varchar'::regtype, 'uuid'::regtype, 'bool'::regtype,
                    'date'::regtype, 'timestamptz'::regtype, 'timestamp'::regtype, 'numeric'::regtype, 'float8'::regtype, 'float4'::regtype) THEN
        RETURN format('OPERATOR(pg_catalog.%s)', (ARRAY['<', '<=', '=', '>=', '>'])[strategy]);
    END IF;
    RETURN (
        SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname)
        FROM pg_type AS t
        JOIN pg_opclass AS c ON c.opcdefault AND c.opcintype = CASE
                 -- Types that borrow the operator class of another.
                 WHEN t.typtype = 'e' THEN 'anyenum'::regtype
                 WHEN t.typtype = 'r' THEN 'anyrange'::regtype
                 WHEN t.typtype = 'c' THEN 'record'::regtype
                 WHEN t.typtype = 'm' THEN 'anymultirange'::regtype
                 WHEN t.typcategory = 'A' THEN 'anyarray'::regtype
                 ELSE t.oid END
        JOIN pg_am AS m ON m.oid = c.opcmethod AND m.amname = 'btree'
        JOIN pg_amop AS a ON a.amopfamily = c.opcfamily AND a.amopstrategy = strategy
                         AND a.amoplefttype = c.opcintype AND a.amoprighttype = c.opcintype
        JOIN pg_operator AS o ON o.oid = a.amopopr
        JOIN pg_namespace AS n ON n.oid = o.oprnamespace
        WHERE t.oid = type_oid);
END
$body$;

-- A JSON value as the input text of a Postgres type.
CREATE OR REPLACE FUNCTION sqlvec._json_text(value jsonb, type_oid oid) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
    WHEN type_oid IN ('pg_catalog.json'::regtype, 'pg_catalog.jsonb'::regtype) THEN value::text
    WHEN jsonb_typeof(value) = 'array'
        THEN (SELECT coalesce(array_agg(e), '{}') FROM jsonb_array_elements_text(value) AS e)::text
    ELSE value #>> '{}'
END;

-- An error that names the column when a bound value is not one of its type. Numbers that fit any
-- integer and text for text columns need no trial.
CREATE OR REPLACE FUNCTION sqlvec._check_value(bound text, value jsonb, type_oid oid, type_name text, column_name text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF type_oid IN ('text'::regtype, 'varchar'::regtype) OR (type_oid = 'bool'::regtype AND jsonb_typeof(value) = 'boolean') THEN
        RETURN;
    ELSIF type_oid IN ('int8'::regtype, 'int4'::regtype, 'int2'::regtype, 'numeric'::regtype, 'float8'::regtype, 'float4'::regtype)
        AND (CASE jsonb_typeof(value) WHEN 'number' THEN bound ~ '^-?[0-9]{1,4}$'
                                     WHEN 'array' THEN type_name LIKE '%[]' AND bound ~ '^\{-?[0-9]{1,4}(,-?[0-9]{1,4})*\}$' ELSE false END)
    THEN
        RETURN;
    ELSIF (SELECT t.typcategory = 'S' FROM pg_type AS t WHERE t.oid = type_oid) THEN
        RETURN;
    END IF;
    -- Apart, because an exception handler costs a subtransaction; which no parallel plan may have, hence no label.
    PERFORM sqlvec._try_value(bound, value, type_name, column_name);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._try_value(bound text, value jsonb, type_name text, column_name text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    EXECUTE format('SELECT $1::%s', type_name) USING bound;
EXCEPTION WHEN data_exception THEN
    RAISE EXCEPTION 'filter: % is not a value of column "%", which is of type %', value, column_name, type_name
        USING ERRCODE = 'invalid_parameter_value', DETAIL = SQLERRM;
END
$body$;

-- A JSON array with null among its values as SQL, each value bound by itself: whether the text of an array
-- can say NULL is a setting, array_nulls.
CREATE OR REPLACE FUNCTION sqlvec._array_with_nulls(
    value jsonb, array_type oid, column_name text, slot text, INOUT bound text[], OUT expression text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_type oid := (SELECT t.typelem FROM pg_type AS t WHERE t.oid = array_type);
    v_item jsonb;
    v_items text[] := '{}';
BEGIN
    FOR v_item IN SELECT * FROM jsonb_array_elements(value) LOOP
        IF v_item = 'null' THEN
            v_items := v_items || 'NULL'::text;
        ELSE
            bound := bound || sqlvec._json_text(v_item, v_type);
            PERFORM sqlvec._check_value(bound[cardinality(bound)], v_item, v_type, format_type(v_type, -1), column_name);
            v_items := v_items || format('((%s)[%s])::%s', slot, cardinality(bound), sqlvec._type_name(v_type));
        END IF;
    END LOOP;
    expression := format('ARRAY[%s]::%s', array_to_string(v_items, ', '), sqlvec._type_name(array_type));
END
$body$;

-- One comparison `column op value`; appends what it binds to `bound`.
CREATE OR REPLACE FUNCTION sqlvec._filter_comparison(
    rel oid, alias text, column_name text, op text, value jsonb, slot text, INOUT bound text[], OUT condition text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_column record := sqlvec._column(rel, column_name);
    v_type text := format_type(v_column.type_oid, -1); -- "bpchar", where "character" would cut to one
    -- Types of Postgres itself have the numbers below 10000.
    v_cast text := CASE WHEN v_column.type_oid < 10000::oid THEN 'pg_catalog.' || quote_ident(v_column.type_name) ELSE sqlvec._type_name(v_column.type_oid) END;
    v_left text := format('%I.%I', alias, column_name);
    v_strategy int := CASE op WHEN '$lt' THEN 1 WHEN '$lte' THEN 2 WHEN '$gte' THEN 4 WHEN '$gt' THEN 5 ELSE 3 END;
    v_operator text;
    v_kind text := jsonb_typeof(value);
    v_array record;
BEGIN
    IF op = '$is_null' THEN
        IF v_kind <> 'boolean' THEN
            RAISE EXCEPTION 'filter: "$is_null" of column "%" is true or false, not %', column_name, value
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        condition := format('%s IS %sNULL', v_left, CASE WHEN value = 'true' THEN '' ELSE 'NOT ' END);
        RETURN;
    ELSIF op IN ('$eq', '$ne') AND v_kind = 'null' THEN
        condition := format('%s IS %sNULL', v_left, CASE op WHEN '$eq' THEN '' ELSE 'NOT ' END);
        RETURN;
    ELSIF op = '$contains' THEN
        IF v_column.type_oid <> 'jsonb'::regtype AND (SELECT t.typcategory FROM pg_type AS t WHERE t.oid = v_column.type_oid) <> 'A' THEN
            RAISE EXCEPTION 'filter: "$contains" needs an array or jsonb column; "%" of table % is of type %',
                column_name, sqlvec._qualified(rel), v_type
                USING ERRCODE = 'datatype_mismatch';
        END IF;
        IF v_column.type_oid <> 'jsonb'::regtype AND value @> 'null' THEN
            v_array := sqlvec._array_with_nulls(CASE v_kind WHEN 'array' THEN value ELSE '[null]' END, v_column.type_oid, column_name, slot, bound);
            bound := v_array.bound;
            condition := format('%s OPERATOR(pg_catalog.@>) %s', v_left, v_array.expression);
            RETURN;
        END IF;
        bound := bound || sqlvec._json_text(CASE WHEN v_kind = 'array' OR v_column.type_oid = 'jsonb'::regtype
                                                 THEN value ELSE jsonb_build_array(value) END, v_column.type_oid);
        PERFORM sqlvec._check_value(bound[cardinality(bound)], value, v_column.type_oid, v_type, column_name);
        condition := format('%s OPERATOR(pg_catalog.@>) ((%s)[%s])::%s', v_left, slot, cardinality(bound), v_cast);
        RETURN;
    END IF;

    v_operator := sqlvec._btree_operator(v_column.type_oid, v_strategy);
    IF v_operator IS NULL THEN
        RAISE EXCEPTION 'filter: column "%" of table % is of type %, which has no comparison operators',
            column_name, sqlvec._qualified(rel), v_type
            USING ERRCODE = 'datatype_mismatch', HINT = 'Use where_sql for such a column.';
    ELSIF op = '$in' THEN
        IF (SELECT t.typcategory FROM pg_type AS t WHERE t.oid = v_column.type_oid) = 'A' THEN
            RAISE EXCEPTION 'filter: "$in" is not for array columns such as "%"', column_name
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Use $contains, or $or around equalities.';
        ELSIF v_kind <> 'array' THEN
            RAISE EXCEPTION 'filter: "$in" of column "%" needs a JSON array, not %', column_name, v_kind
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        -- No row equals null, which is left out; that of JSON is a value like any other.
        bound := bound || (SELECT coalesce(array_agg(sqlvec._json_text(e, v_column.type_oid)), '{}')
                           FROM jsonb_array_elements(value) AS e
                           WHERE e <> 'null' OR v_column.type_oid = 'jsonb'::regtype)::text;
        PERFORM sqlvec._check_value(bound[cardinality(bound)], value, v_column.type_oid, v_type || '[]', column_name);
        condition := format('%s %s ANY (((%s)[%s])::%s[])', v_left, v_operator, slot, cardinality(bound), v_cast);
        RETURN;
    ELSIF op = '$between' THEN
        IF v_kind <> 'array' OR jsonb_array_length(value) <> 2 THEN
            RAISE EXCEPTION 'filter: "$between" of column "%" needs a JSON array of two values', column_name
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        bound := bound || sqlvec._json_text(value -> 0, v_column.type_oid) || sqlvec._json_text(value -> 1, v_column.type_oid);
        PERFORM sqlvec._check_value(bound[cardinality(bound) - i], value -> (1 - i), v_column.type_oid, v_type, column_name)
        FROM generate_series(0, 1) AS i;
        condition := format('%1$s %2$s ((%4$s)[%5$s])::%7$s AND %1$s %3$s ((%4$s)[%6$s])::%7$s', v_left,
                            sqlvec._btree_operator(v_column.type_oid, 4), sqlvec._btree_operator(v_column.type_oid, 2),
                            slot, cardinality(bound) - 1, cardinality(bound), v_cast);
        RETURN;
    ELSIF op NOT IN ('$eq', '$ne', '$gt', '$gte', '$lt', '$lte') THEN
        RAISE EXCEPTION 'filter: unknown operator "%" for column "%"', op, column_name
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Operators are: $eq $ne $in $gt $gte $lt $lte $between $is_null $contains, and $and $or $not around conditions.';
    ELSIF v_kind = 'object' AND v_column.type_oid NOT IN ('json'::regtype, 'jsonb'::regtype) THEN
        RAISE EXCEPTION 'filter: column "%" cannot be compared with a JSON object', column_name
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF v_kind = 'array' AND value @> 'null' AND (SELECT t.typcategory FROM pg_type AS t WHERE t.oid = v_column.type_oid) = 'A' THEN
        v_array := sqlvec._array_with_nulls(value, v_column.type_oid, column_name, slot, bound);
        bound := v_array.bound;
        condition := format('%s%s %s %s', CASE op WHEN '$ne' THEN 'NOT ' ELSE '' END, v_left, v_operator, v_array.expression);
        RETURN;
    END IF;
    bound := bound || CASE WHEN v_kind = 'array' OR v_column.type_oid IN ('json'::regtype, 'jsonb'::regtype)
                           THEN sqlvec._json_text(value, v_column.type_oid) ELSE value #>> '{}' END;
    PERFORM sqlvec._check_value(bound[cardinality(bound)], value, v_column.type_oid, v_type, column_name);
    condition := format('%s%s %s ((%s)[%s])::%s', CASE op WHEN '$ne' THEN 'NOT ' ELSE '' END,
                        v_left, v_operator, slot, cardinality(bound), v_cast);
END
$body$;

-- A whole filter. `slot` is the SQL that names the array of bound values, e.g. $3.
CREATE OR REPLACE FUNCTION sqlvec._filter(
    rel oid, alias text, filter jsonb, slot text, INOUT bound text[], OUT condition text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_keys jsonb;
    v_key text;
    v_value jsonb;
    v_item jsonb;
    v_ops jsonb;
    v_one record;
    v_alternatives text[];
    v_conditions text[] := '{}';
BEGIN
    IF jsonb_typeof(filter) <> 'object' THEN
        RAISE EXCEPTION 'filter: a JSON object is needed, not %', jsonb_typeof(filter)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'E.g. {"tenant_id": 7, "year": {"$gte": 2020}}.';
    END IF;
    -- Keys by jsonpath: a loop over a query would cost more than all that is done in it.
    v_keys := jsonb_path_query_array(filter, '$.keyvalue().key');
    FOR i IN 0 .. jsonb_array_length(v_keys) - 1 LOOP
        v_key := v_keys ->> i;
        v_value := filter -> v_key;
        IF v_key IN ('$and', '$or') THEN
            IF jsonb_typeof(v_value) <> 'array' OR jsonb_array_length(v_value) = 0 THEN
                RAISE EXCEPTION 'filter: "%" needs a JSON array of conditions', v_key USING ERRCODE = 'invalid_parameter_value';
            END IF;
            v_alternatives := '{}';
            FOR v_item IN SELECT * FROM jsonb_array_elements(v_value) LOOP
                v_one := sqlvec._filter(rel, alias, v_item, slot, bound);
                bound := v_one.bound;
                v_alternatives := v_alternatives || v_one.condition;
            END LOOP;
            v_conditions := v_conditions
                || format('(%s)', array_to_string(v_alternatives, CASE v_key WHEN '$or' THEN ' OR ' ELSE ' AND ' END));
        ELSIF v_key = '$not' THEN
            v_one := sqlvec._filter(rel, alias, v_value, slot, bound);
            bound := v_one.bound;
            v_conditions := v_conditions || format('(NOT %s)', v_one.condition);
        ELSIF v_key LIKE '$%' THEN
            RAISE EXCEPTION 'filter: unknown operator "%"', v_key
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Around conditions stand $and, $or and $not.';
        ELSE
            -- {"column": value} is short for {"column": {"$eq": value}}.
            IF jsonb_typeof(v_value) <> 'object' OR NOT jsonb_path_exists(v_value, '$.keyvalue().key ? (@ starts with "$")') THEN
                v_value := jsonb_build_object('$eq', v_value);
            END IF;
            v_ops := jsonb_path_query_array(v_value, '$.keyvalue().key');
            FOR j IN 0 .. jsonb_array_length(v_ops) - 1 LOOP
                v_one := sqlvec._filter_comparison(rel, alias, v_key, v_ops ->> j, v_value -> (v_ops ->> j), slot, bound);
                bound := v_one.bound;
                v_conditions := v_conditions || format('(%s)', v_one.condition);
            END LOOP;
        END IF;
    END LOOP;
    condition := CASE WHEN v_conditions = '{}' THEN 'true' ELSE '(' || array_to_string(v_conditions, ' AND ') || ')' END;
END
$body$;

-- What filter and where_sql ask of a row, with the values of filter for $3. sqlvec._plan_search writes the
-- same out, where a call more would show.
CREATE OR REPLACE FUNCTION sqlvec._condition(
    rel oid, relname name, filter jsonb, where_sql text, OUT bound text[], OUT condition text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    bound := '{}';
    condition := 'true';
    IF filter IS NOT NULL THEN
        SELECT f.bound, f.condition INTO bound, condition FROM sqlvec._filter(rel, relname, filter, '$3', bound) AS f;
    END IF;
    IF where_sql IS NOT NULL THEN
        condition := format(E'%s AND (%s\n)', condition, where_sql);
    END IF;
END
$body$;

-- A compiled filter as explain_* shows it; NULL where nothing is left out.
CREATE OR REPLACE FUNCTION sqlvec._explained_filter(condition text, bound text[]) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN condition <> 'true'
            THEN condition || CASE WHEN cardinality(bound) > 0 THEN ' with $3 = ' || bound::text ELSE '' END END;
