"""Models with one byte per token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import LargeBinary, insert, inspect, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, deferred, mapped_column

from sqlvec import MULTIVECTOR, Centroid, MultiVector, functions
from sqlvec.catalog import load_centroid
from sqlvec.fit.centroid import centroids, create


class Base(DeclarativeBase):
    pass


class Doc(Base):
    __tablename__ = "doc"
    id: Mapped[int] = mapped_column(primary_key=True)
    tokens: Mapped[MultiVector] = mapped_column(MULTIVECTOR(8))
    tokens_centroid: Mapped[bytes] = deferred(mapped_column(LargeBinary))
    __table_args__ = (Centroid("tokens", name="nearest"),)


def unit_tokens(*shape: int) -> Any:
    tokens = np.random.default_rng(0).standard_normal(shape)
    return tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)


def test_declared_filled_searched_and_dropped(conn):
    tokens = unit_tokens(30, 6, 8)
    create(conn, "nearest", centroids(tokens.reshape(-1, 8), clusters=100))
    Base.metadata.create_all(conn)
    with Session(conn) as session:
        session.add_all([Doc(id=n, tokens=some) for n, some in enumerate(tokens)])
        session.flush()
        centroid, parts = load_centroid(conn, "nearest")
        expected = centroid.documents(tokens, parts)
        stored = session.scalars(select(Doc.tokens_centroid).order_by(Doc.id)).all()
        assert stored == expected
        query = tokens[7][:4]
        score = functions.maxsim_centroid(
            Doc.tokens_centroid, functions.centroid_table("nearest", query)
        )
        table = centroid.table(query, parts)
        found = session.scalars(select(score).order_by(Doc.id)).all()
        assert found == [centroid.maxsim(code, table) for code in expected]
        assert session.scalars(select(Doc.id).order_by(score.desc())).first() == 7
        one = session.scalar(select(functions.centroid_codes("nearest", tokens[2])))
        assert one == expected[2]
        decoded = select(functions.centroid_decode("nearest", Doc.tokens_centroid))
        np.testing.assert_array_equal(
            session.scalar(decoded.where(Doc.id == 3)), centroid.decode(expected[3], parts)
        )
        bits = functions.centroid_bits(Doc.tokens_centroid, centroid.bits)
        query_bits = functions.centroid_bits(functions.centroid_codes("nearest", query), 7)
        hamming = select(functions.maxsim_bit(bits, query_bits)).where(Doc.id == 7)
        assert session.scalar(hamming) == pytest.approx(4)
    Base.metadata.drop_all(conn)
    assert not inspect(conn).has_table("doc")
    assert conn.scalar(text("SELECT count(*) FROM sqlvec.encoder")) == 1


async def test_asynchronous(async_engine):
    tokens = unit_tokens(4, 6, 8)
    async with async_engine.connect() as connection:
        await connection.run_sync(
            lambda conn: create(conn, "nearest", centroids(tokens.reshape(-1, 8), clusters=9))
        )
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(
            insert(Doc), [{"id": n, "tokens": some} for n, some in enumerate(tokens)]
        )
        prepared = functions.centroid_table("nearest", tokens[2])
        score = functions.maxsim_centroid(Doc.tokens_centroid, prepared)
        ranked = await connection.execute(select(Doc.id, score).order_by(score.desc()))
        assert 2 in [row.id for row in ranked.all()][:2]
        await connection.rollback()
