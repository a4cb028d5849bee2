"""The public SQL functions of schema ``sqlvec`` as SQLAlchemy functions, under the same names.

E.g.::

    from sqlvec import functions

    select(functions.version())
    select(functions.encode("rotated", query, BIT(384)))

which render ``SELECT sqlvec.version()`` and
``SELECT sqlvec.encode(encoder => :encoder, x => :x, code => CAST(NULL AS BIT(384)))``. Importing
this module registers nothing with ``sqlalchemy.func``. An argument left None is left to the
server's default. For searches, :mod:`sqlvec.search` builds whole statements from these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    Double,
    Integer,
    LargeBinary,
    Table,
    Text,
    cast,
    literal,
    null,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL, TSQUERY
from sqlalchemy.orm import QueryableAttribute
from sqlalchemy.sql import coercions, roles
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.sql.selectable import NamedFromClause
from sqlalchemy.types import TypeEngine

from sqlvec.elements import NamedArg, NullRow, RegClass, WholeRow
from sqlvec.errors import DeclarationError
from sqlvec.types import BIT, HALFVEC, MULTIVECTOR, SPARSEVEC, VECTOR


class SqlvecFunction(GenericFunction[Any]):
    """A function of schema ``sqlvec``, called with named arguments."""

    _register = False
    inherit_cache = True

    def __init_subclass__(cls, **kw: Any) -> None:
        # Registered, they would take names such as func.version from everyone in the process.
        cls._register = False
        cls.inherit_cache = True
        super().__init_subclass__(**kw)

    def __init__(self, **arguments: ColumnElement[Any] | None) -> None:
        super().__init__(
            *(NamedArg(name, value) for name, value in arguments.items() if value is not None)
        )
        # GenericFunction leaves it empty, and would render the name without its schema.
        self.packagenames = ("sqlvec",)


def _value(value: Any, type_: TypeEngine[Any]) -> ColumnElement[Any] | None:
    """Bind a value; expressions, attributes of models and None stay what they are."""
    if isinstance(value, QueryableAttribute):
        return coercions.expect(roles.ExpressionElementRole, value)
    return value if value is None or isinstance(value, ColumnElement) else literal(value, type_)


def _row(hit: Any) -> ColumnElement[Any]:
    """Return the row of a model, table or alias; an expression stays what it is."""
    if isinstance(hit, ColumnElement):
        return hit
    table = coercions.expect(roles.FromClauseRole, hit)
    if not isinstance(table, NamedFromClause):
        raise DeclarationError(f"{hit!r} does not stand for one table, whose rows have a type")
    return WholeRow(table)


class version(SqlvecFunction):
    """Release of the installed schema."""

    type = Text()

    def __init__(self) -> None:
        super().__init__()


class encode(SqlvecFunction):
    """Code of a vector under an encoder of the catalog.

    :param encoder: its name.
    :param x: the vector.
    :param code: SQL type of the code, e.g. ``HALFVEC(64)``.
    """

    def __init__(self, encoder: Any, x: Any, code: TypeEngine[Any]) -> None:
        super().__init__(
            encoder=_value(encoder, Text()), x=_value(x, VECTOR()), code=cast(null(), code)
        )
        self.type = code


class _MaxSim(SqlvecFunction):
    """The arguments that every form of MaxSim has.

    :param tokens: the multi-vector of a document, mostly a column.
    :param query: the multi-vector of a query.
    """

    type = Double()
    query_type: ClassVar[TypeEngine[Any]] = MULTIVECTOR()

    def __init__(self, tokens: Any, query: Any, **more: ColumnElement[Any] | None) -> None:
        super().__init__(
            tokens=_value(tokens, self.query_type), query=_value(query, self.query_type), **more
        )


class maxsim(_MaxSim):
    """Sum over the query tokens of the largest inner product with a document token."""


class maxsim_vector(_MaxSim):
    """``maxsim`` in full precision."""

    query_type = MULTIVECTOR(None, "vector")


class maxsim_bit(_MaxSim):
    """``maxsim`` of bit strings, by the share of equal bits."""

    query_type = ARRAY(BIT(varying=True))


class maxsim_mean(_MaxSim):
    """``maxsim`` divided by the number of query tokens."""


class maxsim_nested(_MaxSim):
    """``maxsim`` of the first tokens of each side, for nested multi-vectors.

    :param query_tokens: how many of the query; None is all.
    :param document_tokens: how many of the document; None is all.
    """

    def __init__(
        self, tokens: Any, query: Any, query_tokens: Any = None, document_tokens: Any = None
    ) -> None:
        super().__init__(
            tokens,
            query,
            query_tokens=_value(query_tokens, Integer()),
            document_tokens=_value(document_tokens, Integer()),
        )


class maxsim_radius(_MaxSim):
    """``maxsim`` in which a document token counts only within a radius of the query token.

    :param radius: L2 distance at which a token counts for nothing.
    :param power: how the similarity falls with the distance d, (1 - (d/radius)^p)^(1/p).
    """

    def __init__(self, tokens: Any, query: Any, radius: Any, power: Any = None) -> None:
        super().__init__(
            tokens, query, radius=_value(radius, Double()), power=_value(power, Double())
        )


class _FixedDimensional(SqlvecFunction):
    """The arguments that both sides of a fixed dimensional encoding have.

    :param encoder: name of an encoder of kind ``fde`` in the catalog.
    :param tokens: a multi-vector.
    """

    type: TypeEngine[Any] = HALFVEC()

    def __init__(self, encoder: Any, tokens: Any) -> None:
        super().__init__(encoder=_value(encoder, Text()), tokens=_value(tokens, MULTIVECTOR()))


class fde_document(_FixedDimensional):
    """Code of the multi-vector of a document."""


class fde_query(_FixedDimensional):
    """Code of the multi-vector of a query."""


class fde_document_bits(_FixedDimensional):
    """Signs of the code of a document, under an encoder with option ``bits``."""

    type = BIT(varying=True)


class fde_query_bits(_FixedDimensional):
    """Signs of the code of a query, under an encoder with option ``bits``."""

    type = BIT(varying=True)


class carve(SqlvecFunction):
    """Query tokens with those that point the same way added up (ball carving).

    :param query: the multi-vector of a query.
    :param threshold: cosine from which on tokens go together, 0 to 1.
    """

    type = MULTIVECTOR()

    def __init__(self, query: Any, threshold: Any) -> None:
        super().__init__(query=_value(query, MULTIVECTOR()), threshold=_value(threshold, Double()))


class pool(SqlvecFunction):
    """Fewer vectors for the multi-vector of a document.

    :param encoder: name of a pooling encoder in the catalog.
    :param tokens: the multi-vector.
    :param weights: one number for each token, for method ``top``.
    """

    type = MULTIVECTOR()

    def __init__(self, encoder: Any, tokens: Any, weights: Any = None) -> None:
        super().__init__(
            encoder=_value(encoder, Text()),
            tokens=_value(tokens, MULTIVECTOR()),
            weights=_value(weights, ARRAY(REAL())),
        )


class centroid_codes(SqlvecFunction):
    """One byte per token of a multi-vector: the number of its nearest centroid.

    :param encoder: name of an encoder of kind ``centroid`` in the catalog.
    :param tokens: a multi-vector.
    """

    type = LargeBinary()

    def __init__(self, encoder: Any, tokens: Any) -> None:
        super().__init__(encoder=_value(encoder, Text()), tokens=_value(tokens, MULTIVECTOR()))


class centroid_decode(SqlvecFunction):
    """The centroids that codes stand for.

    :param encoder: name of an encoder of kind ``centroid`` in the catalog.
    :param codes: as ``centroid_codes`` makes them, mostly a column.
    """

    type = MULTIVECTOR(None, "vector")

    def __init__(self, encoder: Any, codes: Any) -> None:
        super().__init__(encoder=_value(encoder, Text()), codes=_value(codes, LargeBinary()))


class centroid_bits(SqlvecFunction):
    """Codes of centroids as bit strings, for ``maxsim_bit``.

    :param codes: as ``centroid_codes`` makes them, mostly a column.
    :param bits: of each, 1 to 8; ceil(log2 K) for K centroids. None is 8.
    """

    type = ARRAY(BIT(varying=True))

    def __init__(self, codes: Any, bits: Any = None) -> None:
        super().__init__(codes=_value(codes, LargeBinary()), bits=_value(bits, Integer()))


class centroid_table(SqlvecFunction):
    """The multi-vector of a query prepared for ``maxsim_centroid``.

    :param encoder: name of an encoder of kind ``centroid`` in the catalog.
    :param query: the multi-vector of a query.
    """

    def __init__(self, encoder: Any, query: Any) -> None:
        super().__init__(encoder=_value(encoder, Text()), query=_value(query, MULTIVECTOR()))


class maxsim_centroid(SqlvecFunction):
    """``maxsim`` against the centroids that codes stand for.

    :param codes: as ``centroid_codes`` makes them, mostly a column.
    :param query: a :class:`centroid_table` under the same encoder, which is computed once.
    """

    type = Double()

    def __init__(self, codes: Any, query: ColumnElement[Any]) -> None:
        # Beside a column the server would compute the table anew for every row.
        once = query.select().scalar_subquery() if isinstance(query, centroid_table) else query
        super().__init__(codes=_value(codes, LargeBinary()), query=once)


class hubness_query(SqlvecFunction):
    """The query for a search on a column that corrects hubs: at unit length, and 1.

    :param query: a vector.
    """

    type = VECTOR()

    def __init__(self, query: Any) -> None:
        super().__init__(query=_value(query, VECTOR()))


class expand(SqlvecFunction):
    """Rows that the edges of a graph lead to from some rows, with their scores.

    E.g.::

        found = expand(edges, [7, 9], [0.8, 0.7]).table_valued("key", "score", "hop")
        select(Doc, found.c.score).join(found, found.c.key == Doc.id)

    :param edges: the Table with columns key, neighbour and weight.
    :param keys: of the rows to begin with, a sequence or an expression.
    :param scores: one for each, the larger the better.
    :param hops: edges to follow, 0 to 2; None is the server's default, as are the next three.
    :param decay: what every edge multiplies a score by, above 0 and up to 1.
    :param limit_edges: of each row, the heaviest.
    :param blend: share of the score of a row to begin with that comes from the others, 0 to 1.
    """

    def __init__(
        self,
        edges: Table,
        keys: Any,
        scores: Any,
        hops: Any = None,
        decay: Any = None,
        limit_edges: Any = None,
        blend: Any = None,
    ) -> None:
        super().__init__(
            edges=RegClass(edges),
            keys=_value(keys, ARRAY(edges.c.key.type)),
            scores=_value(scores, ARRAY(Double())),
            hops=_value(hops, Integer()),
            decay=_value(decay, Double()),
            limit_edges=_value(limit_edges, Integer()),
            blend=_value(blend, Double()),
        )


class plan_index(SqlvecFunction):
    """Indexes that would serve searches on a column, as rows with their CREATE INDEX."""

    def __init__(self, rel: Table, column_name: Any, metric: Any = None) -> None:
        super().__init__(
            rel=RegClass(rel),
            column_name=_value(column_name, Text()),
            metric=_value(metric, Text()),
        )


class SearchFunction(SqlvecFunction):
    """The arguments that every search has.

    :param rel: the table.
    :param k: rows to return, 1 to 10,000.
    :param filter: JSON criteria over the columns.
    :param where_sql: SQL criteria over the bare table name, reading values as ``($1)[i]``.
    :param params: those values, as text.
    :param candidates: rows to rescore, or of each leg of a hybrid search.
    :param oversample: the same as a multiple of k.
    :param more: what only some searches have, in the order of the function.
    """

    def __init__(
        self,
        rel: Table,
        *,
        k: Any = None,
        filter: Any = None,
        where_sql: Any = None,
        params: ColumnElement[Any] | Sequence[str | None] | None = None,
        candidates: Any = None,
        oversample: Any = None,
        **more: ColumnElement[Any] | None,
    ) -> None:
        super().__init__(
            rel=NullRow(rel),
            **more,
            k=_value(k, Integer()),
            filter=_value(filter, JSONB()),
            where_sql=_value(where_sql, Text()),
            params=_value(params, ARRAY(Text())),
            candidates=_value(candidates, Integer()),
            oversample=_value(oversample, Double()),
        )


class RowSearch(SearchFunction):
    """A search of one column.

    :param column_name: the column to search.
    :param query: what to search for.
    """

    query_type: ClassVar[TypeEngine[Any]]

    def __init__(self, rel: Table, column_name: Any, query: Any, **arguments: Any) -> None:
        super().__init__(
            rel,
            column_name=_value(column_name, Text()),
            query=_value(query, self.query_type),
            **arguments,
        )


class KeySearch(RowSearch):
    """A search that answers keys instead of rows.

    :param key: SQL type of the key.
    :param key_column: None is the primary key.
    """

    def __init__(
        self,
        rel: Table,
        column_name: Any,
        query: Any,
        key: TypeEngine[Any],
        *,
        key_column: Any = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            rel,
            column_name,
            query,
            # In its place in the declaration: Postgres takes the type of the result from there,
            # also where the argument is named.
            key=cast(null(), key),
            key_column=_value(key_column, Text()),
            **arguments,
        )


class NearestSearch(RowSearch):
    """A search by distance.

    :param metric: None is the one that the column's codes or indexes are made for.
    :param mode: ``auto``, ``exact``, or the name of a derived column or an index.
    """

    def __init__(
        self,
        rel: Table,
        column_name: Any,
        query: Any,
        *,
        metric: Any = None,
        mode: Any = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            rel,
            column_name,
            query,
            **arguments,
            metric=_value(metric, Text()),
            mode=_value(mode, Text()),
        )


class TextSearch(RowSearch):
    """A search by the words of a text.

    :param column_name: the text column, or the one of its weights; a NULL is the only one.
    :param tenant: value of the tenant column, as text.
    :param backend: ``auto``, ``sqlvec``, ``pg_textsearch``, ``paradedb`` or ``vchord_bm25``.
    """

    query_type = Text()

    def __init__(
        self,
        rel: Table,
        column_name: Any,
        query: Any,
        *,
        tenant: Any = None,
        backend: Any = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            rel,
            column_name,
            query,
            **arguments,
            tenant=_value(tenant, Text()),
            backend=_value(backend, Text()),
        )


class TokenSearch(RowSearch):
    """A search by MaxSim.

    :param query: the multi-vector of the query.
    :param mode: ``auto``, ``exact``, or the name of an encoding or of its index.
    :param recall: expected share of the true k best, above 0 to 1.
    :param pooled: ``auto``, ``none``, or the name of a column of pooled tokens.
    :param carve: cosine from which on query tokens go together while candidates are compared.
    :param rescore: False answers the candidates with estimates for scores.
    """

    query_type = MULTIVECTOR()

    def __init__(
        self,
        rel: Table,
        column_name: Any,
        query: Any,
        *,
        mode: Any = None,
        recall: Any = None,
        pooled: Any = None,
        carve: Any = None,
        rescore: Any = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            rel,
            column_name,
            query,
            **arguments,
            mode=_value(mode, Text()),
            recall=_value(recall, Double()),
            pooled=_value(pooled, Text()),
            carve=_value(carve, Double()),
            rescore=_value(rescore, Boolean()),
        )


class vector_search(NearestSearch):
    """Nearest rows of a vector or halfvec column, as (hit, distance, complete)."""

    query_type = VECTOR()


class vector_search_keys(KeySearch, NearestSearch):
    """Nearest rows of a vector or halfvec column, as (key, distance, complete)."""

    query_type = VECTOR()


class bit_search(NearestSearch):
    """Nearest rows of a bit column, as (hit, distance, complete)."""

    query_type = BIT(varying=True)  # plain BIT is BIT(1)


class bit_search_keys(KeySearch, NearestSearch):
    """Nearest rows of a bit column, as (key, distance, complete)."""

    query_type = BIT(varying=True)


class sparse_search(NearestSearch):
    """Nearest rows of a sparsevec column, as (hit, distance, complete)."""

    query_type = SPARSEVEC()


class sparse_search_keys(KeySearch, NearestSearch):
    """Nearest rows of a sparsevec column, as (key, distance, complete)."""

    query_type = SPARSEVEC()


class explain_search(NearestSearch):
    """What ``vector_search`` would do with the same arguments, as (topic, detail)."""

    query_type = VECTOR()


class bm25_search(TextSearch):
    """Rows that match words best, as (hit, score, complete)."""


class bm25_search_keys(KeySearch, TextSearch):
    """Rows that match words best, as (key, score, complete)."""


class explain_bm25_search(TextSearch):
    """What ``bm25_search`` would do with the same arguments, as (topic, detail)."""


class maxsim_search(TokenSearch):
    """Rows with the highest MaxSim, as (hit, score, complete)."""


class maxsim_search_keys(KeySearch, TokenSearch):
    """Rows with the highest MaxSim, as (key, score, complete)."""


class explain_maxsim_search(TokenSearch):
    """What ``maxsim_search`` would do with the same arguments, as (topic, detail)."""


class HybridSearch(SearchFunction):
    """A search by words, by a vector, by a multi-vector, or by several of these.

    :param query_text: words, in the language of ``bm25_search``.
    :param query_vector: vector to compare with.
    :param query_tokens: multi-vector to compare with.
    :param fusion: ``rrf``, ``convex``, ``dbsf`` or ``relevance``.
    :param weights: weight of each leg.
    :param relevance: name of a relevance model.
    :param min_relevance: rows below are cut, 0 to 1.
    :param autocut: jumps of the score to cut before.
    :param min_results: rows that no cut takes.
    :param text_column: text or BM25 column; None is the only one, as for the next two.
    :param vector_column: vector or halfvec column.
    :param tokens_column: multi-vector column.
    :param metric: of the vector leg.
    :param mode: ``auto`` or ``exact``.
    :param tenant: value of the tenant column of the text leg, as text.
    :param backend: of the text leg.
    :param rrf_k: constant of ``rrf``.
    :param group_column: column of whose values the best rows are kept.
    :param group_size: how many of each.
    :param diversity: 0 to 1, how much rows are to differ.
    """

    def __init__(
        self,
        rel: Table,
        *,
        query_text: Any = None,
        query_vector: Any = None,
        query_tokens: Any = None,
        fusion: Any = None,
        weights: Any = None,
        relevance: Any = None,
        min_relevance: Any = None,
        autocut: Any = None,
        min_results: Any = None,
        text_column: Any = None,
        vector_column: Any = None,
        tokens_column: Any = None,
        metric: Any = None,
        mode: Any = None,
        tenant: Any = None,
        backend: Any = None,
        rrf_k: Any = None,
        group_column: Any = None,
        group_size: Any = None,
        diversity: Any = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            rel,
            **arguments,
            query_text=_value(query_text, Text()),
            query_vector=_value(query_vector, VECTOR()),
            query_tokens=_value(query_tokens, MULTIVECTOR()),
            fusion=_value(fusion, Text()),
            weights=_value(weights, JSONB()),
            relevance=_value(relevance, Text()),
            min_relevance=_value(min_relevance, Double()),
            autocut=_value(autocut, Integer()),
            min_results=_value(min_results, Integer()),
            text_column=_value(text_column, Text()),
            vector_column=_value(vector_column, Text()),
            tokens_column=_value(tokens_column, Text()),
            metric=_value(metric, Text()),
            mode=_value(mode, Text()),
            tenant=_value(tenant, Text()),
            backend=_value(backend, Text()),
            rrf_k=_value(rrf_k, Integer()),
            group_column=_value(group_column, Text()),
            group_size=_value(group_size, Integer()),
            diversity=_value(diversity, Double()),
        )


class hybrid_search(HybridSearch):
    """Rows that several searches find, as (hit, score, relevance, scores and ranks, complete)."""


class hybrid_search_keys(HybridSearch):
    """Keys of the rows that several searches find, as (key, score, …, complete).

    :param key: SQL type of the key.
    :param key_column: None is the primary key.
    """

    def __init__(
        self, rel: Table, key: TypeEngine[Any], *, key_column: Any = None, **arguments: Any
    ) -> None:
        super().__init__(
            rel, key=cast(null(), key), key_column=_value(key_column, Text()), **arguments
        )


class explain_hybrid_search(HybridSearch):
    """What ``hybrid_search`` does with the same arguments, as (topic, detail)."""


class rrf(SqlvecFunction):
    """What a rank adds to a score of reciprocal rank fusion: 1 / (k + rank).

    :param rank: from 1; NULL stays NULL.
    :param k: the constant, 60 unless given.
    """

    type = Double()

    def __init__(self, rank: Any, k: Any = None) -> None:
        super().__init__(rank=_value(rank, BigInteger()), k=_value(k, Integer()))


class bm25_score(SqlvecFunction):
    """Score of a row for a query, the same as ``bm25_search`` gives it.

    :param hit: a model, a table or an alias that the statement selects from, or a row.
    :param column_name: the text column, or the one of its weights.
    :param query: words, in the language of ``bm25_search``.
    :param tenant: value of the tenant column, as text.
    """

    type = Double()

    def __init__(self, hit: Any, column_name: Any, query: Any, tenant: Any = None) -> None:
        super().__init__(
            hit=_row(hit),
            column_name=_value(column_name, Text()),
            query=_value(query, Text()),
            tenant=_value(tenant, Text()),
        )


class bm25_headline(SqlvecFunction):
    """Passages of a row that match a query, with the words marked.

    :param hit: a model, a table or an alias that the statement selects from, or a row.
    :param column_name: the text column to show.
    :param query: words, in the language of ``bm25_search``.
    :param options: of ``ts_headline``, e.g. ``"MaxWords=20, StartSel=<mark>, StopSel=</mark>"``.
    """

    type = Text()

    def __init__(self, hit: Any, column_name: Any, query: Any, options: Any = None) -> None:
        super().__init__(
            hit=_row(hit),
            column_name=_value(column_name, Text()),
            query=_value(query, Text()),
            options=_value(options, Text()),
        )


class bm25_tsquery(SqlvecFunction):
    """What a document must match to be found, as a ``tsquery``.

    :param rel: the table.
    :param column_name: the text column, or the one of its weights.
    :param query: words, in the language of ``bm25_search``.
    """

    type = TSQUERY()

    def __init__(self, rel: Table, column_name: Any, query: Any) -> None:
        super().__init__(
            rel=NullRow(rel),
            column_name=_value(column_name, Text()),
            query=_value(query, Text()),
        )


class bm25_query(SqlvecFunction):
    """Weights of the terms of a query; ``-(weights of a document <#> these)`` is its score.

    :param rel: the table.
    :param column_name: the text column, or the one of its weights.
    :param query: words, in the language of ``bm25_search``.
    :param tenant: value of the tenant column, as text.
    """

    type = SPARSEVEC()

    def __init__(self, rel: Table, column_name: Any, query: Any, tenant: Any = None) -> None:
        super().__init__(
            rel=NullRow(rel),
            column_name=_value(column_name, Text()),
            query=_value(query, Text()),
            tenant=_value(tenant, Text()),
        )


class bm25_maximum(SqlvecFunction):
    """The score that no document can exceed for a query.

    :param rel: the table.
    :param column_name: the text column, or the one of its weights.
    :param query: words, in the language of ``bm25_search``.
    :param tenant: value of the tenant column, as text.
    """

    type = Double()

    def __init__(self, rel: Table, column_name: Any, query: Any, tenant: Any = None) -> None:
        super().__init__(
            rel=NullRow(rel),
            column_name=_value(column_name, Text()),
            query=_value(query, Text()),
            tenant=_value(tenant, Text()),
        )


class _OfModel(SqlvecFunction):
    """A function of a relevance model.

    :param model: its name.
    """

    type = Double()

    def __init__(self, model: Any, **more: ColumnElement[Any] | None) -> None:
        super().__init__(model=_value(model, Text()), **more)


class relevance_parameters(_OfModel):
    """Curve of a query vector, as (slope, intercept, exponent).

    :param query: the query vector.
    """

    def __init__(self, model: Any, query: Any) -> None:
        super().__init__(model, query=_value(query, VECTOR()))


class relevance(_OfModel):
    """Probability that a row is relevant, from its cosine to the query.

    :param query: the query vector.
    :param cosine: 1 less the cosine distance.
    """

    def __init__(self, model: Any, query: Any, cosine: Any) -> None:
        super().__init__(model, query=_value(query, VECTOR()), cosine=_value(cosine, Double()))


class relevance_bound(_OfModel):
    """Cosine distance up to which rows have a relevance.

    :param query: the query vector.
    :param min_relevance: the wanted relevance, 0 to 1.
    """

    def __init__(self, model: Any, query: Any, min_relevance: Any) -> None:
        super().__init__(
            model,
            query=_value(query, VECTOR()),
            min_relevance=_value(min_relevance, Double()),
        )


class _OfScore(_OfModel):
    """A function of a relevance model for text or multi-vectors.

    :param maximum: the best score that the query can have.
    :param terms: how many words it has.
    """

    def __init__(
        self, model: Any, maximum: Any, terms: Any = None, **more: ColumnElement[Any] | None
    ) -> None:
        super().__init__(
            model, maximum=_value(maximum, Double()), terms=_value(terms, Integer()), **more
        )


class relevance_score_parameters(_OfScore):
    """Curve of a text or multi-vector query, as (slope, intercept, exponent)."""


class relevance_score(_OfScore):
    """Probability that a row is relevant, from its BM25 or MaxSim score.

    :param score: the score.
    """

    def __init__(self, model: Any, score: Any, maximum: Any, terms: Any = None) -> None:
        super().__init__(model, maximum, terms, score=_value(score, Double()))


class relevance_score_bound(_OfScore):
    """BM25 or MaxSim score from which on rows have a relevance.

    :param min_relevance: the wanted relevance, 0 to 1.
    """

    def __init__(self, model: Any, maximum: Any, min_relevance: Any, terms: Any = None) -> None:
        super().__init__(model, maximum, terms, min_relevance=_value(min_relevance, Double()))


class relevance_at(SqlvecFunction):
    """Relevance of a score on a curve.

    :param slope: of the curve, like the next two.
    :param intercept: as returned by ``relevance_parameters``.
    :param exponent: likewise.
    :param x: cosine, or share of the maximum.
    """

    type = Double()

    def __init__(self, slope: Any, intercept: Any, exponent: Any, x: Any) -> None:
        super().__init__(
            slope=_value(slope, Double()),
            intercept=_value(intercept, Double()),
            exponent=_value(exponent, Double()),
            x=_value(x, Double()),
        )


class relevance_fused(_OfModel):
    """Probability that a row is relevant, from those of the legs.

    :param vector_relevance: of the vector leg; None or NULL is a leg that did not find the row.
    :param text_relevance: of the text leg.
    :param tokens_relevance: of the multi-vector leg.
    """

    def __init__(
        self,
        model: Any,
        vector_relevance: Any = None,
        text_relevance: Any = None,
        tokens_relevance: Any = None,
    ) -> None:
        super().__init__(
            model,
            vector_relevance=_value(vector_relevance, Double()),
            text_relevance=_value(text_relevance, Double()),
            tokens_relevance=_value(tokens_relevance, Double()),
        )


class relevance_threshold(_OfModel):
    """Relevance that keeps a share of what is relevant.

    :param recall: the share, one of those that the model was fitted for.
    """

    def __init__(self, model: Any, recall: Any = None) -> None:
        super().__init__(model, recall=_value(recall, Double()))


class autocut(SqlvecFunction):
    """How many rows of a list to keep by the jumps in its scores.

    :param scores: scores or distances, best first.
    :param jumps: the rows before this jump are kept.
    """

    type = Integer()

    def __init__(self, scores: Any, jumps: Any = None) -> None:
        super().__init__(scores=_value(scores, ARRAY(Double())), jumps=_value(jumps, Integer()))


class mmr(SqlvecFunction):
    """Hits that are relevant and differ from each other, as rows (position, score).

    :param vectors: of the hits, mostly an ``array_agg``.
    :param relevance: one number for each, on the scale of a cosine.
    :param k: hits to choose, 1 to 10,000.
    :param diversity: weight of the difference from what was chosen before, 0 to 1.
    """

    def __init__(self, vectors: Any, relevance: Any, k: Any = None, diversity: Any = None) -> None:
        super().__init__(
            vectors=_value(vectors, MULTIVECTOR(None, "vector")),
            relevance=_value(relevance, ARRAY(Double())),
            k=_value(k, Integer()),
            diversity=_value(diversity, Double()),
        )


class compress(SqlvecFunction):
    """Hits that stand for all of them, as rows (position, score).

    :param vectors: of the hits, at most 1,000, mostly an ``array_agg``.
    :param k: hits to choose.
    :param relevance: one number for each, 0 to 1; None when all count the same.
    :param coverage: weight of how near every hit is to one chosen, 0 to 1.
    :param diversity: weight of the difference between those chosen; what the two leave of 1 is
        the weight of relevance.
    """

    def __init__(
        self,
        vectors: Any,
        k: Any = None,
        relevance: Any = None,
        coverage: Any = None,
        diversity: Any = None,
    ) -> None:
        super().__init__(
            vectors=_value(vectors, MULTIVECTOR(None, "vector")),
            k=_value(k, Integer()),
            relevance=_value(relevance, ARRAY(Double())),
            coverage=_value(coverage, Double()),
            diversity=_value(diversity, Double()),
        )


class refine(SqlvecFunction):
    """Order of hits by what they and their neighbours among the hits are like.

    Its rows are (position, score), one for each hit.

    :param query: the query vector.
    :param vectors: of the hits, at most 1,000, mostly an ``array_agg``.
    :param neighbours: how many of the nearest hits a hit is averaged with.
    :param beta: weight of a neighbour with cosine 1, 0 to 1; the hit itself has weight 1.
    :param expand: rank half by an expanded query as well.
    """

    def __init__(
        self,
        query: Any,
        vectors: Any,
        neighbours: Any = None,
        beta: Any = None,
        expand: Any = None,
    ) -> None:
        super().__init__(
            query=_value(query, VECTOR()),
            vectors=_value(vectors, MULTIVECTOR(None, "vector")),
            neighbours=_value(neighbours, Integer()),
            beta=_value(beta, Double()),
            expand=_value(expand, Boolean()),
        )


class average(SqlvecFunction):
    """The mean of vectors, for a query made of several.

    :param vectors: shape (n, d).
    :param unit: whether it is the mean of their directions, at length 1.
    """

    type = VECTOR()

    def __init__(self, vectors: Any, unit: Any = None) -> None:
        super().__init__(
            vectors=_value(vectors, MULTIVECTOR(None, "vector")),
            unit=_value(unit, Boolean()),
        )


class best_per_group(SqlvecFunction):
    """The best hits of each group, as rows (position, score).

    :param groups: the group of each hit, as text.
    :param scores: one number for each hit, the larger the better.
    :param k: hits to return, 1 to 10,000.
    :param per_group: how many of one group at most.
    """

    def __init__(self, groups: Any, scores: Any, k: Any = None, per_group: Any = None) -> None:
        super().__init__(
            groups=_value(groups, ARRAY(Text())),
            scores=_value(scores, ARRAY(Double())),
            k=_value(k, Integer()),
            per_group=_value(per_group, Integer()),
        )


class boolean_relevance(SqlvecFunction):
    """Relevance to a question made of several, combined by AND, OR and NOT.

    :param expression: e.g. ``{"and": [1, {"not": 2}]}``; numbers are positions, from 1.
    :param relevance: to each of the questions, 0 to 1.
    :param combine: ``product`` or ``minimum``.
    """

    type = Double()

    def __init__(self, expression: Any, relevance: Any, combine: Any = None) -> None:
        super().__init__(
            expression=_value(expression, JSONB()),
            relevance=_value(relevance, ARRAY(Double())),
            combine=_value(combine, Text()),
        )


class BooleanSearch(SearchFunction):
    """A search by several vectors, combined by AND, OR and NOT.

    :param column_name: the column to search.
    :param queries: vectors, shape (n, d).
    :param expression: e.g. ``{"and": [1, {"not": 2}]}``; numbers are positions in queries, from 1.
    :param relevance: name of the relevance model of the column.
    :param min_relevance: rows below are cut, 0 to 1.
    :param mode: ``auto``, ``exact``, or the name of a derived column or an index.
    :param combine: ``product`` or ``minimum``.
    """

    def __init__(
        self,
        rel: Table,
        column_name: Any,
        queries: Any,
        expression: Any,
        *,
        relevance: Any,
        min_relevance: Any = None,
        mode: Any = None,
        combine: Any = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            rel,
            column_name=_value(column_name, Text()),
            queries=_value(queries, MULTIVECTOR(None, "vector")),
            expression=_value(expression, JSONB()),
            **arguments,
            relevance=_value(relevance, Text()),
            min_relevance=_value(min_relevance, Double()),
            mode=_value(mode, Text()),
            combine=_value(combine, Text()),
        )


class boolean_search(BooleanSearch):
    """Rows by their relevance to several vectors, as (hit, relevance, complete)."""


class boolean_search_keys(BooleanSearch):
    """Keys of the rows that ``boolean_search`` finds, as (key, relevance, complete).

    :param key: SQL type of the key.
    :param key_column: None is the primary key.
    """

    def __init__(
        self,
        rel: Table,
        column_name: Any,
        queries: Any,
        expression: Any,
        key: TypeEngine[Any],
        *,
        key_column: Any = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            rel,
            column_name,
            queries,
            expression,
            key=cast(null(), key),
            key_column=_value(key_column, Text()),
            **arguments,
        )
