"""Search by MaxSim over multi-vectors. It returns a plain ``Select``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sqlalchemy import Row, Select
from sqlalchemy.sql.elements import ClauseElement, ColumnElement
from sqlalchemy.sql.expression import FromClause

from sqlvec import functions
from sqlvec.encoders import maxsim
from sqlvec.errors import DeclarationError
from sqlvec.search.hits import CommonOptions, Criteria, Search, criteria_arguments, steps
from sqlvec.search.target import Target
from sqlvec.types.multivector import checked_tokens

_Model = TypeVar("_Model")

TokensQuery: TypeAlias = ArrayLike | ColumnElement[Any]

_TYPES = ("halfvec[]", "vector[]")

_MAXSIM_SEARCH = Search(functions.maxsim_search, functions.maxsim_search_keys, "score")


class TokenSearchOptions(CommonOptions, total=False):
    """What a search by MaxSim can be told by keyword."""

    mode: str
    """``auto``, ``exact``, or the name of an encoding or of its index; ``auto`` unless given."""

    recall: float | None
    """Candidates are read until this share of the true k best is expected among them, above 0 to
    1; None is 0.95. Of no account where ``candidates`` or ``oversample`` say how many."""

    pooled: str | None
    """Column of pooled tokens that spares candidates the exact score; ``none`` is without, None
    is ``auto``: the one that is there."""

    carve: float | None
    """Cosine from which on query tokens go together while candidates are compared."""


@dataclass(frozen=True)
class ClientRescore(Generic[_Model]):
    """A search whose tokens are compared in numpy, where the application runs.

    E.g.::

        search = maxsim_search(Page, tokens, rescore="client")
        for page, score in search.rank(session.execute(search.candidates)):
            ...

    .. versionadded:: 0.1
    """

    candidates: Select[*tuple[Any, ...]]
    """Selects the entity, or the columns of a Core table, and the tokens after them."""

    query: NDArray[np.float32]
    k: int

    def rank(self, rows: Iterable[Row[Any]]) -> list[tuple[Any, ...]]:
        """Return the k best rows with their scores in place of the tokens, the best first.

        Equal scores keep the order of the rows, which is that of the key.

        :param rows: what :attr:`candidates` answered, from a session or connection, sync or async.
        """
        scored = [(*row[:-1], maxsim(row[-1], self.query)) for row in rows if len(row[-1])]
        return sorted(scored, key=lambda row: -row[-1])[: self.k]


@overload
def maxsim_search(
    entity: type[_Model],
    query: TokensQuery,
    column: Any = None,
    *,
    rescore: Literal["server"] = "server",
    **options: Unpack[TokenSearchOptions],
) -> Select[_Model, float]: ...
@overload
def maxsim_search(
    entity: FromClause,
    query: TokensQuery,
    column: Any = None,
    *,
    rescore: Literal["server"] = "server",
    **options: Unpack[TokenSearchOptions],
) -> Select[*tuple[Any, ...]]: ...
@overload
def maxsim_search(
    entity: type[_Model],
    query: ArrayLike,
    column: Any = None,
    *,
    rescore: Literal["client"],
    **options: Unpack[TokenSearchOptions],
) -> ClientRescore[_Model]: ...
@overload
def maxsim_search(
    entity: FromClause,
    query: ArrayLike,
    column: Any = None,
    *,
    rescore: Literal["client"],
    **options: Unpack[TokenSearchOptions],
) -> ClientRescore[Any]: ...
def maxsim_search(
    entity: Any,
    query: TokensQuery,
    column: Any = None,
    *,
    rescore: Literal["server", "client"] = "server",
    **options: Unpack[TokenSearchOptions],
) -> Any:
    """Select the k rows with the highest MaxSim, with their scores, the best first.

    E.g.::

        stmt = maxsim_search(Page, tokens, k=5, where=[Page.lang == "en"])
        for page, score in session.execute(stmt.options(joinedload(Page.book))):
            ...

    which renders ::

        SELECT page.id, page.lang, …, anon_1.score
        FROM page JOIN sqlvec.maxsim_search_keys(
            rel => NULL::page, column_name => :column, query => :query,
            key => CAST(NULL AS INTEGER), key_column => :key_column, mode => :mode, k => :k,
            where_sql => $where$page.lang = CAST(($1)[1] AS VARCHAR)$where$,
            params => ARRAY[CAST(CAST(:lang AS VARCHAR) AS TEXT)]
        ) AS anon_1 ON page.id = anon_1.key
        ORDER BY anon_1.score DESC, anon_1.key

    An index on a fixed dimensional encoding of the column finds candidates; their number grows
    until ``recall`` is expected, and their scores are exact.

    The result is an ordinary ``Select``. A later ``.where()`` filters the k hits and may leave
    fewer; criteria that the k hits must all meet go into ``where``. Leave the tokens out of what
    is loaded, ``.options(defer(Page.tokens))``, or every hit carries them along.

    :param entity: a model, a Table, or an alias of either; of a Table the columns are selected.
    :param query: the multi-vector of the query, shape (n, d).
    :param column: attribute, column or name of the searched column; None is the only multi-vector
        that is not derived.
    :param rescore: ``client`` answers a :class:`ClientRescore`, which selects the candidates with
        their tokens and compares them in numpy: work for the network instead of the server.
    :param options: :class:`TokenSearchOptions`.
    :raises DeclarationError: the entity, the column, the query or the criteria cannot be searched
        so.

    .. seealso:: :class:`sqlvec.schema.FDE`, :func:`explain_maxsim_search`

    .. versionadded:: 0.1
    """
    target = Target.of(entity)
    searched = target.column(column, _TYPES)
    if rescore == "server":
        arguments = _arguments(target, **options)
        return _MAXSIM_SEARCH.select(target, searched.name, tokens_value(query), **arguments)
    if rescore != "client":
        raise DeclarationError(f"rescore is 'server' or 'client', not {rescore!r}")
    if isinstance(query, ClauseElement):
        raise DeclarationError("to compare tokens here, the query must be an array")
    arguments = _arguments(target, **options) | {"rescore": False}
    found = _MAXSIM_SEARCH.select(target, searched.name, tokens_value(query), **arguments)
    tokens = target.selectable.corresponding_column(searched)
    candidates = (
        found.with_only_columns(*target.selected, tokens, maintain_column_froms=True)
        .order_by(None)
        .order_by(*target.key)
    )
    return ClientRescore(candidates, checked_tokens(query), options.get("k", 10))


def explain_maxsim_search(
    entity: Any, query: TokensQuery, column: Any = None, **options: Unpack[TokenSearchOptions]
) -> Select[str, str]:
    """Select what :func:`maxsim_search` would do with the same arguments, as (topic, detail).

    E.g.::

        for topic, detail in connection.execute(explain_maxsim_search(Page, tokens)):
            print(f"{topic}: {detail}")

    .. versionadded:: 0.1
    """
    target = Target.of(entity)
    searched = target.column(column, _TYPES)
    arguments = _arguments(target, **options)
    return steps(
        functions.explain_maxsim_search(
            target.table, searched.name, tokens_value(query), **arguments
        )
    )


def _arguments(
    target: Target,
    *,
    k: int = 10,
    where: Criteria = (),
    filter: Mapping[str, Any] | None = None,
    mode: str = "auto",
    recall: float | None = None,
    pooled: str | None = None,
    carve: float | None = None,
    candidates: int | None = None,
    oversample: float | None = None,
) -> dict[str, Any]:
    """Return the arguments of a search function that options stand for."""
    return {
        "k": k,
        "mode": mode,
        "recall": recall,
        "pooled": pooled,
        "carve": carve,
        "candidates": candidates,
        "oversample": oversample,
        **criteria_arguments(target, where, filter),
    }


def tokens_value(query: TokensQuery) -> Any:
    """Return a multi-vector to be bound, checked; an expression stays what it is."""
    return query if isinstance(query, ClauseElement) else checked_tokens(query)
