"""Benchmarks: one module per claim, both sides in one process on one server.

``python -m benchmarks NAME --json FILE`` starts a private PostgreSQL (or takes ``--dsn``), prints
tables, writes the figures as JSON and draws them to ``benchmarks/results/NAME.png``.
"""
