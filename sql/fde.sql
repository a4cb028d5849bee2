-- sqlvec.add_fde: declare the fixed dimensional encoding of a multi-vector column.

CREATE OR REPLACE PROCEDURE sqlvec.add_fde(
    rel regclass, column_name text, target text = NULL, repetitions int = 20, simhash_bits int = 4, projection int = 8,
    final_dimensions int = NULL, seed bigint = 0, bits boolean = false
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record;
    v_dimensions int;
    v_options jsonb := jsonb_build_object('repetitions', repetitions, 'simhash_bits', simhash_bits, 'projection', projection,
                                          'final_dimensions', final_dimensions, 'seed', seed, 'bits', bits);
    v_target text := coalesce(target, sqlvec._name(column_name || '_fde'));
    v_encoder text;
    v_filled boolean;
BEGIN
    IF rel IS NULL OR column_name IS NULL THEN
        RAISE EXCEPTION 'add_fde needs a table and a column' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM sqlvec._require_table(rel);
    v_source := sqlvec._multivector_column(rel, column_name);
    v_dimensions := coalesce(v_source.dimensions, sqlvec._dimensions(rel, column_name));
    v_options := sqlvec._encoder_options('fde', v_dimensions, v_options);
    PERFORM sqlvec._claim_targets(rel, ARRAY[column_name], ARRAY[v_target]);
    v_encoder := sqlvec._own_encoder_name(rel, v_target);
    PERFORM sqlvec._write_encoder(v_encoder, 'fde', v_dimensions, v_options, sqlvec._owner(rel), NULL);
    v_filled := sqlvec._add_target(rel, v_target, v_encoder, CASE WHEN bits THEN 'bit' ELSE 'halfvec' END, sqlvec._code_dimensions('fde', v_dimensions, v_options));
    PERFORM sqlvec._store_external(rel, column_name);
    PERFORM sqlvec._declare(rel, ARRAY[column_name], ARRAY[v_target], v_encoder, true, 'inner_product', v_filled);
END
$body$;

COMMENT ON PROCEDURE sqlvec.add_fde(regclass, text, text, int, int, int, int, bigint, boolean) IS
    'Declare a column `target` that holds the fixed dimensional encoding (MUVERA) of multi-vector column `column_name`: repetitions * 2^simhash_bits * projection dimensions in halfvec, or final_dimensions; with bits their signs, twice as many bits. Adds the column, the trigger and the catalog row; rows already there wait for sqlvec.backfill, and an empty array gets zeros. Index it with halfvec_ip_ops, signs with bit_hamming_ops.';
