-- BM25 weights of a document, and the tsvector that finds it.
--
-- A document becomes two values. `code` holds its saturated term weights (Robertson and Zaragoza
-- 2009), so that its score is an inner product. `terms` is its tsvector, with one more lexeme for
-- each tier of weight that a term reaches: character 1 to 4 and the term. An index on it answers
-- "where does this term weigh much?", which bounds the score of everything else. Character 5 marks
-- the few documents to which those bounds do not apply.

-- Where a term stands in the code. md5 gives the same number on every machine and in Python (for a
-- database in UTF8).
CREATE OR REPLACE FUNCTION sqlvec._bm25_dimension(lexeme text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 1 + ('x' || left(md5(lexeme), 15))::bit(60)::bigint % 1000000000;

-- The present name of an encoder's text search configuration: the one of that name, else the one with
-- its oid, which was renamed. Where both are gone an error, or NULL for the lenient.
CREATE OR REPLACE FUNCTION sqlvec._bm25_config(options jsonb, lenient boolean = false) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_name text := (
        SELECT format('%I.%I', n.nspname, c.cfgname) FROM pg_ts_config AS c JOIN pg_namespace AS n ON n.oid = c.cfgnamespace
        WHERE format('%I.%I', n.nspname, c.cfgname) = options ->> 'config' OR c.oid = (options ->> 'config_oid')::oid
        ORDER BY format('%I.%I', n.nspname, c.cfgname) = options ->> 'config' DESC LIMIT 1);
BEGIN
    IF v_name IS NULL AND NOT lenient THEN
        RAISE EXCEPTION 'text search configuration % is gone', options ->> 'config' USING ERRCODE = 'undefined_object';
    END IF;
    RETURN v_name;
END
$body$;

-- Where tier `level` begins, as a fraction of the largest possible weight, k1 + 1. Level 0 is every
-- document of the term, level 5 none.
CREATE OR REPLACE FUNCTION sqlvec._bm25_tier(level int) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE level WHEN 0 THEN 0 WHEN 1 THEN 0.64 WHEN 2 THEN 0.77 WHEN 3 THEN 0.86 WHEN 4 THEN 0.93 ELSE 1 END;

-- Terms of a tsvector with their frequencies: occurrences, each with the weight of its label.
-- weights: of labels D, C, B, A; NULL where every occurrence counts one.
CREATE OR REPLACE FUNCTION sqlvec._bm25_terms(terms tsvector, weights real[]) RETURNS TABLE (lexeme text, frequency float8)
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 50
BEGIN ATOMIC
    SELECT u.lexeme,
           CASE WHEN _bm25_terms.weights IS NULL THEN coalesce(cardinality(u.positions), 1)::float8
                ELSE coalesce((SELECT sum(_bm25_terms.weights[69 - ascii(l)]) FROM unnest(u.weights) AS l), _bm25_terms.weights[1])::float8 END
    FROM unnest(terms) AS u
    WHERE u.lexeme COLLATE "C" >= ' '; -- not those of the tiers
END;

CREATE OR REPLACE FUNCTION sqlvec._bm25_length(terms tsvector, weights real[]) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT coalesce(sum(t.frequency), 0) FROM sqlvec._bm25_terms(terms, weights) AS t;
END;

-- The code of a document with terms that share a dimension (summed, up to the bound of one), or with
-- more terms than a sparsevec holds (the heaviest stay).
CREATE OR REPLACE FUNCTION sqlvec._bm25_irregular_code(
    terms tsvector, k1 float8, b float8, average_length float8, weights real[]
) RETURNS sparsevec
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT ('{' || coalesce(string_agg(w.dimension || ':' || w.weight::real, ','), '') || '}/1000000000')::sparsevec
    FROM (SELECT d.dimension, least(sum(d.weight), k1 + 1) AS weight
          FROM (SELECT t.lexeme, sqlvec._bm25_dimension(t.lexeme) AS dimension,
                       t.frequency * (k1 + 1) / (t.frequency + k1 * (1 - b + b * sum(t.frequency) OVER () / average_length)) AS weight
                FROM sqlvec._bm25_terms(terms, weights) AS t) AS d
          GROUP BY d.dimension
          ORDER BY 2 DESC, min(d.lexeme COLLATE "C")
          LIMIT 16000) AS w;
END;

CREATE OR REPLACE FUNCTION sqlvec._bm25_document(
    plain tsvector, k1 float8, b float8, average_length float8, weights real[], OUT code sparsevec, OUT terms tsvector
)
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET extra_float_digits = 1 -- weights are printed, in full
BEGIN ATOMIC
    SELECT CASE WHEN r.regular THEN ('{' || coalesce(r.elements, '') || '}/1000000000')::sparsevec
                ELSE sqlvec._bm25_irregular_code(plain, k1, b, average_length, weights) END,
           plain || array_to_tsvector(CASE WHEN r.regular THEN coalesce(r.tiers, '{}') ELSE ARRAY[chr(5)] END)
    FROM (SELECT string_agg(w.dimension || ':' || w.weight::real, ',') AS elements,
                 array_agg(chr(1) || w.lexeme) FILTER (WHERE w.weight >= sqlvec._bm25_tier(1) * (k1 + 1))
                 || array_agg(chr(2) || w.lexeme) FILTER (WHERE w.weight >= sqlvec._bm25_tier(2) * (k1 + 1))
                 || array_agg(chr(3) || w.lexeme) FILTER (WHERE w.weight >= sqlvec._bm25_tier(3) * (k1 + 1))
                 || array_agg(chr(4) || w.lexeme) FILTER (WHERE w.weight >= sqlvec._bm25_tier(4) * (k1 + 1)) AS tiers,
                 count(DISTINCT w.dimension) = count(*) AND count(*) <= 16000
                 -- With four tiers a tsvector has five times its size, and may have 1 MB. Concatenated,
                 -- because a stored one may be compressed.
                 AND coalesce(max(octet_length(w.lexeme)), 0) <= 2000 AND pg_column_size(plain || '') <= 200000 AS regular
          FROM (SELECT t.lexeme, sqlvec._bm25_dimension(t.lexeme) AS dimension,
                       t.frequency * (k1 + 1) / (t.frequency + k1 * (1 - b + b * sum(t.frequency) OVER () / average_length)) AS weight
                FROM sqlvec._bm25_terms(plain, weights) AS t) AS w) AS r
    WHERE plain IS NOT NULL;
END;
