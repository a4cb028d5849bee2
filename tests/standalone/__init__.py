"""Tests of what speaks to no database and has nothing to do with SQLAlchemy."""
