"""LangChain: a vector store and a hybrid retriever over a table of the application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from sqlvec.errors import DeclarationError, MissingRequirement
from sqlvec.integrations.documents import Documents, Record, Written
from sqlvec.search import hybrid_search, vector_search
from sqlvec.search.hybrid import Fusion, Leg

try:
    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
    )
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.vectorstores import VectorStore
    from pydantic import ConfigDict
except ModuleNotFoundError as error:
    raise MissingRequirement(
        f"sqlvec.integrations.langchain needs {error.name}: pip install 'sqlvec[langchain]'"
    ) from None

__all__ = ["HybridRetriever", "SqlvecVectorStore", "TokenEmbeddings"]

_Scored = list[tuple[Document, float]]


class TokenEmbeddings(Protocol):
    """What makes the multi-vectors of the tokens leg, as ``Embeddings`` makes vectors."""

    def embed_documents(self, texts: list[str], /) -> Sequence[ArrayLike]:
        """Return an array of shape (tokens, dimensions) for each text."""

    def embed_query(self, text: str, /) -> ArrayLike:
        """Return an array of shape (tokens, dimensions)."""


class SqlvecVectorStore(VectorStore):
    """A table of the application, searched and written by LangChain.

    E.g.::

        store = SqlvecVectorStore(
            engine, Doc, OpenAIEmbeddings(), text_column="body", metadata_columns=["lang"]
        )
        store.add_texts(["sow carrots"], [{"lang": "en"}])
        store.similarity_search("vegetables", k=4, filter={"lang": {"$in": ["en", "de"]}})

    The table stays what it is: nothing is created, and columns that are not named here are left
    alone. A document is a row: its id is the primary key as text, ``page_content`` is
    ``text_column``, metadata are columns by their names, without those that are NULL. A document
    added under an id that is there is written over: text, vectors, and the columns that its
    metadata name.

    ``filter`` is that of the searches, over metadata: ``{"year": {"$gte": 2020}}``, with ``$eq $ne
    $in $gt $gte $lt $lte $between $is_null $contains`` and ``$and $or $not`` around conditions.
    Names are checked and values are bound, so it may come from outside. Of metadata in
    ``metadata_json_column`` only ``$eq $ne $in $contains`` can be asked. ``where`` takes criteria
    of SQLAlchemy.

    :param engine: an asynchronous engine serves the asynchronous methods only; a synchronous one
        serves both, the asynchronous ones in threads.
    :param entity: a model or a Table, with one column as primary key.
    :param embedding: makes the vectors.
    :param text_column: attribute, column or name, as of the next ones.
    :param vector_column: None is the only vector column that holds no codes.
    :param tokens_column: column of multi-vectors, made by ``token_embeddings``.
    :param token_embeddings: without it there is no tokens leg.
    :param bm25_column: what the text leg searches, where it is not ``text_column``.
    :param metadata_columns: None is all columns that hold neither text, vectors nor codes.
    :param metadata_json_column: jsonb column for metadata without a column of their own.
    :param metric: l2, inner_product, cosine or l1; None is what the vector column's codes or
        indexes are made for.
    :param relevance: name of a relevance model, for relevance scores that are probabilities.
    :raises DeclarationError: the table cannot be used so.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        engine: Engine | AsyncEngine,
        entity: Any,
        embedding: Embeddings,
        *,
        text_column: Any,
        vector_column: Any = None,
        tokens_column: Any = None,
        token_embeddings: TokenEmbeddings | None = None,
        bm25_column: Any = None,
        metadata_columns: Iterable[Any] | None = None,
        metadata_json_column: Any = None,
        metric: str | None = None,
        relevance: str | None = None,
    ) -> None:
        if (tokens_column is None) != (token_embeddings is None):
            raise DeclarationError("tokens_column and token_embeddings go together")
        self._documents = Documents(
            engine,
            entity,
            text_column=text_column,
            vector_column=vector_column,
            tokens_column=tokens_column,
            bm25_column=bm25_column,
            metadata_columns=metadata_columns,
            metadata_json_column=metadata_json_column,
            metric=metric,
        )
        self._embedding = embedding
        self._token_embeddings = token_embeddings
        self._relevance = relevance

    @property
    def embeddings(self) -> Embeddings:
        """What makes the vectors."""
        return self._embedding

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> SqlvecVectorStore:
        """Return a store with texts added to its table, which must exist.

        :param kwargs: what the constructor takes; ``engine``, ``entity`` and ``text_column`` at
            least.
        """
        store = cls(embedding=embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> SqlvecVectorStore:
        """Return the same, asynchronously."""
        store = cls(embedding=embedding, **kwargs)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed texts and write them as rows, all or none; return their ids.

        :param ids: None, as a whole or in it, is a new one.
        :raises ValueError: there are not as many metadatas or ids as texts.
        :raises DeclarationError: metadata or an id that the table cannot hold.
        """
        records = _records(texts, metadatas, ids)
        contents = [record.text for record in records]
        vectors = self._embedding.embed_documents(contents)
        tokens = self._document_tokens(contents)
        return self._documents.run(self._documents.write(_written(records, vectors, tokens)))

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Do the same, asynchronously."""
        records = _records(texts, metadatas, ids)
        contents = [record.text for record in records]
        vectors = await self._embedding.aembed_documents(contents)
        tokens = await asyncio.to_thread(self._document_tokens, contents)
        work = self._documents.write(_written(records, vectors, tokens))
        return await self._documents.arun(work)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete the rows of these ids that are there.

        :raises ValueError: ids is None; a table of the application is not emptied by leaving out
            an argument.
        """
        self._documents.run(self._documents.delete(_required(ids)))
        return True

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Do the same, asynchronously."""
        await self._documents.arun(self._documents.delete(_required(ids)))
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents of these ids that are there, in their order."""
        return list(map(_document, self._documents.run(self._documents.get(ids))))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the same, asynchronously."""
        return list(map(_document, await self._documents.arun(self._documents.get(ids))))

    def similarity_search(
        self,
        query: str,
        k: int = 4,
        filter: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Document]:
        """Return the k documents nearest to a query.

        :param options: of :func:`~sqlvec.search.vector_search`, for example ``where``.
        """
        return _without_scores(self.similarity_search_with_score(query, k, filter, **options))

    async def asimilarity_search(
        self,
        query: str,
        k: int = 4,
        filter: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Document]:
        """Return the same, asynchronously."""
        return _without_scores(
            await self.asimilarity_search_with_score(query, k, filter, **options)
        )

    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> _Scored:
        """Return the k documents nearest to a query with their distances, nearest first."""
        vector = self._embedding.embed_query(query)
        return _scored(self._documents.run(self._nearest(vector, k, filter, options)))

    async def asimilarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> _Scored:
        """Return the same, asynchronously."""
        vector = await self._embedding.aembed_query(query)
        return _scored(await self._documents.arun(self._nearest(vector, k, filter, options)))

    def similarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Document]:
        """Return the k documents nearest to a vector."""
        work = self._nearest(embedding, k, filter, options)
        return _without_scores(_scored(self._documents.run(work)))

    async def asimilarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Document]:
        """Return the same, asynchronously."""
        work = self._nearest(embedding, k, filter, options)
        return _without_scores(_scored(await self._documents.arun(work)))

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Document]:
        """Return k documents near to a query that differ from each other.

        :param fetch_k: nearest documents to choose from.
        :param lambda_mult: 1 is the order of the distances, 0 the most different documents.
        :param options: of :func:`~sqlvec.search.hybrid_search`.
        """
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, filter, **options
        )

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Document]:
        """Return the same, asynchronously."""
        vector = await self._embedding.aembed_query(query)
        return await self.amax_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, filter, **options
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Document]:
        """Return k documents near to a vector that differ from each other."""
        work = self._different(embedding, k, fetch_k, lambda_mult, filter, options)
        return _without_scores(_scored(self._documents.run(work)))

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Document]:
        """Return the same, asynchronously."""
        work = self._different(embedding, k, fetch_k, lambda_mult, filter, options)
        return _without_scores(_scored(await self._documents.arun(work)))

    def hybrid_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Mapping[str, Any] | None = None,
        *,
        legs: Iterable[Leg] | None = None,
        **options: Any,
    ) -> _Scored:
        """Return the k documents that words, vector and tokens find together, best first.

        With each stands its relevance where a model is named, else its score. There may be none.

        :param legs: some of ``text``, ``vector`` and ``tokens``; None is all that the store has.
        :param options: of :func:`~sqlvec.search.hybrid_search`, for example ``fusion``,
            ``relevance`` and ``min_relevance``.
        """
        asked = self._asked(query, legs)
        if "vector" in asked:
            asked["vector"] = self._embedding.embed_query(query)
        return _scored(self._documents.run(self._fused(asked, k, filter, options)))

    async def ahybrid_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Mapping[str, Any] | None = None,
        *,
        legs: Iterable[Leg] | None = None,
        **options: Any,
    ) -> _Scored:
        """Return the same, asynchronously."""
        asked = await asyncio.to_thread(self._asked, query, legs)
        if "vector" in asked:
            asked["vector"] = await self._embedding.aembed_query(query)
        return _scored(await self._documents.arun(self._fused(asked, k, filter, options)))

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> _Scored:
        if self._relevance is None:
            return super()._similarity_search_with_relevance_scores(query, k, **kwargs)
        return self.hybrid_search_with_score(
            query, k, legs=["vector"], relevance=self._relevance, **kwargs
        )

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> _Scored:
        if self._relevance is None:
            return await super()._asimilarity_search_with_relevance_scores(query, k, **kwargs)
        return await self.ahybrid_search_with_score(
            query, k, legs=["vector"], relevance=self._relevance, **kwargs
        )

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Return what LangChain makes of the distances of this metric."""
        known = {
            "cosine": self._cosine_relevance_score_fn,
            "inner_product": self._max_inner_product_relevance_score_fn,
            "l2": self._euclidean_relevance_score_fn,
        }
        metric = self._documents.known_metric
        if metric not in known:
            raise DeclarationError(
                f"LangChain has no relevance score for metric {metric!r}; name a model: relevance=…"
            )
        return known[metric]

    def _nearest(
        self,
        vector: Any,
        k: int,
        filter: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> Callable[[Any], list[tuple[Record, float]]]:
        documents = self._documents
        options = {"metric": documents.metric, **options}
        search = vector_search(
            documents.table,
            vector,
            documents.vector,
            k=k,
            filter=documents.conditions.of(filter),
            **options,
        )
        return documents.found(search, "distance")

    def _different(
        self,
        vector: Any,
        k: int,
        fetch_k: int,
        lambda_mult: float,
        filter: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> Callable[[Any], list[tuple[Record, float]]]:
        shape = {"candidates": max(fetch_k, k), "diversity": 1 - lambda_mult, "fusion": "convex"}
        return self._fused({"vector": vector}, k, filter, shape | options)

    def _fused(
        self,
        asked: dict[str, Any],
        k: int,
        filter: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> Callable[[Any], list[tuple[Record, float]]]:
        documents = self._documents
        options = {
            "metric": documents.metric,
            "text_column": documents.bm25,
            "vector_column": documents.vector,
            "tokens_column": documents.tokens,
            **options,
        }
        search = hybrid_search(
            documents.table,
            k=k,
            filter=documents.conditions.of(filter),
            **asked,
            **options,
        )
        return documents.found(search, "relevance" if options.get("relevance") else "score")

    def _asked(self, query: str, legs: Iterable[Leg] | None) -> dict[str, Any]:
        """Return what each leg looks for; the vector is yet to come."""
        has: list[Leg] = ["text", "vector"]
        if self._token_embeddings is not None:
            has.append("tokens")
        asked: dict[str, Any] = {}
        for leg in has if legs is None else legs:
            if leg not in has:
                raise DeclarationError(
                    f"the store has no leg {leg!r}; its legs are: {', '.join(has)}"
                )
            asked[leg] = query if leg == "text" else None
        if "tokens" in asked and self._token_embeddings is not None:
            asked["tokens"] = self._token_embeddings.embed_query(query)
        return asked

    def _document_tokens(self, texts: list[str]) -> Sequence[Any] | None:
        if self._token_embeddings is None:
            return None
        return [np.asarray(each) for each in self._token_embeddings.embed_documents(texts)]


class HybridRetriever(BaseRetriever):
    """Finds documents by words, vector and tokens together, and stops where relevance ends.

    E.g.::

        retriever = HybridRetriever(
            vectorstore=store, k=8, fusion="relevance", relevance="docs", min_relevance=0.5
        )
        retriever.invoke("how to parse dates")  # may be an empty list

    .. seealso:: :func:`sqlvec.search.hybrid_search`, which the fields are passed to
    .. versionadded:: 0.1
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    vectorstore: SqlvecVectorStore
    k: int = 4
    filter: dict[str, Any] | None = None
    legs: list[Leg] | None = None
    """None is all that the store has."""
    fusion: Fusion = "rrf"
    weights: dict[Leg, float] | None = None
    relevance: str | None = None
    min_relevance: float | None = None
    autocut: int | None = None
    options: dict[str, Any] = {}
    """What else :func:`~sqlvec.search.hybrid_search` takes, for example ``group_by``."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return _without_scores(
            self.vectorstore.hybrid_search_with_score(query, **(self._arguments() | kwargs))
        )

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return _without_scores(
            await self.vectorstore.ahybrid_search_with_score(query, **(self._arguments() | kwargs))
        )

    def _arguments(self) -> dict[str, Any]:
        named = (
            "k",
            "filter",
            "legs",
            "fusion",
            "weights",
            "relevance",
            "min_relevance",
            "autocut",
        )
        return {name: getattr(self, name) for name in named} | self.options


def _records(
    texts: Iterable[str],
    metadatas: Sequence[dict[str, Any]] | None,
    ids: Sequence[str | None] | None,
) -> list[Record]:
    contents = list(texts)
    metadatas = metadatas or [{}] * len(contents)
    ids = ids or [None] * len(contents)
    for name, values in (("metadatas", metadatas), ("ids", ids)):
        if len(values) != len(contents):
            raise ValueError(f"there are {len(contents)} texts and {len(values)} {name}")
    return [
        Record(id or None, text, metadata)
        for id, text, metadata in zip(ids, contents, metadatas, strict=True)
    ]


def _written(
    records: list[Record], vectors: Sequence[Any], tokens: Sequence[Any] | None
) -> list[Written]:
    tokens = [None] * len(records) if tokens is None else tokens
    return [Written(*each) for each in zip(records, vectors, tokens, strict=True)]


def _required(ids: list[str] | None) -> list[str]:
    if ids is None:
        raise ValueError("delete needs ids; empty the table itself to delete all of its rows")
    return ids


def _document(record: Record) -> Document:
    return Document(id=record.id, page_content=record.text, metadata=dict(record.metadata))


def _scored(found: list[tuple[Record, float]]) -> _Scored:
    return [(_document(record), score) for record, score in found]


def _without_scores(found: _Scored) -> list[Document]:
    return [document for document, _ in found]
