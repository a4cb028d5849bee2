"""Models with pooled multi-vectors."""

from __future__ import annotations

import numpy as np
from sqlalchemy import ARRAY, REAL, inspect, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, deferred, mapped_column

from sqlvec import FDE, MULTIVECTOR, MultiVector, Pooled, functions
from sqlvec.catalog import load_pool


class Base(DeclarativeBase):
    pass


pooled = Pooled("tokens", method="kmeans", factor=3)
top = Pooled("tokens", method="top", share=0.5, weights="weights", target="best")


class Doc(Base):
    __tablename__ = "doc"
    id: Mapped[int] = mapped_column(primary_key=True)
    tokens: Mapped[MultiVector] = mapped_column(MULTIVECTOR(8))
    weights: Mapped[list[float] | None] = mapped_column(ARRAY(REAL))
    tokens_pool: Mapped[MultiVector] = deferred(mapped_column(MULTIVECTOR(8)))
    best: Mapped[MultiVector] = deferred(mapped_column(MULTIVECTOR(8)))
    __table_args__ = (
        pooled,
        top,
        FDE("tokens_pool", repetitions=2, simhash_bits=2, projection=2),
    )


def test_declared_filled_and_dropped(conn):
    Base.metadata.create_all(conn)
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((6, 10, 8)).astype(np.float16)
    weights = rng.random((6, 10)).astype(np.float32)
    with Session(conn) as session:
        session.add_all(
            Doc(id=n, tokens=some, weights=own.tolist())
            for n, (some, own) in enumerate(zip(tokens, weights, strict=True))
        )
        session.flush()
        encoders = {
            row.target_column: row.encoder
            for row in session.execute(
                text("SELECT target_column, encoder FROM sqlvec.derived_column")
            )
        }
        assert encoders.keys() == {"tokens_pool", "best", "tokens_pool_fde"}
        for declaration, own, column in ((pooled, None, Doc.tokens_pool), (top, weights, Doc.best)):
            pool = load_pool(conn, encoders[declaration.target])
            assert pool == declaration.encoder
            stored = session.scalars(select(column).order_by(Doc.id)).all()
            for found, expected in zip(stored, pool.documents(tokens, own), strict=True):
                np.testing.assert_array_equal(found, expected)
        one = functions.pool(encoders["best"], Doc.tokens, Doc.weights)
        assert session.scalar(select(one).where(Doc.id == 2)).shape == (5, 8)
        few = functions.pool(encoders["tokens_pool"], tokens[1])
        np.testing.assert_array_equal(
            session.scalar(select(few)), pooled.encoder.document(tokens[1])
        )
        best = select(Doc.id).order_by(functions.maxsim(Doc.tokens_pool, tokens[4]).desc())
        assert session.scalars(best).first() == 4
        doc = session.get_one(Doc, 3)
        doc.tokens = tokens[0]
        session.flush()
        np.testing.assert_array_equal(doc.tokens_pool, pooled.encoder.document(tokens[0]))
    Base.metadata.drop_all(conn)
    assert not inspect(conn).has_table("doc")
    assert conn.scalar(text("SELECT count(*) FROM sqlvec.encoder")) == 0
