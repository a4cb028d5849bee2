"""Hubness: a column in which rows that are near to every query stand back."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Index, Table
from sqlalchemy.schema import ExecutableDDLElement

from sqlvec import encoders
from sqlvec.ddl import AddHubness
from sqlvec.identifiers import target_column
from sqlvec.schema.derived import Derived, hnsw_index, vector_dimensions
from sqlvec.types import VECTOR


class Hubness(Derived):
    """The vectors of a column with one dimension more, which corrects hubs.

    E.g.::

        hubs = Hubness("embedding", "hubs")

    adds ``Column("embedding_hubness", VECTOR(385))`` to the table, and once the table is created
    emits ::

        CALL sqlvec.add_hubness('doc'::regclass, 'embedding', 'hubs',
            target => 'embedding_hubness')

    The encoder must be in the catalog by then: ``sqlvec.fit_hubness`` makes it from a table of
    queries. A search names the column and takes :func:`sqlvec.functions.hubness_query`::

        vector_search(Doc, hubness_query(query), "embedding_hubness")

    Before the table is dropped, ``CALL sqlvec.drop_derived`` takes the declaration back; the
    encoder stays. The column is filled by a trigger: the ORM leaves it out of INSERT and UPDATE. A
    column that the model declares itself under that name is used as it is.

    :param source: name of the vector or halfvec column, declared before this.
    :param name: of the encoder in the catalog.
    :param target: name of the column for the codes; None is ``<source>_hubness``.
    :raises DeclarationError: the column is no vector, or names no dimensions.

    .. seealso:: :class:`sqlvec.encoders.Hubness`
    .. versionadded:: 0.1
    """

    __visit_name__ = "sqlvec_hubness"

    def __init__(self, source: str, name: str, *, target: str | None = None) -> None:
        self.source = source
        self.name = name
        self.target = target or target_column(source, encoders.Hubness.kind)

    def __repr__(self) -> str:
        return f"Hubness({self.source!r}, {self.name!r}, target={self.target!r})"

    def index(
        self, name: str | None = None, *, m: int | None = None, ef_construction: int | None = None
    ) -> Index:
        """Return an HNSW index on the codes, to stand beside the declaration.

        E.g. ``hubs.index()`` renders ::

            CREATE INDEX ix_doc_embedding_hubness ON doc USING hnsw
                (embedding_hubness vector_ip_ops)

        It is an ordinary ``Index`` and is built with the table. On a live table, backfill first.

        :param name: None follows the naming convention of the MetaData.
        :param m: connections per node, 2 to 100; None is pgvector's default, 16.
        :param ef_construction: candidates while building, 4 to 1,000; None is 64.
        """
        return hnsw_index(name, self.target, "vector_ip_ops", m, ef_construction)

    def _columns(self, table: Table) -> list[Column[Any]]:
        return [Column(self.target, VECTOR(vector_dimensions(table, self.source) + 1))]

    def _statement(self) -> ExecutableDDLElement:
        return AddHubness(self.source, self.target, self.name)
