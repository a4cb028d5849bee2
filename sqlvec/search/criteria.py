"""Criteria that travel into a search function as text, with their values beside them.

A search function applies criteria while it looks for candidates, so it takes them as SQL over the
bare table name and reads values as ``($1)[i]`` from an array of text. :func:`split` turns
expressions into those two arguments::

    Doc.tenant_id == 7, Doc.lang.in_(["de", "fr"])

become ::

    where_sql => $where$doc.tenant_id = CAST(($1)[1] AS INTEGER)
                        AND doc.lang = ANY (CAST(($1)[2] AS VARCHAR[]))$where$,
    params => ARRAY[CAST(CAST(:tenant_id AS INTEGER) AS TEXT),
                    CAST(CAST(:lang AS VARCHAR[]) AS TEXT)]

Values stay bound parameters with the processing of their own types, and a value changes neither
the text nor the cache key of the statement.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    Dialect,
    Enum,
    Numeric,
    Select,
    String,
    Text,
    all_,
    and_,
    any_,
    bindparam,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, BIT, INTERVAL, TIME, TIMESTAMP, array
from sqlalchemy.exc import CompileError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.annotation import _deep_deannotate
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, ColumnClause, ColumnElement
from sqlalchemy.sql.expression import FromClause
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import Float, NullType, TupleType, TypeDecorator, TypeEngine

from sqlvec.elements import PostgresElement
from sqlvec.errors import DeclarationError


def split(
    criteria: Iterable[ColumnElement[bool]], searched: FromClause, row: FromClause
) -> tuple[ColumnElement[str], ColumnElement[Any] | None]:
    """Return the arguments ``where_sql`` and ``params`` that stand for criteria.

    :param searched: the table or alias that the criteria speak of.
    :param row: the same table under its bare name, as the search function sees it.
    """
    extraction = _Extraction(searched, row)
    # Relationship criteria are marked as closed to replacement, but their values must move too.
    opened = _deep_deannotate(and_(*criteria), values=["no_replacement_traverse"])
    text = WhereSql(extraction.apply(opened), row)
    return text, array(extraction.values, type_=Text()) if extraction.values else None


class _Extraction:
    """Moves values out of expressions, and expressions over to the row of the search function."""

    def __init__(self, searched: FromClause, row: FromClause) -> None:
        self.values: list[ColumnElement[str]] = []
        self._searched = searched
        self._row = row
        self._columns = {column: row.c[column.key] for column in searched.c}

    def apply(self, expression: ColumnElement[Any]) -> ColumnElement[Any]:
        replaced: ColumnElement[Any] = visitors.replacement_traverse(expression, {}, self._replace)
        return replaced

    def _replace(self, element: Any, **kw: Any) -> Any:
        if isinstance(element, BinaryExpression) and _is_value_list(element.right):
            return self._as_array_comparison(element)
        if isinstance(element, BindParameter):
            return self._value(element)
        if isinstance(element, ColumnClause):
            return self._columns.get(element)
        if isinstance(element, FromClause) and hash(element) == hash(self._searched):
            return self._row  # hash() because the ORM annotates copies of tables
        return None

    def _as_array_comparison(self, comparison: BinaryExpression[Any]) -> ColumnElement[bool]:
        """Turn ``IN`` with a list of values, whose length would be text, into ``= ANY (array)``."""
        values: Any = comparison.right
        if isinstance(values.type, TupleType):
            raise DeclarationError(
                "tuple_(…).in_(…) cannot be a criterion of a search; "
                "write or_(and_(…), and_(…)) instead"
            )
        whole = bindparam(
            None if values.unique else values.key,
            None if values.required else values.effective_value,
            type_=_List(_known_type(values)),
            required=values.required,
            unique=values.unique,
        )
        operand = self.apply(comparison.left)
        if comparison.operator is operators.in_op:
            return operand == any_(self._value(whole))
        return operand != all_(self._value(whole))

    def _value(self, bound: BindParameter[Any]) -> ColumnElement[Any]:
        type_ = _known_type(bound)
        self.values.append(ValueText(bound))
        return Value(len(self.values), type_)


def _is_value_list(element: object) -> bool:
    return isinstance(element, BindParameter) and element.expanding


def _known_type(bound: BindParameter[Any]) -> TypeEngine[Any]:
    if isinstance(bound.type, NullType):
        raise DeclarationError(
            f"the SQL type of value {bound.value!r} in the criteria is unknown; "
            "write literal(value, type_=…)"
        )
    return bound.type


class _List(TypeDecorator[Any]):
    """An array of what the values of ``IN`` are, each sent as its own type sends it."""

    impl = ARRAY
    cache_ok = True

    def __init__(self, item: TypeEngine[Any]) -> None:
        super().__init__(item)
        self.item = item

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        # SQLAlchemy would cast the values to VARCHAR(3)[], which cuts them.
        return ARRAY(_without_modifiers(self.item, dialect))

    def process_bind_param(self, value: Any, dialect: Dialect) -> list[Any] | None:
        return None if value is None else [self._item(each, dialect) for each in value]

    def _item(self, value: Any, dialect: Dialect) -> Any:
        type_ = self.item
        while isinstance(type_, TypeDecorator):
            value = type_.process_bind_param(value, dialect)
            type_ = type_.load_dialect_impl(dialect)
        return value


class Value(PostgresElement):
    """A value inside criteria: ``CAST(($1)[2] AS INTEGER)``."""

    inherit_cache = True
    _traverse_internals = [
        ("position", InternalTraversal.dp_plain_obj),
        ("type", InternalTraversal.dp_type),
    ]

    def __init__(self, position: int, type_: TypeEngine[Any]) -> None:
        self.position = position
        self.type = type_


class ValueText(PostgresElement):
    """The same value as the search function takes it: ``CAST(CAST(:x AS INTEGER) AS TEXT)``.

    The server turns it into text, so that every type comes back as it went in.
    """

    inherit_cache = True
    _traverse_internals = [("bound", InternalTraversal.dp_clauseelement)]
    type = Text()

    def __init__(self, bound: BindParameter[Any]) -> None:
        self.bound = bound


class WhereSql(PostgresElement):
    """Criteria over the bare table name, as a string constant."""

    inherit_cache = True
    # Part of the cache key, but closed to what adapts the statement around it: the text is
    # compiled in a scope of its own.
    _traverse_internals = [
        ("criteria", InternalTraversal.dp_has_cache_key),
        ("row", InternalTraversal.dp_has_cache_key),
    ]
    type = Text()

    def __init__(self, criteria: ColumnElement[Any], row: FromClause) -> None:
        self.criteria = criteria
        self.row = row


class _Scope(PostgresElement):
    """Criteria within a statement that selects from ``row`` and from nothing else."""

    def __init__(self, where: WhereSql) -> None:
        self.where = where


@compiles(Value, "postgresql")
def _compile_value(element: Value, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(($1)[{element.position}] AS {_type_sql(element.type, compiler)})"


@compiles(ValueText, "postgresql")
def _compile_value_text(element: ValueText, compiler: SQLCompiler, **kw: Any) -> str:
    bound = compiler.process(element.bound, **kw)
    return f"CAST(CAST({bound} AS {_type_sql(element.bound.type, compiler)}) AS TEXT)"


@compiles(WhereSql, "postgresql")
def _compile_where_sql(element: WhereSql, compiler: SQLCompiler, **kw: Any) -> str:
    # A compiler of its own: subqueries must not correlate with the statement around the search.
    inner = compiler.dialect.statement_compiler(
        compiler.dialect, _Scope(element), schema_translate_map=compiler.schema_translate_map
    )
    if inner.ctes:
        raise CompileError("the criteria of a search cannot hold a CTE; use a subquery")
    if inner.binds:
        names = ", ".join(inner.binds)
        raise CompileError(f"values hidden in the criteria of a search cannot be bound: {names}")
    return _dollar_quoted(inner.string)


@compiles(_Scope, "postgresql")
def _compile_scope(element: _Scope, compiler: SQLCompiler, **kw: Any) -> str:
    row = element.where.row
    enclosing: Select[Any] = select(literal_column("1")).select_from(row)
    compiler.stack.append(
        {"correlate_froms": {row}, "asfrom_froms": {row}, "selectable": enclosing}
    )
    try:
        return compiler.process(element.where.criteria, **kw)
    finally:
        compiler.stack.pop()


def _dollar_quoted(text: str) -> str:
    tag = "where"
    while f"${tag}$" in f"{text}$":
        tag += "_"
    return f"${tag}${text}${tag}$"


def _type_sql(type_: TypeEngine[Any], compiler: SQLCompiler) -> str:
    sql: str = compiler.dialect.type_compiler_instance.process(
        _without_modifiers(type_, compiler.dialect), identifier_preparer=compiler.preparer
    )
    return sql


def _without_modifiers(type_: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """Return a type whose cast neither cuts nor rounds: VARCHAR for VARCHAR(3).

    A cast would make 'abcd' equal to 'abc', where comparing with the column does not.
    """
    while isinstance(type_, TypeDecorator):
        type_ = type_.load_dialect_impl(dialect)
    if isinstance(type_, String) and not isinstance(type_, Enum):
        return String() if type_.length or type_.collation else type_
    type_ = type_.dialect_impl(dialect)
    match type_:
        case ARRAY():
            return ARRAY(_without_modifiers(type_.item_type, dialect), dimensions=type_.dimensions)
        case BIT():
            return BIT(varying=True)
        case Enum() if not type_.native_enum:
            return String()
        case Numeric() if not isinstance(type_, Float):
            return Numeric()
        case TIMESTAMP():
            return TIMESTAMP(timezone=type_.timezone)
        case TIME():
            return TIME(timezone=type_.timezone)
        case INTERVAL():
            return INTERVAL()
    return type_
