"""Search by words, vectors and multi-vectors at once. It returns a plain ``Select``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, Unpack, overload

from sqlalchemy import Select
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import FromClause

from sqlvec import functions
from sqlvec.errors import DeclarationError
from sqlvec.metrics import metric as find_metric
from sqlvec.search.bm25 import Backend, Tenant, bm25_column_name, tenant_value
from sqlvec.search.hits import CommonOptions, Criteria, Search, criteria_arguments, steps
from sqlvec.search.maxsim import TokensQuery, tokens_value
from sqlvec.search.nearest import VectorQuery, vector_value
from sqlvec.search.target import Target

_Model = TypeVar("_Model")

Fusion: TypeAlias = Literal["rrf", "convex", "dbsf", "relevance"]
Leg: TypeAlias = Literal["text", "vector", "tokens"]

_MEASURES = (
    *("score", "relevance", "text_score", "text_rank"),
    *("vector_distance", "vector_rank", "tokens_score", "tokens_rank"),
)

_HYBRID_SEARCH = Search(functions.hybrid_search, functions.hybrid_search_keys, "score", _MEASURES)


class Asked(TypedDict, total=False):
    """What a hybrid search looks for: one of these or several."""

    text: str | ColumnElement[str] | None
    """Words, in the language of :func:`sqlvec.search.bm25_search`."""

    vector: VectorQuery | None
    """A vector, as in :func:`sqlvec.search.vector_search`."""

    tokens: TokensQuery | None
    """A multi-vector, as in :func:`sqlvec.search.maxsim_search`."""


class HybridSearchOptions(CommonOptions, Asked, total=False):
    """What a hybrid search can be told by keyword. ``candidates`` are rows of each leg."""

    fusion: Fusion
    """``rrf`` adds reciprocal ranks, ``convex`` scores from the least possible to the best found,
    ``dbsf`` scores by the distribution of their leg; ``relevance`` is the probability that a model
    gives. ``rrf`` unless given."""

    weights: Mapping[Leg, float] | None
    """Of every leg that is asked, 0 or more; None is the same for all, for ``convex`` 0.2 for text
    and 0.8 for the others."""

    relevance: str | None
    """Name of a relevance model, of one leg or fused."""

    min_relevance: float | None
    """Rows with a smaller relevance are left out, 0 to 1. There may be none left."""

    autocut: int | None
    """Rows after so many jumps of the score are left out."""

    min_results: int
    """So many of the best rows stay whatever the cuts say; 0 unless given."""

    text_column: Any
    """Attribute, column or name; None is the only one, as of the next two."""

    vector_column: Any
    tokens_column: Any

    metric: str | None
    """Of the vector leg; None is what the column's codes or indexes are made for."""

    mode: Literal["auto", "exact"]
    """``auto`` unless given."""

    tenant: Tenant | None
    """Whose statistics the text leg uses."""

    backend: Backend | None
    """Of the text leg."""

    rrf_k: int | None
    """Constant of ``rrf``; None is 60."""

    group_by: Any
    """Attribute, column or name: of each of its values only the best rows are kept."""

    group_size: int | None
    """How many of them; None is 1."""

    diversity: float | None
    """0 to 1: how much rows are to differ, at the price of score."""


@overload
def hybrid_search(
    entity: type[_Model], **options: Unpack[HybridSearchOptions]
) -> Select[_Model, float]: ...
@overload
def hybrid_search(
    entity: FromClause, **options: Unpack[HybridSearchOptions]
) -> Select[*tuple[Any, ...]]: ...
def hybrid_search(entity: Any, **options: Unpack[HybridSearchOptions]) -> Any:
    """Select the k rows that searches by words, vector and multi-vector find together.

    E.g.::

        stmt = hybrid_search(Doc, text="apple tree", vector=query, where=[Doc.tenant_id == 7])
        for doc, score in session.execute(stmt.options(joinedload(Doc.author))):
            ...

    which renders ::

        SELECT doc.id, doc.body, …, anon_1.score
        FROM doc JOIN sqlvec.hybrid_search_keys(
            rel => NULL::doc, key => CAST(NULL AS INTEGER), key_column => :key_column,
            query_text => :query_text, query_vector => :query_vector, k => :k, mode => :mode,
            where_sql => $where$doc.tenant_id = CAST(($1)[1] AS INTEGER)$where$,
            params => ARRAY[CAST(CAST(:tenant_id AS INTEGER) AS TEXT)]
        ) WITH ORDINALITY AS anon_1 ON doc.id = anon_1.key
        ORDER BY anon_1.ordinality

    The best first. Ranks and scores of the legs and the relevance are columns of
    :func:`~sqlvec.search.hits`. The result is an ordinary ``Select``. A later ``.where()`` filters
    the k hits and may leave fewer; criteria that the k hits must all meet go into ``where``.

    :param entity: a model, a Table, or an alias of either; of a Table the columns are selected.
    :param options: :class:`HybridSearchOptions`; at least one of ``text``, ``vector`` and
        ``tokens``.
    :raises DeclarationError: nothing to search for, or the entity, a column or the criteria cannot
        be searched so.

    .. seealso:: :func:`explain_hybrid_search`, :func:`~sqlvec.search.hits`

    .. versionadded:: 0.1
    """
    target = Target.of(entity)
    return _HYBRID_SEARCH.select(target, **_arguments(target, **options))


def explain_hybrid_search(entity: Any, **options: Unpack[HybridSearchOptions]) -> Select[str, str]:
    """Select what :func:`hybrid_search` does with the same arguments, as (topic, detail).

    E.g.::

        for topic, detail in connection.execute(explain_hybrid_search(Doc, text="apple tree")):
            print(f"{topic}: {detail}")

    .. versionadded:: 0.1
    """
    target = Target.of(entity)
    return steps(functions.explain_hybrid_search(target.table, **_arguments(target, **options)))


def _arguments(
    target: Target,
    *,
    text: str | ColumnElement[str] | None = None,
    vector: VectorQuery | None = None,
    tokens: TokensQuery | None = None,
    text_column: Any = None,
    vector_column: Any = None,
    tokens_column: Any = None,
    where: Criteria = (),
    filter: Mapping[str, Any] | None = None,
    metric: str | None = None,
    tenant: Tenant | None = None,
    weights: Mapping[Leg, float] | None = None,
    group_by: Any = None,
    **more: Any,
) -> dict[str, Any]:
    """Return the arguments of a search function that options stand for."""
    if text is None and vector is None and tokens is None:
        raise DeclarationError("a hybrid search looks for text, vector or tokens: give one of them")
    if metric is not None:
        find_metric(metric)
    arguments: dict[str, Any] = {}
    if text is not None:
        arguments["query_text"] = text
        arguments["text_column"] = bm25_column_name(target, text_column)
    if vector is not None:
        arguments["query_vector"] = vector_value(vector)
    if vector is not None or more.get("diversity") is not None:
        arguments["vector_column"] = target.column(vector_column, ("vector", "halfvec")).name
    if tokens is not None:
        arguments["query_tokens"] = tokens_value(tokens)
        arguments["tokens_column"] = target.column(tokens_column, ("halfvec[]", "vector[]")).name
    if group_by is not None:
        arguments["group_column"] = target.any_column(group_by).name
    return {
        **arguments,
        "metric": metric,
        "tenant": tenant_value(tenant),
        "weights": None if weights is None else dict(weights),
        **{"k": 10, "mode": "auto", **more},
        **criteria_arguments(target, where, filter),
    }
