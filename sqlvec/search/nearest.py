"""Searches by distance. Each returns a plain ``Select``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, Unpack, overload

import numpy as np
from numpy.typing import NDArray
from pgvector import Bit, HalfVector, SparseVector, Vector
from sqlalchemy import Column, Select
from sqlalchemy.sql.elements import ClauseElement, ColumnElement
from sqlalchemy.sql.expression import FromClause

from sqlvec import functions
from sqlvec.errors import DeclarationError
from sqlvec.metrics import metric as find_metric
from sqlvec.search.hits import CommonOptions, Criteria, Search, criteria_arguments, steps
from sqlvec.search.target import Target
from sqlvec.types import type_name

_Model = TypeVar("_Model")

VectorQuery: TypeAlias = Sequence[float] | NDArray[Any] | Vector | HalfVector | ColumnElement[Any]
BitQuery: TypeAlias = str | Sequence[bool] | NDArray[np.bool_] | Bit | ColumnElement[Any]
SparseQuery: TypeAlias = SparseVector | ColumnElement[Any]

_VECTORS = ("vector", "halfvec")

_VECTOR_SEARCH = Search(functions.vector_search, functions.vector_search_keys, "distance")
_BIT_SEARCH = Search(functions.bit_search, functions.bit_search_keys, "distance")
_SPARSE_SEARCH = Search(functions.sparse_search, functions.sparse_search_keys, "distance")


class SearchOptions(CommonOptions, total=False):
    """What a search by distance can be told by keyword."""

    metric: str | None
    """None is what the column's codes or indexes are made for."""

    mode: str
    """``auto``, ``exact``, or the name of a derived column or an index; ``auto`` unless given."""


@overload
def vector_search(
    entity: type[_Model],
    query: VectorQuery,
    column: Any = None,
    **options: Unpack[SearchOptions],
) -> Select[_Model, float]: ...
@overload
def vector_search(
    entity: FromClause,
    query: VectorQuery,
    column: Any = None,
    **options: Unpack[SearchOptions],
) -> Select[*tuple[Any, ...]]: ...
def vector_search(
    entity: Any, query: VectorQuery, column: Any = None, **options: Unpack[SearchOptions]
) -> Any:
    """Select the k rows nearest to a vector, with their exact distances, nearest first.

    E.g.::

        stmt = vector_search(Doc, query, k=5, where=[Doc.tenant_id == 7])
        for doc, distance in session.execute(stmt.options(joinedload(Doc.author))):
            ...

    which renders ::

        SELECT doc.id, doc.body, …, anon_1.distance
        FROM doc JOIN sqlvec.vector_search_keys(
            rel => NULL::doc, column_name => :column, query => :query, key => CAST(NULL AS INTEGER),
            key_column => :key_column, mode => :mode, k => :k,
            where_sql => $where$doc.tenant_id = CAST(($1)[1] AS INTEGER)$where$,
            params => ARRAY[CAST(CAST(:tenant_id AS INTEGER) AS TEXT)]
        ) AS anon_1 ON doc.id = anon_1.key
        ORDER BY anon_1.distance, anon_1.key

    The result is an ordinary ``Select``. A later ``.where()`` filters the k hits and may leave
    fewer; criteria that the k hits must all meet go into ``where``. Tables with a composite
    primary key are searched through ``sqlvec.vector_search``.

    :param entity: a model, a Table, or an alias of either; of a Table the columns are selected.
    :param query: as many values as the column has dimensions.
    :param column: attribute, column or name; None is the only vector column that holds no codes.
    :param options: :class:`SearchOptions`; the metric is l2, inner_product, cosine or l1. The
        distance for inner_product is its negative.
    :raises DeclarationError: the entity, the column or the criteria cannot be searched so.

    .. seealso:: :func:`complete`, :func:`explain_search`

    .. versionadded:: 0.1
    """
    return _nearest(_VECTOR_SEARCH, _VECTORS, entity, vector_value(query), column, options)


@overload
def bit_search(
    entity: type[_Model], query: BitQuery, column: Any = None, **options: Unpack[SearchOptions]
) -> Select[_Model, float]: ...
@overload
def bit_search(
    entity: FromClause, query: BitQuery, column: Any = None, **options: Unpack[SearchOptions]
) -> Select[*tuple[Any, ...]]: ...
def bit_search(
    entity: Any, query: BitQuery, column: Any = None, **options: Unpack[SearchOptions]
) -> Any:
    """Select the k rows nearest to a bit string, with their distances, nearest first.

    E.g.::

        stmt = bit_search(Image, "0110…", metric="jaccard")

    Everything is as in :func:`vector_search`; the metric is hamming or jaccard.

    .. versionadded:: 0.1
    """
    return _nearest(_BIT_SEARCH, ("bit",), entity, _bit_value(query), column, options)


@overload
def sparse_search(
    entity: type[_Model], query: SparseQuery, column: Any = None, **options: Unpack[SearchOptions]
) -> Select[_Model, float]: ...
@overload
def sparse_search(
    entity: FromClause, query: SparseQuery, column: Any = None, **options: Unpack[SearchOptions]
) -> Select[*tuple[Any, ...]]: ...
def sparse_search(
    entity: Any, query: SparseQuery, column: Any = None, **options: Unpack[SearchOptions]
) -> Any:
    """Select the k rows nearest to a sparse vector, with their distances, nearest first.

    E.g.::

        stmt = sparse_search(Doc, SparseVector({7: 0.5}, 30_000), metric="inner_product")

    Everything is as in :func:`vector_search`.

    .. versionadded:: 0.1
    """
    return _nearest(_SPARSE_SEARCH, ("sparsevec",), entity, query, column, options)


def explain_search(
    entity: Any, query: VectorQuery, column: Any = None, **options: Unpack[SearchOptions]
) -> Select[str, str]:
    """Select what :func:`vector_search` would do with the same arguments, as (topic, detail).

    E.g.::

        for topic, detail in connection.execute(explain_search(Doc, query)):
            print(f"{topic}: {detail}")

    .. versionadded:: 0.1
    """
    target = Target.of(entity)
    searched = target.column(column, _VECTORS)
    arguments = _arguments(target, searched, **options)
    return steps(
        functions.explain_search(target.table, searched.name, vector_value(query), **arguments)
    )


def _nearest(
    search: Search,
    types: tuple[str, ...],
    entity: Any,
    query: Any,
    column: Any,
    options: SearchOptions,
) -> Any:
    target = Target.of(entity)
    searched = target.column(column, types)
    return search.select(target, searched.name, query, **_arguments(target, searched, **options))


def _arguments(
    target: Target,
    searched: Column[Any],
    *,
    k: int = 10,
    where: Criteria = (),
    filter: Mapping[str, Any] | None = None,
    metric: str | None = None,
    mode: str = "auto",
    candidates: int | None = None,
    oversample: float | None = None,
) -> dict[str, Any]:
    """Return the arguments of a search function that options stand for."""
    if metric is not None:
        find_metric(metric).opclass(type_name(searched.type) or "")
    return {
        "k": k,
        "metric": metric,
        "mode": mode,
        "candidates": candidates,
        "oversample": oversample,
        **criteria_arguments(target, where, filter),
    }


def vector_value(query: VectorQuery) -> Any:
    """Return a vector to be bound, checked; an expression stays what it is."""
    if isinstance(query, ClauseElement):
        return query
    values = query.to_list() if isinstance(query, Vector | HalfVector) else query
    array = np.asarray(values, dtype=np.float32)
    if array.ndim != 1:
        raise DeclarationError(f"the query is one vector, not an array of shape {array.shape}")
    return array


def _bit_value(query: BitQuery) -> Any:
    if isinstance(query, ClauseElement):
        return query
    bits = query if isinstance(query, Bit) else Bit(query)  # type: ignore[arg-type]
    return bits.to_text()
