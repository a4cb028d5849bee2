"""What every declaration of derived columns does to its table."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from sqlalchemy import Column, FetchedValue, Index, Table, event
from sqlalchemy.schema import ExecutableDDLElement, SchemaItem

from sqlvec.ddl import DropDerived
from sqlvec.errors import DeclarationError
from sqlvec.types import dimensions, type_name

_INFO = "sqlvec.derived"


class Derived(SchemaItem):
    """Columns that the database fills from others of the same row.

    Attached to a table, it adds those columns that the table does not declare itself, leaves them
    out of INSERT and UPDATE, and emits its own DDL with that of the table.
    """

    target: str
    """Name of the column for the codes."""

    @abstractmethod
    def _columns(self, table: Table) -> list[Column[Any]]:
        """Return the columns to fill, as they are to be, the target last.

        :raises DeclarationError: the table has not what they are made from.
        """

    @abstractmethod
    def _statement(self) -> ExecutableDDLElement:
        """Return what declares them on the server."""

    def _set_parent(self, parent: Any, **kw: Any) -> None:
        table: Table = parent
        wanted = self._columns(table)
        for column in wanted:
            if column.name in derived_columns(table):
                raise DeclarationError(
                    f"two codes are declared for column {column.name!r} of table {table.fullname!r}"
                )
        for column in wanted:
            own = self._declared(table, column)
            # The database fills the column, so the ORM must not write NULL into it.
            own.server_default = own.server_default or FetchedValue()
            own.server_onupdate = own.server_onupdate or FetchedValue(for_update=True)
        names = tuple(column.name for column in wanted)
        table.info[_INFO] = {**table.info.get(_INFO, {}), self: names}
        self._listen(table)

    def _declared(self, table: Table, wanted: Column[Any]) -> Column[Any]:
        """Return the column of the table, added where the model does not declare it."""
        declared = find_column(table, wanted.name)
        if declared is None:
            table.append_column(wanted)
            return wanted
        if _described(declared) != _described(wanted):
            raise DeclarationError(
                f"column {wanted.name!r} of table {table.fullname!r} is of type "
                f"{declared.type!r}; {self!r} makes {wanted.type!r}"
            )
        return declared

    def _listen(self, table: Table) -> None:
        """Emit the declaration with this table, and with copies of it."""
        # Copies made by to_metadata() carry the listeners on; they find their table themselves.
        for moment, statement in (
            ("after_create", self._statement()),
            ("before_drop", DropDerived(self.target)),
        ):
            listener = statement.execute_if(dialect="postgresql")
            event.listen(table, moment, listener, propagate=True)


def hnsw_index(
    name: str | None, column: str, opclass: str, m: int | None, ef_construction: int | None
) -> Index:
    """Return an HNSW index on a column of codes; settings left None are pgvector's."""
    settings = {"m": m, "ef_construction": ef_construction}
    return Index(
        name,
        column,
        postgresql_using="hnsw",
        postgresql_with={key: value for key, value in settings.items() if value is not None},
        postgresql_ops={column: opclass},
    )


def declarations(table: Table) -> tuple[Derived, ...]:
    """Return what is declared to be derived on a table, in its order."""
    return tuple(table.info.get(_INFO, ()))


def derived_columns(table: Table) -> tuple[str, ...]:
    """Return the names of the columns of a table that the database fills."""
    filled: dict[Derived, tuple[str, ...]] = table.info.get(_INFO, {})
    return tuple(name for names in filled.values() for name in names)


def find_column(table: Table, name: str) -> Column[Any] | None:
    """Return the column of that key or name."""
    return next((column for column in table.columns if name in (column.key, column.name)), None)


def source_column(table: Table, name: str) -> Column[Any]:
    """Return the column that codes are made from.

    :raises DeclarationError: it is not there, or not yet.
    """
    source = find_column(table, name)
    if source is None:
        known = ", ".join(repr(column.name) for column in table.columns)
        raise DeclarationError(
            f"table {table.fullname!r} has no column {name!r} to derive from; "
            f"the columns declared before are: {known}"
        )
    return source


def vector_dimensions(table: Table, name: str) -> int:
    """Return the dimensions of a column of vectors that codes are made from.

    :raises DeclarationError: it is not there, is of another type, or names no dimensions.
    """
    source = source_column(table, name)
    if type_name(source.type) not in ("vector", "halfvec"):
        raise DeclarationError(
            f"column {name!r} of table {table.fullname!r} is of type "
            f"{source.type!r}, not vector or halfvec"
        )
    found = dimensions(source.type)
    if found is None:
        raise DeclarationError(
            f"column {name!r} of table {table.fullname!r} names no dimensions; write VECTOR(384)"
        )
    return found


def multivector_dimensions(table: Table, name: str) -> int:
    """Return the dimensions of a column of multi-vectors that codes are made from.

    :raises DeclarationError: it is not there, is of another type, or names no dimensions.
    """
    source = source_column(table, name)
    if type_name(source.type) not in ("halfvec[]", "vector[]"):
        raise DeclarationError(
            f"column {name!r} of table {table.fullname!r} is of type "
            f"{source.type!r}, not MULTIVECTOR"
        )
    found = dimensions(source.type)
    if found is None:
        raise DeclarationError(
            f"column {name!r} of table {table.fullname!r} names no dimensions; "
            "write MULTIVECTOR(128)"
        )
    return found


def _described(column: Column[Any]) -> tuple[str | None, int | None]:
    return type_name(column.type), dimensions(column.type)
