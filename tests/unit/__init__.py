"""Tests of what speaks to a database, that need none."""
