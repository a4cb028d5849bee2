"""Pooled: fewer vectors beside a multi-vector column."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Table
from sqlalchemy.dialects.postgresql import REAL
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.types import ARRAY

from sqlvec import encoders
from sqlvec.ddl import AddPooled
from sqlvec.encoders.pool import Method
from sqlvec.errors import DeclarationError
from sqlvec.identifiers import target_column
from sqlvec.schema.derived import Derived, multivector_dimensions, source_column
from sqlvec.types import MULTIVECTOR


class Pooled(Derived):
    """A multi-vector with fewer vectors beside a multi-vector column, kept by the database.

    E.g.::

        Pooled("tokens", method="hierarchical", factor=3)

    adds ``Column("tokens_pool", MULTIVECTOR(128))`` to the table, and once the table is created
    emits ::

        CALL sqlvec.add_pooled('doc'::regclass, 'tokens', method => 'hierarchical',
            target => 'tokens_pool',
            options => '{"factor": 3, "protected": 1, "normalize": false}')

    Before the table is dropped, ``CALL sqlvec.drop_derived`` takes the declaration back. The
    column is filled by a trigger: the ORM leaves it out of INSERT and UPDATE. A column that the
    model declares itself under that name is used as it is, for example one with
    ``deferred=True``. It may be the source of an ``FDE`` declared after this.

    :param source: name of the MULTIVECTOR column, declared before this.
    :param method: ``hierarchical``, ``kmeans``, ``sequential``, ``rows``, ``tiles``, ``top`` or
        ``prefix``.
    :param options: of the method, as :class:`sqlvec.encoders.Pool` has them.
    :param weights: name of the ``ARRAY(REAL)`` column with one weight for each token, for
        method ``top``.
    :param target: name of the column for the pooled vectors; None is ``<source>_pool``.
    :raises DeclarationError: the columns, the method and the options do not go together.

    .. seealso:: :class:`sqlvec.encoders.Pool`
    .. versionadded:: 0.1
    """

    __visit_name__ = "sqlvec_pooled"

    def __init__(
        self,
        source: str,
        *,
        method: Method = "hierarchical",
        weights: str | None = None,
        target: str | None = None,
        **options: int | float | bool | None,
    ) -> None:
        self.source = source
        self.weights = weights
        make: Any = encoders.Pool
        try:
            self.encoder: encoders.Pool = make(method, **options)
        except TypeError as error:
            raise DeclarationError(f"pooling by method {method!r}: {error}") from error
        if (method == "top") != (weights is not None):
            raise DeclarationError(
                "pooling by method 'top' needs weights='...', the name of a column of weights"
                if method == "top"
                else f"pooling by method {method!r} takes no weights"
            )
        self.target = target or target_column(source, self.encoder.kind)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.encoder.options().items())
        return (
            f"Pooled({self.source!r}, {options}, weights={self.weights!r}, target={self.target!r})"
        )

    def _columns(self, table: Table) -> list[Column[Any]]:
        if self.weights is not None:
            column = source_column(table, self.weights)
            if not (isinstance(column.type, ARRAY) and isinstance(column.type.item_type, REAL)):
                raise DeclarationError(
                    f"column {self.weights!r} of table {table.fullname!r} is of type "
                    f"{column.type!r}, not ARRAY(REAL)"
                )
        return [Column(self.target, MULTIVECTOR(multivector_dimensions(table, self.source)))]

    def _statement(self) -> ExecutableDDLElement:
        options = self.encoder.options()
        return AddPooled(
            self.source, self.target, options.pop("method"), options=options, weights=self.weights
        )
