-- Pooling: fewer vectors for a multi-vector (Clavie, Chaffin and Adams 2024, arXiv:2409.14683).
--
-- Tokens that resemble each other are replaced by their mean, or only some tokens are kept. Unless told
-- to, a mean is not made a unit vector again: a group of tokens that disagree then weighs less.
--
-- Which tokens belong together follows from inner products of tokens rounded to a grid on which
-- float32 adds exactly (see fde_encode.sql), and from float8 arithmetic in a fixed order. Means are
-- pgvector's, whose sums of halfvec are exact in float8. numpy finds the same vectors, to the last bit
-- (normalized ones to one unit in the last place).

CREATE OR REPLACE FUNCTION sqlvec._norm(x vector) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN vector_norm(x);

-- A vector in 2^11 steps of its norm: inner products of two of these are exact.
CREATE OR REPLACE FUNCTION sqlvec._coarse(x vector) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sqlvec._round(x, sqlvec._constant(1.5 * power(2::float8, 12 + sqlvec._exponent(sqlvec._norm(x) / 1.37)), vector_dims(x)));

-- The direction of a coarse vector: integers of norm 2048, nearly. Zero stays zero.
CREATE OR REPLACE FUNCTION sqlvec._direction(coarse vector) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN sqlvec._dot(coarse, coarse) > 0
            THEN sqlvec._round(coarse * sqlvec._constant(2048 / sqrt(sqlvec._dot(coarse, coarse)), vector_dims(coarse)),
                               sqlvec._constant(12582912, vector_dims(coarse)))
            ELSE coarse END;

-- The vectors of an array, numbered from 1.
CREATE OR REPLACE FUNCTION sqlvec._present(tokens halfvec[]) RETURNS halfvec[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN tokens IS NOT NULL THEN ARRAY(SELECT t FROM unnest(tokens) AS t WHERE t IS NOT NULL) END;

-- The mean of the tokens with each label, in the order of the labels.
CREATE OR REPLACE FUNCTION sqlvec._pool_labelled(tokens halfvec[], labels int[], unit boolean) RETURNS halfvec[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT coalesce(array_agg(CASE WHEN unit THEN l2_normalize(m.mean) ELSE m.mean END ORDER BY m.label), '{}')
    FROM (SELECT u.label, avg(u.x) AS mean FROM unnest(tokens, labels) AS u (x, label) GROUP BY 1) AS m;
END;

-- The mean of the tokens in each range, in the order of the ranges.
CREATE OR REPLACE FUNCTION sqlvec._pool_ranges(tokens halfvec[], firsts int[], lasts int[], unit boolean) RETURNS halfvec[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT coalesce(array_agg((SELECT CASE WHEN unit THEN l2_normalize(avg(t)) ELSE avg(t) END
                               FROM unnest(tokens[r.first : r.last]) AS t) ORDER BY r.n), '{}')
    FROM unnest(firsts, lasts) WITH ORDINALITY AS r (first, last, n);
END;

-- Squared cosine distances of all pairs, those above the diagonal. A zero vector is at distance 1.
CREATE OR REPLACE FUNCTION sqlvec._pool_distances(tokens halfvec[]) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH rounded AS MATERIALIZED (
        SELECT t.n, sqlvec._coarse(t.x::vector) AS x FROM unnest(tokens) WITH ORDINALITY AS t (x, n)
    ), token AS MATERIALIZED (
        SELECT r.n, r.x, sqrt(sqlvec._dot(r.x, r.x)) AS norm FROM rounded AS r ORDER BY r.n
    )
    SELECT array_agg(ARRAY(
        SELECT p.distance * p.distance
        FROM (SELECT CASE WHEN b.n > a.n THEN 1 - coalesce(sqlvec._dot(a.x, b.x) / nullif(a.norm * b.norm, 0), 0) ELSE 0 END AS distance
              FROM token AS b OFFSET 0) AS p) ORDER BY a.n)
    FROM token AS a;
END;

-- Ward's clusters of tokens: for each token the number of the first one of its cluster.
--
-- As scipy's linkage(pdist, "ward") cut by maxclust, with cosine distances. Ward never merges at a
-- smaller distance than before, so the cut is where the merging stops. Each cluster goes by its first
-- token and remembers the nearest of the clusters after it; of equally near pairs the first counts.
CREATE OR REPLACE FUNCTION sqlvec._pool_ward(tokens halfvec[], clusters int) RETURNS int[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_n int := cardinality(tokens);
    v_squares float8[] := sqlvec._pool_distances(tokens);
    v_sizes float8[] := array_fill(1::float8, ARRAY[v_n]);
    v_labels int[] := ARRAY(SELECT generate_series(1, v_n));
    v_active int[] := v_labels;
    v_near int[] := array_fill(0, ARRAY[v_n]);
    v_least float8[] := array_fill('Infinity'::float8, ARRAY[v_n]); -- the distance to the nearest
    v_stale int[] := v_labels; -- clusters that have to look for their nearest
    v_i int;
    v_j int;
    v_k int;
    v_l int;
    v_min float8;
    v_square float8;
    v_size_i float8;
    v_size_j float8;
    v_size float8;
BEGIN
    FOR v_merge IN 1 .. v_n - clusters LOOP
        FOREACH v_k IN ARRAY v_stale LOOP
            v_min := 'Infinity';
            v_j := 0;
            FOREACH v_l IN ARRAY v_active[array_position(v_active, v_k) + 1 :] LOOP
                v_square := v_squares[v_k][v_l];
                IF v_square < v_min THEN
                    v_min := v_square;
                    v_j := v_l;
                END IF;
            END LOOP;
            v_near[v_k] := v_j;
            v_least[v_k] := v_min;
        END LOOP;

        v_min := (SELECT min(l) FROM unnest(v_least) AS l);
        v_i := array_position(v_least, v_min);
        v_j := v_near[v_i];
        v_size_i := v_sizes[v_i];
        v_size_j := v_sizes[v_j];
        v_active := array_remove(v_active, v_j);
        v_labels[v_j] := v_i;
        v_least[v_j] := 'Infinity';
        v_stale := ARRAY[v_i];
        -- Lance and Williams 1967: from the distances to two clusters, the distance to their union.
        FOREACH v_k IN ARRAY v_active LOOP
            v_size := v_sizes[v_k];
            IF v_k < v_i THEN
                v_square := ((v_size_i + v_size) * v_squares[v_k][v_i] + (v_size_j + v_size) * v_squares[v_k][v_j] - v_size * v_min)
                            / (v_size_i + v_size_j + v_size);
                v_squares[v_k][v_i] := v_square;
                v_l := v_near[v_k];
                IF v_l = v_i OR v_l = v_j THEN
                    v_stale := v_stale || v_k;
                ELSIF v_square <= v_least[v_k] AND (v_square < v_least[v_k] OR v_i < v_l) THEN
                    v_near[v_k] := v_i;
                    v_least[v_k] := v_square;
                END IF;
            ELSIF v_k > v_j THEN
                v_squares[v_i][v_k] := ((v_size_i + v_size) * v_squares[v_i][v_k] + (v_size_j + v_size) * v_squares[v_j][v_k] - v_size * v_min)
                                       / (v_size_i + v_size_j + v_size);
            ELSIF v_k > v_i THEN
                v_squares[v_i][v_k] := ((v_size_i + v_size) * v_squares[v_i][v_k] + (v_size_j + v_size) * v_squares[v_k][v_j] - v_size * v_min)
                                       / (v_size_i + v_size_j + v_size);
                IF v_near[v_k] = v_j THEN
                    v_stale := v_stale || v_k;
                END IF;
            END IF;
        END LOOP;
        v_sizes[v_i] := v_size_i + v_size_j;
    END LOOP;
    -- A cluster that was merged names the one it went to, which comes before it.
    FOR v_k IN 1 .. v_n LOOP
        v_labels[v_k] := v_labels[v_labels[v_k]];
    END LOOP;
    RETURN v_labels;
END
$body$;

-- Ward's clustering keeps the distances of all pairs.
CREATE OR REPLACE FUNCTION sqlvec._pool_hierarchical(tokens halfvec[], factor int, protected int, unit boolean) RETURNS halfvec[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_n int := cardinality(tokens) - protected;
BEGIN
    IF v_n < 2 THEN
        RETURN tokens;
    ELSIF v_n > 4096 THEN
        RAISE EXCEPTION 'hierarchical pooling takes at most 4096 tokens, not %', v_n
            USING ERRCODE = 'data_exception', HINT = 'Declare the column with another method: kmeans, sequential, or rows for page images.';
    END IF;
    RETURN tokens[: protected] || sqlvec._pool_labelled(
        tokens[protected + 1 :], sqlvec._pool_ward(tokens[protected + 1 :], greatest(v_n / factor, 1)), unit);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._pool_directions(tokens halfvec[]) RETURNS vector[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH rounded AS MATERIALIZED (
        SELECT t.n, sqlvec._coarse(t.x::vector) AS x FROM unnest(tokens) WITH ORDINALITY AS t (x, n)
    )
    SELECT array_agg(sqlvec._direction(r.x) ORDER BY r.n) FROM rounded AS r;
END;

-- For each unit the number of the centre with the largest inner product, of equal ones the first.
-- Distance and number in one integer, which min compares fastest.
CREATE OR REPLACE FUNCTION sqlvec._pool_nearest(units vector[], centres vector[]) RETURNS int[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg((f.found - floor(f.found / 65536) * 65536)::int ORDER BY f.n)
    FROM (SELECT u.n, (SELECT min((u.x <#> c.x) * 65536 + c.n) FROM unnest(centres) WITH ORDINALITY AS c (x, n)) AS found
          FROM unnest(units) WITH ORDINALITY AS u (x, n)) AS f;
END;

-- Directions of the means of the clusters; one that nothing belongs to stays where it was.
CREATE OR REPLACE FUNCTION sqlvec._pool_centres(units vector[], labels int[], centres vector[]) RETURNS vector[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH mean AS MATERIALIZED (
        SELECT u.label, avg(u.x) AS x FROM unnest(units, labels) AS u (x, label) GROUP BY 1
    ), rounded AS MATERIALIZED (
        SELECT m.label, sqlvec._coarse(m.x) AS x FROM mean AS m
    )
    SELECT array_agg(coalesce(sqlvec._direction(r.x), c.x) ORDER BY c.n)
    FROM unnest(centres) WITH ORDINALITY AS c (x, n) LEFT JOIN rounded AS r ON r.label = c.n;
END;

-- Spherical k-means (Dhillon and Modha 2001) from evenly spaced units: for each the number of its cluster.
CREATE OR REPLACE FUNCTION sqlvec._pool_spherical(units vector[], clusters int, iterations int) RETURNS int[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_centres units%TYPE := ARRAY(SELECT units[1 + c * cardinality(units)::bigint / clusters] FROM generate_series(0, clusters - 1) AS c);
    v_labels int[];
    v_before int[];
BEGIN
    FOR v_iteration IN 1 .. iterations LOOP
        v_labels := sqlvec._pool_nearest(units, v_centres);
        EXIT WHEN v_labels = v_before;
        v_centres := sqlvec._pool_centres(units, v_labels, v_centres);
        v_before := v_labels;
    END LOOP;
    RETURN v_labels;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._pool_kmeans(tokens halfvec[], factor int, clusters int, iterations int, protected int, unit boolean) RETURNS halfvec[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_n int := cardinality(tokens) - protected;
BEGIN
    IF v_n IS NULL OR v_n < 1 THEN
        RETURN tokens;
    END IF;
    RETURN tokens[: protected] || sqlvec._pool_labelled(tokens[protected + 1 :], ARRAY(
        SELECT (min(l.n) OVER (PARTITION BY l.label))::int
        FROM unnest(sqlvec._pool_spherical(sqlvec._pool_directions(tokens[protected + 1 :]),
                                           least(v_n, coalesce(clusters - protected, v_n / factor + 1)), iterations))
             WITH ORDINALITY AS l (label, n)
        ORDER BY l.n), unit);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._pool_sequential(tokens halfvec[], factor int, protected int, unit boolean) RETURNS halfvec[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN tokens IS NOT NULL
            THEN tokens[: protected] || sqlvec._pool_labelled(
                tokens[protected + 1 :], ARRAY(SELECT n / factor FROM generate_series(0, cardinality(tokens) - protected - 1) AS n), unit) END;

-- A page image: rows of `width` patches, then as few bins of them as max_rows says, then windows over
-- these that begin and end outside (Visual RAG Toolkit). Tokens before and after the image stay.
CREATE OR REPLACE FUNCTION sqlvec._pool_rows(tokens halfvec[], width int, height int, max_rows int, "window" int, protected int, unit boolean) RETURNS halfvec[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_n int := cardinality(tokens);
    v_before int := least(protected, v_n);
    v_rows int := least(height, (v_n - v_before) / width);
    v_bins int := least(max_rows, v_rows);
    v_after int := v_before + v_rows * width;
    v_firsts int[];
    v_lasts int[];
BEGIN
    IF v_n IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(v_before + 1 + width * (greatest(w - "window" + 1, 0) * v_rows / v_bins) ORDER BY w),
           array_agg(v_before + width * ((least(w, v_bins - 1) + 1) * v_rows / v_bins) ORDER BY w)
    INTO v_firsts, v_lasts
    FROM generate_series(0, v_bins + "window" - 2) AS w
    WHERE v_bins > 0;
    RETURN tokens[: v_before] || sqlvec._pool_ranges(tokens, v_firsts, v_lasts, unit) || tokens[v_after + 1 :];
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._pool_top(tokens halfvec[], weights real[], share numeric) RETURNS halfvec[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF tokens IS NULL OR weights IS NULL THEN
        RETURN sqlvec._present(tokens);
    ELSIF cardinality(weights) <> cardinality(tokens) THEN
        RAISE EXCEPTION 'a multi-vector of % tokens has % weights', cardinality(tokens), cardinality(weights)
            USING ERRCODE = 'data_exception', HINT = 'Give every token one weight, in the same order.';
    ELSIF EXISTS (SELECT FROM unnest(weights) AS w WHERE w IS NULL OR w = 'NaN') THEN
        RAISE EXCEPTION 'weights of tokens are numbers, not NULL or NaN' USING ERRCODE = 'data_exception';
    END IF;
    RETURN ARRAY(
        SELECT r.x
        FROM (SELECT t.x, t.n, row_number() OVER (ORDER BY t.weight DESC, t.n) AS rank, count(*) OVER () AS tokens
              FROM unnest(tokens, weights) WITH ORDINALITY AS t (x, weight, n) WHERE t.x IS NOT NULL) AS r
        WHERE r.rank <= ceil(r.tokens * share)
        ORDER BY r.n);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._pool_prefix(tokens halfvec[], count int) RETURNS halfvec[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN tokens[: count];

-- Options of a method with their defaults; NULL for an unknown one.
CREATE OR REPLACE FUNCTION sqlvec._pool_defaults(method text) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE method
    WHEN 'hierarchical' THEN '{"method": "hierarchical", "factor": 2, "protected": 1, "normalize": false}'
    WHEN 'kmeans' THEN '{"method": "kmeans", "factor": 2, "clusters": null, "iterations": 20, "protected": 1, "normalize": false}'
    WHEN 'sequential' THEN '{"method": "sequential", "factor": 2, "protected": 1, "normalize": false}'
    WHEN 'rows' THEN '{"method": "rows", "width": 32, "height": null, "max_rows": null, "window": 1, "protected": 0, "normalize": false}'
    WHEN 'tiles' THEN '{"method": "tiles", "tile": 64, "protected": 0, "normalize": false}'
    WHEN 'top' THEN '{"method": "top", "share": 0.6}'
    WHEN 'prefix' THEN '{"method": "prefix", "tokens": 16}' END::jsonb;

-- The options of kind pool with defaults filled in; an error for what a method does not have.
CREATE OR REPLACE FUNCTION sqlvec._pool_options(options jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_method text := coalesce(options ->> 'method', 'hierarchical');
    v_defaults jsonb := sqlvec._pool_defaults(v_method);
    v_options jsonb := v_defaults || options || jsonb_build_object('method', v_method);
    v_key text;
    v_value jsonb;
    v_least int;
    v_most int;
BEGIN
    IF v_defaults IS NULL THEN
        RAISE EXCEPTION 'unknown method of pooling "%"', v_method
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Methods are: hierarchical, kmeans, sequential, rows, tiles, top, prefix.';
    END IF;
    -- A number of clusters takes the place of the factor.
    IF v_options ->> 'clusters' IS NOT NULL AND options ->> 'factor' IS NULL THEN
        v_options := v_options || '{"factor": null}';
    END IF;
    FOR v_key, v_value IN SELECT o.key, o.value FROM jsonb_each(v_options) AS o LOOP
        CONTINUE WHEN v_key = 'method' OR v_key IN ('height', 'max_rows', 'clusters') AND v_value = 'null'
                      OR v_key = 'factor' AND v_value = 'null' AND v_options ->> 'clusters' IS NOT NULL;
        v_least := CASE v_key WHEN 'protected' THEN 0 WHEN 'factor' THEN 2 WHEN 'tile' THEN 2 ELSE 1 END;
        v_most := CASE v_key WHEN 'iterations' THEN 100 WHEN 'window' THEN 99 WHEN 'tokens' THEN 10000 WHEN 'clusters' THEN 10000 ELSE 1000 END;
        IF NOT v_defaults ? v_key THEN
            RAISE EXCEPTION 'pooling by method "%" has no option "%"', v_method, v_key
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = format('Its options are: %s.', (SELECT string_agg(k, ', ') FROM jsonb_object_keys(v_defaults - 'method') AS k));
        ELSIF v_key = 'normalize' THEN
            IF jsonb_typeof(v_value) <> 'boolean' THEN
                RAISE EXCEPTION 'option "normalize" is true or false, not %', v_value USING ERRCODE = 'invalid_parameter_value';
            END IF;
        ELSIF v_key = 'share' THEN
            IF jsonb_typeof(v_value) <> 'number' OR v_value::text::numeric NOT BETWEEN 0.001 AND 1 THEN
                RAISE EXCEPTION 'option "share" is a number from 0.001 to 1, not %', v_value USING ERRCODE = 'invalid_parameter_value';
            END IF;
        ELSIF v_value::text !~ '^[0-9]{1,5}$' OR v_value::text::int NOT BETWEEN v_least AND v_most THEN
            RAISE EXCEPTION 'option "%" is an integer from % to %, not %', v_key, v_least, v_most, v_value
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF v_key = 'window' AND v_value::text::int % 2 = 0 THEN
            RAISE EXCEPTION 'option "window" is an odd number of rows, not %', v_value USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    IF v_options ->> 'clusters' IS NOT NULL AND v_options ->> 'factor' IS NOT NULL THEN
        RAISE EXCEPTION 'give option "factor" or "clusters", not both' USING ERRCODE = 'invalid_parameter_value';
    ELSIF (v_options ->> 'clusters')::int <= (v_options ->> 'protected')::int THEN
        RAISE EXCEPTION 'option "clusters" counts the protected tokens too: it is more than %, not %',
            v_options ->> 'protected', v_options ->> 'clusters' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN v_options;
END
$body$;

-- The SQL expression that pools. Whatever a row of the catalog says, the options in it are numbers.
CREATE OR REPLACE FUNCTION sqlvec._pool_expression(options jsonb, arguments text[]) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_tokens text := format('sqlvec._halfvecs(%s)', arguments[1]);
    v_present text := format('sqlvec._present(%s)', v_tokens);
    v_factor int := options ->> 'factor';
    v_protected int := options ->> 'protected';
    v_normalize text := (options ->> 'normalize')::boolean::text;
BEGIN
    CASE options ->> 'method'
    WHEN 'hierarchical' THEN
        RETURN format('sqlvec._pool_hierarchical(%s, %s, %s, %s)', v_present, v_factor, v_protected, v_normalize);
    WHEN 'kmeans' THEN
        RETURN format('sqlvec._pool_kmeans(%s, %s, %s, %s, %s, %s)', v_present, coalesce(v_factor::text, 'NULL'),
                      coalesce((options ->> 'clusters')::int::text, 'NULL'), (options ->> 'iterations')::int, v_protected, v_normalize);
    WHEN 'sequential' THEN
        RETURN format('sqlvec._pool_sequential(%s, %s, %s, %s)', v_present, v_factor, v_protected, v_normalize);
    WHEN 'rows' THEN
        RETURN format('sqlvec._pool_rows(%s, %s, %s, %s, %s, %s, %s)', v_present, (options ->> 'width')::int,
                      coalesce((options ->> 'height')::int::text, 'NULL'), coalesce((options ->> 'max_rows')::int::text, 'NULL'),
                      (options ->> 'window')::int, v_protected, v_normalize);
    WHEN 'tiles' THEN
        RETURN format('sqlvec._pool_sequential(%s, %s, %s, %s)', v_present, (options ->> 'tile')::int, v_protected, v_normalize);
    WHEN 'top' THEN
        RETURN format('sqlvec._pool_top(%s, %s, %s)', v_tokens, coalesce(arguments[2], 'NULL'), (options ->> 'share')::numeric);
    WHEN 'prefix' THEN
        RETURN format('sqlvec._pool_prefix(%s, %s)', v_present, (options ->> 'tokens')::int);
    END CASE;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.pool(encoder text, tokens halfvec[], weights real[] = NULL) RETURNS halfvec[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_encoder record;
    v_found int;
    v_pooled tokens%TYPE;
BEGIN
    SELECT e.kind, e.dimensions, e.options ->> 'method' AS method INTO v_encoder FROM sqlvec.encoder AS e WHERE e.name = pool.encoder;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'encoder "%" does not exist', encoder
            USING ERRCODE = 'undefined_object',
                  HINT = 'Encoders are listed in table sqlvec.encoder; the one of a column by sqlvec.derived_column.';
    ELSIF v_encoder.kind <> 'pool' THEN
        RAISE EXCEPTION 'encoder "%" is of kind "%", not "pool"', encoder, v_encoder.kind USING ERRCODE = 'datatype_mismatch';
    ELSIF weights IS NOT NULL AND v_encoder.method <> 'top' THEN
        RAISE EXCEPTION 'encoder "%" pools by method "%", which takes no weights', encoder, v_encoder.method
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Method "top" does.';
    END IF;
    v_found := (SELECT max(sqlvec._dims(t)) FILTER (WHERE sqlvec._dims(t) <> v_encoder.dimensions) FROM unnest(tokens) AS t);
    IF v_found IS NOT NULL THEN
        RAISE EXCEPTION 'encoder "%" takes vectors of % dimensions, not %', encoder, v_encoder.dimensions, v_found
            USING ERRCODE = 'data_exception';
    END IF;
    EXECUTE 'SELECT ' || sqlvec._encode_expression(encoder, '{$1,$2}') INTO v_pooled USING tokens, weights;
    RETURN v_pooled;
END
$body$;

COMMENT ON FUNCTION sqlvec.pool(text, halfvec[], real[]) IS
    'Fewer vectors for the multi-vector of a document, under a catalog encoder of kind pool. weights: one number per token, for method top. Means are unit vectors only with option "normalize". NULLs inside the array count for nothing, an empty array stays empty.';
