-- What a relevance model says of the rows of a hybrid search.

-- The curves of one query: those of the legs, and how a fused model combines them.
DO $do$
BEGIN
    IF pg_catalog.to_regtype('sqlvec._hybrid_curves') IS NULL THEN
        CREATE TYPE sqlvec._hybrid_curves AS (
            vector_slope float8, vector_intercept float8, vector_exponent float8, -- NULL: the model or the query lacks the leg
            text_slope float8, text_intercept float8, text_exponent float8,
            tokens_slope float8, tokens_intercept float8, tokens_exponent float8,
            text_maximum float8, -- what scores are divided by
            tokens       int,
            bias         float8,
            slopes       float8[], -- of vector, text and tokens; NULL for a model of one leg
            missing      float8[]  -- what a leg counts for that does not know a row
        );
    END IF;
END
$do$;

CREATE OR REPLACE FUNCTION sqlvec._logit(p float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN p IS NOT NULL THEN ln(greatest(p, 2.3e-16::float8) / greatest(1 - p, 2.3e-16::float8)) END;

-- The relevance that rows need. No row has it where even the best is too little for a question with an answer.
CREATE OR REPLACE FUNCTION sqlvec._least_relevance(m sqlvec.relevance_model, relevances float8[], min_relevance float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE WHEN min_relevance IS NOT NULL AND max(u.relevance) < (m).min_best THEN 'Infinity' ELSE min_relevance END
    FROM unnest(relevances) AS u (relevance);
END;

-- The model of a leg: the model itself, or the one that a fused model combines; NULL for none.
CREATE OR REPLACE FUNCTION sqlvec._model_of(m sqlvec.relevance_model, leg text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE (m).leg WHEN 'fused' THEN (m).models[CASE _model_of.leg WHEN 'vector' THEN 1 WHEN 'text' THEN 2 WHEN 'tokens' THEN 3 END]
                    WHEN _model_of.leg THEN (m).name END;

CREATE OR REPLACE FUNCTION sqlvec._hybrid_curves(
    m sqlvec.relevance_model, query_vector vector, text_maximum float8, text_terms int, tokens int
) RETURNS sqlvec._hybrid_curves
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    c sqlvec._hybrid_curves;
    v_model text;
BEGIN
    v_model := sqlvec._model_of(m, 'vector');
    IF v_model IS NOT NULL THEN
        SELECT p.slope, p.intercept, p.exponent INTO c.vector_slope, c.vector_intercept, c.vector_exponent
        FROM sqlvec.relevance_parameters(v_model, query_vector) AS p;
    END IF;
    v_model := sqlvec._model_of(m, 'text');
    IF v_model IS NOT NULL THEN
        SELECT p.slope, p.intercept, p.exponent INTO c.text_slope, c.text_intercept, c.text_exponent
        FROM sqlvec.relevance_score_parameters(v_model, text_maximum, text_terms) AS p;
        c.text_maximum := nullif(text_maximum, 0);
    END IF;
    v_model := sqlvec._model_of(m, 'tokens');
    IF v_model IS NOT NULL THEN
        SELECT p.slope, p.intercept, p.exponent INTO c.tokens_slope, c.tokens_intercept, c.tokens_exponent
        FROM sqlvec.relevance_score_parameters(v_model, tokens) AS p;
        c.tokens := tokens;
    END IF;
    IF m.leg = 'fused' THEN
        c.bias := m.intercept[1];
        c.slopes := sqlvec._fused_weights(m.slope);
        c.missing := m.intercept[2:4];
    END IF;
    RETURN c;
END
$body$;

-- Relevance of each row. A text score of 0 says that the leg does not know the row.
CREATE OR REPLACE FUNCTION sqlvec._hybrid_relevance(c sqlvec._hybrid_curves, r sqlvec._hybrid_rows) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(CASE WHEN (c).slopes IS NULL THEN coalesce(l.by_vector, l.by_text, l.by_tokens)
                          WHEN num_nonnulls(l.by_vector, l.by_text, l.by_tokens) > 0
                          THEN sqlvec._logistic((c).bias + coalesce((c).slopes[1] * sqlvec._logit(l.by_vector), (c).missing[1])
                                                + coalesce((c).slopes[2] * sqlvec._logit(l.by_text), (c).missing[2])
                                                + coalesce((c).slopes[3] * sqlvec._logit(l.by_tokens), (c).missing[3])) END ORDER BY l.n)
    FROM (SELECT u.n,
                 sqlvec.relevance_at((c).vector_slope, (c).vector_intercept, (c).vector_exponent, u.cosine) AS by_vector,
                 sqlvec.relevance_at((c).text_slope, (c).text_intercept, (c).text_exponent, nullif(u.text_score, 0) / (c).text_maximum) AS by_text,
                 sqlvec.relevance_at((c).tokens_slope, (c).tokens_intercept, (c).tokens_exponent, u.tokens_score / (c).tokens) AS by_tokens
          FROM unnest((r).cosines, (r).text_scores, (r).tokens_scores) WITH ORDINALITY AS u (cosine, text_score, tokens_score, n)) AS l;
END;
