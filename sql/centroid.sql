-- sqlvec.add_centroid: declare the one-byte-per-token codes of a multi-vector column.

CREATE OR REPLACE PROCEDURE sqlvec.add_centroid(
    rel regclass, column_name text, encoder text, target text = NULL
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record;
    v_dimensions int;
    v_target text := coalesce(target, sqlvec._name(column_name || '_centroid'));
BEGIN
    IF rel IS NULL OR column_name IS NULL OR encoder IS NULL THEN
        RAISE EXCEPTION 'add_centroid needs a table, a column and an encoder' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM sqlvec._require_table(rel);
    v_source := sqlvec._multivector_column(rel, column_name);
    v_dimensions := (sqlvec._centroid_encoder(encoder)).dimensions;
    IF v_dimensions <> coalesce(v_source.dimensions, v_dimensions) THEN
        RAISE EXCEPTION 'column "%" of table % has % dimensions, encoder "%" takes %',
            column_name, rel, v_source.dimensions, encoder, v_dimensions
            USING ERRCODE = 'datatype_mismatch';
    END IF;
    PERFORM sqlvec._claim_targets(rel, ARRAY[column_name], ARRAY[v_target]);
    PERFORM sqlvec._store_external(rel, column_name);
    PERFORM sqlvec._declare(rel, ARRAY[column_name], ARRAY[v_target], encoder, false, 'inner_product',
                            sqlvec._add_target(rel, v_target, encoder, 'bytea', NULL));
END
$body$;

COMMENT ON PROCEDURE sqlvec.add_centroid(regclass, text, text, text) IS
    'Declare a bytea column `target` that holds one byte per token of multi-vector column `column_name`: the number of its nearest centroid under `encoder`, made by sqlvec.create_centroid_encoder or sqlvec.fit_centroids. Adds the column, the trigger and the catalog row; rows already there wait for sqlvec.backfill, and an array without vectors gets an empty code.';
