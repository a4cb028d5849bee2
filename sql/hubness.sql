-- sqlvec.add_hubness: declare a column in which rows that are near to every query stand back.

CREATE OR REPLACE PROCEDURE sqlvec.add_hubness(
    rel regclass, column_name text, encoder text, target text = NULL
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record;
    v_encoder record;
    v_target text := coalesce(target, sqlvec._name(column_name || '_hubness'));
BEGIN
    IF rel IS NULL OR column_name IS NULL OR encoder IS NULL THEN
        RAISE EXCEPTION 'add_hubness needs a table, a column and an encoder' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM sqlvec._require_table(rel);
    v_source := sqlvec._column(rel, column_name);
    SELECT e.kind, e.dimensions, e.code_dimensions INTO v_encoder FROM sqlvec.encoder AS e WHERE e.name = encoder;
    IF v_source.type_name NOT IN ('vector', 'halfvec') THEN
        RAISE EXCEPTION 'column "%" of table % is of type %, not vector or halfvec',
            column_name, rel, format_type(v_source.type_oid, NULL)
            USING ERRCODE = 'datatype_mismatch';
    ELSIF v_encoder.kind IS DISTINCT FROM 'hubness' THEN
        RAISE EXCEPTION 'encoder "%" %', encoder, coalesce('is of kind "' || v_encoder.kind || '", not "hubness"', 'does not exist')
            USING ERRCODE = CASE WHEN v_encoder.kind IS NULL THEN 'undefined_object' ELSE 'datatype_mismatch' END,
                  HINT = 'sqlvec.create_hubness_encoder makes one of that kind.';
    ELSIF v_encoder.dimensions <> v_source.dimensions THEN
        RAISE EXCEPTION 'column "%" of table % has % dimensions, encoder "%" takes %',
            column_name, rel, v_source.dimensions, encoder, v_encoder.dimensions
            USING ERRCODE = 'datatype_mismatch';
    END IF;
    PERFORM sqlvec._claim_targets(rel, ARRAY[column_name], ARRAY[v_target]);
    PERFORM sqlvec._declare(rel, ARRAY[column_name], ARRAY[v_target], encoder, false, 'inner_product',
                            sqlvec._add_target(rel, v_target, encoder, 'vector', v_encoder.code_dimensions));
    IF v_encoder.code_dimensions > 2000 THEN
        RAISE WARNING 'column "%" has % dimensions, an index on type vector takes 2000', v_target, v_encoder.code_dimensions
            USING HINT = CASE WHEN v_encoder.code_dimensions <= 4000
                              THEN format('CALL sqlvec.add_quantized(%L, %L, ''halfvec'', metric => ''inner_product''); makes a code that an index takes.', rel, v_target)
                              ELSE 'Reduce the source first, with an encoder of kind "truncate" or "linear".' END;
    END IF;
END
$body$;

COMMENT ON PROCEDURE sqlvec.add_hubness(regclass, text, text, text) IS
    'Declare a vector column `target`, one dimension longer than `column_name`: its vectors at unit length, and what `encoder`, made by sqlvec.create_hubness_encoder, takes off for rows that are near to every query. Search it with sqlvec.hubness_query. Adds the column, the trigger and the catalog row; rows already there wait for sqlvec.backfill.';
