"""A table of an application as LangChain's vector store, and the hybrid retriever."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from uuid import UUID

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from sqlalchemy import ARRAY, Engine, Text, delete, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlvec import BM25, MULTIVECTOR, Halfvec, MultiVector, Quantized
from sqlvec.errors import DeclarationError
from sqlvec.integrations.langchain import HybridRetriever, SqlvecVectorStore
from sqlvec.types import VECTOR

TOPICS = ("carrot", "apple", "moss", "stone")


class Topics(Embeddings):
    """How often a text speaks of each topic, and of none."""

    def embed_query(self, text: str) -> list[float]:
        words = text.lower().split()
        return [*(words.count(topic) + 0.0 for topic in TOPICS), 0.1]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(each) for each in texts]


class TopicTokens:
    """The same of each word."""

    def embed_query(self, text: str, /) -> list[list[float]]:
        return [Topics().embed_query(word) for word in text.split()]

    def embed_documents(self, texts: list[str], /) -> Sequence[list[list[float]]]:
        return [self.embed_query(each) for each in texts]


class Base(DeclarativeBase):
    pass


class Note(Base):
    """All metadata in one column."""

    __tablename__ = "note"
    key: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[str]
    embedding: Mapped[Sequence[float]] = mapped_column(VECTOR(6))
    meta: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    __table_args__ = (Quantized("embedding", Halfvec()),)


class Doc(Base):
    """A table that was there first."""

    __tablename__ = 'Do"c 100% :x'
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    embedding: Mapped[Sequence[float]] = mapped_column(VECTOR(5))
    tokens: Mapped[MultiVector | None] = mapped_column(MULTIVECTOR(5))
    lang: Mapped[str | None] = mapped_column('la"ng :y 5%')
    year: Mapped[int | None] = mapped_column("year")
    made: Mapped[datetime.date | None]
    tags: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    views: Mapped[int] = mapped_column(server_default="7")
    secret: Mapped[str | None]
    extra: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    words = BM25("body", config="simple")
    __table_args__ = (Quantized("embedding", Halfvec()), words)


class Keyed(Base):
    __tablename__ = "keyed"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    body: Mapped[str]
    embedding: Mapped[Sequence[float]] = mapped_column(VECTOR(5))


class Pair(Base):
    __tablename__ = "pair"
    a: Mapped[int] = mapped_column(primary_key=True)
    b: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    embedding: Mapped[Sequence[float]] = mapped_column(VECTOR(5))


LANG = 'la"ng :y 5%'
METADATA = [LANG, "year", "made", "tags", "views"]
TEXTS = ["carrot carrot soil", "apple tree", "apple pie and carrot cake", "moss on a stone"]
METADATAS: list[dict[str, Any]] = [
    {LANG: "en", "year": 2020, "tags": ["new", "red"], "made": datetime.date(2020, 5, 1)},
    {LANG: "en", "year": 2021, "tags": ["old"], "source": "book", "pages": [1, 2]},
    {LANG: "de", "year": 2022, "source": "web", "stars": 4, "free": True},
    {LANG: "it's", "year": 2023, "source": "o'web"},
]


@pytest.fixture(scope="module", autouse=True)
def _tables(engine: Engine) -> Iterator[None]:
    Base.metadata.create_all(engine)
    yield
    Base.metadata.drop_all(engine)


def of_docs(engine: Any, **options: Any) -> SqlvecVectorStore:
    arguments: dict[str, Any] = {
        "text_column": "body",
        "metadata_columns": METADATA,
        "metadata_json_column": Doc.extra,
        **options,
    }
    return SqlvecVectorStore(engine, Doc, Topics(), **arguments)


@pytest.fixture
def store(engine: Engine) -> Iterator[SqlvecVectorStore]:
    store = of_docs(engine)
    assert store.add_texts(TEXTS, METADATAS, ids=["1", "2", "3", "4"]) == ["1", "2", "3", "4"]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("""CALL sqlvec.analyze_bm25('"Do""c 100% \\:x"')"""))
    yield store
    with engine.begin() as connection:
        connection.execute(delete(Doc))


def ids(documents: Sequence[Document]) -> list[int]:
    return [int(document.id or 0) for document in documents]


class TestStandard(VectorStoreIntegrationTests):
    """LangChain's own tests; the asynchronous methods run in threads."""

    @pytest.fixture
    def vectorstore(self, engine: Engine) -> Iterator[VectorStore]:
        yield SqlvecVectorStore(
            engine,
            Note,
            self.get_embeddings(),
            text_column=Note.body,
            metadata_json_column=Note.meta,
        )
        with engine.begin() as connection:
            connection.execute(delete(Note))


class TestStandardAsynchronous(VectorStoreIntegrationTests):
    @property
    def has_sync(self) -> bool:
        return False

    @pytest.fixture
    async def vectorstore(self, async_engine: AsyncEngine) -> AsyncIterator[VectorStore]:
        yield SqlvecVectorStore(
            async_engine,
            Note.__table__,
            self.get_embeddings(),
            text_column="body",
            metadata_json_column="meta",
        )
        async with async_engine.begin() as connection:
            await connection.execute(delete(Note))


def test_metadata_come_back_as_they_went(store, engine):
    assert [document.metadata for document in store.get_by_ids(["4", "1", "9", "x", "2", "3"])] == [
        metadata | {"views": 7} for metadata in (METADATAS[3], *METADATAS[:3])
    ]
    with Session(engine) as session:
        doc = session.get_one(Doc, 3)
        assert (doc.year, doc.extra) == (2022, {"source": "web", "stars": 4, "free": True})


def test_written_over_what_is_not_named_stays(store, engine):
    with engine.begin() as connection:
        connection.execute(text("""UPDATE "Do""c 100% \\:x" SET secret = 's', views = 9"""))
    store.add_documents([Document("moss", id="1", metadata={"year": None, "b": 1})])
    (document,) = store.similarity_search("moss", k=1)
    assert (document.id, document.page_content) == ("1", "moss")
    assert document.metadata == {
        LANG: "en",
        "made": datetime.date(2020, 5, 1),
        "tags": ["new", "red"],
        "views": 9,
        "b": 1,
    }
    with Session(engine) as session:
        assert session.get_one(Doc, 1).secret == "s"


def test_new_ids(store, engine):
    documents = [Document(each) for each in ("a", "b")]
    documents.insert(1, Document("c", id="77", metadata={"year": 1}))
    with engine.begin() as connection:
        connection.execute(
            text("""SELECT setval(pg_get_serial_sequence('"Do""c 100% \\:x"', 'id'), 500)""")
        )
    new = store.add_documents(documents)
    assert new == ["501", "77", "502"]
    assert [each.page_content for each in store.get_by_ids(new)] == ["a", "c", "b"]
    keyed = SqlvecVectorStore(engine, Keyed, Topics(), text_column="body")
    (one,) = keyed.add_texts(["apple"])
    assert keyed.get_by_ids([one.upper(), "none"])[0].id == str(UUID(one)) == one
    assert keyed.delete([one]) and keyed.get_by_ids([one]) == []
    assert keyed.add_texts([]) == []


def test_all_or_nothing(store):
    with pytest.raises(DBAPIError):
        store.add_texts(["a", "b"], [{}, {"year": "no year"}], ids=["10", "11"])
    assert store.get_by_ids(["10", "11"]) == []


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({}, {1, 2, 3, 4}),
        ({"year": 2021}, {2}),
        ({"year": {"$gte": 2021, "$lt": 2023}}, {2, 3}),
        ({LANG: {"$in": ["en", "it's"]}}, {1, 2, 4}),
        ({LANG: {"$ne": "en"}}, {3, 4}),
        ({"tags": {"$contains": "red"}}, {1}),
        ({"tags": {"$is_null": True}, LANG: "de"}, {3}),
        ({"made": datetime.date(2020, 5, 1)}, {1}),
        ({"made": {"$between": [datetime.date(2020, 1, 1), "2020-12-31"]}}, {1}),
        ({"source": "book"}, {2}),
        ({"source": "o'web", "year": 2023}, {4}),
        ({"source": {"$in": ["book", "web"]}, "stars": {"$ne": 5}}, {2, 3}),
        ({"source": {"$in": []}}, set()),
        ({"pages": {"$contains": 2}}, {2}),
        ({"free": True}, {3}),
        ({"$or": [{"source": "web"}, {"year": {"$lt": 2021}}]}, {1, 3}),
        ({"$not": {"$and": [{"source": "web"}, {"year": 2022}]}}, {1, 2, 4}),
    ],
)
def test_filters(store, filter, expected):
    assert set(ids(store.similarity_search("apple", k=10, filter=filter))) == expected
    found = store.hybrid_search_with_score("apple moss carrot", 10, filter)
    assert set(ids([document for document, _ in found])) == expected


@pytest.mark.parametrize(
    ("filter", "error", "message"),
    [
        ([("year", 1)], DeclarationError, "a dict is needed"),
        ({"$or": {"year": 1}}, DeclarationError, "a list of conditions"),
        ({"$nor": []}, DeclarationError, "no metadata"),
        ({"stars": {"$gt": 3}}, DeclarationError, "a column of its own"),
        ({"stars": None}, DeclarationError, "a column of its own"),
        ({"stars": {"$like": "x"}}, DeclarationError, "a column of its own"),
        ({"year": {"$like": "x"}}, DBAPIError, "unknown operator"),
        ({"year": "1 OR true"}, DBAPIError, "not a value of column"),
    ],
)
def test_filters_that_cannot_be(store, filter, error, message):
    with pytest.raises(error, match=message):
        store.similarity_search("apple", filter=filter)


@pytest.mark.parametrize("name", ["secret", "id", "body", "year = 1 OR 1", 'x" OR true --'])
def test_names_in_filters_are_metadata_and_nothing_else(store, engine, name):
    with pytest.raises(DeclarationError, match="no metadata"):
        of_docs(engine, metadata_json_column=None).similarity_search("apple", filter={name: 1})
    assert store.similarity_search("apple", filter={name: "' OR true --"}) == []


def test_text_of_a_query_is_never_sql(store):
    hostile = "'); DROP TABLE doc; -- $where$ %s :x apple"
    assert ids(store.similarity_search(hostile, k=1, filter={LANG: "en' OR 'a' = 'a"})) == []
    assert ids([doc for doc, _ in store.hybrid_search_with_score(hostile, k=1)]) == [2]


def test_nearest(store):
    found = store.similarity_search_with_score("apple", k=2)
    assert ids([document for document, _ in found]) == [2, 3]
    assert found[0][1] == pytest.approx(0, abs=1e-6) and found[0][1] < found[1][1]
    assert ids(store.similarity_search_by_vector([0, 0, 1, 1, 0], 1, {"year": {"$gt": 0}})) == [4]
    assert ids(store.similarity_search("apple", where=[Doc.year > 2021, Doc.secret.is_(None)])) == [
        3,
        4,
    ]
    assert ids(store.similarity_search("apple", k=1, mode="exact")) == [2]
    assert ids(store.search("apple", "mmr", k=2, fetch_k=4, lambda_mult=0.1)) == [2, 1]
    assert ids(store.search("apple", "mmr", k=2, fetch_k=2, lambda_mult=0.1)) == [2, 3]
    assert ids(store.search("apple", "mmr", k=2, lambda_mult=0.9)) == [2, 3]
    retriever = store.as_retriever(search_kwargs={"k": 1, "filter": {LANG: "de"}})
    assert ids(retriever.invoke("carrot")) == [3]


def test_relevance_scores(store, engine):
    scores = [
        score for _, score in store.similarity_search_with_relevance_scores("apple carrot", k=3)
    ]
    assert 0.9 < scores[0] <= 1 and scores == sorted(scores, reverse=True)
    with pytest.raises(DeclarationError, match="name the metric"):
        SqlvecVectorStore(
            engine, Keyed, Topics(), text_column="body"
        ).similarity_search_with_relevance_scores("apple")
    with pytest.raises(DeclarationError, match="no relevance score"):
        of_docs(engine, metric="l1").similarity_search_with_relevance_scores("apple")


@pytest.fixture
def model(store, engine) -> Iterator[str]:
    call = "CALL sqlvec.create_relevance_model('docs', 'vector', 'raw', slope => '{12}', intercept => '{-6}', exponent => '{1}', rel => :rel, column_name => 'embedding')"
    with engine.begin() as connection:
        connection.execute(text(call), {"rel": '"Do""c 100% :x"'})
    yield "docs"
    with engine.begin() as connection:
        connection.execute(text("CALL sqlvec.drop_relevance_model('docs')"))


def test_relevance_is_a_probability_where_a_model_is_named(model, engine):
    store = of_docs(engine, relevance=model)
    found = store.similarity_search_with_relevance_scores("apple", k=4, score_threshold=0.5)
    assert ids([document for document, _ in found]) == [2, 3]
    assert 0.99 < found[0][1] < 1
    assert store.similarity_search_with_relevance_scores("apple", 4, filter={"year": 1}) == []


def test_nothing_relevant_is_an_empty_list(model, store):
    retriever = HybridRetriever(vectorstore=store, relevance=model, min_relevance=0.95, k=4)
    assert ids(retriever.invoke("apple")) == [2]
    assert retriever.invoke("zebra") == []
    assert ids(retriever.invoke("apple", filter={LANG: "de"}, min_relevance=0.5)) == [3]


def test_hybrid(store, engine):
    retriever = HybridRetriever(
        vectorstore=store,
        k=3,
        filter={"year": {"$gt": 2000}},
        fusion="convex",
        weights={"text": 1, "vector": 0},
        options={"where": Doc.year < 2023},
    )
    assert ids(retriever.invoke("pie"))[0] == 3
    found = store.hybrid_search_with_score("apple", legs=["text"], text_column=Doc.words.target)
    assert ids([document for document, _ in found]) == [2, 3]
    with pytest.raises(DeclarationError, match="no leg 'tokens'"):
        store.hybrid_search_with_score("apple", legs=["tokens"])
    with pytest.raises(DBAPIError, match="relevance model"):
        HybridRetriever(vectorstore=store, min_relevance=0.5).invoke("apple")


def test_tokens(store, engine):
    with_tokens = of_docs(engine, tokens_column=Doc.tokens, token_embeddings=TopicTokens())
    with_tokens.add_texts(TEXTS, METADATAS, ids=["1", "2", "3", "4"])
    with engine.connect() as connection:
        stored = connection.scalar(select(Doc.tokens).where(Doc.id == 2))
    assert stored is not None and stored.shape == (2, 5)
    found = with_tokens.hybrid_search_with_score("stone moss", k=1, legs=["tokens"])
    assert ids([document for document, _ in found]) == [4]
    assert ids(HybridRetriever(vectorstore=with_tokens, k=1).invoke("moss stone")) == [4]
    with pytest.raises(DeclarationError, match="go together"):
        of_docs(engine, tokens_column="tokens")


async def test_asynchronous(store, async_engine, model):
    other = of_docs(
        async_engine,
        relevance=model,
        tokens_column="tokens",
        token_embeddings=TopicTokens(),
    )
    assert await other.aadd_texts(TEXTS, METADATAS, ids=["1", "2", "3", "4"]) == list("1234")
    assert ids(await other.asimilarity_search("apple", k=2)) == [2, 3]
    assert ids(await other.asimilarity_search_by_vector([0, 0, 1, 1, 0], 1)) == [4]
    assert ids(await other.amax_marginal_relevance_search("apple", k=2, fetch_k=2)) == [2, 3]
    found = await other.asimilarity_search_with_relevance_scores("apple", filter={LANG: "en"})
    assert ids([document for document, _ in found]) == [2, 1]
    retriever = HybridRetriever(vectorstore=other, k=1, relevance=model, min_relevance=0.95)
    assert ids(await retriever.ainvoke("apple")) == [2]
    assert await retriever.ainvoke("zebra") == []
    assert await other.aget_by_ids(["2"]) == store.get_by_ids(["2"])
    assert await other.adelete(["2"]) and store.get_by_ids(["2"]) == []
    with pytest.raises(DeclarationError, match="asynchronous twin"):
        other.similarity_search("apple")


async def test_made_from_texts(engine, async_engine, store):
    options: dict[str, Any] = {"entity": Doc, "text_column": "body", "metadata_columns": []}
    made = SqlvecVectorStore.from_texts(
        ["stone stone"], Topics(), ids=["20"], engine=engine, **options
    )
    assert ids(made.similarity_search("stone", k=1)) == [20]
    made = await SqlvecVectorStore.afrom_documents(
        [Document("moss moss", id="21")], Topics(), engine=async_engine, **options
    )
    assert ids(await made.asimilarity_search("moss", k=1)) == [21]
    with pytest.raises(TypeError, match="engine"):
        SqlvecVectorStore.from_texts(["stone"], Topics())


def test_columns_are_found_where_none_are_named(engine):
    store = SqlvecVectorStore(engine, Doc, Topics(), text_column=Doc.body)
    assert store.embeddings is not None
    store.add_texts(["carrot"], [{"secret": "x", "extra": {"a": [1]}}], ids=["30"])
    (document,) = store.similarity_search("carrot", filter={"secret": "x"})
    assert document.metadata == {"secret": "x", "extra": {"a": [1]}, "views": 7}
    store.delete(["30"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Pair, {"text_column": "body"}), "has 2 columns"),
        ((Doc, {"text_column": "year"}), "not text"),
        ((Doc, {"text_column": "none"}), "no column 'none'"),
        ((Doc, {"text_column": "body", "metadata_json_column": "year"}), "not jsonb"),
        ((Doc, {"text_column": "body", "metadata_columns": ["body"]}), "no metadata"),
    ],
)
def test_tables_that_cannot_be(engine, arguments, message):
    entity, options = arguments
    with pytest.raises(DeclarationError, match=message):
        SqlvecVectorStore(engine, entity, Topics(), **options)


def test_documents_that_cannot_be(store, engine):
    for wrong, message in (
        ({"ids": ["x"]}, "no key of table"),
        ({"ids": ["1", "2"]}, "1 texts and 2 ids"),
        ({"metadatas": [{}, {}]}, "1 texts and 2 metadatas"),
    ):
        with pytest.raises(ValueError, match=message):
            store.add_texts(["a"], **wrong)
    plain = of_docs(engine, metadata_json_column=None)
    with pytest.raises(DeclarationError, match="no column for metadata 'secret'"):
        plain.add_texts(["a"], [{"secret": "s"}])
    with pytest.raises(ValueError, match="delete needs ids"):
        store.delete()


def test_subclasses_are_refused(engine):
    class Animal(Base):
        __tablename__ = "animal"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        body: Mapped[str]
        embedding: Mapped[Sequence[float]] = mapped_column(VECTOR(5))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    class Cat(Animal):
        __mapper_args__ = {"polymorphic_identity": "cat"}

    with pytest.raises(DeclarationError, match="only some rows"):
        SqlvecVectorStore(engine, Cat, Topics(), text_column="body")
