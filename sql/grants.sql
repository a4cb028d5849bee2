-- Everyone may call the functions and read the catalog; writes are checked row by row by
-- sqlvec._guard, those of the statistics by policies. Catalog rows never change in place except for
-- names that are followed.

GRANT USAGE ON SCHEMA sqlvec TO PUBLIC;
GRANT SELECT ON ALL TABLES IN SCHEMA sqlvec TO PUBLIC;
GRANT INSERT, DELETE ON sqlvec.encoder, sqlvec.encoder_vector, sqlvec.relevance_model, sqlvec.relevance_vector TO PUBLIC;
GRANT INSERT, UPDATE, DELETE ON sqlvec.relation, sqlvec.derived, sqlvec.backfill_state TO PUBLIC;
GRANT INSERT, UPDATE, DELETE ON sqlvec.bm25_corpus, sqlvec.bm25_frequency TO PUBLIC;
