-- How the legs of a hybrid search become one score.

-- The rows that the legs of a search found. Arrays are parallel, one element per row.
DO $do$
BEGIN
    IF pg_catalog.to_regtype('sqlvec._hybrid_rows') IS NULL THEN
        CREATE TYPE sqlvec._hybrid_rows AS (
            row_ids       text[],   -- where they are, see _hit_statement
            row_tables    oid[],
            text_scores   float8[], -- NULL: not found by the leg, and not computed
            text_ranks    int[],    -- NULL: not found by the leg; equal scores share a rank
            distances     float8[],
            vector_ranks  int[],
            tokens_scores float8[],
            tokens_ranks  int[],
            cosines       float8[], -- where a relevance model asks for them
            groups        text[],   -- where rows are grouped
            vectors       vector[]  -- where they are to differ
        );
    END IF;
END
$do$;

-- Places and scores of up to three legs as one list.
CREATE OR REPLACE FUNCTION sqlvec._hybrid_union(
    text_ids text[], text_tables oid[], text_scores float8[], vector_ids text[], vector_tables oid[], distances float8[],
    tokens_ids text[], tokens_tables oid[], tokens_scores float8[]
) RETURNS sqlvec._hybrid_rows
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT ROW(array_agg(row_id), array_agg(row_table), array_agg(t.score), array_agg(t.rank), array_agg(v.distance), array_agg(v.rank),
               array_agg(m.score), array_agg(m.rank), NULL, NULL, NULL)::sqlvec._hybrid_rows
    FROM (SELECT u.row_id, u.row_table, u.score, rank() OVER (ORDER BY u.score DESC)::int AS rank
          FROM unnest(_hybrid_union.text_ids, _hybrid_union.text_tables, _hybrid_union.text_scores) AS u (row_id, row_table, score)) AS t
    FULL JOIN (SELECT u.row_id, u.row_table, u.distance, rank() OVER (ORDER BY u.distance)::int AS rank
               FROM unnest(_hybrid_union.vector_ids, _hybrid_union.vector_tables, _hybrid_union.distances) AS u (row_id, row_table, distance)) AS v
        USING (row_id, row_table)
    FULL JOIN (SELECT u.row_id, u.row_table, u.score, rank() OVER (ORDER BY u.score DESC)::int AS rank
               FROM unnest(_hybrid_union.tokens_ids, _hybrid_union.tokens_tables, _hybrid_union.tokens_scores) AS u (row_id, row_table, score)) AS m
        USING (row_id, row_table);
END;

CREATE OR REPLACE FUNCTION sqlvec.rrf(rank bigint, k int = 60) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 1::float8 / (k + rank);

COMMENT ON FUNCTION sqlvec.rrf(bigint, int) IS
    'What a rank, from 1, adds to a score of reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): 1 / (k + rank). NULL for NULL: a list without the row adds nothing.';

-- Distribution-based score fusion: where a score lies between mean - 3 and mean + 3 standard deviations
-- of its list. 0.5 where all are equal.
CREATE OR REPLACE FUNCTION sqlvec._distribution(score float8, mean float8, deviation float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN score IS NOT NULL THEN CASE WHEN deviation > 0 THEN (score - mean) / (6 * deviation) + 0.5 ELSE 0.5 END END;

-- Where a score lies between the least it could be and the best of its list; `alone` where these are the same.
-- NULL, a row without the source of the leg, lies at the bottom.
CREATE OR REPLACE FUNCTION sqlvec._between(score float8, bottom float8, top float8, alone float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN score IS NULL THEN 0 WHEN top > bottom THEN (score - bottom) / (top - bottom) ELSE alone END;

-- One score per row; weights of text, vector and tokens, 0 for a leg that was not asked.
--   rrf     reciprocal rank fusion over the rows that a leg found
--   dbsf    distribution-based score fusion, as Qdrant does it, over the same
--   convex  scores between the least that is possible (BM25 0, cosine -1) and the best of this query, added
--           by weight (TM2C2 of Bruch, Gai and Ingber, TOIS 2023, arXiv:2210.11934). MaxSim starts from 0,
--           what it has where no token is like another; distances without a bound from the worst of this query
--   relevance  the probabilities `relevances` themselves
CREATE OR REPLACE FUNCTION sqlvec._fuse(fusion text, weights float8[], rrf_k int, metric text, r sqlvec._hybrid_rows, relevances float8[]) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH scored AS (
        SELECT u.n, u.text_rank, u.vector_rank, u.tokens_rank, u.text_score, CASE WHEN abs(u.distance) < 'Infinity' THEN CASE metric WHEN 'cosine' THEN 1 - u.distance ELSE - u.distance END END AS vector_score,
               u.tokens_score
        FROM unnest((r).text_scores, (r).text_ranks, (r).distances, (r).vector_ranks, (r).tokens_scores, (r).tokens_ranks)
            WITH ORDINALITY AS u (text_score, text_rank, distance, vector_rank, tokens_score, tokens_rank, n)
    ), of_list AS (
        SELECT avg(s.text_score) FILTER (WHERE s.text_rank IS NOT NULL) AS text_mean, stddev_samp(s.text_score) FILTER (WHERE s.text_rank IS NOT NULL) AS text_deviation,
               avg(s.vector_score) FILTER (WHERE s.vector_rank IS NOT NULL) AS vector_mean, stddev_samp(s.vector_score) FILTER (WHERE s.vector_rank IS NOT NULL) AS vector_deviation,
               avg(s.tokens_score) FILTER (WHERE s.tokens_rank IS NOT NULL) AS tokens_mean, stddev_samp(s.tokens_score) FILTER (WHERE s.tokens_rank IS NOT NULL) AS tokens_deviation,
               max(s.text_score) AS text_top, max(s.vector_score) AS vector_top, max(s.tokens_score) AS tokens_top,
               CASE metric WHEN 'cosine' THEN -1 ELSE min(s.vector_score) END AS vector_bottom
        FROM scored AS s
    )
    SELECT CASE fusion WHEN 'relevance' THEN relevances ELSE array_agg(CASE fusion
        WHEN 'rrf' THEN coalesce(weights[1] * sqlvec.rrf(s.text_rank, rrf_k), 0) + coalesce(weights[2] * sqlvec.rrf(s.vector_rank, rrf_k), 0)
                        + coalesce(weights[3] * sqlvec.rrf(s.tokens_rank, rrf_k), 0)
        WHEN 'dbsf' THEN coalesce(weights[1] * sqlvec._distribution(CASE WHEN s.text_rank IS NOT NULL THEN s.text_score END, l.text_mean, l.text_deviation), 0)
                         + coalesce(weights[2] * sqlvec._distribution(CASE WHEN s.vector_rank IS NOT NULL THEN s.vector_score END, l.vector_mean, l.vector_deviation), 0)
                         + coalesce(weights[3] * sqlvec._distribution(CASE WHEN s.tokens_rank IS NOT NULL THEN s.tokens_score END, l.tokens_mean, l.tokens_deviation), 0)
        ELSE (weights[1] * sqlvec._between(s.text_score, 0, l.text_top, 0) + weights[2] * sqlvec._between(s.vector_score, l.vector_bottom, l.vector_top, 1)
              + weights[3] * sqlvec._between(s.tokens_score, 0, l.tokens_top, 0)) / (weights[1] + weights[2] + weights[3]) END ORDER BY s.n) END
    FROM scored AS s, of_list AS l;
END;
