"""A table of an application as LlamaIndex's vector store."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    MetadataMode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from sqlalchemy import ARRAY, Engine, Text, delete, insert, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlvec import BM25, Halfvec, Quantized
from sqlvec.errors import DeclarationError
from sqlvec.integrations.llama_index import SqlvecVectorStore
from sqlvec.types import VECTOR

TOPICS = ("carrot", "apple", "moss", "stone")


def embedded(text: str) -> list[float]:
    words = text.lower().split()
    return [*(words.count(topic) + 0.0 for topic in TOPICS), 0.1]


class Topics(BaseEmbedding):
    """How often a text speaks of each topic, and of none."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return embedded(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return embedded(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return embedded(query)


class Base(DeclarativeBase):
    pass


class Passage(Base):
    __tablename__ = "passage"
    id: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[str]
    embedding: Mapped[Sequence[float]] = mapped_column(VECTOR(5))
    lang: Mapped[str | None]
    year: Mapped[int | None]
    made: Mapped[datetime.date | None]
    tags: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    secret: Mapped[str | None]
    source: Mapped[str | None]
    extra: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    words = BM25("body", config="simple")
    __table_args__ = (Quantized("embedding", Halfvec()), words)


class Old(Base):
    """Numbers for keys, and no JSON."""

    __tablename__ = "old"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    embedding: Mapped[Sequence[float]] = mapped_column(VECTOR(5))
    lang: Mapped[str | None]
    doc: Mapped[str | None]


def node(id: str, body: str, doc: str, **metadata: Any) -> TextNode:
    return TextNode(
        id_=id,
        text=body,
        metadata=metadata,
        embedding=embedded(body),
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=doc)},
        excluded_embed_metadata_keys=["lang"],
    )


NODES = [
    node("a", "carrot carrot soil", "d1", lang="en", year=2020, tags=["new", "red"], n=1),
    node(
        "b", "apple tree", "d1", lang="en", year=2021, tags=["old"], made=datetime.date(2020, 5, 1)
    ),
    node("c", "apple pie and carrot cake", "d2", lang="de", year=2022, topics=["x", "y"], n=2),
    node("d", "moss on a stone", "d2", lang="", year=2023, tags=[], topics=["z"]),
    node("e", "apple", "d3", year=2024),
]


@pytest.fixture(scope="module", autouse=True)
def _tables(engine: Engine) -> Iterator[None]:
    Base.metadata.create_all(engine)
    yield
    Base.metadata.drop_all(engine)


def of_passages(engine: Any, **options: Any) -> SqlvecVectorStore:
    arguments: dict[str, Any] = {
        "text_column": "body",
        "metadata_columns": ["lang", "year", "made", "tags"],
        "metadata_json_column": Passage.extra,
        **options,
    }
    return SqlvecVectorStore(engine, Passage, **arguments)


@pytest.fixture(params=["json", "column"])
def store(request: pytest.FixtureRequest, engine: Engine) -> Iterator[SqlvecVectorStore]:
    """Return a store with nodes; what their document is stands in JSON or in a column."""
    column = "source" if request.param == "column" else None
    store = of_passages(engine, ref_doc_column=column)
    assert store.add(NODES) == ["a", "b", "c", "d", "e"]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CALL sqlvec.analyze_bm25('passage')"))
    yield store
    with engine.begin() as connection:
        connection.execute(delete(Passage))


def asked(words: str, mode: str = "default", k: int = 2, **more: Any) -> VectorStoreQuery:
    return VectorStoreQuery(
        query_str=words,
        query_embedding=embedded(words),
        similarity_top_k=k,
        mode=VectorStoreQueryMode(mode),
        **more,
    )


def found(store: SqlvecVectorStore, *args: Any, options: Any = None, **more: Any) -> list[str]:
    return store.query(asked(*args, **more), **(options or {})).ids or []


def filters(*conditions: Any, condition: str = "and") -> MetadataFilters:
    return MetadataFilters(
        filters=[
            each
            if isinstance(each, MetadataFilters)
            else MetadataFilter(key=each[0], operator=FilterOperator(each[1]), value=each[2])
            for each in conditions
        ],
        condition=FilterCondition(condition),
    )


def test_nodes_come_back_as_they_went(store, engine):
    image = ImageNode(
        id_="i", text="stone", image_url="http://x/y.png", embedding=embedded("stone")
    )
    store.add([image])
    back = store.get_nodes(["i", "c", "none", "a"])
    assert [type(each) for each in back] == [ImageNode, TextNode, TextNode]
    for one, other in zip(back, [image, NODES[2], NODES[0]], strict=True):
        assert one.model_dump(exclude={"embedding"}) == other.model_dump(exclude={"embedding"})
    (dated,) = store.get_nodes(["b"])
    assert dated.metadata == NODES[1].metadata and dated.ref_doc_id == "d1"
    with Session(engine) as session:
        passage = session.get_one(Passage, "a")
        assert (passage.lang, passage.year, passage.tags) == ("en", 2020, ["new", "red"])
        assert passage.extra is not None and passage.extra["n"] == 1


def test_the_row_is_what_counts(store, engine):
    with engine.begin() as connection:
        connection.execute(text("UPDATE passage SET body = 'moss', year = 1 WHERE id = 'a'"))
    (changed,) = store.get_nodes(["a"])
    assert changed.get_content(MetadataMode.NONE) == "moss" and changed.metadata["year"] == 1


def test_written_over_and_deleted(store):
    store.add([node("a", "moss", "d9", lang="fr")])
    (changed,) = store.get_nodes(["a"])
    assert changed.ref_doc_id == "d9" and changed.metadata["lang"] == "fr"
    store.delete("d2")
    assert [each.node_id for each in store.get_nodes()] == ["a", "b", "e"]
    store.delete("o'clock")
    store.delete_nodes(["b"], filters(("lang", "==", "de")))
    store.delete_nodes(["b", "zz"], filters(("lang", "==", "en")))
    assert [each.node_id for each in store.get_nodes()] == ["a", "e"]
    store.delete_nodes(filters=filters(("year", "==", 2024)))
    assert [each.node_id for each in store.get_nodes()] == ["a"]
    with pytest.raises(ValueError, match="needs node_ids or filters"):
        store.delete_nodes()


def test_modes(store):
    result = store.query(asked("apple", k=3))
    assert result.ids == ["b", "e", "c"]
    assert result.similarities == pytest.approx([1, 1, 0.71], abs=0.01)
    assert [each.node_id for each in result.nodes] == result.ids
    assert found(store, "pie", "text_search") == found(store, "pie", "sparse") == ["c"]
    assert found(store, "apple cake", "hybrid", 1, alpha=0.0) == ["c"]
    assert found(store, "apple cake", "hybrid", 1, alpha=1.0, hybrid_top_k=2) == ["b", "e"]
    assert found(store, "apple", "hybrid", 5, sparse_top_k=50)[0] in "be"
    assert found(store, "apple", "mmr", mmr_threshold=0.1) == ["b", "a"]
    assert found(store, "apple", "mmr", mmr_threshold=1.0) == ["b", "e"]
    assert found(store, "apple", "mmr", mmr_threshold=0.1, options={"mmr_prefetch_k": 2}) == [
        "b",
        "e",
    ]


def test_rows_are_chosen_by_node_document_and_criteria(store):
    assert found(store, "apple", k=9, node_ids=["a", "c", "none"]) == ["c", "a"]
    assert found(store, "apple", k=9, doc_ids=["d2", "d3"]) == ["e", "c", "d"]
    assert found(store, "apple", "text_search", 9, doc_ids=["d1"]) == ["b"]
    options = {"where": Passage.year > 2021, "filter": {"lang": "de"}}
    assert found(store, "apple", k=9, options=options) == ["c"]
    options = {"where": [Passage.year > 2021]}
    assert found(store, "apple", "hybrid", 9, node_ids=["a", "c"], options=options) == ["c"]
    assert len(found(store, "apple", k=9, node_ids=[], doc_ids=[])) == 5
    assert store.get_nodes([]) == []


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (filters(), "abcde"),
        (filters(("year", "==", 2021)), "b"),
        (filters(("year", "!=", 2021)), "acde"),
        (filters(("lang", "!=", "en")), "cde"),
        (filters(("year", ">", 2020), ("year", "<=", 2022)), "bc"),
        (filters(("year", ">=", 2023), ("year", "<", 2021), condition="or"), "ade"),
        (filters(("lang", "in", ["de", "it's"])), "c"),
        (filters(("lang", "nin", ["de", "en"])), "de"),
        (filters(("tags", "contains", "red")), "a"),
        (filters(("tags", "any", ["red", "old"])), "ab"),
        (filters(("tags", "any", [])), ""),
        (filters(("tags", "all", ["red", "new"])), "a"),
        (filters(("lang", "is_empty", None)), "de"),
        (filters(("tags", "is_empty", None)), "cde"),
        (filters(("made", "is_empty", None)), "acde"),
        (filters(("made", "==", "2020-05-01")), "b"),
        (filters(("lang", "==", None)), "e"),
        (filters(("lang", "!=", None)), "abcd"),
        (filters(("lang", "==", "en"), ("lang", "==", "de"), condition="not"), "de"),
        (filters(("lang", "!=", "en"), condition="not"), "ab"),
        (
            filters(
                ("year", ">", 2020), filters(("lang", "==", "de"), ("n", "==", 1), condition="or")
            ),
            "c",
        ),
        (filters(("n", "==", 1)), "a"),
        (filters(("n", "!=", 1)), "bcde"),
        (filters(("n", "in", [1, 2])), "ac"),
        (filters(("n", "nin", [1, 2])), "bde"),
        (filters(("topics", "contains", "x")), "c"),
        (filters(("topics", "any", ["x", "z"])), "cd"),
        (filters(("topics", "all", ["x", "z"])), ""),
        (filters(("n", "==", 1), condition="not"), "bcde"),
        (filters(("n'} OR true --", "==", "' OR true --")), ""),
    ],
)
def test_filters(store, filters, expected):
    assert sorted(found(store, "apple", k=9, filters=filters)) == list(expected)
    assert sorted(found(store, "apple", "hybrid", 9, filters=filters)) == list(expected)
    assert "".join(each.node_id for each in store.get_nodes(filters=filters)) == expected


@pytest.mark.parametrize(
    ("filters", "error", "message"),
    [
        (filters(("lang", "text_match", "e")), DeclarationError, "text_search"),
        (filters(("lang", "text_match_insensitive", "e")), DeclarationError, "text_search"),
        (filters(("n", ">", 1)), DeclarationError, "a column of its own"),
        (filters(("n", "is_empty", None)), DeclarationError, "a column of its own"),
        (filters(("tags", "any", "red")), DeclarationError, "cannot be asked with 'red'"),
        (filters(("year", "==", "1 OR true")), DBAPIError, "not a value of column"),
        (filters(("year", "in", 3)), DBAPIError, "needs a JSON array"),
    ],
)
def test_filters_that_cannot_be(store, filters, error, message):
    with pytest.raises(error, match=message):
        found(store, "apple", filters=filters)
    with pytest.raises(error, match=message):
        store.get_nodes(filters=filters)


@pytest.mark.parametrize("name", ["secret", "body", 'x" OR true --'])
def test_names_in_filters_are_metadata_and_nothing_else(engine, name):
    store = of_passages(engine, metadata_json_column=None, ref_doc_column="source")
    with pytest.raises(DeclarationError, match="no metadata"):
        found(store, "apple", filters=filters((name, "==", 1)))


@pytest.fixture
def model(store, engine) -> Iterator[str]:
    call = "CALL sqlvec.create_relevance_model('passages', 'vector', 'raw', slope => '{12}', intercept => '{-6}', exponent => '{1}', rel => 'passage', column_name => 'embedding')"
    with engine.begin() as connection:
        connection.execute(text(call))
    yield "passages"
    with engine.begin() as connection:
        connection.execute(text("CALL sqlvec.drop_relevance_model('passages')"))


def test_nothing_relevant_is_an_empty_result(store, model):
    options = {"relevance": model, "min_relevance": 0.95}
    for mode in ("default", "hybrid"):
        result = store.query(asked("apple", mode, 9), **options)
        assert sorted(result.ids) == ["b", "e"] and 0.99 < result.similarities[0] < 1
        nothing = store.query(asked("zebra", mode, 9), **options)
        assert (nothing.ids, nothing.nodes, nothing.similarities) == ([], [], [])


def test_an_index_over_the_table(store, model):
    index = VectorStoreIndex.from_vector_store(store, embed_model=Topics())
    index.insert_nodes([TextNode(id_="f", text="stone wall", metadata={"year": 1999})])
    retriever = index.as_retriever(similarity_top_k=1, filters=filters(("year", "<", 2000)))
    (hit,) = retriever.retrieve("stone")
    assert (hit.node_id, hit.text, hit.metadata) == ("f", "stone wall", {"year": 1999})
    hybrid = index.as_retriever(
        vector_store_query_mode="hybrid",
        vector_store_kwargs={"relevance": model, "min_relevance": 0.95},
    )
    assert hybrid.retrieve("zebra") == []
    index.delete_ref_doc("d3")
    assert store.get_nodes(["e"]) == []


async def test_asynchronous(store, async_engine: AsyncEngine, model):
    other = of_passages(async_engine, ref_doc_column="source")
    assert await other.async_add(NODES) == ["a", "b", "c", "d", "e"]
    result = await other.aquery(asked("apple", filters=filters(("lang", "==", "de"))))
    assert result.ids == ["c"]
    result = await other.aquery(asked("apple", "hybrid"), relevance=model, min_relevance=0.95)
    assert sorted(result.ids or []) == ["b", "e"]
    made = filters(("made", "==", "2020-05-01"))
    assert [each.node_id for each in await other.aget_nodes(filters=made)] == ["b"]
    await other.adelete_nodes(filters=made)
    await other.adelete("d2")
    assert [each.node_id for each in await other.aget_nodes()] == ["a", "e"]
    assert other.client is async_engine
    with pytest.raises(DeclarationError, match="asynchronous twin"):
        other.get_nodes()
    threaded = await store.aquery(asked("apple", k=1))
    assert threaded.ids == ["e"]


def test_a_table_without_json(engine):
    with engine.begin() as connection:
        connection.execute(
            insert(Old),
            [
                {
                    "id": 1,
                    "body": "apple",
                    "embedding": embedded("apple"),
                    "doc": "x",
                    "lang": "en",
                },
                {"id": 2, "body": "moss", "embedding": embedded("moss"), "doc": None, "lang": None},
            ],
        )
    store = SqlvecVectorStore(
        engine,
        Old,
        text_column="body",
        metadata_columns=["lang"],
        ref_doc_column="doc",
        metric="l2",
    )
    result = store.query(asked("moss", k=2))
    assert result.ids == ["2", "1"] and result.similarities == pytest.approx([1, 1 / (1 + 2**0.5)])
    (one,) = store.get_nodes(["1"])
    assert (one.ref_doc_id, one.metadata) == ("x", {"lang": "en"})
    assert store.add([node("3", "stone", "y")]) == ["3"]
    with pytest.raises(DeclarationError, match="no key of table"):
        store.add([TextNode(text="stone", embedding=embedded("stone"))])
    unplaced = SqlvecVectorStore(engine, Old, text_column="body", metadata_columns=["lang"])
    with pytest.raises(DeclarationError, match="no place for the document"):
        unplaced.add([node("4", "stone", "y")])
    with pytest.raises(DeclarationError, match="no place for the document"):
        unplaced.delete("y")
    with pytest.raises(DeclarationError, match="name the metric"):
        unplaced.query(asked("moss"))
    assert found(unplaced, "moss", options={"metric": "cosine"}) == ["2", "1"]


def test_queries_that_cannot_be(store):
    bare: list[tuple[VectorStoreQuery, str]] = [
        (VectorStoreQuery(query_str="x"), "needs query_embedding"),
        (
            VectorStoreQuery(query_embedding=[1], mode=VectorStoreQueryMode.HYBRID),
            "needs query_str",
        ),
        (asked("x", "svm"), "'svm' is not known"),
        (asked("x", "semantic_hybrid"), "the modes are"),
    ]
    for query, message in bare:
        with pytest.raises(DeclarationError, match=message):
            store.query(query)


def test_nodes_are_nodes(store):
    assert all(isinstance(each, BaseNode) for each in store.get_nodes())
    assert store.class_name() == "SqlvecVectorStore" and store.stores_text
