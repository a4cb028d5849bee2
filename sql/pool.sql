-- sqlvec.add_pooled: declare a column with fewer vectors for each multi-vector.

CREATE OR REPLACE PROCEDURE sqlvec.add_pooled(
    rel regclass, column_name text, method text = 'hierarchical', target text = NULL, options jsonb = NULL, weights_column text = NULL
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record;
    v_weights record;
    v_sources text[] := array_remove(ARRAY[column_name, weights_column], NULL);
    v_dimensions int;
    v_options jsonb := coalesce(options, '{}');
    v_target text := coalesce(target, sqlvec._name(column_name || '_pool'));
    v_encoder text;
    v_filled boolean;
BEGIN
    IF rel IS NULL OR column_name IS NULL OR method IS NULL THEN
        RAISE EXCEPTION 'add_pooled needs a table, a column and a method' USING ERRCODE = 'null_value_not_allowed';
    ELSIF v_options ? 'method' THEN
        RAISE EXCEPTION 'the method is an argument of add_pooled, not one of its options' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM sqlvec._require_table(rel);
    v_source := sqlvec._multivector_column(rel, column_name);
    v_dimensions := coalesce(v_source.dimensions, sqlvec._dimensions(rel, column_name));
    v_options := sqlvec._encoder_options('pool', v_dimensions, v_options || jsonb_build_object('method', method));
    IF weights_column IS NOT NULL THEN
        v_weights := sqlvec._column(rel, weights_column);
        IF method <> 'top' THEN
            RAISE EXCEPTION 'pooling by method "%" takes no weights', method
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Method "top" does.';
        ELSIF v_weights.type_name <> '_float4' THEN
            RAISE EXCEPTION 'column "%" of table % is of type %, not real[]', weights_column, rel, format_type(v_weights.type_oid, NULL)
                USING ERRCODE = 'datatype_mismatch';
        END IF;
    ELSIF method = 'top' THEN
        RAISE EXCEPTION 'pooling by method "top" needs a column of weights' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Name one of type real[]: weights_column => ''...''.';
    END IF;
    PERFORM sqlvec._claim_targets(rel, v_sources, ARRAY[v_target]);
    v_encoder := sqlvec._own_encoder_name(rel, v_target);
    PERFORM sqlvec._write_encoder(v_encoder, 'pool', v_dimensions, v_options, sqlvec._owner(rel), NULL);
    v_filled := sqlvec._add_target(rel, v_target, v_encoder, 'halfvec[]', v_dimensions);
    PERFORM sqlvec._store_external(rel, column_name), sqlvec._store_external(rel, v_target);
    PERFORM sqlvec._declare(rel, v_sources, ARRAY[v_target], v_encoder, true, 'inner_product', v_filled);
END
$body$;

COMMENT ON PROCEDURE sqlvec.add_pooled(regclass, text, text, text, jsonb, text) IS
    'Declare a column `target` with fewer vectors for each multi-vector of column `column_name`. Methods and their options: hierarchical {"factor", "protected"}, kmeans {"factor" or "clusters", "iterations", "protected"}, sequential {"factor", "protected"}, rows {"width", "height", "max_rows", "window", "protected"}, tiles {"tile", "protected"}, top {"share"} by the real[] in weights_column, prefix {"tokens"}; the first five also {"normalize"}, which makes means unit vectors. Adds the column, the trigger and the catalog row; rows already there wait for sqlvec.backfill.';
