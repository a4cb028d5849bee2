"""Models searched by MaxSim, on the server and in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, ForeignKey, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    defer,
    joinedload,
    mapped_column,
    relationship,
)

from sqlvec import FDE, MULTIVECTOR, MultiVector, explain_maxsim_search, functions, maxsim_search
from sqlvec.encoders import maxsim
from sqlvec.errors import DeclarationError, EncodingError
from sqlvec.search import ClientRescore, complete


class Base(DeclarativeBase):
    pass


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


class Page(Base):
    __tablename__ = "page"
    id: Mapped[int] = mapped_column(primary_key=True)
    lang: Mapped[str]
    tokens: Mapped[MultiVector | None] = mapped_column(MULTIVECTOR(16))
    book_id: Mapped[int] = mapped_column(ForeignKey("book.id"))
    book: Mapped[Book] = relationship()
    encoding = FDE("tokens", projection=4, bits=True)
    __table_args__ = (encoding, encoding.index())


class Part(Base):
    """Composite key and no encoding."""

    __tablename__ = 'Pa"rt 100%'
    a: Mapped[int] = mapped_column(primary_key=True)
    b: Mapped[str] = mapped_column(primary_key=True)
    tokens: Mapped[MultiVector] = mapped_column(MULTIVECTOR(16, "vector"))


RANDOM = np.random.default_rng(0)
DOCUMENTS = [
    RANDOM.standard_normal((RANDOM.integers(1, 12), 16)).astype(np.float16) for _ in range(700)
]
QUERY = RANDOM.standard_normal((5, 16)).astype(np.float16)


def expected(k: int, allowed=lambda n: True) -> list[int]:
    scores = {n: maxsim(tokens, QUERY) for n, tokens in enumerate(DOCUMENTS) if allowed(n)}
    return sorted(scores, key=lambda n: -scores[n])[:k]


@pytest.fixture(scope="module")
def session(engine: Engine) -> Iterator[Session]:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Book(id=n, title=f"book {n}") for n in range(7)])
        session.flush()
        session.add_all(
            Page(id=n, lang="en" if n % 2 else "de", tokens=tokens, book_id=n % 7)
            for n, tokens in enumerate(DOCUMENTS)
        )
        session.add(Page(id=9999, lang="en", tokens=None, book_id=0))
        session.add_all(
            Part(a=n // 10, b=f"it's {n % 10}", tokens=tokens)
            for n, tokens in enumerate(DOCUMENTS[:100])
        )
        session.commit()
        yield session
    Base.metadata.drop_all(engine)


def test_models_with_what_belongs_to_them(session):
    statement = maxsim_search(Page, QUERY, k=5, candidates=700).options(
        joinedload(Page.book), defer(Page.tokens)
    )
    rows = session.execute(statement).all()
    assert [page.id for page, _ in rows] == expected(5)
    assert [score for _, score in rows] == pytest.approx(
        [maxsim(DOCUMENTS[page.id], QUERY) for page, _ in rows], rel=1e-5
    )
    assert [page.book.title for page, _ in rows] == [f"book {n % 7}" for n in expected(5)]


def test_criteria_apply_inside(session):
    german = expected(8, lambda n: n % 2 == 0)
    statement = maxsim_search(Page, QUERY, k=8, where=[Page.lang == "de"], candidates=350)
    assert [page.id for page, _ in session.execute(statement)] == german
    other = aliased(Page)
    statement = maxsim_search(other, QUERY.tolist(), "tokens", k=8, where=other.lang == "de")
    assert len(session.execute(statement).all()) == 8
    table = Page.__table__
    exact = maxsim_search(table, QUERY, table.c.tokens, k=3, where=table.c.id < 50, mode="exact")
    assert [row.id for row in session.execute(exact)] == expected(3, lambda n: n < 50)


def test_the_answer_says_whether_it_is_complete(session):
    statement = maxsim_search(Page, QUERY, k=3)
    assert [row[-1] for row in session.execute(statement.add_columns(complete(statement)))] == [
        True
    ] * 3


def test_composite_keys(session):
    wanted = expected(4, lambda n: n < 100)
    found = session.execute(maxsim_search(Part, QUERY, k=4)).all()
    assert [10 * part.a + int(part.b[-1]) for part, _ in found] == wanted
    search = maxsim_search(Part, QUERY, k=4, rescore="client")
    ranked = search.rank(session.execute(search.candidates))
    assert [(part.a, part.b) for part, _ in ranked] == [(part.a, part.b) for part, _ in found]


@pytest.mark.parametrize("candidates", [60, 700])
def test_compared_in_numpy_the_result_is_the_same(session, candidates):
    search = maxsim_search(
        Page, QUERY, k=7, candidates=candidates, where=Page.lang == "en", rescore="client"
    )
    assert isinstance(search, ClientRescore)
    here = search.rank(session.execute(search.candidates))
    there = session.execute(
        maxsim_search(Page, QUERY, k=7, candidates=candidates, where=Page.lang == "en")
    ).all()
    assert [page.id for page, _ in here] == [page.id for page, _ in there]
    assert [score for _, score in here] == pytest.approx([row[1] for row in there], rel=1e-5)


async def test_asynchronous(session, async_engine: AsyncEngine):
    async with AsyncSession(async_engine) as other:
        rows = (await other.execute(maxsim_search(Page, QUERY, k=4, candidates=700))).all()
        assert [page.id for page, _ in rows] == expected(4)
        search = maxsim_search(Page, QUERY, k=4, candidates=700, rescore="client")
        ranked = search.rank(await other.execute(search.candidates))
        assert [page.id for page, _ in ranked] == expected(4)


def test_one_cache_entry_for_many_queries(session, engine: Engine):
    one, other = (
        maxsim_search(Page, query, k=k, where=Page.id > low)._generate_cache_key()
        for query, k, low in ((QUERY, 3, 1), (QUERY[:2], 4, 2))
    )
    assert one is not None and one == other


def test_explains(session):
    options: dict[str, Any] = {"mode": "ix_page_tokens_fde", "recall": 0.8}
    topics = dict(session.execute(explain_maxsim_search(Page, QUERY, **options)).all())
    assert "ix_page_tokens_fde" in topics["plan"]


def test_scores_can_be_computed_for_any_row(session):
    low = session.scalar(select(functions.maxsim_radius(Page.tokens, QUERY, 3.0)).limit(1))
    assert low >= 0
    few = session.scalar(select(functions.carve(QUERY, 0.5)))
    assert 1 <= len(few) <= len(QUERY)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((Page, QUERY[0]), {}, EncodingError, "2 dimensions"),
        ((Page, []), {}, EncodingError, "at least one vector"),
        ((Page, QUERY, "lang"), {}, DeclarationError, "not halfvec"),
        ((Book, QUERY), {}, DeclarationError, "name the column"),
        ((Page, QUERY), {"rescore": "elsewhere"}, DeclarationError, "'server' or 'client'"),
        (
            (Page, functions.carve(QUERY, 1)),
            {"rescore": "client"},
            DeclarationError,
            "must be an array",
        ),
    ],
)
def test_wrong_calls(arguments, options, error, message):
    with pytest.raises(error, match=message):
        maxsim_search(*arguments, **options)


def test_searches_inside_other_statements(session):
    hits = maxsim_search(Page, QUERY, k=3, candidates=700).subquery()
    session.execute(update(Page).where(Page.id.in_(select(hits.c.id))).values(lang="fr"))
    changed = session.scalars(select(Page.id).where(Page.lang == "fr")).all()
    session.rollback()
    assert set(changed) == set(expected(3))
