"""Search by words. It returns a plain ``Select``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypeVar, Unpack, overload
from uuid import UUID

from sqlalchemy import Select, Text, cast, null
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import FromClause

from sqlvec import functions
from sqlvec.errors import DeclarationError
from sqlvec.schema import BM25, declarations
from sqlvec.search.hits import CommonOptions, Criteria, Search, criteria_arguments, steps
from sqlvec.search.target import Target

_Model = TypeVar("_Model")

Backend: TypeAlias = Literal["auto", "sqlvec", "pg_textsearch", "paradedb", "vchord_bm25"]
Tenant: TypeAlias = str | int | UUID | ColumnElement[Any]

_BM25_SEARCH = Search(functions.bm25_search, functions.bm25_search_keys, "score")


class TextSearchOptions(CommonOptions, total=False):
    """What a search by words can be told by keyword."""

    tenant: Tenant | None
    """Value of the tenant column: only its rows are found, ranked by its own statistics. Needed
    where the column was declared with a tenant."""

    backend: Backend | None
    """What finds candidates: ``sqlvec``, or an extension that has an index on the column. None is
    ``auto``: pg_textsearch, where its index is made alike, else sqlvec."""


@overload
def bm25_search(
    entity: type[_Model],
    query: str | ColumnElement[str],
    column: Any = None,
    **options: Unpack[TextSearchOptions],
) -> Select[_Model, float]: ...
@overload
def bm25_search(
    entity: FromClause,
    query: str | ColumnElement[str],
    column: Any = None,
    **options: Unpack[TextSearchOptions],
) -> Select[*tuple[Any, ...]]: ...
def bm25_search(
    entity: Any,
    query: str | ColumnElement[str],
    column: Any = None,
    **options: Unpack[TextSearchOptions],
) -> Any:
    """Select the k rows that match words best, with their BM25 scores, best first.

    E.g.::

        stmt = bm25_search(Doc, 'apple "fruit tree" -cider', k=5, where=[Doc.lang == "en"])
        for doc, score in session.execute(stmt.options(joinedload(Doc.author))):
            ...

    which renders ::

        SELECT doc.id, doc.body, …, anon_1.score
        FROM doc JOIN sqlvec.bm25_search_keys(
            rel => NULL::doc, column_name => :column, query => :query,
            key => CAST(NULL AS INTEGER), key_column => :key_column, k => :k,
            where_sql => $where$doc.lang = CAST(($1)[1] AS VARCHAR)$where$,
            params => ARRAY[CAST(CAST(:lang AS VARCHAR) AS TEXT)]
        ) AS anon_1 ON doc.id = anon_1.key
        ORDER BY anon_1.score DESC, anon_1.key

    Words are alternatives; ``"a phrase"`` and ``+word`` must be there, ``-word`` must not, and
    ``prefix*`` stands for all words that begin so. Any text is a query: what is no word is left
    out, and a query without words finds nothing.

    The result is an ordinary ``Select``. A later ``.where()`` filters the k hits and may leave
    fewer; criteria that the k hits must all meet go into ``where``. To show where the words are,
    add :class:`sqlvec.functions.bm25_headline` to it::

        stmt.add_columns(functions.bm25_headline(Doc, "body", "apple"))

    :param entity: a model, a Table, or an alias of either; of a Table the columns are selected.
    :param query: what to search for.
    :param column: attribute, column or name of the searched column, or of the one that holds the
        weights; None is the only one.
    :param options: :class:`TextSearchOptions`; ``candidates`` and ``oversample`` count with an
        extension only, whose hits are scored anew.
    :raises DeclarationError: the query is None, or the entity, the column or the criteria
        cannot be searched so.

    .. seealso:: :class:`sqlvec.schema.BM25`, :func:`explain_bm25_search`

    .. versionadded:: 0.1
    """
    _require_query(query)
    target = Target.of(entity)
    return _BM25_SEARCH.select(
        target, bm25_column_name(target, column), query, **_arguments(target, **options)
    )


def explain_bm25_search(
    entity: Any,
    query: str | ColumnElement[str],
    column: Any = None,
    **options: Unpack[TextSearchOptions],
) -> Select[str, str]:
    """Select what :func:`bm25_search` would do with the same arguments, as (topic, detail).

    E.g.::

        for topic, detail in connection.execute(explain_bm25_search(Doc, "apple tree")):
            print(f"{topic}: {detail}")

    .. versionadded:: 0.1
    """
    _require_query(query)
    target = Target.of(entity)
    arguments = _arguments(target, **options)
    return steps(
        functions.explain_bm25_search(
            target.table, bm25_column_name(target, column), query, **arguments
        )
    )


def _require_query(query: object) -> None:
    if query is None:
        raise DeclarationError("query is None")


def _arguments(
    target: Target,
    *,
    k: int = 10,
    where: Criteria = (),
    filter: Mapping[str, Any] | None = None,
    tenant: Tenant | None = None,
    backend: Backend | None = None,
    candidates: int | None = None,
    oversample: float | None = None,
) -> dict[str, Any]:
    """Return the arguments of a search function that options stand for."""
    return {
        "k": k,
        "tenant": tenant_value(tenant),
        "backend": backend,
        "candidates": candidates,
        "oversample": oversample,
        **criteria_arguments(target, where, filter),
    }


def bm25_column_name(target: Target, column: Any) -> str | ColumnElement[str]:
    """Return the column to search, as name; a NULL where the server is to find it."""
    if column is not None:
        return target.column(column, ("text", "tsvector", "sparsevec")).name
    declared = [each.target for each in declarations(target.table) if isinstance(each, BM25)]
    if len(declared) > 1:
        raise DeclarationError(
            f"name the column to search: BM25 is declared on table {target.table.fullname!r} for "
            f"{', '.join(map(repr, declared))}"
        )
    # Declared in SQL alone, it is for the server to find.
    return declared[0] if declared else cast(null(), Text())


def tenant_value(tenant: Tenant | None) -> Any:
    """Return the value of a tenant column as text."""
    if tenant is None:
        return None
    return cast(tenant, Text()) if isinstance(tenant, ColumnElement) else str(tenant)
