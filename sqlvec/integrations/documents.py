"""A table of the application as what frameworks call documents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Select,
    Text,
    cast,
    delete,
    func,
    literal,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.elements import ColumnElement

from sqlvec.elements import RegClass
from sqlvec.errors import DeclarationError
from sqlvec.integrations.conditions import Conditions
from sqlvec.schema import Quantized, declarations, derived_columns
from sqlvec.search import hits
from sqlvec.search.target import Target
from sqlvec.types import type_name

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Record:
    """One row, as frameworks see it."""

    id: str | None
    """The key; None is left to the database."""

    text: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Written:
    """One row to write."""

    record: Record
    vector: Any
    tokens: Any = None


class Documents:
    """Reads, writes and finds rows of one table. Its work is a function of a connection.

    :param engine: synchronous or asynchronous.
    :param entity: a model or a Table, with one column as primary key.
    :param text_column: attribute, column or name, as of the next ones.
    :param vector_column: None is the only vector column that holds no codes.
    :param tokens_column: column of multi-vectors; None is without.
    :param bm25_column: what the text leg searches, where it is not ``text_column``.
    :param metadata_columns: None is all columns that hold neither text, vectors nor codes.
    :param metadata_json_column: jsonb column for what has no column of its own.
    :param metric: None is the one that the vector column is declared with.
    :raises DeclarationError: the table cannot be used so.
    """

    def __init__(
        self,
        engine: Engine | AsyncEngine,
        entity: Any,
        *,
        text_column: Any,
        vector_column: Any = None,
        tokens_column: Any = None,
        bm25_column: Any = None,
        metadata_columns: Iterable[Any] | None = None,
        metadata_json_column: Any = None,
        metric: str | None = None,
    ) -> None:
        target = Target.of(entity)
        if target.subclass_criteria:
            raise DeclarationError(
                f"{entity!r} is only some rows of table {target.table.fullname!r}; "
                "documents are all of them"
            )
        self._engine = engine
        self.table = target.table
        self._target = Target.of(self.table)
        self.key = self._only_key()
        self.text = self._target.column(text_column, ("text",))
        self.vector = self._target.column(vector_column, ("vector", "halfvec"))
        self.tokens = (
            None
            if tokens_column is None
            else self._target.column(tokens_column, ("halfvec[]", "vector[]"))
        )
        self.bm25 = self.text if bm25_column is None else self._target.any_column(bm25_column)
        self._rest = (
            None
            if metadata_json_column is None
            else _jsonb(self._target.any_column(metadata_json_column))
        )
        self.metadata = self._metadata_columns(metadata_columns)
        self.metric = metric

    @property
    def json_column(self) -> str | None:
        """Name of the column for metadata that have none of their own."""
        return None if self._rest is None else self._rest.name

    @property
    def conditions(self) -> Conditions:
        """What reads filters over the metadata."""
        return Conditions(self.table.fullname, self.metadata, self.json_column)

    def add_metadata_column(self, column: Any) -> str:
        """Count a column among the metadata, where it is not yet; return its name."""
        named = self._metadata_columns([column])
        self.metadata |= named
        return next(iter(named))

    @property
    def known_metric(self) -> str:
        """The metric that distances are measured in.

        :raises DeclarationError: neither the store nor the model says it.
        """
        if self.metric is not None:
            return self.metric
        declared = {
            each.metric
            for each in declarations(self.table)
            if isinstance(each, Quantized) and each.source == self.vector.name
        }
        if len(declared) != 1:
            raise DeclarationError(
                f"name the metric of column {self.vector.name!r} of table "
                f"{self.table.fullname!r}: metric='cosine'"
            )
        return declared.pop()

    def run(self, work: Callable[[Connection], _Result]) -> _Result:
        """Do work in a transaction of its own.

        :raises DeclarationError: the engine is asynchronous.
        """
        if isinstance(self._engine, AsyncEngine):
            raise DeclarationError(
                "the engine is asynchronous: call the asynchronous twin of the method"
            )
        with self._engine.begin() as connection:
            return work(connection)

    async def arun(self, work: Callable[[Connection], _Result]) -> _Result:
        """Do the same while others run; in a thread where the engine is synchronous."""
        if isinstance(self._engine, Engine):
            return await asyncio.to_thread(self.run, work)
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    def found(
        self, search: Select[*tuple[Any, ...]], measure: str
    ) -> Callable[[Connection], list[tuple[Record, float]]]:
        """Return the work of a search: its rows with one of its measures, best first."""
        statement = search.with_only_columns(*self._columns, hits(search).c[measure])
        return lambda connection: [
            (self._record(row), row[-1]) for row in connection.execute(statement)
        ]

    def get(
        self, ids: Sequence[str] | None, filter: Mapping[str, Any] | None = None
    ) -> Callable[[Connection], list[Record]]:
        """Return the work of reading rows: those of the keys in their order, or by key."""

        def work(connection: Connection) -> list[Record]:
            statement = select(*self._columns).where(*self._criteria(connection, ids, filter))
            rows = connection.execute(statement.order_by(self.key))
            records = {record.id: record for record in map(self._record, rows)}
            wanted = records if ids is None else dict.fromkeys(map(self._canonical, ids))
            return [records[id] for id in wanted if id in records]

        return work

    def among(self, ids: Sequence[str]) -> ColumnElement[bool]:
        """Return the criterion that the key of a row is one of these."""
        keys = [self._converted(id) for id in ids]
        return self.key.in_([key for key in keys if key is not None])

    def delete(
        self, ids: Sequence[str] | None, filter: Mapping[str, Any] | None = None
    ) -> Callable[[Connection], None]:
        """Return the work of deleting the rows that have these keys and pass the filter."""

        def work(connection: Connection) -> None:
            criteria = self._criteria(connection, ids, filter)
            connection.execute(delete(self.table).where(*criteria))

        return work

    def write(self, documents: Sequence[Written]) -> Callable[[Connection], list[str]]:
        """Return the work of writing rows; it answers their keys, in order.

        A row that is there is written over: its text, its vectors, the columns that its metadata
        name, and its JSON as a whole.

        :raises DeclarationError: metadata or a key that the table cannot hold.
        """
        rows = [self._row(document) for document in documents]

        def work(connection: Connection) -> list[str]:
            keys: list[str] = []
            for columns, group in groupby(rows, key=lambda row: list(row)):
                keys += self._write(connection, columns, list(group))
            return keys

        return work

    def _write(
        self, connection: Connection, columns: list[str], rows: list[dict[str, Any]]
    ) -> list[str]:
        """Write rows that have the same columns."""
        statement = insert(self.table)
        if self.key.key not in columns:
            returning = statement.returning(self.key, sort_by_parameter_order=True)
            return [str(key) for key in connection.scalars(returning, rows)]
        new = {self.table.c[name]: statement.excluded[name] for name in columns}
        del new[self.key]
        connection.execute(
            statement.on_conflict_do_update(index_elements=[self.key], set_=new), rows
        )
        return [str(row[self.key.key]) for row in rows]

    def _row(self, document: Written) -> dict[str, Any]:
        record = document.record
        row: dict[str, Any] = {}
        key = self._new_key() if record.id is None else self._known_key(record.id)
        if key is not None:
            row[self.key.key] = key
        row[self.text.key] = record.text
        row[self.vector.key] = document.vector
        if self.tokens is not None and document.tokens is not None:
            row[self.tokens.key] = document.tokens
        rest = {}
        for name, value in record.metadata.items():
            if name in self.metadata:
                row[self.metadata[name].key] = value
            else:
                rest[name] = value
        if self._rest is not None:
            row[self._rest.key] = rest
        elif rest:
            raise DeclarationError(
                f"table {self.table.fullname!r} has no column for metadata "
                f"{', '.join(map(repr, rest))}: name a jsonb column, metadata_json_column=…, "
                "that takes what has no column of its own"
            )
        return row

    @property
    def _columns(self) -> list[Column[Any]]:
        rest = [] if self._rest is None else [self._rest]
        return [self.key, self.text, *self.metadata.values(), *rest]

    def _record(self, row: Sequence[Any]) -> Record:
        key, text, *values = row[: len(self._columns)]
        rest = {} if self._rest is None else values.pop() or {}
        own = zip(self.metadata, values, strict=True)
        known = {name: value for name, value in own if value is not None}
        return Record(str(key), text or "", {**rest, **known})

    def _criteria(
        self, connection: Connection, ids: Sequence[str] | None, filter: Mapping[str, Any] | None
    ) -> list[ColumnElement[bool]]:
        criteria: list[ColumnElement[bool]] = []
        if ids is not None:
            criteria.append(self.among(ids))
        if filter:
            criteria.append(self._passes(connection, self.conditions.of(filter)))
        return criteria

    def _passes(
        self, connection: Connection, filter: Mapping[str, Any] | None
    ) -> ColumnElement[bool]:
        """Return a filter as criterion of an ordinary statement, as the searches read it."""
        values = '"sqlvec filter".bound'
        call = func.sqlvec._filter(
            RegClass(self.table),
            self.table.name,
            literal(filter, JSONB()),
            values,
            cast([], ARRAY(Text())),
        ).table_valued(literal_column("bound", ARRAY(Text())), literal_column("condition", Text()))
        bound, condition = connection.execute(select(call.c.bound, call.c.condition)).one()
        row = self._target.row
        source = select(literal(bound, ARRAY(Text())).label("bound")).subquery("sqlvec filter")
        passing = select(row.c[self.key.key]).select_from(row.join(source, true()))
        return self.key.in_(passing.where(literal_column(condition)))

    def _only_key(self) -> Column[Any]:
        key = list(self.table.primary_key)
        if len(key) != 1:
            raise DeclarationError(
                f"the primary key of table {self.table.fullname!r} has {len(key)} columns; "
                "that of documents has one"
            )
        return key[0]

    def _metadata_columns(self, named: Iterable[Any] | None) -> dict[str, Column[Any]]:
        own = (self.key, self.text, self.vector, self.tokens, self._rest)
        if named is not None:
            columns = [self._target.any_column(each) for each in named]
        else:
            derived = derived_columns(self.table)
            columns = [
                column
                for column in self.table.columns
                if type_name(column.type) in (None, "text") and column.name not in derived
            ]
            columns = [column for column in columns if not any(column is each for each in own)]
        for column in columns:
            if any(column is each for each in own):
                raise DeclarationError(f"column {column.name!r} is no metadata of a document")
        return {column.name: column for column in columns}

    def _new_key(self) -> Any:
        """Return a key for a new row, or None where the database has one."""
        if self.key.default is not None or self.key.server_default is not None:
            return None
        kind = _python_type(self.key)
        return uuid4() if kind is UUID else str(uuid4()) if kind is str else None

    def _known_key(self, id: str) -> Any:
        key = self._converted(id)
        if key is None:
            raise DeclarationError(
                f"{id!r} is no key of table {self.table.fullname!r}, whose column "
                f"{self.key.name!r} is of type {self.key.type!r}"
            )
        return key

    def _converted(self, id: str) -> Any:
        """Return what the key column holds for an id, None where it can hold no such."""
        kind = _python_type(self.key)
        if kind not in (int, UUID):
            return id
        try:
            return kind(id)
        except ValueError:
            return None

    def _canonical(self, id: str) -> str:
        return str(self._converted(id))


def _jsonb(column: Column[Any]) -> Column[Any]:
    if not isinstance(column.type, JSONB):
        raise DeclarationError(f"column {column.name!r} is of type {column.type!r}, not jsonb")
    return column


def _python_type(column: Column[Any]) -> type[Any] | None:
    try:
        return column.type.python_type
    except NotImplementedError:
        return None
