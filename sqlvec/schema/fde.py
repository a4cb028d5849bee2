"""FDE: multi-vector columns that an index can search."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Index, Table
from sqlalchemy.schema import ExecutableDDLElement

from sqlvec import encoders
from sqlvec.ddl import AddFDE
from sqlvec.errors import DeclarationError
from sqlvec.identifiers import target_column
from sqlvec.schema.derived import Derived, hnsw_index, multivector_dimensions
from sqlvec.types import from_sql


class FDE(Derived):
    """A fixed dimensional encoding beside a multi-vector column, kept up to date by the database.

    E.g.::

        FDE("tokens")

    adds ``Column("tokens_fde", HALFVEC(2560))`` to the table, and once the table is created emits
    ::

        CALL sqlvec.add_fde('doc'::regclass, 'tokens', target => 'tokens_fde',
            repetitions => 20, simhash_bits => 4, projection => 8, seed => 0, bits => false)

    Before the table is dropped, ``CALL sqlvec.drop_derived`` takes the declaration back. The
    column is filled by a trigger: the ORM leaves it out of INSERT and UPDATE. A column that the
    model declares itself under that name is used as it is, for example one with
    ``deferred=True``. Its vectors are compared by inner product and never normalised; signs, by
    Hamming distance.

    :param source: name of the MULTIVECTOR column, declared before this.
    :param repetitions: independent ones, 1 to 4,000; what raises the quality most.
    :param simhash_bits: hyperplanes of each, 0 to 12.
    :param projection: dimensions that a bucket is projected to.
    :param final_dimensions: of a count sketch at the end, 1 to 4,000; None is without one.
    :param seed: of the random matrices.
    :param bits: keep signs instead of values: twice as many bits as dimensions, which may be
        32,000. An eighth of the size at the same dimensions.
    :param target: name of the column for the encoding; None is ``<source>_fde``.
    :raises DeclarationError: the column and the options do not go together.

    .. seealso:: :class:`sqlvec.encoders.FDE`
    .. versionadded:: 0.1
    """

    __visit_name__ = "sqlvec_fde"

    def __init__(
        self,
        source: str,
        *,
        repetitions: int = 20,
        simhash_bits: int = 4,
        projection: int = 8,
        final_dimensions: int | None = None,
        seed: int = 0,
        bits: bool = False,
        target: str | None = None,
    ) -> None:
        self.source = source
        self.encoder = encoders.FDE(
            repetitions, simhash_bits, projection, final_dimensions, seed, bits
        )
        self.target = target or target_column(source, self.encoder.kind)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.encoder.options().items())
        return f"FDE({self.source!r}, {options}, target={self.target!r})"

    def index(
        self, name: str | None = None, *, m: int | None = None, ef_construction: int | None = None
    ) -> Index:
        """Return an HNSW index on the encodings, to stand beside the declaration.

        E.g. ``tokens.index()`` renders ::

            CREATE INDEX ix_doc_tokens_fde ON doc USING hnsw (tokens_fde halfvec_ip_ops)

        It is an ordinary ``Index`` and is built with the table. On a live table, backfill first.

        :param name: None follows the naming convention of the MetaData.
        :param m: connections per node, 2 to 100; None is pgvector's default, 16.
        :param ef_construction: candidates while building, 4 to 1,000; None is 64.
        """
        opclass = "bit_hamming_ops" if self.encoder.bits else "halfvec_ip_ops"
        return hnsw_index(name, self.target, opclass, m, ef_construction)

    def _columns(self, table: Table) -> list[Column[Any]]:
        found = multivector_dimensions(table, self.source)
        if self.encoder.projection > found:
            raise DeclarationError(
                f"option 'projection' is at most the dimensions of column {self.source!r}, "
                f"{found}, not {self.encoder.projection}"
            )
        return [Column(self.target, from_sql(self.encoder.code_type()))]

    def _statement(self) -> ExecutableDDLElement:
        return AddFDE(self.source, self.target, options=self.encoder.options())
