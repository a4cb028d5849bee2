-- sqlvec.compress: a few hits that stand for all of them (semantic compression; Raja and Vats 2025,
-- arXiv:2507.19715), chosen greedily to maximise a mean of three terms, each of them 0 to 1:
--
--   coverage   facility location: the mean over all hits of the cosine to the nearest one chosen, where
--              a hit counts by its relevance
--   diversity  1 - the mean cosine of the pairs chosen
--   relevance  the mean relevance of those chosen
--
-- Coverage and relevance alone are submodular, and greedy choice then reaches 1 - 1/e of the best value
-- (Nemhauser, Wolsey and Fisher 1978); diversity has no such guarantee.
--
-- All pairs are compared once. Their weighted cosines become integers up to 2^14, of which float32 adds
-- 1000 exactly. What a choice gains in coverage is then an L1 distance between what it covers and what
-- is covered: max(0, x - y) = (|x - y| + x - y) / 2.

-- How much each vector covers of all of them, whose weights are 0 to 1. What points away is not covered.
CREATE OR REPLACE FUNCTION sqlvec._covers(units vector[], weights float8[]) RETURNS vector[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT ARRAY(SELECT round(16384 * w.weight * greatest(sqlvec._unit_cosine(u, w.x), 0)) FROM unnest(units, weights) AS w (x, weight))::vector
             FROM unnest(units) AS u);

CREATE OR REPLACE FUNCTION sqlvec._l1_distances(covers vector[], covered float8[]) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT c <+> m.covered FROM (SELECT covered::vector AS covered OFFSET 0) AS m, unnest(covers) AS c);

CREATE OR REPLACE FUNCTION sqlvec._more_similar(units vector[], totals float8[], chosen vector) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT u.total + greatest(sqlvec._unit_cosine(u.x, chosen), 0) FROM unnest(units, totals) AS u (x, total));

CREATE OR REPLACE FUNCTION sqlvec.compress(
    vectors vector[], k int = 10, relevance float8[] = NULL, coverage float8 = 0.2, diversity float8 = 0
) RETURNS TABLE ("position" int, score float8)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE ROWS 10 SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_hits int := coalesce(cardinality(vectors), 0);
    v_left float8[]; -- the relevance of what is not chosen yet
    v_most float8;
    v_weights float8[];
    v_units vectors%TYPE;
    v_covers vectors%TYPE;
    v_sums float8[];
    v_total float8;
    v_covered float8[] := array_fill(0::float8, ARRAY[v_hits]);
    v_similar float8[] := v_covered; -- the sum of the cosines to what is chosen
    v_rest float8;
    v_pair float8;
BEGIN
    PERFORM sqlvec._check_k(k), sqlvec._check_share('coverage', coverage), sqlvec._check_share('diversity', diversity),
            sqlvec._check_vectors(vectors);
    IF relevance IS NOT NULL THEN
        PERFORM sqlvec._check_scores('relevance', relevance, v_hits);
    END IF;
    IF coverage + diversity > 1 + 1e-9 THEN
        RAISE EXCEPTION 'coverage and diversity are at most 1 together, not % and %', coverage, diversity USING ERRCODE = 'invalid_parameter_value',
            HINT = 'What they leave is the weight of relevance.';
    ELSIF v_hits > 1000 THEN
        RAISE EXCEPTION 'sqlvec.compress compares at most 1000 hits with each other, not %', v_hits USING ERRCODE = 'program_limit_exceeded',
            HINT = 'Give it the best of them.';
    ELSIF v_hits = 0 THEN
        RETURN;
    END IF;
    k := least(k, v_hits);
    v_rest := CASE WHEN relevance IS NULL THEN 0 ELSE greatest(1 - coverage - diversity, 0) / k END;
    v_pair := sqlvec._flushed(diversity) / greatest(k * (k - 1.0::float8) / 2, 1);
    coverage := sqlvec._flushed(coverage);
    v_left := CASE WHEN relevance IS NULL THEN v_covered ELSE ARRAY(SELECT sqlvec._flushed(r) FROM unnest(relevance) AS r) END;

    -- What weighs next to nothing weighs nothing, or its share would underflow.
    v_most := (SELECT max(r) FROM unnest(v_left) AS r);
    v_weights := ARRAY(SELECT CASE WHEN v_most <= 0 THEN 1 WHEN r > v_most * 1e-9::float8 THEN r / v_most ELSE 0 END FROM unnest(v_left) AS r);
    v_units := sqlvec._unit_vectors(vectors);
    v_covers := sqlvec._covers(v_units, v_weights);
    v_sums := sqlvec._l1_distances(v_covers, v_covered);
    v_total := (SELECT sum(round(16384 * w)) FROM unnest(v_weights) AS w);
    FOR v_rank IN 1 .. k LOOP
        SELECT h.n, h.score INTO "position", score
        FROM (SELECT t.n, coverage * ((t.distance + t.sum - c.sum) / 2 / v_total) + v_pair * (v_rank - 1 - t.likeness) + v_rest * t.relevance AS score
              FROM (SELECT sum(c) AS sum FROM unnest(v_covered) AS c) AS c,
                   unnest(sqlvec._l1_distances(v_covers, v_covered), v_sums, v_similar, v_left) WITH ORDINALITY AS t (distance, sum, likeness, relevance, n)
              WHERE t.relevance IS NOT NULL) AS h
        ORDER BY h.score DESC, h.n LIMIT 1;
        RETURN NEXT;
        v_left["position"] := NULL;
        v_covered := ARRAY(SELECT greatest(t.before, t.more) FROM unnest(v_covered, sqlvec._real_array(v_covers["position"])) AS t (before, more));
        v_similar := sqlvec._more_similar(v_units, v_similar, v_units["position"]);
    END LOOP;
END
$body$;

COMMENT ON FUNCTION sqlvec.compress(vector[], int, float8[], float8, float8) IS
    'Semantic compression: k hits that stand for all of them, as positions in the list (from 1) in the order chosen, with what each adds to the objective: coverage (mean cosine of all hits to the nearest one chosen, weighted by relevance) + diversity (1 - mean cosine of the pairs chosen) + relevance (mean of those chosen), with the weights coverage, diversity and, where relevance is given, what these leave of 1. All three lie between 0 and 1 however many hits there are, at most 1000. Cosines below 0 count as 0. Of equal scores the earlier position; NULL and zero vectors resemble and cover nothing.';
