-- sqlvec.maxsim: late interaction (Khattab and Zaharia 2020, ColBERT). For every query token its best
-- document token; the score is the sum of those similarities.
--
-- Nested scalar sub-selects are the plan with the least work per pair of tokens: the document is
-- unnested once and scanned again for every query token, the distance is pgvector's own, and nothing
-- is sorted or grouped. min of the distance, with the sign turned once at the end, saves a negation
-- per pair. The bodies bind pgvector's operators by identity, whatever the caller's search_path.

CREATE OR REPLACE FUNCTION sqlvec.maxsim(tokens halfvec[], query halfvec[]) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN cardinality(query) > 0
            THEN (SELECT 0 - sum((SELECT min(x <#> y) FROM unnest(tokens) AS x)) FROM unnest(query) AS y)
            WHEN cardinality(query) = 0 AND cardinality(tokens) > 0 THEN 0 END;

COMMENT ON FUNCTION sqlvec.maxsim(halfvec[], halfvec[]) IS
    'MaxSim: for every vector of query the largest inner product with one of tokens, summed. 0 for an empty query; NULL where either is NULL or tokens is empty. NULL elements count for nothing.';

-- Products may leave the range of float32, and their sum is no number then.
CREATE OR REPLACE FUNCTION sqlvec.maxsim_vector(tokens vector[], query vector[]) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN cardinality(query) > 0
            THEN nullif((SELECT 0 - sum((SELECT min(x <#> y) FROM unnest(tokens) AS x)) FROM unnest(query) AS y), 'NaN')
            WHEN cardinality(query) = 0 AND cardinality(tokens) > 0 THEN 0 END;

COMMENT ON FUNCTION sqlvec.maxsim_vector(vector[], vector[]) IS
    'MaxSim of vectors in full precision; NULL where products leave the range of float32 both ways; otherwise as sqlvec.maxsim.';

-- The similarity of pgvector's own examples for binary tokens, on the scale of a cosine.
CREATE OR REPLACE FUNCTION sqlvec.maxsim_bit(tokens bit[], query bit[]) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN cardinality(query) > 0
            THEN (SELECT sum(1 - (SELECT min(x <~> y) FROM unnest(tokens) AS x) / nullif(length(y), 0)) FROM unnest(query) AS y)
            WHEN cardinality(query) = 0 AND cardinality(tokens) > 0 THEN 0 END;

COMMENT ON FUNCTION sqlvec.maxsim_bit(bit[], bit[]) IS
    'MaxSim of bit strings, whose similarity is the share of equal bits, 1 - Hamming distance / length; otherwise as sqlvec.maxsim.';

CREATE OR REPLACE FUNCTION sqlvec.maxsim_mean(tokens halfvec[], query halfvec[]) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN cardinality(query) > 0
            THEN (SELECT 0 - avg((SELECT min(x <#> y) FROM unnest(tokens) AS x)) FROM unnest(query) AS y)
            WHEN cardinality(query) = 0 AND cardinality(tokens) > 0 THEN 0 END;

COMMENT ON FUNCTION sqlvec.maxsim_mean(halfvec[], halfvec[]) IS
    'sqlvec.maxsim divided by the number of query tokens, so that scores of long and short queries compare: -1 to 1 for unit vectors.';

-- Nested multi-vectors (MetaEmbed; Matryoshka over tokens) put what matters most first, so that a
-- prefix of them is a multi-vector too.
CREATE OR REPLACE FUNCTION sqlvec.maxsim_nested(
    tokens halfvec[], query halfvec[], query_tokens int = NULL, document_tokens int = NULL
) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sqlvec.maxsim(trim_array(tokens, cardinality(tokens) - least(greatest(coalesce(document_tokens, cardinality(tokens)), 0), cardinality(tokens))),
                     trim_array(query, cardinality(query) - least(greatest(coalesce(query_tokens, cardinality(query)), 0), cardinality(query))));

COMMENT ON FUNCTION sqlvec.maxsim_nested(halfvec[], halfvec[], int, int) IS
    'sqlvec.maxsim of the first document_tokens of tokens and the first query_tokens of query; NULL means all of them. For nested multi-vectors, whose first vectors matter most.';

-- Constrained nearest neighbours (Aiger and others 2023, "Yes, we CANN"): MaxSim in which a document token
-- counts only within a radius.
CREATE OR REPLACE FUNCTION sqlvec.maxsim_radius(tokens halfvec[], query halfvec[], radius float8, power float8 = 1) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN cardinality(query) > 0
            THEN (SELECT sum(CASE WHEN n.distance < radius THEN power(1 - power(n.distance / radius, power), 1 / power)
                                  WHEN n.distance >= radius THEN 0 END)
                  FROM unnest(query) AS y, LATERAL (SELECT (SELECT min(x <-> y) FROM unnest(tokens) AS x) AS distance OFFSET 0) AS n)
            WHEN cardinality(query) = 0 AND cardinality(tokens) > 0 THEN 0 END;

COMMENT ON FUNCTION sqlvec.maxsim_radius(halfvec[], halfvec[], float8, float8) IS
    'MaxSim with a radius (CANN): for every vector of query (1 - (distance / radius)^power)^(1/power) of its nearest of tokens by L2 distance, 0 from the radius on, summed. 0 for an empty query; NULL where either is NULL or tokens is empty.';
