"""Users' code that is right passes a strict type check."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from mypy import api

EXAMPLES = Path(__file__).parents[1] / "typing"
CACHE = Path(__file__).parents[2] / ".mypy_cache"  # What `make types` knows of the libraries.


@pytest.mark.skipif(
    version("sqlalchemy").startswith("2.0"), reason="SQLAlchemy 2.0 spells the type of a row apart"
)
def test_examples_pass_mypy() -> None:
    arguments = ["--strict", "--cache-dir", str(CACHE), *map(str, EXAMPLES.glob("*.py"))]
    output, errors, status = api.run(arguments)
    assert status == 0, output + errors
