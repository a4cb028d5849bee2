-- Runs once, in the database that POSTGRES_DB names, when the data directory is made.
CREATE EXTENSION sqlvec CASCADE;
