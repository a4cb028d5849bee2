"""What manage refuses without a server."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from sqlvec import manage


def test_an_async_engine_is_refused() -> None:
    engine: Any = create_async_engine("postgresql+psycopg://")
    with pytest.raises(TypeError, match=r"sync engine, not AsyncEngine; .*asyncio\.to_thread"):
        manage.analyze_bm25(engine, "doc")
    with pytest.raises(TypeError, match="sync engine"):
        manage.bm25_health(engine)
