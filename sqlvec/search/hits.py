"""What every search does: call its function with criteria inside, and join to its hits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

from sqlalchemy import Boolean, Column, Double, Integer, Select, Text, and_, select
from sqlalchemy import column as sql_column
from sqlalchemy.orm import QueryableAttribute
from sqlalchemy.sql import coercions, roles
from sqlalchemy.sql.elements import ColumnElement, TextClause
from sqlalchemy.sql.expression import TableValuedAlias
from sqlalchemy.types import NullType, TypeEngine

from sqlvec import functions
from sqlvec.elements import Field
from sqlvec.errors import DeclarationError
from sqlvec.search.criteria import split
from sqlvec.search.target import Target

Criterion: TypeAlias = ColumnElement[bool] | TextClause
Criteria: TypeAlias = Criterion | Iterable[Criterion]


class CommonOptions(TypedDict, total=False):
    """What every search can be told by keyword."""

    k: int
    """Rows to return, 1 to 10,000; 10 unless given."""

    where: Criteria
    """Criteria that are applied while candidates are found. They may use subqueries; their values
    are bound."""

    filter: Mapping[str, Any] | None
    """Criteria as JSON, as in ``{"tenant_id": 7, "year": {"$gte": 2020}}``, for those that come
    from outside: the server checks the names of columns and binds the values."""

    candidates: int | None
    """Rows to rescore, k to 1,000,000."""

    oversample: float | None
    """The same as a multiple of k, 1 to 1,000."""


_MEASURES: dict[str, TypeEngine[Any]] = {
    "score": Double(),
    "relevance": Double(),
    "text_score": Double(),
    "text_rank": Integer(),
    "vector_distance": Double(),
    "vector_rank": Integer(),
    "tokens_score": Double(),
    "tokens_rank": Integer(),
}


@dataclass(frozen=True)
class Search:
    """The functions of one search, and what they say of their hits."""

    by_row: Callable[..., functions.SearchFunction]
    by_key: Callable[..., functions.SearchFunction]
    measure: Literal["distance", "score"]
    """What is selected beside the entity."""

    measures: tuple[str, ...] = ()
    """What else there is."""

    def select(self, target: Target, *asked: Any, **arguments: Any) -> Any:
        """Join what was asked for to its hits, the best first."""
        if len(target.key) == 1:
            (key,) = target.key
            function = self.by_key(target.table, *asked, key.type, key_column=key.name, **arguments)
            hits = self._rows(function, sql_column("key", key.type))
            keys: list[ColumnElement[Any]] = [hits.c.key]
        else:
            function = self.by_row(target.table, *asked, **arguments)
            hits = self._rows(function, sql_column("hit", NullType()))
            keys = [Field(hits.c.hit, key.name, key.type) for key in target.key]
        same_row = and_(*(own == hit for own, hit in zip(target.key, keys, strict=True)))
        measure = hits.c[self.measure]
        order: list[ColumnElement[Any]] = [
            measure.desc() if self.measure == "score" else measure,
            *keys,
        ]
        if self.measures:
            # Hits that are to differ stand in another order than that of their scores.
            order = [hits.c.ordinality]
        return (
            select(*target.selected, measure)
            .select_from(target.selectable if target.mapper is None else target.entity)
            .join(hits, same_row)
            .order_by(*order)
        )

    def _rows(
        self, function: functions.SearchFunction, first: Column[Any] | Any
    ) -> TableValuedAlias:
        measures = [sql_column(name, _MEASURES[name]) for name in self.measures]
        return function.table_valued(
            first,
            *(measures or [sql_column(self.measure, Double())]),
            sql_column("complete", Boolean()),
            with_ordinality="ordinality" if measures else None,
        )


def steps(function: functions.SearchFunction) -> Select[str, str]:
    """Select what an ``explain_*`` function answers."""
    rows = function.table_valued(sql_column("topic", Text()), sql_column("detail", Text()))
    return select(rows.c.topic, rows.c.detail)


def criteria_arguments(
    target: Target, where: Criteria, filter: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return ``filter``, and for criteria and what a subclass adds to them the rest."""
    criteria = [coercions.expect(roles.WhereHavingRole, each) for each in _several(where)]
    criteria += target.subclass_criteria
    if not criteria:
        return {"filter": filter}
    text, params = split(criteria, target.selectable, target.row)
    return {"filter": filter, "where_sql": text, "params": params}


def hits(search: Select[*tuple[Any, ...]]) -> TableValuedAlias:
    """Return what a search is joined to, whose columns say more of its hits.

    E.g.::

        stmt = hybrid_search(Doc, text="apple tree", vector=query)
        found = hits(stmt).c
        for doc, score, rank in session.execute(stmt.add_columns(found.text_rank)):
            ...

    The columns are those of the SQL function: ``distance`` or ``score`` and ``complete``; of
    :func:`sqlvec.search.hybrid_search` also ``relevance``, ``text_score``, ``text_rank``,
    ``vector_distance``, ``vector_rank``, ``tokens_score`` and ``tokens_rank``.

    :raises DeclarationError: the statement is not a search.

    .. versionadded:: 0.1
    """
    for clause in search.columns_clause_froms:
        if isinstance(clause, TableValuedAlias) and isinstance(
            clause.element, functions.SearchFunction
        ):
            return clause
    raise DeclarationError("the statement was not made by a search, or selects nothing of it")


def complete(search: Select[*tuple[Any, ...]]) -> ColumnElement[bool]:
    """Return the column of a search that says whether its hits are all there could be.

    E.g.::

        stmt = vector_search(Doc, query, mode="ix_doc_embedding", where=Doc.tenant_id == 7)
        for doc, distance, is_complete in session.execute(stmt.add_columns(complete(stmt))):
            ...

    It is false only where an index named by ``mode``, or the index of an extension under
    :func:`sqlvec.search.bm25_search`, ended before k rows were found. Otherwise fewer than k rows
    mean that fewer match.

    :raises DeclarationError: the statement is not a search.

    .. versionadded:: 0.1
    """
    return hits(search).c.complete


def _several(where: Criteria) -> Iterable[Any]:
    # A mapped attribute of type boolean is a criterion as well.
    if isinstance(where, ColumnElement | TextClause | QueryableAttribute):
        return [where]
    return where
