-- Metrics: their operators and operator classes in pgvector.

-- Short name that pgvector uses in operator class names, NULL for an unknown metric.
CREATE OR REPLACE FUNCTION sqlvec._metric_short(metric text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE metric WHEN 'l2' THEN 'l2' WHEN 'inner_product' THEN 'ip' WHEN 'cosine' THEN 'cosine'
                   WHEN 'l1' THEN 'l1' WHEN 'hamming' THEN 'hamming' WHEN 'jaccard' THEN 'jaccard' END;

-- The operator of a metric, of a pgvector in this schema, which is quoted already.
CREATE OR REPLACE FUNCTION sqlvec._operator(metric text, schema_name text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN format('OPERATOR(%s.%s)', schema_name,
              CASE metric WHEN 'l2' THEN '<->' WHEN 'inner_product' THEN '<#>' WHEN 'cosine' THEN '<=>'
                          WHEN 'l1' THEN '<+>' WHEN 'hamming' THEN '<~>' WHEN 'jaccard' THEN '<%>' END);

CREATE OR REPLACE FUNCTION sqlvec._operator(metric text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE RETURN sqlvec._operator(metric, quote_ident(sqlvec._vector_schema()));

CREATE OR REPLACE FUNCTION sqlvec._opclass(type_name text, metric text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN type_name || '_' || sqlvec._metric_short(metric) || '_ops';

-- The metric itself when it fits the type, an error that names the ones that do otherwise.
CREATE OR REPLACE FUNCTION sqlvec._checked_metric(metric text, type_name text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_known text[] := CASE WHEN type_name = 'bit' THEN ARRAY['hamming', 'jaccard']
                           ELSE ARRAY['l2', 'inner_product', 'cosine', 'l1'] END;
BEGIN
    IF metric = ANY (v_known) THEN
        RETURN metric;
    END IF;
    RAISE EXCEPTION 'metric "%" is not one that type % has', metric, type_name
        USING ERRCODE = 'invalid_parameter_value',
              HINT = pg_catalog.format('Metrics of %s are: %s.', type_name, pg_catalog.array_to_string(v_known, ', '));
END
$body$;

-- NULL for NaN, which the cosine of a zero vector is.
CREATE OR REPLACE FUNCTION sqlvec._number(x float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN CASE WHEN x < 'NaN' THEN x END;
