-- How many candidates a MaxSim search reads: it lists some by their codes, scores the first exactly, and
-- goes on while rows that it has not scored are expected to belong among the k best.
--
-- What candidates are listed by only estimates MaxSim. How well is seen on the candidates themselves: the
-- regression of exact scores on estimates holds for rows not read yet too, because candidates are chosen
-- by the estimate alone. Beyond the list estimates fall by about the same step whenever the rank doubles.
-- The two tell how many of the rows left should beat the k-th score found; once that is less than
-- k * (1 - recall), the search ends.
--
-- A middle stage, MaxSim on pooled tokens, spares most candidates the exact score: the first ones get all
-- three, later ones the exact one only where its regression on the estimate and the pooled score leaves
-- them a chance of half a thousandth or so.

-- Whether as many were found as were asked for.
CREATE OR REPLACE FUNCTION sqlvec._as_many(row_ids text[], wanted int) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN coalesce(cardinality(row_ids), 0) >= wanted;

-- Share of a standard normal distribution above x, to seven digits (Abramowitz and Stegun 26.2.17; erfc
-- came with PostgreSQL 16).
CREATE OR REPLACE FUNCTION sqlvec._normal_tail(x float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE WHEN _normal_tail.x < 0 THEN 1 - t.tail WHEN _normal_tail.x >= 0 THEN t.tail END
    FROM (SELECT least(abs(_normal_tail.x), 30) AS size, 1 / (1 + 0.2316419 * least(abs(_normal_tail.x), 30)) AS t) AS a,
    LATERAL (SELECT exp(- a.size * a.size / 2) * 0.3989422804014327
                    * a.t * (0.319381530 + a.t * (-0.356563782 + a.t * (1.781477937 + a.t * (-1.821255978 + a.t * 1.330274429)))) AS tail) AS t;
END;

-- Where a search stands.
DO $do$
BEGIN
    IF pg_catalog.to_regtype('sqlvec._maxsim_state') IS NULL THEN
        CREATE TYPE sqlvec._maxsim_state AS (
            wanted     int,      -- candidates to score, those scored among them
            bar        float8,   -- pooled + tilt * estimate below which a candidate is not scored exactly; NULL
            tilt       float8,   -- scores all
            estimates  float8[], -- of the candidates so far, with their pooled and exact scores and where they are
            pooled     float8[],
            scores     float8[],
            row_ids    text[],
            row_tables oid[],
            missing    float8,   -- how many of the k best are expected among rows that were not read
            finished   boolean,
            exhaustive boolean,  -- reading all that match is the way to go on
            complete   boolean
        );
    END IF;
END
$do$;

CREATE OR REPLACE FUNCTION sqlvec._maxsim_start(wanted int) RETURNS sqlvec._maxsim_state
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ROW(wanted, NULL, NULL, '{}', '{}', '{}', '{}', '{}', NULL, false, false, true)::sqlvec._maxsim_state;

-- What sqlvec._set_scan sets for a step. A query lies far from all documents of a graph of encodings, which
-- is walked well only with a list several times as long as what is wanted of it.
CREATE OR REPLACE FUNCTION sqlvec._maxsim_settings(wanted int, total float8, matching float8, whole boolean) RETURNS text[]
LANGUAGE sql STABLE
RETURN sqlvec._scan_settings(4 * wanted, total, matching, whole);

-- Straight line of y over x with the variance around it, or above it where that is more: on that side rows
-- are missed. Never falling: a higher estimate is no worse.
CREATE OR REPLACE FUNCTION sqlvec._line(x float8[], y float8[], OUT slope float8, OUT intercept float8, OUT variance float8)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT b.slope, b.intercept,
           (SELECT greatest(avg(d.above * d.above), avg(d.above * d.above) FILTER (WHERE d.above > 0))
            FROM (SELECT p.y - b.intercept - b.slope * p.x AS above FROM unnest(_line.x, _line.y) AS p (x, y)) AS d)
    FROM (SELECT regr_avgx(p.y, p.x) AS x, regr_avgy(p.y, p.x) AS y, regr_sxx(p.y, p.x) AS xx, regr_sxy(p.y, p.x) AS xy
          FROM unnest(x, y) AS p (x, y)) AS r,
    LATERAL (SELECT CASE WHEN r.xx > 0 THEN greatest(r.xy / r.xx, 0) ELSE 0 END AS slope) AS l,
    LATERAL (SELECT l.slope, r.y - l.slope * r.x AS intercept) AS b;
END;

-- The plane through z over x and y, where z is known, with the variance around it.
CREATE OR REPLACE FUNCTION sqlvec._plane(
    x float8[], y float8[], z float8[], OUT x_slope float8, OUT y_slope float8, OUT intercept float8, OUT variance float8
) LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT b.x_slope, b.y_slope, r.z - b.x_slope * r.x - b.y_slope * r.y,
           greatest(r.zz - b.x_slope * r.xz - b.y_slope * r.yz, 0) / greatest(r.n - 3, 1)
    FROM (SELECT count(*)::float8 AS n, avg(p.x) AS x, avg(p.y) AS y, avg(p.z) AS z,
                 regr_sxx(p.y, p.x) AS xx, regr_syy(p.y, p.x) AS yy, regr_sxy(p.y, p.x) AS xy,
                 regr_sxy(p.z, p.x) AS xz, regr_sxy(p.z, p.y) AS yz, regr_syy(p.z, p.x) AS zz
          FROM unnest(x, y, z) AS p (x, y, z) WHERE p.x IS NOT NULL AND p.y IS NOT NULL AND p.z IS NOT NULL) AS r,
    LATERAL (SELECT r.xx * r.yy - r.xy * r.xy AS size) AS d,
    -- Where x and y say the same, y says it all.
    LATERAL (SELECT CASE WHEN d.size > 1e-9 * r.xx * r.yy THEN (r.xz * r.yy - r.yz * r.xy) / d.size ELSE 0 END AS x_slope,
                    CASE WHEN d.size > 1e-9 * r.xx * r.yy THEN (r.yz * r.xx - r.xz * r.xy) / d.size
                         WHEN r.yy > 0 THEN r.yz / r.yy ELSE 0 END AS y_slope) AS b;
END;

-- The state after the candidates of one step.
--   coming    estimates of candidates that are listed for later steps, best first
--   given     candidates that the list has found
--   matching  rows that meet the condition, as far as the planner can tell
--   fixed     candidates to read whatever is expected; NULL where that is for the expectation to say
--   budget    most candidates to read
--   whole     all matches may be read instead
--   scanned   an index gave the candidates, which may have ended early
CREATE OR REPLACE FUNCTION sqlvec._maxsim_advance(
    state sqlvec._maxsim_state, estimates float8[], pooled float8[], scores float8[], row_ids text[], row_tables oid[], coming float8[], given bigint,
    k int, matching float8, recall float8, fixed int, budget int, whole boolean, scanned boolean
) RETURNS sqlvec._maxsim_state
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    s sqlvec._maxsim_state := state;
    v_count float8;
    v_left float8;
    v_estimates float8[];
    v_listed int;
    v_step float8;
    v_kth float8;
    v_line record;
    v_plane record;
    v_deviation float8;
    v_allowed float8 := (1 - recall) * k;
    v_wanted float8;
BEGIN
    s.estimates := s.estimates || estimates;
    s.pooled := s.pooled || pooled;
    s.scores := s.scores || scores;
    s.row_ids := s.row_ids || row_ids;
    s.row_tables := s.row_tables || row_tables;
    s.complete := NOT scanned OR coalesce(given, cardinality(state.estimates)) >= k;
    IF coalesce(given, cardinality(state.estimates)) < s.wanted THEN
        -- No more match, or the scan has ended. With k rows that is an answer; with fewer it may have been
        -- cut short.
        s.finished := true;
        s.exhaustive := whole AND NOT s.complete;
        RETURN s;
    END IF;
    v_count := cardinality(s.estimates);
    v_kth := (SELECT u.score FROM unnest(s.scores) AS u (score) WHERE u.score IS NOT NULL ORDER BY u.score DESC OFFSET k - 1 LIMIT 1);
    IF EXISTS (SELECT FROM unnest(s.pooled) AS u (score) WHERE u.score IS NOT NULL) THEN
        v_line := sqlvec._line(s.estimates, s.pooled);
        v_plane := sqlvec._plane(s.estimates, s.pooled, s.scores);
        IF v_plane.y_slope > 0 THEN
            s.tilt := v_plane.x_slope / v_plane.y_slope;
            s.bar := (v_kth - v_plane.intercept - 3.25 * sqrt(v_plane.variance)) / v_plane.y_slope;
        END IF;
        v_line.intercept := v_plane.intercept + v_plane.y_slope * v_line.intercept;
        v_line.variance := v_plane.variance + v_plane.y_slope * v_plane.y_slope * v_line.variance;
        v_line.slope := greatest(v_plane.x_slope + v_plane.y_slope * v_line.slope, 0);
    ELSE
        v_line := sqlvec._line(s.estimates, s.scores);
    END IF;
    IF fixed IS NOT NULL THEN
        s.finished := s.wanted >= fixed;
        s.wanted := fixed;
        RETURN s;
    END IF;

    v_left := greatest(matching / v_count, 1);
    v_estimates := ARRAY(SELECT u.estimate FROM unnest(s.estimates) AS u (estimate) ORDER BY u.estimate DESC) || coming;
    v_listed := cardinality(v_estimates);
    v_step := (v_estimates[greatest(v_listed / 2, 1)] - v_estimates[v_listed]) / ln(2::float8);
    v_deviation := greatest(sqrt(v_line.variance), 1e-9);
    -- Sum over ranks count * e^t, from the last one back: what is expected beyond each.
    SELECT max(b.beyond), min(b.rank) FILTER (WHERE b.beyond <= v_allowed) INTO s.missing, v_wanted
    FROM (SELECT v_count * exp(t.here) AS rank,
                 sum(sqlvec._normal_tail((v_kth - v_line.intercept - v_line.slope * e.estimate) / v_deviation) * r.rank * t.width) OVER (ORDER BY t.here DESC) AS beyond
          FROM (SELECT (i - 1) * ln(v_left) / 64 AS here, ln(v_left) / 64 AS width FROM generate_series(1, 64) AS i) AS t,
          LATERAL (SELECT v_count * exp(t.here + t.width / 2) AS rank) AS r,
          LATERAL (SELECT v_estimates[least(ceil(r.rank), v_listed)::int] - v_step * ln(greatest(r.rank / v_listed, 1)) AS estimate) AS e) AS b;
    -- Without a k-th score nothing can be said.
    s.missing := coalesce(s.missing, k);
    s.finished := s.missing <= v_allowed;
    IF s.finished THEN
        RETURN s;
    END IF;
    v_wanted := coalesce(v_wanted, matching);
    s.exhaustive := whole AND matching <= budget AND v_wanted > 0.7 * matching;
    s.complete := s.wanted < budget;
    s.finished := s.exhaustive OR NOT s.complete;
    -- An index is asked again for those that it has given.
    s.wanted := least(greatest(v_wanted, 2 * v_count), CASE WHEN scanned THEN 8 ELSE 4 END * v_count, budget);
    RETURN s;
END
$body$;
