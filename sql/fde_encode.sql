-- Fixed dimensional encodings of multi-vectors (MUVERA: Dhulipala et al. 2024, arXiv:2405.19504).
--
-- Every repetition cuts space into 2^simhash_bits buckets by random hyperplanes, adds up the query
-- tokens of each bucket, averages the document tokens of each (an empty one takes the document token
-- whose bits differ least), and projects the results with random signs. The inner product of the two
-- codes is about `repetitions` times MaxSim.
--
-- As in encode.sql all sums are of integers, times a power of two, that float32 adds exactly: numpy
-- finds the same bucket for every token and the same code. Adding a large constant and taking it off
-- again rounds a vector to such integers at the speed of pgvector's own operators. 1.37 stands
-- for any factor that keeps everyday norms away from the powers of two, where logarithms of different
-- libraries could disagree.

CREATE OR REPLACE FUNCTION sqlvec._halfvecs(x halfvec[]) RETURNS halfvec[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN x;
CREATE OR REPLACE FUNCTION sqlvec._halfvecs(x vector[]) RETURNS halfvec[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN x::halfvec[];

CREATE OR REPLACE FUNCTION sqlvec._norm(x halfvec) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN l2_norm(x);
CREATE OR REPLACE FUNCTION sqlvec._constant(value float8, dimensions int) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN array_fill(value::real, ARRAY[dimensions])::vector;
CREATE OR REPLACE FUNCTION sqlvec._round(x vector, constant vector) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN x + constant - constant;
CREATE OR REPLACE AGGREGATE sqlvec._sum(vector) (SFUNC = vector_add, STYPE = vector, PARALLEL = SAFE);

-- The least whole n with x <= 2^n, nearly.
CREATE OR REPLACE FUNCTION sqlvec._exponent(x float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN x > 0 THEN ceil(ln(x) / ln(2::float8)) ELSE 0 END;

-- The blocks of a code, one after the other. NULL without tokens, and when the matrices are not there
-- (a data-only restore).
CREATE OR REPLACE FUNCTION sqlvec._fde_values(
    encoder text, tokens halfvec[], as_query boolean, dimensions int, repetitions int, simhash_bits int, projection int
) RETURNS float8[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
-- Left to itself, the server plans the large query below anew for most rows.
SET plan_cache_mode = force_generic_plan
-- The rows that the planner expects of so many set-returning functions would have it compiled, for
-- seconds, at every call.
SET jit = off
AS $body$
DECLARE
    v_scale float8 := CASE WHEN projection = dimensions THEN 1 ELSE 1 / sqrt(projection::float8) END;
    v_total float8;
    v_found int;
BEGIN
    SELECT sum(sqlvec._norm(t)), max(sqlvec._dims(t)) FILTER (WHERE sqlvec._dims(t) <> dimensions) INTO v_total, v_found
    FROM unnest(tokens) AS t;
    IF v_found IS NOT NULL THEN
        RAISE EXCEPTION 'encoder "%" takes vectors of % dimensions, not %', encoder, dimensions, v_found
            USING ERRCODE = 'data_exception';
    ELSIF v_total IS NULL OR NOT EXISTS (
        SELECT FROM sqlvec.encoder_vector AS e
        WHERE e.encoder = _fde_values.encoder AND e.part = 'sign' AND e.position = repetitions * projection
    ) THEN
        RETURN NULL;
    END IF;
    RETURN (
        WITH plane AS MATERIALIZED (
            SELECT e.value FROM sqlvec.encoder_vector AS e
            WHERE e.encoder = _fde_values.encoder AND e.part = 'hyperplane' ORDER BY e.position
        ), sign AS MATERIALIZED (
            SELECT (e.position - 1) / projection AS r, e.position, e.value FROM sqlvec.encoder_vector AS e
            WHERE e.encoder = _fde_values.encoder AND e.part = 'sign'
        ), token AS MATERIALIZED (
            SELECT t.n, sqlvec._as_vector(t.x) AS x, sqlvec._exponent(sqlvec._norm(t.x) / 1.37) AS exponent
            FROM unnest(tokens) WITH ORDINALITY AS t (x, n) WHERE t.x IS NOT NULL
        ), grid AS MATERIALIZED (
            -- Of 2^11 steps in the norm of a token, for its bits.
            SELECT k.exponent, sqlvec._constant(1.5 * power(2::float8, 12 + k.exponent), dimensions) AS coarse
            FROM (SELECT DISTINCT t.exponent FROM token AS t) AS k
        ), fine_grid AS MATERIALIZED (
            -- So fine that the signed sum of all coordinates of all tokens has less than 2^23 steps.
            SELECT sqlvec._constant(1.5 * power(2::float8, 1 + sqlvec._exponent(1.37 * v_total * sqrt(dimensions::float8))),
                                    dimensions) AS fine
        ), rounded AS MATERIALIZED (
            SELECT t.n, sqlvec._round(t.x, g.coarse) AS coarse, sqlvec._round(t.x, f.fine) AS fine
            FROM token AS t JOIN grid AS g ON g.exponent = t.exponent CROSS JOIN fine_grid AS f
        ), hashed AS MATERIALIZED (
            SELECT t.n, t.fine,
                   CASE WHEN simhash_bits > 0
                        THEN sqlvec._bits(ARRAY(SELECT sqlvec._dot(t.coarse, p.value) FROM plane AS p)) END AS bits
            FROM rounded AS t
        ), bucket AS MATERIALIZED (
            SELECT r, coalesce(substring(h.bits FROM r * simhash_bits + 1 FOR simhash_bits)::int, 0) AS b,
                   sqlvec._sum(h.fine) AS value, CASE WHEN as_query THEN 1 ELSE count(*) END::float8 AS tokens, min(h.n) AS first
            FROM hashed AS h CROSS JOIN generate_series(0, repetitions - 1) AS r
            GROUP BY 1, 2
        ), nearest AS MATERIALIZED (
            -- Of each bucket of a document: the distance of the nearest that is not empty, and its first token.
            SELECT f.r, k AS b, min(bit_count((f.b # k)::bit(32)) * 4294967296 + f.first) AS found
            FROM bucket AS f CROSS JOIN generate_series(0, (1 << simhash_bits) - 1) AS k
            WHERE NOT as_query
            GROUP BY 1, 2
        ), block AS MATERIALIZED (
            SELECT f.r, f.b, f.value, f.tokens FROM bucket AS f
            UNION ALL
            SELECT n.r, n.b, h.fine, 1 FROM nearest AS n JOIN hashed AS h ON h.n = n.found % 4294967296
            WHERE n.found >= 4294967296
        ), projected AS MATERIALIZED (
            SELECT b.r, b.b, s.position, sqlvec._dot(b.value, s.value) / b.tokens * v_scale AS value
            FROM block AS b JOIN sign AS s ON s.r = b.r
        )
        SELECT array_agg(coalesce(p.value, 0) ORDER BY c.r, c.b, c.position)
        FROM (SELECT r, k AS b, r * projection + j AS position
              FROM generate_series(0, repetitions - 1) AS r, generate_series(0, (1 << simhash_bits) - 1) AS k,
                   generate_series(1, projection) AS j) AS c
        LEFT JOIN projected AS p ON p.r = c.r AND p.b = c.b AND p.position = c.position);
END
$body$;

-- Count sketch (Charikar, Chen and Farach-Colton 2002): every value goes to one slot, with one sign.
CREATE OR REPLACE FUNCTION sqlvec._fde_sketch(encoder text, blocks float8[], final_dimensions int) RETURNS float8[]
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_slots real[] := ARRAY(
        SELECT s.slot FROM sqlvec.encoder_vector AS e, unnest(sqlvec._real_array(e.value)) WITH ORDINALITY AS s (slot, position)
        WHERE e.encoder = _fde_sketch.encoder AND e.part = 'slot' ORDER BY e.position, s.position);
BEGIN
    IF cardinality(v_slots) <> cardinality(blocks) THEN
        RETURN NULL;
    END IF;
    RETURN (
        SELECT array_agg(coalesce(s.value, 0) ORDER BY n)
        FROM generate_series(1, final_dimensions) AS n
        LEFT JOIN (SELECT abs(u.slot)::int AS slot, sum(sign(u.slot) * u.value) AS value
                   FROM unnest(v_slots, blocks) AS u (slot, value) GROUP BY 1) AS s ON s.slot = n);
END
$body$;

-- An array, but without a single vector.
CREATE OR REPLACE FUNCTION sqlvec._is_blank(tokens halfvec[]) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN tokens IS NOT NULL AND NOT EXISTS (SELECT FROM unnest(tokens) AS t WHERE t IS NOT NULL);

-- The values of a code. Zeros without tokens, so that such a row counts as encoded; it is found by nothing.
CREATE OR REPLACE FUNCTION sqlvec._fde_code(
    encoder text, tokens halfvec[], as_query boolean, dimensions int, repetitions int, simhash_bits int, projection int, final_dimensions int
) RETURNS float8[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_values float8[];
BEGIN
    IF sqlvec._is_blank(tokens) THEN
        RETURN array_fill(0::float8, ARRAY[coalesce(final_dimensions, repetitions * (1 << simhash_bits) * projection)]);
    END IF;
    v_values := sqlvec._fde_values(encoder, tokens, as_query, dimensions, repetitions, simhash_bits, projection);
    RETURN CASE WHEN final_dimensions IS NULL THEN v_values ELSE sqlvec._fde_sketch(encoder, v_values, final_dimensions) END;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._fde(
    encoder text, tokens halfvec[], as_query boolean, dimensions int, repetitions int, simhash_bits int, projection int, final_dimensions int
) RETURNS halfvec
LANGUAGE sql STABLE PARALLEL SAFE
RETURN sqlvec._to_halfvec(sqlvec._fde_code(encoder, tokens, as_query, dimensions, repetitions, simhash_bits, projection, final_dimensions));

-- One bit per value, set where factor * value is above `size`; a vector has no more than 16000.
CREATE OR REPLACE FUNCTION sqlvec._bits_above(x float8[], factor float8, size float8) RETURNS bit
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN binary_quantize(sqlvec._constant(factor, cardinality(x)) * x::vector - sqlvec._constant(size, cardinality(x)));
CREATE OR REPLACE FUNCTION sqlvec._above(x float8[], factor float8, size float8) RETURNS varbit
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN cardinality(x) <= 16000 THEN sqlvec._bits_above(x, factor, size)
            ELSE sqlvec._bits_above(x[:16000], factor, size) || sqlvec._bits_above(x[16001:], factor, size) END;

-- The same as signs: which values are positive, then which are negative. A document and a query that
-- agree in a sign differ in no bit, those that disagree in two, and where one of them has a zero, as the
-- empty buckets of a query do, in one whatever the other has: Hamming distance then ranks by the signs of
-- the query's tokens alone.
CREATE OR REPLACE FUNCTION sqlvec._signs(code float8[], size float8 = 0) RETURNS bit
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
RETURN sqlvec._above(code, 1, size) || sqlvec._above(code, -1, size);

-- The signs of values larger than their mean; the rest count as zeros. The distance to these added to that
-- of all signs has the size of a query's values tell, as much of it as matters.
CREATE OR REPLACE FUNCTION sqlvec._strong_signs(code float8[]) RETURNS bit
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
RETURN sqlvec._signs(code, (SELECT coalesce(avg(abs(v)) FILTER (WHERE v <> 0), 0) FROM unnest(code) AS v));

CREATE OR REPLACE FUNCTION sqlvec._fde_bits(
    encoder text, tokens halfvec[], as_query boolean, dimensions int, repetitions int, simhash_bits int, projection int, final_dimensions int
) RETURNS bit
LANGUAGE sql STABLE PARALLEL SAFE
RETURN sqlvec._signs(sqlvec._fde_code(encoder, tokens, as_query, dimensions, repetitions, simhash_bits, projection, final_dimensions));

-- Dimensions and options of an encoder as SQL constants. Whatever a row of the catalog says, these are
-- integers.
CREATE OR REPLACE FUNCTION sqlvec._fde_constants(dimensions int, options jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN format('%s, %s, %s, %s, %s', dimensions, (options ->> 'repetitions')::int, (options ->> 'simhash_bits')::int,
              (options ->> 'projection')::int, coalesce((options ->> 'final_dimensions')::int::text, 'NULL'));

-- The encoder, when it makes codes of this type.
CREATE OR REPLACE FUNCTION sqlvec._fde_encoder(encoder text, code_type text) RETURNS sqlvec.encoder
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_encoder sqlvec.encoder;
BEGIN
    SELECT e.* INTO v_encoder FROM sqlvec.encoder AS e WHERE e.name = _fde_encoder.encoder;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'encoder "%" does not exist', encoder
            USING ERRCODE = 'undefined_object',
                  HINT = 'Encoders are listed in table sqlvec.encoder; the one of a column by sqlvec.derived_column.';
    ELSIF v_encoder.kind <> 'fde' THEN
        RAISE EXCEPTION 'encoder "%" is of kind "%", not "fde"', encoder, v_encoder.kind
            USING ERRCODE = 'datatype_mismatch', HINT = 'sqlvec.encode encodes single vectors.';
    ELSIF v_encoder.code_type <> code_type THEN
        RAISE EXCEPTION 'encoder "%" makes codes of type %, not %', encoder, v_encoder.code_type, code_type
            USING ERRCODE = 'datatype_mismatch',
                  HINT = CASE code_type WHEN 'bit' THEN 'Use sqlvec.fde_document or sqlvec.fde_query.'
                                        ELSE 'Use sqlvec.fde_document_bits or sqlvec.fde_query_bits.' END;
    END IF;
    RETURN v_encoder;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._fde_of(encoder text, tokens halfvec[], as_query boolean) RETURNS halfvec
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE WHEN NOT sqlvec._is_blank(tokens)
                THEN sqlvec._fde(encoder, tokens, as_query, e.dimensions, (e.options ->> 'repetitions')::int, (e.options ->> 'simhash_bits')::int,
                                 (e.options ->> 'projection')::int, (e.options ->> 'final_dimensions')::int) END
    FROM sqlvec._fde_encoder(encoder, 'halfvec') AS e;
END;

CREATE OR REPLACE FUNCTION sqlvec._fde_bits_of(encoder text, tokens halfvec[], as_query boolean) RETURNS bit
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE WHEN NOT sqlvec._is_blank(tokens)
                THEN sqlvec._fde_bits(encoder, tokens, as_query, e.dimensions, (e.options ->> 'repetitions')::int, (e.options ->> 'simhash_bits')::int,
                                      (e.options ->> 'projection')::int, (e.options ->> 'final_dimensions')::int) END
    FROM sqlvec._fde_encoder(encoder, 'bit') AS e;
END;

CREATE OR REPLACE FUNCTION sqlvec.fde_document(encoder text, tokens halfvec[]) RETURNS halfvec
LANGUAGE sql STABLE PARALLEL SAFE RETURN sqlvec._fde_of(encoder, tokens, false);
COMMENT ON FUNCTION sqlvec.fde_document(text, halfvec[]) IS
    'Fixed dimensional encoding of the multi-vector of a document, under a catalog encoder of kind fde. Its inner product with sqlvec.fde_query estimates `repetitions` times sqlvec.maxsim; never normalise it. NULL without tokens.';

CREATE OR REPLACE FUNCTION sqlvec.fde_query(encoder text, tokens halfvec[]) RETURNS halfvec
LANGUAGE sql STABLE PARALLEL SAFE RETURN sqlvec._fde_of(encoder, tokens, true);
COMMENT ON FUNCTION sqlvec.fde_query(text, halfvec[]) IS
    'Fixed dimensional encoding of the multi-vector of a query, to be compared by <#> with those that sqlvec.fde_document makes. NULL without tokens.';

CREATE OR REPLACE FUNCTION sqlvec.fde_document_bits(encoder text, tokens halfvec[]) RETURNS bit
LANGUAGE sql STABLE PARALLEL SAFE RETURN sqlvec._fde_bits_of(encoder, tokens, false);
COMMENT ON FUNCTION sqlvec.fde_document_bits(text, halfvec[]) IS
    'Signs of the fixed dimensional encoding of a document, under a catalog encoder of kind fde with option "bits": which values are positive, then which are negative. NULL without tokens.';

CREATE OR REPLACE FUNCTION sqlvec.fde_query_bits(encoder text, tokens halfvec[]) RETURNS bit
LANGUAGE sql STABLE PARALLEL SAFE RETURN sqlvec._fde_bits_of(encoder, tokens, true);
COMMENT ON FUNCTION sqlvec.fde_query_bits(text, halfvec[]) IS
    'Signs of the fixed dimensional encoding of a query, to be compared by Hamming distance <~> with those that sqlvec.fde_document_bits makes: the more a document agrees with the query, the nearer it is. NULL without tokens.';

-- An error for settings whose codes no HNSW index on halfvec can hold; its hint names some that fit.
CREATE OR REPLACE FUNCTION sqlvec._check_fde(dimensions int, options jsonb) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_r int := options ->> 'repetitions';
    v_bits int := options ->> 'simhash_bits';
    v_p int := options ->> 'projection';
    v_final int := options ->> 'final_dimensions';
    v_signs boolean := coalesce((options ->> 'bits')::boolean, false);
    v_most int := CASE WHEN v_signs THEN 32000 ELSE 4000 END;
    v_fitting text[] := '{}';
    v_blocks bigint := v_r::bigint * (1 << v_bits) * v_p;
BEGIN
    IF v_p > dimensions THEN
        RAISE EXCEPTION 'option "projection" is at most the dimensions of the vectors, %, not %', dimensions, v_p
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF (1 << v_bits) * v_p > 16000 OR v_blocks > 1000000 THEN
        RAISE EXCEPTION 'an encoding has at most 16000 dimensions per repetition and 1000000 in all, not % and %', (1 << v_bits) * v_p, v_blocks
            USING ERRCODE = 'program_limit_exceeded', HINT = 'Take fewer "simhash_bits", or a smaller "projection".';
    ELSIF v_final >= v_blocks THEN
        RAISE EXCEPTION 'option "final_dimensions" is less than the % dimensions of the encoding, not %', v_blocks, v_final
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave it out: the encoding is small enough as it is.';
    ELSIF v_final IS NULL AND v_blocks > v_most THEN
        IF v_most / ((1 << v_bits) * v_p) > 0 THEN
            v_fitting := v_fitting || format('repetitions => %s', v_most / ((1 << v_bits) * v_p));
        END IF;
        IF v_most / (v_r * v_p) > 0 THEN
            v_fitting := v_fitting || format('simhash_bits => %s', floor(log(2, v_most / (v_r * v_p)))::int);
        END IF;
        IF v_most / (v_r * (1 << v_bits)) > 0 THEN
            v_fitting := v_fitting || format('projection => %s', v_most / (v_r * (1 << v_bits)));
        END IF;
        RAISE EXCEPTION 'an encoding of % repetitions, 2^% buckets and projection % has % dimensions; an index on % takes %',
            v_r, v_bits, v_p, v_blocks, CASE WHEN v_signs THEN 'its signs' ELSE 'halfvec' END, v_most
            USING ERRCODE = 'program_limit_exceeded',
                  HINT = format('Any one of these fits: %s.',
                                array_to_string(v_fitting || format('final_dimensions => %s', least(v_most, 4000))
                                                || CASE WHEN NOT v_signs AND v_blocks <= 32000 THEN ARRAY['bits => true'] ELSE '{}' END, ', '));
    END IF;
END
$body$;

-- Random numbers between 0 and 1 from a seed, the same on every machine. md5, because neighbours among
-- hashes of integers resemble each other enough to show in the directions of hyperplanes.
CREATE OR REPLACE FUNCTION sqlvec._uniform(n bigint, stream int, seed bigint) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (('x' || left(md5(seed::text || ' ' || stream::text || ' ' || n::text), 13))::bit(52)::bigint + 0.5::float8) / 4503599627370496;

-- The matrices: hyperplanes with Gaussian directions and norms of about 4000, signs, and the slots of
-- the count sketch, negative where the sign is.
CREATE OR REPLACE FUNCTION sqlvec._write_fde(encoder text, dimensions int, options jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_r int := options ->> 'repetitions';
    v_bits int := options ->> 'simhash_bits';
    v_p int := options ->> 'projection';
    v_final int := options ->> 'final_dimensions';
    v_seed bigint := options ->> 'seed';
    v_width int := (1 << v_bits) * v_p;
    v_row float8[];
    v_norm float8;
BEGIN
    FOR n IN 1 .. v_r * v_bits LOOP
        v_row := ARRAY(
            SELECT sqrt(-2 * ln(sqlvec._uniform(n::bigint * dimensions + j, 1, v_seed)))
                   * cos(2 * pi() * sqlvec._uniform(n::bigint * dimensions + j, 2, v_seed))
            FROM generate_series(1, dimensions) AS j ORDER BY j);
        v_norm := (SELECT sqrt(sum(v * v)) FROM unnest(v_row) AS v);
        INSERT INTO sqlvec.encoder_vector (encoder, part, position, value)
        VALUES (_write_fde.encoder, 'hyperplane', n, ARRAY(SELECT round(v * 4000 / v_norm) FROM unnest(v_row) AS v));
    END LOOP;
    INSERT INTO sqlvec.encoder_vector (encoder, part, position, value)
    SELECT _write_fde.encoder, 'sign', n,
           ARRAY(SELECT CASE WHEN v_p = dimensions THEN CASE WHEN j = (n - 1) % v_p + 1 THEN 1 ELSE 0 END
                             WHEN sqlvec._uniform(n::bigint * dimensions + j, 3, v_seed) < 0.5 THEN 1 ELSE -1 END::float8
                 FROM generate_series(1, dimensions) AS j ORDER BY j)
    FROM generate_series(1, v_r * v_p) AS n;
    IF v_final IS NOT NULL THEN
        INSERT INTO sqlvec.encoder_vector (encoder, part, position, value)
        SELECT _write_fde.encoder, 'slot', n,
               ARRAY(SELECT (1 + floor(sqlvec._uniform(n::bigint * v_width + j, 4, v_seed) * v_final))
                            * CASE WHEN sqlvec._uniform(n::bigint * v_width + j, 5, v_seed) < 0.5 THEN 1 ELSE -1 END
                     FROM generate_series(1, v_width) AS j ORDER BY j)
        FROM generate_series(1, v_r) AS n;
    END IF;
END
$body$;

-- The SQL expressions that compute the code of a query, its signs and its strong signs, given that of its
-- tokens.
CREATE OR REPLACE FUNCTION sqlvec._fde_query(encoder text, argument text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT format(CASE e.code_type
                  WHEN 'bit' THEN 'SELECT NULL::%4$I.halfvec AS code, sqlvec._signs(v.code) AS signs, sqlvec._strong_signs(v.code) AS strong '
                                  'FROM sqlvec._fde_code(%1$L, %2$s, true, %3$s) AS v (code)'
                  ELSE 'SELECT sqlvec._fde(%1$L, %2$s, true, %3$s) AS code, NULL::pg_catalog.bit AS signs, NULL::pg_catalog.bit AS strong' END,
                  encoder, argument, sqlvec._fde_constants(e.dimensions, e.options), sqlvec._vector_schema())
    FROM sqlvec.encoder AS e WHERE e.name = encoder;
END;
