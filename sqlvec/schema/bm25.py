"""BM25: the words of text columns, indexed and weighted for full-text search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Column, Index, Table, event
from sqlalchemy.schema import ExecutableDDLElement

from sqlvec import encoders
from sqlvec.ddl import AddBM25
from sqlvec.encoders.bm25 import DIMENSIONS
from sqlvec.errors import DeclarationError
from sqlvec.identifiers import fit, target_column
from sqlvec.schema.derived import Derived, source_column
from sqlvec.types import SPARSEVEC, TSVECTOR, type_name

_LABELS = ("A", "B", "C", "D")
"""What the weights of fields are kept as inside a tsvector."""


class BM25(Derived):
    """Full-text search with BM25 over a text column, kept up to date by the database.

    E.g.::

        BM25("body", config="english")

    adds ``Column("body_bm25_tsv", TSVECTOR)``, the words, and
    ``Column("body_bm25", SPARSEVEC(1_000_000_000))``, their weights, to the table, and once the
    table is created emits ::

        CALL sqlvec.add_bm25('doc'::regclass, 'body', config => 'english', k1 => 1.2, b => 0.75,
            target => 'body_bm25')

    Before the table is dropped, ``CALL sqlvec.drop_derived`` takes the declaration back. Several
    columns are searched as one, each with a weight of its own::

        BM25({"title": 2.0, "body": 1.0})

    makes ``title_body_bm25`` with ``fields => '{"title": 2.0, "body": 1.0}'``. On a column of type
    TSVECTOR only the weights are added; ``fields`` then gives its labels weights, e.g.
    ``BM25("words", fields={"A": 2.0, "D": 1.0})``.

    Both columns are filled by a trigger: the ORM leaves them out of INSERT and UPDATE. They are
    larger than the text, and a model seldom needs them. Leave them out of it::

        text = BM25("body")
        __table_args__ = (text, text.index())
        __mapper_args__ = {"exclude_properties": text.columns}

    or declare them deferred, which selects them only when they are read, but has an INSERT of the
    ORM fetch them back::

        body_bm25: Mapped[SparseVector | None] = deferred(
            mapped_column(SPARSEVEC(1_000_000_000))
        )

    :param source: name of the text or tsvector column, or the names of text columns with their
        weights, 0.001 to 1000, of which at most four differ; declared before this, in that order.
    :param config: text search configuration, with its schema where it needs one.
    :param k1: how much a repeated term adds, 0 to 100; 0 counts each term once.
    :param b: how much the length of a document counts, 0 to 1.
    :param fields: weights, 0.001 to 1000, of the labels A, B, C and D of a tsvector column; one
        that is not named has the weight 1.
    :param target: name of the column for the weights; None is ``<source>_bm25``, with the names of
        several joined by underscores.
    :param tenant: name of a column whose values have statistics of their own, so that every tenant
        ranks by its own documents.
    :raises DeclarationError: the columns or the numbers do not go together.

    .. seealso:: :func:`sqlvec.search.bm25_search`
    .. versionadded:: 0.1
    """

    __visit_name__ = "sqlvec_bm25"

    def __init__(
        self,
        source: str | Mapping[str, float],
        *,
        config: str = "english",
        k1: float = 1.2,
        b: float = 0.75,
        fields: Mapping[str, float] | None = None,
        target: str | None = None,
        tenant: str | None = None,
    ) -> None:
        if not isinstance(source, str) and fields is not None:
            raise DeclarationError("fields are weights of the labels of one tsvector column")
        self.source = source if isinstance(source, str) else None
        self.fields = _checked_fields(fields if isinstance(source, str) else source)
        self.config = config
        self.encoder = encoders.BM25(k1, b)
        self.tenant = tenant
        self._named = target is not None
        self.target = target or target_column("_".join(self.sources), self.encoder.kind)

    def __repr__(self) -> str:
        source = self.fields if self.source is None else self.source
        fields = "" if self.source is None or not self.fields else f"fields={self.fields!r}, "
        return (
            f"BM25({source!r}, config={self.config!r}, k1={self.encoder.k1!r}, "
            f"b={self.encoder.b!r}, {fields}target={self.target!r}, tenant={self.tenant!r})"
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """The columns that are searched."""
        return tuple(self.fields) if self.source is None else (self.source,)

    @property
    def columns(self) -> tuple[str, str]:
        """The columns that hold the words and their weights, for ``exclude_properties``."""
        return fit(f"{self.target}_tsv"), self.target

    def index(self, name: str | None = None) -> Index:
        """Return the GIN index on the words, to stand beside the declaration.

        E.g. ``text.index()`` renders ::

            CREATE INDEX ix_doc_body_bm25_tsv ON doc USING gin (body_bm25_tsv)
                WITH (gin_pending_list_limit = 512)

        It is an ordinary ``Index`` and is built with the table. On a live table, backfill first.
        Every search reads the pending entries, so that their list is kept short.

        A tsvector column that the application declares is indexed by the application.

        :param name: None follows the naming convention of the MetaData.
        :raises DeclarationError: on attaching, the source is a tsvector column.
        """
        words, _ = self.columns
        index = Index(
            name, words, postgresql_using="gin", postgresql_with={"gin_pending_list_limit": 512}
        )
        event.listen(index, "before_parent_attach", self._refuse_foreign_index)
        return index

    def _refuse_foreign_index(self, index: Index, table: Table) -> None:
        for name in self.sources:
            if type_name(source_column(table, name).type) == "tsvector":
                raise DeclarationError(
                    f"the words of {self.target!r} are column {name!r} itself; in place of "
                    f"index() write Index(None, {name!r}, postgresql_using='gin')"
                )

    def _columns(self, table: Table) -> list[Column[Any]]:
        words, weights = self.columns
        found = {type_name(self._source(table, name).type) for name in self.sources}
        if self.tenant is not None:
            source_column(table, self.tenant)
        code: Column[Any] = Column(weights, SPARSEVEC(DIMENSIONS))
        if found == {"tsvector"}:
            self._check_labels()
            return [code]
        if self.source is not None and self.fields:
            raise DeclarationError(
                f"column {self.source!r} of table {table.fullname!r} has no labels to weigh; "
                f"weights of columns are written BM25({{{self.source!r}: 1.0, …}})"
            )
        self._check_order(table)
        return [Column(words, TSVECTOR), code]

    def _statement(self) -> ExecutableDDLElement:
        return AddBM25(
            self.source,
            self.target,
            config=self.config,
            fields=self.fields,
            tenant=self.tenant,
            **self.encoder.options(),
        )

    def _source(self, table: Table, name: str) -> Column[Any]:
        source = source_column(table, name)
        allowed = ("text",) if self.source is None else ("text", "tsvector")
        if type_name(source.type) not in allowed:
            raise DeclarationError(
                f"column {name!r} of table {table.fullname!r} is of type {source.type!r}, "
                f"not {' or '.join(allowed)}"
            )
        return source

    def _check_labels(self) -> None:
        for label in self.fields:
            if label not in _LABELS:
                raise DeclarationError(
                    f"the labels of a tsvector are {', '.join(_LABELS)}, not {label!r}"
                )

    def _check_order(self, table: Table) -> None:
        """Refuse a default name that differs from the one the server would choose."""
        places = {column: place for place, column in enumerate(table.columns)}
        ordered = sorted(self.sources, key=lambda name: places[source_column(table, name)])
        if not self._named and ordered != list(self.sources):
            raise DeclarationError(
                f"name the columns of BM25 as table {table.fullname!r} orders them, "
                f"{', '.join(map(repr, ordered))}, or give a target"
            )


def _checked_fields(fields: Mapping[str, float] | None) -> dict[str, float]:
    if fields is None:
        return {}
    if not fields:
        raise DeclarationError("BM25 needs at least one field")
    checked = {name: float(weight) for name, weight in fields.items()}
    for name, weight in checked.items():
        if not 0.001 <= weight <= 1000:
            raise DeclarationError(
                f"the weight of field {name!r} is a number from 0.001 to 1000, not {weight!r}"
            )
    if len(set(checked.values())) > len(_LABELS):
        raise DeclarationError(
            "fields have at most four different weights, one per label of a tsvector, "
            f"not {len(set(checked.values()))}"
        )
    return checked
