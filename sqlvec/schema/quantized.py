"""Quantized columns: a narrow code beside a vector column."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Index, Table
from sqlalchemy.schema import ExecutableDDLElement

from sqlvec.ddl import AddQuantized
from sqlvec.encoders import Encoder
from sqlvec.encoders.base import MAX_DIMENSIONS
from sqlvec.identifiers import target_column
from sqlvec.metrics import metric as find_metric
from sqlvec.schema.derived import Derived, hnsw_index, vector_dimensions
from sqlvec.types import from_sql


class Quantized(Derived):
    """A narrow code beside a vector column, kept up to date by the database.

    E.g.::

        Quantized("embedding", Binary(rotate=True), metric="cosine")

    adds ``Column("embedding_binary", BIT(384))`` to the table, and once the table is created emits
    ::

        CALL sqlvec.add_quantized('doc'::regclass, 'embedding', 'binary',
            target => 'embedding_binary', metric => 'cosine',
            options => '{"rotate": true, "seed": 0, "center": false, "levels": 1}')

    Before the table is dropped, ``CALL sqlvec.drop_derived`` takes the declaration back. The
    column is filled by a trigger: the ORM leaves it out of INSERT and UPDATE. A column that the
    model declares itself under that name is used as it is, for example one with
    ``deferred=True``.

    :param source: name of the vector or halfvec column, declared before this.
    :param encoder: what turns its vectors into codes.
    :param target: name of the column for the codes; None is ``<source>_<kind>``.
    :param metric: distance that searches on the column will use.
    :param name: encoder of the catalog to use instead of one made for this column alone. Made by
        ``CALL sqlvec.create_encoder``; needed to centre on a mean, which an empty table has not.
    :raises DeclarationError: the columns and the encoder do not go together.

    .. seealso:: :func:`sqlvec.search.vector_search`
    .. versionadded:: 0.1
    """

    __visit_name__ = "sqlvec_quantized"

    def __init__(
        self,
        source: str,
        encoder: Encoder,
        *,
        target: str | None = None,
        metric: str = "cosine",
        name: str | None = None,
    ) -> None:
        self.source = source
        self.encoder = encoder
        self.target = target or target_column(source, encoder.kind)
        self.metric = find_metric(metric).name
        self.name = name

    def __repr__(self) -> str:
        return (
            f"Quantized({self.source!r}, {self.encoder!r}, target={self.target!r}, "
            f"metric={self.metric!r}, name={self.name!r})"
        )

    def index(
        self, name: str | None = None, *, m: int | None = None, ef_construction: int | None = None
    ) -> Index:
        """Return an HNSW index on the codes, to stand beside the declaration.

        E.g. ``codes.index()`` renders ::

            CREATE INDEX ix_doc_embedding_binary ON doc USING hnsw
                (embedding_binary bit_hamming_ops)

        It is an ordinary ``Index`` and is built with the table. On a live table, backfill first.

        :param name: None follows the naming convention of the MetaData.
        :param m: connections per node, 2 to 100; None is pgvector's default, 16.
        :param ef_construction: candidates while building, 4 to 1,000; None is 64.
        """
        return hnsw_index(name, self.target, self._opclass(), m, ef_construction)

    def _opclass(self) -> str:
        code = self.encoder.code_type(MAX_DIMENSIONS).partition("(")[0]
        return find_metric("hamming" if code == "bit" else self.metric).opclass(code)

    def _columns(self, table: Table) -> list[Column[Any]]:
        code_type = self.encoder.code_type(vector_dimensions(table, self.source))
        return [Column(self.target, from_sql(code_type))]

    def _statement(self) -> ExecutableDDLElement:
        return AddQuantized(
            self.source,
            self.target,
            self.name or self.encoder.kind,
            metric=self.metric,
            options=None if self.name else self.encoder.options(),
        )
