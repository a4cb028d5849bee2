"""Models with quantized columns: created, written, searched and dropped through the ORM."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from pgvector import Bit, HalfVector, SparseVector, Vector
from sqlalchemy import (
    Column,
    DateTime,
    Engine,
    Enum,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    TypeDecorator,
    Uuid,
    any_,
    bindparam,
    create_engine,
    event,
    exists,
    func,
    inspect,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
)

from sqlvec.encoders import Binary, Halfvec, Truncate
from sqlvec.errors import MissingRequirement
from sqlvec.schema import Quantized, attach
from sqlvec.search import bit_search, complete, explain_search, sparse_search, vector_search
from sqlvec.types import BIT, HALFVEC, SPARSEVEC, VECTOR, register_asyncpg
from tests.db.server import sqlalchemy_url


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Shout(TypeDecorator[str]):
    """Keeps text in upper case."""

    impl = String(20)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: object) -> str | None:
        return None if value is None else value.upper()


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
    lang: Mapped[str] = mapped_column(String(2))
    price: Mapped[Decimal] = mapped_column(Numeric(6, 2))
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text))
    meta: Mapped[dict[str, Any]] = mapped_column(JSONB)
    token: Mapped[UUID] = mapped_column(Uuid)
    seen: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    colour: Mapped[Colour] = mapped_column(Enum(Colour, name="colour"))
    shade: Mapped[Colour] = mapped_column(Enum(Colour, native_enum=False))
    loud: Mapped[str] = mapped_column(Shout)
    raw: Mapped[bytes] = mapped_column(LargeBinary)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship(back_populates="docs")
    embedding: Mapped[list[float]] = mapped_column(VECTOR(8))
    codes = Quantized("embedding", Binary(rotate=True))
    __table_args__ = (
        codes,
        codes.index(m=8),
        Quantized("embedding", Halfvec()),
    )


class Part(Base):
    """Composite key, odd names, a schema."""

    __tablename__ = 'Od"d 100%'
    a: Mapped[int] = mapped_column(primary_key=True)
    b: Mapped[str] = mapped_column("B %s", primary_key=True)
    vector: Mapped[list[float]] = mapped_column("ve'ctor", HALFVEC(3))
    __table_args__ = (Quantized("ve'ctor", Truncate(2), target="co%de"), {"schema": "O'dd"})


class Thing(Base):
    __tablename__ = "thing"
    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    kind: Mapped[str]
    bits: Mapped[str | None] = mapped_column(BIT(6))
    sparse: Mapped[SparseVector | None] = mapped_column(SPARSEVEC(10))
    vector: Mapped[list[float] | None] = mapped_column(VECTOR(2))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "thing"}


class Gadget(Thing):
    __mapper_args__ = {"polymorphic_identity": "gadget"}


N = 60
VECTORS = np.random.default_rng(1).standard_normal((N, 8)).astype(np.float32)
NOON = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)


@pytest.fixture(scope="module", autouse=True)
def tables(engine: Engine) -> Iterator[None]:
    with engine.begin() as connection:
        connection.exec_driver_sql("""CREATE SCHEMA "O'dd" """)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        authors = [Author(id=i, name=f"author {i}") for i in (1, 2, 3)]
        session.add_all(authors)
        session.add_all(
            Doc(
                id=i,
                tenant_id=i % 5,
                lang=("de", "fr", "en")[i % 3],
                price=Decimal(i) / 8,
                tags=["x", f"t{i % 4}"],
                meta={"n": i, "odd": bool(i % 2)},
                token=UUID(int=i),
                seen=NOON + timedelta(hours=i),
                colour=Colour.RED if i % 2 else Colour.BLUE,
                shade=Colour.BLUE if i % 2 else Colour.RED,
                loud=f"it's {i % 2} 100%",
                raw=bytes([i]),
                author=authors[i % 3],
                embedding=VECTORS[i].tolist(),
            )
            for i in range(N)
        )
        session.add_all(Part(a=i, b=f"b{j}", vector=[i, j, 1]) for i in range(3) for j in range(2))
        session.add_all(
            (Gadget if i % 2 else Thing)(
                id=UUID(int=i),
                bits=format(i, "06b"),
                sparse=SparseVector({i: 1.0, 0: 0.5}, 10),
                vector=[i, 1],
            )
            for i in range(1, 9)
        )
    yield
    Base.metadata.drop_all(engine)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM sqlvec.derived")) == 0
        assert connection.scalar(text("SELECT count(*) FROM sqlvec.relation")) == 0


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


def expected(query: Any, condition: Any = lambda i: True, k: int = 10) -> list[int]:
    query = np.asarray(query, np.float64)
    cosine = VECTORS @ query / np.linalg.norm(VECTORS, axis=1) / np.linalg.norm(query)
    return [i for i in np.argsort(-cosine, kind="stable").tolist() if condition(i)][:k]


QUERY = VECTORS[7] + np.float32(0.01)


def ids(session: Session, statement: Any) -> list[int]:
    return [doc.id for doc, _ in session.execute(statement)]


def test_create_all_declares_what_the_models_say(engine):
    with engine.connect() as connection:
        declared = connection.execute(
            text(
                "SELECT relation::text, source_column, target_column, kind, metric, code_type,"
                " problem FROM sqlvec.derived_column ORDER BY 1, 3"
            )
        ).all()
    assert [tuple(row) for row in declared] == [
        ('"O\'dd"."Od""d 100%"', "ve'ctor", "co%de", "truncate", "cosine", "halfvec(2)", None),
        ("doc", "embedding", "embedding_binary", "binary", "cosine", "bit(8)", None),
        ("doc", "embedding", "embedding_halfvec", "halfvec", "cosine", "halfvec(8)", None),
    ]
    indexes = {index["name"]: index for index in inspect(engine).get_indexes("doc")}
    assert indexes["ix_doc_embedding_binary"]["dialect_options"]["postgresql_using"] == "hnsw"


def test_codes_are_left_to_the_database(engine):
    statements = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    with Session(engine) as session:
        doc: Any = session.get_one(Doc, 3)
        before = doc.embedding_binary
        assert (np.float16(doc.embedding_halfvec) == np.float16(VECTORS[3])).all()
        doc.embedding = (-VECTORS[3]).tolist()
        session.flush()
        written = next(s for s in statements if s.startswith("UPDATE"))
        assert "embedding_binary" not in written.partition("RETURNING")[0]
        assert str(doc.embedding_binary) != str(before)
        assert (np.float16(doc.embedding_halfvec) == np.float16(-VECTORS[3])).all()
        session.rollback()


@pytest.mark.parametrize(
    "query",
    [QUERY, QUERY.tolist(), tuple(QUERY.tolist()), QUERY.astype(float), Vector(QUERY)],
    ids=lambda query: type(query).__name__,
)
def test_query_may_be_any_vector(session, query):
    rows = session.execute(vector_search(Doc, query, k=3)).all()
    assert [doc.id for doc, _ in rows] == expected(QUERY, k=3)
    cosine = VECTORS[7] @ QUERY / np.linalg.norm(VECTORS[7]) / np.linalg.norm(QUERY)
    assert rows[0].distance == pytest.approx(1 - cosine, abs=1e-6)


def test_query_may_be_an_expression(session):
    own = select(Doc.embedding).where(Doc.id == 7).correlate(None).scalar_subquery()
    assert ids(session, vector_search(Doc, own, k=3)) == expected(VECTORS[7], k=3)


def test_query_may_be_a_half_vector(session):
    assert ids(session, vector_search(Doc, HalfVector(QUERY), k=3)) == expected(QUERY, k=3)


CRITERIA = {
    "integer": (Doc.tenant_id == 2, lambda i: i % 5 == 2),
    "between": (Doc.id.between(10, 40), lambda i: 10 <= i <= 40),
    "string": (Doc.lang == "de", lambda i: i % 3 == 0),
    "longer than the column": (Doc.lang != "dex", lambda i: True),
    "like": (Doc.loud.like("IT'S 1%"), lambda i: i % 2 == 1),
    "decorated": (Doc.loud == "it's 1 100%", lambda i: i % 2 == 1),
    "literal": (
        Doc.loud == literal_column("'IT''S 1 100%'"),
        lambda i: i % 2 == 1,
    ),
    "colons and dollars": (
        literal_column("'$1 :x %(y)s $where$'") == literal_column("'$1 :x %(y)s $where$'"),
        lambda i: True,
    ),
    "modulo": (Doc.id % 7 == 3, lambda i: i % 7 == 3),
    "numeric": (Doc.price < Decimal("1.239"), lambda i: i / 8 < 1.235),
    "numeric in": (Doc.price.in_([Decimal("1.25"), Decimal("2")]), lambda i: i in (10, 16)),
    "in": (Doc.lang.in_(["de", "fr"]), lambda i: i % 3 < 2),
    "in longer": (Doc.lang.in_(["dex", "fr"]), lambda i: i % 3 == 1),
    "not in": (Doc.lang.not_in(["de", "frx"]), lambda i: i % 3 != 0),
    "in nothing": (Doc.id.in_([]), lambda i: False),
    "not in nothing": (Doc.id.not_in([]), lambda i: True),
    "in decorated": (Doc.loud.in_(["it's 1 100%"]), lambda i: i % 2 == 1),
    "in enum": (Doc.colour.in_([Colour.RED]), lambda i: i % 2 == 1),
    "in emulated enum": (Doc.shade.in_([Colour.RED]), lambda i: i % 2 == 0),
    "in uuid": (Doc.token.in_([UUID(int=3), UUID(int=9)]), lambda i: i in (3, 9)),
    "in time": (Doc.seen.in_([NOON + timedelta(hours=3)]), lambda i: i == 3),
    "enum": (Doc.colour == Colour.BLUE, lambda i: i % 2 == 0),
    "emulated enum": (Doc.shade == Colour.BLUE, lambda i: i % 2 == 1),
    "uuid": (Doc.token == UUID(int=5), lambda i: i == 5),
    "time": (Doc.seen > NOON + timedelta(hours=50), lambda i: i > 50),
    "bytes": (Doc.raw == b"\x07", lambda i: i == 7),
    "array": (Doc.tags.contains(["t3"]), lambda i: i % 4 == 3),
    "any of array": (any_(Doc.tags) == "t1", lambda i: i % 4 == 1),
    "json": (Doc.meta.contains({"odd": True}), lambda i: i % 2 == 1),
    "json path": (Doc.meta["n"].astext.cast(Integer) > 55, lambda i: i > 55),
    "or": (or_(Doc.id == 1, Doc.lang == "en"), lambda i: i == 1 or i % 3 == 2),
    "text": (text("doc.id < :most").bindparams(most=20), lambda i: i < 20),
    "function": (func.length(Doc.loud) > 100, lambda i: False),
    "has": (Doc.author.has(Author.name == "author 2"), lambda i: i % 3 == 1),
    "exists": (
        exists().where(Author.id == Doc.author_id, Author.name.in_(["author 1"])),
        lambda i: i % 3 == 0,
    ),
    "in a subquery": (
        Doc.author_id.in_(select(Author.id).where(Author.name != "author 1")),
        lambda i: i % 3 != 0,
    ),
    "in a subquery of its own": (
        Doc.id.in_(select(Doc.id).where(Doc.tenant_id == 3).limit(100)),
        lambda i: i % 5 == 3,
    ),
    "distance": (
        Doc.embedding.cosine_distance(QUERY.tolist()) > 1,
        lambda i: VECTORS[i] @ QUERY < 0,
    ),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_apply_inside(session, name):
    criterion, condition = CRITERIA[name]
    found = ids(session, vector_search(Doc, QUERY, where=[criterion]))
    assert found == expected(QUERY, condition)


def test_criteria_work_in_all_modes(session):
    for mode in ("exact", "embedding_binary", "ix_doc_embedding_binary"):
        statement = vector_search(
            Doc, QUERY, k=5, mode=mode, where=Doc.tenant_id == 2, oversample=12.0
        )
        assert ids(session, statement) == expected(QUERY, lambda i: i % 5 == 2, k=5)


def test_named_parameters_are_given_on_execution(session):
    statement = vector_search(
        Doc,
        QUERY,
        where=[Doc.tenant_id == bindparam("tenant"), Doc.lang.in_(bindparam("langs"))],
    )
    for tenant, langs in ((1, ["de"]), (2, ["fr", "en"])):
        rows = session.execute(statement, {"tenant": tenant, "langs": langs})
        codes = [("de", "fr", "en").index(lang) for lang in langs]
        condition = lambda i, t=tenant, c=codes: i % 5 == t and i % 3 in c  # noqa: E731
        assert [doc.id for doc, _ in rows] == expected(QUERY, condition)


def test_later_criteria_filter_the_hits(session):
    hits = expected(QUERY)
    statement = vector_search(Doc, QUERY).where(Doc.lang == "de")
    assert ids(session, statement) == [i for i in hits if i % 3 == 0]


def test_result_joins_loads_and_pages(session):
    statement = vector_search(Doc, QUERY, where=Doc.author.has(Author.id < 3))
    hits = expected(QUERY, lambda i: i % 3 < 2)
    loaded = session.execute(statement.options(joinedload(Doc.author))).all()
    assert [doc.id for doc, _ in loaded] == hits
    assert all("author" not in inspect(doc).unloaded for doc, _ in loaded)
    session.expire_all()
    loaded = session.execute(statement.options(selectinload(Doc.author))).all()
    assert [doc.author.id for doc, _ in loaded] == [i % 3 + 1 for i in hits]
    assert ids(session, statement.limit(3).offset(2)) == hits[2:5]
    joined = statement.join(Doc.author).where(Author.name == "author 1").add_columns(Author.name)
    assert [row[0].id for row in session.execute(joined)] == [i for i in hits if i % 3 == 0]
    nested = statement.subquery()
    counted = session.scalar(select(func.count()).select_from(nested))
    assert counted == 10


def test_collections_load_eagerly(session):
    statement = vector_search(Doc, QUERY, k=4).options(
        joinedload(Doc.author).joinedload(Author.docs)
    )
    rows = session.execute(statement).unique().all()
    assert [doc.id for doc, _ in rows] == expected(QUERY, k=4)
    limited = session.execute(statement.limit(2)).unique().all()
    assert [doc.id for doc, _ in limited] == expected(QUERY, k=2)


def test_aliases(session):
    other = aliased(Doc)
    statement = vector_search(
        other,
        QUERY,
        where=[other.tenant_id == 2, other.author.has(Author.name == "author 2")],
    )
    hits = expected(QUERY, lambda i: i % 5 == 2 and i % 3 == 1)
    assert ids(session, statement) == hits
    both = statement.join(Doc, Doc.id == other.id).add_columns(Doc)
    assert [row[2].id for row in session.execute(both)] == hits


def test_core_tables_select_their_columns(engine):
    table = Doc.__table__
    with engine.connect() as connection:
        rows = connection.execute(vector_search(table, QUERY, where=table.c.id > 30)).all()
        assert [row.id for row in rows] == expected(QUERY, lambda i: i > 30)
        assert rows[0].tenant_id == rows[0].id % 5
        alias = table.alias("d")
        rows = connection.execute(vector_search(alias, QUERY, where=alias.c.id > 30)).all()
        assert [row.id for row in rows] == expected(QUERY, lambda i: i > 30)


def test_composite_key_schema_and_odd_names(session):
    statement = vector_search(
        Part, [2.0, 1.0, 1.0], k=2, where=[Part.b == "b1", Part.a.in_([1, 2])]
    )
    rows = session.execute(statement).all()
    assert [(part.a, part.b) for part, _ in rows] == [(2, "b1"), (1, "b1")]
    other = aliased(Part)
    rows = session.execute(vector_search(other, [0, 1, 1], k=1, where=other.b == "b1")).all()
    assert [(part.a, part.b) for part, _ in rows] == [(0, "b1")]


def test_keys_of_other_types_and_subclasses(session):
    rows = session.execute(vector_search(Thing, [4, 1], metric="l2", k=3)).all()
    assert [thing.id.int for thing, _ in rows] == [4, 3, 5]
    rows = session.execute(vector_search(Gadget, [4, 1], metric="l2", k=3)).all()
    assert [gadget.id.int for gadget, _ in rows] == [3, 5, 1]
    assert all(type(gadget) is Gadget for gadget, _ in rows)


@pytest.mark.parametrize(
    "query", ["000111", [False, False, False, True, True, True], Bit("000111")], ids=repr
)
def test_bit_search(session, query):
    rows = session.execute(bit_search(Thing, query, k=2)).all()
    assert [(thing.id.int, distance) for thing, distance in rows] == [(7, 0), (3, 1)]


def test_sparse_search(session):
    query = SparseVector({3: 1.0}, 10)
    rows = session.execute(sparse_search(Thing, query, metric="inner_product", k=1)).all()
    assert [(thing.id.int, distance) for thing, distance in rows] == [(3, -1)]


def test_explain_search_tells_plan_and_filter(engine):
    statement = explain_search(Doc, QUERY, where=Doc.lang == "de", mode="embedding_binary")
    with engine.connect() as connection:
        topics = dict(connection.execute(statement).fetchall())
    assert topics["plan"].startswith("two stages")
    assert "doc.lang = CAST(($1)[1] AS VARCHAR)" in topics["filter"]


def test_a_search_says_whether_it_is_complete(session):
    for mode, where, flag in (
        ("auto", Doc.id == 1, True),
        ("embedding_binary", Doc.id == 1, False),
        ("embedding_binary", Doc.id < 40, True),
    ):
        statement = vector_search(Doc, QUERY, mode=mode, where=where)
        rows = session.execute(statement.add_columns(complete(statement))).all()
        assert {row.complete for row in rows} == {flag}
    by_row = vector_search(Part, [2, 1, 1])
    assert session.execute(by_row.add_columns(complete(by_row))).all()[0].complete


def test_one_cache_entry_serves_many_values(engine):
    cache: dict[Any, Any] = {}
    with engine.connect().execution_options(compiled_cache=cache) as connection:
        for i in range(4):
            statement = vector_search(
                Doc,
                VECTORS[i],
                k=i + 1,
                where=[
                    Doc.tenant_id == i,
                    Doc.lang.in_(["de", "fr"][: i % 3]),
                    Doc.author.has(Author.name == f"author {i}"),
                ],
            )
            connection.execute(statement).all()
    assert len(cache) == 1


def test_schema_translate_map_reaches_everything(engine):
    metadata = MetaData()
    table = Table(
        "moved",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("kind", Integer),
        Column("embedding", VECTOR(2)),
        Quantized("embedding", Binary()),
        schema="tenant",
    )
    with engine.connect() as connection, connection.begin() as transaction:
        connection.exec_driver_sql('CREATE SCHEMA "Tenant 1"')
        connection = connection.execution_options(schema_translate_map={"tenant": "Tenant 1"})
        metadata.create_all(connection)
        connection.execute(
            table.insert(), [{"id": i, "kind": i % 2, "embedding": [i, 1]} for i in range(6)]
        )
        own = table.c.id.in_(select(table.c.id).where(table.c.kind == 1))
        rows = connection.execute(vector_search(table, [5, 1], where=own, k=2)).all()
        assert [row.id for row in rows] == [5, 3]
        assert rows[0].embedding_binary is not None
        metadata.drop_all(connection)
        transaction.rollback()


def test_copied_tables_keep_their_declarations(engine):
    table: Any = Part.__table__
    copy = table.to_metadata(MetaData(), schema=None, name="copied_part")
    with engine.connect() as connection, connection.begin() as transaction:
        copy.create(connection)
        statement = text(
            "SELECT target_column FROM sqlvec.derived_column"
            " WHERE relation = 'copied_part'::regclass"
        )
        assert connection.scalars(statement).all() == ["co%de"]
        copy.drop(connection)
        transaction.rollback()


def test_drop_all_goes_on_without_the_schema(tmp_database):
    engine = create_engine(sqlalchemy_url(tmp_database()))
    metadata = MetaData()
    Table(
        "gone",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("embedding", VECTOR(2)),
        Quantized("embedding", Binary()),
    )
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA sqlvec CASCADE")
    metadata.drop_all(engine)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


async def test_async_session(async_engine: AsyncEngine):
    async with AsyncSession(async_engine) as session:
        for i in (3, 4):
            statement = vector_search(
                Doc,
                VECTORS[i],
                k=3,
                where=[
                    Doc.tenant_id.in_([i % 5, 2]),
                    Doc.price >= Decimal("0.125"),
                    Doc.lang != "x",
                    Doc.token != UUID(int=0),
                    Doc.seen > NOON,
                    Doc.colour.in_([Colour.RED, Colour.BLUE]),
                    Doc.meta.contains({"n": i}) | (Doc.tags.contains(["x"])),
                    Doc.author.has(Author.name != "nobody"),
                ],
            )
            rows = (await session.execute(statement.options(joinedload(Doc.author)))).all()
            hits = expected(VECTORS[i], lambda j, i=i: j > 0 and j % 5 in (i % 5, 2), k=3)
            assert [doc.id for doc, _ in rows] == hits
            assert rows[0][0].author.name.startswith("author")
        part = (await session.scalars(vector_search(Part, [2, 1, 1], k=1))).one()
        assert (part.a, part.b) == (2, "b1")
        thing = (await session.scalars(bit_search(Thing, "000111", k=1))).one()
        assert thing.id.int == 7
        query = SparseVector({3: 1.0}, 10)
        thing = (await session.scalars(sparse_search(Thing, query, k=1))).one()
        assert thing.id.int == 3
        await session.execute(
            update(Doc).where(Doc.id == 5).values(embedding=(-VECTORS[5]).tolist())
        )
        (doc, distance) = (await session.execute(vector_search(Doc, -VECTORS[5], k=1))).one()
        assert doc.id == 5 and distance == pytest.approx(0, abs=1e-6)


async def test_asyncpg_exchanges_vectors_in_binary_form(dsn):
    engine = create_async_engine(sqlalchemy_url(dsn, "asyncpg"))
    register_asyncpg(engine)
    async with AsyncSession(engine) as session:
        for query in (VECTORS[3], VECTORS[3].tolist(), Vector(VECTORS[3])):
            rows = (await session.execute(vector_search(Doc, query, k=2))).all()
            assert [doc.id for doc, _ in rows] == expected(VECTORS[3], k=2)
            assert rows[0][0].embedding == VECTORS[3].tolist()
        part = (await session.execute(vector_search(Part, [2, 1, 1], k=1))).scalar_one()
        assert part.vector == [2, 1, 1]
        plain = await session.execute(
            text("SELECT embedding, embedding_halfvec FROM doc ORDER BY embedding <=> :q LIMIT 1"),
            {"q": VECTORS[3]},
        )
        assert plain.one() == (Vector(VECTORS[3]), HalfVector(VECTORS[3]))
        sparse = await session.scalar(text("SELECT sparse FROM thing ORDER BY id LIMIT 1"))
        assert isinstance(sparse, SparseVector)
    await engine.dispose()


async def test_asyncpg_finds_pgvector_in_any_schema(tmp_database):
    url = sqlalchemy_url(tmp_database(None), "asyncpg")
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text('CREATE SCHEMA "vec tors"'))
        await connection.execute(text('CREATE EXTENSION vector SCHEMA "vec tors"'))
    await engine.dispose()
    engine = create_async_engine(url)
    register_asyncpg(engine)
    async with engine.connect() as connection:
        found = await connection.scalar(text("SELECT CAST('[1,2]' AS \"vec tors\".vector)"))
    assert found == Vector([1, 2])
    await engine.dispose()


async def test_asyncpg_says_that_pgvector_is_missing(tmp_database):
    engine = create_async_engine(sqlalchemy_url(tmp_database(None), "asyncpg"))
    register_asyncpg(engine)
    with pytest.raises(MissingRequirement, match="CREATE EXTENSION vector"):
        async with engine.connect():
            pass
    await engine.dispose()


async def test_attach_installs_on_create_all(async_engine, tmp_database):
    url = sqlalchemy_url(tmp_database(None), async_engine.dialect.driver)
    engine = create_async_engine(url)
    metadata = MetaData()
    table = Table(
        "attached",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("embedding", VECTOR(2)),
        Quantized("embedding", Binary()),
    )
    attach(metadata, create_extension=True)
    for _ in range(2):
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
    async with engine.begin() as connection:
        await connection.execute(table.insert(), {"id": 1, "embedding": [1, -1]})
        row = (await connection.execute(vector_search(table, [1, 0]))).one()
        assert row.id == 1
    await engine.dispose()
