"""Declare quantized columns on models and tables.

E.g.::

    class Doc(Base):
        __tablename__ = "doc"
        id: Mapped[int] = mapped_column(primary_key=True)
        embedding: Mapped[list[float]] = mapped_column(VECTOR(384))
        codes = Quantized("embedding", Binary())
        __table_args__ = (
            codes,
            codes.index(),
        )
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, FetchedValue, Index, Table, event
from sqlalchemy.schema import SchemaItem

from sqlvec.ddl import AddQuantized, DropDerived, attach
from sqlvec.encoders import Encoder
from sqlvec.encoders.base import MAX_DIMENSIONS
from sqlvec.errors import DeclarationError
from sqlvec.identifiers import target_column
from sqlvec.metrics import metric as find_metric
from sqlvec.types import dimensions, from_sql, type_name

__all__ = ["Quantized", "attach", "derived_columns"]

_INFO = "sqlvec.derived"


class Quantized(SchemaItem):
    """A narrow code beside a vector column, kept up to date by the database.

    E.g.::

        Quantized("embedding", Binary(rotate=True), metric="cosine")

    adds ``Column("embedding_binary", BIT(384))`` to the table, and once the table is created emits
    ::

        CALL sqlvec.add_quantized('doc'::regclass, 'embedding', 'binary',
            target => 'embedding_binary', metric => 'cosine',
            options => '{"rotate": true, "seed": 0, "center": false}')

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
        settings = {"m": m, "ef_construction": ef_construction}
        return Index(
            name,
            self.target,
            postgresql_using="hnsw",
            postgresql_with={key: value for key, value in settings.items() if value is not None},
            postgresql_ops={self.target: self._opclass()},
        )

    def _opclass(self) -> str:
        code = self.encoder.code_type(MAX_DIMENSIONS).partition("(")[0]
        return find_metric("hamming" if code == "bit" else self.metric).opclass(code)

    def _set_parent(self, parent: Any, **kw: Any) -> None:
        table: Table = parent
        if self.target in derived_columns(table):
            raise DeclarationError(
                f"two codes are declared for column {self.target!r} of table {table.fullname!r}"
            )
        code = self._code_column(table)
        # The database fills the column, so the ORM must not write NULL into it.
        code.server_default = code.server_default or FetchedValue()
        code.server_onupdate = code.server_onupdate or FetchedValue(for_update=True)
        table.info[_INFO] = (*derived_columns(table), self.target)
        self._listen(table)

    def _code_column(self, table: Table) -> Column[Any]:
        source = self._source_column(table)
        code_type = from_sql(self.encoder.code_type(dimensions(source.type) or 0))
        declared = _find(table, self.target)
        if declared is None:
            code: Column[Any] = Column(self.target, code_type)
            table.append_column(code)
            return code
        found = (type_name(declared.type), type_name(declared.type) and dimensions(declared.type))
        if found != (type_name(code_type), dimensions(code_type)):
            raise DeclarationError(
                f"column {self.target!r} of table {table.fullname!r} is of type "
                f"{declared.type!r}; {self.encoder!r} of {source.name!r} makes {code_type!r}"
            )
        return declared

    def _source_column(self, table: Table) -> Column[Any]:
        source = _find(table, self.source)
        if source is None:
            known = ", ".join(repr(column.name) for column in table.columns)
            raise DeclarationError(
                f"table {table.fullname!r} has no column {self.source!r} to quantize; "
                f"the columns declared before are: {known}"
            )
        if type_name(source.type) not in ("vector", "halfvec"):
            raise DeclarationError(
                f"column {self.source!r} of table {table.fullname!r} is of type "
                f"{source.type!r}, not vector or halfvec"
            )
        if dimensions(source.type) is None:
            raise DeclarationError(
                f"column {self.source!r} of table {table.fullname!r} names no dimensions; "
                "write VECTOR(384)"
            )
        return source

    def _listen(self, table: Table) -> None:
        """Emit the declaration with this table, and with copies of it."""
        # Copies made by to_metadata() carry the listeners on; they find their table themselves.
        add = AddQuantized(
            self.source,
            self.target,
            self.name or self.encoder.kind,
            metric=self.metric,
            options=None if self.name else self.encoder.options(),
        )
        drop = DropDerived(self.target)
        for moment, statement in (("after_create", add), ("before_drop", drop)):
            listener = statement.execute_if(dialect="postgresql")
            event.listen(table, moment, listener, propagate=True)


def derived_columns(table: Table) -> tuple[str, ...]:
    """Return the names of the columns of a table that hold codes."""
    names: tuple[str, ...] = table.info.get(_INFO, ())
    return names


def _find(table: Table, name: str) -> Column[Any] | None:
    return next((column for column in table.columns if name in (column.key, column.name)), None)
