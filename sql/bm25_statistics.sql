-- Corpus statistics of BM25 columns: how many documents, and how many hold each term.
--
-- They behave like the planner's: CALL sqlvec.analyze_bm25 refreshes them, and scores are exact with
-- respect to what it stored. Terms betray what documents say, so that, unlike the catalog, these
-- tables have policies: who may not read a code may not read its statistics.

CREATE TABLE IF NOT EXISTS sqlvec.bm25_corpus (
    id             int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    derived_id     int NOT NULL REFERENCES sqlvec.derived ON DELETE CASCADE,
    tenant         text, -- NULL for the whole table
    documents      bigint NOT NULL,
    average_length float8 NOT NULL,
    terms          bigint NOT NULL,
    collisions     bigint NOT NULL, -- terms that share their dimension with another
    changes        bigint, -- rows inserted and deleted until then, as the server counts
    analyzed_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (derived_id, tenant)
);
COMMENT ON TABLE sqlvec.bm25_corpus IS
    'What sqlvec.analyze_bm25 counted: one row per BM25 column, or per tenant. Read it through sqlvec.bm25_health.';

CREATE TABLE IF NOT EXISTS sqlvec.bm25_frequency (
    corpus_id int NOT NULL REFERENCES sqlvec.bm25_corpus ON DELETE CASCADE,
    lexeme    text COLLATE "C" NOT NULL,
    documents int NOT NULL,
    tiers     int[] NOT NULL, -- documents in which it reaches the tiers 1 to 4
    collides  boolean NOT NULL DEFAULT false,
    PRIMARY KEY (corpus_id, lexeme)
);
COMMENT ON TABLE sqlvec.bm25_frequency IS
    'In how many documents each term stood when sqlvec.analyze_bm25 counted.';

-- Whether the current role sees rows of a tenant, where row security decides that.
CREATE OR REPLACE FUNCTION sqlvec._sees_tenant(derived_id int, tenant text) RETURNS boolean
LANGUAGE plpgsql STABLE COST 10000
AS $body$
DECLARE
    v_derived sqlvec._derived;
    v_type pg_catalog.oid;
    v_sees boolean;
BEGIN
    -- This guards a policy: nothing in it may follow the search_path of the role that it is about.
    SELECT d.* INTO v_derived FROM sqlvec._derived AS d WHERE d.id OPERATOR(pg_catalog.=) derived_id;
    IF NOT pg_catalog.row_security_active(v_derived.relation) THEN
        RETURN true;
    END IF;
    SELECT c.type_oid INTO v_type FROM sqlvec._column(v_derived.relation, v_derived.tenant_column) AS c;
    EXECUTE pg_catalog.format('SELECT EXISTS (SELECT FROM %s AS t WHERE t.%I %s $1::%s)', sqlvec._qualified(v_derived.relation), v_derived.tenant_column,
                              sqlvec._btree_operator(v_type, 3), sqlvec._type_name(v_type))
    INTO v_sees USING tenant;
    RETURN v_sees;
END
$body$;

-- May the current role read the codes of a derived column, or what they are made from? Where name and
-- oid of the table agree, as they do unless it was renamed or restored, that takes look-ups by key alone.
CREATE OR REPLACE FUNCTION sqlvec._reads_code(derived_id int) RETURNS boolean
LANGUAGE sql STABLE COST 10000
BEGIN ATOMIC
    SELECT coalesce(
        (SELECT pg_catalog.has_column_privilege(r.oid, d.target_attnums[1], 'SELECT')
                OR (SELECT bool_and(pg_catalog.has_column_privilege(r.oid, n, 'SELECT')) FROM unnest(d.source_attnums) AS n)
         FROM sqlvec.derived AS d
         JOIN sqlvec.relation AS r ON r.id = d.relation_id
         JOIN pg_catalog.pg_class AS c ON c.oid = r.oid AND c.relname = r.table_name
         JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = d.target_attnums[1] AND a.attname = d.target_columns[1]
         WHERE d.id = derived_id),
        (SELECT pg_catalog.has_column_privilege(d.relation, d.target_columns[1]::text, 'SELECT')
                OR (SELECT bool_and(pg_catalog.has_column_privilege(d.relation, s::text, 'SELECT')) FROM unnest(d.source_columns) AS s)
         FROM sqlvec._derived AS d WHERE d.id = derived_id AND d.source_column IS NOT NULL AND d.target_column IS NOT NULL),
        false);
END;

-- A function of its own keeps the plans of searches short.
CREATE OR REPLACE FUNCTION sqlvec._reads_corpus(corpus_id int) RETURNS boolean
LANGUAGE sql STABLE COST 10000
BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM sqlvec.bm25_corpus AS c WHERE c.id = corpus_id);
END;

-- BM25 columns whose statistics the current role may write.
CREATE OR REPLACE FUNCTION sqlvec._owned_bm25() RETURNS SETOF int
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT d.id FROM sqlvec._derived AS d WHERE d.kind = 'bm25' AND sqlvec._owns(d.relation);
END;

ALTER TABLE sqlvec.bm25_corpus ENABLE ROW LEVEL SECURITY;
ALTER TABLE sqlvec.bm25_frequency ENABLE ROW LEVEL SECURITY;
DO $do$
DECLARE
    v_corpus text := 'derived_id = ANY (ARRAY(SELECT sqlvec._owned_bm25()))';
    v_frequency text := 'corpus_id = ANY (ARRAY(SELECT c.id FROM sqlvec.bm25_corpus AS c WHERE c.derived_id IN (SELECT sqlvec._owned_bm25())))';
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_policy WHERE polrelid = 'sqlvec.bm25_corpus'::regclass) THEN
        CREATE POLICY reading ON sqlvec.bm25_corpus FOR SELECT
            USING (sqlvec._reads_code(derived_id) AND (tenant IS NULL OR sqlvec._sees_tenant(derived_id, tenant)));
        CREATE POLICY reading ON sqlvec.bm25_frequency FOR SELECT USING (sqlvec._reads_corpus(corpus_id));
        EXECUTE format('CREATE POLICY adding ON sqlvec.bm25_corpus FOR INSERT WITH CHECK (%s)', v_corpus);
        EXECUTE format('CREATE POLICY changing ON sqlvec.bm25_corpus FOR UPDATE USING (%s)', v_corpus);
        EXECUTE format('CREATE POLICY removing ON sqlvec.bm25_corpus FOR DELETE USING (%s)', v_corpus);
        EXECUTE format('CREATE POLICY adding ON sqlvec.bm25_frequency FOR INSERT WITH CHECK (%s)', v_frequency);
        EXECUTE format('CREATE POLICY changing ON sqlvec.bm25_frequency FOR UPDATE USING (%s)', v_frequency);
        EXECUTE format('CREATE POLICY removing ON sqlvec.bm25_frequency FOR DELETE USING (%s)', v_frequency);
    END IF;
END
$do$;

-- Rows that came to a table and left it so far, as the server counts; what this session has not
-- reported to it yet included.
CREATE OR REPLACE FUNCTION sqlvec._changes(rel oid) RETURNS bigint
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT sum(pg_catalog.pg_stat_get_tuples_inserted(t.leaf) + pg_catalog.pg_stat_get_xact_tuples_inserted(t.leaf)
               + pg_catalog.pg_stat_get_tuples_deleted(t.leaf) + pg_catalog.pg_stat_get_xact_tuples_deleted(t.leaf))::bigint
    FROM sqlvec._leaves(rel) AS t;
END;

-- Count documents and terms of a BM25 column anew. Answers the mean length of its documents, NULL
-- where there are none.
CREATE OR REPLACE FUNCTION sqlvec._count_bm25(derived sqlvec._derived) RETURNS float8
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_terms text := quote_ident(coalesce(derived.target_columns[2], derived.source_columns[1]));
    v_table text := sqlvec._qualified(derived.relation);
    v_weights real[] := sqlvec._bm25_weights(derived.options);
    v_tenant text := CASE WHEN derived.tenant_column IS NULL THEN 'NULL::text' ELSE format('t.%I::text', derived.tenant_column) END;
    v_length float8;
BEGIN
    IF row_security_active(derived.relation) THEN
        RAISE EXCEPTION 'row security hides rows of table % from role "%"', v_table, current_user
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Count as the owner of the table or as a role with BYPASSRLS.';
    END IF;
    DELETE FROM sqlvec.bm25_frequency AS f USING sqlvec.bm25_corpus AS c WHERE c.id = f.corpus_id AND c.derived_id = derived.id;
    DELETE FROM sqlvec.bm25_corpus AS c WHERE c.derived_id = derived.id;
    EXECUTE format(
        'INSERT INTO sqlvec.bm25_corpus (derived_id, tenant, documents, average_length, terms, collisions, changes) '
        'SELECT $1, %1$s, count(*), avg(sqlvec._bm25_length(t.%2$s, $2)), 0, 0, $3 FROM %3$s AS t WHERE t.%2$s IS NOT NULL%4$s GROUP BY 2',
        v_tenant, v_terms, v_table, CASE WHEN derived.tenant_column IS NULL THEN '' ELSE format(' AND t.%I IS NOT NULL', derived.tenant_column) END)
    USING derived.id, v_weights, sqlvec._changes(derived.relation);
    IF derived.tenant_column IS NULL THEN
        -- ts_stat counts in one pass through C.
        EXECUTE format(
            'INSERT INTO sqlvec.bm25_frequency (corpus_id, lexeme, documents, tiers) '
            'SELECT c.id, s.lexeme, s.documents, s.tiers FROM sqlvec.bm25_corpus AS c, '
            '(SELECT ltrim(w.word, $2) AS lexeme, max(w.ndoc) AS documents, sqlvec._tier_counts(left(w.word, 1), w.ndoc) AS tiers '
            ' FROM ts_stat(%L) AS w WHERE w.word <> chr(5) GROUP BY 1) AS s WHERE c.derived_id = $1',
            format('SELECT t.%s FROM %s AS t', v_terms, v_table))
        USING derived.id, chr(1) || chr(2) || chr(3) || chr(4);
    ELSE
        EXECUTE format(
            'INSERT INTO sqlvec.bm25_frequency (corpus_id, lexeme, documents, tiers) '
            'SELECT s.id, ltrim(s.word, $2), max(s.n), sqlvec._tier_counts(left(s.word, 1), s.n) '
            'FROM (SELECT c.id, u.lexeme AS word, count(*)::int AS n '
            '      FROM %3$s AS t JOIN sqlvec.bm25_corpus AS c ON c.derived_id = $1 AND c.tenant = %1$s, unnest(t.%2$s) AS u '
            '      GROUP BY c.id, u.lexeme) AS s WHERE s.word <> chr(5) GROUP BY 1, 2',
            v_tenant, v_terms, v_table)
        USING derived.id, chr(1) || chr(2) || chr(3) || chr(4);
    END IF;
    UPDATE sqlvec.bm25_frequency AS f SET collides = true
    FROM (SELECT n.corpus_id, n.lexeme
          FROM (SELECT f.corpus_id, f.lexeme, count(*) OVER (PARTITION BY f.corpus_id, sqlvec._bm25_dimension(f.lexeme)) AS n
                FROM sqlvec.bm25_frequency AS f JOIN sqlvec.bm25_corpus AS c ON c.id = f.corpus_id AND c.derived_id = derived.id) AS n
          WHERE n.n > 1) AS same
    WHERE f.corpus_id = same.corpus_id AND f.lexeme = same.lexeme;
    UPDATE sqlvec.bm25_corpus AS c
    SET terms = f.terms, collisions = f.collisions
    FROM (SELECT f.corpus_id, count(*) AS terms, count(*) FILTER (WHERE f.collides) AS collisions
          FROM sqlvec.bm25_frequency AS f JOIN sqlvec.bm25_corpus AS o ON o.id = f.corpus_id AND o.derived_id = derived.id
          GROUP BY f.corpus_id) AS f
    WHERE f.corpus_id = c.id;
    SELECT sum(c.documents * c.average_length) / nullif(sum(c.documents), 0) INTO v_length
    FROM sqlvec.bm25_corpus AS c WHERE c.derived_id = derived.id;
    RETURN nullif(v_length, 0);
END
$body$;

-- Tier counts of one term: state of the aggregate below.
CREATE OR REPLACE FUNCTION sqlvec._tier_counted(counts int[], mark text, documents int) RETURNS int[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN mark >= ' ' COLLATE "C" THEN counts
            ELSE counts[:ascii(mark) - 1] || documents || counts[ascii(mark) + 1:] END;
DO $do$
BEGIN
    IF pg_catalog.to_regprocedure('sqlvec._tier_counts(text, int)') IS NULL THEN
        CREATE AGGREGATE sqlvec._tier_counts(mark text, documents int) (
            SFUNC = sqlvec._tier_counted, STYPE = int[], INITCOND = '{0,0,0,0}', PARALLEL = SAFE);
    END IF;
END
$do$;

-- Give a BM25 column the mean length of its documents as they are now. Its weights are suspect from
-- here on, and searches compute scores from the terms, until a backfill has compared them.
CREATE OR REPLACE FUNCTION sqlvec._reencode_bm25(derived sqlvec._derived, average_length float8) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_encoder text;
BEGIN
    -- Transactions that write with the old trigger must have ended before rows are compared.
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', sqlvec._qualified(derived.relation));
    -- Encoders never change: this is another one.
    v_encoder := sqlvec._own_encoder_name(derived.relation, derived.target_column);
    INSERT INTO sqlvec.encoder (name, kind, dimensions, code_type, code_dimensions, options, owner)
    SELECT v_encoder, e.kind, e.dimensions, e.code_type, e.code_dimensions,
           e.options || jsonb_build_object('average_length', average_length), e.owner
    FROM sqlvec.encoder AS e WHERE e.name = derived.encoder;
    UPDATE sqlvec.derived AS d SET encoder = v_encoder, suspect = true, reweighed = derived.maintained OR derived.reweighed WHERE d.id = derived.id;
    DELETE FROM sqlvec.encoder AS e WHERE e.name = derived.encoder;
    PERFORM sqlvec._write_maintain(derived.relation_id);
END
$body$;

-- Comparisons of analyze_bm25, which has no search_path of its own: it commits.
CREATE OR REPLACE FUNCTION sqlvec._check_drift(drift real) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF drift IS NULL OR NOT drift BETWEEN 0 AND 1000 THEN
        RAISE EXCEPTION 'drift is a fraction, 0 or more, not %', drift USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._has_drifted(options jsonb, average_length float8, drift real) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN abs(average_length / (options ->> 'average_length')::float8 - 1) > drift;

CREATE OR REPLACE FUNCTION sqlvec._begin_analyze(rel regclass, drift real, OUT derived_ids int[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM sqlvec._check_drift(drift);
    PERFORM sqlvec._require_owner(rel);
    derived_ids := ARRAY(SELECT d.id FROM sqlvec._derived_of(rel) AS d
                         WHERE d.kind = 'bm25' AND d.source_column IS NOT NULL AND d.target_column IS NOT NULL ORDER BY d.id);
    IF cardinality(derived_ids) = 0 THEN
        RAISE EXCEPTION 'table % has no BM25 column', rel
            USING ERRCODE = 'undefined_column', HINT = 'Declare one with CALL sqlvec.add_bm25(...).';
    END IF;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.analyze_bm25(rel regclass, drift real = 0.1) LANGUAGE plpgsql
AS $body$
DECLARE
    v_derived sqlvec._derived;
    v_id int;
    v_length pg_catalog.float8;
BEGIN
    FOREACH v_id IN ARRAY sqlvec._begin_analyze(rel, drift) LOOP
        -- A partitioned table before its partitions, as what changes it locks them.
        PERFORM sqlvec._hold_to_read(coalesce(pg_catalog.pg_partition_root(rel), rel)::pg_catalog.oid);
        -- Another session may be at it, and change the encoder meanwhile.
        PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('sqlvec.analyze_bm25'), v_id);
        v_derived := sqlvec._derived_now(v_id, rel);
        v_length := sqlvec._count_bm25(v_derived);
        IF sqlvec._has_drifted(v_derived.options, v_length, drift) THEN
            PERFORM sqlvec._reencode_bm25(v_derived, v_length);
            CALL sqlvec.backfill(v_derived.relation, v_derived.target_column);
        END IF;
    END LOOP;
END
$body$;

COMMENT ON PROCEDURE sqlvec.analyze_bm25(regclass, real) IS
    'Refresh the statistics of every BM25 column of a table: documents, their mean length, frequencies of terms. Where the mean length has moved by more than `drift` (a fraction), weights are encoded anew in committed batches, which cannot run inside a transaction block.';

CREATE OR REPLACE VIEW sqlvec.bm25_health WITH (security_invoker = true) AS
SELECT s.relation,
       s.target_column,
       s.tenant,
       s.documents,
       s.average_length AS avgdl,
       s.terms,
       s.collisions,
       s.analyzed_at,
       s.changes_since,
       s.analyzed_at IS NULL OR s.suspect OR s.changes_since > 50 + 0.1 * s.total AS stale,
       CASE WHEN s.suspect THEN format('weights are being encoded anew; CALL sqlvec.backfill(%L, %L);', s.relation, s.target_column)
            WHEN s.analyzed_at IS NULL THEN format('never counted; CALL sqlvec.analyze_bm25(%L);', s.relation)
            WHEN s.changes_since > 50 + 0.1 * s.total THEN format('many rows have changed; CALL sqlvec.analyze_bm25(%L);', s.relation)
       END AS advice,
       s.encoded_avgdl
FROM (SELECT d.relation::regclass AS relation, coalesce(d.target_column, d.known_target) AS target_column, d.suspect,
             c.tenant, c.documents, c.average_length, c.terms, c.collisions, c.analyzed_at,
             -- The server counts from zero again after a crash.
             n.changes - CASE WHEN n.changes >= c.changes THEN c.changes ELSE 0 END AS changes_since,
             sum(c.documents) OVER (PARTITION BY d.id) AS total, (d.options ->> 'average_length')::float8 AS encoded_avgdl
      FROM sqlvec._derived AS d
      LEFT JOIN sqlvec.bm25_corpus AS c ON c.derived_id = d.id
      CROSS JOIN LATERAL (SELECT sqlvec._changes(d.relation) AS changes) AS n
      WHERE d.kind = 'bm25') AS s;

COMMENT ON VIEW sqlvec.bm25_health IS
    'Statistics of each BM25 column (and tenant): documents, their mean length, terms, terms that share a dimension, when they were counted, rows inserted and deleted since, and whether to count again; encoded_avgdl is the mean length that the weights are made with.';
