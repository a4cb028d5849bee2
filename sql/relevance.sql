-- sqlvec.relevance and its parts: scores mapped to calibrated probabilities by a model of the catalog.
--
-- A score x of a query q maps to sigma(a sign(x) |x|^k + b), where a > 0, b and k depend on the query
-- alone (Rossi et al. 2024, arXiv:2408.04887). They are found once per query; for each candidate a
-- scalar expression is left, and its inverse is the score at which relevance reaches a wanted value.

-- What a model knows of a query vector: mean, spread and soft maxima of its cosines to the centroids,
-- then its cosines to the directions. The dot products are sums of integers below 2^24, and so the
-- same everywhere (see docs/encoders.md). NULL for the zero vector, and for a
-- model that was restored without its vectors.
CREATE OR REPLACE FUNCTION sqlvec._relevance_features(m sqlvec.relevance_model, query vector) RETURNS float8[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_count int := greatest(cardinality(m.slope), cardinality(m.intercept), cardinality(m.exponent)) - 1;
    v_high query%TYPE := (sqlvec._integer_parts(query)).high;
    v_norm float8 := sqrt(sqlvec._dot(v_high, v_high));
    v_cosines float8[];
    v_directions float8[];
    v_features float8[] := '{}';
BEGIN
    IF v_high IS NULL OR v_count = 0 THEN
        RETURN CASE WHEN v_count = 0 AND v_high IS NOT NULL THEN v_features END;
    END IF;
    SELECT array_agg(sqlvec._dot(v_high, v.value) / v_norm ORDER BY v.position) FILTER (WHERE v.part = 'centroid'),
           array_agg(sqlvec._dot(v_high, v.value) / v_norm / 4000 ORDER BY v.position) FILTER (WHERE v.part = 'direction')
    INTO v_cosines, v_directions
    FROM sqlvec.relevance_vector AS v WHERE v.model = m.name;
    IF v_cosines IS NOT NULL THEN
        SELECT array_agg(c.x * c.scale ORDER BY c.position) INTO v_cosines
        FROM unnest(v_cosines, m.centroid_scale) WITH ORDINALITY AS c (x, scale, position);
        SELECT ARRAY[s.mean, sqrt((SELECT sum(c.weight * (c.x - s.mean) * (c.x - s.mean)) FROM unnest(v_cosines, m.centroid_weight) AS c (x, weight)))]
        INTO v_features
        FROM (SELECT sum(c.weight * c.x) AS mean FROM unnest(v_cosines, m.centroid_weight) AS c (x, weight)) AS s;
        v_features := v_features || ARRAY(
            SELECT ln((SELECT sum(c.weight * exp(b.sharpness * c.x)) FROM unnest(v_cosines, m.centroid_weight) AS c (x, weight))) / b.sharpness
            FROM unnest(m.sharpness) WITH ORDINALITY AS b (sharpness, position) ORDER BY b.position);
    END IF;
    v_features := v_features || coalesce(v_directions, '{}');
    RETURN CASE WHEN cardinality(v_features) = v_count THEN v_features END;
END
$body$;

-- Bias plus weighted features.
CREATE OR REPLACE FUNCTION sqlvec._weighted(weights float8[], features float8[]) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN weights[1] + coalesce((SELECT sum(t.w * t.f) FROM unnest(weights[2:], features) AS t (w, f)), 0);

-- exp() of Postgres raises an error instead of returning 0 or infinity, so its arguments are limited;
-- least and greatest would turn NULL into a limit.
CREATE OR REPLACE FUNCTION sqlvec._logistic(x float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN x IS NOT NULL THEN 1 / (1 + exp(-least(greatest(x, -36), 36))) END;

CREATE OR REPLACE FUNCTION sqlvec._softplus(x float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN greatest(x, 0) + ln(1 + exp(-least(abs(x), 36)));

-- The three numbers of a query from its features. A family with a constant exponent has it as bias.
CREATE OR REPLACE FUNCTION sqlvec._relevance_curve(
    m sqlvec.relevance_model, features float8[], OUT slope float8, OUT intercept float8, OUT exponent float8
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    slope := sqlvec._softplus(sqlvec._weighted(m.slope, features));
    intercept := sqlvec._weighted(m.intercept, features);
    exponent := CASE WHEN m.family = 'power' THEN 0.1::float8 + 1.9::float8 * sqlvec._logistic(sqlvec._weighted(m.exponent, features)) ELSE m.exponent[1] END;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.relevance_parameters(
    model text, query vector, OUT slope float8, OUT intercept float8, OUT exponent float8
) LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    m sqlvec.relevance_model := sqlvec._relevance_model(model, ARRAY['vector']);
    v_features float8[];
    v_curve record;
BEGIN
    IF m.dimensions <> sqlvec._dims(query) THEN
        RAISE EXCEPTION 'relevance model "%" takes query vectors of % dimensions, not %', model, m.dimensions, sqlvec._dims(query)
            USING ERRCODE = 'data_exception';
    END IF;
    IF query IS NOT NULL THEN
        v_features := sqlvec._relevance_features(m, query);
    END IF;
    IF v_features IS NULL THEN
        RETURN; -- no query, one without a direction, or a model that was restored without its vectors
    END IF;
    v_curve := sqlvec._relevance_curve(m, v_features);
    slope := v_curve.slope; intercept := v_curve.intercept; exponent := v_curve.exponent;
END
$body$;

COMMENT ON FUNCTION sqlvec.relevance_parameters(text, vector) IS
    'The curve of a query vector under a relevance model, for sqlvec.relevance_at. Call it in FROM, so that it runs once. NULL for the zero vector, which has no cosines.';

CREATE OR REPLACE FUNCTION sqlvec.relevance_score_parameters(
    model text, maximum float8, terms int = 1, OUT slope float8, OUT intercept float8, OUT exponent float8
) LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    m sqlvec.relevance_model := sqlvec._relevance_model(model, ARRAY['text', 'tokens']);
    v_curve record;
BEGIN
    IF maximum > 0 AND maximum < 'Infinity' AND terms > 0 THEN
        v_curve := sqlvec._relevance_curve(m, ARRAY[ln(maximum), ln(terms::float8)]);
        slope := v_curve.slope; intercept := v_curve.intercept; exponent := v_curve.exponent;
    END IF;
END
$body$;

COMMENT ON FUNCTION sqlvec.relevance_score_parameters(text, float8, int) IS
    'The curve of a text or multi-vector query under a relevance model, for sqlvec.relevance_at of score / maximum. maximum is the best score the query can have (sqlvec.bm25_maximum; for MaxSim its number of vectors), terms its number of words. NULL where maximum is not above 0: such a query asks for nothing.';

CREATE OR REPLACE FUNCTION sqlvec.relevance_at(slope float8, intercept float8, exponent float8, x float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN x < 'NaN' AND slope IS NOT NULL
            THEN 1 / (1 + exp(-least(greatest(slope * sign(x) * power(least(greatest(abs(x), 1e-100::float8), 10), exponent) + intercept, -36), 36))) END;

COMMENT ON FUNCTION sqlvec.relevance_at(float8, float8, float8, float8) IS
    'Relevance of score x, a cosine or a share of the maximum, on the curve that sqlvec.relevance_parameters or relevance_score_parameters returned: sigma(slope sign(x) |x|^exponent + intercept). NULL for NaN.';

CREATE OR REPLACE FUNCTION sqlvec.relevance(model text, query vector, cosine float8) RETURNS float8
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT sqlvec.relevance_at(p.slope, p.intercept, p.exponent, relevance.cosine)
    FROM sqlvec.relevance_parameters(relevance.model, relevance.query) AS p;
END;

COMMENT ON FUNCTION sqlvec.relevance(text, vector, float8) IS
    'Calibrated probability that a row with this cosine to the query is relevant. For many rows call sqlvec.relevance_parameters once and relevance_at per row.';

CREATE OR REPLACE FUNCTION sqlvec.relevance_score(model text, score float8, maximum float8, terms int = 1) RETURNS float8
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT sqlvec.relevance_at(p.slope, p.intercept, p.exponent, relevance_score.score / nullif(relevance_score.maximum, 0))
    FROM sqlvec.relevance_score_parameters(relevance_score.model, relevance_score.maximum, relevance_score.terms) AS p;
END;

COMMENT ON FUNCTION sqlvec.relevance_score(text, float8, float8, int) IS
    'Calibrated probability that a row with this BM25 or MaxSim score is relevant; maximum and terms as in sqlvec.relevance_score_parameters.';

-- Where the curve reaches a relevance: infinite where all scores do, or none.
CREATE OR REPLACE FUNCTION sqlvec._relevance_inverse(slope float8, intercept float8, exponent float8, min_relevance float8) RETURNS float8
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_u float8;
BEGIN
    IF min_relevance IS NULL OR slope IS NULL THEN
        RETURN NULL;
    ELSIF NOT min_relevance BETWEEN 0 AND 1 THEN
        RAISE EXCEPTION 'min_relevance is a probability from 0 to 1, not %', min_relevance
            USING ERRCODE = 'invalid_parameter_value';
    -- What the clamped curve reaches everywhere, and nowhere.
    ELSIF min_relevance <= sqlvec._logistic(-36) THEN
        RETURN '-Infinity';
    ELSIF min_relevance > sqlvec._logistic(36) THEN
        RETURN 'Infinity';
    END IF;
    v_u := ln(min_relevance / (1 - min_relevance)) - intercept;
    -- Compared before dividing: nothing may overflow.
    IF abs(v_u) > slope * power(10, exponent) THEN
        RETURN sign(v_u) * 'Infinity';
    ELSIF v_u = 0 THEN
        RETURN 0;
    END IF;
    -- Scores below 1e-100 are as good as 0, and neither division nor product may underflow.
    RETURN sign(v_u) * exp(greatest((ln(abs(v_u)) - ln(slope)) / exponent, -230));
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.relevance_bound(model text, query vector, min_relevance float8) RETURNS float8
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 1 - sqlvec._relevance_inverse(p.slope, p.intercept, p.exponent, relevance_bound.min_relevance)
    FROM sqlvec.relevance_parameters(relevance_bound.model, relevance_bound.query) AS p;
END;

COMMENT ON FUNCTION sqlvec.relevance_bound(text, vector, float8) IS
    'Cosine distance up to which rows have at least min_relevance, so that a search can stop there. Above 2 where all rows do, below 0 where none does, infinite where no cosine at all makes the difference; NULL for the zero vector.';

CREATE OR REPLACE FUNCTION sqlvec.relevance_score_bound(model text, maximum float8, min_relevance float8, terms int = 1) RETURNS float8
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT relevance_score_bound.maximum * sqlvec._relevance_inverse(p.slope, p.intercept, p.exponent, relevance_score_bound.min_relevance)
    FROM sqlvec.relevance_score_parameters(relevance_score_bound.model, relevance_score_bound.maximum, relevance_score_bound.terms) AS p;
END;

COMMENT ON FUNCTION sqlvec.relevance_score_bound(text, float8, float8, int) IS
    'BM25 or MaxSim score from which on rows have at least min_relevance: -Infinity where all have, above maximum or Infinity where none has.';

-- The weights of a fused model. With numbers next to 0 products would underflow, which is an error.
CREATE OR REPLACE FUNCTION sqlvec._fused_weights(slope float8[]) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT CASE WHEN t.weight < 1e-100::float8 THEN 0 ELSE t.weight END FROM unnest(slope) WITH ORDINALITY AS t (weight, n) ORDER BY t.n);

CREATE OR REPLACE FUNCTION sqlvec.relevance_fused(
    model text, vector_relevance float8 = NULL, text_relevance float8 = NULL, tokens_relevance float8 = NULL
) RETURNS float8
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    m sqlvec.relevance_model := sqlvec._relevance_model(model, ARRAY['fused']);
    v_legs float8[] := ARRAY[vector_relevance, text_relevance, tokens_relevance];
    v_weights float8[] := sqlvec._fused_weights(m.slope);
    v_logit float8 := m.intercept[1];
BEGIN
    IF num_nonnulls(VARIADIC v_legs) = 0 THEN
        RETURN NULL;
    END IF;
    FOR i IN 1 .. 3 LOOP
        IF NOT v_legs[i] BETWEEN 0 AND 1 THEN
            RAISE EXCEPTION 'relevance is a probability from 0 to 1, not %', v_legs[i] USING ERRCODE = 'invalid_parameter_value';
        END IF;
        -- Weights are positive, so that agreement of the legs never counts against a row.
        v_logit := v_logit + CASE WHEN v_legs[i] IS NULL THEN m.intercept[i + 1]
                                  ELSE v_weights[i] * ln(greatest(v_legs[i], 2.3e-16) / greatest(1 - v_legs[i], 2.3e-16)) END;
    END LOOP;
    RETURN sqlvec._logistic(v_logit);
END
$body$;

COMMENT ON FUNCTION sqlvec.relevance_fused(text, float8, float8, float8) IS
    'Calibrated probability from those of the legs, NULL for a leg that did not find the row or was not asked; NULL when all are.';

CREATE OR REPLACE FUNCTION sqlvec.relevance_threshold(model text, recall float8 = 0.95) RETURNS float8
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    m sqlvec.relevance_model := sqlvec._relevance_model(model, ARRAY['vector', 'text', 'tokens', 'fused']);
BEGIN
    FOR i IN 1 .. cardinality(m.recalls) LOOP
        IF m.recalls[i] = recall THEN
            RETURN m.thresholds[i];
        END IF;
    END LOOP;
    RAISE EXCEPTION 'relevance model "%" has no threshold for a recall of %', model, recall
        USING ERRCODE = 'invalid_parameter_value',
              HINT = CASE WHEN m.recalls = '{}' THEN 'It was fitted without judgements; choose a relevance yourself, such as 0.5.'
                          ELSE 'It has those for: ' || array_to_string(m.recalls, ', ') || '.' END;
END
$body$;

COMMENT ON FUNCTION sqlvec.relevance_threshold(text, float8) IS
    'The min_relevance that kept this share of the relevant candidates of queries held out of the fit.';
