"""The searches. Each returns a plain ``Select``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from pgvector import Bit, HalfVector, SparseVector, Vector
from sqlalchemy import Boolean, Double, Select, Text, and_, select
from sqlalchemy import column as sql_column
from sqlalchemy.sql import coercions, roles
from sqlalchemy.sql.elements import ClauseElement, ColumnElement
from sqlalchemy.sql.expression import TableValuedAlias
from sqlalchemy.types import NullType

from sqlvec import functions
from sqlvec.elements import Field
from sqlvec.errors import DeclarationError
from sqlvec.metrics import metric as find_metric
from sqlvec.search.criteria import split
from sqlvec.search.target import Target
from sqlvec.types import type_name

_Model = TypeVar("_Model")

VectorQuery: TypeAlias = Sequence[float] | NDArray[Any] | Vector | HalfVector | ColumnElement[Any]
BitQuery: TypeAlias = str | Sequence[bool] | NDArray[np.bool_] | Bit | ColumnElement[Any]
SparseQuery: TypeAlias = SparseVector | ColumnElement[Any]
Criteria: TypeAlias = ColumnElement[bool] | Iterable[ColumnElement[bool]]


def vector_search(
    entity: type[_Model],
    query: VectorQuery,
    column: Any = None,
    *,
    k: int = 10,
    where: Criteria = (),
    metric: str | None = None,
    mode: str = "auto",
    candidates: int | None = None,
    oversample: float | None = None,
) -> Select[_Model, float]:
    """Select the k rows nearest to a vector, with their exact distances, nearest first.

    E.g.::

        stmt = vector_search(Doc, query, k=5, where=[Doc.tenant_id == 7])
        for doc, distance in session.execute(stmt.options(joinedload(Doc.author))):
            ...

    which renders ::

        SELECT doc.id, doc.body, …, anon_1.distance
        FROM doc JOIN sqlvec.vector_search_keys(
            rel => NULL::doc, column_name => :column, query => :query, key => CAST(NULL AS INTEGER),
            key_column => :key_column, k => :k,
            where_sql => $where$doc.tenant_id = CAST(($1)[1] AS INTEGER)$where$,
            params => ARRAY[CAST(CAST(:tenant_id AS INTEGER) AS TEXT)], mode => :mode
        ) AS anon_1 ON doc.id = anon_1.key
        ORDER BY anon_1.distance, anon_1.key

    The result is an ordinary ``Select``. A later ``.where()`` filters the k hits and may leave
    fewer; criteria that the k hits must all meet go into ``where``. Tables with a composite
    primary key are searched through ``sqlvec.vector_search``.

    :param entity: a model, a Table, or an alias of either; of a Table the columns are selected.
    :param query: as many values as the column has dimensions.
    :param column: attribute, column or name; None is the only vector column that holds no codes.
    :param k: rows to return, 1 to 10,000.
    :param where: criteria that are applied while candidates are found. They may use subqueries;
        their values are bound.
    :param metric: l2, inner_product, cosine or l1; None is what the column's codes or indexes are
        made for. The distance for inner_product is its negative.
    :param mode: ``auto``, ``exact``, or the name of a derived column or an index.
    :param candidates: rows to rescore, k to 1,000,000.
    :param oversample: the same as a multiple of k, 1 to 1,000.
    :raises DeclarationError: the entity, the column or the criteria cannot be searched so.

    .. versionadded:: 0.1
    """
    return _nearest(
        (functions.vector_search, functions.vector_search_keys),
        ("vector", "halfvec"),
        entity,
        _vector_value(query),
        column,
        where,
        k=k,
        metric=metric,
        mode=mode,
        candidates=candidates,
        oversample=oversample,
    )


def bit_search(
    entity: type[_Model],
    query: BitQuery,
    column: Any = None,
    *,
    k: int = 10,
    where: Criteria = (),
    metric: str | None = None,
    mode: str = "auto",
    candidates: int | None = None,
    oversample: float | None = None,
) -> Select[_Model, float]:
    """Select the k rows nearest to a bit string, with their distances, nearest first.

    E.g.::

        stmt = bit_search(Image, "0110…", metric="jaccard")

    Everything else is as in :func:`vector_search`.

    :param metric: hamming or jaccard.

    .. versionadded:: 0.1
    """
    return _nearest(
        (functions.bit_search, functions.bit_search_keys),
        ("bit",),
        entity,
        _bit_value(query),
        column,
        where,
        k=k,
        metric=metric,
        mode=mode,
        candidates=candidates,
        oversample=oversample,
    )


def sparse_search(
    entity: type[_Model],
    query: SparseQuery,
    column: Any = None,
    *,
    k: int = 10,
    where: Criteria = (),
    metric: str | None = None,
    mode: str = "auto",
    candidates: int | None = None,
    oversample: float | None = None,
) -> Select[_Model, float]:
    """Select the k rows nearest to a sparse vector, with their distances, nearest first.

    E.g.::

        stmt = sparse_search(Doc, SparseVector({7: 0.5}, 30_000), metric="inner_product")

    Everything else is as in :func:`vector_search`.

    .. versionadded:: 0.1
    """
    return _nearest(
        (functions.sparse_search, functions.sparse_search_keys),
        ("sparsevec",),
        entity,
        query,
        column,
        where,
        k=k,
        metric=metric,
        mode=mode,
        candidates=candidates,
        oversample=oversample,
    )


def explain_search(
    entity: Any,
    query: VectorQuery,
    column: Any = None,
    *,
    k: int = 10,
    where: Criteria = (),
    metric: str | None = None,
    mode: str = "auto",
    candidates: int | None = None,
    oversample: float | None = None,
) -> Select[str, str]:
    """Select what :func:`vector_search` would do with the same arguments, as (topic, detail).

    E.g.::

        for topic, detail in connection.execute(explain_search(Doc, query)):
            print(f"{topic}: {detail}")

    .. versionadded:: 0.1
    """
    target = Target.of(entity)
    searched = target.column(column, ("vector", "halfvec"))
    explained = functions.explain_search(
        target.table,
        searched.name,
        _vector_value(query),
        **_arguments(
            target,
            searched.type,
            where,
            k=k,
            metric=metric,
            mode=mode,
            candidates=candidates,
            oversample=oversample,
        ),
    ).table_valued(sql_column("topic", Text()), sql_column("detail", Text()))
    return select(explained.c.topic, explained.c.detail)


def _nearest(
    functions_: tuple[type[functions.RowSearch], type[functions.KeySearch]],
    types: tuple[str, ...],
    entity: Any,
    query: Any,
    column: Any,
    where: Criteria,
    **options: Any,
) -> Select[Any, float]:
    """Join what was asked for to the hits of a search function."""
    by_row, by_key = functions_
    target = Target.of(entity)
    searched = target.column(column, types)
    call = (target.table, searched.name, query)
    arguments = _arguments(target, searched.type, where, **options)
    if len(target.key) == 1:
        (key,) = target.key
        function = by_key(*call, key.type, key_column=key.name, **arguments)
        hits = _rows(function, sql_column("key", key.type))
        keys: list[ColumnElement[Any]] = [hits.c.key]
    else:
        hits = _rows(by_row(*call, **arguments), sql_column("hit", NullType()))
        keys = [Field(hits.c.hit, key.name, key.type) for key in target.key]
    same_row = and_(*(own == hit for own, hit in zip(target.key, keys, strict=True)))
    return (
        select(*target.selected, hits.c.distance)
        .select_from(target.selectable if target.mapper is None else target.entity)
        .join(hits, same_row)
        .order_by(hits.c.distance, *keys)
    )


def _rows(function: functions.SqlvecFunction, first: Any) -> TableValuedAlias:
    return function.table_valued(
        first, sql_column("distance", Double()), sql_column("complete", Boolean())
    )


def _arguments(
    target: Target, searched: Any, where: Criteria, *, metric: str | None, **options: Any
) -> dict[str, Any]:
    if metric is not None:
        find_metric(metric).opclass(type_name(searched) or "")
    arguments = {"metric": metric, **options}
    criteria = [where] if isinstance(where, ClauseElement) else list(where)
    criteria = [coercions.expect(roles.WhereHavingRole, each) for each in criteria]
    criteria += target.subclass_criteria
    if criteria:
        text, params = split(criteria, target.selectable, target.row)
        arguments |= {"where_sql": text, "params": params}
    return arguments


def _vector_value(query: VectorQuery) -> Any:
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
