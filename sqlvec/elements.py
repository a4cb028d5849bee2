"""Pieces of SQL that SQLAlchemy has no element for."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import coercions, roles
from sqlalchemy.sql.compiler import IdentifierPreparer, SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import FromClause
from sqlalchemy.sql.selectable import NamedFromClause
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import NullType, TypeEngine


class PostgresElement(ColumnElement[Any]):
    """Base of elements that only PostgreSQL has.

    Other databases refuse them. ``str(statement)``, which the ORM also uses while it takes
    statements apart, shows them as PostgreSQL does.
    """

    inherit_cache = True
    stringify_dialect = "postgresql"


class NamedArg(PostgresElement):
    """An argument passed by name: ``k => :k``."""

    inherit_cache = True
    _traverse_internals = [
        ("name", InternalTraversal.dp_string),
        ("value", InternalTraversal.dp_clauseelement),
    ]

    def __init__(self, name: str, value: ColumnElement[Any]) -> None:
        self.name = name
        self.value: ColumnElement[Any] = coercions.expect(
            roles.ExpressionElementRole, value, apply_propagate_attrs=self
        )
        self.type = self.value.type

    @property
    def _from_objects(self) -> list[FromClause]:
        return self.value._from_objects


class NullRow(PostgresElement):
    """A table as a typed NULL row: ``NULL::app.doc``."""

    inherit_cache = True
    # The table is named here, not selected from: nothing may replace it by an alias.
    _traverse_internals = [("table", InternalTraversal.dp_has_cache_key)]
    type = NullType()

    def __init__(self, table: Table) -> None:
        self.table = table


class WholeRow(PostgresElement):
    """The row of a table or alias in the statement: ``doc.*``."""

    inherit_cache = True
    _traverse_internals = [("row", InternalTraversal.dp_clauseelement)]
    type = NullType()

    def __init__(self, table: NamedFromClause) -> None:
        self.row: ColumnElement[Any] = table.table_valued()

    @property
    def _from_objects(self) -> list[FromClause]:
        return self.row._from_objects


class RegClass(PostgresElement):
    """A table as a constant of type ``regclass``: ``'app.doc'::regclass``."""

    inherit_cache = True
    _traverse_internals = [("table", InternalTraversal.dp_has_cache_key)]
    type = Text()

    def __init__(self, table: Table) -> None:
        self.table = table


class Field(PostgresElement):
    """A column of a composite value: ``(hits.hit).id``."""

    inherit_cache = True
    _traverse_internals = [
        ("row", InternalTraversal.dp_clauseelement),
        ("name", InternalTraversal.dp_string),
        ("type", InternalTraversal.dp_type),
    ]

    def __init__(self, row: ColumnElement[Any], name: str, type_: TypeEngine[Any]) -> None:
        self.row = row
        self.name = name
        self.type = type_

    @property
    def _from_objects(self) -> list[FromClause]:
        return self.row._from_objects


def regclass(preparer: IdentifierPreparer, table: Table) -> str:
    """Return a table as a constant of type ``regclass``."""
    # The quoted name has its percent signs doubled for the driver already.
    return "'" + preparer.format_table(table).replace("'", "''") + "'::regclass"


@compiles(NamedArg, "postgresql")
def _compile_named_arg(element: NamedArg, compiler: SQLCompiler, **kw: Any) -> str:
    return f"{element.name} => {compiler.process(element.value, **kw)}"


@compiles(NullRow, "postgresql")
def _compile_null_row(element: NullRow, compiler: SQLCompiler, **kw: Any) -> str:
    return f"NULL::{compiler.preparer.format_table(element.table)}"


@compiles(WholeRow, "postgresql")
def _compile_whole_row(element: WholeRow, compiler: SQLCompiler, **kw: Any) -> str:
    # The bare name would be taken for a column of that name, where there is one.
    return f"{compiler.process(element.row, **kw)}.*"


@compiles(RegClass, "postgresql")
def _compile_regclass(element: RegClass, compiler: SQLCompiler, **kw: Any) -> str:
    return regclass(compiler.preparer, element.table)


@compiles(Field, "postgresql")
def _compile_field(element: Field, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({compiler.process(element.row, **kw)}).{compiler.preparer.quote(element.name)}"
