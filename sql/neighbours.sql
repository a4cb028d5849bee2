-- sqlvec.build_neighbours, sqlvec.expand: a graph of nearest neighbours in an ordinary table, and the
-- rows that can be reached from the hits of a search along its edges.

-- Similarity as the weight of an edge.
CREATE OR REPLACE FUNCTION sqlvec._similarity(metric text, distance float8) RETURNS real
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE metric WHEN 'cosine' THEN 1 - distance WHEN 'inner_product' THEN 0 - distance ELSE 1 / (1 + distance) END::real;

-- The type of the keys in a table of edges, made here or by the application; an error for any other.
CREATE OR REPLACE FUNCTION sqlvec._edges(edges oid, OUT key_type oid)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    SELECT k.atttypid INTO key_type
    FROM pg_attribute AS k
    JOIN pg_attribute AS n ON n.attrelid = edges AND n.attname = 'neighbour' AND n.atttypid = k.atttypid
    JOIN pg_attribute AS w ON w.attrelid = edges AND w.attname = 'weight' AND w.atttypid IN ('real'::regtype, 'float8'::regtype)
    JOIN pg_class AS c ON c.oid = edges AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    WHERE k.attrelid = edges AND k.attname = 'key';
    IF NOT FOUND OR sqlvec._btree_operator(key_type, 3) IS NULL OR (SELECT t.typcategory = 'A' FROM pg_type AS t WHERE t.oid = key_type) THEN
        RAISE EXCEPTION '% is no table of edges', coalesce(sqlvec._qualified(edges), 'NULL')
            USING ERRCODE = 'wrong_object_type',
                  HINT = 'It has columns "key" and "neighbour" of one type that can be ordered and is no array, and "weight" of type real or double precision; sqlvec.build_neighbours makes one.';
    END IF;
END
$body$;

-- What a build works with, found and checked; makes the table of edges where it is not there.
CREATE OR REPLACE FUNCTION sqlvec._neighbours_graph(
    rel regclass, column_name text, neighbours int, into_table text, batch int,
    OUT edges oid, OUT source_attnum smallint, OUT key_attnum smallint, OUT source_column name, OUT key_column name, OUT key_type text, OUT metric text
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record;
    v_class record;
    v_table text;
    v_type oid;
BEGIN
    IF rel IS NULL OR column_name IS NULL THEN
        RAISE EXCEPTION 'build_neighbours needs a table and a column' USING ERRCODE = 'null_value_not_allowed';
    ELSIF neighbours IS NULL OR neighbours NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION 'neighbours is a number from 1 to 1000, not %', neighbours USING ERRCODE = 'invalid_parameter_value';
    ELSIF batch IS NULL OR batch < 1 THEN
        RAISE EXCEPTION 'batch is a number of rows, 1 or more, not %', batch USING ERRCODE = 'invalid_parameter_value';
    END IF;
    v_source := sqlvec._column(rel, column_name);
    SELECT c.relname, c.relkind, n.nspname INTO v_class
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = rel;
    IF v_class.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION '% is not a table', rel USING ERRCODE = 'wrong_object_type';
    ELSIF v_source.type_name NOT IN ('vector', 'halfvec') THEN
        RAISE EXCEPTION 'column "%" of table % is of type %, not vector or halfvec',
            column_name, rel, format_type(v_source.type_oid, NULL)
            USING ERRCODE = 'datatype_mismatch';
    ELSIF into_table = '' OR octet_length(into_table) > 63 THEN
        RAISE EXCEPTION 'into_table "%" is not a table name of 1 to 63 bytes', into_table USING ERRCODE = 'invalid_name';
    ELSIF EXISTS (SELECT FROM sqlvec._leaves(rel) AS t WHERE row_security_active(t.leaf)) OR row_security_active(rel) THEN
        RAISE EXCEPTION 'row security hides rows of table % from role "%"', rel, current_user
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Run the build as the owner of the table or as a role with BYPASSRLS.';
    END IF;
    SELECT max(a.attnum), max(a.attname), max(a.atttypid) INTO key_attnum, key_column, v_type
    FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = rel AND i.indisprimary HAVING count(*) = 1;
    IF key_column IS NULL THEN
        RAISE EXCEPTION 'table % has no primary key of one column', rel
            USING ERRCODE = 'invalid_parameter_value', HINT = 'The edges refer to its rows by that column.';
    ELSIF (SELECT t.typcategory = 'A' FROM pg_type AS t WHERE t.oid = v_type) THEN
        RAISE EXCEPTION 'primary key "%" of table % is of type %: edges do not refer to arrays', key_column, rel, format_type(v_type, -1)
            USING ERRCODE = 'datatype_mismatch', HINT = 'sqlvec.expand takes an array of keys, which would not tell its arrays apart.';
    END IF;
    source_attnum := v_source.attnum;
    source_column := column_name;
    key_type := sqlvec._type_name(v_type);
    metric := sqlvec._default_metric(rel, column_name, v_source.type_name, sqlvec._ways(rel, column_name, v_source.attnum, coalesce(v_source.dimensions, -1)));

    v_table := format('%I.%I', v_class.nspname, coalesce(into_table, sqlvec._name(v_class.relname || '_neighbours')));
    edges := to_regclass(v_table);
    IF edges IS NULL THEN
        -- Updates and deletes of a row find its edges by either column; the weight is for sqlvec.expand.
        EXECUTE format('CREATE TABLE %1$s (key %2$s NOT NULL REFERENCES %3$s (%4$I) ON UPDATE CASCADE ON DELETE CASCADE, '
                       'neighbour %2$s NOT NULL REFERENCES %3$s (%4$I) ON UPDATE CASCADE ON DELETE CASCADE, '
                       'weight real NOT NULL, PRIMARY KEY (key, neighbour))',
                       v_table, key_type, sqlvec._qualified(rel), key_column);
        EXECUTE format('CREATE INDEX ON %s (neighbour, weight DESC)', v_table);
        edges := v_table::regclass;
    ELSIF sqlvec._edges(edges) <> v_type THEN
        RAISE EXCEPTION 'table % has keys of type %, table % of type %', v_table, format_type(sqlvec._edges(edges), -1), rel, format_type(v_type, -1)
            USING ERRCODE = 'datatype_mismatch', HINT = 'Name another table: into_table => ''...''.';
    ELSIF row_security_active(edges) THEN
        RAISE EXCEPTION 'row security hides edges of table % from role "%"', v_table, current_user
            USING ERRCODE = 'insufficient_privilege', HINT = 'Run the build as the owner of the table or as a role with BYPASSRLS.';
    END IF;
END
$body$;

-- Hold table and edges for a batch. Names may have changed since the last one.
CREATE OR REPLACE FUNCTION sqlvec._hold_graph(rel oid, graph record, OUT source_column name, OUT key_column name)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM sqlvec._hold_to_read(rel);
    PERFORM sqlvec._hold_to_read(graph.edges);
    SELECT s.attname, k.attname INTO source_column, key_column
    FROM pg_attribute AS s JOIN pg_attribute AS k ON k.attrelid = s.attrelid AND k.attnum = graph.key_attnum AND NOT k.attisdropped
    WHERE s.attrelid = rel AND s.attnum = graph.source_attnum AND NOT s.attisdropped;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'column "%" or "%" of table % was dropped while its neighbours were searched for',
            graph.source_column, graph.key_column, sqlvec._qualified(rel) USING ERRCODE = 'undefined_column';
    END IF;
END
$body$;

-- Which rows t are to be done: all or, with `missing`, those whose vector has no edges.
CREATE OR REPLACE FUNCTION sqlvec._neighbours_condition(rel oid, graph record, missing boolean) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RETURN CASE WHEN missing THEN format('%s AND NOT EXISTS (SELECT FROM %s AS e WHERE e.key %s t.%I)',
                                         sqlvec._has_neighbours(graph.source_column, graph.metric), sqlvec._qualified(graph.edges),
                                         sqlvec._btree_operator((sqlvec._column(rel, graph.key_column)).type_oid, 3), graph.key_column)
                ELSE 'true' END;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._count_neighbours(rel oid, graph record, missing boolean) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_count bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM %s AS t WHERE %s', sqlvec._qualified(rel), sqlvec._neighbours_condition(rel, graph, missing)) INTO v_count;
    RETURN v_count;
END
$body$;

-- Tell other sessions how far a build is, until the end of the transaction.
CREATE OR REPLACE FUNCTION sqlvec._show_neighbours(phase text, done bigint, total bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM set_config('application_name', format('sqlvec: %s %s/%s', phase, done, greatest(done, total)), true);
END
$body$;

-- The next keys of a table, as text, of the rows that are to be done.
CREATE OR REPLACE FUNCTION sqlvec._neighbours_keys(
    rel oid, graph record, missing boolean, after text, batch int
) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_type oid := (sqlvec._column(rel, graph.key_column)).type_oid;
    v_keys text[];
BEGIN
    EXECUTE format('SELECT array_agg(s.key::text ORDER BY s.key) FROM (SELECT t.%1$I AS key FROM %2$s AS t WHERE %3$s AND %4$s ORDER BY t.%1$I LIMIT $2) AS s',
                   graph.key_column, sqlvec._qualified(rel),
                   CASE WHEN after IS NULL THEN 'true' ELSE format('t.%I %s $1::%s', graph.key_column, sqlvec._btree_operator(v_type, 5), graph.key_type) END,
                   sqlvec._neighbours_condition(rel, graph, missing))
    INTO v_keys USING after, batch;
    RETURN v_keys;
END
$body$;

-- Whether row t has a vector that a search takes: the zero vector has no cosine.
CREATE OR REPLACE FUNCTION sqlvec._has_neighbours(column_name text, metric text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN format(CASE metric WHEN 'cosine' THEN 'sqlvec._norm(t.%I) OPERATOR(pg_catalog.>) 0::pg_catalog.float8' ELSE 't.%I IS NOT NULL' END, column_name);

-- Find the neighbours of some rows anew. No SET: triggers of the application may run inside.
CREATE OR REPLACE FUNCTION sqlvec._neighbours_batch(rel oid, graph record, neighbours int, keys text[]) RETURNS void
LANGUAGE plpgsql
AS $body$
DECLARE
    v_edges pg_catalog.text := sqlvec._qualified(graph.edges);
    v_equal pg_catalog.text := sqlvec._btree_operator((sqlvec._column(rel, graph.key_column)).type_oid, 3);
    v_search pg_catalog.text := pg_catalog.format(
        'INSERT INTO %1$s (key, neighbour, weight) '
        'SELECT t.%2$I, n.key, sqlvec._similarity(%3$L, n.distance) FROM %4$s AS t CROSS JOIN LATERAL ('
        'SELECT s.key, s.distance FROM sqlvec.vector_search_keys(NULL::%4$s, %5$L, sqlvec._as_vector(t.%5$I), NULL::%6$s, k => $2, metric => %3$L) AS s '
        'WHERE NOT (s.key %7$s t.%2$I) ORDER BY s.distance, s.key LIMIT $3) AS n '
        'WHERE t.%2$I %7$s ANY ($1::%6$s[]) AND %8$s ON CONFLICT DO NOTHING',
        v_edges, graph.key_column, graph.metric, sqlvec._qualified(rel), graph.source_column, graph.key_type, v_equal,
        sqlvec._has_neighbours(graph.source_column, graph.metric));
BEGIN
    EXECUTE pg_catalog.format('DELETE FROM %s AS e WHERE e.key %s ANY ($1::%s[])', v_edges, v_equal, graph.key_type) USING keys;
    FOR v_attempt IN 1 .. 5 LOOP
        BEGIN
            EXECUTE v_search USING keys, neighbours OPERATOR(pg_catalog.+) 1, neighbours;
            RETURN;
        EXCEPTION WHEN foreign_key_violation THEN
            -- A row that was found is deleted meanwhile; the next search no longer sees it.
            IF v_attempt OPERATOR(pg_catalog.=) 5 THEN
                RAISE;
            END IF;
        END;
    END LOOP;
END
$body$;

-- Remove the edges of some rows that do not lead back.
CREATE OR REPLACE FUNCTION sqlvec._drop_one_sided(rel oid, graph record, keys text[]) RETURNS void
LANGUAGE plpgsql
AS $body$
BEGIN
    EXECUTE pg_catalog.format('DELETE FROM %1$s AS e WHERE e.key %2$s ANY ($1::%3$s[]) AND NOT EXISTS ('
                              'SELECT FROM %1$s AS b WHERE b.key %2$s e.neighbour AND b.neighbour %2$s e.key)',
                              sqlvec._qualified(graph.edges),
                              sqlvec._btree_operator((sqlvec._column(rel, graph.key_column)).type_oid, 3), graph.key_type) USING keys;
END
$body$;

-- As for sqlvec.backfill: fails at once inside a transaction block, under a name that says why.
CREATE OR REPLACE PROCEDURE sqlvec._build_neighbours_cannot_run_inside_a_transaction_block() LANGUAGE plpgsql
AS $body$
BEGIN
    COMMIT;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.build_neighbours(
    rel regclass, column_name text, neighbours int = 10, into_table text = NULL, batch int = 100,
    mutual boolean = false, rebuild boolean = false
) LANGUAGE plpgsql
AS $body$
DECLARE
    v_graph pg_catalog.record;
    v_keys pg_catalog.text[];
    v_after pg_catalog.text;
    v_done bigint := 0;
    v_total bigint;
    v_all boolean := coalesce(rebuild OR mutual, false);
BEGIN
    v_graph := sqlvec._neighbours_graph(rel, column_name, neighbours, into_table, batch);
    CALL sqlvec._build_neighbours_cannot_run_inside_a_transaction_block();
    -- Whatever the session's default: each batch has to see what others have committed, names above all.
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    LOOP
        SELECT h.source_column, h.key_column INTO v_graph.source_column, v_graph.key_column FROM sqlvec._hold_graph(rel, v_graph) AS h;
        v_total := coalesce(v_total, sqlvec._count_neighbours(rel, v_graph, NOT v_all));
        PERFORM sqlvec._show_neighbours('neighbours', v_done, v_total);
        v_keys := sqlvec._neighbours_keys(rel, v_graph, NOT v_all, v_after, batch);
        EXIT WHEN v_keys IS NULL;
        PERFORM sqlvec._neighbours_batch(rel, v_graph, neighbours, v_keys);
        v_after := v_keys[pg_catalog.cardinality(v_keys)];
        v_done := v_done OPERATOR(pg_catalog.+) pg_catalog.cardinality(v_keys);
        COMMIT AND CHAIN;
    END LOOP;
    v_after := NULL;
    v_done := 0;
    WHILE mutual LOOP
        SELECT h.source_column, h.key_column INTO v_graph.source_column, v_graph.key_column FROM sqlvec._hold_graph(rel, v_graph) AS h;
        PERFORM sqlvec._show_neighbours('one-sided edges', v_done, v_total);
        v_keys := sqlvec._neighbours_keys(rel, v_graph, false, v_after, batch);
        EXIT WHEN v_keys IS NULL;
        PERFORM sqlvec._drop_one_sided(rel, v_graph, v_keys);
        v_after := v_keys[pg_catalog.cardinality(v_keys)];
        v_done := v_done OPERATOR(pg_catalog.+) pg_catalog.cardinality(v_keys);
        COMMIT AND CHAIN;
    END LOOP;
    -- A caller goes on at the isolation of the session.
    COMMIT;
END
$body$;

COMMENT ON PROCEDURE sqlvec.build_neighbours(regclass, text, int, text, int, boolean, boolean) IS
    'Write the `neighbours` nearest rows of every row of a vector column into table into_table (by default <table>_neighbours) of the same schema: key, neighbour, weight (cosine, or the similarity of the column''s metric). Commits per batch, and meanwhile says in application_name, as pg_stat_activity shows it, how many rows are done; called again it goes on with rows that have no edges yet, with rebuild it does all anew. mutual keeps edges that lead both ways only, and always does all.';

-- The CTE of the rows that one edge leads to from those of CTE `origin`: key, and the largest score times
-- weight. $4 is how many edges of a row are followed in either direction, then of both together.
CREATE OR REPLACE FUNCTION sqlvec._step(edges oid, equal text, origin text) RETURNS text
LANGUAGE sql STABLE
RETURN format(
    E'(\n  SELECT e.key, max(f.score * e.weight) AS score FROM %1$s AS f CROSS JOIN LATERAL (\n'
    '    SELECT n.key, least(max(n.weight), 1)::float8 AS weight FROM (\n'
    '      (SELECT x.neighbour AS key, x.weight FROM %2$s AS x WHERE x.key %3$s f.key AND x.weight > 0 ORDER BY x.weight DESC LIMIT $4)\n'
    '      UNION ALL\n'
    '      (SELECT x.key, x.weight FROM %2$s AS x WHERE x.neighbour %3$s f.key AND x.weight > 0 ORDER BY x.weight DESC LIMIT $4)) AS n\n'
    '    WHERE NOT (n.key %3$s f.key) GROUP BY n.key ORDER BY max(n.weight) DESC, n.key LIMIT $4) AS e\n'
    '  WHERE f.score > 0 GROUP BY e.key)', origin, sqlvec._qualified(edges), equal);

CREATE OR REPLACE FUNCTION sqlvec.expand(
    edges regclass, keys anyarray, scores float8[], hops int = 1, decay float8 = 0.7, limit_edges int = 20, blend float8 = 0
) RETURNS TABLE (key anyelement, score float8, hop int)
LANGUAGE plpgsql STABLE ROWS 200 SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_type oid := sqlvec._edges(edges);
    v_equal text := sqlvec._btree_operator(v_type, 3);
    v_with text := format('WITH hop0 AS MATERIALIZED (SELECT u.key, max(u.score) AS score FROM unnest($1::%s[], $2) AS u (key, score) GROUP BY u.key)',
                          sqlvec._type_name(v_type));
    v_known text := 'SELECT h.key FROM hop0 AS h';
    v_found text := 'SELECT h.key, h.score, 0 AS hop FROM hop0 AS h';
BEGIN
    IF keys IS NULL AND scores IS NULL THEN
        RETURN; -- a search that found nothing
    ELSIF cardinality(keys) IS DISTINCT FROM cardinality(scores) THEN
        RAISE EXCEPTION 'expand takes as many keys as scores, not % and %', coalesce(cardinality(keys), 0), coalesce(cardinality(scores), 0)
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF array_position(keys, NULL) IS NOT NULL OR array_position(scores, NULL) IS NOT NULL OR 'NaN' = ANY (scores) THEN
        RAISE EXCEPTION 'no key and no score of expand is NULL, and no score NaN' USING ERRCODE = 'null_value_not_allowed';
    ELSIF (hops BETWEEN 0 AND 2) IS NOT TRUE THEN
        RAISE EXCEPTION 'hops is a number from 0 to 2, not %', hops USING ERRCODE = 'invalid_parameter_value';
    ELSIF (decay > 0 AND decay <= 1 AND blend >= 0 AND blend <= 1) IS NOT TRUE THEN
        RAISE EXCEPTION 'decay is a number above 0 and up to 1, blend one from 0 to 1, not % and %', decay, blend
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF (limit_edges BETWEEN 1 AND 10000) IS NOT TRUE THEN
        RAISE EXCEPTION 'limit_edges is a number from 1 to 10000, not %', limit_edges USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR v_hop IN 1 .. greatest(hops, ceil(blend)::int) LOOP
        v_with := v_with || format(E',\nstep%1$s AS MATERIALIZED %2$s', v_hop, sqlvec._step(edges, v_equal, 'hop' || v_hop - 1));
        EXIT WHEN v_hop > hops;
        v_with := v_with || format(E',\nhop%1$s AS MATERIALIZED (\n  SELECT s.key, s.score * $3 AS score FROM step%1$s AS s\n'
                                   '  WHERE NOT EXISTS (SELECT FROM (%2$s) AS k WHERE k.key %3$s s.key))', v_hop, v_known, v_equal);
        v_known := v_known || format(' UNION ALL SELECT h.key FROM hop%s AS h', v_hop);
        v_found := v_found || format(' UNION ALL SELECT h.key, h.score, %1$s FROM hop%1$s AS h', v_hop);
    END LOOP;
    IF blend > 0 THEN
        v_found := format('SELECT f.key, CASE f.hop WHEN 0 THEN f.score * (1 - $5) + coalesce(s.score, 0) * $5 ELSE f.score END AS score, f.hop '
                          'FROM (%s) AS f LEFT JOIN step1 AS s ON s.key %s f.key', v_found, v_equal);
    END IF;
    RETURN QUERY EXECUTE format(E'%s\nSELECT a.key::%s, a.score, a.hop FROM (%s) AS a ORDER BY a.score DESC, a.hop, a.key', v_with,
                                (SELECT sqlvec._type_name(t.typelem) FROM pg_type AS t WHERE t.oid = pg_typeof(keys)), v_found)
        USING keys, scores, decay, limit_edges, blend;
END
$body$;

COMMENT ON FUNCTION sqlvec.expand(regclass, anyarray, float8[], int, float8, int, float8) IS
    'The rows of keys and those that up to `hops` (0 to 2) edges lead to, with scores: that of a row reached is the largest score * weight * decay over the edges that reach it, in either direction, of each row the `limit_edges` heaviest. With blend the rows of keys themselves score (1 - blend) * score + blend * the largest score * weight of an edge from another of them. edges is a table of sqlvec.build_neighbours, or any with columns key, neighbour and weight (0 to 1).';
