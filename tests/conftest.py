"""Options of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# ranx would compile for a minute what the tests call a few hundred times. Numba reads this when it
# is imported, by whichever test comes first.
os.environ["NUMBA_DISABLE_JIT"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pg-version",
        type=int,
        choices=(16, 18),
        default=18,
        help="PostgreSQL to start when SQLVEC_TEST_DSN names no server (default: 18)",
    )
    parser.addoption(
        "--postgres",
        type=Path,
        metavar="FOLDER",
        help="installation to start (its bin, lib and share, pgvector among them)"
        " in place of a package's",
    )
