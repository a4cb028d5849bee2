"""When numpy leaves a backfill to the server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sqlvec import bulk_backfill


@pytest.mark.parametrize(("driver", "batch"), [("asyncpg", 1000), ("psycopg", 0)])
def test_left_to_the_server(driver: str, batch: int) -> None:
    """It has no COPY on other drivers, and no words of its own for a wrong argument."""
    connection: Any = SimpleNamespace(dialect=SimpleNamespace(driver=driver))
    bulk_backfill.fill(connection, 1, None, batch, lambda done, total: None)
