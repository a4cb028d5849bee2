-- Derived columns as they stand now: catalog rows joined to the live table, so that renames and
-- restores are followed and a column dropped by hand is seen.

-- Whether a column of that name is there, of any type.
CREATE OR REPLACE FUNCTION sqlvec._has_column(rel oid, column_name name) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
                   WHERE a.attrelid = rel AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped);
END;

CREATE OR REPLACE VIEW sqlvec._derived AS
SELECT d.id,
       d.relation_id,
       r.relation,
       r.trigger_name,
       r.known_oid,
       -- The trigger writes by name, the search reads by number: where another column has taken a name
       -- over, the two disagree. A name that is merely gone sends the trigger to look the number up.
       r.maintained AND NOT d.suspect
           AND (e.dimensions = s.atttypmod OR s.atttypmod = -1) IS NOT FALSE
           AND (r.known_oid = r.relation
                AND (s.attname <> d.source_column AND sqlvec._has_column(r.relation, d.source_column)
                     OR t.attname <> d.target_column AND sqlvec._has_column(r.relation, d.target_column))) IS NOT TRUE AS maintained,
       d.suspect,
       r.maintained AS triggered,
       s.atttypmod AS source_dimensions,
       s.attname AS source_column, -- NULL when it is gone
       t.attname AS target_column,
       d.source_column AS known_source,
       d.target_column AS known_target,
       d.encoder,
       d.own_encoder,
       e.kind,
       e.options,
       e.dimensions,
       e.code_type,
       e.code_dimensions,
       d.metric
FROM sqlvec.derived AS d
JOIN sqlvec._relation AS r ON r.id = d.relation_id
JOIN sqlvec.encoder AS e ON e.name = d.encoder
-- After a restore the numbers of columns are new and the names are right; after a rename it is the
-- other way round. The oid tells which of the two happened.
LEFT JOIN pg_catalog.pg_attribute AS s
       ON s.attrelid = r.relation AND NOT s.attisdropped
      AND CASE WHEN r.known_oid = r.relation THEN s.attnum = d.source_attnum ELSE s.attname = d.source_column END
LEFT JOIN pg_catalog.pg_attribute AS t
       ON t.attrelid = r.relation AND NOT t.attisdropped
      AND CASE WHEN r.known_oid = r.relation THEN t.attnum = d.target_attnum ELSE t.attname = d.target_column END
WHERE r.relation IS NOT NULL;

CREATE OR REPLACE VIEW sqlvec.derived_column AS
SELECT d.relation::regclass AS relation,
       coalesce(d.source_column, d.known_source) AS source_column,
       coalesce(d.target_column, d.known_target) AS target_column,
       d.encoder,
       d.kind,
       d.metric,
       d.code_type || '(' || d.code_dimensions || ')' AS code_type,
       d.maintained,
       CASE
           WHEN d.source_column IS NULL
               THEN format('source column "%s" is gone; CALL sqlvec.drop_derived(%L, %L);',
                           d.known_source, d.relation::regclass, d.known_target)
           WHEN d.target_column IS NULL
               THEN format('column "%s" is gone; CALL sqlvec.drop_derived(%L, %L);',
                           d.known_target, d.relation::regclass, d.known_target)
           WHEN d.trigger_name IS NULL
               THEN format('the trigger is gone; CALL sqlvec.repair(%L);', d.relation::regclass)
           WHEN NOT d.triggered
               THEN format('trigger %I is or was disabled; CALL sqlvec.repair(%L);', d.trigger_name, d.relation::regclass)
           WHEN d.suspect
               THEN format('codes may be stale; CALL sqlvec.backfill(%L, %L);', d.relation::regclass, d.target_column)
           WHEN d.source_dimensions NOT IN (-1, d.dimensions)
               THEN format('the source now has %s dimensions, the code was made for %s; CALL sqlvec.drop_derived(%L, %L);',
                           d.source_dimensions, d.dimensions, d.relation::regclass, d.target_column)
           WHEN NOT d.maintained
               THEN format('another column has taken the name of a renamed one; CALL sqlvec.repair(%L);', d.relation::regclass)
           WHEN d.source_column <> d.known_source OR d.target_column <> d.known_target
               THEN format('a column was renamed, writes take the slow path; CALL sqlvec.repair(%L);', d.relation::regclass)
       END AS problem
FROM sqlvec._derived AS d;

COMMENT ON VIEW sqlvec.derived_column IS
    'Derived columns under their present names: source, encoder, metric, whether the trigger keeps them, and what is wrong, with the command that mends it.';

-- Derived columns of one table. A partition answers for its root.
CREATE OR REPLACE FUNCTION sqlvec._derived_of(rel oid) RETURNS SETOF sqlvec._derived
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT d.* FROM sqlvec._derived AS d
    WHERE d.relation = coalesce(pg_catalog.pg_partition_root(rel), rel);
END;
