"""LlamaIndex: a vector store over a table of the application."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import ARRAY, Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from sqlvec.errors import DeclarationError, MissingRequirement
from sqlvec.integrations.documents import Documents, Record, Written
from sqlvec.search import bm25_search, hybrid_search, vector_search
from sqlvec.types import type_name

try:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.schema import (
        BaseNode,
        MetadataMode,
        NodeRelationship,
        RelatedNodeInfo,
        TextNode,
    )
    from llama_index.core.vector_stores.types import (
        BasePydanticVectorStore,
        FilterCondition,
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
except ModuleNotFoundError as error:
    raise MissingRequirement(
        f"sqlvec.integrations.llama_index needs {error.name}: pip install 'sqlvec[llama-index]'"
    ) from None

__all__ = ["SqlvecVectorStore"]

_NODE_CONTENT, _NODE_TYPE, _REF_DOC = "_node_content", "_node_type", "ref_doc_id"

_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.ALL: "$contains",
    FilterOperator.CONTAINS: "$contains",
}
_NEGATED = {FilterOperator.NE: "$eq", FilterOperator.NIN: "$in"}

_SIMILARITIES: dict[str, Callable[[float], float]] = {
    "cosine": lambda distance: 1 - distance,
    "inner_product": lambda distance: -distance,
    "l2": lambda distance: 1 / (1 + distance),
    "l1": lambda distance: 1 / (1 + distance),
}


class SqlvecVectorStore(BasePydanticVectorStore):
    """A table of the application, searched and written by LlamaIndex.

    E.g.::

        store = SqlvecVectorStore(
            engine, Doc, text_column="body", metadata_json_column="extra"
        )
        index = VectorStoreIndex.from_vector_store(store)
        index.as_retriever(
            vector_store_query_mode="hybrid",
            vector_store_kwargs={"relevance": "docs", "min_relevance": 0.5},
        )

    The table stays what it is: nothing is created, and columns that are not named here are left
    alone. A node is a row: its id is the primary key as text, its metadata are columns by their
    names, without those that are NULL. ``metadata_json_column`` takes the metadata without a
    column of their own and what else LlamaIndex knows of a node; without it, nodes come back as
    ``TextNode`` and know no other nodes but their document.

    Queries are of mode ``default``, ``text_search`` (or ``sparse``, the same), ``hybrid``, in
    which ``alpha`` is the weight of the vector and 1 - ``alpha`` that of words, and ``mmr``.
    Similarities are cosines, inner products, or 1 / (1 + distance), scores in the other modes,
    and probabilities where a relevance model is named.

    :param engine: an asynchronous engine serves the asynchronous methods only; a synchronous one
        serves both, the asynchronous ones in threads.
    :param entity: a model or a Table, with one column as primary key; of a type that takes the
        ids of LlamaIndex, text or uuid, where nodes are to be added.
    :param text_column: attribute, column or name, as of the next ones.
    :param vector_column: None is the only vector column that holds no codes.
    :param bm25_column: what words are searched in, where it is not ``text_column``.
    :param metadata_columns: None is all columns that hold neither text, vectors nor codes.
    :param metadata_json_column: jsonb column for everything else.
    :param ref_doc_column: column for the id of a node's document; None is in the jsonb column.
    :param metric: l2, inner_product, cosine or l1; None is the one that the model declares.
    :raises DeclarationError: the table cannot be used so.

    .. versionadded:: 0.1
    """

    stores_text: bool = True

    _documents: Documents = PrivateAttr()
    _client: Engine | AsyncEngine = PrivateAttr()
    _ref_doc: str | None = PrivateAttr()

    def __init__(
        self,
        engine: Engine | AsyncEngine,
        entity: Any,
        *,
        text_column: Any,
        vector_column: Any = None,
        bm25_column: Any = None,
        metadata_columns: Iterable[Any] | None = None,
        metadata_json_column: Any = None,
        ref_doc_column: Any = None,
        metric: str | None = None,
    ) -> None:
        super().__init__(stores_text=True)
        self._client = engine
        self._documents = Documents(
            engine,
            entity,
            text_column=text_column,
            vector_column=vector_column,
            bm25_column=bm25_column,
            metadata_columns=metadata_columns,
            metadata_json_column=metadata_json_column,
            metric=metric,
        )
        self._ref_doc = None if metadata_json_column is None else _REF_DOC
        if ref_doc_column is not None:
            self._ref_doc = self._documents.add_metadata_column(ref_doc_column)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex knows the class by."""
        return "SqlvecVectorStore"

    @property
    def client(self) -> Engine | AsyncEngine:
        """The engine."""
        return self._client

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Write nodes with their embeddings as rows, all or none; return their ids.

        :raises DeclarationError: metadata, an id or a document that the table cannot hold.
        """
        return self._documents.run(self._documents.write(self._written(nodes)))

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Do the same, asynchronously."""
        return await self._documents.arun(self._documents.write(self._written(nodes)))

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document."""
        self._documents.run(self._documents.delete(None, self._of_documents([ref_doc_id])))

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Do the same, asynchronously."""
        await self._documents.arun(self._documents.delete(None, self._of_documents([ref_doc_id])))

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Return the nodes that have these ids and pass the filters; all without either."""
        work = self._documents.get(node_ids, self._filter(filters))
        return list(map(self._node, self._documents.run(work)))

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Return the same, asynchronously."""
        work = self._documents.get(node_ids, self._filter(filters))
        return list(map(self._node, await self._documents.arun(work)))

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete the nodes that have these ids and pass the filters.

        :raises ValueError: neither is given; a table of the application is not emptied by leaving
            out an argument.
        """
        self._documents.run(self._deletion(node_ids, filters))

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Do the same, asynchronously."""
        await self._documents.arun(self._deletion(node_ids, filters))

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes that a query finds, best first; there may be none.

        :param kwargs: options of the search of the mode, :func:`~sqlvec.search.hybrid_search`
            where it has several legs or a relevance model is named, for example ``where`` and
            ``min_relevance``; ``mmr_prefetch_k`` is how many nodes mode ``mmr`` chooses from.
        :raises DeclarationError: the mode is not known, the query lacks what it needs, or a
            filter cannot be asked.
        """
        return self._result(self._documents.run(self._search(query, kwargs)))

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the same, asynchronously."""
        return self._result(await self._documents.arun(self._search(query, kwargs)))

    def _search(
        self, query: VectorStoreQuery, options: dict[str, Any]
    ) -> Callable[[Connection], list[tuple[Record, float]]]:
        """Return the work of a query."""
        documents = self._documents
        k = query.similarity_top_k
        if query.mode is VectorStoreQueryMode.HYBRID and query.hybrid_top_k is not None:
            k = query.hybrid_top_k
        options = {"k": k, **options, **self._criteria(query, options)}
        with_model = options.get("relevance") is not None
        match query.mode:
            case VectorStoreQueryMode.DEFAULT if not with_model:
                return self._nearest(query, options)
            case VectorStoreQueryMode.TEXT_SEARCH | VectorStoreQueryMode.SPARSE if not with_model:
                text_search = bm25_search(documents.table, _words(query), documents.bm25, **options)
                return documents.found(text_search, "score")
            case VectorStoreQueryMode.DEFAULT:
                shape: dict[str, Any] = {"vector": _vector(query)}
            case VectorStoreQueryMode.TEXT_SEARCH | VectorStoreQueryMode.SPARSE:
                shape = {"text": _words(query)}
            case VectorStoreQueryMode.HYBRID:
                shape = _hybrid(query)
            case VectorStoreQueryMode.MMR:
                shape = _different(query, options.pop("mmr_prefetch_k", None))
            case mode:
                raise DeclarationError(
                    f"query mode {mode.value!r} is not known; the modes are: default, "
                    "text_search, sparse, hybrid, mmr"
                )
        columns = {"text_column": documents.bm25, "vector_column": documents.vector}
        shape |= {"metric": documents.metric, **columns, **options}
        search = hybrid_search(documents.table, **shape)
        return documents.found(search, "relevance" if with_model else "score")

    def _nearest(
        self, query: VectorStoreQuery, options: dict[str, Any]
    ) -> Callable[[Connection], list[tuple[Record, float]]]:
        documents = self._documents
        options["metric"] = options.get("metric") or documents.known_metric
        search = vector_search(documents.table, _vector(query), documents.vector, **options)
        found = documents.found(search, "distance")
        similarity = _SIMILARITIES[options["metric"]]
        return lambda connection: [
            (record, similarity(distance)) for record, distance in found(connection)
        ]

    def _criteria(self, query: VectorStoreQuery, options: dict[str, Any]) -> dict[str, Any]:
        """Return ``filter`` and ``where`` of a search."""
        parts = [self._filter(query.filters), options.get("filter")]
        # An index over a store that keeps texts asks with empty lists for all nodes.
        if query.doc_ids:
            parts.append(self._of_documents(query.doc_ids))
        filter = {"$and": [part for part in parts if part]}
        where = options.get("where", ())
        if query.node_ids:
            where = [*(where if isinstance(where, list | tuple) else [where])]
            where.append(self._documents.among(query.node_ids))
        return {
            "filter": self._documents.conditions.of(filter) if filter["$and"] else None,
            "where": where,
        }

    def _of_documents(self, ref_doc_ids: list[str]) -> dict[str, Any]:
        return {self._known_ref_doc: {"$in": ref_doc_ids}}

    @property
    def _known_ref_doc(self) -> str:
        if self._ref_doc is None:
            raise DeclarationError(
                f"table {self._documents.table.fullname!r} has no place for the document of a "
                "node: name ref_doc_column or metadata_json_column"
            )
        return self._ref_doc

    def _filter(self, filters: MetadataFilters | None) -> dict[str, Any] | None:
        """Return filters of LlamaIndex as filter over metadata."""
        return None if filters is None else self._several(filters)

    def _several(self, filters: MetadataFilters) -> dict[str, Any]:
        parts = [
            self._several(each) if isinstance(each, MetadataFilters) else self._one(each)
            for each in filters.filters
        ]
        if not parts:
            return {}
        match filters.condition:
            case FilterCondition.OR:
                return {"$or": parts}
            case FilterCondition.NOT:
                return {"$not": {"$or": parts}}
        return {"$and": parts}

    def _one(self, filter: MetadataFilter) -> dict[str, Any]:
        """Return one condition that is never NULL, so that a NOT around it is the rest."""
        name, value = filter.key, filter.value
        match filter.operator:
            case FilterOperator.TEXT_MATCH | FilterOperator.TEXT_MATCH_INSENSITIVE:
                raise DeclarationError(
                    f"filter operator {filter.operator.value!r} cannot be asked of {name!r}: words "
                    "are searched by query mode text_search; parts of a column by a criterion of "
                    "SQLAlchemy, where=…"
                )
            case FilterOperator.IS_EMPTY:
                return self._empty(name)
            case FilterOperator.ANY if isinstance(value, list):
                choices = [{name: {"$contains": each}} for each in value]
                return (
                    {"$or": [self._present(name, each) for each in choices]} if choices else _NONE
                )
            case FilterOperator.NE | FilterOperator.NIN as operator:
                return {"$not": self._present(name, {name: {_NEGATED[operator]: value}})}
            case operator if operator in _OPERATORS:
                return self._present(name, {name: {_OPERATORS[operator]: value}})
        raise DeclarationError(
            f"filter operator {filter.operator.value!r} of {name!r} cannot be asked with {value!r}"
        )

    def _present(self, name: str, condition: dict[str, Any]) -> dict[str, Any]:
        """Return a condition that is false, and not unknown, where a column is NULL."""
        if name not in self._documents.metadata or condition == {name: {"$eq": None}}:
            return condition
        return {"$and": [condition, {name: {"$is_null": False}}]}

    def _empty(self, name: str) -> dict[str, Any]:
        missing = {name: {"$is_null": True}}
        column = self._documents.metadata.get(name)
        if column is None:
            return missing
        if isinstance(column.type, ARRAY):
            return {"$or": [missing, {name: {"$eq": []}}]}
        return {"$or": [missing, {name: {"$eq": ""}}]} if type_name(column.type) else missing

    def _deletion(
        self, node_ids: list[str] | None, filters: MetadataFilters | None
    ) -> Callable[[Connection], None]:
        filter = self._filter(filters)
        if node_ids is None and not filter:
            raise ValueError(
                "delete_nodes needs node_ids or filters; empty the table itself to delete all of "
                "its rows"
            )
        return self._documents.delete(node_ids, filter)

    def _written(self, nodes: Sequence[BaseNode]) -> list[Written]:
        return [Written(self._record(node), node.get_embedding()) for node in nodes]

    def _record(self, node: BaseNode) -> Record:
        metadata = dict(node.metadata)
        if self._documents.json_column is not None:
            known = node_to_metadata_dict(node, remove_text=True)
            # JSON has no dates; what has a column of its own needs none.
            own = {name for name in metadata if name in self._documents.metadata}
            metadata = {name: metadata[name] for name in own} | {
                name: value
                for name, value in known.items()
                if name in (_NODE_CONTENT, _NODE_TYPE) or name in metadata and name not in own
            }
        if node.ref_doc_id is not None:
            metadata[self._known_ref_doc] = node.ref_doc_id
        return Record(node.node_id, node.get_content(metadata_mode=MetadataMode.NONE), metadata)

    def _node(self, record: Record) -> BaseNode:
        metadata = dict(record.metadata)
        content = {name: metadata.pop(name, None) for name in (_NODE_CONTENT, _NODE_TYPE)}
        document = None if self._ref_doc is None else metadata.pop(self._ref_doc, None)
        if content[_NODE_CONTENT] is not None:
            node = metadata_dict_to_node(content, record.text)
            node.metadata = metadata
            return node
        plain = TextNode(id_=record.id, text=record.text, metadata=metadata)
        if document is not None:
            plain.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=str(document))
        return plain

    def _result(self, found: list[tuple[Record, float]]) -> VectorStoreQueryResult:
        nodes = [self._node(record) for record, _ in found]
        return VectorStoreQueryResult(
            nodes=nodes,
            similarities=[similarity for _, similarity in found],
            ids=[node.node_id for node in nodes],
        )


_NONE: dict[str, Any] = {"$not": {}}
"""What no row passes."""


def _vector(query: VectorStoreQuery) -> list[float]:
    if query.query_embedding is None:
        raise DeclarationError(f"a query of mode {query.mode.value!r} needs query_embedding")
    return query.query_embedding


def _words(query: VectorStoreQuery) -> str:
    if query.query_str is None:
        raise DeclarationError(f"a query of mode {query.mode.value!r} needs query_str")
    return query.query_str


def _hybrid(query: VectorStoreQuery) -> dict[str, Any]:
    shape: dict[str, Any] = {"text": _words(query), "vector": _vector(query)}
    if query.alpha is not None:
        shape["weights"] = {"text": 1 - query.alpha, "vector": query.alpha}
    if query.sparse_top_k is not None:
        shape["candidates"] = max(
            query.similarity_top_k, query.sparse_top_k, query.hybrid_top_k or 1
        )
    return shape


def _different(query: VectorStoreQuery, prefetch: int | None) -> dict[str, Any]:
    k = query.similarity_top_k
    threshold = 0.5 if query.mmr_threshold is None else query.mmr_threshold
    return {
        "vector": _vector(query),
        "candidates": max(k, 4 * k if prefetch is None else prefetch),
        "diversity": 1 - threshold,
        "fusion": "convex",
    }
