"""A tour of sqlvec on the documentation of Python's own standard library."""
