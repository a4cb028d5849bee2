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

from sqlalchemy import REAL, Integer, Table, Text, cast, literal, null
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeEngine

from sqlvec.elements import NamedArg, NullRow, RegClass
from sqlvec.types import BIT, SPARSEVEC, VECTOR


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
    """Bind a value; expressions and None stay what they are."""
    return value if value is None or isinstance(value, ColumnElement) else literal(value, type_)


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


class plan_index(SqlvecFunction):
    """Indexes that would serve searches on a column, as rows with their CREATE INDEX."""

    def __init__(self, rel: Table, column_name: Any, metric: Any = None) -> None:
        super().__init__(
            rel=RegClass(rel),
            column_name=_value(column_name, Text()),
            metric=_value(metric, Text()),
        )


class RowSearch(SqlvecFunction):
    """The arguments that every search has.

    :param rel: the table.
    :param column_name: the column to search.
    :param query: what to search for.
    :param k: rows to return, 1 to 10,000.
    :param filter: JSON criteria over the columns.
    :param where_sql: SQL criteria over the bare table name, reading values as ``($1)[i]``.
    :param params: those values, as text.
    :param candidates: rows to rescore.
    :param oversample: the same as a multiple of k.
    :param metric: None is the one that the column's codes or indexes are made for.
    :param mode: ``auto``, ``exact``, or the name of a derived column or an index.
    """

    query_type: ClassVar[TypeEngine[Any]]

    def __init__(
        self,
        rel: Table,
        column_name: Any,
        query: Any,
        *,
        k: Any = None,
        filter: Any = None,
        where_sql: Any = None,
        params: ColumnElement[Any] | Sequence[str | None] | None = None,
        candidates: Any = None,
        oversample: Any = None,
        metric: Any = None,
        mode: Any = None,
        **more: ColumnElement[Any] | None,
    ) -> None:
        super().__init__(
            rel=NullRow(rel),
            column_name=_value(column_name, Text()),
            query=_value(query, self.query_type),
            **more,
            k=_value(k, Integer()),
            filter=_value(filter, JSONB()),
            where_sql=_value(where_sql, Text()),
            params=_value(params, ARRAY(Text())),
            candidates=_value(candidates, Integer()),
            # Drivers send a float as double precision, which does not become real by itself.
            oversample=None if oversample is None else cast(oversample, REAL()),
            metric=_value(metric, Text()),
            mode=_value(mode, Text()),
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


class vector_search(RowSearch):
    """Nearest rows of a vector or halfvec column, as (hit, distance, complete)."""

    query_type = VECTOR()


class vector_search_keys(KeySearch):
    """Nearest rows of a vector or halfvec column, as (key, distance, complete)."""

    query_type = VECTOR()


class bit_search(RowSearch):
    """Nearest rows of a bit column, as (hit, distance, complete)."""

    query_type = BIT(varying=True)  # plain BIT is BIT(1)


class bit_search_keys(KeySearch):
    """Nearest rows of a bit column, as (key, distance, complete)."""

    query_type = BIT(varying=True)


class sparse_search(RowSearch):
    """Nearest rows of a sparsevec column, as (hit, distance, complete)."""

    query_type = SPARSEVEC()


class sparse_search_keys(KeySearch):
    """Nearest rows of a sparsevec column, as (key, distance, complete)."""

    query_type = SPARSEVEC()


class explain_search(RowSearch):
    """What ``vector_search`` would do with the same arguments, as (topic, detail)."""

    query_type = VECTOR()
