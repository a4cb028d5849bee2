"""Models searched by words, vectors and multi-vectors at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, ForeignKey, event, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    joinedload,
    mapped_column,
    relationship,
)

from sqlvec import (
    BM25,
    MULTIVECTOR,
    MultiVector,
    explain_hybrid_search,
    hybrid_search,
    vector_search,
)
from sqlvec.errors import DeclarationError
from sqlvec.search import complete, hits
from sqlvec.types import VECTOR


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Doc(Base):
    __tablename__ = "doc"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str | None]
    embedding: Mapped[list[float] | None] = mapped_column("Embedding 100%", VECTOR(8))
    tokens: Mapped[MultiVector | None] = mapped_column(MULTIVECTOR(8))
    tenant_id: Mapped[int]
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship()
    weights = BM25("body", config="simple")
    __table_args__ = (weights, weights.index())


class Part(Base):
    """Composite key, and nothing but a vector."""

    __tablename__ = "part"
    a: Mapped[int] = mapped_column(primary_key=True)
    b: Mapped[str] = mapped_column(primary_key=True)
    embedding: Mapped[list[float]] = mapped_column(VECTOR(8))


RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.standard_normal((200, 8)).astype(np.float32)
QUERY = RANDOM.standard_normal(8).astype(np.float32)
TOKENS = RANDOM.standard_normal((3, 8)).astype(np.float16)


@pytest.fixture(scope="module")
def session(engine: Engine) -> Iterator[Session]:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Author(id=n, name=f"author {n}") for n in range(5)])
        session.flush()
        session.add_all(
            Doc(
                id=n,
                body=f"word{n % 10} word{n % 7}",
                embedding=vector,
                tokens=VECTORS[n : n + 2],
                tenant_id=n % 3,
                author_id=n % 5,
            )
            for n, vector in enumerate(VECTORS)
        )
        session.add_all(
            Part(a=n // 10, b=f"it's {n % 10}", embedding=vector)
            for n, vector in enumerate(VECTORS[:50])
        )
        session.commit()
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("CALL sqlvec.analyze_bm25('doc')"))
        yield session
    Base.metadata.drop_all(engine)


def test_models_with_scores(session):
    stmt = hybrid_search(
        Doc, text="word3 word5", vector=QUERY, where=[Doc.tenant_id == 1], fusion="convex", k=5
    )
    rows = session.execute(stmt.options(joinedload(Doc.author))).all()
    assert len(rows) == 5
    assert all(doc.tenant_id == 1 and "author" in doc.__dict__ for doc, _ in rows)
    scores = [score for _, score in rows]
    assert scores == sorted(scores, reverse=True)
    on_server = session.execute(
        text(
            "SELECT (hit).id, score FROM sqlvec.hybrid_search(NULL::doc, 'word3 word5',"
            " CAST(:q AS vector), k => 5, filter => '{\"tenant_id\": 1}', fusion => 'convex')"
        ),
        {"q": str(QUERY.tolist())},
    ).all()
    assert [(doc.id, score) for doc, score in rows] == [tuple(row) for row in on_server]


def test_all_that_a_hit_tells(session):
    stmt = hybrid_search(Doc, text="word3", vector=QUERY, tokens=TOKENS, k=30)
    found = hits(stmt).c
    stmt = stmt.add_columns(
        found.relevance,
        found.text_score,
        found.text_rank,
        found.vector_distance,
        found.vector_rank,
        found.tokens_score,
        found.tokens_rank,
        complete(stmt),
    )
    for doc, score, relevance, *legs, whole in session.execute(stmt):
        assert score > 0 and relevance is None and whole is True
        assert (legs[1] is not None) == ("word3" in doc.body)


def test_the_order_is_that_of_the_server_where_hits_differ(session):
    stmt = hybrid_search(Doc, vector=QUERY, diversity=0.9, k=8)
    found = [(doc.id, score) for doc, score in session.execute(stmt)]
    plain = [
        (doc.id, score) for doc, score in session.execute(hybrid_search(Doc, vector=QUERY, k=8))
    ]
    assert found != plain
    assert [score for _, score in found] != sorted((score for _, score in found), reverse=True)


def test_groups_of_a_relation(session):
    stmt = hybrid_search(Doc, vector=QUERY, group_by=Doc.author_id, k=5)
    assert len({doc.author_id for doc, _ in session.execute(stmt)}) == 5


def test_one_leg_is_the_search_of_that_leg(session):
    nearest = [doc.id for doc, _ in session.execute(vector_search(Doc, QUERY))]
    stmt = hybrid_search(Doc, vector=QUERY)
    assert [doc.id for doc, _ in session.execute(stmt)] == nearest


def test_composite_keys_tables_and_aliases(session):
    rows = session.execute(hybrid_search(Part, vector=QUERY, k=4)).all()
    nearest = session.execute(vector_search(Part, QUERY, k=4)).all()
    assert [row[0] for row in rows] == [row[0] for row in nearest]
    other = aliased(Doc)
    stmt = hybrid_search(other, text="word3", where=other.tenant_id == 0)
    assert {doc.tenant_id for doc, _ in session.execute(stmt)} == {0}
    core = session.execute(hybrid_search(Doc.__table__, text="word3")).all()
    assert len(core[0]) == len(Doc.__table__.columns) + 1


def test_columns_may_be_named(session):
    for column in (Doc.embedding, "Embedding 100%"):
        stmt = hybrid_search(
            Doc, text="word1", text_column="body", vector=QUERY, vector_column=column
        )
        assert len(session.execute(stmt).all()) == 10
    with pytest.raises(DeclarationError, match="no column 'nosuch'"):
        hybrid_search(Doc, vector=QUERY, vector_column="nosuch")
    with pytest.raises(DeclarationError, match="no column 'nosuch'"):
        hybrid_search(Doc, vector=QUERY, group_by="nosuch")
    with pytest.raises(DeclarationError, match="give one of them"):
        hybrid_search(Doc)
    with pytest.raises(DeclarationError, match="metric"):
        hybrid_search(Doc, vector=QUERY, metric="cosinus")


def test_nothing_relevant(session):
    session.execute(
        text(
            "CALL sqlvec.create_relevance_model('doc v', 'vector', 'raw', '{5}', '{-3}', '{1}',"
            " 'doc', 'Embedding 100%')"
        )
    )
    asked: Any = {"vector": QUERY, "relevance": "doc v"}
    found = session.execute(
        hybrid_search(Doc, **asked, fusion="relevance", min_relevance=0.3)
    ).all()
    assert found and all(score >= 0.3 for _, score in found)
    assert session.execute(hybrid_search(Doc, **asked, min_relevance=0.999)).all() == []
    assert (
        len(session.execute(hybrid_search(Doc, **asked, min_relevance=1, min_results=2)).all()) == 2
    )
    explained = dict(
        session.execute(explain_hybrid_search(Doc, **asked, min_relevance=0.999)).all()
    )
    assert explained["cut"].startswith("0 of 1 rows are left")
    session.rollback()


def test_one_statement_serves_all_values(session, engine):
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    for word, tenant in (("word1", 0), ("wo'rd2 %s $where$", 1)):
        stmt = hybrid_search(
            Doc,
            text=word,
            vector=QUERY,
            where=Doc.tenant_id == tenant,
            fusion="convex",
            weights={"text": 1, "vector": tenant},
        )
        session.execute(stmt).all()
    assert len(set(statements)) == 1
    assert "word1" not in statements[0]


async def test_async(session, async_engine: AsyncEngine):
    stmt = hybrid_search(
        Doc,
        text="word3",
        vector=QUERY,
        tokens=TOKENS,
        where=Doc.author.has(Author.name == "author 1"),
        weights={"text": 1, "vector": 0.5, "tokens": 2},
        group_by="tenant_id",
    )
    async with AsyncSession(async_engine) as connection:
        found = (await connection.execute(stmt)).all()
    assert [doc.id for doc, _ in found] == [doc.id for doc, _ in session.execute(stmt)]
    assert {doc.author_id for doc, _ in found} == {1}
    assert len(found) == 3


def test_a_later_where_filters_the_hits(session):
    stmt = hybrid_search(Doc, vector=QUERY, k=10).where(Doc.tenant_id == 0)
    assert 0 < len(session.execute(stmt).all()) < 10
    statement = select(hybrid_search(Doc, vector=QUERY).subquery().c.id)
    assert len(session.scalars(statement).all()) == 10
