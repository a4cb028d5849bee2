"""Models whose hubs stand back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from sqlalchemy import insert, inspect, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlvec import Hubness, encoders, vector_search
from sqlvec.catalog import load_encoder
from sqlvec.functions import hubness_query
from sqlvec.types import VECTOR
from tests.db import vectors as v


class Base(DeclarativeBase):
    pass


hubs = Hubness("embedding", "hubs")


class Doc(Base):
    __tablename__ = "doc"
    id: Mapped[int] = mapped_column(primary_key=True)
    embedding: Mapped[Sequence[float]] = mapped_column(VECTOR(8))
    __table_args__ = (hubs, hubs.index())


CREATE = text(
    "CALL sqlvec.create_hubness_encoder('hubs', CAST(CAST(:bank AS text[]) AS vector[]), strength => 1)"
)
BANK = {"bank": [v.text(query) for query in v.clustered(30, 8, 1)]}


def test_declared_filled_searched_and_dropped(conn):
    conn.execute(CREATE, BANK)
    Base.metadata.create_all(conn)
    rows = v.clustered(60, 8)
    with Session(conn) as session:
        session.add_all([Doc(id=n, embedding=row.tolist()) for n, row in enumerate(rows)])
        session.flush()
        encoder, parts = load_encoder(conn, "hubs")
        query = rows[3] + rows[9]
        scores = encoder.encode(rows, parts) @ encoders.Hubness.query(query)
        search = vector_search(Doc, hubness_query(query), "embedding_hubness", k=5)
        found = session.execute(search).all()
        assert [doc.id for doc, _ in found] == np.argsort(-scores)[:5].tolist()
        assert [-distance for _, distance in found] == pytest.approx(np.sort(scores)[::-1][:5])
        # The source stays the column that is searched unless another is named.
        nearest = session.execute(vector_search(Doc, rows[7], k=1)).one()
        assert nearest[0].id == 7
    Base.metadata.drop_all(conn)
    assert not inspect(conn).has_table("doc")
    assert conn.scalar(text("SELECT count(*) FROM sqlvec.encoder")) == 1


async def test_asynchronous(async_engine):
    async with async_engine.connect() as connection:
        await connection.execute(CREATE, BANK)
        await connection.run_sync(Base.metadata.create_all)
        rows = v.clustered(20, 8)
        documents = [{"id": n, "embedding": row.tolist()} for n, row in enumerate(rows)]
        await connection.execute(insert(Doc), documents)
        search = vector_search(Doc, hubness_query(rows[2]), "embedding_hubness", k=20)
        found = (await connection.execute(search)).all()
        assert len(found) == 20
        stored = await connection.execute(select(Doc.__table__.c.embedding_hubness))
        assert len(stored.first()[0]) == 9
        await connection.rollback()
