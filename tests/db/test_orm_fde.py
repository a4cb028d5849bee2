"""Models with a fixed dimensional encoding."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import inspect, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, deferred, mapped_column

from sqlvec import FDE, MULTIVECTOR, MultiVector, functions
from sqlvec.catalog import load_fde
from sqlvec.types import HALFVEC


class Base(DeclarativeBase):
    pass


encoding = FDE("tokens", repetitions=4, simhash_bits=3, projection=4, seed=5)


class Doc(Base):
    __tablename__ = "doc"
    id: Mapped[int] = mapped_column(primary_key=True)
    tokens: Mapped[MultiVector] = mapped_column(MULTIVECTOR(8))
    tokens_fde: Mapped[Any] = deferred(mapped_column(HALFVEC(128)))
    __table_args__ = (encoding, encoding.index())


def test_declared_filled_searched_and_dropped(conn):
    Base.metadata.create_all(conn)
    tokens = np.random.default_rng(0).standard_normal((12, 6, 8))
    tokens /= np.linalg.norm(tokens, axis=2, keepdims=True)
    with Session(conn) as session:
        session.add_all([Doc(id=n, tokens=some) for n, some in enumerate(tokens)])
        session.flush()
        name = session.scalar(text("SELECT encoder FROM sqlvec.derived_column"))
        fde, parts = load_fde(conn, name)
        assert fde == encoding.encoder
        stored = np.array(
            session.scalars(select(Doc.tokens_fde).order_by(Doc.id)).all(), dtype=np.float16
        )
        np.testing.assert_array_max_ulp(stored, fde.documents(tokens, parts), maxulp=1)
        query = tokens[7][:3]
        by_code = Doc.tokens_fde.max_inner_product(functions.fde_query(name, query))
        assert 7 in session.scalars(select(Doc.id).order_by(by_code).limit(4)).all()
        best = select(Doc.id).order_by(functions.maxsim(Doc.tokens, query).desc())
        assert session.scalars(best).first() == 7
        one = session.scalar(select(functions.fde_document(name, tokens[2])))
        np.testing.assert_array_equal(np.array(one, dtype=np.float16), stored[2])
    Base.metadata.drop_all(conn)
    assert not inspect(conn).has_table("doc")
    assert conn.scalar(text("SELECT count(*) FROM sqlvec.encoder")) == 0
