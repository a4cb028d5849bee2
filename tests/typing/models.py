"""A model and its searches as a user types them; checked by mypy, never run."""

from __future__ import annotations

from typing import assert_type

import numpy as np
from pgvector import HalfVector
from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    defer,
    joinedload,
    mapped_column,
)

from sqlvec import catalog, functions
from sqlvec.encoders import Binary, Truncate
from sqlvec.schema import BM25, FDE, Pooled, Quantized, attach
from sqlvec.search import (
    ClientRescore,
    bit_search,
    bm25_search,
    explain_bm25_search,
    explain_search,
    maxsim_search,
    vector_search,
)
from sqlvec.types import MULTIVECTOR, VECTOR, MultiVector


class Base(DeclarativeBase):
    pass


class Doc(Base):
    __tablename__ = "doc"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[int]
    body: Mapped[str]
    embedding: Mapped[list[float]] = mapped_column(VECTOR(384))
    tokens: Mapped[MultiVector] = mapped_column(MULTIVECTOR(128))
    codes = Quantized("embedding", Binary(rotate=True), metric="cosine")
    text = BM25("body", config="simple", tenant="tenant_id")
    __table_args__ = (
        codes,
        codes.index(m=16),
        Quantized("embedding", Truncate(64, "vector"), target="short"),
        text,
        text.index("ix_words"),
        BM25({"body": 2}, k1=1, target="all_words"),
        FDE("tokens", repetitions=10),
        Pooled("tokens", method="rows", width=32, max_rows=16),
    )
    __mapper_args__ = {"exclude_properties": text.columns}


attach(Base.metadata)


def search(session: Session) -> list[float]:
    statement = vector_search(Doc, [0.1, 0.2], where=[Doc.tenant_id == 7, Doc.id.in_([1, 2])])
    assert_type(statement, Select[Doc, float])
    for doc, distance in session.execute(statement):
        assert_type(doc, Doc)
        assert_type(distance, float)
    for doc, _ in session.execute(statement.limit(3).where(Doc.id > 2)):
        assert_type(doc, Doc)
    vector_search(Doc, np.zeros(384), Doc.embedding, where=Doc.id == 1, oversample=2.5)
    vector_search(Doc, HalfVector([1.0]), "embedding", mode="exact")
    assert_type(bit_search(Doc, "0101"), Select[Doc, float])
    return [distance for _, distance in session.execute(statement)]


def search_words(session: Session) -> list[str]:
    statement = bm25_search(Doc, "apple tree", where=Doc.id > 7, k=5, tenant=7, backend="sqlvec")
    assert_type(statement, Select[Doc, float])
    for doc, score in session.execute(statement):
        assert_type(doc, Doc)
        assert_type(score, float)
    bm25_search(aliased(Doc), "apple", "body_bm25", where=[Doc.id == 1], oversample=2)
    passage = functions.bm25_headline(Doc, "body", "apple", "MaxWords=20")
    for topic, detail in session.execute(explain_bm25_search(Doc, "apple", Doc.body)):
        print(topic, detail)
    return [row[2] for row in session.execute(statement.add_columns(passage))]


def search_tokens(session: Session) -> list[float]:
    statement = maxsim_search(Doc, np.zeros((3, 128)), where=Doc.id > 7, k=5, recall=0.9)
    assert_type(statement, Select[Doc, float])
    for doc, score in session.execute(statement.options(defer(Doc.tokens))):
        assert_type(doc, Doc)
        assert_type(score, float)
    maxsim_search(aliased(Doc), [[0.1, 0.2]], "tokens", mode="exact", carve=0.7)
    here = maxsim_search(Doc, [[0.1, 0.2]], rescore="client", candidates=300)
    assert_type(here, ClientRescore[Doc])
    return [row[-1] for row in here.rank(session.execute(here.candidates))]


def search_alias(session: Session) -> list[Doc]:
    other = aliased(Doc)
    statement = vector_search(other, [0.1], where=other.tenant_id == 1)
    return list(session.scalars(statement))


async def search_async(session: AsyncSession) -> list[Doc]:
    statement = vector_search(Doc, (0.1, 0.2)).options(joinedload("*"))
    return [doc for doc, _ in await session.execute(statement)]


def search_table(session: Session) -> None:
    table = Doc.__table__
    for row in session.execute(vector_search(table, [0.1], where=table.c.id > 1)):
        print(row.distance)


def explain(session: Session) -> dict[str, str]:
    return {topic: detail for topic, detail in session.execute(explain_search(Doc, [0.1]))}


def encode(session: Session) -> None:
    encoder, parts = catalog.load_encoder(session.connection(), "rotated")
    encoder.encode(np.zeros((3, 384)), parts)
