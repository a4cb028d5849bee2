"""Options of the whole suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pg-version",
        type=int,
        choices=(16, 18),
        default=18,
        help="PostgreSQL to start when SQLVEC_TEST_DSN names no server (default: 18)",
    )
