"""Multi-vectors on their way to the server and back, on every driver."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sqlalchemy import Integer, cast, literal, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlvec import functions
from sqlvec.ddl import StoreExternal
from sqlvec.errors import MissingRequirement
from sqlvec.types import MULTIVECTOR, MultiVector, register_asyncpg
from sqlvec.types.psycopg import register_multivectors, register_multivectors_async

RNG = np.random.default_rng(0)
TOKENS = RNG.standard_normal((5, 8)).astype(np.float16).astype(np.float32)


class Base(DeclarativeBase):
    pass


class Page(Base):
    __tablename__ = "page"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    tokens: Mapped[MultiVector | None] = mapped_column(MULTIVECTOR(8))
    full: Mapped[MultiVector | None] = mapped_column(MULTIVECTOR(8, "vector"))


PAGE: Any = Page.__table__


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(1, 40).flatmap(
        lambda n: hnp.arrays(np.float32, (n, 3), elements=st.floats(-60000, 60000, width=16))
    )
)
def test_roundtrip_of_values(conn, x):
    type_ = MULTIVECTOR(3)
    found = conn.scalar(select(cast(literal(x, type_), type_)))
    np.testing.assert_array_equal(found, x)


def test_orm(conn):
    Base.metadata.create_all(conn)
    conn.execute(StoreExternal("tokens").against(PAGE))
    with Session(conn) as session:
        session.add_all([Page(id=1, tokens=TOKENS, full=TOKENS[:2].tolist()), Page(id=2)])
        session.commit()
        page = session.get_one(Page, 1)
        assert page.tokens is not None and page.tokens.dtype == np.float32
        np.testing.assert_array_equal(page.tokens, TOKENS)
        np.testing.assert_array_equal(page.full, TOKENS[:2])
        assert session.get_one(Page, 2).tokens is None
        page.tokens = TOKENS[:1]
        session.commit()
        assert page.tokens.shape == (1, 8)
        page.tokens = TOKENS[:1].copy()
        session.flush()
        best = session.scalar(select(functions.maxsim(Page.tokens, TOKENS[:3])).where(Page.id == 1))
        assert best == pytest.approx((TOKENS[:3] @ TOKENS[0]).sum(), rel=1e-5)
    storage = "SELECT attstorage FROM pg_attribute WHERE attrelid = 'page'::regclass AND attname = 'tokens'"
    assert conn.scalar(text(storage)) == "e"


@pytest.mark.parametrize("registered", [False, True])
async def test_async(async_engine, registered):
    if registered and async_engine.dialect.driver == "asyncpg":
        register_asyncpg(async_engine)
    async with async_engine.connect() as connection:
        await connection.run_sync(Base.metadata.create_all)
        if registered and async_engine.dialect.driver == "psycopg":
            raw = await connection.get_raw_connection()
            await register_multivectors_async(raw.driver_connection)
        await connection.execute(
            PAGE.insert(),
            [{"id": 1, "tokens": TOKENS, "full": TOKENS}, {"id": 2, "tokens": None, "full": None}],
        )
        rows = (await connection.execute(select(Page.tokens, Page.full).order_by(Page.id))).all()
        for found in rows[0]:
            np.testing.assert_array_equal(found, TOKENS)
        assert rows[1] == (None, None)
        score = await connection.scalar(select(functions.maxsim(Page.tokens, TOKENS)))
        assert score == pytest.approx((TOKENS @ TOKENS.T).max(axis=1).sum(), rel=1e-4)
        await connection.rollback()


def test_binary_copy(dsn):
    with psycopg.connect(dsn) as connection:
        register_multivectors(connection)
        cursor = connection.cursor(binary=True)
        cursor.execute(
            "CREATE TEMP TABLE copied (id int8, tokens halfvec(8)[], full_tokens vector(8)[])"
        )
        with cursor.copy("COPY copied FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int8", "halfvec[]", "vector[]"])
            copy.write_row((1, TOKENS, TOKENS[:1]))
            copy.write_row((2, None, None))
        for fresh in (connection.cursor(binary=True), connection.cursor()):
            rows = fresh.execute("SELECT tokens, full_tokens FROM copied ORDER BY id").fetchall()
            np.testing.assert_array_equal(rows[0][0], TOKENS)
            np.testing.assert_array_equal(rows[0][1], TOKENS[:1])
            assert rows[1] == (None, None)


def test_no_extension(tmp_database):
    with psycopg.connect(tmp_database(None)) as connection, pytest.raises(MissingRequirement):
        register_multivectors(connection)
