"""Models with BM25 columns: created, written, searched and dropped through the ORM."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Computed,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
    Uuid,
    event,
    func,
    inspect,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import REGCONFIG
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    deferred,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
)

from sqlvec import encoders, functions, manage
from sqlvec.encoders.bm25 import DIMENSIONS, dimension
from sqlvec.errors import DeclarationError
from sqlvec.schema import BM25
from sqlvec.search import bm25_search, complete, explain_bm25_search
from sqlvec.types import SPARSEVEC, TSVECTOR


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    docs: Mapped[list[Doc]] = relationship(back_populates="author")


class Doc(Base):
    __tablename__ = "doc"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[int]
    body: Mapped[str | None]
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship(back_populates="docs")
    text = BM25("body", config="simple")
    __table_args__ = (text, text.index())
    __mapper_args__ = {"exclude_properties": text.columns}


class Part(Base):
    """Composite key, odd names, a schema, fields, and a column named as the table."""

    __tablename__ = 'Od"d 100%'
    a: Mapped[int] = mapped_column(primary_key=True)
    b: Mapped[str] = mapped_column("B %s", primary_key=True)
    title: Mapped[str] = mapped_column("ti'tle")
    body: Mapped[str] = mapped_column('Od"d 100%')
    __table_args__ = (
        BM25({"ti'tle": 3, 'Od"d 100%': 1}, config="simple", target="co%de"),
        {"schema": "O'dd"},
    )


class Letter(Base):
    """Tenants; the weights are mapped, but not loaded."""

    __tablename__ = "letter"
    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    tenant_id: Mapped[int] = mapped_column(index=True)
    body: Mapped[str]
    body_bm25: Mapped[Any] = deferred(mapped_column(SPARSEVEC(DIMENSIONS)))
    body_bm25_tsv: Mapped[Any] = deferred(mapped_column(TSVECTOR))
    __table_args__ = (BM25("body", config="simple", tenant="tenant_id"),)


class Page(Base):
    """The words are the application's."""

    __tablename__ = "page"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    words: Mapped[str] = mapped_column(TSVECTOR)
    __table_args__ = (BM25("words", config="simple", fields={"A": 4}),)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "page"}


class Sheet(Page):
    __mapper_args__ = {"polymorphic_identity": "sheet"}


N = 80
WORDS = [f"w{i}" for i in range(40)]


def _bodies() -> list[str]:
    random = np.random.default_rng(3)
    share = 1 / np.arange(1, len(WORDS) + 1)
    return [
        " ".join(random.choice(WORDS, size=random.integers(3, 25), p=share / share.sum()))
        for _ in range(N)
    ]


BODIES = _bodies()


@pytest.fixture(scope="module", autouse=True)
def tables(engine: Engine) -> Iterator[None]:
    with engine.begin() as connection:
        connection.exec_driver_sql("""CREATE SCHEMA "O'dd" """)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        authors = [Author(id=i, name=f"author {i}") for i in (1, 2, 3)]
        session.add_all(authors)
        session.add_all(
            Doc(id=i, tenant_id=i % 5, body=body, author=authors[i % 3])
            for i, body in enumerate(BODIES)
        )
        session.add_all(
            Part(a=i, b=f"b{j}", title="apple" if j else "pear", body=f"apple tree {'and ' * i}")
            for i in range(3)
            for j in range(2)
        )
        session.add_all(
            Letter(id=UUID(int=i), tenant_id=i % 2, body=body) for i, body in enumerate(BODIES)
        )
        session.add_all(
            (Sheet if i % 2 else Page)(
                id=i,
                words=func.setweight(
                    func.to_tsvector(literal("simple", REGCONFIG), literal("a", Text)),
                    text(""" 'D'::"char" """ if i % 3 else """ 'A'::"char" """),
                ),
            )
            for i in range(6)
        )
    for table in ("doc", """"O'dd"."Od""d 100%" """, "letter", "page"):
        manage.analyze_bm25(engine, table, drift=0)
    yield
    Base.metadata.drop_all(engine)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM sqlvec.derived")) == 0
        assert connection.scalar(text("SELECT count(*) FROM sqlvec.relation")) == 0


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


def expected(
    query: str, condition: Any = lambda i: True, k: int = 10, corpus: Any = lambda i: True
) -> dict[int, float]:
    """Return brute-force scores of the best k, the best first."""
    counts = {i: Counter(body.split()) for i, body in enumerate(BODIES) if corpus(i)}
    avgdl = sum(len(body.split()) for body in BODIES) / N
    scores = {}
    for i, terms in counts.items():
        score = 0.0
        for word in query.split():
            df = sum(word in other for other in counts.values())
            norm = 1.2 * (0.25 + 0.75 * terms.total() / avgdl)
            idf = math.log(1 + (len(counts) - df + 0.5) / (df + 0.5))
            score += idf * terms[word] * 2.2 / (terms[word] + norm)
        if score > 0 and condition(i):
            scores[i] = score
    best = sorted(scores, key=lambda i: (-scores[i], i))[:k]
    return {i: scores[i] for i in best}


def found(session: Session, statement: Any) -> dict[int, float]:
    return {doc.id: score for doc, score in session.execute(statement)}


def same(one: dict[int, float], other: dict[int, float]) -> bool:
    return list(one) == list(other) and list(one.values()) == pytest.approx(
        list(other.values()), rel=1e-5
    )


def test_create_all_declares_what_the_models_say(engine):
    with engine.connect() as connection:
        declared = connection.execute(
            text(
                "SELECT relation::text, source_column, target_column, kind, problem"
                " FROM sqlvec.derived_column ORDER BY 1"
            )
        ).all()
    assert [tuple(row) for row in declared] == [
        ('"O\'dd"."Od""d 100%"', "ti'tle", "co%de", "bm25", None),
        ("doc", "body", "body_bm25", "bm25", None),
        ("letter", "body", "body_bm25", "bm25", None),
        ("page", "words", "words_bm25", "bm25", None),
    ]
    (index,) = [
        index
        for index in inspect(engine).get_indexes("doc")
        if index["column_names"] == ["body_bm25_tsv"]
    ]
    assert index["name"] == "ix_doc_body_bm25_tsv"
    assert index["dialect_options"]["postgresql_using"] == "gin"
    assert index["dialect_options"]["postgresql_with"] == {"gin_pending_list_limit": "512"}


def statements(engine: Engine) -> list[str]:
    executed: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: executed.append(args[2]))
    return executed


def test_words_are_neither_written_nor_fetched(engine):
    executed = statements(engine)
    with Session(engine) as session:
        doc = Doc(id=1000, tenant_id=1, body="zebra", author_id=1)
        session.add(doc)
        session.flush()
        doc.body = "zebra zoo"
        session.flush()
        session.refresh(doc)
        assert not any("bm25" in statement for statement in executed)
        assert list(found(session, bm25_search(Doc, "zebra"))) == [1000]
        assert list(found(session, bm25_search(Doc, "zoo"))) == [1000]
        session.execute(update(Doc).where(Doc.id == 1000).values(body=None))
        assert found(session, bm25_search(Doc, "zebra")) == {}
        session.rollback()


def test_deferred_weights_are_read_when_asked_for(engine):
    with Session(engine) as session:
        executed = statements(engine)
        letter = session.get_one(Letter, UUID(int=3))
        assert "bm25" not in executed[-1]
        terms = Counter(BODIES[3].split())
        weights = letter.body_bm25.indices()
        assert sorted(weights) == sorted(dimension(term) - 1 for term in terms)
        letter.body = "zebra"
        session.flush()
        (update_,) = [statement for statement in executed if statement.startswith("UPDATE")]
        assert "bm25" not in update_
        assert letter.body_bm25.indices() == [dimension("zebra") - 1]
        session.rollback()


def test_the_python_twin_makes_the_same_codes(engine):
    with engine.connect() as connection:
        avgdl = connection.scalar(
            text("SELECT avgdl FROM sqlvec.bm25_health WHERE relation = 'doc'::regclass")
        )
        rows = connection.execute(select(Doc.id, Doc.__table__.c.body_bm25)).all()
    assert len(rows) == N
    for row, code in rows:
        indices, values = encoders.BM25().encode(Counter(BODIES[row].split()), avgdl)
        assert code.indices() == indices.tolist()
        assert np.float32(code.values()).tolist() == values.tolist()


QUERIES = ("w0", "w3 w12", "w1 w7 w30", "w39 w0 w2 w2", "nothing w5")


@pytest.mark.parametrize("query", QUERIES)
def test_scores_are_those_of_the_formula(session, query):
    assert same(found(session, bm25_search(Doc, query)), expected(query))
    assert same(found(session, bm25_search(Doc, query, k=N)), expected(query, k=N))


def test_a_query_without_words_finds_nothing(session):
    for query in ("", "   ", "nothing", "-w0", '"', "+ - *", "' & | ! :* <->"):
        assert found(session, bm25_search(Doc, query)) == {}


def test_a_query_may_be_an_expression(session):
    own = select(func.lower("W3 W12")).scalar_subquery()
    assert same(found(session, bm25_search(Doc, own)), expected("w3 w12"))


CRITERIA = {
    "integer": (Doc.tenant_id == 2, lambda i: i % 5 == 2),
    "in": (Doc.id.in_([3, 4, 5, 6]), lambda i: i in (3, 4, 5, 6)),
    "like": (Doc.body.like("w0%"), lambda i: BODIES[i].startswith("w0")),
    "has": (Doc.author.has(Author.name == "author 2"), lambda i: i % 3 == 1),
    "subquery": (Doc.author_id.in_(select(Author.id).where(Author.id > 1)), lambda i: i % 3 != 0),
    "nothing": (Doc.id < 0, lambda i: False),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_apply_inside(session, name):
    criterion, condition = CRITERIA[name]
    hits = found(session, bm25_search(Doc, "w0 w9", where=[criterion]))
    assert same(hits, expected("w0 w9", condition))


def test_result_joins_loads_and_pages(session):
    statement = bm25_search(Doc, "w1 w4", where=Doc.author.has(Author.id < 3))
    hits = list(expected("w1 w4", lambda i: i % 3 < 2))
    loaded = session.execute(statement.options(joinedload(Doc.author))).all()
    assert [doc.id for doc, _ in loaded] == hits
    assert all("author" not in inspect(doc).unloaded for doc, _ in loaded)
    session.expire_all()
    loaded = session.execute(statement.options(selectinload(Doc.author))).all()
    assert [doc.author.id for doc, _ in loaded] == [i % 3 + 1 for i in hits]
    assert list(found(session, statement.limit(3).offset(2))) == hits[2:5]
    assert list(found(session, statement.where(Doc.tenant_id == 1))) == [
        i for i in hits if i % 5 == 1
    ]
    assert session.scalar(select(func.count()).select_from(statement.subquery())) == len(hits)


def test_aliases_and_core_tables(session):
    other = aliased(Doc)
    statement = bm25_search(other, "w1 w4", where=other.tenant_id == 3)
    hits = expected("w1 w4", lambda i: i % 5 == 3)
    assert same(found(session, statement), hits)
    both = statement.join(Doc, Doc.id == other.id).add_columns(Doc)
    assert [row[2].id for row in session.execute(both)] == list(hits)
    table: Any = Doc.__table__
    rows = session.execute(bm25_search(table, "w1 w4", where=table.c.tenant_id == 3)).all()
    assert [row.id for row in rows] == list(hits)
    assert str(rows[0].body_bm25_tsv).startswith("'")


def test_fields_and_composite_keys(session):
    hits = session.execute(bm25_search(Part, "apple", k=4)).all()
    # A title counts three times, and shorter bodies come first.
    assert [(part.a, part.b) for part, _ in hits] == [(0, "b1"), (1, "b1"), (2, "b1"), (0, "b0")]
    passage = functions.bm25_headline(Part, 'Od"d 100%', '"tree" apple', "StartSel=<, StopSel=>")
    score = functions.bm25_score(Part, "co%de", "apple")
    rows = session.execute(
        bm25_search(Part, "apple", where=Part.a == 0).add_columns(passage, score)
    ).all()
    assert [row[2].strip() for row in rows] == ["<apple> <tree>"] * 2
    assert [row[3] for row in rows] == pytest.approx([row[1] for row in rows])


def test_tenants_rank_by_their_own_documents(session):
    for tenant in (0, 1):
        own = expected("w3 w20", corpus=lambda i, t=tenant: i % 2 == t)
        hits = session.execute(bm25_search(Letter, "w3 w20", tenant=tenant)).all()
        assert [letter.id.int for letter, _ in hits] == list(own)
        assert [score for _, score in hits] == pytest.approx(list(own.values()), rel=1e-5)
    by_row = select(Letter.tenant_id).where(Letter.id == UUID(int=1)).scalar_subquery()
    hits = session.execute(bm25_search(Letter, "w3 w20", tenant=by_row)).all()
    assert all(letter.tenant_id == 1 for letter, _ in hits)


def test_words_of_the_application(session):
    hits = session.execute(bm25_search(Page, "a")).all()
    assert [page.id for page, _ in hits] == [0, 3, 1, 2, 4, 5]
    hits = session.execute(bm25_search(Sheet, "a")).all()
    assert [(page.id, type(page)) for page, _ in hits] == [(3, Sheet), (1, Sheet), (5, Sheet)]


def test_scores_and_passages_of_the_hits(session):
    statement = bm25_search(Doc, "w3 w12", k=5).add_columns(
        functions.bm25_headline(Doc, "body", "w3 w12", "StartSel=<b>, StopSel=</b>"),
        functions.bm25_score(Doc, "body", "w3 w12"),
    )
    for _, score, passage, again in session.execute(statement):
        assert "<b>w3</b>" in passage or "<b>w12</b>" in passage
        assert again == pytest.approx(score)


def test_building_blocks(session):
    table: Any = Doc.__table__
    weights = functions.bm25_query(table, "body", "w3 w12")
    matches = functions.bm25_tsquery(table, "body", "w3 w12")
    score = -table.c.body_bm25.max_inner_product(weights)
    statement = (
        select(table.c.id, score)
        .where(table.c.body_bm25_tsv.bool_op("@@")(matches))
        .order_by(score.desc(), table.c.id)
        .limit(10)
    )
    assert same({row[0]: row[1] for row in session.execute(statement)}, expected("w3 w12"))


def test_a_search_is_complete_and_explained(session):
    statement = bm25_search(Doc, "w3", k=3)
    rows = session.execute(statement.add_columns(complete(statement))).all()
    assert [row[2] for row in rows] == [True] * 3
    steps = session.execute(explain_bm25_search(Doc, "w3", where=Doc.tenant_id == 1)).all()
    assert len(steps) > 1
    assert all(isinstance(topic, str) and isinstance(detail, str) for topic, detail in steps)


def test_columns_declared_in_sql_alone_are_found_by_the_server(engine):
    table = Table(
        "plain", MetaData(), Column("id", Integer, primary_key=True), Column("body", Text)
    )
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(text("CALL sqlvec.add_bm25('plain', 'body', 'simple')"))
        connection.execute(table.insert(), [{"id": 1, "body": "apple"}, {"id": 2, "body": "tree"}])
        for column in (None, "body", table.c.body):
            rows = connection.execute(bm25_search(table, "tree", column)).all()
            assert [row.id for row in rows] == [2]
        connection.rollback()


def test_the_server_uses_one_statement(engine):
    executed = statements(engine)
    with Session(engine) as session:
        first = found(session, bm25_search(Doc, "w3", where=Doc.tenant_id == 1))
        second = found(session, bm25_search(Doc, "w12", where=Doc.tenant_id == 2))
    assert first != second
    assert executed[-1] == executed[-2]


def test_generated_columns_are_refused_by_the_server(engine):
    metadata = MetaData()
    Table(
        "generated",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("a", Text),
        Column("b", Text, Computed("lower(a)", persisted=True)),
        BM25("b"),
    )
    with pytest.raises(Exception, match="generated column"):
        metadata.create_all(engine)


async def test_async(async_engine: AsyncEngine) -> None:
    async with AsyncSession(async_engine) as session:
        statement = bm25_search(
            Doc, "w3 w12", k=4, where=[Doc.tenant_id.in_([1, 2])], oversample=2.5
        ).add_columns(functions.bm25_headline(Doc, "body", "w3 w12"))
        rows = (await session.execute(statement)).all()
    hits = expected("w3 w12", lambda i: i % 5 in (1, 2), k=4)
    assert [row[0].id for row in rows] == list(hits)
    assert [row[1] for row in rows] == pytest.approx(list(hits.values()), rel=1e-5)


def test_statistics_are_refreshed(engine):
    with pytest.raises(DeclarationError, match="BM25 column"):
        manage.analyze_bm25(engine, "author")
    with pytest.raises(DeclarationError):
        manage.analyze_bm25(engine, "doc", drift=-1)
    shown: list[manage.Progress] = []
    manage.analyze_bm25(engine, "doc", progress=shown.append)
    (health,) = manage.bm25_health(engine, "doc")
    assert (health.table, health.column, health.tenant) == ("doc", "body_bm25", None)
    assert (health.documents, health.stale, health.advice) == (N, False, None)
    assert health.terms == len({word for body in BODIES for word in body.split()})
    assert health.avgdl == pytest.approx(sum(len(body.split()) for body in BODIES) / N)
    tenants = manage.bm25_health(engine, "letter")
    assert [(row.tenant, row.documents) for row in tenants] == [("0", N / 2), ("1", N / 2)]
    assert len(manage.bm25_health(engine)) == 5
