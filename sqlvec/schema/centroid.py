"""Centroid: one byte per token beside a multi-vector column."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, LargeBinary, Table
from sqlalchemy.schema import ExecutableDDLElement

from sqlvec import encoders
from sqlvec.ddl import AddCentroid
from sqlvec.errors import DeclarationError
from sqlvec.identifiers import target_column
from sqlvec.schema.derived import Derived, source_column
from sqlvec.types import type_name


class Centroid(Derived):
    """The numbers of the nearest centroids of a multi-vector's tokens, kept by the database.

    E.g.::

        Centroid("tokens", "nearest")

    adds ``Column("tokens_centroid", LargeBinary)`` to the table, and once the table is created
    emits ::

        CALL sqlvec.add_centroid('doc'::regclass, 'tokens', 'nearest',
            target => 'tokens_centroid')

    The encoder must be in the catalog by then: ``sqlvec.create_centroid_encoder`` makes it from
    centroids, which :func:`sqlvec.fit.centroid.centroids` fits. Before the table is dropped,
    ``CALL sqlvec.drop_derived`` takes the declaration back; the encoder stays. The column is
    filled by a trigger: the ORM leaves it out of INSERT and UPDATE. A column that the model
    declares itself under that name is used as it is.

    :param source: name of the MULTIVECTOR column, declared before this.
    :param name: of the encoder in the catalog.
    :param target: name of the column for the codes; None is ``<source>_centroid``.
    :raises DeclarationError: the column is no multi-vector.

    .. seealso:: :class:`sqlvec.encoders.Centroid`
    .. versionadded:: 0.1
    """

    __visit_name__ = "sqlvec_centroid"

    def __init__(self, source: str, name: str, *, target: str | None = None) -> None:
        self.source = source
        self.name = name
        self.target = target or target_column(source, encoders.Centroid.kind)

    def __repr__(self) -> str:
        return f"Centroid({self.source!r}, {self.name!r}, target={self.target!r})"

    def _columns(self, table: Table) -> list[Column[Any]]:
        source = source_column(table, self.source)
        if type_name(source.type) not in ("halfvec[]", "vector[]"):
            raise DeclarationError(
                f"column {self.source!r} of table {table.fullname!r} is of type "
                f"{source.type!r}, not MULTIVECTOR"
            )
        return [Column(self.target, LargeBinary())]

    def _statement(self) -> ExecutableDDLElement:
        return AddCentroid(self.source, self.target, self.name)
